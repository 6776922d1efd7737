"""Files that exist whole or not at all: written beside their place, forced to disk, then renamed over it; and files
that are added to where they are, never through a link.
"""

import errno
import itertools
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import StorageError
from utils.paths import dataset_root, experiments_root
from utils.words import size_text

log = logging.getLogger(__name__)
TEMPORARY_SUFFIX = ".partial"
LONGEST_STEM = 200
MOST_BYTES = 2**40
"""Read at once from a file of which nothing is known, such as a checkpoint."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`; whatever happens on the way, `path` holds the old bytes or the new ones.

    Temporary file in the same folder, write, fsync, rename, fsync of the folder. A link at `path` is replaced, not
    followed.

    Raises:
        StorageError: no space, no permission, folder missing. The temporary file is removed.
    """
    # A name of its own for every write: of two writers at once each renames what it has written itself. The name of
    # the file is cut, as a file system allows 255 bytes for both.
    stem = os.fsdecode(os.fsencode(path.name)[:LONGEST_STEM])
    temporary = path.with_name(f".{stem}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    with storage_errors(path):
        try:
            with open(temporary, "xb") as file:  # "x": not through a link that somebody has put there
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            synchronise_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def open_regular(path: Path, flags: int) -> int:
    """Return a descriptor of a file that is added to in place; makes it where `flags` has O_CREAT.

    A run folder may come from somebody else: a link in it would have a run write to any file of this user, and a pipe
    would have it wait for ever.

    Raises:
        StorageError: the path is a symbolic link, a pipe or a device.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO) and (path.is_symlink() or path.is_fifo()):
            raise not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path)
    return descriptor


def not_regular(path: Path) -> StorageError:
    """Return the error about a link, a pipe or a device in a run folder."""
    kind = f"a symbolic link to {os.readlink(path)}" if path.is_symlink() else "no regular file"
    return StorageError(
        f"{path}: {kind}; inside a run folder nothing is written through links, pipes or devices. Move it away, or "
        "put in its place what it stands for."
    )


def refuse_link(folder: Path) -> None:
    """Refuse a folder inside a run folder that is a link: what is written into it would land elsewhere.

    Raises:
        StorageError: it is one.
    """
    if folder.is_symlink():
        raise not_regular(folder)


def read_regular(path: Path, most_bytes: int = MOST_BYTES, *, may_be_pipe: bool = False) -> bytes:
    """Return the content of a file, followed where it is a link; a pipe or a device, which may never end, is refused.

    Args:
        may_be_pipe: read a pipe, too, and wait for who writes to it.
    Raises:
        OSError: it cannot be read, or is larger than `most_bytes`.
    """
    waiting = 0 if may_be_pipe else os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | waiting)) as file:
        status = os.fstat(file.fileno())
        is_pipe = may_be_pipe and stat.S_ISFIFO(status.st_mode)
        if not is_pipe and not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        data = b"" if status.st_size > most_bytes else file.read(most_bytes + 1 if is_pipe else -1)
        if max(status.st_size, len(data)) > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {size_text(most_bytes)}")
        return data


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
    """Return the StorageError for a failed write: path, the system's reason, and what helps.

    That is the space left where space is missing, and the variable that moves the folder where the place is wrong,
    not where something else is in the place.
    """
    advice = "."
    if error.errno in NO_SPACE:
        advice = f"; {free_space_text(path)}."
    elif error.errno == errno.EEXIST:
        advice = ". Move away what is there in its place."
    elif error.errno in WRONG_PLACE:
        for name, root in (("EXPERIMENTS_DIR", experiments_root()), ("DATASET_DIR", dataset_root())):
            if path.absolute().is_relative_to(root.absolute()):
                advice = f". Set {name}, which is {root}, to a folder that you can write to."
                break
    return StorageError(f"{path}: cannot be written ({error.strerror or error}){advice}")


def free_space_text(path: Path) -> str:
    """Return 'N MiB free on that disk'."""
    try:
        return f"{shutil.disk_usage(nearest_existing(path)).free / 2**20:.0f} MiB free on that disk"
    except OSError:
        return "free space unknown"


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or the lowest folder above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), path)


def free_path(path: Path, separator: str = "-") -> Path:
    """Return the path, or the first of <path>-2, <path>-3, ... at which there is nothing yet."""
    numbered = (path.with_name(f"{path.name}{separator}{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())


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
