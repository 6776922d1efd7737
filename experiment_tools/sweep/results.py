"""What came of a sweep: a table, and a picture of it in parallel coordinates."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment_tools.parts.pages import Section, Table, page_html, svg_text, write_png
from experiment_tools.sweep.file import Choice, Range, Sweep
from experiment_tools.sweep.trials import Trial, best_trial
from utils.files.atomic_files import write_bytes_atomically
from utils.files.tables import as_csv
from utils.metrics import score_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_results(folder: Path, sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Write trials.csv, sweep.html and parallel_coordinates.png; returns the table for the terminal.

    Raises:
        StorageError: no space or no permission.
    """
    heading, rows = table(sweep, trials)
    write_bytes_atomically(folder / "trials.csv", _csv_text(sweep, trials).encode())
    section = Section("trials", "Trials", "")
    if any(trial.value is not None for trial in trials):
        figure = parallel_coordinates(sweep, trials)
        write_png(figure, folder / "parallel_coordinates.png")
        section.add("Parallel coordinates", svg_text(figure), kind="picture", size="wide")
    section.add("The best first", Table(rows, heading, numbers=True), kind="table", size="wide")
    lead = f"{sweep.method}, {sweep.trials} trials, by the best validation accuracy of each."
    page = page_html(f"Sweep {sweep.name}", [section], lead=f"{lead} No trial was tested to choose.")
    write_bytes_atomically(folder / "sweep.html", page.encode())
    widths = [max(len(row[place]) for row in (heading, *rows)) for place in range(len(heading))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]
    return "\n".join([*lines, f"Written to {folder}: trials.csv, sweep.html, parallel_coordinates.png"])


def table(sweep: Sweep, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Return heading, and one row per trial, the best first."""
    ordered = sorted(trials, key=lambda trial: (-(trial.value or -math.inf), trial.number))
    heading = ["trial", "best val", "state", "epochs", *sweep.parameters, "note"]
    rows = [
        [
            str(trial.number),
            "" if trial.value is None else score_text(sweep, trial.value),
            trial.state,
            str(max(trial.accuracies, default=0)),
            *(value_text(trial.point[name]) for name in sweep.parameters),
            trial.note,
        ]
        for trial in ordered
    ]
    return heading, rows


def value_text(value: Any) -> str:
    """Return '0.00123', 'true', 'adam'."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def score_text(sweep: Sweep, value: float) -> str:
    """Return '93.80 %', or the mean squared error of a regression, whose score is minus it."""
    return score_of(sweep.config.get("loss") == "mean_squared_error").text(value)


def trial_text(sweep: Sweep, trial: Trial, best: Trial | None) -> str:
    """Return a line for people about a trial that has ended."""
    values = ", ".join(f"{name} {value_text(value)}" for name, value in trial.point.items())
    value = "" if trial.value is None else f" {score_text(sweep, trial.value)} on validation"
    note = f" ({trial.note})" if trial.note else ""
    leader = "" if best is None else f"; best {score_text(sweep, best.value)} (trial {best.number})"
    return f"trial {trial.number} {trial.state}:{value}{note}, {values}{leader}"


def _csv_text(sweep: Sweep, trials: Sequence[Trial]) -> str:
    rows: list[list[Any]] = [["trial", "state", "val_accuracy_best", "epochs", *sweep.parameters, "note"]]
    for trial in trials:
        values = (trial.point[name] for name in sweep.parameters)
        shown = [value_text(value) if isinstance(value, list | bool) else value for value in values]
        rows.append([trial.number, trial.state, trial.value, max(trial.accuracies, default=0), *shown, trial.note])
    return as_csv(rows)


# --- the picture ------------------------------------------------------------------------------------------------------


def parallel_coordinates(sweep: Sweep, trials: Sequence[Trial]) -> "Figure":
    """Draw an upright axis per parameter and one for the accuracy; a line per trial, coloured by its accuracy, the best
    one thick.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    shown = [trial for trial in trials if trial.value is not None]
    low, high = min(trial.value for trial in shown), max(trial.value for trial in shown)
    names = [*sweep.parameters, f"validation {score_of(sweep.config.get('loss') == 'mean_squared_error').name}"]
    figure = Figure(figsize=(max(6.0, 2.1 * len(names)), 4.6), layout="constrained")
    axes = figure.subplots()
    best = best_trial(trials)
    for trial in sorted(shown, key=lambda trial: (trial is best, trial.value)):
        share = 1.0 if high == low else (trial.value - low) / (high - low)
        heights = [place(parameter, trial.point[name]) for name, parameter in sweep.parameters.items()]
        style = {"linewidth": 3.2, "zorder": 3} if trial is best else {"linewidth": 1.3, "alpha": 0.85}
        dashes = "--" if trial.state == "pruned" else "-"
        axes.plot(range(len(names)), [*heights, share], dashes, color=colormaps["viridis"](0.92 * share), **style)
    for position, name in enumerate(names):
        axes.axvline(position, color="black", linewidth=0.8)
        parameter = sweep.parameters.get(name)
        ticks = [(0.0, score_text(sweep, low)), (1.0, score_text(sweep, high))]
        if parameter:
            ticks = [(place(parameter, value), value_text(value)) for value in parameter.extremes()]
        for height, text in ticks:
            axes.annotate(
                text,
                (position, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
                zorder=4,
            )
    axes.set_xticks(range(len(names)), [_wrapped(name) for name in names], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(names) - 0.55)
    axes.set_ylim(-0.06, 1.06)
    for side in axes.spines.values():
        side.set_visible(False)
    dashed = "; dashed: pruned" if any(trial.state == "pruned" for trial in shown) else ""
    axes.set_title(f"{sweep.name}: {len(shown)} trials, the best one thick{dashed}", fontsize=10)
    return figure


def place(parameter: Choice | Range, value: Any) -> float:
    """Return the height of a value on its axis, 0 to 1."""
    if isinstance(parameter, Choice):
        is_numbers = all(type(entry) in (int, float) for entry in parameter.values)
        values = sorted(parameter.values) if is_numbers else list(parameter.values)
        return 0.5 if len(values) == 1 else values.index(value) / (len(values) - 1)
    if parameter.log:
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return (value - parameter.low) / (parameter.high - parameter.low)


def _wrapped(name: str, width: int = 18) -> str:
    """Break a long key into lines at underscores."""
    lines = [""]
    for part in name.replace("_", "_ ").split():
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part if part.endswith("_") or not lines[-1] or lines[-1].endswith("_") else f" {part}"
    return "\n".join(lines)
