"""The files that a run writes while it trains.

One process of a run writes them; in the others all of this does nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from experiment_parts.records import epoch_records
from experiment_parts.runs.checkpoints import epoch_path, save_checkpoint, unfinished_path
from experiment_parts.runs.run_folder import RunFolder
from utils.files.atomic_files import remove_or_warn
from utils.files.tables import JsonLines, write_csv, write_json

log = logging.getLogger(__name__)


class RunRecords:
    """Checkpoints and the files in logs/ that are written epoch by epoch or line by line."""

    def __init__(self, run_folder: RunFolder, *, writes: bool = True):
        """Write nothing, without `writes`, in a process that leaves it to another one."""
        self._saved_models, self._logs = run_folder.saved_models, run_folder.logs
        self._writes, self._is_open = writes, False
        self._metrics_file = JsonLines(run_folder.logs / "metrics.jsonl")

    def open(self, metrics_bytes: int) -> None:
        """Go on after the first bytes of metrics.jsonl.

        Raises:
            StorageError: this or any other method here: no space or no permission.
        """
        if self._writes:
            lost = self._metrics_file.open(metrics_bytes)
            if lost:
                log.warning(
                    "%s: %d of its %d bytes up to the checkpoint are gone, and with them lines of earlier iterations; "
                    "the run goes on, curves.json and summary_statistics.csv are whole.",
                    self._metrics_file.path, lost, metrics_bytes,
                )  # fmt: skip
            self._is_open = True

    def add_line(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self._writes:
            self._metrics_file.append([record])

    def commit(self) -> int:
        """Return the bytes of metrics.jsonl that are safely there, for the checkpoint; 0 where it is not written."""
        return self._metrics_file.commit() if self._is_open else 0

    def close(self) -> None:
        """End metrics.jsonl: no line comes after this."""
        self._metrics_file.close()
        self._is_open = False

    def save(self, path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        if self._writes:
            save_checkpoint(path, tensors, state)

    def save_unfinished(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint inside an epoch."""
        self.save(unfinished_path(self._saved_models), tensors, state)

    def save_epoch(self, epoch: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write that of an epoch (from 1), after which the one inside it is needed no more."""
        self.save(epoch_path(self._saved_models, epoch), tensors, state)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Remove the checkpoint inside an epoch, if there is one."""
        if self._writes:
            remove_or_warn(unfinished_path(self._saved_models))

    def write_epochs(
        self, rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]], keep_best: int | Literal["all"]
    ) -> None:
        """Bring the tables of the epochs up to date, and remove the checkpoints of these epochs that are among neither
        the best nor the newest.
        """
        if not self._writes:
            return
        write_csv(self._logs / "summary_statistics.csv", rows)
        write_json(self._logs / "summary_statistics.json", epoch_records.columns_as_lists(rows))
        write_json(self._logs / "curves.json", {"epochs": list(curves)})
        # A file of an epoch that this run has not trained is not the run's to remove.
        for epoch in {row["epoch"] for row in rows} - set(epoch_records.epochs_to_keep(rows, best=keep_best)):
            remove_or_warn(epoch_path(self._saved_models, epoch))
