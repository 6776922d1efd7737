"""Runs side by side: method x way x shot with intervals, and tests of the differences.

Pure functions over read runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from experiment_parts.evaluation.test_results import same_classes_text
from experiment_tools.compare.published_results import PublishedResult, published_result
from experiment_tools.parts.methods import DATA, Row, labels_of, rows_of
from experiment_tools.parts.run_reading import Result, Run, data_of_result, read_starts, results_of
from experiment_tools.parts.settings import command_of, shell_word
from utils.metrics import Score, Summary, summarise
from utils.paths import experiments_root
from utils.words import counted, printable


class Column(NamedTuple):
    """What stands over a column of the table."""

    dataset: str
    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        queries = counted(self.queries, "query", "queries")
        return f"{printable(self.dataset)}, {self.ways}-way {self.shots}-shot, {queries}"


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
        """'3 seeds' or '600 tasks', and whether these were of other data than the training's."""
        n_runs = len(self.results)
        over = f"{n_runs} seeds" if n_runs > 1 else f"{self.results[0].protocol['tasks']} tasks"
        return over + (", other data" if self.on_other_data else "")

    @property
    def on_other_data(self) -> list[str]:
        """Names of the runs that were tested on other data than they were trained on."""
        return [run.name for run in self.runs if run.other_data]

    @property
    def protocol(self) -> dict[str, list[Any]]:
        """Facts of the test that do not make a column, each with its values."""
        facts = {
            "inner steps": {result.protocol["steps"] for result in self.results},
            "test tasks": {result.protocol["tasks"] for result in self.results},
            "batch-norm statistics": {result.protocol["statistics"] for result in self.results},
            "models in the ensemble": {result.n_models for result in self.results},
        }
        return {name: sorted(values) for name, values in facts.items()}


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

    rows: dict[str, Row]
    """Label -> what it stands for; of runs without a result, too."""
    columns: tuple[Column, ...]
    cells: dict[tuple[str, Column], Cell]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    labels: dict[str, str]
    """Path of a run -> its row."""
    untested: tuple[tuple[str, Column, Run], ...]
    """Row, what it validates on and the run, of those without a result."""


def compare_runs(runs: Sequence[Run], statistics: str | None = None) -> Comparison:
    """Put runs side by side. Seeds of one method become one cell; the same seed twice does not.

    Args:
        runs: readable ones; those without a test result are named in the notes, with their validation and curves.
        statistics: kind of batch-norm statistics of the test; None: each run's first.
    """
    results = [results_of(run, statistics) for run in runs]
    own_columns = [
        [_column(result) for result in of_run] or [training_column(run)]
        for run, of_run in zip(runs, results, strict=True)
    ]
    own_rows = rows_of([_config_and_data(run) for run in runs], own_columns, [run.name for run in runs])
    labels = labels_of(own_rows)
    members: dict[tuple[Row, Column], list[tuple[Run, Result]]] = {}
    for run, of_run, row in zip(runs, results, own_rows, strict=True):
        for result in of_run:
            members.setdefault((row, _column(result)), []).append((run, result))
    columns = tuple(sorted({column for _, column in members}))
    cells = {(labels[row], column): _cell(row, column, found) for (row, column), found in members.items()}
    rows = {labels[row]: row for row in own_rows}
    return Comparison(
        rows, columns, cells, _with_holm(_differences(rows, columns, cells)),
        (*_run_notes(runs, results, own_rows, statistics), *_protocol_notes(columns, cells)),
        {str(run.path): labels[row] for run, row in zip(runs, own_rows, strict=True)},
        tuple((labels[row], training_column(run), run)
              for run, of_run, row in zip(runs, results, own_rows, strict=True) if not of_run),
    )  # fmt: skip


def _config_and_data(run: Run) -> dict[str, Any]:
    """Return the config, and by what its images are known, where the run says."""
    content = data_of_result(run).get("content_sha256")
    return run.config | ({DATA: content[:8]} if content else {})


def _run_notes(
    runs: Sequence[Run], results: Sequence[Sequence[Result]], rows: Sequence[Row], statistics: str | None
) -> list[str]:
    """Return what is to be known of single runs."""
    found = list(zip(runs, results, strict=True))
    notes = [_missing_note(run, statistics) for run, of_run in found if not of_run]
    notes += [f"{run.name}: {result.problem}" for run, of_run in found for result in of_run if result.problem]
    notes += [f"{run.name}: tested on other data than trained on: {line}" for run in runs for line in run.other_data]
    notes += sorted({same_classes_text([run.test]) for run, of_run in found if of_run} - {""})
    if any(key == "run" for row in rows for key, _ in row.settings):
        notes.append("runs of one method with the same train_seed are no repetition: each has a row of its own")
    return [printable(note) for note in notes]


