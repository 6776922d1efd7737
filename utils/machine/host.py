"""Settings of the C library and of OpenMP that make the same computation faster on a CPU. They change no result."""

import ctypes
import os
import platform
import signal
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_SPIN_COUNT = "1000"


def tune_host() -> None:
    """Keep freed memory, and let idle threads sleep early. Call it before torch is imported."""
    keep_freed_memory()
    # An idle OpenMP thread spins for milliseconds before it sleeps. Where another process wants the core that is lost:
    # with one other busy process on two cores an iteration took 4 s instead of 1 to 2 s. On a quiet machine there is no
    # difference.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def keep_freed_memory() -> bool:
    """Make malloc reuse freed blocks of any size. Returns whether it did: only glibc has the switch.

    By default glibc maps each block of more than 32 MiB anew and unmaps it when it is freed, so that every large
    activation costs page faults (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def die_with_parent(parent: int | None = None) -> None:
    """Ask the system for SIGKILL when the parent dies, where it can (Linux).

    Args:
        parent: process id of the parent; this process ends at once if that is its parent no more.
    """
    parent_death = 1  # PR_SET_PDEATHSIG
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(parent_death, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
