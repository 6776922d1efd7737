"""Runs side by side: method x way x shot with intervals, and tests of the differences.

Pure functions over read runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from experiment_tools.compare.published_results import PublishedResult, published_result
from experiment_tools.parts.methods import distinguish_repeats, row_labels
from experiment_tools.parts.run_reading import Result, Run, results_of
from utils.metrics import Score, Summary, summarise


class Column(NamedTuple):
    """What stands over a column of the table."""

    dataset: str
    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        many = "query" if self.queries == 1 else "queries"
        return f"{self.dataset}, {self.ways}-way {self.shots}-shot, {self.queries} {many}"


@dataclass(frozen=True)
class Cell:
    """The test results of one method in one column: one run, or several of different seeds."""

    runs: tuple[Run, ...]
    results: tuple[Result, ...]
    published: PublishedResult | None

    @property
    def summary(self) -> Summary:
        """Several runs: over their means. One run: over its test tasks."""
        if len(self.results) == 1:
            result = self.results[0]
            return Summary(result.mean, 0.0, result.ci95, result.protocol["tasks"])
        return summarise([result.mean for result in self.results])

    @property
    def score(self) -> Score:
        """What the numbers are."""
        return self.results[0].score

    @property
    def interval_is_over(self) -> str:
        """'3 seeds' or '600 tasks'."""
        n_runs = len(self.results)
        return f"{n_runs} seeds" if n_runs > 1 else f"{self.results[0].protocol['tasks']} tasks"


@dataclass(frozen=True)
class Difference:
    """Two methods of one column: mean difference with its 95 % interval and p-values, or why there is none."""

    column: Column
    first: str
    second: str
    test: str
    """paired t-test, Welch's t-test, or none."""
    note: str = ""
    mean: float | None = None
    """first - second, of scores."""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    """p, corrected for the number of pairs by Holm's method."""
    p_over_seeds: float | None = None
    """Welch's t-test between the runs' means, where both methods have two seeds or more."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables show."""

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[str, Column], Cell]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    labels: dict[str, str]
    """Path of a run -> its row, for runs without a result too."""


def compare_runs(runs: Sequence[Run], statistics: str | None = None) -> Comparison:
    """Put runs side by side. Seeds of one method become one cell; the same seed twice does not.

    Args:
        runs: readable ones; those without a test result are named in the notes and appear in the curves only.
        statistics: kind of batch-norm statistics of the test; None: each run's first.
    """
    results = [results_of(run, statistics) for run in runs]
    own_columns = [
        [_column(result) for result in of_run] or [training_column(run)]
        for run, of_run in zip(runs, results, strict=True)
    ]
    configs = [run.config for run in runs]
    methods = row_labels(configs, own_columns)
    labels = distinguish_repeats(methods, [run.name for run in runs], configs, own_columns)
    members: dict[tuple[str, Column], list[tuple[Run, Result]]] = {}
    for run, of_run, label in zip(runs, results, labels, strict=True):
        for result in of_run:
            members.setdefault((label, _column(result)), []).append((run, result))
    rows = tuple(dict.fromkeys(label for label, _ in members))
    columns = tuple(sorted({column for _, column in members}))
    cells = {key: _cell(key, found) for key, found in members.items()}
    notes = [_missing_note(run, statistics) for run, of_run in zip(runs, results, strict=True) if not of_run]
    notes += [f"{run.name}: {result.problem}" for found in members.values() for run, result in found if result.problem]
    if labels != methods:
        notes.append("runs of one method with the same train_seed are no repetition: each has a row of its own")
    notes += _protocol_notes(columns, cells)
    return Comparison(
        rows, columns, cells, _with_holm(_differences(rows, columns, cells)), tuple(notes),
        {str(run.path): label for run, label in zip(runs, labels, strict=True)},
    )  # fmt: skip


def _column(result: Result) -> Column:
    return Column(
        result.protocol["dataset"], result.protocol["ways"], result.protocol["shots"], result.protocol["queries"]
    )


def training_column(run: Run) -> Column:
    """Return the dataset, first way, first shot and queries that a run trains and validates on."""

    def first(value: Any) -> int:
        return value[0] if isinstance(value, list) else value

    config = run.config
    ways, shots = first(config["num_classes_per_set"]), first(config["num_samples_per_class"])
    return Column(config["dataset_name"], ways, shots, config["num_target_samples"])


def _cell(key: tuple[str, Column], found: Sequence[tuple[Run, Result]]) -> Cell:
    label, column = key
    name = label.split(" (")[0]
    runs, results = zip(*found, strict=True)
    return Cell(runs, results, published_result(name, column.dataset, column.ways, column.shots))


