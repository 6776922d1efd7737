"""What the class scores of a test say beyond their accuracy: spread over tasks, calibration, hard classes, confusions.

Letters: M models, T tasks, n query images of a task, N classes of a task, C classes of the test split.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from experiment_tools.parts.run_reading import Arrays


@dataclass(frozen=True)
class Answers:
    """The ensemble's answers on one set of test tasks.

    Attributes:
        probabilities: (T, n, N), softmax of the models' mean scores.
        labels: int64 (T, n), the right class within the task.
        class_ids: int64 (T, N), rank of each class of a task in `class_names`; None where the run does not say.
        class_names: of the test split.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    class_ids: np.ndarray | None
    class_names: Sequence[str]

    @property
    def predictions(self) -> np.ndarray:
        """int64 (T, n)."""
        return self.probabilities.argmax(axis=-1)

    @property
    def task_accuracies(self) -> np.ndarray:
        """(T,)."""
        return (self.predictions == self.labels).mean(axis=-1)


def answers_of_test(arrays: Arrays, state: dict[str, Any]) -> Answers | None:
    """Take the first set of tasks with the first kind of statistics; None where the file has none."""
    prefix = f"scores.{state['protocol']['statistics']}"
    name = next((name for name in arrays if name.startswith(prefix)), None)
    if name is None:
        return None
    suffix = name.removeprefix(prefix)
    scores, labels = arrays[name].astype(np.float64), arrays[f"query_labels{suffix}"]  # (M, T, n, N), (T, n)
    if scores.ndim != 4 or labels.shape != scores.shape[1:3] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"scores of shape {scores.shape} do not fit labels of shape {labels.shape}")
    names = state.get("class_names", {}).get(state["protocol"]["dataset"], ())
    ids = arrays.get(f"class_ids{suffix}")
    known = (
        ids is not None
        and ids.shape == (scores.shape[1], scores.shape[3])
        and ids.min() >= 0
        and ids.max() < len(names)
    )
    return Answers(softmax(scores.mean(axis=0), axis=-1), labels, ids if known else None, names if known else ())


def hardest_classes(answers: Answers, most: int = 10) -> list[tuple[str, float, int]]:
    """Return (name, accuracy, query images) of the classes with the lowest accuracy, lowest first.

    Only classes with at least a third of the usual number of images count: a single one says little.
    """
    assert answers.class_ids is not None
    classes = np.take_along_axis(answers.class_ids, answers.labels, axis=1).ravel()
    right = (answers.predictions == answers.labels).ravel()
    seen = np.bincount(classes, minlength=len(answers.class_names))
    hits = np.bincount(classes, weights=right, minlength=len(answers.class_names))
    enough = np.flatnonzero(seen >= max(1.0, np.median(seen[seen > 0]) / 3))
    order = sorted(enough, key=lambda c: (hits[c] / seen[c], -seen[c], c))
    return [(answers.class_names[c], float(hits[c] / seen[c]), int(seen[c])) for c in order[:most]]


def confused_pairs(answers: Answers, most: int = 8) -> list[tuple[str, str, int, int]]:
    """Return (class, taken for, how often, query images of the class in tasks that had both), most frequent first."""
    assert answers.class_ids is not None
    count = len(answers.class_names)
    true = np.take_along_axis(answers.class_ids, answers.labels, axis=1)
    predicted = np.take_along_axis(answers.class_ids, answers.predictions, axis=1)
    wrong = true != predicted
    taken = Counter((true[wrong] * count + predicted[wrong]).tolist())
    worst = sorted(taken.items(), key=lambda item: (-item[1], item[0]))[:most]
    pairs = []
    for pair, times in worst:
        one, other = divmod(pair, count)
        together = (answers.class_ids == other).any(axis=1)
        pairs.append((answers.class_names[one], answers.class_names[other], times, int((true[together] == one).sum())))
    return pairs


def hardest_task(answers: Answers) -> int:
    """Return the number of the task with the lowest accuracy; of equals the first."""
    return int(answers.task_accuracies.argmin())


def confusion(answers: Answers, task: int) -> np.ndarray:
    """Return int64 (N, N): how often the class of the row was taken for that of the column in one task."""
    n_way = answers.probabilities.shape[-1]
    matrix = np.zeros((n_way, n_way), dtype=np.int64)
    np.add.at(matrix, (answers.labels[task], answers.predictions[task]), 1)
    return matrix
