"""Names, sizes, numbers of things and whole texts as people read them on a terminal."""

import logging
import math
import sys
from typing import TextIO


def size_text(n_bytes: float) -> str:
    """Return '12.3 MiB'."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(n_bytes, 1), 1024)), len(units) - 1)
    return f"{n_bytes / 1024**power:.{1 if power else 0}f} {units[power]}"


def mib_text(n_bytes: float) -> str:
    """Return `812 MiB`, or `3.4 GiB` from one on."""
    mib = n_bytes / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.3g} MiB"


def counted(number: int, noun: str, plural: str = "") -> str:
    """'1 epoch', '2 epochs'."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def printable(path: object) -> str:
    """Return a name as one line that any terminal can show: control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def printable_text(text: object) -> str:
    """Return a text of several lines in which no foreign name can move the cursor, colour or hide anything."""
    return "\n".join(map(printable, str(text).split("\n")))


def say(text: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print for people: the one place from which a tool writes to the terminal, beside the log."""
    print(printable_text(text), file=file or sys.stdout, flush=flush)


class PrintableFormatter(logging.Formatter):
    """The same for the lines of a log, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines, of a record."""
        return printable_text(super().format(record))


def log_to_terminal() -> None:
    """Let a command log to the standard output that has neither a run nor its console."""
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[terminal])
