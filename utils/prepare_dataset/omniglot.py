"""Fetch Omniglot (Lake et al. 2015, MIT licence) with torchvision and lay it out as a folder-format dataset."""

import logging
import socket
from pathlib import Path

from utils.atomic_folders import make_folder
from utils.errors import DataError

logger = logging.getLogger(__name__)

NETWORK_TIMEOUT_S = 30.0


def fetch_omniglot(dataset_folder: Path) -> None:
    """Make `<dataset_folder>/images_{background,evaluation}/<alphabet>/<character>/*.png`: 1,623 classes of 20 images.

    torchvision checks the files' digests.

    Raises:
        DataError: no network or no torchvision; the text says which file to put where instead.
        StorageError: no space or no permission.
    """
    logger.info("fetching Omniglot into %s", dataset_folder)
    make_folder(dataset_folder, lambda folder: _fetch(folder, dataset_folder))


def _fetch(folder: Path, dataset_folder: Path) -> Path:
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        from torchvision.datasets import Omniglot  # imported here only: it takes seconds

        for background in (True, False):
            Omniglot(root=str(folder), background=background, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        raise DataError(
            f"{dataset_folder}: Omniglot is not there and cannot be fetched ({error}). Without a network, put"
            f" {dataset_folder.name}.tar.bz2 or .zip into {dataset_folder.parent}: an archive of images_background and"
            " images_evaluation from https://github.com/brendenlake/omniglot (folder python)."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_before)
    content = folder / "omniglot-py"
    for archive in content.glob("*.zip"):
        archive.unlink()
    return content
