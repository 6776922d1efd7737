"""From what people hold in Python (folders, arrays, datasets of pairs, tasks) to the episodes that training asks for.

    a path                              a folder of class folders, or of train, val and test; packed as for the scripts
    (images, labels)                    two arrays or tensors
    a dataset                           len(dataset), dataset[i] -> (image, label), as torchvision's
    tasks                               each (support_images, support_labels, query_images, query_labels), or as another
                                        project has them (`task_forms`): a list, an iterator, a loader, or a dataset
                                        whose items are tasks
    an `EpisodeSource`                  `data.FewShotData` or one of your own, used as it is

Letters: B tasks, N way, K shot, Q query, C x H x W pixels.
"""

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import NORMALISATIONS, FewShotData, ImageClasses, build_data, build_drawing, build_preprocessing
from few_shot_classifier.arrays import InputError, as_input, by_part, class_labels, image_arrays, resized
from few_shot_classifier.task_forms import endless, tasks_in
from utils.config import ExperimentConfig, check_config
from utils.data_sources.image_memory import place_images
from utils.episodes.batches import EpisodeBatch
from utils.episodes.drawing import EpisodeShape
from utils.episodes.inputs import Inputs
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError
from utils.images.arrays import ArrayImages
from utils.paths import expanded

log = logging.getLogger(__name__)

TASKS_REMEMBERED = 1024
"""Of an iterator: a meta-batch may be read again, but no task is asked for long after its time."""
TASKS_COMPARED = 3
"""First ones of a list, by which a run that goes on knows it again: reading all could take as long as an epoch."""
SHARE_FOR_VALIDATION = 0.2


def is_folder(dataset: Any) -> bool:
    """Return whether a dataset is given as a path."""
    return isinstance(dataset, (str, Path))


def is_pair(dataset: Any) -> bool:
    """Return whether a dataset is two arrays, images (or parts of examples) and labels."""
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
        return False
    parts = dataset[0].values() if isinstance(dataset[0], Mapping) else dataset[0]
    of_parts = isinstance(dataset[0], Mapping | tuple) and not isinstance(dataset[1], Mapping | tuple)
    return hasattr(dataset[0], "shape") or (of_parts and all(hasattr(part, "shape") for part in parts))


def first_image_shape(
    dataset: Any, image_shape: Sequence[int] | None, inputs: Inputs | None = None
) -> tuple[int, ...] | None:
    """Return (C, H, W) of a dataset's first image; None where only its config has it: a folder, or an iterator."""
    if inputs is not None:
        return inputs.shape
    if isinstance(dataset, EpisodeSource):
        return dataset.example_shape()
    if is_folder(dataset):
        return None
    if is_pair(dataset):
        first = dataset[0][:1]
    else:
        item = _first_item(dataset)
        if item is None:
            return None
        tasks = tasks_in(item, 0)
        first = _one_image(item[0]) if tasks is None else tasks[0][2 if len(tasks[0][0]) == 0 else 0]
    return tuple(image_arrays(first, image_shape=image_shape).pixels.shape[1:])


def _one_image(image: Any) -> Any:
    """Return a batch of one: a tensor stays a tensor, so that its channels are where tensors have them."""
    return by_part(image, lambda part: part[None] if isinstance(part, Tensor) else np.asanyarray(part)[None])


@dataclass(frozen=True)
class LabelledImages:
    """Images of a size, and for each class the ranks of its own."""

    pixels: np.ndarray
    """uint8 (n, C, H, W); other examples (n, ...) as they are."""
    classes: Mapping[str, Sequence[int]]


def labelled_images(dataset: Any, config: ExperimentConfig, image_shape: Sequence[int] | None = None) -> LabelledImages:
    """Read all of a pair of arrays, or of a dataset of pairs, at the size that a config says.

    Raises:
        InputError: something is no image, or no label.
    """

    def read(images: Any, what: str) -> np.ndarray:
        pixels = image_arrays(
            images, channels=config.image_channels, image_shape=image_shape, inputs=config.inputs
        ).pixels
        if config.inputs is not None:
            return pixels
        return _as_bytes(resized(pixels, config.image_height, config.image_width, what))

    if is_pair(dataset):
        pixels, labels = read(dataset[0], "images"), dataset[1]
    else:
        items = [dataset[rank] for rank in range(len(dataset))]
        labels = [label for _, label in items]
        pixels = np.concatenate([read(_one_image(image), "images of the dataset") for image, _ in items])
    labels = class_labels(labels, len(pixels))
    classes, ranks = np.unique(labels, return_inverse=True)
    return LabelledImages(
        pixels, {str(name): np.flatnonzero(ranks == rank).tolist() for rank, name in enumerate(classes)}
    )


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(
            f"images are numbers from {pixels.min():g} to {pixels.max():g}; give uint8 from 0 to 255 or floats from 0 "
            "to 1, not "
            'normalised yet: the parameter "normalisation" does that'
        )
    return (pixels * 255).round().astype(np.uint8)


