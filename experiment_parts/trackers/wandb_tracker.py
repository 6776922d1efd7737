"""Weights & Biases: scalars, gradient histograms, example episodes and the config, in logs/wandb of the run folder
or online.

A run folder is one W&B run, however often it is resumed; logs/wandb.json holds its id, and the iteration up to which
it has been sent. W&B takes no step twice, so nothing is sent before a checkpoint holds it: what a killed process
logged past its checkpoint was never sent.
"""

import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment_parts.records.observers import Observer
from experiment_parts.trackers.episode_image import episode_image
from experiment_parts.trackers.scalars import (
    epoch_scalars,
    iteration_scalars,
    summary_scalars,
    written_epochs,
    written_records,
)
from utils.files.reading import read_object
from utils.files.tables import write_json

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
HISTOGRAM_BINS = 64


class WandbTracker(Observer):
    """Sends a run to W&B.

    Args:
        mode: offline writes files for `wandb sync`; online without a login does the same, and says so.
    """

    def __init__(self, *, project: str, mode: str = "offline", track_gradients: bool = False):
        self.project, self.mode, self.track_gradients = project, mode, track_gradients
        self._run: Any = None
        self._waiting: list[tuple[int, dict[str, Any]]] = []

    def on_start(self, run_folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        import wandb

        self._run_folder = run_folder
        self._iterations_per_epoch = config["total_iter_per_epoch"]
        self._memory = run_folder / "logs" / "wandb.json"
        self._sent = self._read_memory()
        if self.mode == "online" and not wandb.api.api_key:
            log.warning(
                "W&B: not logged in (wandb login); writing offline to %s instead, for wandb sync.",
                run_folder / "logs" / "wandb",
            )
            self.mode = "offline"
        self._run = wandb.init(
            project=self.project, name=run_folder.name, id=self._sent["id"], resume="allow", mode=self.mode,
            dir=str(run_folder / "logs"), config=dict(config), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        if self.mode == "online":  # the server knows what has arrived; its `step` is that of the next row
            self._sent["iteration"] = max(self._run.step - 1, 0)
        self._waiting += [*written_records(run_folder), *written_epochs(run_folder, config, rows)]
        self._send()

    def _read_memory(self) -> dict[str, Any]:
        try:
            memory = read_object(self._memory)
            return {"id": str(memory["id"]), "iteration": int(memory["iteration"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), "iteration": 0}  # an agent gives it

    def on_iteration_metrics(self, record: dict[str, Any]) -> None:
        self._waiting.append((record["iteration"], iteration_scalars(record)))

    def on_gradients(self, iteration: int, gradients: "Mapping[str, Tensor]") -> None:
        if not self.track_gradients:
            return
        import numpy as np
        import wandb

        content: dict[str, Any] = {}
        for name, gradient in gradients.items():
            values = gradient.detach().float().cpu().numpy()
            content[f"gradients/{name}"] = wandb.Histogram(np_histogram=np.histogram(values, bins=HISTOGRAM_BINS))
            content[f"gradient_norms/{name}"] = float(np.linalg.norm(values))
        self._waiting.append((iteration, content))

    def on_save(self, iteration: int) -> None:
        if (
            self._run is not None and iteration % self._iterations_per_epoch
        ):  # at its end the epoch is about to be reported
            self._send()

    def on_epoch(self, row: dict[str, Any], curves: dict[str, Any]) -> None:
        import wandb

        content: dict[str, Any] = epoch_scalars(row, curves)
        picture = episode_image(self._run_folder / "logs" / "validation_episodes.safetensors", row["epoch"])
        if picture is not None:
            content["validation/episodes"] = wandb.Image(picture)
        self._waiting.append((curves["iteration"], content))
        self._send()

    def on_test(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary_scalars(summary))

    def on_end(self) -> None:
        """Drop what no checkpoint holds: the next process reports it again."""
        if self._run is not None:
            self._run.finish()

    def _send(self) -> None:
        """Send one row per step, complete at once: W&B takes none twice, and a kill loses a row that is not."""
        by_step: dict[int, dict[str, Any]] = {}
        for step, content in self._waiting:
            by_step.setdefault(step, {}).update(content)
        for step in sorted(step for step in by_step if step > self._sent["iteration"]):
            self._run.log(by_step[step], step=step, commit=True)
            self._sent["iteration"] = step
        self._waiting = []
        meaning = "id of the W&B run, and the training iterations that were sent to it"
        write_json(self._memory, {**self._sent, "meaning": meaning})
