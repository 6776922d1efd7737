"""Caltech-UCSD Birds 200-2011: from its official archive with classes split by seed, or with split CSVs."""

from dataclasses import replace
from pathlib import Path

from utils.errors import DataError
from utils.prepare_dataset.class_sources import FoundClasses, split_by_seed
from utils.prepare_dataset.forms.class_folders import find_class_folders, find_pre_split
from utils.prepare_dataset.forms.csv_splits import find_csv
from utils.prepare_dataset.workspace import Workspace, find_folder
from utils.words import printable

FRACTIONS = (0.5, 0.25)
"""Of the classes, for train and val: 100, 50 and 50 of 200, as most papers have it."""
ARCHIVE = "CUB_200_2011.tgz"


def find_cub(source: Path, splits: Path | None, seed: int, workspace: Workspace) -> FoundClasses:
    """Find the classes of the birds: of split CSVs where there are any, else of CUB_200_2011/images, split by seed.

    Raises:
        DataError: none of these is there.
    """
    archive = find_folder(source, lambda folder: (folder / ARCHIVE).is_file())
    if archive is not None:
        source = workspace.unpack(archive / ARCHIVE)
    found = find_csv(source, splits) or find_pre_split(source)
    if found is not None:
        return found
    parent = find_folder(source, lambda folder: (folder / "images").is_dir() and (folder / "classes.txt").is_file())
    if parent is None:
        raise DataError(
            f"{printable(source)}: neither {ARCHIVE} nor its folder CUB_200_2011 (images, classes.txt), nor split "
            "CSVs with images."
        )
    by_name = {c.name: c for c in find_class_folders(parent / "images").classes}
    splits = split_by_seed(sorted(by_name), seed, FRACTIONS, purpose=0)
    classes = [replace(by_name[name], split=split) for name, split in splits.items()]
    return FoundClasses(f"Caltech's archive, classes split by seed {seed}", classes)
