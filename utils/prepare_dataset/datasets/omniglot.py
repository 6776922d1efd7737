"""Omniglot (Lake et al. 2015, MIT licence) as a folder-format dataset, from its two official zips or fetched with
torchvision.
"""

import logging
import socket
from pathlib import Path

from utils.errors import DataError
from utils.files.atomic_folders import make_folder
from utils.files.reading import file_digest
from utils.prepare_dataset.class_sources import FoundClasses, SourceClass
from utils.prepare_dataset.forms.class_folders import find_class_folders
from utils.prepare_dataset.workspace import Workspace, find_folder
from utils.words import printable

logger = logging.getLogger(__name__)

NETWORK_TIMEOUT_S = 30.0

ZIP_MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
"""As torchvision has them."""
PARTS = tuple(name.removesuffix(".zip") for name in ZIP_MD5)


def find_omniglot(source: Path, workspace: Workspace) -> FoundClasses:
    """Find the classes `images_background/<alphabet>/<character>` and `images_evaluation/...`, from the official zips
    or unpacked folders.

    Raises:
        DataError: neither is there, or a zip has another md5 than the official one.
    """
    zips = find_folder(source, lambda folder: all((folder / name).is_file() for name in ZIP_MD5))
    if zips is not None:
        for name, md5 in ZIP_MD5.items():
            if (found := file_digest(zips / name, "md5")) != md5:
                raise DataError(
                    f"{printable(zips / name)}: wrong bytes: md5 is {found}, the official file's is {md5}. Fetch it "
                    "again."
                )
        parts = {name: _inside(workspace.unpack(zips / f"{name}.zip"), name) for name in PARTS}
        form = "the two official zips"
    else:
        parent = find_folder(source, lambda folder: all((folder / name).is_dir() for name in PARTS))
        if parent is None:
            raise DataError(
                f"{printable(source)}: neither {' and '.join(ZIP_MD5)} nor folders {' and '.join(PARTS)}. They are in "
                "the folder python"
                " of https://github.com/brendenlake/omniglot."
            )
        parts, form = {name: parent / name for name in PARTS}, "unpacked folders"
    classes = [
        SourceClass(None, f"{name}/{c.name}", c.files, c.read)
        for name, folder in parts.items()
        for c in find_class_folders(folder).classes
    ]
    return FoundClasses(form, classes)


def _inside(folder: Path, name: str) -> Path:
    """Return what an unpacked zip holds, which may lie in a folder that is named like the zip."""
    return folder / name if (folder / name).is_dir() else folder


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
