"""From the data keys of a config to packed images, classes and splits, with one list of everything that is wrong.

Needs no torch.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import ExperimentConfig
from utils.episodes.drawing import SPLITS, EpisodeShape, fitting_fractions, split_classes
from utils.errors import ConfigError
from utils.images.arrays import ArrayImages
from utils.images.decoding import PixelFormat, original_form
from utils.images.duplicates import find_repeats, leak_text, leaked, one_colour_text, without_images
from utils.images.folders import (
    MEANT_SPLITS,
    MOST_NAMED,
    ImageClass,
    ImageFolder,
    find_shortages,
    folders_inside_classes,
    group_into_classes,
    report_problems,
    split_into_sets,
)
from utils.images.packed import PackedImages, load_or_pack
from utils.known_datasets import KNOWN_DATASETS, OMNIGLOT_SPLIT, folder_named, known_by_folder
from utils.paths import command, dataset_root
from utils.prepare_dataset import find_or_make_dataset
from utils.prepare_dataset.dataset_folders import preparation_facts
from utils.words import printable, some_of

logger = logging.getLogger(__name__)

STARTED_WITH_COPIES = "this run has started with them"
MOST_OF_ONE_COLOUR = 0.1
"""Part of a dataset from which on images of one colour are a problem: scans have some blank sheets, not every tenth."""


@dataclass(frozen=True)
class DatasetClasses:
    """A dataset: its images, and which of them belong to which class of which split."""

    name: str
    folder: Path | None
    """Where it is on disk; None: a plugin's."""
    packed: PackedImages | ArrayImages
    sets: Mapping[str, Sequence[ImageClass]]
    """split -> its classes."""
    keeps_copies: bool = False
    """Images stay that are in their class more than once, as the run has started with them."""
    targets: np.ndarray | None = None
    """float64 (examples, D): the labels of a regression; None: the classes are."""

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
            **({"keeps_copies": True} if self.keeps_copies else {}),
        }


