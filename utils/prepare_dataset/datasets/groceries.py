"""GroceryStoreDataset (Klasson et al. 2019, MIT licence): photographs of 81 products in a shop, with products split by
seed.
"""

import random
from pathlib import Path

import numpy as np

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.images.decoding import DECODING_ERRORS, PixelFormat, decode_image, original_form, resize_planes
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass
from utils.prepare_dataset.forms.class_folders import find_class_folders, find_pre_split
from utils.prepare_dataset.workspace import find_folder
from utils.words import printable

SIDE = 96
"""Pixels of the square that is kept: enough for the field's 84."""
FRACTIONS = (0.62, 0.15)
"""Of the products, for train and val: 50, 12 and 19 of 81."""


def find_groceries(source: Path, seed: int) -> FoundClasses:
    """Find the products of a clone: each one's photographs of all three parts, its authors' train, val and test, which
    share all products; products, sorted, are shuffled by Python's `random.Random(seed)` and cut by `FRACTIONS`.

    Raises:
        DataError: neither a clone nor what was made of one.
    """
    parent = find_folder(
        source, lambda folder: (folder / "classes.csv").is_file() and all((folder / part).is_dir() for part in SPLITS)
    )
    if parent is None:
        if found := find_pre_split(source):
            return found
        raise DataError(
            f"{printable(source)}: no folder with classes.csv, train, val and test; give a clone of "
            "https://github.com/marcusklasson/GroceryStoreDataset, its folder dataset or an archive of either."
        )
    photographs: dict[str, list[Path]] = {}
    for part in SPLITS:
        for c in find_class_folders(parent / part).classes:
            paths = [c.read(place) for place in range(len(c.files))]
            photographs.setdefault(c.name.rpartition("/")[2], []).extend(paths)
    names = sorted(photographs)
    random.Random(seed).shuffle(names)  # not `split_by_seed`: docs/results.md was measured on this split
    n_train, n_val = (round(fraction * len(names)) for fraction in FRACTIONS)
    splits = ["train"] * n_train + ["val"] * n_val + ["test"] * (len(names) - n_train - n_val)
    classes = [_squares(split, name, photographs[name]) for split, name in zip(splits, names, strict=True)]
    return FoundClasses(f"a clone of the dataset, products split by seed {seed}", classes)


def _squares(split: str, name: str, paths: list[Path]) -> SourceClass:
    files = [f"{place:03}.png" for place in range(len(paths))]
    return SourceClass(split, name, files, lambda place: central_square(paths[place]), is_drawn=True)


def central_square(path: Path) -> np.ndarray:
    """Return the largest square in the middle of a photograph as uint8 (SIDE, SIDE, 3).

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        width, height, _ = original_form(path)
        pixels = decode_image(path, PixelFormat(height, width, 3, "bicubic"))
    except DECODING_ERRORS as error:
        raise DataError(f"{printable(path)}: cannot be decoded ({error}); fetch it again.") from error
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[None, :, top : top + side, left : left + side]
    return resize_planes(np.ascontiguousarray(square), SIDE, SIDE, "bicubic")[0].transpose(1, 2, 0)
