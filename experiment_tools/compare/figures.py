"""Learning curves of several runs as matplotlib figures: bands over seeds, and four panels per method and way.

Figures are made without pyplot: no window, no state, no backend of the user's.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiment_tools.compare.comparison import Column, Comparison, training_column
from experiment_tools.parts.run_reading import Run

COLOURS = ("#1f6fb4", "#d9622b", "#2a8f5c", "#8a4fb0", "#b8860b", "#c23b5a", "#4aa0a8", "#6b6b6b")
PANELS = (("train", "loss"), ("val", "loss"), ("train", "accuracy"), ("val", "accuracy"))
SPLIT_NAMES = {"train": "Training", "val": "Validation"}


@dataclass(frozen=True)
class Curve:
    """Mean over runs of a column of summary_statistics, and its deviation over them where there are several."""

    epochs: list[int]
    mean: list[float]
    deviation: list[float]
    """Sample standard deviation; 0 where one run alone has the epoch."""
    n_runs: int


def mean_curve(runs: Sequence[Run], name: str) -> Curve:
    """Return the mean per epoch over the runs that have it; cells without a number are left out."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for row in run.rows:
            if row.get(name) is not None:
                values.setdefault(int(row["epoch"]), []).append(float(row[name]))
    epochs = sorted(values)
    deviation = [statistics.stdev(values[epoch]) if len(values[epoch]) > 1 else 0.0 for epoch in epochs]
    return Curve(epochs, [statistics.fmean(values[epoch]) for epoch in epochs], deviation, len(runs))


def _score_axis(groups: Mapping[str, Sequence[Run]]) -> tuple[float, str]:
    """Return the factor and name of what is called accuracy in the rows of these runs, which are all of one kind."""
    is_regression = any(run.is_regression for runs in groups.values() for run in runs)
    return (-1.0, "Mean squared error") if is_regression else (100.0, "Accuracy in %")


def validation_figure(groups: Mapping[str, Sequence[Run]], title: str) -> Figure:
    """Validation accuracy over epochs, a line per group with a band of one deviation over its runs."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    scale, name = _score_axis(groups)
    for (label, runs), colour in zip(groups.items(), itertools.cycle(COLOURS), strict=False):
        _draw(axes, mean_curve(runs, "val_accuracy_mean"), _with_seeds(label, len(runs)), colour, scale)
    _dress(axes, f"Validation {name[0].lower()}{name[1:]}", title)
    axes.legend(frameon=False, fontsize=9)
    return figure


def four_panels(
    groups: Mapping[str, Sequence[Run]], test_points: Mapping[str, Mapping[str, tuple[float, float]]], title: str
) -> Figure:
    """Training and validation loss and accuracy over epochs; a line per group, with a point of the test at its last
    epoch.

    Args:
        groups: label, such as '1 shot', -> runs of different seeds.
        test_points: label -> "loss" and "accuracy" -> (epoch, value), drawn into the panels of the validation.
    """
    figure = Figure(figsize=(10.0, 7.0), layout="constrained")
    score_scale, score_name = _score_axis(groups)
    for (split, metric), axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        scale = score_scale if metric == "accuracy" else 1
        for (label, runs), colour in zip(groups.items(), itertools.cycle(COLOURS), strict=False):
            _draw(axes, mean_curve(runs, f"{split}_{metric}_mean"), _with_seeds(label, len(runs)), colour, scale)
            if split == "val" and metric in test_points.get(label, {}):
                epoch, value = test_points[label][metric]
                axes.plot([epoch], [scale * value], "o", color=colour, markeredgecolor="black", markersize=7, zorder=3)
        _dress(axes, score_name if metric == "accuracy" else "Loss", f"{SPLIT_NAMES[split]} {metric}")
        if split == "val" and test_points:
            axes.plot([], [], "o", color="white", markeredgecolor="black", label="test")
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


def _with_seeds(label: str, n_runs: int) -> str:
    return f"{label} ({n_runs} seeds)" if n_runs > 1 else label


def _draw(axes: Any, curve: Curve, label: str, colour: str, scale: float) -> None:
    mean = [scale * value for value in curve.mean]
    axes.plot(curve.epochs, mean, color=colour, label=label, linewidth=1.8, marker="." if len(mean) < 30 else None)
    if any(curve.deviation):
        low = [m - scale * d for m, d in zip(mean, curve.deviation, strict=True)]
        high = [m + scale * d for m, d in zip(mean, curve.deviation, strict=True)]
        axes.fill_between(curve.epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _dress(axes: Any, ylabel: str, title: str) -> None:
    axes.set_xlabel("Epoch")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# --- from a comparison to its figures ---------------------------------------------------------------------------------


def comparison_figures(comparison: Comparison, runs: Sequence[Run]) -> list[tuple[str, str, Figure]]:
    """(file stem, caption, figure): the validation curves of each dataset, way and shot."""
    figures = []
    for column, groups in _by_training_column(comparison, runs).items():
        stem = f"validation_{column.dataset}_{column.ways}way_{column.shots}shot_{column.queries}query"
        text = (
            f"{column}: validation accuracy over epochs; lines are means over seeds, bands one standard deviation "
            "over them."
        )
        figures.append((stem, text, validation_figure(groups, str(column))))
    return figures


def four_panel_figures(comparison: Comparison, runs: Sequence[Run]) -> list[tuple[str, str, Figure]]:
    """(file stem, caption, figure): losses and accuracies of each method, dataset and way, a line per shot."""
    by_method: dict[tuple[str, str, int], dict[str, list[Run]]] = {}
    points: dict[tuple[str, str, int], dict[str, dict[str, tuple[float, float]]]] = {}
    for column, groups in sorted(_by_training_column(comparison, runs).items()):
        for label, members in groups.items():
            key, shots = (label, column.dataset, column.ways), f"{column.shots} shot"
            by_method.setdefault(key, {})[shots] = members
            cell = comparison.cells.get((label, column))
            if cell is not None:
                epoch = max(len(run.rows) for run in cell.runs)
                losses = [result.loss for result in cell.results if result.loss is not None]
                values = {"accuracy": (epoch, cell.summary.mean)}
                values |= {"loss": (epoch, statistics.fmean(losses))} if losses else {}
                points.setdefault(key, {})[shots] = values
    figures = []
    for (label, dataset, ways), groups in by_method.items():
        title = f"{label}, {dataset}, {ways}-way"
        safe = "".join(letter if letter.isalnum() or letter in "+-" else "_" for letter in label)
        stem = f"four_panels_{safe}_{dataset}_{ways}way"
        text = (
            f"{title}: loss and accuracy over epochs for each number of shots; circles are the test of the best models."
        )
        figures.append((stem, text, four_panels(groups, points.get((label, dataset, ways), {}), title)))
    return figures


def _by_training_column(comparison: Comparison, runs: Sequence[Run]) -> dict[Column, dict[str, list[Run]]]:
    groups: dict[Column, dict[str, list[Run]]] = {}
    for run in runs:
        if run.rows:
            label = comparison.labels[str(run.path)]
            groups.setdefault(training_column(run), {}).setdefault(label, []).append(run)
    return groups
