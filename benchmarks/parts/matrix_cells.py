"""What the runs of a matrix have reached: a cell per method and pair of domains, and paired differences."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.parts.trained_runs import TrainedRun, with_interval
from utils.metrics import Summary, summarise

BESIDE = {
    "pixels": "nearest neighbour on pixels",
    "untrained": "untrained body, centroids",
    "centroids": "its body, centroids",
}
"""Rows beside a test's result -> what they are."""


@dataclass(frozen=True)
class Beside:
    """A row beside a cell's result: its mean, and what the model's own accuracy is above it, on the same tasks."""

    mean: float
    gain: float
    ci95: float | None
    """Of the gain: over tasks for one seed, over seeds for several."""


@dataclass(frozen=True)
class Cell:
    """A method trained on one domain and tested on another: one run per seed."""

    method: str
    trained_on: str
    tested_on: str
    means: tuple[float, ...]
    """Of each seed's run."""
    ci95_over_tasks: float | None
    """Of the first."""
    digest: str
    beside: Mapping[str, Beside] = field(default_factory=dict)
    scores: Mapping[int, np.ndarray] = field(default_factory=dict, repr=False)
    """Seed -> accuracy of each task."""

    @property
    def summary(self) -> Summary:
        """Over seeds, where there are several; over tasks where there is one."""
        found = summarise(self.means)
        return Summary(found.mean, found.std, self.ci95_over_tasks, 1) if len(self.means) == 1 else found

    @property
    def text(self) -> str:
        """Mean with the 95 % interval."""
        found = self.summary
        return f"{100 * found.mean:.2f}" if found.ci95 is None else with_interval(found.mean, found.ci95)


@dataclass(frozen=True)
class Effect:
    """What a method is above another in a cell, on the same tasks of models of the same seeds.

    Its interval is over tasks: it speaks of these trained models, not of what other seeds would give.
    """

    method: str
    against: str
    trained_on: str
    tested_on: str
    difference: float
    ci95: float
    cohens_d: float | None
    """Mean of the tasks' differences over their standard deviation; None where all are equal."""
    tasks: int

    @property
    def verdict(self) -> str:
        """Better, worse, or not told apart."""
        return (
            "better" if self.difference > self.ci95 else "worse" if self.difference < -self.ci95 else "not told apart"
        )

    @property
    def text(self) -> str:
        """Difference in points with its interval, and d."""
        d = "none" if self.cohens_d is None else f"{self.cohens_d:+.2f}"
        return f"{100 * self.difference:+.2f} ± {100 * self.ci95:.2f} (d {d})"


def task_accuracies(path: Path) -> np.ndarray:
    """Return the accuracy of each task of a test, of all its models together, from its predictions: float64 (T,)."""
    from safetensors.torch import load_file

    from utils.metrics import task_scores

    arrays = load_file(path)
    name = next(name for name in arrays if name.startswith("scores."))  # of the first kind of statistics
    return task_scores(arrays[name].mean(dim=0).double(), arrays["query_labels"]).numpy()


def cells_of(runs: Mapping[tuple[str, str, int], TrainedRun], tags: Mapping[str, str]) -> Iterator[Cell]:
    """Read the cells of which a run has been tested.

    Args:
        runs: (method, training domain, seed) -> run.
        tags: test domain -> tag of the test on its tasks.
    """
    keys = dict.fromkeys((method, domain) for method, domain, _ in runs)
    for (method, trained_on), (tested_on, tag) in itertools.product(keys, tags.items()):
        of_cell = {seed: run for (*key, seed), run in runs.items() if tuple(key) == (method, trained_on)}
        tests = {seed: test for seed, run in of_cell.items() if (test := run.read(f"test_summary_{tag}.json"))}
        if tests:
            first = next(iter(tests.values()))
            predictions = {seed: of_cell[seed].folder / f"logs/test_predictions_{tag}.safetensors" for seed in tests}
            yield Cell(
                method, trained_on, tested_on, tuple(test["test_accuracy_mean"] for test in tests.values()),
                first.get("test_accuracy_ci95"), str(first.get("task_list_digest")), _beside(list(tests.values())),
                {seed: task_accuracies(path) for seed, path in predictions.items() if path.is_file()},
            )  # fmt: skip


def _beside(tests: Sequence[Mapping]) -> dict[str, Beside]:
    found = {}
    for name in BESIDE:
        rows = [
            test["baselines"]["rows"][name] for test in tests if name in (test.get("baselines") or {"rows": {}})["rows"]
        ]
        if rows:
            gains = summarise([-row["difference"] for row in rows])
            interval = rows[0]["difference_ci95"] if len(rows) == 1 else gains.ci95
            found[name] = Beside(summarise([row["mean"] for row in rows]).mean, gains.mean, interval)
    return found


def effects_of(cells: Iterable[Cell], against: str) -> list[Effect]:
    """Compare each method with one of them, cell by cell, where both were tested on the very same tasks."""
    cells = list(cells)
    rivals = {(cell.trained_on, cell.tested_on): cell for cell in cells if cell.method == against}
    effects = []
    for cell in cells:
        rival = rivals.get((cell.trained_on, cell.tested_on))
        if rival is None or cell is rival or cell.digest != rival.digest:
            continue
        seeds = cell.scores.keys() & rival.scores.keys()
        if seeds:
            differences = np.mean([cell.scores[seed] - rival.scores[seed] for seed in sorted(seeds)], axis=0)
            found = summarise(differences.tolist())
            d = found.mean / found.std if found.std else None
            places = cell.method, against, cell.trained_on, cell.tested_on
            effects.append(Effect(*places, found.mean, found.ci95 or 0.0, d, found.count))
    return effects
