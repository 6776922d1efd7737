"""Make a dataset folder exist: it is there, or its archive is unpacked, or it is drawn, or it is fetched."""

import logging
from collections.abc import Callable
from pathlib import Path

from utils.errors import DataError
from utils.files.archives import ARCHIVE_EXTENSIONS, find_archive, unpack_archive
from utils.files.atomic_folders import is_filled
from utils.prepare_dataset.catalogue import command_for
from utils.prepare_dataset.datasets.omniglot import fetch_omniglot
from utils.prepare_dataset.datasets.synthetic_strokes import draw_synthetic_strokes
from utils.words import printable

logger = logging.getLogger(__name__)
MAKERS: dict[str, Callable[[Path], None]] = {
    "synthetic_strokes": draw_synthetic_strokes,
    "omniglot_dataset": fetch_omniglot,
}
"""Dataset name -> what makes its folder. Closed: names in a config are looked up here and nowhere else."""


def find_or_make_dataset(dataset_name: str, dataset_folder: Path, dataset_root: Path) -> None:
    """Make sure that a dataset's folder is there. A folder with something in it is never touched.

    Args:
        dataset_name: names the archive in `dataset_root`, or an entry of MAKERS.
        dataset_folder: where the dataset is, or is to be.
        dataset_root: where archives are looked for (DATASET_DIR).
    Raises:
        DataError: neither folder nor archive nor maker, a bad archive, or no network.
        StorageError: no space or no permission.
    """
    archive = find_archive(dataset_name, dataset_root)
    if is_filled(dataset_folder):
        if archive is not None and archive.stat().st_mtime > dataset_folder.stat().st_mtime:
            logger.info(
                "note: %s is newer than the folder %s, which is used; to have it unpacked, move the folder away",
                printable(archive), printable(dataset_folder),
            )  # fmt: skip
        return
    if dataset_folder.exists() and not dataset_folder.is_dir():
        raise DataError(f"{printable(dataset_folder)}: a file, but the dataset must be a folder.")
    if archive is not None:
        unpack_archive(archive, dataset_folder)
    elif dataset_name in MAKERS:
        MAKERS[dataset_name](dataset_folder)
    else:
        raise DataError(
            f'dataset "{printable(dataset_name)}" not found: neither the folder {printable(dataset_folder)} nor an'
            f" archive {printable(dataset_root / dataset_name)} with one of {' '.join(ARCHIVE_EXTENSIONS)}. Put one"
            " there, or set DATASET_DIR to where it is, or prepare it from what you have:\n  "
            + command_for(dataset_name)
        )
