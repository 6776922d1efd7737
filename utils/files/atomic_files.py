"""Files that exist whole or not at all: written beside their place, forced to disk, then renamed over it."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import StorageError
from utils.paths import dataset_root, experiments_root

log = logging.getLogger(__name__)
TEMPORARY_SUFFIX = ".partial"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`; whatever happens on the way, `path` holds the old bytes or the new ones.

    Temporary file in the same folder, write, fsync, rename, fsync of the folder.

    Raises:
        StorageError: no space, no permission, folder missing. The temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    with storage_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            synchronise_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def synchronise_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename in it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Inside, an OSError is a failed write of `path`.

    Raises:
        StorageError: as `storage_error` has it.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """The StorageError for a failed write: path, the system's reason, and what helps.

    That is the space left where space is missing, and the variable that moves the folder where the place is wrong.
    """
    advice = "."
    if error.errno in NO_SPACE:
        advice = f"; {free_space_text(path)}."
    elif error.errno in WRONG_PLACE:
        for name, root in (("EXPERIMENTS_DIR", experiments_root()), ("DATASET_DIR", dataset_root())):
            if path.absolute().is_relative_to(root.absolute()):
                advice = f". Set {name}, which is {root}, to a folder that you can write to."
                break
    return StorageError(f"{path}: cannot be written ({error.strerror or error}){advice}")


def free_space_text(path: Path) -> str:
    """'N MiB free on that disk'."""
    try:
        return f"{shutil.disk_usage(nearest_existing(path)).free / 2**20:.0f} MiB free on that disk"
    except OSError:
        return "free space unknown"


def nearest_existing(path: Path) -> Path:
    """The path itself, or the lowest folder above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), path)


def remove_or_warn(path: Path) -> None:
    """Remove a file if it is there; one too many is no reason to stop, so what is in the way is only said."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be removed (%s).", path, error.strerror)


def remove_temporary_files(folder: Path) -> None:
    """Delete what a killed `write_bytes_atomically` left in a folder; only files of its own naming are touched."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
