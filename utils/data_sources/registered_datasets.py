"""Datasets that a plugin makes as arrays (`utils.registry.register_dataset`), checked as strictly as folders of
images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.config import ExperimentConfig
from utils.episodes.drawing import EpisodeShape
from utils.errors import DataError
from utils.registry import registered_dataset, user_code


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, with the face of `utils.images.packed.PackedImages`."""

    images: np.ndarray
    """uint8 (images, C, H, W)."""
    names: Sequence[str]
    """Of each image, split/class/number."""

    @property
    def n_bytes(self) -> int:
        """Size of all images."""
        return self.images.nbytes

    def verify(self) -> None:
        """Nothing has been packed that could have changed since."""

    def read(self, into_memory: bool) -> np.ndarray:
        """Return the images, which are in memory in any case."""
        return self.images

    def image_path(self, rank: int) -> str:
        """Return what stands for the path of an image."""
        return self.names[rank]


@dataclass(frozen=True)
class RegisteredDataset:
    """A plugin's dataset: its images, and which of them belong to which class of which split."""

    name: str
    packed: ArrayImages
    classes: Mapping[str, Mapping[str, range]]
    """split -> class name -> ranks of its images."""

    @property
    def source(self) -> dict[str, Any]:
        """JSON-able facts about where the images are from."""
        digest = hashlib.sha256("\n".join(self.packed.names).encode("utf-8", "surrogateescape"))
        digest.update(self.packed.images)
        return {"dataset_name": self.name, "made_by": "plugin", "content_sha256": digest.hexdigest()}


def make_registered_dataset(
    config: ExperimentConfig, name: str, shapes: Mapping[str, Sequence[EpisodeShape]]
) -> RegisteredDataset | None:
    """Let a plugin make its dataset `name`; None: no plugin has registered one of this name.

    Args:
        shapes: split -> shapes of the episodes that are to be drawn from it.
    Raises:
        ConfigError: the plugin's function fails.
        DataError: one list of everything that is wrong with what it returns.
    """
    build = registered_dataset(name)
    if build is None:
        return None
    with user_code(f'dataset "{name}"'):
        made = build(config)
    wanted = (config.image_channels, config.image_height, config.image_width)
    problems = _problems(made, wanted, shapes)
    if problems:
        raise DataError(f'dataset "{name}", made by a plugin:\n' + "\n".join(f"  {problem}" for problem in problems))
    arrays, names, classes, start = [], [], {}, 0
    for split in made:
        classes[split] = {}
        for class_name, images in made[split].items():
            arrays.append(_channels_first(images))
            names += [f"{split}/{class_name}/{number}" for number in range(len(images))]
            classes[split][class_name] = range(start, start + len(images))
            start += len(images)
    return RegisteredDataset(name, ArrayImages(np.ascontiguousarray(np.concatenate(arrays)), names), classes)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)


def _problems(made: Any, wanted: tuple[int, int, int], shapes: Mapping[str, Sequence[EpisodeShape]]) -> list[str]:
    if not isinstance(made, Mapping) or not all(isinstance(classes, Mapping) for classes in made.values()):
        return ["it must be a dict, split -> class name -> images"]
    problems = [f'split "{split}" is missing' for split in shapes if split not in made]
    for split in [split for split in shapes if split in made]:
        n_way, largest = max(shape.n_way for shape in shapes[split]), max(shape.n_images for shape in shapes[split])
        if len(made[split]) < n_way:
            problems.append(f'split "{split}" has {len(made[split])} classes, but episodes need {n_way}')
        for name, images in made[split].items():
            place = f'class "{name}" ({split})'
            if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim not in (3, 4):
                kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
                problems.append(f"{place} is {kind}, but must be a uint8 array (n, H, W) or (n, H, W, C)")
            elif _channels_first(images).shape[1:] != wanted:
                seen = _channels_first(images).shape[1:]
                problems.append(
                    f"{place} has images of (C, H, W) {seen}, but image_channels, image_height and image_width say "
                    f"{wanted}"
                )
            elif len(images) < largest:
                problems.append(f"{place} has {len(images)} images, but shots and queries need {largest}")
    return problems
