"""Images that are in class folders already: pre-split, or to be split by the config."""

import logging
from collections.abc import Sequence
from pathlib import Path

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.images.folders import MEANT_SPLITS, folders_inside_classes, report_problems, scan
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass
from utils.prepare_dataset.workspace import find_folder
from utils.words import printable, some_of

log = logging.getLogger(__name__)


def find_pre_split(root: Path) -> FoundClasses | None:
    """Find folders train, val and test, by any of their names, with class folders inside; None: there are none."""
    parent = _split_parent(root, SPLITS)
    if parent is None:
        return None
    classes = [c for split, folder in _split_folders(parent).items() for c in _classes_below(folder, split)]
    return FoundClasses("pre-split image folders", classes)


def find_class_folders(root: Path) -> FoundClasses:
    """Find any tree of class folders; each folder with images is a class. Folders train, val and test are splits.

    Raises:
        DataError: images beside such folders.
    """
    parent, found = _split_parent(root, SPLITS), find_pre_split(root)
    if found is None:
        half = _split_parent(root, ("train", "test"))
        if half is not None:
            log.warning(
                "%s: has folders train and test but none for val, so their classes are put together; to keep the "
                "split, move some classes of train into a folder val",
                printable(half),
            )
        return FoundClasses("class folders", _classes_below(root, None))
    splits = [path.relative_to(root).as_posix() for path in _split_folders(parent).values()]
    outside = [f.path for f in scan(root)[0] if not any(f"{f.path}/".startswith(f"{split}/") for split in splits)]
    if outside:
        raise DataError(
            f"{printable(root)}: has {', '.join(map(printable, splits))} and images beside them, in "
            f"{some_of(outside)}; move these into a split, or out of the folder."
        )
    return found


def _split_parent(root: Path, splits: Sequence[str]) -> Path | None:
    """Find the uppermost folder in which there are folders of these splits."""
    return find_folder(root, lambda folder: set(splits) <= _split_folders(folder).keys())


def _split_folders(folder: Path) -> dict[str, Path]:
    try:
        names = sorted((path.name.lower(), path) for path in folder.iterdir() if path.is_dir())
        children = {MEANT_SPLITS.get(name, name): path for name, path in names}
        children |= {name: path for name, path in names if name in SPLITS}
    except OSError as error:
        raise DataError(f"{printable(folder)}: this folder cannot be read ({error.strerror}).") from error
    return {split: children[split] for split in SPLITS if split in children}


def _classes_below(folder: Path, split: str | None) -> list[SourceClass]:
    classes, image_folders = [], scan(folder)[0]
    for image_folder in image_folders:
        if not image_folder.path:
            raise DataError(
                f"{printable(folder)}: has images of its own, such as {printable(image_folder.files[0])}; every image "
                "must be in"
                " the folder of its class."
            )
        classes.append(
            SourceClass(
                split, image_folder.path, image_folder.files,
                lambda place, own=image_folder: folder / own.path_of(own.files[place]),
            )
        )  # fmt: skip
    nested = folders_inside_classes(image_folders, str)
    if nested:
        raise report_problems(folder, nested)
    return classes
