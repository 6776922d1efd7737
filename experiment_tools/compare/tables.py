"""A comparison as Markdown, LaTeX and CSV. Pure functions from a `Comparison` to text."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

from experiment_parts.evaluation.baselines import WORDS
from experiment_tools.compare.comparison import Cell, Comparison, Difference
from utils.files.tables import as_csv
from utils.metrics import ACCURACY, Score, score_of
from utils.words import printable

Rows = list[list[str]]
"""Of text, the heading first."""
TEXT_COLUMNS = ("method", "run", "tasks", "pair", "test")
MOST_COLUMNS = 3


def accuracy_table(comparison: Comparison) -> Rows:
    """Return accuracy and, where one is known, the published value: a row per method and a column per kind of tasks.

    Where these are many, a row for each.
    """
    columns, cells = comparison.columns, comparison.cells
    published = {column for (_, column), cell in cells.items() if cell.published}
    tested = [row for row in comparison.rows if any((row, column) in cells for column in columns)]
    if len(columns) > MOST_COLUMNS:
        places = [(row, column) for column in columns for row in tested if (row, column) in cells]
        rows = [[str(column), row, *_result(cells[row, column], bool(published))] for row, column in places]
        return [["tasks", "method", "mean", *(["published"] if published else [])], *rows]
    results = {row: [_result(cells.get((row, column)), column in published) for column in columns] for row in tested}
    heading = [[str(column), *(["published"] if column in published else [])] for column in columns]
    return [["method", *chain(*heading)], *([row, *chain(*of_row)] for row, of_row in results.items())]


def _result(cell: Cell | None, with_published: bool) -> list[str]:
    published = "" if cell is None or cell.published is None else cell.published.text()
    return ["" if cell is None else cell_text(cell), *([published] if with_published else [])]


def cell_text(cell: Cell) -> str:
    """Return '95.93 ± 0.97 (3 seeds)' in percent, '0.3423 ± 0.0189 (3 seeds)' of a mean squared error."""
    text = cell.score.text(cell.summary.mean, cell.summary.ci95)
    return f"{text.replace(' %', '').replace('+-', '±')} ({cell.interval_is_over})"


def difference_table(comparison: Comparison) -> Rows:
    """Return one row per pair of methods in a column."""
    with_seeds = any(d.p_over_seeds is not None for d in comparison.differences)
    heading = [
        "tasks",
        "pair",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        *(["p over seeds"] if with_seeds else []),
        "test",
    ]
    scores = {column: cell.score for (_, column), cell in comparison.cells.items()}
    return [heading, *(_difference_row(d, with_seeds, scores[d.column]) for d in comparison.differences)]


def _difference_row(d: Difference, with_seeds: bool, score: Score) -> list[str]:
    numbers = ["", "", "", ""]
    if d.mean is not None:
        mean, low, high = (100 * share for share in (d.mean, d.low, d.high))
        digits = 2
        if score is not ACCURACY:  # of the errors, whose scores are minus them
            mean, low, high, digits = -d.mean, -d.high, -d.low, 4
        mean, low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in (mean, low, high))  # never -0.00
        numbers = [mean, f"{low} to {high}", p_text(d.p), p_text(d.p_holm)]
    seeds = ["" if d.p_over_seeds is None else p_text(d.p_over_seeds)] if with_seeds else []
    return [str(d.column), f"{d.first} - {d.second}", *numbers, *seeds, d.test + (f": {d.note}" if d.note else "")]


def baseline_table(comparison: Comparison) -> Rows:
    """Return what stands beside the results on the same tasks, means over the runs of a cell, in percent (errors as
    they are); a row per cell that has it.
    """
    found = {
        (row, column): (cell.score, [_beside(result.baselines) for result in cell.results if result.baselines])
        for (row, column), cell in comparison.cells.items()
    }
    found = {place: (score, columns) for place, (score, columns) in found.items() if columns}
    names = dict.fromkeys(name for _, columns in found.values() for of_run in columns for name in of_run)
    rows = []
    for (row, column), (score, columns) in found.items():
        means = []
        for name in names:
            values = [of_run[name] for of_run in columns if name in of_run]
            scale, digits = (100, 2) if score is ACCURACY else (-1, 4)
            mean = math.fsum(value for value, _ in values) / len(values) if values else None
            of_first = sorted({n_tasks for _, n_tasks in values if n_tasks})
            fewer = f" (first {' or '.join(map(str, of_first))})" if of_first else ""
            means.append("" if mean is None else f"{scale * mean:.{digits}f}{fewer}")
        rows.append([str(column), row, *means])
    return [["tasks", "method", *names], *rows] if rows else []


def _beside(baselines: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Return heading -> value of a run, and of how many tasks where it is not all of them: 0."""
    rows, steps = baselines["rows"], baselines["steps"]
    last = rows[f"after_{steps}_steps"]
    means = {name: rows[name]["mean"] for name in WORDS if name in rows}
    means |= {"0 steps": rows["after_0_steps"]["mean"], "all steps": last["mean"]}
    means["worst tenth"] = rows.get("ensemble", last)["worst_tenth_mean"]
    if baselines.get("calibration_error") is not None:
        means["calibration error"] = baselines["calibration_error"]
    if "label_orders" in baselines:
        means["label orders"] = baselines["label_orders"]["std"]
    fewer = {name: row["tasks"] for name, row in rows.items() if row["tasks"] < last["tasks"]}
    if "label_orders" in baselines and baselines["label_orders"]["tasks"] < last["tasks"]:
        fewer["label orders"] = baselines["label_orders"]["tasks"]
    return {name: (value, fewer.get(name, 0)) for name, value in means.items()}


