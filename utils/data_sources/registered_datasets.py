"""Datasets that a plugin makes as arrays (`utils.registry.register_dataset`), checked as strictly as folders of
images.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import ExperimentConfig
from utils.data_sources.dataset_classes import (
    STARTED_WITH_COPIES,
    DatasetClasses,
    settle_repeats,
    warn_of_shared_classes,
)
from utils.episodes.drawing import SPLITS, EpisodeShape
from utils.errors import DataError
from utils.images.arrays import ArrayImages
from utils.images.folders import ImageClass, report_problems
from utils.registry import registered_dataset, user_code
from utils.words import printable


class RegisteredDataset(DatasetClasses):
    """A plugin's dataset, which has no folder."""

    packed: ArrayImages

    @property
    def source(self) -> dict[str, Any]:
        """JSON-able facts about where the images are from."""
        digest = hashlib.sha256("\n".join(self.packed.names).encode("utf-8", "surrogateescape"))
        digest.update(self.packed.images)
        facts = {"dataset_name": self.name, "made_by": "plugin", "content_sha256": digest.hexdigest()}
        return facts | ({"keeps_copies": True} if self.keeps_copies else {})


def make_registered_dataset(
    config: ExperimentConfig, name: str, shapes: Mapping[str, Sequence[EpisodeShape]], *, keep_copies: bool = False
) -> RegisteredDataset | None:
    """Let a plugin make its dataset `name`; None: no plugin has registered one of this name.

    Args:
        shapes: split -> shapes of the episodes that are to be drawn from it.
        keep_copies: an image that is in a class more than once stays so, as a run that has started with it needs.
    Raises:
        ConfigError: the plugin's function fails.
        DataError: one list of everything that is wrong with what it returns.
    """
    build = registered_dataset(name)
    if build is None:
        return None
    with user_code(f'dataset "{name}"'):
        made = build(config)
    problems = _problems(made, (config.image_channels, config.image_height, config.image_width))
    if problems:
        raise _refused(name, problems)
    arrays, names, sets = [], [], {}
    for split, classes in made.items():
        sets[split] = []
        for class_name, images in classes.items():
            arrays.append(_channels_first(images))
            ranks = range(len(names), len(names) + len(images))
            names += [f"{split}/{class_name}/{number}" for number in range(len(images))]
            sets[split].append(ImageClass(str(class_name), split, tuple(ranks), (f"{split}/{class_name}",)))
    packed = ArrayImages(np.ascontiguousarray(np.concatenate(arrays)) if arrays else np.empty((0, 1, 1, 1)), names)
    warn_of_shared_classes(sets)
    stays = STARTED_WITH_COPIES if keep_copies else ""
    sets, problems = settle_repeats(config, Path(name), packed, sets, stays)
    problems += _shortages(sets, shapes)
    if problems:
        raise _refused(name, problems)
    return RegisteredDataset(name, None, packed, sets, keep_copies)


def _refused(name: str, problems: Sequence[str]) -> DataError:
    return report_problems(Path(f'dataset "{name}", made by a plugin'), problems)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)


def _problems(made: Any, wanted: tuple[int, int, int]) -> list[str]:
    """Report everything that is not split -> class name -> images."""
    if not isinstance(made, Mapping):
        return ["it must be a dict, split -> class name -> images"]
    problems = [f"{split!r} is no split; give {', '.join(SPLITS)}" for split in made if split not in SPLITS]
    for split, classes in made.items():
        if not isinstance(classes, Mapping):
            problems.append(f'split "{split}" is {type(classes).__name__}, but must be a dict, class name -> images')
            continue
        problems += [
            f'split "{split}" has {count} classes whose names read "{printable(name)}"; rename one'
            for name, count in Counter(map(str, classes)).items()
            if count > 1
        ]
        for name, images in classes.items():
            place = f'class "{printable(name)}" ({split})'
            if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim not in (3, 4):
                kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
                problems.append(f"{place} is {kind}, but must be a uint8 array (n, H, W) or (n, H, W, C)")
            elif _channels_first(images).shape[1:] != wanted:
                seen = _channels_first(images).shape[1:]
                problems.append(
                    f"{place} has images of (C, H, W) {seen}, but image_channels, image_height and image_width say "
                    f"{wanted}"
                )
    return problems


def _shortages(sets: Mapping[str, Sequence[ImageClass]], shapes: Mapping[str, Sequence[EpisodeShape]]) -> list[str]:
    """Report every reason why no episodes can be drawn."""
    problems = [f'split "{split}" is missing' for split in shapes if split not in sets]
    for split, classes in sets.items():
        n_way = max((shape.n_way for shape in shapes.get(split, ())), default=0)
        largest = max((shape.n_images for shape in shapes.get(split, ())), default=0)
        if len(classes) < n_way:
            problems.append(f'split "{split}" has {len(classes)} classes, but episodes need {n_way}')
        problems += [
            f'class "{printable(c.name)}" ({split}) has {len(c.images)} images, but shots and queries need {largest}'
            for c in classes
            if len(c.images) < largest
        ]
    return problems
