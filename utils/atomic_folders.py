"""Make a folder whole or not at all: written under a temporary name, renamed when complete, one process at a time."""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.atomic_files import storage_error

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; wait while another process holds it. It ends with its process, so never stale.

    A file is created where nothing is. Where the file system has no locks, goes on without.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares %s", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            logger.info("%s: no file locks here (%s), going on without", path, error.strerror)
        yield
    finally:
        os.close(descriptor)


def is_filled(folder: Path) -> bool:
    """Whether a folder exists and has something in it."""
    return folder.is_dir() and any(folder.iterdir())


def make_folder(destination: Path, fill: Callable[[Path], Path | None]) -> None:
    """Make `destination` by filling a temporary folder beside it, then renaming that.

    Nothing that exists is replaced: a folder with something in it is left as it is (another process was faster). What
    a killed process left behind under the temporary name is removed; on an error, what was written here.

    Args:
        fill: writes into the folder it gets; returns the folder inside it that is to become `destination`, or None for
            the whole.
    Raises:
        StorageError: no permission or no space.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock(destination.parent):
            if is_filled(destination):
                return
            temporary = destination.parent / f".{destination.name}.unfinished"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                content = fill(temporary) or temporary
                content.rename(destination)  # takes the place of an empty folder, never of a filled one
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise storage_error(destination, error) from error