def _missing_note(run: Run, statistics: str | None) -> str:
    if not run.test:
        return (
            f"{run.name}: {run.state}{', ' + run.problem if run.problem else ''}; no test result, so only its curves "
            "are shown"
        )
    return f"{run.name}: was not tested with {statistics} batch-norm statistics; only its curves are shown"


def _protocol_notes(columns: Sequence[Column], cells: dict[tuple[str, Column], Cell]) -> list[str]:
    """Return what is the same in a column in one line, and what is not in a warning."""
    notes = []
    for column in columns:
        found = [result for (_, other), cell in cells.items() if other == column for result in cell.results]
        facts = {
            "inner steps": [result.protocol["steps"] for result in found],
            "test tasks": [result.protocol["tasks"] for result in found],
            "batch-norm statistics": [result.protocol["statistics"] for result in found],
            "models in the ensemble": [result.n_models for result in found],
        }
        same = [f"{values[0]} {name}" for name, values in facts.items() if len(set(values)) == 1]
        other = [
            f"{name} ({', '.join(map(str, sorted(set(values))))})"
            for name, values in facts.items()
            if len(set(values)) > 1
        ]
        text = f"{column}: {', '.join(same)}"
        notes.append(text + (f"; the runs differ in {', '.join(other)}" if other else ""))
    return notes


# --- tests of differences ---------------------------------------------------------------------------------------------


def _differences(
    rows: Sequence[str], columns: Sequence[Column], cells: dict[tuple[str, Column], Cell]
) -> list[Difference]:
    return [
        difference(column, one, other, cells[one, column], cells[other, column])
        for column in columns
        for one, other in combinations([row for row in rows if (row, column) in cells], 2)
    ]


def difference(column: Column, first: str, second: str, one: Cell, other: Cell) -> Difference:
    """Test whether two methods differ, over test tasks: paired where both were tested on the same tasks, else Welch's.

    With several seeds a task's score is the mean over the runs. Such a test speaks of these trained models; whether
    training again would tell the methods apart is what `p_over_seeds` asks.
    """
    over_seeds = _p_over_seeds(one, other)
    scores = [[result.task_scores for result in cell.results] for cell in (one, other)]
    if any(values is None for of_cell in scores for values in of_cell):
        return Difference(
            column, first, second, "none", "the predictions of a run are missing or damaged", p_over_seeds=over_seeds
        )
    n_tasks = {len(values) for of_cell in scores for values in of_cell}
    if min(n_tasks) < 2:
        return Difference(column, first, second, "none", "needs two test tasks or more", p_over_seeds=over_seeds)
    digests = {result.digest for cell in (one, other) for result in cell.results}
    note = ""
    if len(digests) == 1 and None not in digests and len(n_tasks) == 1:
        name, numbers = "paired t-test", _t_test(*(np.mean(values, axis=0) for values in scores), paired=True)
    else:
        name, note = "Welch's t-test", "tested on different tasks, so not paired"
        pooled = (_pooled(cell, values) for cell, values in zip((one, other), scores, strict=True))
        numbers = _t_test(*pooled, paired=False)
    return Difference(column, first, second, name, note, *numbers, p_over_seeds=over_seeds)


def _pooled(cell: Cell, scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return independent numbers of one method: means per task over runs on the same tasks, else all scores."""
    if len({(result.digest, len(values)) for result, values in zip(cell.results, scores, strict=True)}) == 1:
        return np.mean(scores, axis=0)
    return np.concatenate(scores)


def _t_test(a: np.ndarray, b: np.ndarray, *, paired: bool) -> tuple[float, float, float, float]:
    """(mean of a - b, its 95 % interval, p); p is 1 where nothing differs."""
    from scipy.stats import ttest_ind, ttest_rel

    mean = float(np.mean(a - b) if paired else np.mean(a) - np.mean(b))
    if not any(np.ptp(values) for values in ((a - b,) if paired else (a, b))):
        return mean, mean, mean, 1.0 if mean == 0 else 0.0
    test = ttest_rel(a, b) if paired else ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(0.95)
    return mean, float(interval.low), float(interval.high), float(test.pvalue)


def _p_over_seeds(one: Cell, other: Cell) -> float | None:
    means = [np.array([result.mean for result in cell.results]) for cell in (one, other)]
    return None if min(map(len, means)) < 2 else _t_test(*means, paired=False)[3]


def _with_holm(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """Correct p-values by Holm 1979: the k-th smallest of n times n - k + 1, never below the one before, at most 1."""
    tested = sorted((d.p, place) for place, d in enumerate(differences) if d.p is not None and not math.isnan(d.p))
    corrected: dict[int, float] = {}
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[place] = highest
    return tuple(replace(d, p_holm=corrected.get(place)) for place, d in enumerate(differences))
