"""Tasks as other projects hand them over, brought to one form: (support examples, labels, query examples, labels).

    a tuple of four                     MAML-Pytorch's `MiniImagenet`, and ours
    (examples, labels)                  learn2learn's task datasets: all of a task, of which the first shots are support
    {"train": half, "test": half}       torchmeta's; a half is (examples, labels), or a dataset of (example, label)

Each may also hold several tasks, as a DataLoader stacks them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from few_shot_classifier.arrays import InputError, by_part
from utils.episodes.inputs import as_array

Task = tuple[Any, Any, Any, Any]
HALVES = (("train", "test"), ("support", "query"))
"""Names of the two halves of a task."""


def tasks_in(item: Any, n_shot: int) -> list[Task] | None:
    """Return the tasks of an item of a dataset, or of what a loader yields; None: it is (example, label), or no task.

    Args:
        n_shot: K, where a task does not say itself which of its examples are support.
    Raises:
        InputError: a class without K support examples and one for the query.
    """
    if isinstance(item, Mapping):
        names = next((names for names in HALVES if set(names) <= set(item)), None)
        if names is None or not all(hasattr(item[name], "__len__") for name in names):
            return None
        item = (*_half(item[names[0]]), *_half(item[names[1]]))
    elif not isinstance(item, tuple | list) or len(item) not in (2, 4):
        return None
    elif len(item) == 2:
        examples, labels = item
        n_axes = len(np.shape(labels))
        if n_axes not in (1, 2) or not hasattr(examples, "shape") or examples.shape[:n_axes] != np.shape(labels):
            return None
        if n_axes == 2:
            return [_divided(*pair, n_shot) for pair in zip(examples, labels, strict=True)]
        return [_divided(examples, labels, n_shot)]
    if len(np.shape(item[1])) == 2 and len(np.shape(item[3])) == 2:
        return [tuple(by_part(part, lambda whole, at=at: whole[at]) for part in item) for at in range(len(item[1]))]
    return [tuple(item)]


def endless(dataset: Any) -> Iterator[Any] | None:
    """Return the tasks of a dataset that samples new ones for ever, as they come; None: it does not."""
    sample = getattr(dataset, "sample_task", None)  # torchmeta's, whose length is that of all combinations of classes
    if sample is None and getattr(dataset, "num_tasks", None) == -1:
        sample = getattr(dataset, "sample", None)  # learn2learn's
    return None if sample is None else (sample() for _ in itertools.count())


def _half(given: Any) -> Sequence[Any]:
    if isinstance(given, tuple | list) and len(given) == 2:
        return given
    examples, labels = zip(*(given[rank] for rank in range(len(given))), strict=True)
    return list(examples), list(labels)


def _divided(examples: Any, labels: Any, n_shot: int) -> Task:
    names = as_array(labels, "labels of a task hold", InputError)
    places = [np.flatnonzero(names == name) for name in np.unique(names)]
    fewest = min(map(len, places))
    if fewest <= n_shot:
        raise InputError(
            f"a task has {fewest} examples of a class for support and query together, but num_samples_per_class "
            f"{n_shot} needs {n_shot + 1} or more"
        )
    support = np.sort(np.concatenate([of_class[:n_shot] for of_class in places]))
    query = np.sort(np.concatenate([of_class[n_shot:] for of_class in places]))
    return examples[support], names[support], examples[query], names[query]
