"""From the data keys of a config to packed images, classes and splits, with one list of everything that is wrong.

Needs no torch.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import ExperimentConfig
from utils.episodes.drawing import SPLITS, EpisodeShape, fitting_fractions, split_classes
from utils.images.decoding import PixelFormat, original_form
from utils.images.duplicates import find_leaks, leak_text, without_leaks
from utils.images.folders import (
    ImageClass,
    ImageFolder,
    find_shortages,
    group_into_classes,
    report_problems,
    split_into_sets,
)
from utils.images.packed import PackedImages, load_or_pack
from utils.known_datasets import OMNIGLOT_SPLIT, folder_named, known_by_folder
from utils.paths import dataset_root
from utils.prepare_dataset import find_or_make_dataset
from utils.prepare_dataset.dataset_folders import preparation_facts
from utils.words import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetClasses:
    """A dataset as it is on disk: its images, and which of them belong to which class of which split."""

    name: str
    folder: Path
    packed: PackedImages
    sets: Mapping[str, Sequence[ImageClass]]
    """split -> its classes."""

    @property
    def classes(self) -> dict[str, dict[str, Sequence[int]]]:
        """split -> class name -> ranks of its images."""
        return {split: {c.name: c.images for c in members} for split, members in self.sets.items()}

    @property
    def n_classes(self) -> int:
        """In all splits together."""
        return sum(map(len, self.sets.values()))

    @property
    def source(self) -> dict[str, Any]:
        """JSON-able facts about where the images are from."""
        return {
            "dataset_name": self.name,
            "dataset_folder": str(self.folder),
            "packed_file": str(self.packed.data_file),
            "content_sha256": self.packed.content_sha256,
            "prepared": preparation_facts(self.folder),
        }


def find_classes(config: ExperimentConfig, shapes: Mapping[str, Sequence[EpisodeShape]]) -> DatasetClasses:
    """Find, unpack or make the dataset of a config, pack its images and check that episodes can be drawn from it.

    Args:
        config: its data keys.
        shapes: split -> shapes of the episodes that are to be drawn from it; other splits may be empty.
    Raises:
        ConfigError: keys that cannot work together.
        DataError: dataset missing, or one list of all its problems.
        StorageError: no space or no permission for the packed file.
    """
    folder, packed, folders, problems = _pack(config)
    classes, label_problems = group_into_classes(
        folders, folder, config.indexes_of_folders_indicating_class, config.sets_are_pre_split, config.labels_as_int
    )
    sets = split_into_sets(
        classes, _fractions(config, len(classes)), 0 if config.class_split_seed is None else config.class_split_seed
    )
    _warn_of_shared_classes(sets)
    if not config.sets_are_pre_split:
        _warn_of_a_split_unused(folder, folders)
    problems += label_problems + _count_problems(config, folder, sets)
    if packed is not None:
        sets, leaks = _leave_leaks_out(config, folder, packed, sets)
        problems += leaks
    problems += find_shortages(sets, folder, shapes, config.sets_are_pre_split)
    if problems:
        raise report_problems(folder, problems, _advice(config, packed))
    return DatasetClasses(config.dataset_name, folder, packed, sets)


def _fractions(config: ExperimentConfig, n_classes: int) -> Sequence[float]:
    """The fractions for train and val; of `auto`, Omniglot's where they leave both the ways of the training.

    They come of no key that a started run may change, and are what runs have started with before there was `auto`:
    otherwise a resume or a test would deal the classes out anew.
    """
    if config.train_val_test_split != "auto":
        return config.train_val_test_split
    ways, of_val = max(shape.n_way for shape in config.training_shapes), config.validation_shape.n_way
    found = split_classes(range(n_classes), OMNIGLOT_SPLIT, 0)
    fits = len(found["train"]) >= ways and len(found["val"]) >= of_val
    fractions = OMNIGLOT_SPLIT if fits else fitting_fractions(n_classes, (ways, of_val, ways)) or OMNIGLOT_SPLIT
    if not config.sets_are_pre_split:
        logger.info("train_val_test_split auto: %s of %d classes", " ".join(map(str, fractions)), n_classes)
    return fractions


def _leave_leaks_out(
    config: ExperimentConfig, folder: Path, packed: PackedImages, sets: Mapping[str, Sequence[ImageClass]]
) -> tuple[Mapping[str, Sequence[ImageClass]], list[str]]:
    """Images in two splits: problems, or left in the last of them alone with `on_bad_image` skip."""
    leaks, again = find_leaks(sets, packed.identical)
    if again:
        logger.info("images that are there more than once within a split: %d", again)
    if leaks and config.on_bad_image == "skip":
        sets, n_left_out = without_leaks(sets, leaks)
        logger.warning("on_bad_image skip: images left out that are in a later split, too: %d", n_left_out)
        return sets, []
    return sets, [leak_text(folder, [packed.image_path(rank) for _, rank in places], places) for places in leaks]


def _count_problems(config: ExperimentConfig, folder: Path, sets: Mapping[str, Sequence[ImageClass]]) -> list[str]:
    """Another number of classes than a dataset of the field has, unless it was prepared so, or `on_bad_image` says
    skip.
    """
    known = known_by_folder(config.dataset_name)
    if known.counts is None or (preparation_facts(folder) or {}).get("accepted_deviations"):
        return []
    found = {split: len(classes) for split, classes in sets.items()}
    expected = dict(known.counts.classes)
    if not (config.sets_are_pre_split and expected.keys() == found.keys()):
        found, expected = {"": sum(found.values())}, {"": sum(expected.values())}
    problems = [
        f"{f'split {split}: ' if split else ''}{found[split]} classes found, {expected[split]} expected. Run: python "
        "-m "
        f"utils.prepare_dataset {known.name}; or give data of your own another dataset_name; or take it as it is: "
        "--on_bad_image skip"
        for split in expected
        if found[split] != expected[split]
    ]
    if problems and config.on_bad_image == "skip":
        logger.warning(
            "on_bad_image skip: %s: %s", printable(folder), "; ".join(problem.split(". ")[0] for problem in problems)
        )
        return []
    return problems


def packed_dataset(config: ExperimentConfig) -> DatasetClasses:
    """The dataset of a config without a look at its classes. Raises as `find_classes`."""
    folder, packed, _, problems = _pack(config)
    if problems:
        raise report_problems(folder, problems, _advice(config, packed))
    return DatasetClasses(config.dataset_name, folder, packed, {})


def _advice(config: ExperimentConfig, packed: PackedImages | None) -> str:
    """What else could be done about images that cannot be decoded."""
    can_skip = packed is None and config.on_bad_image == "stop"
    return "Repair or remove files that cannot be read, or leave them out with --on_bad_image skip" if can_skip else ""


def _pack(config: ExperimentConfig) -> tuple[Path, PackedImages | None, list[ImageFolder], list[str]]:
    place = config.dataset_path or config.dataset_name
    # Under its short name, too, a known dataset is in its one folder, unless there is a folder of that name.
    folder = dataset_root() / (place if (dataset_root() / place).exists() else folder_named(place))
    find_or_make_dataset(config.dataset_name, folder, dataset_root())
    packed, folders, problems = load_or_pack(
        folder,
        PixelFormat(config.image_height, config.image_width, config.image_channels, config.resize_filter),
        num_workers=config.num_dataprovider_workers,
        rebuild=config.reset_stored_filepaths,
        skip_bad=config.on_bad_image == "skip",
    )
    return folder, packed, folders, problems


def other_dataset(config: ExperimentConfig, name: str) -> ExperimentConfig:
    """The config with the data keys of another dataset, of which the test split is wanted at the size of this one's
    images.

    Folders named train, val or test say the split. Where there are none, Omniglot has its published split, and of
    any other dataset all classes are test classes, since none was trained on. Folders above an image, two at most,
    are its class.
    """
    folder = dataset_root() / name
    find_or_make_dataset(name, folder, dataset_root())
    return config.model_copy(
        update={
            "dataset_name": name,
            "dataset_path": name,
            "sets_are_pre_split": any(entry.is_dir() and entry.name.lower() in SPLITS for entry in folder.iterdir()),
            "train_val_test_split": known_by_folder(name).own_treatment.get("train_val_test_split", (0.0, 0.0, 1.0)),
            "class_split_seed": None,
            "indexes_of_folders_indicating_class": (-3, -2),
            "labels_as_int": False,
            "resize_filter": known_by_folder(name).treatment["resize_filter"],
        }
    )


def describe_images(config: ExperimentConfig, dataset: DatasetClasses) -> str:
    """What was done to the images, told from the first one of the test split."""
    first = dataset.packed.image_path(dataset.sets["test"][0].images[0])
    width, height, colour = original_form(dataset.folder / first)
    wanted = "grey" if config.image_channels == 1 else "colour"
    steps = []
    if (width, height) != (config.image_width, config.image_height):
        steps.append(
            f"resized from {width}x{height} to {config.image_width}x{config.image_height} ({config.resize_filter})"
        )
    if colour != wanted:
        steps.append(f"{colour} made {wanted}")
    return ", ".join(steps) or "as they are"


def _warn_of_a_split_unused(dataset_folder: Path, folders: Sequence[ImageFolder]) -> None:
    """Log that there are folders train and test whose classes are dealt out anew: a published split would be lost
    unnoticed.
    """
    uppermost = {folder.path.split("/")[0].lower() for folder in folders}
    if {"train", "test"} <= uppermost:
        named = " and ".join(split for split in SPLITS if split in uppermost)
        logger.warning(
            '%s: has folders %s, but "sets_are_pre_split" is false, so their classes are put together and split anew. '
            "To keep the folders' split: --sets_are_pre_split true",
            printable(dataset_folder),
            named,
        )


def _warn_of_shared_classes(sets: Mapping[str, Sequence[ImageClass]]) -> None:
    """Log class names that are in two splits: few-shot accuracy is meant for classes never seen in training."""
    for one, other in itertools.combinations(sets, 2):
        shared = sorted({c.name for c in sets[one]} & {c.name for c in sets[other]})
        if shared:
            logger.warning("%d class names are in %s and in %s, such as %s", len(shared), one, other, shared[0])
