"""What an experiment tells those who watch it: reports, trackers, tests."""

from pathlib import Path
from typing import Any


class Observer:
    """Base of all observers: does nothing. Observers see copies of what is written, and change nothing."""

    def on_start(self, run_folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Once per process, with the rows of the epochs that are already done."""

    def on_iteration_metrics(self, record: dict[str, Any]) -> None:
        """Each line of metrics.jsonl."""

    def on_epoch(self, row: dict[str, Any], curves: dict[str, Any]) -> None:
        """After each epoch, when its checkpoint and files are written."""

    def on_test(self, summary: dict[str, Any]) -> None:
        """After each test, with the content of test_summary.json."""

    def on_end(self) -> None:
        """Once per process, however the run ends: finished, paused, stopped or failed."""