def validation_table(comparison: Comparison) -> Rows:
    """Return the best validation of each run without a test result; no row without such a run."""
    rows = [
        [label, printable(run.name), str(column), run.epochs_text, score_of(run.is_regression).text(run.best_val)]
        for label, column, run in comparison.untested
        if run.best_val is not None
    ]
    return [["method", "run", "tasks", "epochs", "best validation"], *rows] if rows else []


VALIDATION_CAPTION = "Not tested: the best validation of an epoch, which chose that epoch and so is no result."
NOTHING_TESTED = "None of these runs has a test result yet."
BASELINE_CAPTION = (
    "On the same tasks, of the best model by validation: chance; nearest neighbour on pixels; class centroids of the "
    "untrained body and of its own, and ridge regression on these features, without an inner step; after no and all "
    "inner steps. Of what was tested: the mean of the worst tenth of the tasks, the expected calibration error. Label "
    "orders: standard deviation of a task's accuracy over orders of its labels."
)


def p_text(p: float | None) -> str:
    """Return '0.013', '< 0.0001'."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def caption(comparison: Comparison) -> str:
    """Return how to read the table of accuracies."""
    found = dict.fromkeys(cell.score for cell in comparison.cells.values())
    names = (
        " or ".join("accuracy in percent" if score is ACCURACY else score.name for score in found)
        or "accuracy in percent"
    )
    return (
        f"Test {names}: mean and 95 % interval, over runs of different seeds where there are several (Student's t), "
        "else "
        "over test tasks."
    )


def sources(comparison: Comparison) -> list[str]:
    """Return where the published values in the table are from."""
    found = [cell.published for cell in comparison.cells.values() if cell.published]
    lines = dict.fromkeys(f"{result.method}: {result.source}" for result in found)
    if any(not result.confirmed for result in found):
        lines["(?): quoted elsewhere, not read in the source itself"] = None
    return list(lines)


DIFFERENCE_CAPTION = (
    "Differences in points (of errors: as they are), over test tasks. They and their p speak of these trained models; "
    "p over seeds, of Welch's t-test between the runs' means, says whether training again would tell the methods apart."
)


# --- formats ----------------------------------------------------------------------------------------------------------


def numbered_rows(comparison: Comparison) -> list[str]:
    """Return what the rows with a number stand for."""
    return [f"{label}: {row.settings_text}" for label, row in comparison.rows.items() if label.endswith("]")]


def notes(comparison: Comparison) -> list[str]:
    """Return what is to be known of runs and tests, and where published values are from."""
    return [*comparison.notes, *(f"published, {line}" for line in sources(comparison))]


def markdown(comparison: Comparison, most_pairs: float = math.inf) -> str:
    """Return the tables with their notes; the table of differences only if it has no more than so many rows."""
    parts = [NOTHING_TESTED]
    if comparison.cells:
        parts = [_markdown_table(accuracy_table(comparison)), caption(comparison)]
    if validated := validation_table(comparison):
        parts += [_markdown_table(validated), VALIDATION_CAPTION]
    if 0 < len(comparison.differences) <= most_pairs:
        parts += [_markdown_table(difference_table(comparison)), DIFFERENCE_CAPTION]
    elif comparison.differences:
        parts.append(f"{len(comparison.differences)} differences are in comparison.md and comparison.html.")
    if beside := baseline_table(comparison):
        parts += [_markdown_table(beside), BASELINE_CAPTION]
    lines = "\n".join(f"- {line}" for line in (*numbered_rows(comparison), *notes(comparison)))
    return "\n\n".join([*parts, lines]).rstrip() + "\n"


def _markdown_table(table: Rows) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in table]
    widths = [max(3, *(len(row[place]) for row in escaped)) for place in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in escaped
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def latex(comparison: Comparison) -> str:
    """Return two tabulars with the rules of the package booktabs."""
    parts = [f"% {NOTHING_TESTED}"]
    if comparison.cells:
        parts = [f"% {_one_line(caption(comparison))}", _latex_table(accuracy_table(comparison))]
    if validated := validation_table(comparison):
        parts += [f"% {VALIDATION_CAPTION}", _latex_table(validated)]
    if comparison.differences:
        parts += [f"% {_one_line(DIFFERENCE_CAPTION)}", _latex_table(difference_table(comparison))]
    if beside := baseline_table(comparison):
        parts += [f"% {_one_line(BASELINE_CAPTION)}", _latex_table(beside)]
    parts += [f"% {_one_line(line)}" for line in (*numbered_rows(comparison), *notes(comparison))]
    return "\n".join(parts) + "\n"


def _latex_table(table: Rows) -> str:
    lines = [" & ".join(_latex_text(cell) for cell in row) + r" \\" for row in table]
    columns = "".join("l" if heading in TEXT_COLUMNS else "r" for heading in table[0])
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_text(text: str) -> str:
    replaced = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
    return "".join(replaced.get(letter, letter) for letter in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def csv_text(comparison: Comparison) -> str:
    """One row per method and column, numbers in full: shares between 0 and 1, published values too."""
    rows: list[list[Any]] = [
        ["method", "dataset", "ways", "shots", "queries", "test_accuracy_mean", "test_accuracy_ci95", "interval_over",
         "runs", "published_accuracy", "published_plus_minus", "published_source"]
    ]  # fmt: skip
    for (label, column), cell in comparison.cells.items():
        known: list[Any] = [None, None, None]
        if published := cell.published:
            interval = None if published.plus_minus is None else round(published.plus_minus / 100, 6)
            known = [round(published.accuracy / 100, 6), interval, published.source]
        summary, names = cell.summary, " ".join(run.name for run in cell.runs)
        full = str(comparison.rows[label])
        rows.append([full, *column, summary.mean, summary.ci95, cell.interval_is_over, names, *known])
    return as_csv(rows)
