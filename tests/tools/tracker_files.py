"""Reading back what trackers leave on the disk: TensorBoard's event files, and the offline files of Weights &
Biases.
"""

import json
from pathlib import Path
from typing import Any

from experiment_tools.trackers import wandb_files


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) in the order of the files, with nothing sorted or left out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def tensorboard_tags(folder: Path) -> dict[str, list[str]]:
    """What TensorBoard itself finds: kind ("scalars", "histograms", "images", ...) -> names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator.Tags()


def wandb_history(run_folder: Path) -> list[dict[str, Any]]:
    """The history rows of all offline files of a run, oldest file first."""
    return [row for path in _wandb_files(run_folder) for row in wandb_files.history_rows(path)]


def wandb_summary(run_folder: Path) -> dict[str, Any]:
    """What W&B shows beside the name of the run."""
    records = [record for path in _wandb_files(run_folder) for record in wandb_files.records(path)]
    items = [
        item for record in records if record.WhichOneof("record_type") == "summary" for item in record.summary.update
    ]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def wandb_run_ids(run_folder: Path) -> list[str]:
    """The run id in each offline file."""
    return [
        next(record.run.run_id for record in wandb_files.records(path) if record.WhichOneof("record_type") == "run")
        for path in _wandb_files(run_folder)
    ]


def _wandb_files(run_folder: Path) -> list[Path]:
    return wandb_files.offline_files(run_folder / "logs", "*")
