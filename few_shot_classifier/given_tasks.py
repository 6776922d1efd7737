"""Tasks that are given one by one, as a source of episodes: those of a list come round again and again, those of an
iterator once.

Letters: N way, K shot, C x H x W pixels.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from few_shot_classifier.arrays import InputError, class_labels, image_arrays, is_pair, network_input
from few_shot_classifier.task_forms import endless, tasks_in
from utils.config import ExperimentConfig
from utils.episodes.batches import EpisodeBatch
from utils.episodes.drawing import EpisodeShape
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError

TASKS_REMEMBERED = 1024
"""Of an iterator: a meta-batch may be read again, but no task is asked for long after its time."""
TASKS_COMPARED = 3
"""First ones of a list, by which a run that goes on knows it again: reading all could take as long as an epoch."""
SHARE_FOR_VALIDATION = 0.2
"""Of what is given without `val`: classes, or tasks of a list."""

KINDS = (
    "(image, label), or a task: (support_images, support_labels, query_images, query_labels), each images or labels of "
    "all its classes"
)


def first_item(dataset: Any) -> Any:
    """Return item 0 of a dataset, (image, label) or a task, or what a loader yields first; None of an iterator, which
    can be read only once.

    Raises:
        InputError: it is neither, or there is none.
    """
    if (stream := endless(dataset)) is not None:
        return next(stream)
    kind = type(dataset).__name__
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        once = not hasattr(dataset, "__iter__") or iter(dataset) is dataset
        item = None if once else next(iter(dataset), None)
        if item is None:
            return None
    elif not len(dataset):
        raise InputError(f"the {kind} of tasks or images is empty")
    else:
        try:
            item = dataset[0]
        except (LookupError, TypeError, NotImplementedError) as error:
            raise InputError(f"the {kind} has no item 0; items are {KINDS}") from error
    is_one = isinstance(item, (tuple, list)) and len(item) in (2, 4)
    if not is_one and tasks_in(item, 0) is None:
        found = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else type(item).__name__
        raise InputError(f"item 0 of the {kind} is a {found}; items are {KINDS}")
    return item


class _Tasks(Sequence):
    """Some tasks of a list, or of a dataset that has a length and gives items by number, each read when asked for."""

    def __init__(self, dataset: Any, ranks: range, n_shot: int) -> None:
        self._dataset, self._ranks, self._n_shot = dataset, ranks, n_shot

    def __len__(self) -> int:
        return len(self._ranks)

    def __getitem__(self, place: Any) -> Any:
        ranks = self._ranks[place]
        if isinstance(ranks, range):
            return _Tasks(self._dataset, ranks, self._n_shot)
        item = self._dataset[ranks]
        return (tasks_in(item, self._n_shot) or [item])[0]


def tasks_of(dataset: Any, n_shot: int, *, come_again: bool = False) -> Any:
    """Return the tasks that a dataset is made of, as a sequence or an iterable; None: it is made of images.

    Args:
        n_shot: K, where tasks do not say which of their examples are support.
        come_again: read a loader again when it ends.
    Raises:
        InputError: it is no dataset, is empty, or holds something else.
    """
    if is_pair(dataset):
        return None
    if (stream := endless(dataset)) is not None:
        return _each_of(stream, n_shot)
    item = first_item(dataset)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return None if tasks_in(item, 0) is None else _Tasks(dataset, range(len(dataset)), n_shot)
    if not hasattr(dataset, "__iter__"):
        raise InputError(
            f"a {type(dataset).__name__} is no dataset: give a folder, (images, labels), a dataset of (image, label), "
            "tasks of (support_images, support_labels, query_images, query_labels), or a "
            "utils.episodes.source.EpisodeSource"
        )
    again = come_again and iter(dataset) is not dataset
    return _each_of(itertools.chain.from_iterable(itertools.repeat(dataset)) if again else iter(dataset), n_shot)


def _each_of(items: Iterator[Any], n_shot: int) -> Iterator[Any]:
    return (task for item in items for task in tasks_in(item, n_shot) or [item])


def keep_tasks(dataset: Any, n_tasks: int) -> tuple[Any, Sequence[Any]]:
    """Keep tasks to train on, and others for validation: a fifth of a list, or the first ones of an iterator.

    Raises:
        InputError: a list of one.
    """
    if isinstance(dataset, Sequence):
        if len(dataset) < 2:
            raise InputError("one task cannot be divided into training and validation; give val, a list of other tasks")
        n_kept = min(max(1, round(SHARE_FOR_VALIDATION * len(dataset))), n_tasks)
        return dataset[:-n_kept], dataset[-n_kept:]
    tasks = iter(dataset)
    return tasks, list(itertools.islice(tasks, n_tasks))


class TaskEpisodes(EpisodeSource):
    """Episodes that are given one by one. Those of a list come round again and again, those of an iterator once."""

    def __init__(self, tasks: Mapping[str, Any], config: ExperimentConfig, device: torch.device) -> None:
        self._lists = {split: given for split, given in tasks.items() if isinstance(given, Sequence)}
        self._streams = {
            split: _Stream(iter(given), split) for split, given in tasks.items() if split not in self._lists
        }
        self._config, self.device, self.shape = config, device, config.training_shapes[0]
        self._splits = tuple(tasks)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> no names: the classes of tasks that are given have none that mean anything beyond their task."""
        return {split: [] for split in self._splits}

    def count(self, split: str) -> int | None:
        """Return how many tasks a list has; None of an iterator."""
        return len(self._lists[split]) if split in self._lists else None

    def identity(self) -> dict[str, Any]:
        """Return of each split how many tasks a list has, and a digest of this and of its first ones; none of tasks
        that come once, or are drawn anew whenever they are read.
        """
        splits = {
            split: {"made_of": "a list of tasks", "tasks": len(self._lists[split]), "sha256": self._digest(split)}
            if isinstance(self._lists.get(split), _Tasks)
            else {"made_of": "an iterator of tasks", "tasks": None, "sha256": None}
            for split in self._splits
        }
        return {"content_sha256": None, "splits": splits}

    def _digest(self, split: str) -> str | None:
        tasks = self._lists[split]

        def of_task(index: int) -> bytes:
            digest = hashlib.sha256()
            for tensor in self._one(tasks[index], split, index):
                digest.update(f"{tuple(tensor.shape)}".encode() + tensor.float().contiguous().numpy().tobytes())
            return digest.digest()

        digests = [of_task(index) for index in range(min(TASKS_COMPARED, len(tasks)))]
        if digests and of_task(0) != digests[0]:
            return None
        return hashlib.sha256(b"".join([str(len(tasks)).encode(), *digests])).hexdigest()

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """Return the tasks with these numbers, which have to be equally large.

        Raises:
            InputError: they are not, one is malformed, or the iterator has ended.
        """
        given = [
            self._lists[split][i % len(self._lists[split])] if split in self._lists else self._streams[split].get(i)
            for i in indices
        ]
        parts = [self._one(task, split, index) for task, index in zip(given, indices, strict=True)]
        sizes = sorted({tuple(len(labels) for labels in part[1::2]) for part in parts})
        if len(sizes) > 1:
            raise InputError(
                f"{split}: tasks of one meta-batch have {sizes} support and query images; give tasks of one size, or "
                "batch_size=1"
            )
        support_images, support_labels, query_images, query_labels = (
            torch.stack(values).to(self.device) for values in zip(*parts, strict=True)
        )
        n_way = int(support_labels.max()) + 1
        if len(ways := sorted(set((support_labels.amax(dim=1) + 1).tolist()))) > 1:
            raise InputError(
                f"{split}: tasks of one meta-batch have {ways} classes; give tasks of one number of classes, or "
                "batch_size=1"
            )
        return EpisodeBatch(
            support_images, support_labels, query_images, query_labels,
            seeds=torch.tensor([int(index) for index in indices], device=self.device), n_way=n_way,
            n_shot=support_labels.shape[1] // n_way, n_query=query_labels.shape[1] // n_way, split=split,
            indices=tuple(int(index) for index in indices), class_ids=np.zeros((len(parts), n_way), dtype=np.int64),
        )  # fmt: skip

    def _one(self, task: Any, split: str, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self._config
        try:
            support_images, support_names, query_images, query_names = task
            tensors = []
            for images in (support_images, query_images):
                pixels = image_arrays(images, channels=config.image_channels, inputs=config.inputs).pixels
                tensors.append(network_input(pixels, config).to(getattr(torch, config.parameter_format)))
            support_names, query_names = (
                class_labels(support_names, len(tensors[0])),
                class_labels(query_names, len(tensors[1])),
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{split}, task {index}: {error}") from error
        classes, support_labels = np.unique(support_names, return_inverse=True)
        unknown = sorted(set(query_names.tolist()) - set(classes.tolist()))
        if unknown:
            raise InputError(f"{split}, task {index}: query label {unknown[0]!r} has no support image")
        query_labels = np.searchsorted(classes, query_names)
        return (
            tensors[0],
            torch.from_numpy(support_labels.astype(np.int64)),
            tensors[1],
            torch.from_numpy(query_labels.astype(np.int64)),
        )


ASKS_FOR_TASKS = {
    "train": (
        "training", "total_epochs, total_iter_per_epoch or batch_size, or give a list, which comes round again"
    ),
    "val": ("validation", "num_evaluation_tasks, or give a list"),
    "test": ("accuracy", "n_tasks, or give a list, of which at most those are taken that there are"),
}  # fmt: skip
"""Split -> who reads its tasks, and what lowers their number."""


class _Stream:
    """The items of an iterator by number, each asked for soon after it came."""

    def __init__(self, items: Iterator[Any], split: str) -> None:
        self._items, self._next, self._split = items, 0, split
        self._recent: deque[Any] = deque(maxlen=TASKS_REMEMBERED)

    def get(self, index: int) -> Any:
        while self._next <= index:
            try:
                self._recent.append(next(self._items))
            except StopIteration:
                asks, lower = ASKS_FOR_TASKS[self._split]
                raise InputError(
                    f"the iterator of tasks ended after {self._next}; {asks} asks for task {index + 1}: lower {lower}"
                ) from None
            self._next += 1
        place = len(self._recent) - (self._next - index)
        if place < 0:
            raise ConfigError(
                f"task {index} of the iterator is gone; give a list of tasks to go on from a run that was interrupted"
            )
        return self._recent[place]