def find_classes(
    config: ExperimentConfig, shapes: Mapping[str, Sequence[EpisodeShape]], *, keep_copies: bool = False
) -> DatasetClasses:
    """Find, unpack or make the dataset of a config, pack its images and check that episodes can be drawn from it.

    Args:
        config: its data keys.
        shapes: split -> shapes of the episodes that are to be drawn from it; other splits may be empty.
        keep_copies: an image that is in a class more than once stays so, as a run that has started with it needs.
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
    warn_of_shared_classes(sets)
    if not config.sets_are_pre_split:
        _warn_of_a_split_unused(folder, folders)
    class_of = {path: (c.split, c.name) for c in classes for path in c.folders}
    nested = folders_inside_classes(folders, class_of.get)
    problems += label_problems + _unless_wanted(config, folder, nested, "Or have them as classes of their own")
    problems += _count_problems(config, folder, sets)
    if packed is not None:
        problems += _one_colour_problems(config, folder, packed, classes)
        field = "a dataset of the field stays as it is" if _is_of_the_field(config, folder) else ""
        stays = STARTED_WITH_COPIES if keep_copies else field
        sets, leaks = settle_repeats(config, folder, packed, sets, stays)
        problems += leaks
        _note_alike(folder, packed, sets)
    problems += find_shortages(sets, folder, shapes, config.sets_are_pre_split)
    if problems:
        raise report_problems(folder, problems, _advice(config, packed))
    return DatasetClasses(config.dataset_name, folder, packed, sets, keep_copies)


def _fractions(config: ExperimentConfig, n_classes: int) -> Sequence[float]:
    """Return the fractions for train and val; of `auto`, Omniglot's where they leave both the ways of the training.

    They come of no key that a started run may change, and are what runs have started with before there was `auto`:
    otherwise a resume or a test would deal the classes out anew.
    """
    if config.train_val_test_split != "auto":
        return config.train_val_test_split
    ways, of_val = max(shape.n_way for shape in config.training_shapes), config.validation_shape.n_way
    found = split_classes(range(n_classes), OMNIGLOT_SPLIT, 0)
    fits = len(found["train"]) >= ways and len(found["val"]) >= of_val
    fractions = OMNIGLOT_SPLIT if fits else fitting_fractions(n_classes, (ways, of_val, ways))
    if fractions is None:  # too few classes for any: the error says so
        return OMNIGLOT_SPLIT
    if not config.sets_are_pre_split:
        sizes = [f"{len(names)} {split}" for split, names in split_classes(range(n_classes), fractions, 0).items()]
        given = " ".join(map(str, fractions))
        logger.info("train_val_test_split auto: %s of %d classes (fractions %s)", ", ".join(sizes), n_classes, given)
    return fractions


def _unless_wanted(config: ExperimentConfig, folder: Path, facts: Sequence[str], advice: str) -> list[str]:
    """Return facts about a dataset as problems, unless `on_bad_image` skip takes it as it is."""
    if config.on_bad_image != "skip":
        return [f"{fact}. {advice}: --on_bad_image skip" for fact in facts]
    for fact in facts:
        logger.warning("on_bad_image skip: %s: %s", printable(folder), fact)
    return []


def _is_of_the_field(config: ExperimentConfig, folder: Path) -> bool:
    """Return whether others have the very same images: a known dataset, or one that was drawn from it."""
    return bool(known_by_folder(config.dataset_name).name) or (
        (preparation_facts(folder) or {}).get("dataset") in KNOWN_DATASETS
    )


def settle_repeats(
    config: ExperimentConfig,
    folder: Path,
    packed: PackedImages | ArrayImages,
    sets: Mapping[str, Sequence[ImageClass]],
    stays: str,
) -> tuple[Mapping[str, Sequence[ImageClass]], list[str]]:
    """Decide which of identical images stay.

    In two splits: problems, or left in the last of them alone with `on_bad_image` skip. In one class: the first stays
    alone, as two would be support and query of one task, which is then no test of anything; but known datasets are
    what they are. In two classes: a warning, as one label is wrong, but which one only people know.

    Args:
        folder: of the dataset, or the name of one that has none.
        stays: why images that are in a class more than once are to stay; "": they are not.
    """
    leaks, _, _ = find_repeats(sets, packed.identical)
    if leaks and config.on_bad_image == "skip":
        left_out = leaked(leaks)
        sets, leaks = without_images(sets, left_out), []
        logger.warning("on_bad_image skip: images left out that are in a later split, too: %d", len(left_out))
    _, in_one_class, in_classes = find_repeats(sets, packed.identical)
    copies = {rank for ranks in in_one_class for rank in ranks[1:]}
    if copies and stays:
        logger.info("images that are in their class more than once: %d, which stay: %s", len(copies), stays)
    elif copies:
        sets = without_images(sets, copies)
        logger.warning(
            "%s: images left out that are in their class already, as the same file: %d: %s",
            printable(folder), len(copies), _named(packed, in_one_class, " = "),
        )  # fmt: skip
    if in_classes:
        logger.warning(
            "%s: images that are in two classes, of which one must be wrong: %d: %s",
            printable(folder), len(in_classes), _named(packed, in_classes, " = "),
        )  # fmt: skip
    return sets, [leak_text(folder, [packed.image_path(rank) for _, rank in places], places) for places in leaks]


def _note_alike(folder: Path, packed: PackedImages, sets: Mapping[str, Sequence[ImageClass]]) -> None:
    """Log how many images are equal in pixels, not in files, across splits or in one class: perhaps copies in another
    format, perhaps drawings that differ only at a larger size. All of them stay.
    """
    leaks, in_one_class, _ = find_repeats(sets, packed.alike)
    groups = [*([rank for _, rank in places] for places in leaks), *in_one_class]
    if groups:
        logger.info(
            "note: %s: images with equal pixels, though not equal files: %d in two splits, %d in one class twice, such "
            "as %s. They stay; at this size different pictures may look alike.",
            printable(folder), len(leaks), len(in_one_class),
            " = ".join(printable(packed.image_path(rank)) for rank in (groups[0][0], groups[0][-1])),
        )  # fmt: skip


def _named(packed: PackedImages | ArrayImages, groups: Sequence[Sequence[int]], between: str) -> str:
    """Return the paths of a few groups of images."""
    return some_of([between.join(packed.image_path(rank) for rank in ranks) for ranks in groups], MOST_NAMED)


def _one_colour_problems(
    config: ExperimentConfig, folder: Path, packed: PackedImages, classes: Sequence[ImageClass]
) -> list[str]:
    """Report images of one colour: a warning, and a problem where they are a whole class or many.

    No collection of pictures has that: what the files show has then been lost in the decoding.
    """
    if not packed.one_colour:
        return []
    blank, n_images = set(packed.one_colour), packed.shape[0]
    whole = [c.name for c in classes if c.images and blank.issuperset(c.images)]
    fact = one_colour_text(folder, [packed.image_path(rank) for rank in packed.one_colour], n_images)
    fact += f"; all images of {len(whole)} classes: {some_of(whole)}" if whole else ""
    if whole or len(blank) >= max(2, MOST_OF_ONE_COLOUR * n_images):
        return _unless_wanted(
            config, folder, [fact], "Save them with 8 bits and without transparency; or take them as they are"
        )
    logger.warning("%s: %s", printable(folder), fact)
    return []


def _count_problems(config: ExperimentConfig, folder: Path, sets: Mapping[str, Sequence[ImageClass]]) -> list[str]:
    """Report other numbers of classes, or of their images, than a dataset of the field has, unless prepared so."""
    known = known_by_folder(config.dataset_name)
    if known.counts is None or (preparation_facts(folder) or {}).get("accepted_deviations"):
        return []
    found = {split: len(classes) for split, classes in sets.items()}
    expected = dict(known.counts.classes)
    if not (config.sets_are_pre_split and expected.keys() == found.keys()):
        found, expected = {"": sum(found.values())}, {"": sum(expected.values())}
    facts = [
        f"{f'split {split}: ' if split else ''}{found[split]} classes found, {expected[split]} expected"
        for split in expected
        if found[split] != expected[split]
    ]
    n_images = known.counts.images_per_class
    odd = sorted(
        f"{c.name} ({len(c.images)}: {', '.join(c.folders)})"
        for classes in sets.values()
        for c in classes
        if n_images not in (None, len(c.images))
    )
    if odd:
        facts.append(f"{len(odd)} classes have not the {n_images} images expected: {some_of(odd, MOST_NAMED)}")
    advice = f"Run: {command('prepare_dataset')} {known.name}; or give data of your own another dataset_name; or take"
    return _unless_wanted(config, folder, facts, f"{advice} it as it is")


def packed_dataset(config: ExperimentConfig) -> DatasetClasses:
    """Return the dataset of a config without reading its classes. Raises as `find_classes`."""
    folder, packed, _, problems = _pack(config)
    problems += _one_colour_problems(config, folder, packed, ()) if packed is not None else []
    if problems:
        raise report_problems(folder, problems, _advice(config, packed))
    return DatasetClasses(config.dataset_name, folder, packed, {})


def _advice(config: ExperimentConfig, packed: PackedImages | None) -> str:
    """Return what else could be done about images that cannot be decoded."""
    can_skip = packed is None and config.on_bad_image == "stop"
    return "Repair or remove files that cannot be read, or leave them out with --on_bad_image skip" if can_skip else ""


def pixel_format_of(config: ExperimentConfig) -> PixelFormat:
    """Return how a config stores images."""
    return PixelFormat(config.image_height, config.image_width, config.image_channels, config.resize_filter)


def _pack(config: ExperimentConfig) -> tuple[Path, PackedImages | None, list[ImageFolder], list[str]]:
    if config.inputs is not None:
        raise ConfigError(
            f'dataset "{config.dataset_name}" is a folder of images, but "input_shape" says that examples are none. '
            "Leave it out, or give the file that registers a dataset of this name: --plugin FILE.py"
        )
    place = config.dataset_path or config.dataset_name
    # Under its short name, too, a known dataset is in its one folder, unless there is a folder of that name.
    folder = dataset_root() / (place if (dataset_root() / place).exists() else folder_named(place))
    find_or_make_dataset(config.dataset_name, folder, dataset_root())
    packed, folders, problems = load_or_pack(
        folder,
        pixel_format_of(config),
        num_workers=config.num_dataprovider_workers,
        rebuild=config.reset_stored_filepaths,
        skip_bad=config.on_bad_image == "skip",
    )
    return folder, packed, folders, problems


def other_dataset(config: ExperimentConfig, name: str) -> ExperimentConfig:
    """Return the config with the data keys of another dataset, of which the test split is wanted at the size of this
    one's images.

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
            "sets_are_pre_split": _says_splits(folder),
            "train_val_test_split": known_by_folder(name).own_treatment.get("train_val_test_split", (0.0, 0.0, 1.0)),
            "class_split_seed": None,
            "indexes_of_folders_indicating_class": (-3, -2),
            "labels_as_int": False,
            "resize_filter": known_by_folder(name).treatment["resize_filter"],
        }
    )