def training_data(
    dataset: Any, val: Any, config: ExperimentConfig, device: torch.device, image_shape: Sequence[int] | None = None
) -> EpisodeSource:
    """Return the episodes of a meta-training, "train" and "val".

    Without `val`, classes (or tasks) of the dataset are kept for validation; a folder is split as its config says.

    Raises:
        InputError: it is nothing that episodes can be drawn from.
        DataError: a folder's problems.
    """
    if isinstance(dataset, EpisodeSource):
        return dataset if val is None else SplitData({"train": dataset, "val": val})
    if is_folder(dataset):
        if val is not None:
            raise InputError(
                "a folder is split into train, val and test by itself (train_val_test_split, sets_are_pre_split); "
                "give val=None"
            )
        return build_data(_with_folder(config, dataset), device, getattr(torch, config.parameter_format))
    n_shot = config.validation_shape.n_shot
    tasks = _tasks_of(dataset, n_shot, come_again=val is not None)
    kept = None if val is None else _tasks_of(val, n_shot)
    if val is not None and (tasks is None) != (kept is None):
        raise InputError("dataset and val are of two kinds, tasks and images; give two of one kind, or val=None")
    if tasks is not None:
        train, kept = (tasks, kept) if kept is not None else _keep_tasks(tasks, config.num_evaluation_tasks)
        return TaskEpisodes({"train": train, "val": kept}, config, device)
    images = labelled_images(dataset, config, image_shape)
    if val is not None:
        kept_images = labelled_images(val, config, image_shape)
        return SplitData(
            {
                "train": _few_shot_data({"train": images}, config, device),
                "val": _few_shot_data({"val": kept_images}, config, device),
            }
        )
    names = list(images.classes)
    kept_names = _classes_for_validation(names, config)
    splits = {
        "train": LabelledImages(
            images.pixels,
            {name: images.classes[name] for name in names if name not in kept_names or len(kept_names) == len(names)},
        ),
        "val": LabelledImages(images.pixels, {name: images.classes[name] for name in kept_names}),
    }
    return _few_shot_data(splits, config, device)


def _classes_for_validation(names: Sequence[str], config: ExperimentConfig) -> list[str]:
    n_way = config.validation_shape.n_way
    most = max(shape.n_way for shape in config.training_shapes)
    if len(names) < n_way + most:
        log.info(
            "%d classes are too few to keep %d for validation: it has the classes of training, and says nothing of "
            "new ones.",
            len(names),
            n_way,
        )
        return list(names)
    n_kept = min(max(n_way, round(SHARE_FOR_VALIDATION * len(names))), len(names) - most)
    seed = 0 if config.class_split_seed is None else config.class_split_seed
    return [names[rank] for rank in sorted(np.random.default_rng(seed).permutation(len(names))[:n_kept])]


def evaluation_data(
    dataset: Any, config: ExperimentConfig, device: torch.device, image_shape: Sequence[int] | None = None
) -> EpisodeSource:
    """Return the episodes of a measurement, "test": a folder's test split, or all of anything else."""
    if isinstance(dataset, EpisodeSource):
        return dataset
    if is_folder(dataset):
        return build_data(_with_folder(config, dataset), device, getattr(torch, config.parameter_format))
    tasks = _tasks_of(dataset, config.test_shapes[0].n_shot)
    if tasks is not None:
        return TaskEpisodes({"test": tasks}, config, device)
    return _few_shot_data({"test": labelled_images(dataset, config, image_shape)}, config, device)


def _with_folder(config: ExperimentConfig, folder: str | Path) -> ExperimentConfig:
    path = expanded(folder).resolve()
    name = "".join(c if c.isalnum() or c in "_+=,.- " else "_" for c in path.name)
    return check_config(config.to_json_dict() | {"dataset_name": name, "dataset_path": str(path)}, "FewShotClassifier")


