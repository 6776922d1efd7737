"""Make a folder whole or not at all: written under a temporary name, renamed when complete, one process at a time."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.files.atomic_files import storage_errors

logger = logging.getLogger(__name__)

KEY_FILE = ".resume_key"
"""In a temporary folder: what it is to become."""


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


def folds_case(folder: Path) -> bool:
    """Return whether names that differ in letter case alone are one in a folder, which is made if it is not there.

    Raises:
        StorageError: no permission or no space.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".a") as file:
            return Path(file.name).with_name(Path(file.name).name.upper()).exists()


def is_filled(folder: Path) -> bool:
    """Return whether a folder exists and has something in it."""
    return folder.is_dir() and any(folder.iterdir())


def make_folder(destination: Path, fill: Callable[[Path], Path | None], *, resume_key: str | None = None) -> None:
    """Make `destination` by filling a temporary folder beside it, then renaming that.

    Nothing that exists is replaced: a folder with something in it is left as it is (another process was faster). What
    a killed process left behind under the temporary name is removed; on an error, what was written here.

    Args:
        fill: writes into the folder it gets; returns the folder inside it that is to become `destination`, or None for
            the whole.
        resume_key: says what is made. What was left behind under the same key is handed to `fill` to go on with, and
            an error leaves what was written; `fill` must then find out what is whole.
    Raises:
        StorageError: no permission or no space.
    """
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock(destination.parent):
            if is_filled(destination):
                return
            temporary = destination.parent / f".{destination.name}.unfinished"
            if resume_key is None or _key_of(temporary) != resume_key:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                if resume_key is not None:
                    (temporary / KEY_FILE).write_text(resume_key)
            finished = False
            try:
                content = fill(temporary) or temporary
                content.rename(destination)  # takes the place of an empty folder, never of a filled one
                finished = True
                (destination / KEY_FILE).unlink(missing_ok=True)
            finally:
                if finished or resume_key is None:
                    shutil.rmtree(temporary, ignore_errors=True)


def _key_of(temporary: Path) -> str | None:
    try:
        return (temporary / KEY_FILE).read_text()
    except (OSError, ValueError):
        return None
