"""Keep the C library from handing large blocks back to the system between two operations."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make malloc reuse freed blocks of any size. Returns whether it did: only glibc has the switch.

    By default glibc maps each block of more than 32 MiB anew and unmaps it when it is freed, so that every large activation
    costs page faults: of the CPU time of a 20-way meta-iteration more than a third (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
