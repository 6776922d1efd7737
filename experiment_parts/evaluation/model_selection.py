"""Which checkpoints of a run are tested, and reading them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiment_parts.records import epoch_records
from experiment_parts.runs.checkpoints import epoch_path, list_epochs, load_checkpoint
from experiment_parts.runs.run_folder import RunFolder
from utils.errors import ConfigError, StorageError
from utils.paths import expanded
from utils.words import is_whole_number

Model = tuple[dict[str, Any], dict[str, Tensor]]
"""What is known of a model (epoch, file, val_accuracy), and its checkpoint's tensors."""


def load_best(run_folder: RunFolder, rows: Sequence[Mapping[str, Any]], n_models: int) -> list[Model]:
    """Load the best models of a run by validation accuracy that verify; without any validation yet, the newest.

    Raises:
        StorageError: none is left.
    """
    accuracy = {row["epoch"]: row["val_accuracy_mean"] for row in rows}
    best: list[Model] = []
    for epoch in epoch_records.ranked_epochs(rows) or [len(rows)]:
        path = epoch_path(run_folder.saved_models, epoch)
        if len(best) == n_models or not path.exists():
            continue
        tensors = run_folder.load_usable(path)
        if tensors is not None:
            best.append(({"epoch": epoch, "file": path.name, "val_accuracy": accuracy[epoch]}, tensors))
    if not best:
        raise StorageError(f"{run_folder.saved_models}: no checkpoint of a validated epoch is left to test.")
    return best


def load_chosen(path: Path) -> list[Model]:
    """Load the one model of a file that the user names.

    Raises:
        StorageError: it cannot be read.
    """
    tensors, state = load_checkpoint(path)
    rows = state.get("rows") or [{}]
    known = {"epoch": state.get("epoch"), "file": path.name, "val_accuracy": rows[-1].get("val_accuracy_mean")}
    return [(known, tensors)]


def chosen_checkpoint(saved_models: Path, wanted: str) -> Path:
    """Return the file that the key load_checkpoint, an epoch number or a path, means.

    Raises:
        ConfigError: it does not exist.
    """
    path = epoch_path(saved_models, int(wanted)) if is_whole_number(wanted) else expanded(wanted)
    if not path.is_file():
        there = ", ".join(str(epoch) for epoch in list_epochs(saved_models)) or "none"
        why = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"load_checkpoint {wanted}: {path} {why}. Epochs of this run: {there}.")
    return path
