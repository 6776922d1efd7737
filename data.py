"""From a dataset on disk and an episode's number to that episode on the device.

The same number always gives the same episode. Images are gathered, rotated and normalised for a whole meta-batch at
once; there are no worker processes and no Python per image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.config import ExperimentConfig
from utils.data_sources.dataset_classes import (
    DatasetClasses,
    describe_images,
    find_classes,
    other_dataset,
    packed_dataset,
)
from utils.data_sources.image_memory import place_images
from utils.data_sources.lakes_runs import all_runs_tasks
from utils.data_sources.registered_datasets import make_registered_dataset
from utils.data_sources.sinusoid import SinusoidData, build_sinusoid_data
from utils.data_sources.task_lists import indexed_tasks, read_task_lists, tasks_digest
from utils.episodes.augmentation import Augmentation
from utils.episodes.batches import EpisodeBatch, GatheredEpisodes, rotate_by_quarter_turns
from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import QUERY_AUGMENTATION, SUPPORT_AUGMENTATION, EpisodeIndices, EpisodeShape, draw_episodes
from utils.episodes.source import FixedEpisodeSource
from utils.errors import ConfigError, DataError
from utils.images.folders import report_problems
from utils.known_datasets import SINUSOID
from utils.machine.devices import copy_to
from utils.words import counted, printable

logger = logging.getLogger(__name__)

NORMALISATIONS = {
    "none": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mini_imagenet": ((0.471, 0.450, 0.403), (0.278, 0.268, 0.284)),
    "tiered_imagenet": ((0.478, 0.456, 0.410), (0.279, 0.274, 0.286)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "inaturalist": ((0.4905, 0.4961, 0.4330), (0.1737, 0.1713, 0.1779)),
}
"""Name -> mean and standard deviation per channel, of values in 0..1; the names are those of the config's schema."""


@dataclass(frozen=True)
class ImageClasses:
    """Images as they lie somewhere, and which of them belong to which class of which split."""

    images: Tensor
    """uint8 (images, C, H, W), on the device or on the host; of other examples (examples, ...) of any type."""
    classes: Mapping[str, Mapping[str, Sequence[int]]]
    """split -> class name -> ranks of its images."""
    image_path: Callable[[int], str] = str
    """Rank of an image -> its path, for digests of tasks."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts about where the images are from."""
    meta_batches_ahead: int = 0
    """How many meta-batches are worth gathering before their time."""
    check_content: Callable[[], None] = lambda: None
    """Raises where the images are not what was packed."""
    targets: Tensor | None = None
    """float (examples, D), on the device: the labels of a regression, whose classes are tasks; None: the classes are.
    """


