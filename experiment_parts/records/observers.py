"""What an experiment reports to those who watch it: reports, trackers, tests."""

import logging
from collections.abc import Iterable, Mapping
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class Observer:
    """Base of all observers: does nothing. Observers see copies of what is written, and change nothing."""

    def on_start(self, run_folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Begin, once per process, with the rows of the epochs that are already done; the files in logs/ stand where
        the run stands.
        """

    def on_iteration_metrics(self, record: dict[str, Any]) -> None:
        """Receive each line of metrics.jsonl."""

    def on_gradients(self, iteration: int, gradients: "Mapping[str, Tensor]") -> None:
        """Receive the meta-gradient of an iteration that has just been logged, on the device; do not change it."""

    def on_save(self, iteration: int) -> None:
        """Keep what was reported up to this iteration: a checkpoint holds the run, so it will not be reported again."""

    def on_epoch(self, row: dict[str, Any], curves: dict[str, Any]) -> None:
        """Receive what each epoch leaves in the books, when its checkpoint and files are written."""

    def on_test(self, summary: dict[str, Any]) -> None:
        """Receive the content of test_summary.json after each test."""

    def on_end(self) -> None:
        """Finish, once per process, however the run ends: finished, paused, stopped or failed."""


class Observers(Observer):
    """Several as one. One that fails is dropped with one warning: watching never stops a run."""

    def __init__(self, observers: Iterable[Observer]):
        self._observers = list(observers)

    def _report(self, event: str, *arguments: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, event)(*arguments)
            except Exception as error:  # noqa: BLE001 -- whatever a tracker's library raises
                reason = str(error).strip() or type(error).__name__
                log.warning("%s stops watching, the run goes on: %s", type(observer).__name__, reason)
                self._observers.remove(observer)

    on_start = partialmethod(_report, "on_start")
    on_iteration_metrics = partialmethod(_report, "on_iteration_metrics")
    on_gradients = partialmethod(_report, "on_gradients")
    on_save = partialmethod(_report, "on_save")
    on_epoch = partialmethod(_report, "on_epoch")
    on_test = partialmethod(_report, "on_test")
    on_end = partialmethod(_report, "on_end")
