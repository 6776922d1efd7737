"""Quick, Draw! (Google, CC BY 4.0): 345 files of 28x28 bitmaps, split and sampled as the published QuickDraw
meta-dataset was.

The rule, to the random number: file names sorted, shuffled by numpy's RandomState(seed), 60/20/20 % of the classes
(207/69/69), then N images of each class without replacement, by the same generator, in the order train, val, test.
"""

import logging
import urllib.parse
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from utils.errors import DataError
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass, reader_of, safe_name
from utils.prepare_dataset.forms.array_files import open_npy
from utils.prepare_dataset.workspace import Workspace, find_folder
from utils.words import printable

logger = logging.getLogger(__name__)

BUCKET = "https://storage.googleapis.com/quickdraw_dataset"
FOLDER = "full/numpy_bitmap/"
N_CLASSES = 345
PERCENTAGES = (60, 20, 20)
PUBLISHED_SAMPLES = 100

_PREFIX = "full_numpy_bitmap_"
"""What a browser puts before the names of files that it fetched."""


def find_quickdraw(
    source: Path | None, n_samples: int, seed: int, workspace: Workspace, *, accept_counts: bool
) -> FoundClasses:
    """Find the classes of the meta-dataset of `n_samples` images per class and this seed.

    Args:
        source: folder with the .npy files; those that it lacks (None: all) are fetched from the public bucket.
        accept_counts: fetch nothing, take the files that are there.
    Raises:
        DataError: files that are missing and cannot be fetched, too few drawings, no bitmaps.
    """
    files = _files_in(source) if source is not None else {}
    if len(files) < N_CLASSES and not (accept_counts and files):
        files |= _fetch_missing(files, workspace)
    return FoundClasses(
        f"{len(files)} .npy files, {n_samples} samples per class and split by seed {seed}",
        draw_classes(files, n_samples, seed),
    )


def _files_in(source: Path) -> dict[str, Path]:
    folder = find_folder(source, lambda candidate: any(candidate.glob("*.npy")))
    paths = folder.glob("*.npy") if folder is not None else ()
    return {path.stem.removeprefix(_PREFIX): path for path in paths}


def _fetch_missing(files: dict[str, Path], workspace: Workspace) -> dict[str, Path]:
    try:
        md5_by_name = list_bucket(workspace)
        missing = sorted(set(md5_by_name) - set(files))
        logger.info("fetching %d of %d files from %s", len(missing), len(md5_by_name), BUCKET)
        return {
            name: workspace.download(f"{BUCKET}/{urllib.parse.quote(FOLDER + name)}.npy", md5_by_name[name], "md5")
            for name in missing
        }
    except DataError as error:
        raise DataError(
            f"{len(files)} of Quick, Draw!'s {N_CLASSES} files are here; the others cannot be fetched: {error}\nThey "
            "are in"
            f" gs://quickdraw_dataset/{FOLDER} (37 GB): give the folder with --from, or take the files that are there "
            "with"
            " --accept_counts."
        ) from error


def list_bucket(workspace: Workspace) -> dict[str, str | None]:
    """Return name of each class -> md5 of its file, as the bucket lists them."""
    listing = workspace.download(f"{BUCKET}?prefix={FOLDER}&list-type=2")
    names: dict[str, str | None] = {}
    try:
        for entry in ElementTree.parse(listing).getroot().iter():
            if not entry.tag.endswith("Contents"):
                continue
            values = {child.tag.rpartition("}")[2]: child.text or "" for child in entry}
            name = values.get("Key", "").removeprefix(FOLDER)
            if name.endswith(".npy") and "/" not in name:
                md5 = values.get("ETag", "").strip('"')
                names[name.removesuffix(".npy")] = md5 if len(md5) == 32 else None
    except ElementTree.ParseError as error:
        raise DataError(
            f"{listing}: not a listing of the bucket ({error}). Remove it and run the command again."
        ) from error
    if not names:
        raise DataError(f"{listing}: lists no .npy file. Remove it and run the command again.")
    return names


def draw_classes(files: dict[str, Path], n_samples: int, seed: int) -> list[SourceClass]:
    """Split and sample the classes; see the rule at the top of this file."""
    names = sorted(files, key=lambda name: f"{name}.npy")
    # The published rule; numpy promises that the numbers of this old generator never change.
    generator = np.random.RandomState(seed)
    generator.shuffle(names)
    n_train, n_val, _ = (int(percentage / sum(PERCENTAGES) * len(names)) for percentage in PERCENTAGES)
    splits = {"train": names[:n_train], "val": names[n_train : n_train + n_val], "test": names[n_train + n_val :]}
    classes = []
    for split, members in splits.items():
        for name in members:
            bitmaps = open_npy(files[name])
            if bitmaps.dtype != np.uint8 or bitmaps.ndim != 2 or bitmaps.shape[1] != 784:
                raise DataError(
                    f"{printable(files[name])}: must be uint8 (images, 784), but is {bitmaps.dtype} {bitmaps.shape}."
                )
            if len(bitmaps) < n_samples:
                raise DataError(
                    f"{printable(files[name])}: has {len(bitmaps)} drawings, fewer than --max_samples_per_class "
                    f"{n_samples}."
                )
            chosen = generator.choice(len(bitmaps), n_samples, replace=False)
            read = reader_of(chosen, bitmaps.reshape(-1, 28, 28).__getitem__)
            classes.append(SourceClass(split, safe_name(name), [f"{i:07}.png" for i in chosen.tolist()], read))
    return classes
