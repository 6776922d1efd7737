"""The lock on a run folder: who holds it, asked without taking it and with the permission to read alone. No torch."""

import fcntl
import os
import struct
import sys
from pathlib import Path

from utils.files.atomic_files import read_regular

LOCK_NAME = ".lock"
FLOCK, LOCK_TYPE = (struct.Struct("qqihh"), 3) if sys.platform == "darwin" else (struct.Struct("hhqqi4x"), 0)
"""struct flock of fcntl(2), and the place of its l_type."""


def is_in_use(run_folder: Path) -> bool:
    """Return whether another process holds the folder's lock. Not for the one that holds it: that would let it go."""
    try:
        descriptor = os.open(run_folder / LOCK_NAME, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        wanted = FLOCK.pack(*(fcntl.F_WRLCK if place == LOCK_TYPE else 0 for place in range(5)))
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted)
        return found[: len(wanted)] != wanted and FLOCK.unpack(found)[LOCK_TYPE] != fcntl.F_UNLCK
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def holder_of(run_folder: Path) -> str:
    """Return what the process that holds or held the lock has written into it; "" where it cannot be read."""
    try:
        return read_regular(run_folder / LOCK_NAME).decode("utf-8", "replace")
    except OSError:
        return ""


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
