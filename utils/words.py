"""What people read: names, sizes and numbers as words, and what is printed, whatever the names hold and wherever the
output goes.
"""

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

_BEGIN_OF_BARS = re.compile(r"(?:\r|\n|\x1b\[A)*")
"""How a progress bar of tqdm goes to the begin of its line and to those above and below."""


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
    """Return '1 epoch', '2 epochs'."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def is_whole_number(text: str) -> bool:
    """Return whether `int` reads a text and nothing is odd about it: up to nine digits, which "²" is not."""
    return text.isascii() and text.isdigit() and len(text) < 10


def printable(path: object, kept: str = "") -> str:
    """Return a path as one line that any terminal can show: control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in str(path))


def printable_text(text: object) -> str:
    """Return a text of several lines in which no foreign name can move the cursor, colour or hide anything."""
    return printable(text, kept="\n\t")


def some_of(texts: Sequence[str], most: int = 3) -> str:
    """Name the first of many texts, and how many more there are."""
    return ", ".join(map(printable, texts[:most])) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def first_lines(lines: Sequence[str], most: int) -> str:
    """Return the first of many lines, each indented, and how many more there are."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])


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


class _GuardedStream:
    """A standard stream that loses a line rather than the program: its terminal or reader may be gone, its disk full.

    Letters that its encoding lacks, and control characters of names, are escaped, whoever prints: Python's warnings,
    argparse, libraries. At the begin of a text it lets those through that a progress bar moves by, which is why our own
    lines go through `say` and `PrintableFormatter`.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        begin = _BEGIN_OF_BARS.match(text)[0]
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = (begin + printable_text(text[len(begin) :])).encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed by somebody
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if anybody takes it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def leave(self) -> None:
        """Give up what is still waiting, so that the interpreter does not fail at it when it ends."""
        try:
            self._stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except ValueError:  # closed by somebody
            pass


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Let nothing that a program prints, or cannot print, end it; also a decorator of its main function."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed; the next file of ours would take its number, and be printed into
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        guarded = [_GuardedStream(stream or nowhere) for stream in before]
        sys.stdout, sys.stderr = guarded  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in guarded:
                stream.leave()
