"""Paths and sizes as people read them."""

import math


def size_text(n_bytes: float) -> str:
    """Return '12.3 MiB'."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(n_bytes, 1), 1024)), len(units) - 1)
    return f"{n_bytes / 1024**power:.{1 if power else 0}f} {units[power]}"


def mib_text(n_bytes: float) -> str:
    """Return `812 MiB`, or `3.4 GiB` from one on."""
    mib = n_bytes / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.3g} MiB"


def printable(path: object) -> str:
    """Return a path as one line that any terminal can show: control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
