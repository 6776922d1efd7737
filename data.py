"""From a dataset on disk and an episode's number to that episode on the device.

The same number always gives the same episode. Images are gathered, rotated and normalised for a whole meta-batch at
once; there are no worker processes and no Python per image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment_parts.evaluation.task_sets import TaskSet, protocol_of, shape_protocols
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
from utils.data_sources.registered_datasets import RegisteredDataset, make_registered_dataset
from utils.data_sources.sinusoid import SinusoidData, build_sinusoid_data
from utils.data_sources.task_lists import indexed_tasks, read_task_lists, tasks_digest
from utils.episodes.augmentation import Augmentation
from utils.episodes.batches import EpisodeBatch, PreparedEpisodes, rotate_by_quarter_turns
from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import QUERY_AUGMENTATION, SUPPORT_AUGMENTATION, EpisodeIndices, EpisodeShape, draw_episodes
from utils.episodes.source import FixedEpisodeSource
from utils.errors import ConfigError, DataError
from utils.images.folders import report_problems
from utils.known_datasets import SINUSOID
from utils.machine.devices import copy_to
from utils.words import printable

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


class FewShotData(FixedEpisodeSource):
    """Episodes of a dataset whose images are one uint8 array."""

    def __init__(
        self,
        images: Tensor,
        classes: dict[str, dict[str, Sequence[int]]],
        *,
        shape: EpisodeShape,
        seeds: dict[str, int],
        class_rotation: bool = False,
        normalisation: str = "none",
        reverse_channels: bool = False,
        n_train_tasks: int | None = None,
        augmentation: Mapping[str, Sequence[str]] | None = None,
        listed: Mapping[EpisodeShape, EpisodeIndices] | None = None,
        meta_batches_ahead: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        image_path: Callable[[int], str] = str,
        source: dict | None = None,
    ):
        """Take images and classes as they are; nothing is read here.

        Args:
            images: uint8 (images, C, H, W), on the device or on the host.
            classes: split -> class name -> ranks of its images.
            shape: of the episodes, unless another one is asked for.
            seeds: split -> seed of its episodes.
            class_rotation: turn all images of a class in a training episode by the same 0 to 3 quarter turns.
            normalisation: a name in NORMALISATIONS.
            reverse_channels: blue green red instead of red green blue.
            n_train_tasks: training episode i has the classes, images and rotations of episode i mod this; None: its
                own.
            augmentation: "support" and "query" -> names of `utils.episodes.augmentation`, applied to training episodes.
            listed: shape -> its episodes, which are then not drawn.
            meta_batches_ahead: how many meta-batches of a training are worth calling `prepare` for before their time.
            image_path: rank of an image -> its path, for `task_list_digest`.
            source: JSON-able facts about where the images are from, for `summary`.
        Raises:
            ConfigError: rotation of images that are not square, a normalisation that does not fit the channels.
        """
        _, channels, height, width = images.shape
        if class_rotation and height != width:
            raise ConfigError(
                f"class_rotation needs square images, but image_height is {height} and image_width {width}. Make them"
                " equal or set class_rotation to false."
            )
        mean, std = NORMALISATIONS[normalisation]
        if len(mean) not in (1, channels):
            raise ConfigError(
                f'normalisation "{normalisation}" has {len(mean)} channels, but image_channels is {channels}. Set'
                ' normalisation to "none" or image_channels to 3.'
            )
        self.dtype = dtype
        self.shape = shape
        self.n_train_tasks = n_train_tasks
        self._listed = listed
        self.meta_batches_ahead = meta_batches_ahead
        self.class_rotation = class_rotation
        self.reverse_channels = reverse_channels
        self._images = images
        self._seeds = dict(seeds)
        self.tables = {split: ClassTable.of(by_class) for split, by_class in classes.items()}
        self.image_path = image_path
        self._source = dict(source or {})
        self._mean = torch.tensor(mean, dtype=dtype, device=device).reshape(-1, 1, 1)
        self.device = self._mean.device  # with its index, which "cuda" alone leaves open
        self._std = torch.tensor(std, dtype=dtype, device=self.device).reshape(-1, 1, 1)
        self._augmentations = {
            role: Augmentation(names, height, width) for role, names in (augmentation or {}).items() if names
        }
        self._normalise = normalisation != "none"
        self._labels: dict[tuple[int, int, int], Tensor] = {}

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> names of its classes, in the order of their ranks."""
        return {split: list(table.names) for split, table in self.tables.items()}

    def class_sizes(self, split: str) -> dict[str, int]:
        """Name -> number of images of the classes of a split, in the order of their ranks."""
        table = self.tables[split]
        return dict(zip(table.names, table.sizes.tolist(), strict=True))

    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self._images.shape[1:])

    def summary(self) -> dict:
        """JSON-able: classes and images per split, and where they are from."""
        splits = {
            split: {"classes": len(table.names), "images": len(table.images)} for split, table in self.tables.items()
        }
        return {**self._source, "image_shape": list(self.example_shape()), "splits": splits}

    def draw(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeIndices:
        """Classes, images, rotations and seeds of these episodes; only training episodes are rotated."""
        if self._listed is not None:
            return self._listed[shape or self.shape].at(indices)
        in_training = split == "train"
        return draw_episodes(
            seed=self._seeds[split],
            split=split,
            indices=indices,
            class_sizes=self.tables[split].sizes,
            shape=shape or self.shape,
            rotate=self.class_rotation and in_training,
            n_tasks=self.n_train_tasks if in_training else None,
        )

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """The episodes with these numbers, on the device.

        Args:
            split: "train", "val" or "test".
            indices: B episode numbers from 0 on.
            shape: N way, K shot, Q query; None: the config's.
        """
        return self.finish(self.prepare(split, indices, shape))

    def prepare(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> PreparedEpisodes:
        """Draw episodes and gather what lies on the host. Touches no device, so that a thread may do it meanwhile."""
        shape = shape or self.shape
        drawn = self.draw(split, indices, shape)
        ranks = self.tables[split].ranks(drawn).reshape(-1)
        numbers = torch.from_numpy(np.concatenate([ranks, drawn.rotations.reshape(-1), drawn.seeds]))
        gathered = None if self._images.device.type != "cpu" else self._images.index_select(0, numbers[: ranks.size])
        augmentation = self._draw_augmentation(indices, shape) if split == "train" else {}
        return PreparedEpisodes(
            split, tuple(int(index) for index in indices), shape, drawn, numbers, augmentation, gathered
        )

    def _draw_augmentation(self, indices: Sequence[int], shape: EpisodeShape) -> dict[str, Tensor]:
        purposes = {"support": (SUPPORT_AUGMENTATION, shape.n_shot), "query": (QUERY_AUGMENTATION, shape.n_query)}
        drawn = {}
        for role, operations in self._augmentations.items():
            purpose, per_class = purposes[role]
            drawn[role] = torch.from_numpy(
                operations.draw(self._seeds["train"], "train", indices, purpose, shape.n_way * per_class)
            )
        return drawn

    def finish(self, prepared: PreparedEpisodes) -> EpisodeBatch:
        """Bring prepared episodes to the device, turn and normalise them."""
        split, shape, n_episodes = prepared.split, prepared.shape, len(prepared.indices)
        numbers = copy_to(self.device, prepared.numbers)  # one copy per meta-batch
        n_ranks = n_episodes * shape.n_way * shape.n_images
        images = (
            self._images.index_select(0, numbers[:n_ranks])
            if prepared.images is None
            else copy_to(self.device, prepared.images)
        )
        images = images.reshape(n_episodes, shape.n_way, shape.n_images, *self.example_shape())
        if self.class_rotation and split == "train":
            quarter_turns = numbers[n_ranks:-n_episodes].reshape(n_episodes, shape.n_way, 1, 1, 1, 1)
            images = rotate_by_quarter_turns(images, quarter_turns)
        return EpisodeBatch(
            support_images=self._to_float(images[:, :, : shape.n_shot], "support", prepared),
            support_labels=self._episode_labels(n_episodes, shape.n_way, shape.n_shot),
            query_images=self._to_float(images[:, :, shape.n_shot :], "query", prepared),
            query_labels=self._episode_labels(n_episodes, shape.n_way, shape.n_query),
            seeds=numbers[-n_episodes:],
            n_way=shape.n_way,
            n_shot=shape.n_shot,
            n_query=shape.n_query,
            split=split,
            indices=prepared.indices,
            class_ids=prepared.drawn.classes,
        )

    def _to_float(self, images: Tensor, role: str, prepared: PreparedEpisodes) -> Tensor:
        """uint8 (B, N, n, C, H, W) to augmented and normalised float (B, N*n, C, H, W)."""
        images = images.flatten(1, 2).to(self.dtype).div_(255)
        if role in prepared.augmentation:
            parameters = copy_to(self.device, prepared.augmentation[role])
            images = self._augmentations[role].apply(images.flatten(0, 1), parameters).reshape(images.shape)
        if self.reverse_channels:  # after the augmentation, which knows red from blue
            images = images.flip(-3)
        return images.sub_(self._mean).div_(self._std) if self._normalise else images

    def as_pixels(self, images: Tensor) -> Tensor:
        """Normalised images (..., C, H, W) of an episode as uint8 red green blue (or grey), for people to look at."""
        images = images * self._std + self._mean if self._normalise else images
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels.flip(-3) if self.reverse_channels else pixels

    def _episode_labels(self, n_episodes: int, n_way: int, n_per_class: int) -> Tensor:
        key = n_episodes, n_way, n_per_class
        if key not in self._labels:
            labels = torch.arange(n_way, device=self.device).repeat_interleave(n_per_class)
            self._labels[key] = labels.repeat(n_episodes, 1)
        return self._labels[key]

    def task_list_digest(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> str:
        """sha256 of class and image names of these episodes: equal means the same tasks."""
        shape = shape or self.shape
        drawn = self.draw(split, indices, shape)
        return tasks_digest(split, shape, indices, drawn, self.tables[split], self.image_path)


def build_data(
    config: ExperimentConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> FewShotData | SinusoidData:
    """The episodes of a config, once its dataset is found, packed and checked.

    Raises:
        ConfigError: keys that cannot work together.
        DataError: dataset missing, or one list of all its problems.
        StorageError: no space or no permission for the packed file.
    """
    if config.dataset_name == SINUSOID:
        return build_sinusoid_data(config, device, dtype)
    shapes = {"train": config.training_shapes, "val": (config.validation_shape,), "test": config.test_shapes}
    dataset = make_registered_dataset(config, config.dataset_name, shapes)
    if dataset is not None:
        classes = dataset.classes
    else:
        dataset = find_classes(config, shapes)
        classes = {split: {c.name: c.images for c in members} for split, members in dataset.sets.items()}
    data = _data_of(config, dataset, classes, device, dtype)
    for split, counts in data.summary()["splits"].items():
        logger.info("%s: %d classes, %d images", split, counts["classes"], counts["images"])
    return data


def _data_of(
    config: ExperimentConfig,
    dataset: DatasetClasses | RegisteredDataset,
    classes: Mapping[str, Mapping[str, Sequence[int]]],
    device: torch.device | str,
    dtype: torch.dtype,
    **more: Any,
) -> FewShotData:
    device = torch.device(device)
    images, meta_batches_ahead = place_images(dataset.packed, config.load_into_memory, device)
    return FewShotData(
        images,
        classes,
        shape=config.validation_shape,
        seeds={"train": config.train_seed, "val": config.val_seed, "test": config.val_seed},
        n_train_tasks=config.number_of_train_tasks,
        class_rotation=config.class_rotation,
        normalisation=config.normalisation,
        reverse_channels=config.reverse_channels,
        augmentation={"support": config.support_augmentation, "query": config.query_augmentation},
        meta_batches_ahead=meta_batches_ahead,
        device=device,
        dtype=dtype,
        image_path=dataset.packed.image_path,
        source=dataset.source,
        **more,
    )


def build_other_task_sets(
    config: ExperimentConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> list[TaskSet]:
    """What `test_dataset_name` or `task_list` of a config ask for, instead of the test tasks of the run's own dataset.

    Images are brought to the size and channels that the run was trained with, and normalised as in training.

    Raises:
        ConfigError, DataError, StorageError: as `build_data`; a task list that does not fit its dataset.
    """
    if config.task_list:
        return _listed_task_sets(config, Path(config.task_list), device, dtype)
    task_sets = []
    for name in config.test_dataset_name:
        registered = make_registered_dataset(config, name, {"test": config.test_shapes})
        if registered is not None:
            facts = {
                "dataset": name,
                "classes": f"{len(registered.classes['test'])} (test split)",
                "images": "as the plugin makes them",
            }
            data = _data_of(config, registered, {"test": registered.classes["test"]}, device, dtype)
            task_sets += [TaskSet(data, shape, protocol | facts) for shape, protocol in shape_protocols(config)]
            continue
        own = name == config.dataset_name
        of_name = config if own else other_dataset(config, name)
        dataset = find_classes(of_name, {"test": config.test_shapes})
        members = dataset.sets["test"]
        which = "test split" if own or of_name.sets_are_pre_split or len(members) < dataset.n_classes else "all of them"
        facts = {"dataset": name, "classes": f"{len(members)} ({which})", "images": describe_images(of_name, dataset)}
        logger.info("%s: classes: %s; images: %s", name, facts["classes"], facts["images"])
        data = _data_of(of_name, dataset, {"test": {c.name: c.images for c in members}}, device, dtype)
        task_sets += [TaskSet(data, shape, protocol | facts) for shape, protocol in shape_protocols(config)]
    return task_sets


def _listed_task_sets(
    config: ExperimentConfig, path: Path, device: torch.device | str, dtype: torch.dtype
) -> list[TaskSet]:
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
    data = _data_of(config, dataset, {"test": classes}, device, dtype, listed=listed)
    task_sets = []
    for one in task_lists.lists:
        facts = {"tasks": len(one.tasks), "seed": one.seed, "dataset": task_lists.dataset, "task_list": path.name}
        task_sets.append(TaskSet(data, one.shape, protocol_of(config, one.shape) | facts))
        if one.digest and task_sets[-1].digest != one.digest:
            raise DataError(
                f"{printable(path)}: the tasks of {one.shape} are not those of its digest; it was changed. Make it "
                "again."
            )
    return task_sets
