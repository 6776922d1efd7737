"""From a dataset on disk and an episode's number to that episode on the device.

The same number always gives the same episode. Images are gathered, rotated and normalised for a whole meta-batch at
once; there are no worker processes and no Python per image.
"""

import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils import config as configuration
from utils.class_table import ClassTable
from utils.episodes import EpisodeIndices, EpisodeShape, draw_episodes
from utils.errors import ConfigError
from utils.image_decoding import PixelFormat
from utils.image_folders import ImageClass, find_shortages, group_into_classes, report_problems, split_into_sets
from utils.packed_images import load_or_pack
from utils.prepare_dataset import find_or_make_dataset

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

LARGEST_PART_OF_DEVICE_MEMORY = 0.25
"""The packed images move to the device when they take no more of its free memory than this."""


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of N way, K shot, Q query; images in class order: the K (or Q) images of class 0 first."""

    support_images: Tensor
    """float (B, N*K, C, H, W), normalised, on the device."""
    support_labels: Tensor
    """int64 (B, N*K), 0..N-1."""
    query_images: Tensor
    """float (B, N*Q, C, H, W)."""
    query_labels: Tensor
    """int64 (B, N*Q)."""
    seeds: Tensor
    """int64 (B,) on the device: a number per episode that keys what else is random in it."""
    n_way: int
    n_shot: int
    n_query: int
    split: str
    indices: tuple[int, ...]
    """Episode numbers, on the host."""
    class_ids: np.ndarray
    """int64 (B, N), on the host: rank of each class in the split's list of classes."""


