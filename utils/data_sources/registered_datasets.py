"""Datasets that a plugin makes as arrays (`utils.registry.register_dataset`), of images or of anything else, checked as
strictly as folders of images.
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
from utils.data_sources.image_memory import LARGEST_READ_INTO_MEMORY
from utils.episodes.drawing import SPLITS, EpisodeShape
from utils.episodes.inputs import as_array, fits_float32, refuse_masked
from utils.errors import DataError
from utils.images.arrays import ArrayImages, mapped
from utils.images.folders import ImageClass, report_problems
from utils.images.packed import writable_folder
from utils.paths import dataset_root
from utils.registry import registered_dataset, user_code
from utils.words import printable


class RegisteredDataset(DatasetClasses):
    """A plugin's dataset, which has no folder."""

    packed: ArrayImages

    @property
    def source(self) -> dict[str, Any]:
        """JSON-able facts about where the images are from."""
        digest = hashlib.sha256("\n".join(self.packed.names).encode("utf-8", "surrogateescape"))
        if self.packed.images.dtype != np.uint8:
            digest.update(f"{self.packed.images.dtype} {self.packed.images.shape}".encode())
        for array in (self.packed.images, self.targets):
            if array is not None:
                digest.update(array)
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
    read, problems = _read(made, config)
    if problems:
        raise _refused(name, problems)
    arrays, targets, names, sets = [], [], [], {}
    for split, classes in read.items():
        sets[split] = []
        for class_name, (examples, of_class) in classes.items():
            arrays.append(examples)
            targets.append(of_class)
            ranks = range(len(names), len(names) + len(examples))
            names += [f"{split}/{class_name}/{number}" for number in range(len(examples))]
            sets[split].append(ImageClass(class_name, split, tuple(ranks), (f"{split}/{class_name}",)))
    packed = ArrayImages(_together(config, name, arrays), names)
    warn_of_shared_classes(sets)
    if not config.is_regression:  # whose points may share a place
        sets, problems = settle_repeats(config, Path(name), packed, sets, STARTED_WITH_COPIES if keep_copies else "")
    problems += _shortages(sets, shapes)
    if problems:
        raise _refused(name, problems)
    of_all = np.concatenate(targets) if config.is_regression else None
    return RegisteredDataset(name, None, packed, sets, keep_copies, of_all)


def _refused(name: str, problems: Sequence[str]) -> DataError:
    return report_problems(Path(f'dataset "{name}", made by a plugin'), problems)


def _together(config: ExperimentConfig, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return all examples as one array: in memory, or in a file beside the packed images where they are large."""
    if not arrays:
        return np.empty((0, *config.example_shape))
    n_bytes = sum(array.nbytes for array in arrays)
    if not n_bytes or (config.load_into_memory and n_bytes <= LARGEST_READ_INTO_MEMORY):
        return np.ascontiguousarray(np.concatenate(arrays))
    sides = "x".join(map(str, config.example_shape))
    return mapped(arrays, writable_folder(dataset_root() / name) / f"{name}.plugin.{sides}")


Examples = tuple[np.ndarray, np.ndarray | None]
"""Of a class: its examples (n, ...) and, in a regression, their targets (n, D)."""


def _examples(given: Any, config: ExperimentConfig) -> Examples:
    """Read what a plugin gives for a class.

    Raises:
        ValueError: it is not what the config says.
    """
    targets, D = None, config.num_regression_outputs
    if config.is_regression:
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"is a {type(given).__name__}, but a regression needs a pair (examples, targets)")
        targets = as_array(given[1], "has targets with").astype(np.float64)
        targets, given = targets[:, None] if targets.ndim == 1 else targets, given[0]
        if targets.ndim != 2 or targets.shape[1] != D or not fits_float32(targets):
            raise ValueError(
                f"has targets {targets.shape}, but must have finite numbers (n, {D}) (num_regression_outputs), "
                "none too large for float32"
            )
    examples = _images(given, config.example_shape) if config.inputs is None else config.inputs.joined(given)
    if targets is not None and len(targets) != len(examples):
        raise ValueError(f"has {len(examples)} examples, but {len(targets)} targets")
    return examples, targets


def _images(images: Any, wanted: tuple[int, ...]) -> np.ndarray:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim not in (3, 4):
        kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(
            f"is {kind}, but must be a uint8 array (n, H, W) or (n, H, W, C); for what is no image set input_shape"
        )
    refuse_masked(images, "holds")
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    if images.shape[1:] != wanted:
        raise ValueError(
            f"has images of (C, H, W) {images.shape[1:]}, but image_channels, image_height and image_width say {wanted}"
        )
    return images


def _read(made: Any, config: ExperimentConfig) -> tuple[dict[str, dict[str, Examples]], list[str]]:
    """Return split -> class name -> examples, and everything that is none."""
    if not isinstance(made, Mapping):
        return {}, ["it must be a dict, split -> class name -> images"]
    problems = [f"{split!r} is no split; give {', '.join(SPLITS)}" for split in made if split not in SPLITS]
    read: dict[str, dict[str, Examples]] = {}
    kinds: dict[str, str] = {}
    for split, classes in made.items():
        if not isinstance(classes, Mapping):
            problems.append(f'split "{split}" is {type(classes).__name__}, but must be a dict, class name -> images')
            continue
        problems += [
            f'split "{split}" has {count} classes whose names read "{printable(name)}"; rename one'
            for name, count in Counter(map(str, classes)).items()
            if count > 1
        ]
        read[split] = {}
        for name, given in classes.items():
            place = f'class "{printable(name)}" ({split})'
            try:
                read[split][str(name)] = examples, _ = _examples(given, config)
                kinds.setdefault(str(examples.dtype), place)
            except (ValueError, TypeError) as error:
                problems.append(f"{place} {error}")
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} in {place}" for kind, place in kinds.items())
        problems.append(f"classes have arrays of {len(kinds)} types: {listed}; bring them to one with .astype")
    return read, problems


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
