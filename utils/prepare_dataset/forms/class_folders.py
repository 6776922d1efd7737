"""Images that are in class folders already: pre-split, or to be split by the config."""

from pathlib import Path

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.images.folders import folders_inside_classes, report_problems, scan
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass
from utils.prepare_dataset.workspace import find_folder
from utils.words import printable


def find_pre_split(root: Path) -> FoundClasses | None:
    """Find folders train, val and test (in any letter case) with class folders inside; None where there are none."""
    parent = find_folder(root, lambda folder: set(_split_folders(folder)) == set(SPLITS))
    if parent is None:
        return None
    classes = [c for split, folder in _split_folders(parent).items() for c in _classes_below(folder, split)]
    return FoundClasses("pre-split image folders", classes)


def find_class_folders(root: Path) -> FoundClasses:
    """Find any tree of class folders; each folder with images is a class. Folders train, val and test are splits."""
    if set(_split_folders(root)) == set(SPLITS):
        return find_pre_split(root)
    return FoundClasses("class folders", _classes_below(root, None))


def _split_folders(folder: Path) -> dict[str, Path]:
    try:
        children = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
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
