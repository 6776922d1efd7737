"""What a run says: terminal, logs/run.log, progress of an epoch, and the CSV, JSON and JSON-lines files.

Messages go through `logging`; information to the standard output, warnings and errors to the standard error, all of it
to logs/run.log as well once that is open.
"""

import contextlib
import logging
import os
import sys
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from utils.files.atomic_files import open_regular, storage_errors
from utils.metrics import ACCURACY, Score
from utils.words import PrintableFormatter, guarded_output

SECONDS_BETWEEN_PLAIN_LINES = 15.0


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar, if one is running, to the streams of `guarded_output`."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(PrintableFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _FileHandler(logging.FileHandler):
    """A full disk ends the run where results are written; that a line of the log is lost is not said again here."""

    def _open(self) -> TextIO:
        descriptor = open_regular(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class Console:
    """Terminal output from now on; `open_run_log` adds the file, with what was said before. A context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: errors alone, for a process of a run in which another one speaks."""
        self._level = logging.ERROR if quiet else logging.INFO
        self._early = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)
        self._handlers: list[logging.Handler] = [_TerminalHandler(), self._early]
        self._root = logging.getLogger()
        self._previous_level = self._root.level
        self._output = guarded_output()

    def __enter__(self) -> "Console":
        self._output.__enter__()
        self._root.setLevel(self._level)
        for handler in self._handlers:
            self._root.addHandler(handler)
        return self

    def open_run_log(self, path: Path) -> None:
        """Append to `path` from now on.

        Raises:
            StorageError: it cannot be opened.
        """
        with storage_errors(path):
            handler = _FileHandler(path)
        handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        self._early.setTarget(handler)
        self._early.flush()
        self._root.removeHandler(self._early)
        self._root.addHandler(handler)
        self._handlers.append(handler)

    def __exit__(self, *error: object) -> None:
        for handler in self._handlers:
            self._root.removeHandler(handler)
            handler.close()
        self._root.setLevel(self._previous_level)
        self._output.__exit__(None, None, None)


class EpochProgress:
    """On a terminal a tqdm bar for the run and one for the epoch; else a plain line now and then. A context manager."""

    def __init__(
        self,
        epoch: int,
        total_epochs: int,
        n_iterations: int,
        tasks_per_iteration: int,
        done: int = 0,
        score: Score = ACCURACY,
    ):
        """`done`: iterations of the epoch that another process has done."""
        self._score = score
        self._title = f"epoch {epoch}/{total_epochs}"
        self._n_iterations, self._tasks_per_iteration = n_iterations, tasks_per_iteration
        self._done, self._done_before, self._start = done, done, time.perf_counter()
        self._last_line = self._start
        self._bars: list[tqdm] = []  # of the run, and of the epoch
        if sys.stderr and sys.stderr.isatty() and logging.getLogger(__name__).isEnabledFor(logging.INFO):
            # A terminal that says 0 x 0 (containers) would get no bar at all.
            size = {"dynamic_ncols": True} if _has_size(sys.stderr) else {"ncols": 100, "nrows": 24}
            titles = f"{'run':<{len(self._title)}}", self._title
            totals, before = (total_epochs * n_iterations, n_iterations), ((epoch - 1) * n_iterations + done, done)
            self._bars = [
                tqdm(
                    total=totals[place],
                    initial=before[place],
                    desc=titles[place],
                    unit="it",
                    leave=False,
                    position=place,
                    **size,
                )
                for place in range(2)
            ]

    def advance(self, n_iterations: int, loss: float, score: float) -> None:
        """Show that n more iterations are done, with their mean loss and score."""
        self._done += n_iterations
        now = time.perf_counter()
        done_here = self._done - self._done_before
        tasks_per_s = done_here * self._tasks_per_iteration / max(now - self._start, 1e-9)
        text = f"loss {loss:.4f}, {self._score.name} {self._score.short_text(score)}, {tasks_per_s:.1f} tasks/s"
        if self._bars:
            self._bars[1].set_postfix_str(text, refresh=False)
            for bar in reversed(self._bars):
                bar.update(n_iterations)
        elif now - self._last_line >= SECONDS_BETWEEN_PLAIN_LINES and self._done < self._n_iterations:
            self._last_line = now
            left_s = (now - self._start) * (self._n_iterations - self._done) / done_here
            logging.getLogger(__name__).info(
                "%s, iteration %d/%d: %s, %.0f s left", self._title, self._done, self._n_iterations, text, left_s
            )

    def phase(self, text: str) -> None:
        """Show what happens after the last iteration, e.g. validation."""
        if self._bars:
            self._bars[1].set_postfix_str(text)

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(self, *error: object) -> None:
        for bar in reversed(self._bars):
            bar.close()


def _has_size(terminal: TextIO) -> bool:
    try:
        return min(os.get_terminal_size(terminal.fileno())) > 0
    except (OSError, ValueError):
        return False