def rotate_by_quarter_turns(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn each image counter-clockwise by its own number of quarter turns, as numpy.rot90 does.

    Args:
        images: (..., H, W) with H = W.
        quarter_turns: int64, values 0..3, broadcast against images.
    """
    images = torch.where(quarter_turns >= 2, images.flip(-2, -1), images)
    return torch.where(quarter_turns % 2 == 1, images.transpose(-2, -1).flip(-2), images)


class FewShotData:
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
            n_train_tasks: training episode i has the classes, images and rotations of episode i mod this; None: its own.
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
        self.class_rotation = class_rotation
        self.reverse_channels = reverse_channels
        self._images = images
        self._seeds = dict(seeds)
        self._tables = {split: ClassTable.of(by_class) for split, by_class in classes.items()}
        self._image_path = image_path
        self._source = dict(source or {})
        self._mean = torch.tensor(mean, dtype=dtype, device=device).reshape(-1, 1, 1)
        self.device = self._mean.device  # with its index, which "cuda" alone leaves open
        self._std = torch.tensor(std, dtype=dtype, device=self.device).reshape(-1, 1, 1)
        self._normalise = normalisation != "none"
        self._labels: dict[tuple[int, int, int], Tensor] = {}

    @property
    def class_names(self) -> dict[str, list[str]]:
        """split -> names of its classes, in the order of their ranks."""
        return {split: list(table.names) for split, table in self._tables.items()}

    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self._images.shape[1:])

    def summary(self) -> dict:
        """JSON-able: classes and images per split, and where they are from."""
        splits = {
            split: {"classes": len(table.names), "images": len(table.images)} for split, table in self._tables.items()
        }
        return {**self._source, "image_shape": list(self.example_shape()), "splits": splits}

    def draw(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeIndices:
        """Classes, images, rotations and seeds of these episodes; only training episodes are rotated."""
        in_training = split == "train"
        return draw_episodes(
            seed=self._seeds[split],
            split=split,
            indices=indices,
            class_sizes=self._tables[split].sizes,
            shape=shape or self.shape,
            rotate=self.class_rotation and in_training,
            n_tasks=self.n_train_tasks if in_training else None,
        )

    def _ranks(self, split: str, drawn: EpisodeIndices) -> np.ndarray:
        table = self._tables[split]
        return table.images[table.starts[drawn.classes][:, :, None] + drawn.images]  # (B, N, K+Q)

    def episodes(self, split: str, indices: Sequence[int], shape: EpisodeShape | None = None) -> EpisodeBatch:
        """The episodes with these numbers, on the device.

        Args:
            split: "train", "val" or "test".
            indices: B episode numbers from 0 on.
            shape: N way, K shot, Q query; None: the config's.
        """
        shape = shape or self.shape
        drawn = self.draw(split, indices, shape)
        n_episodes, n_way = len(indices), shape.n_way
        ranks = self._ranks(split, drawn)
        n_ranks = ranks.size
        numbers = torch.from_numpy(np.concatenate([ranks.reshape(-1), drawn.rotations.reshape(-1), drawn.seeds]))
        numbers_here = self._to_device(numbers)  # one copy per meta-batch
        if self._images.device == self.device:
            images = self._images[numbers_here[:n_ranks]]
        else:
            images = self._to_device(self._images[numbers[:n_ranks]])
        images = images.reshape(n_episodes, n_way, shape.n_images, *self.example_shape())
        if self.reverse_channels:
            images = images.flip(3)
        if self.class_rotation and split == "train":
            quarter_turns = numbers_here[n_ranks:-n_episodes].reshape(n_episodes, n_way, 1, 1, 1, 1)
            images = rotate_by_quarter_turns(images, quarter_turns)
        return EpisodeBatch(
            support_images=self._to_float(images[:, :, : shape.n_shot]),
            support_labels=self._episode_labels(n_episodes, n_way, shape.n_shot),
            query_images=self._to_float(images[:, :, shape.n_shot :]),
            query_labels=self._episode_labels(n_episodes, n_way, shape.n_query),
            seeds=numbers_here[n_ranks + n_episodes * n_way :],
            n_way=n_way,
            n_shot=shape.n_shot,
            n_query=shape.n_query,
            split=split,
            indices=tuple(int(index) for index in indices),
            class_ids=drawn.classes,
        )

    def _to_device(self, host: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return host.to(self.device)
        return host.pin_memory().to(self.device, non_blocking=True)

    def _to_float(self, images: Tensor) -> Tensor:
        """uint8 (B, N, n, C, H, W) to normalised float (B, N*n, C, H, W)."""
        images = images.flatten(1, 2).to(self.dtype).div_(255)
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
        names = self._tables[split].names
        lines = [f"{split} {shape}"]
        for index, classes, ranks, turns in zip(
            indices, drawn.classes, self._ranks(split, drawn), drawn.rotations, strict=True
        ):
            for class_rank, image_ranks, quarter_turns in zip(classes, ranks, turns, strict=True):
                images = "\t".join(self._image_path(int(rank)) for rank in image_ranks)
                lines.append(f"{index}\t{names[class_rank]}\t{quarter_turns}\t{images}")
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def place_images(images: np.ndarray, load_into_memory: bool, device: torch.device) -> Tensor:
    """uint8 array as a tensor: on a CUDA device with room when `load_into_memory`, else where it is."""
    tensor = torch.from_numpy(images)
    if load_into_memory and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes <= LARGEST_PART_OF_DEVICE_MEMORY * free:
            return tensor.to(device)
    return tensor


def warn_of_shared_classes(sets: dict[str, list[ImageClass]]) -> None:
    """Log class names that are in two splits: few-shot accuracy is meant for classes never seen in training."""
    for one, other in itertools.combinations(sets, 2):
        shared = sorted({c.name for c in sets[one]} & {c.name for c in sets[other]})
        if shared:
            logger.warning("%d class names are in %s and in %s, such as %s", len(shared), one, other, shared[0])


def build_data(
    config: "configuration.ExperimentConfig", device: torch.device | str, dtype: torch.dtype = torch.float32
) -> FewShotData:
    """Find, unpack or make the dataset of a config, pack its images and check that episodes can be drawn from it.

    Raises:
        ConfigError: keys that cannot work together.
        DataError: dataset missing, or one list of all its problems.
        StorageError: no space or no permission for the packed file.
    """
    device = torch.device(device)
    dataset_folder: Path = configuration.dataset_root() / (config.dataset_path or config.dataset_name)
    find_or_make_dataset(config.dataset_name, dataset_folder, configuration.dataset_root())
    packed, folders, problems = load_or_pack(
        dataset_folder,
        PixelFormat(config.image_height, config.image_width, config.image_channels, config.resize_filter),
        num_workers=config.num_dataprovider_workers,
        rebuild=config.reset_stored_filepaths,
        skip_bad=config.on_bad_image == "skip",
    )
    classes, label_problems = group_into_classes(
        folders,
        dataset_folder,
        config.indexes_of_folders_indicating_class,
        config.sets_are_pre_split,
        config.labels_as_int,
    )
    sets = split_into_sets(
        classes, config.train_val_test_split, 0 if config.class_split_seed is None else config.class_split_seed
    )
    warn_of_shared_classes(sets)
    problems += label_problems + find_shortages(
        sets,
        dataset_folder,
        {
            "train": config.training_shapes,
            "val": (config.validation_shape,),
            "test": config.test_shapes,
        },
        config.sets_are_pre_split,
    )
    if problems:
        raise report_problems(dataset_folder, problems)
    data = FewShotData(
        place_images(packed.read(config.load_into_memory), config.load_into_memory, device),
        {split: {c.name: c.images for c in members} for split, members in sets.items()},
        shape=config.validation_shape,
        seeds={"train": config.train_seed, "val": config.val_seed, "test": config.val_seed},
        n_train_tasks=config.number_of_train_tasks,
        class_rotation=config.class_rotation,
        normalisation=config.normalisation,
        reverse_channels=config.reverse_channels,
        device=device,
        dtype=dtype,
        image_path=packed.image_path,
        source={
            "dataset_name": config.dataset_name,
            "dataset_folder": str(dataset_folder),
            "packed_file": str(packed.data_file),
            "content_sha256": packed.content_sha256,
        },
    )
    for split, counts in data.summary()["splits"].items():
        logger.info("%s: %d classes, %d images", split, counts["classes"], counts["images"])
    return data
