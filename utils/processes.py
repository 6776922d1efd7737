"""The life of a process beside that of its parent."""

import ctypes
import os
import signal
import sys


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