def _column(result: Result) -> Column:
    return Column(
        result.protocol["dataset"], result.protocol["ways"], result.protocol["shots"], result.protocol["queries"]
    )


def training_column(run: Run) -> Column:
    """Return the dataset, ways, first shot and queries that a run validates on."""

    def first(value: Any) -> int:
        return value[0] if isinstance(value, list) else value

    config = run.config
    ways = config.get("val_num_classes_per_set") or first(config["num_classes_per_set"])
    shots = first(config["num_samples_per_class"])
    return Column(config["dataset_name"], ways, shots, config["num_target_samples"])


def _cell(row: Row, column: Column, found: Sequence[tuple[Run, Result]]) -> Cell:
    runs, results = zip(*found, strict=True)
    return Cell(runs, results, published_result(row.method, column.dataset, column.ways, column.shots))


def _missing_note(run: Run, statistics: str | None) -> str:
    if run.test:
        return f"{run.name}: was not tested with {statistics} batch-norm statistics"
    state = f"{run.name}: {run.state}{', ' + run.problem if run.problem else ''}; no test result. "
    if run.state == "running":
        return state + "It is tested at its end"
    return state + f"To test what it has: {_command_that_tests(run)}"


def _command_that_tests(run: Run) -> str:
    """Return the command of a run with what only tests it, where it lies and under its folder's name."""
    words = [command_of(replace(run, starts=read_starts(run))), "--evaluate_on_test_set_only true"]
    if run.name != run.experiment_name:
        words.append(f"--experiment_name {shell_word(run.name)}")
    root = run.path.resolve().parent
    if root != experiments_root().resolve():  # a trial of a sweep
        words.insert(0, f"EXPERIMENTS_DIR={shell_word(str(root))}")
    return " ".join(words)


def _protocol_notes(columns: Sequence[Column], cells: dict[tuple[str, Column], Cell]) -> list[str]:
    """Return what is the same in a column in one line, and what is not in a warning."""
    notes = []
    for column in columns:
        facts = [cell.protocol for (_, other), cell in cells.items() if other == column]
        values = {name: sorted({value for of_cell in facts for value in of_cell[name]}) for name in facts[0]}
        same = [f"{name} {found[0]}" for name, found in values.items() if len(found) == 1]
        other = [f"{name} ({', '.join(map(str, found))})" for name, found in values.items() if len(found) > 1]
        notes.append(f"{column}: {', '.join(same)}" + (f"; the runs differ in {', '.join(other)}" if other else ""))
    return notes


# --- tests of differences ---------------------------------------------------------------------------------------------


def _differences(
    rows: Iterable[str], columns: Sequence[Column], cells: dict[tuple[str, Column], Cell]
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
    notes = [
        f"{name} {_listed(values)} / {_listed(other.protocol[name])}"
        for name, values in one.protocol.items()
        if values != other.protocol[name]
    ]
    if names := [*one.on_other_data, *other.on_other_data]:
        notes.append(f"{', '.join(map(printable, names))} tested on other data than trained on")
    scores = [[result.task_scores for result in cell.results] for cell in (one, other)]
    n_tasks = {len(values) for of_cell in scores for values in of_cell if values is not None}
    digests = {result.digest for cell in (one, other) for result in cell.results}
    name, numbers = "none", ()
    if any(values is None for of_cell in scores for values in of_cell):
        notes.insert(0, "the predictions of a run are missing or damaged")
    elif min(n_tasks) < 2:
        notes.insert(0, "needs two test tasks or more")
    elif len(n_tasks) == len(digests) == 1 and None not in digests:
        name, numbers = "paired t-test", _t_test(*(np.mean(values, axis=0) for values in scores), paired=True)
    else:
        notes.insert(0, "tested on different tasks, so not paired")
        pooled = (_pooled(cell, values) for cell, values in zip((one, other), scores, strict=True))
        name, numbers = "Welch's t-test", _t_test(*pooled, paired=False)
    return Difference(column, first, second, name, "; ".join(notes), *numbers, p_over_seeds=over_seeds)


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(map(str, values))


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