def _says_splits(folder: Path) -> bool:
    """Return whether folders in this one, or in the only folder in it, are named train, val or test."""
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    if len(names) == 1 and names[0].lower() not in SPLITS:
        return _says_splits(folder / names[0])
    return any(name.lower() in SPLITS for name in names)


def describe_images(config: ExperimentConfig, dataset: DatasetClasses) -> str:
    """Return what was done to the images, by the first one of the test split."""
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
    """Log that there are folders train and test, at whatever depth, whose classes are dealt out anew: a published split
    would be lost unnoticed.
    """
    inside: dict[str, dict[str, str]] = defaultdict(dict)  # folder -> split -> name of its folder
    for folder in folders:
        parts = folder.path.split("/")
        for depth, part in enumerate(parts):
            inside["/".join(parts[:depth])][MEANT_SPLITS.get(part.lower(), part.lower())] = part.lower()
    for path, names in inside.items():
        if {"train", "test"} <= names.keys():
            logger.warning(
                '%s: has folders %s, but "sets_are_pre_split" is false, so their classes are put together and split '
                "anew. To keep the folders' split: --sets_are_pre_split true",
                printable(dataset_folder / path), " and ".join(names[split] for split in SPLITS if split in names),
            )  # fmt: skip
            return


def warn_of_shared_classes(sets: Mapping[str, Sequence[ImageClass]]) -> None:
    """Log class names that are in two splits: few-shot accuracy is meant for classes never seen in training."""
    for one, other in itertools.combinations(sets, 2):
        shared = sorted({c.name for c in sets[one]} & {c.name for c in sets[other]})
        if shared:
            logger.warning("%d class names are in %s and in %s, such as %s", len(shared), one, other, shared[0])
