"""CIFAR-FS and FC100: CIFAR-100's classes dealt to train, val and test by lists.

CIFAR-100 (Krizhevsky 2009) comes as `cifar-100-python/{train,test,meta}`, pickles of Python 2. A split list is a
file {train,val,test}.txt with a class name per line, or .json: a list of names, or of [superclass, class] pairs.
FC100's lists may name superclasses.
"""

from pathlib import Path

import numpy as np

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.files.reading import parse_json, read_text, why_unreadable
from utils.images.folders import report_problems
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass, reader_of, safe_name
from utils.prepare_dataset.forms.array_files import find_labelled_pickles, whole_numbers
from utils.prepare_dataset.forms.class_folders import find_class_folders
from utils.prepare_dataset.forms.restricted_unpickler import load_restricted
from utils.prepare_dataset.workspace import Workspace, find_folder, find_split_files
from utils.words import printable

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
"""Address and digest as torchvision has them."""
ARCHIVE = "cifar-100-python.tar.gz"
LIST_FILES = {split: (f"{split}.txt", f"{split}.json") for split in SPLITS}


def find_cifar(source: Path | None, splits: Path | None, workspace: Workspace) -> FoundClasses:
    """Find the classes of CIFAR-FS or FC100 from pickles per split, from CIFAR-100's own files, or from its class
    folders, with lists.

    Args:
        source: None: CIFAR-100 is fetched.
        splits: where the lists are; None: below `source`.
    Raises:
        DataError: no lists, a name in them that CIFAR-100 does not have, files that cannot be read.
    """
    if source is not None:
        found = find_labelled_pickles(source)
        if found is not None:
            return found
    list_files = find_split_files(place, LIST_FILES) if (place := splits or source) is not None else None
    if list_files is None:
        raise DataError(
            f"{printable(place) if place else 'CIFAR-100'}: no split lists train.txt, val.txt and test.txt (or "
            ".json), one class name"
            " per line, and no pickles train.pickle, val.pickle and test.pickle. CIFAR-100 alone does not say which "
            "classes"
            " are for training: give the folder of the lists with --splits."
        )
    lists = {split: _read_list(path) for split, path in list_files.items()}
    folder = _python_folder(source, workspace)
    if folder is not None:
        return FoundClasses("CIFAR-100's files with split lists", _deal_arrays(folder, lists))
    images = find_folder(source, lambda candidate: (candidate / lists["train"][0]).is_dir())
    if images is None:
        raise DataError(
            f"{printable(source)}: neither {ARCHIVE} nor its folder cifar-100-python (train, test, meta), nor a folder"
            f" {printable(lists['train'][0])} with images."
        )
    return FoundClasses("CIFAR-100's class folders with split lists", _deal_folders(images, lists))


def _python_folder(source: Path | None, workspace: Workspace) -> Path | None:
    if source is None:
        source = workspace.unpack(workspace.download(ADDRESS, MD5, "md5"))
    has_files = find_folder(source, lambda folder: all((folder / name).is_file() for name in ("train", "test", "meta")))
    if has_files is not None:
        return has_files
    has_archive = find_folder(source, lambda folder: (folder / ARCHIVE).is_file())
    return None if has_archive is None else _python_folder(workspace.unpack(has_archive / ARCHIVE), workspace)


def _read_list(path: Path) -> list[str]:
    try:
        text = read_text(path)
        items = parse_json(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)}: no list of classes: {why_unreadable(error)}.") from error
    names = (
        [item[-1] if isinstance(item, list) and item else item for item in items] if isinstance(items, list) else [None]
    )
    names = [name.strip() if isinstance(name, str) else name for name in names]
    if not all(isinstance(name, str) for name in names) or not any(names):
        raise DataError(f"{printable(path)}: must be a list of class names, or of [superclass, class] pairs.")
    return [name for name in names if name]


def _deal_arrays(folder: Path, lists: dict[str, list[str]]) -> list[SourceClass]:
    parts = {name: load_restricted(folder / name) for name in ("train", "test", "meta")}
    try:
        pixels, fine, coarse = (
            np.concatenate([whole_numbers(parts[name][key]) for name in ("train", "test")])
            for key in ("data", "fine_labels", "coarse_labels")
        )
        pixels, fine, coarse = pixels.reshape(-1, 3, 32, 32), fine.astype(int), coarse.astype(int)
        fine_names, coarse_names = list(parts["meta"]["fine_label_names"]), list(parts["meta"]["coarse_label_names"])
        if pixels.dtype != np.uint8 or not len(pixels) == len(fine) == len(coarse):
            raise ValueError("images and labels do not fit together")
        if not all(isinstance(name, str) for name in [*fine_names, *coarse_names]):
            raise ValueError("a name of a class is no text")
        if not set(fine.tolist()) <= set(range(len(fine_names))):
            raise ValueError("a label has no name")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{printable(folder)}: train, test and meta are not CIFAR-100's: {error}. Fetch them again."
        ) from error
    members = {name: [label] for label, name in enumerate(fine_names)}
    for label, name in enumerate(coarse_names):
        members.setdefault(name, np.unique(fine[coarse == label]).tolist())

    def read(rank: int) -> np.ndarray:
        return pixels[rank].transpose(1, 2, 0)  # (32, 32, 3)

    classes = []
    for split, names in lists.items():
        unknown = [name for name in names if name not in members]
        if unknown:
            raise report_problems(
                folder, [f'CIFAR-100 has no class "{printable(name)}" (list of {split})' for name in unknown]
            )
        for label in (label for name in names for label in members[name]):
            ranks = np.flatnonzero(fine == label)
            files = [f"{rank:05}.png" for rank in ranks.tolist()]
            classes.append(SourceClass(split, safe_name(fine_names[label]), files, reader_of(ranks, read)))
    return classes


def _deal_folders(images: Path, lists: dict[str, list[str]]) -> list[SourceClass]:
    available = {c.name: c for c in find_class_folders(images).classes}
    missing = [
        f'no folder "{printable(name)}" (list of {split})'
        for split in lists
        for name in lists[split]
        if name not in available
    ]
    if missing:
        raise report_problems(images, missing)
    return [
        SourceClass(split, safe_name(name), available[name].files, available[name].read)
        for split, names in lists.items()
        for name in names
    ]
