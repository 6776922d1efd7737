"""Write classes as a folder-format dataset, whole or not at all, and check later whether it is still what was written.

A dataset folder holds `.prepared.json`: what it was made from, its counts, and a digest of its files' names and sizes.
"""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from utils.errors import DataError
from utils.files.atomic_files import write_bytes_atomically
from utils.files.atomic_folders import make_folder
from utils.files.reading import object_or_nothing
from utils.images.folders import report_problems, scan
from utils.prepare_dataset.class_sources import ImageContent, SourceClass
from utils.words import printable

logger = logging.getLogger(__name__)

RECORD_FILE = ".prepared.json"
RECORD_VERSION = 1
MOST_PROBLEMS = 100
"""Images that cannot be read are listed together; after so many the rest is not tried."""
FACTS_OF_A_RUN = ("dataset", "form", "max_samples_per_class", "seed", "accepted_deviations")
"""What of the record goes into the records of a run: no paths."""
_BEGUN = ".begun"
"""Ending of a class folder that is not whole yet."""


def write_dataset(
    destination: Path,
    classes: Sequence[SourceClass],
    facts: dict[str, Any],
    linkable: Path | None = None,
    then: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> None:
    """Write all classes below `destination`, then the record; a killed run is gone on with, class by class.

    Args:
        facts: JSON-able, what the dataset is made from; with the classes it says whether a killed run was making the
            same.
        linkable: image files in this folder are linked instead of copied; it is ours and will be removed.
        then: called with the folder when all images are there; returns more facts for the record.
    Raises:
        DataError: an image that cannot be read.
        StorageError: no space or no permission.
    """
    listing = hashlib.sha256(json.dumps([RECORD_VERSION, facts], sort_keys=True, default=str).encode())
    for c in classes:
        listing.update(f"\n{c.folder}\t{len(c.files)}".encode("utf-8", "surrogateescape"))
        listing.update("\t".join(c.files).encode("utf-8", "surrogateescape"))

    def fill(folder: Path) -> None:
        total = sum(len(c.files) for c in classes)
        problems: list[str] = []
        with tqdm.tqdm(total=total, desc=f"writing {destination.name}", unit="image", disable=None) as bar:
            for c in classes:
                problems += _write_class(folder, c, linkable, bar)
                if len(problems) >= MOST_PROBLEMS:
                    break
        if problems:
            raise report_problems(destination, problems)
        record = {"version": RECORD_VERSION, **facts, **then(folder), **_count(folder)}
        write_bytes_atomically(folder / RECORD_FILE, json.dumps(record, indent=1).encode())

    make_folder(destination, fill, resume_key=listing.hexdigest())


def _write_class(folder: Path, c: SourceClass, linkable: Path | None, bar: tqdm.tqdm) -> list[str]:
    """Write one class, unless it is there; returns what cannot be read, in which case the class does not get its
    name.
    """
    whole = folder / c.folder
    if whole.is_dir() and not _has_changed_since(whole, c):
        bar.update(len(c.files))
        return []
    shutil.rmtree(whole, ignore_errors=True)
    problems: list[str] = []
    begun = whole.with_name(f".{whole.name}{_BEGUN}")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    for place, file in enumerate(c.files):
        try:
            _write_image(begun / file, c, place, linkable)
        except DataError as error:
            problems.append(str(error))
            if len(problems) >= MOST_PROBLEMS:
                break
        bar.update()
    if not problems:
        begun.rename(whole)
    return problems


def _has_changed_since(whole: Path, c: SourceClass) -> bool:
    """Return whether a file of a class is another one than when it was copied, under its old name."""
    if not c.files or c.is_drawn or not isinstance(c.read(0), Path):
        return False
    try:
        pairs = [(Path(c.read(place)).stat(), (whole / file).stat()) for place, file in enumerate(c.files)]
    except OSError:
        return True
    return any(now.st_ctime_ns > then.st_mtime_ns and not os.path.samestat(now, then) for now, then in pairs)


def _write_image(path: Path, c: SourceClass, place: int, linkable: Path | None) -> None:
    try:
        content: ImageContent = c.read(place)
        if isinstance(content, Path):
            if linkable is not None and content.is_relative_to(linkable):
                os.link(content, path)
                return
            if content.is_fifo():  # it would be waited for
                raise OSError(errno.EINVAL, "no regular file", str(content))
            with open(content, "rb"):
                pass  # so that what cannot be read is no error of writing
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise DataError(
            f"{printable(error.filename or c.folder)}: cannot be read ({error.strerror or error})."
        ) from error
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else png_bytes(content))


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode pixels, uint8 (H, W) or (H, W, 3), as a PNG file; lightly compressed, which is several times faster."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _count(folder: Path) -> dict[str, Any]:
    """Count images per class folder and a digest of names and sizes of a dataset's files."""
    images: Counter[str] = Counter()
    digest = hashlib.sha256()
    for image_folder in scan(folder)[0]:
        images[image_folder.path] += len(image_folder.files)
        for file in image_folder.files:
            path = image_folder.path_of(file)
            size = (folder / path).stat().st_size
            digest.update(f"{path}\t{size}\n".encode("utf-8", "surrogateescape"))
    return {"images_per_class": dict(images), "names_and_sizes_sha256": digest.hexdigest()}


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what was recorded when a dataset was prepared; None where it was not prepared here."""
    record = object_or_nothing(folder / RECORD_FILE)
    is_whole = isinstance(record.get("images_per_class"), dict) and "names_and_sizes_sha256" in record
    return record if is_whole and record.get("version") == RECORD_VERSION else None


def preparation_facts(folder: Path) -> dict[str, Any] | None:
    """Return how a dataset was prepared, for the records of a run: form, limit of samples, seed.

    None where it was not prepared here.
    """
    record = read_record(folder)
    return None if record is None else {key: record[key] for key in FACTS_OF_A_RUN if key in record}


def verify_dataset(folder: Path) -> dict[str, Any] | None:
    """Compare a prepared dataset with its record, by names and sizes of its files; returns the record, if there is one.

    Raises:
        DataError: classes or images are missing, added or of another size.
    """
    record = read_record(folder)
    if record is None:
        return None
    now = _count(folder)
    problems = [
        f'class "{printable(c)}" has {now["images_per_class"].get(c, 0)} images, '
        f"{record['images_per_class'].get(c, 0)} were written"
        for c in sorted({*record["images_per_class"], *now["images_per_class"]})
        if now["images_per_class"].get(c, 0) != record["images_per_class"].get(c, 0)
    ]
    if not problems and now["names_and_sizes_sha256"] != record["names_and_sizes_sha256"]:
        problems = ["files have other names or sizes than when they were written"]
    if problems:
        error = report_problems(folder, problems)
        raise DataError(
            f"{error}\nIt is no longer what was prepared. Nothing is overwritten: move the folder away and run the "
            "command again."
        )
    return record


def check_same_images(folder: Path, record: Mapping[str, Any], classes: Sequence[SourceClass]) -> None:
    """Compare a prepared dataset with what would be written now, names and pixels.

    Args:
        record: of the folder, which `verify_dataset` has compared with it.
        classes: of pixels.
    Raises:
        DataError: it was made of other images.
    """
    before, now = record["images_per_class"], {c.folder: len(c.files) for c in classes}
    difference = ""
    if before != now:
        counts = [f"{sum(one.values())} images in {len(one)} classes" for one in (before, now)]
        name = next(name for name in sorted({*before, *now}) if before.get(name, 0) != now.get(name, 0))
        difference = (
            f"{counts[0]} there, {counts[1]} given; {name}: {before.get(name, 0)} and {now.get(name, 0)} images"
        )
    places = [(c, place, file) for c in classes for place, file in enumerate(c.files) if not difference]
    for c, place, file in tqdm.tqdm(places, desc=f"comparing {folder.name}", unit="image", disable=None):
        given = c.read(place)
        try:
            with Image.open(folder / c.folder / file) as image:
                is_same = np.array_equal(np.asarray(image), given)
        except OSError:  # not there, or no image
            is_same = False
        if not is_same and not np.array_equal(c.read(place), given):
            logger.warning(
                "%s: is there, and whether it is of these images is not known: they are others whenever they are read",
                printable(folder),
            )
            return
        if not is_same:
            difference = f"{c.folder}/{file} is another image"
            break
    if difference:
        raise DataError(
            f"{printable(folder)}: there already, and made of other images ({printable(difference)}). Nothing was "
            "written. Give this dataset another name, or move that folder away."
        )
