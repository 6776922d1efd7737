"""TensorBoard: scalars, gradient histograms, example episodes and hyper-parameters, in logs/tensorboard of the run
folder.

Event files hold a run up to each of its checkpoints, and of a process that was killed some more, which TensorBoard
hides once the run has resumed. A tracker that is turned on later writes what came before from the run's own files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from experiment_parts.records.observers import Observer
from experiment_parts.trackers.episode_image import episode_image
from experiment_parts.trackers.scalars import (
    Scalars,
    epoch_scalars,
    iteration_scalars,
    last_iteration,
    summary_scalars,
    written_epochs,
    written_records,
)


class TensorBoardTracker(Observer):
    """Writes event files. `tensorboard --logdir EXPERIMENTS_DIR` shows those of all runs."""

    def __init__(self, *, track_gradients: bool = False):
        self.track_gradients = track_gradients
        self._writer: SummaryWriter | None = None

    def on_start(self, run_folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self._run_folder = run_folder
        self._iterations_per_epoch = config["total_iter_per_epoch"]
        folder = run_folder / "logs" / "tensorboard"
        folder.mkdir(exist_ok=True)
        is_new = not any(folder.iterdir())
        # A step written twice is a saw-tooth: of what a killed process wrote past its checkpoint, which is written
        # again now, TensorBoard is to forget the first.
        purge_step = None if is_new else last_iteration(run_folder, config, rows) + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        if is_new:
            self._write_hyper_parameters(config)
            for step, scalars in (*written_records(run_folder), *written_epochs(run_folder, config, rows)):
                self._write(scalars, step)
        self._writer.flush()

    def _write_hyper_parameters(self, config: Mapping[str, Any]) -> None:
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in config.items()
        }
        for summary in hparams(plain, {"val/accuracy": 0, "test/accuracy": 0})[:2]:  # the third would end the session
            self._writer.file_writer.add_summary(summary)
        lines = [f"| {name} | {value} |" for name, value in config.items()]
        self._writer.add_text("config", "\n".join(["| key | value |", "| --- | --- |", *lines]), 0)

    def on_iteration_metrics(self, record: dict[str, Any]) -> None:
        self._write(iteration_scalars(record), record["iteration"])

    def on_gradients(self, iteration: int, gradients: Mapping[str, Tensor]) -> None:
        if not self.track_gradients:
            return
        for name, gradient in gradients.items():
            self._writer.add_histogram(f"gradients/{name}", gradient.detach(), iteration)
            self._writer.add_scalar(f"gradient_norms/{name}", float(gradient.detach().norm()), iteration)

    def on_save(self, iteration: int) -> None:
        if self._writer is not None:
            self._writer.flush()

    def on_epoch(self, row: dict[str, Any], curves: dict[str, Any]) -> None:
        step = curves["iteration"]
        self._write(epoch_scalars(row, curves), step)
        picture = episode_image(self._run_folder / "logs" / "validation_episodes.safetensors", row["epoch"])
        if picture is not None:
            self._writer.add_image("validation/episodes", picture, step, dataformats="HWC")
        self._writer.flush()

    def on_test(self, summary: dict[str, Any]) -> None:
        self._write(summary_scalars(summary), summary["epochs_trained"] * self._iterations_per_epoch)
        self._writer.flush()

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, scalars: Scalars, step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
