"""Keeps `visual_outputs/report.html` up to date beside a run: asks a process of its own, of the lowest priority, for
a new one.

That process is started once and waits; an order is one byte in a pipe. So training never waits for a picture, and
whatever goes wrong there is one warning here.
"""

import contextlib
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from experiment_parts.records.observers import Observer
from experiment_tools.report.page import REPORT
from utils.config import ExperimentConfig
from utils.paths import child_process

log = logging.getLogger(__name__)
LAST_REPORT_S = 30.0
"""Seconds that the end of a run waits for the last report."""


class ReportObserver(Observer):
    """Orders a report after epochs, at most every `every_s` seconds, and at the end.

    Args:
        every_s: least seconds between two orders.
        command: what makes reports: it gets the run folder as its last argument;
            `experiment_tools.report.__main__.watch` says the rest.
        says_where: log at the end where the report is.
    """

    def __init__(
        self,
        every_s: float,
        command: tuple[str, ...] = (*child_process("report"), "--watch"),
        *,
        says_where: bool = True,
    ):
        self.every_s, self.command, self.says_where = every_s, command, says_where
        self._process: subprocess.Popen[bytes] | None = None
        self._run_folder: Path | None = None
        self._last_order = -float("inf")
        self._warned = False

    def on_start(self, run_folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Start the process that makes reports."""
        self._run_folder = run_folder
        try:
            # A session of its own: Ctrl-C in the terminal is for the training, which then asks for the last report.
            self._process = subprocess.Popen(
                [*self.command, str(run_folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
            os.set_blocking(self._process.stdin.fileno(), False)
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._warn(str(error))
        if rows:
            self._order_if_due()

    def on_end(self) -> None:
        """Order the last report, and wait for it."""
        if self._process is None:
            return
        self._order()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(LAST_REPORT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn(f"it was not ready after {LAST_REPORT_S:.0f} s")
        self._read_answers(at_end=True)
        self._process.stdout.close()
        self._process = None
        if self.says_where and not self._warned:
            log.info("Report: %s", self._run_folder / REPORT)

    def _order_if_due(self, *_: object) -> None:
        """Order one when it is time, whatever has happened."""
        if time.monotonic() - self._last_order >= self.every_s:
            self._order()

    on_iteration_metrics = on_epoch = _order_if_due

    def _order(self) -> None:
        """Order a report without waiting: what cannot be written to the pipe at once is not ordered."""
        if self._process is None:
            return
        self._last_order = time.monotonic()
        self._read_answers()
        with contextlib.suppress(OSError):  # full, as nobody reads it, or closed: the process is gone
            self._process.stdin.write(b"\n")

    def _read_answers(self, *, at_end: bool = False) -> None:
        try:
            lines = (self._process.stdout.read() or b"").decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line != "ok":
                self._warn(line)
        if at_end and self._process.returncode != 0:
            self._warn(f"its process ended with code {self._process.returncode}")

    def _warn(self, reason: str) -> None:
        """Warn once per run: a report that fails once mostly fails every time."""
        if not self._warned:
            log.warning(
                "The report could not be made: %s. The run goes on without it; --report_every_s 0 turns it off.",
                reason.rstrip("."),
            )
        self._warned = True


def build_report_observer(config: ExperimentConfig) -> list[Observer]:
    """Build the observer of a config, or none."""
    return [ReportObserver(config.report_every_s, says_where=not config.dry_run)] if config.report_every_s else []