@dataclass(frozen=True)
class Drawing:
    """Which episodes are drawn of classes and images."""

    shape: EpisodeShape
    """Of the episodes, unless another one is asked for."""
    seeds: Mapping[str, int]
    """split -> seed of its episodes."""
    n_train_tasks: int | None = None
    """Training episode i has the classes, images and rotations of episode i mod this; None: its own."""
    class_rotation: bool = False
    """Turn all images of a class in a training episode by the same 0 to 3 quarter turns."""
    listed: Mapping[EpisodeShape, EpisodeIndices] | None = None
    """Shape -> its episodes, which are then not drawn."""
    names_training_classes: bool = False
    """Training episodes say which of all training classes they have."""
    validation_shape: EpisodeShape | None = None
    """Of validation episodes; None: as of the others."""


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of the bytes of an image before the network gets them."""

    normalisation: str = "none"
    """A name in NORMALISATIONS."""
    reverse_channels: bool = False
    """Blue green red instead of red green blue."""
    augmentation: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """"support" and "query" -> names of `utils.episodes.augmentation`, applied to training episodes."""
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    of_images: bool = True
    """Whether examples are images: bytes that become 0 to 1. Others stay the numbers that they are."""


class FewShotData(FixedEpisodeSource):
    """Episodes of a dataset whose examples are one array; takes them and their classes as they are, reading nothing.

    Raises:
        ConfigError: rotation of images that are not square, a normalisation that does not fit the channels.
    """

    def __init__(self, images: ImageClasses, drawing: Drawing, preprocessing: Preprocessing) -> None:
        _, channels, *sides = images.images.shape
        height, width = sides if preprocessing.of_images else (1, 1)
        if drawing.class_rotation and height != width:
            raise ConfigError(
                f"class_rotation needs square images, but image_height is {height} and image_width {width}. Make them"
                " equal or set class_rotation to false."
            )
        mean, std = NORMALISATIONS[preprocessing.normalisation]
        if len(mean) not in (1, channels):
            raise ConfigError(
                f'normalisation "{preprocessing.normalisation}" has {len(mean)} channels, but image_channels is'
                f' {channels}. Set normalisation to "none" or image_channels to 3.'
            )
        self.drawing, self.shape, self.preprocessing = drawing, drawing.shape, preprocessing
        self.image_path, self.meta_batches_ahead = images.image_path, images.meta_batches_ahead
        self._images, self._source, self._check_content = images.images, images.source, images.check_content
        self._targets = images.targets
        self.tables = {split: ClassTable.of(by_class) for split, by_class in images.classes.items()}
        self._mean, self._std = (
            torch.tensor(values, dtype=preprocessing.dtype, device=preprocessing.device).reshape(-1, *[1] * len(sides))
            for values in (mean, std)
        )
        self.device = self._mean.device  # with its index, which "cuda" alone leaves open
        self._augmentations = {
            role: Augmentation(names, height, width) for role, names in preprocessing.augmentation.items() if names
        }
        self._labels: dict[tuple[int, int, int], Tensor] = {}

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> names of its classes, in the order of their ranks."""
        return {split: list(table.names) for split, table in self.tables.items()}

    @property
    def n_training_classes(self) -> int:
        """Classes that training can tell apart, each turn of one being a class where they are turned."""
        return len(self.tables["train"].names) * (4 if self.drawing.class_rotation else 1)

    def class_sizes(self, split: str) -> dict[str, int]:
        """Return name -> number of images of the classes of a split, in the order of their ranks."""
        table = self.tables[split]
        return dict(zip(table.names, table.sizes.tolist(), strict=True))

    def example_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image, the sides of another example."""
        return tuple(self._images.shape[1:])

    def summary(self) -> dict:
        """Return classes and images per split, and where they are from, JSON-able."""
        splits = {
            split: {"classes": len(table.names), "images": len(table.images)} for split, table in self.tables.items()
        }
        return {**self._source, "image_shape": list(self.example_shape()), "splits": splits}

    def identity(self) -> dict[str, Any] | None:
        """Return what the images are known by: their pixels and, of each split, the names of classes and images."""
        if "content_sha256" not in self._source:
            return None
        splits = {
            split: {"classes": len(table.names), "images": len(table.images), "sha256": table.digest(self.image_path)}
            for split, table in self.tables.items()
        }
        copies = {"keeps_copies": True} if self._source.get("keeps_copies") else {}
        return {"content_sha256": self._source["content_sha256"], "splits": splits, **copies}

    def check_content(self) -> None:
        """Wait until the packed images are known to be what was packed; raises where they are not."""
        self._check_content()

    def shape_of(self, split: str) -> EpisodeShape:
        """Return the shape of a split's episodes, unless another one is asked for."""
        return (self.drawing.validation_shape if split == "val" else None) or self.shape

    def draw(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeIndices:
        """Draw classes, images, rotations and seeds of these episodes; only training episodes are rotated."""
        drawing, shape = self.drawing, shape or self.shape_of(split)
        if drawing.listed is not None:
            return drawing.listed[shape].at(indices)
        in_training = split == "train"
        return draw_episodes(
            seed=drawing.seeds[split],
            split=split,
            indices=indices,
            class_sizes=self.tables[split].sizes,
            shape=shape,
            rotate=drawing.class_rotation and in_training,
            n_tasks=drawing.n_train_tasks if in_training else None,
        )

    def support_sizes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> np.ndarray | None:
        """Return how many support images each of these episodes has: int64 (B,); None: all have as many."""
        if shape is None or shape.least_shot is None:
            return None
        return self.draw(split, indices, shape).support_sizes(shape.n_shot)

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """Return the episodes with these numbers, on the device.

        Args:
            split: "train", "val" or "test".
            indices: B episode numbers from 0 on.
            shape: N way, K shot, Q query; None: the config's.
        """
        return self.finish(self.prepare(split, indices, shape))

    def prepare(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> GatheredEpisodes:
        """Draw episodes and gather what lies on the host. Touches no device, so that a thread may do it meanwhile.

        Raises:
            ValueError: episodes of different numbers of support images; `support_sizes` says which go together.
        """
        shape = shape or self.shape_of(split)
        drawn = self.draw(split, indices, shape)
        ranks = self.tables[split].ranks(drawn)
        support, query = ranks[:, :, : shape.n_shot], ranks[:, :, shape.n_shot :]
        if shape.least_shot is not None:
            sizes = sorted(set(drawn.support_sizes(shape.n_shot).tolist()))
            if len(sizes) > 1:
                raise ValueError(f"a batch of episodes with {sizes} support images; they need equally many")
            support = support[support >= 0]
        ranks = np.concatenate([support.reshape(-1), query.reshape(-1)])
        numbers = torch.from_numpy(np.concatenate([ranks, drawn.rotations.reshape(-1), drawn.seeds]))
        gathered = None if self._images.device.type != "cpu" else self._images.index_select(0, numbers[: ranks.size])
        augmentation = self._draw_augmentation(indices, shape) if split == "train" else {}
        return GatheredEpisodes(
            split, tuple(int(index) for index in indices), shape, drawn, numbers, augmentation, gathered
        )

    def _draw_augmentation(self, indices: Sequence[int], shape: EpisodeShape) -> dict[str, Tensor]:
        purposes = {"support": (SUPPORT_AUGMENTATION, shape.n_shot), "query": (QUERY_AUGMENTATION, shape.n_query)}
        drawn = {}
        for role, operations in self._augmentations.items():
            purpose, per_class = purposes[role]
            drawn[role] = torch.from_numpy(
                operations.draw(self.drawing.seeds["train"], "train", indices, purpose, shape.n_way * per_class)
            )
        return drawn

    def finish(self, prepared: GatheredEpisodes) -> EpisodeBatch:
        """Bring prepared episodes to the device, turn and normalise them."""
        split, shape, n_episodes = prepared.split, prepared.shape, len(prepared.indices)
        numbers = copy_to(self.device, prepared.numbers)  # one copy per meta-batch
        n_query = n_episodes * shape.n_way * shape.n_query
        n_ranks = len(numbers) - n_episodes * (shape.n_way + 1)
        images = (
            self._images.index_select(0, numbers[:n_ranks])
            if prepared.images is None
            else copy_to(self.device, prepared.images)
        )
        support, query = (part.unflatten(0, (n_episodes, -1)) for part in images.split((n_ranks - n_query, n_query)))
        if self.drawing.class_rotation and split == "train":
            turns = numbers[n_ranks:-n_episodes].reshape(n_episodes, shape.n_way, 1, 1, 1, 1)
            support, query = (
                rotate_by_quarter_turns(part.unflatten(1, (shape.n_way, -1)), turns).flatten(1, 2)
                for part in (support, query)
            )
        if self._targets is not None:  # one task at a time is a class of its own: N is 1
            targets = self._targets.index_select(0, numbers[:n_ranks]).split((n_ranks - n_query, n_query))
            support_labels, query_labels = (part.unflatten(0, (n_episodes, -1)) for part in targets)
        else:
            query_labels = self._episode_labels(n_episodes, shape.n_way, shape.n_query)
            if shape.least_shot is None:
                support_labels = self._episode_labels(n_episodes, shape.n_way, shape.n_shot)
            else:
                _, labels, _ = np.nonzero(prepared.drawn.images[:, :, : shape.n_shot] >= 0)
                support_labels = copy_to(self.device, torch.from_numpy(labels.reshape(n_episodes, -1)))
        training_classes = None
        if self.drawing.names_training_classes and split == "train":
            turned = prepared.drawn.classes + len(self.tables[split].names) * prepared.drawn.rotations
            training_classes = copy_to(self.device, torch.from_numpy(turned))
        return EpisodeBatch(
            support_images=self._to_float(support, "support", prepared),
            support_labels=support_labels,
            query_images=self._to_float(query, "query", prepared),
            query_labels=query_labels,
            seeds=numbers[-n_episodes:],
            n_way=shape.n_way,
            n_shot=shape.n_shot,
            n_query=shape.n_query,
            split=split,
            indices=prepared.indices,
            class_ids=prepared.drawn.classes,
            training_classes=training_classes,
        )

    def _to_float(self, images: Tensor, role: str, prepared: GatheredEpisodes) -> Tensor:
        """Augment and normalise uint8 (B, n, C, H, W): float of the same shape; others (B, n, ...) alike."""
        images = images.to(self.preprocessing.dtype, copy=True)  # what follows changes it in place
        if self.preprocessing.of_images:
            # Omniglot's 1-bit images, packed as 0 and 255, become 0 (ink) and 1: the reference trains on these values.
            images = images.div_(255)
        if role in prepared.augmentation:
            parameters = copy_to(self.device, prepared.augmentation[role])
            images = self._augmentations[role].apply(images.flatten(0, 1), parameters).reshape(images.shape)
        if self.preprocessing.reverse_channels:  # after the augmentation, which knows red from blue
            images = images.flip(-3)
        return images.sub_(self._mean).div_(self._std) if self.preprocessing.normalisation != "none" else images

    def as_pixels(self, images: Tensor) -> Tensor | None:
        """Return normalised images (..., C, H, W) of an episode as uint8 red green blue (or grey), to be shown; None:
        they are none.
        """
        if not self.preprocessing.of_images:
            return None
        if self.preprocessing.normalisation != "none":
            images = images * self._std + self._mean
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels.flip(-3) if self.preprocessing.reverse_channels else pixels

    def _episode_labels(self, n_episodes: int, n_way: int, n_per_class: int) -> Tensor:
        key = n_episodes, n_way, n_per_class
        if key not in self._labels:
            labels = torch.arange(n_way, device=self.device).repeat_interleave(n_per_class)
            self._labels[key] = labels.repeat(n_episodes, 1)
        return self._labels[key]

    def task_list_digest(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> str:
        """Return the sha256 of class and image names of these episodes: equal means the same tasks."""
        shape = shape or self.shape_of(split)
        drawn = self.draw(split, indices, shape)
        return tasks_digest(split, shape, indices, drawn, self.tables[split], self.image_path)


def build_drawing(config: ExperimentConfig, listed: Mapping[EpisodeShape, EpisodeIndices] | None = None) -> Drawing:
    """Unpack what a config says of drawing; `listed`, where the episodes are given."""
    return Drawing(
        config.training_shapes[0],
        # One seed for both, as in the reference; their streams differ (`STREAMS`), so their episodes do.
        {"train": config.train_seed, "val": config.val_seed, "test": config.val_seed},
        config.number_of_train_tasks,
        config.class_rotation,
        listed,
        config.pretraining_epochs > 0,
        config.validation_shape,
    )


def build_preprocessing(config: ExperimentConfig, device: torch.device | str, dtype: torch.dtype) -> Preprocessing:
    """Unpack what a config says of pixels."""
    augmentation = {"support": config.support_augmentation, "query": config.query_augmentation}
    of_images = config.inputs is None
    return Preprocessing(config.normalisation, config.reverse_channels, augmentation, device, dtype, of_images)


def build_data(
    config: ExperimentConfig,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    keep_copies: bool = False,
) -> FewShotData | SinusoidData:
    """Build the episodes of a config: find, pack and check its dataset.

        >>> from mamlkit import build_data, load_config
        >>> keys = {"dataset_name": "sinusoid", "loss": "mean_squared_error", "backbone": "mlp"}
        >>> keys |= {"image_height": 1, "image_width": 1, "image_channels": 1}
        >>> data = build_data(load_config(None, {"experiment_name": "waves", **keys}), "cpu")
        >>> data.episodes("train", range(4)).support_labels.shape[0]
        4

    Args:
        keep_copies: for a run that has started with images that are in a class more than once.
    Raises:
        ConfigError: keys that cannot work together.
        DataError: dataset missing, or one list of all its problems.
        StorageError: no space or no permission for the packed file.
    """
    if config.dataset_name == SINUSOID:
        return build_sinusoid_data(config, device, dtype)
    shapes = {"train": config.training_shapes, "val": (config.validation_shape,), "test": config.test_shapes}
    registered = make_registered_dataset(config, config.dataset_name, shapes, keep_copies=keep_copies)
    dataset = registered or find_classes(config, shapes, keep_copies=keep_copies)
    data = _data_of(config, dataset, dataset.classes, device, dtype)
    for split, counts in data.summary()["splits"].items():
        n_classes, n_images = counted(counts["classes"], "class", "classes"), counted(counts["images"], "image")
        logger.info("%s: %s, %s", split, n_classes, n_images)
    return data


def _data_of(
    config: ExperimentConfig,
    dataset: DatasetClasses,
    classes: Mapping[str, Mapping[str, Sequence[int]]],
    device: torch.device | str,
    dtype: torch.dtype,
    listed: Mapping[EpisodeShape, EpisodeIndices] | None = None,
) -> FewShotData:
    images, ahead = place_images(dataset.packed, config.load_into_memory, torch.device(device))
    targets = None if dataset.targets is None else torch.from_numpy(dataset.targets).to(device, dtype)
    return FewShotData(
        ImageClasses(images, classes, dataset.packed.image_path, dataset.source, ahead, dataset.packed.verify, targets),
        build_drawing(config, listed),
        build_preprocessing(config, device, dtype),
    )


FoundTasks = tuple[FewShotData, EpisodeShape, dict[str, Any]]
"""Where fixed tasks come from, of which shape they are, and what a result says about them."""


def build_other_data(
    config: ExperimentConfig,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    keep_copies: bool = False,
) -> list[FoundTasks]:
    """Return what `test_dataset_name` or `task_list` of a config ask for instead of the run's own test tasks.

    Images are brought to the size and channels that the run was trained with, and normalised as in training.

    Args:
        keep_copies: as for `build_data`, of the run's own dataset.
    Raises:
        ConfigError, DataError, StorageError: as `build_data`; a task list that does not fit its dataset.
    """
    if config.task_list:
        return _listed_tasks(config, Path(config.task_list), device, dtype)
    found = []
    for name in config.test_dataset_name:
        data, facts = _test_split(config, name, device, dtype, keep_copies)
        found += [(data, shape, facts) for shape in config.test_shapes]
    return found


def _test_split(
    config: ExperimentConfig, name: str, device: torch.device | str, dtype: torch.dtype, keep_copies: bool
) -> tuple[FewShotData, dict[str, Any]]:
    """Return the test classes of a dataset, and what a result says about it."""
    shapes, own = {"test": config.test_shapes}, name == config.dataset_name
    registered = make_registered_dataset(config, name, shapes, keep_copies=own and keep_copies)
    if registered is not None:
        classes = {"test": registered.classes["test"]}
        facts = {
            "dataset": name,
            "classes": f"{len(classes['test'])} (test split)",
            "images": "as the plugin makes them",
        }
        return _data_of(config, registered, classes, device, dtype), facts
    of_name = config if own else other_dataset(config, name)
    dataset = find_classes(of_name, shapes, keep_copies=own and keep_copies)
    n_classes = len(dataset.sets["test"])
    which = "test split" if own or of_name.sets_are_pre_split or n_classes < dataset.n_classes else "all of them"
    facts = {"dataset": name, "classes": f"{n_classes} ({which})", "images": describe_images(of_name, dataset)}
    logger.info("%s: classes: %s; images: %s", name, facts["classes"], facts["images"])
    return _data_of(of_name, dataset, {"test": dataset.classes["test"]}, device, dtype), facts


def _listed_tasks(
    config: ExperimentConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> list[FoundTasks]:
    task_lists = all_runs_tasks(path) if path.is_dir() or path.suffix == ".zip" else read_task_lists(path)
    dataset = packed_dataset(
        config if task_lists.dataset == config.dataset_path else other_dataset(config, task_lists.dataset)
    )
    images = enumerate(dataset.packed.image_paths())
    classes, listed, missing = indexed_tasks(task_lists.lists, {image: rank for rank, image in images})
    if missing:
        raise report_problems(
            dataset.folder, [f"{printable(image)}: in {printable(path)}, but not here" for image in missing]
        )
    data = _data_of(config, dataset, {"test": classes}, device, dtype, listed)
    found = []
    for one in task_lists.lists:
        facts = {"tasks": len(one.tasks), "seed": one.seed, "dataset": task_lists.dataset, "task_list": path.name}
        if one.digest and data.task_list_digest("test", range(len(one.tasks)), one.shape) != one.digest:
            raise DataError(
                f"{printable(path)}: the tasks of {one.shape} are not those of its digest; it was changed. Make it "
                "again."
            )
        found.append((data, one.shape, facts))
    return found
