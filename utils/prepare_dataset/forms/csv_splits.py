"""An images folder plus train.csv, val.csv and test.csv: one row "file,label" per image, with or without a header.

mini-ImageNet's files of Ravi and Larochelle (2017) have this form, and CUB and iNaturalist circulate in it. Where
mini-ImageNet's images are not there, they can be taken from ImageNet itself: see `_imagenet_finder`.
"""

import csv
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.images.folders import IMAGE_EXTENSIONS, report_problems
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass, safe_name
from utils.prepare_dataset.workspace import find_folder, find_split_files
from utils.words import is_whole_number, printable

CSV_FILES = {split: (f"{split}.csv",) for split in SPLITS}
_HEADER = {"filename", "file", "image", "image_name", "path", "label", "class", "class_name"}

Rows = dict[str, list[tuple[str, str]]]
"""Split -> (file, label) of each row."""
Locate = Callable[[str, str], Path | None]
"""(file, label) -> where the image is, or None."""


def find_csv(root: Path, splits: Path | None = None) -> FoundClasses | None:
    """Find the classes of split CSVs, with images from a folder or an ImageNet tree; None without such CSVs.

    Args:
        root: where the images are, and the CSVs unless `splits` says where those are.
    Raises:
        DataError: rows that cannot be read, images that are listed twice or are not there.
    """
    files = find_split_files(splits or root, CSV_FILES)
    if files is None:
        return None
    rows = {split: _read_rows(path) for split, path in files.items()}
    folder = next(iter(files.values())).parent
    places = [place for base in (folder, folder.parent, root) for place in (base / "images", base)]
    locate, form = _image_finder(rows, places), "CSV files with an images folder"
    first = next(row for split in SPLITS for row in rows[split])
    if locate(*first) is None:
        locate, form = _imagenet_finder(root, first[1]), "CSV files with an ImageNet tree"
        if locate is None:
            searched = ", ".join(dict.fromkeys(printable(place) for place in places))
            raise DataError(
                f"{printable(files['train'])}: its image {printable(first[0])} is not in {searched}, and there is no "
                "folder"
                f" {printable(first[1])} of an ImageNet tree either. Put the images into "
                f"{printable(folder / 'images')}."
            )
    return FoundClasses(form, _classes(folder, rows, locate))


def _read_rows(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        raise DataError(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if rows and set(map(str.lower, rows[0][:2])) & _HEADER:
        del rows[0]
    short = next((row for row in rows if len(row) < 2), None)
    if not rows or short is not None:
        raise DataError(
            f'{printable(path)}: every row must be "file,label"'
            + (f", but one is {short}." if short else "; there is none.")
        )
    for row in rows:
        parts = PurePosixPath(row[0]).parts
        if ".." in parts or row[0].startswith("/"):
            raise DataError(f"{printable(path)}: {printable(row[0])} leads out of the images folder.")
    return [(row[0], row[1]) for row in rows]


def _image_finder(rows: Rows, places: list[Path]) -> Locate:
    """Search the first of the places that has any of the images: as the row says, or in the folder of its label."""

    def at(place: Path, file: str, label: str) -> Path | None:
        candidates = [place / file]
        if _is_folder_name(label):
            candidates.append(place / label / PurePosixPath(file).name)
        return next((path for path in candidates if path.is_file()), None)

    firsts = [rows[split][0] for split in SPLITS]
    place = next((place for place in places if any(at(place, *row) for row in firsts)), places[0])
    return lambda file, label: at(place, file, label)


def _is_folder_name(label: str) -> bool:
    """Return whether a label can be the name of a folder beside others; "/" and ".." would lead out of it."""
    return label not in ("", ".", "..") and "/" not in label


def _classes(folder: Path, rows: Rows, locate: Locate) -> list[SourceClass]:
    problems: list[str] = []
    seen: dict[str, str] = {}
    images: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for split in SPLITS:
        for file, label in rows[split]:
            if file in seen:
                problems.append(f"{split}.csv: image {printable(file)} is in {seen[file]}.csv already")
                continue
            seen[file] = split
            path = locate(file, label)
            if not label:
                problems.append(f"{split}.csv: image {printable(file)} has no label")
            elif path is None:
                problems.append(f"{split}.csv: image {printable(file)} of class {printable(label)} is not there")
            else:
                images.setdefault((split, label), []).append((file, path))
    if problems:
        raise report_problems(folder, problems)
    labels = _told_labels(images)
    return [_class(split, labels[split, label], found) for (split, label), found in images.items()]


def _class(split: str, label: str, found: list[tuple[str, Path]]) -> SourceClass:
    files = []
    for file, path in found:
        stem = PurePosixPath(file)
        stem = stem.name if stem.suffix.lower() not in IMAGE_EXTENSIONS else stem.stem
        files.append(safe_name(stem) + path.suffix.lower())
    return SourceClass(split, safe_name(label), files, [path for _, path in found].__getitem__, label)


def _told_labels(images: dict[tuple[str, str], list[tuple[str, Path]]]) -> dict[tuple[str, str], str]:
    """Return labels as they are, but for numbers, which splits may give anew.

    These become the folder of the class's images, if each class has one of its own, else they get the split.
    """
    parents = {key: {PurePosixPath(file).parent.name for file, _ in found} for key, found in images.items()}
    single = [(key[0], *names) for key, names in parents.items() if len(names) == 1]
    each_its_own = len(set(single)) == len(single) and (len(images) == 1 or len({name for _, name in single}) > 1)
    told = {}
    for (split, label), names in parents.items():
        from_folder = each_its_own and len(names) == 1 and names != {""}
        number = next(iter(names)) if from_folder else f"{split}_{int(label):03}" if is_whole_number(label) else ""
        told[split, label] = number if is_whole_number(label) else label
    return told


def _imagenet_finder(root: Path, label: str) -> Locate | None:
    """Search the training folder of ILSVRC 2012, `<class>/<class>_<number>.JPEG`: the image of that name, else the n-th
    of its class. None: no folder below `root` has a folder named `label`.

    mini-ImageNet's row n0153282900000005.jpg is the fifth image of class n01532829, by number.
    """
    tree = find_folder(root, lambda candidate: (candidate / label).is_dir()) if _is_folder_name(label) else None
    if tree is None:
        return None

    @cache
    def images_of(label: str) -> list[Path]:
        folder = tree / label
        paths = folder.iterdir() if folder.is_dir() else ()
        numbers = ((re.fullmatch(r".*_(\d+)\.jpe?g", path.name, flags=re.IGNORECASE), path) for path in paths)
        return [path for _, path in sorted((int(match[1]), path) for match, path in numbers if match)]

    def locate(file: str, label: str) -> Path | None:
        if not _is_folder_name(label):
            return None
        exact = tree / label / file
        if exact.is_file():
            return exact
        match = re.fullmatch(re.escape(label) + r"(\d+)\.\w+", file)
        place, images = int(match[1]) - 1 if match else -1, images_of(label)
        return images[place] if 0 <= place < len(images) else None

    return locate