def _few_shot_data(splits: Mapping[str, LabelledImages], config: ExperimentConfig, device: torch.device) -> FewShotData:
    shapes = {"train": config.training_shapes, "val": (config.validation_shape,), "test": config.test_shapes}
    for split, images in splits.items():
        _check_sizes(split, images, shapes[split])
    examples, ahead = next(iter(splits.values())).pixels, 0  # the splits share them
    arrays = ArrayImages(examples, ())
    if config.inputs is None:
        pixels = torch.from_numpy(np.array(examples)).to(device)
    else:
        pixels, ahead = place_images(arrays, config.load_into_memory, device)
    classes = {split: images.classes for split, images in splits.items()}
    return FewShotData(
        ImageClasses(pixels, classes, source={"content_sha256": arrays.content_sha256}, meta_batches_ahead=ahead),
        build_drawing(config),
        build_preprocessing(config, device, getattr(torch, config.parameter_format)),
    )


def _check_sizes(split: str, images: LabelledImages, shapes: Sequence[EpisodeShape]) -> None:
    n_way, n_images = max(shape.n_way for shape in shapes), max(shape.n_images for shape in shapes)
    if len(images.classes) < n_way:
        raise InputError(
            f"{split}: {len(images.classes)} classes, but a task needs {n_way}; lower num_classes_per_set or give "
            "more classes"
        )
    small = [f'"{name}" has {len(ranks)}' for name, ranks in images.classes.items() if len(ranks) < n_images]
    if small:
        raise InputError(
            f"{split}: {len(small)} classes have fewer than the {n_images} images that num_samples_per_class + "
            "num_target_samples need: "
            f"{', '.join(small[:5])}; lower num_target_samples or leave them out"
        )


class SplitData(EpisodeSource):
    """Each split from a source of its own."""

    def __init__(self, sources: Mapping[str, EpisodeSource]) -> None:
        self.sources = dict(sources)
        self.shape = next(iter(sources.values())).shape

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> names of its classes."""
        return {split: source.class_names[split] for split, source in self.sources.items()}

    def check_content(self) -> None:
        """Wait for the check of each source's data."""
        for source in self.sources.values():
            source.check_content()

    def identity(self) -> dict[str, Any] | None:
        """Return what each source says of its split; None where one does not say."""
        found = {split: source.identity() for split, source in self.sources.items()}
        if None in found.values():
            return None
        digests = [identity["content_sha256"] for identity in found.values()]
        whole = None if None in digests else hashlib.sha256("".join(digests).encode()).hexdigest()
        return {"content_sha256": whole, "splits": {split: found[split]["splits"][split] for split in found}}

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """Return the episodes with these numbers."""
        return self.sources[split].episodes(split, indices, shape)

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return normalised images (..., C, H, W) of an episode as uint8, to be shown."""
        return self.sources["val"].as_pixels(images)


KINDS = (
    "(image, label), or a task: (support_images, support_labels, query_images, query_labels), each images or labels of "
    "all its classes"
)


def _first_item(dataset: Any) -> Any:
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


def _tasks_of(dataset: Any, n_shot: int, *, come_again: bool = False) -> Any:
    """Return the tasks that a dataset is made of, as a sequence or an iterable; None: it is made of images.

    Args:
        n_shot: K, where tasks do not say which of their examples are support.
        come_again: read a loader again when it ends.
    """
    if is_pair(dataset):
        return None
    if (stream := endless(dataset)) is not None:
        return _each_of(stream, n_shot)
    item = _first_item(dataset)
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


def _keep_tasks(dataset: Any, n_tasks: int) -> tuple[Any, Sequence[Any]]:
    """Keep tasks to train on, and others for validation: a fifth of a list, or the first ones of an iterator."""
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
        self._config, self.device, self.shape = config, device, config.validation_shape
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
                of_images = config.inputs is None
                pixels = resized(pixels, config.image_height, config.image_width) if of_images else pixels
                normalise = NORMALISATIONS[config.normalisation]
                tensors.append(
                    as_input(pixels, normalise, reverse_channels=config.reverse_channels, of_images=of_images).to(
                        getattr(torch, config.parameter_format)
                    )
                )
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
