"""Run folders as finished experiments leave them, with chosen results, without training anything."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiment_parts.evaluation import test_results as final_test
from experiment_parts.evaluation.split_evaluation import SplitEvaluation
from experiment_parts.evaluation.task_sets import TaskSet, collect_results, shape_protocols
from experiment_parts.records.epoch_records import columns_as_lists
from experiment_parts.runs.checkpoints import checkpoint_bytes
from utils.config import check_config
from utils.files.tables import write_csv, write_json

MAML_PLUS_PLUS = {
    "use_multi_step_loss_optimization": True, "per_step_bn_statistics": True,
    "learnable_per_layer_per_step_inner_loop_learning_rate": True,
}  # fmt: skip


class _Tasks(TaskSet):
    """Without data: what is read of them is made up."""

    digest = "a list of tasks"
    class_names = ("one", "other", "never drawn")

    @property
    def class_ids(self) -> np.ndarray:
        return np.tile([0, 1], (self.n_tasks, 1))


def finished_run(
    root: Path, name: str, right: Sequence[Sequence[int]], *, digest: str = "a list of tasks",
    val_accuracies: Sequence[float] = (0.5, 0.75), tested: bool = True, **config: Any,
) -> Path:  # fmt: skip
    """A run folder whose ensemble is right on chosen query images.

    Args:
        right: (tasks, queries) of 0 and 1, all queries of a task together.
        val_accuracies: one per epoch.
        config: keys beside those of a tiny 2-way experiment.
    """
    n_tasks, n_queries = np.shape(right)
    values = {
        "experiment_name": name, "dataset_name": "tiny", "num_classes_per_set": 2, "num_target_samples": n_queries // 2,
        "total_epochs": len(val_accuracies), "num_evaluation_tasks": n_tasks, "image_height": 28, "image_width": 28,
    } | config  # fmt: skip
    checked = check_config(values, "test")
    logs = root / name / "logs"
    for folder in (logs, root / name / "saved_models"):
        folder.mkdir(parents=True)
    write_json(root / name / "config.json", checked.to_json_dict())
    rows = [
        {"epoch": epoch, "train_loss_mean": 1.0 / epoch, "val_loss_mean": 1.5 / epoch, "train_accuracy_mean": accuracy,
         "val_accuracy_mean": accuracy}
        for epoch, accuracy in enumerate(val_accuracies, start=1)
    ]  # fmt: skip
    write_csv(logs / "summary_statistics.csv", rows)
    write_json(logs / "summary_statistics.json", columns_as_lists(rows))
    if tested:
        _write_test(logs, checked, torch.tensor(right), digest, len(rows))
    return root / name


def _write_test(logs: Path, config: Any, right: torch.Tensor, digest: str, epochs: int) -> None:
    labels = torch.zeros_like(right)
    labels[:, right.shape[1] // 2 :] = 1
    answers = torch.where(right.bool(), labels, 1 - labels)
    scores = torch.nn.functional.one_hot(answers, config.num_classes_per_set).float()
    task_sets = [_Tasks(None, shape, protocol) for shape, protocol in shape_protocols(config)]
    models = [{"epoch": epochs, "file": f"train_model_{epochs}.safetensors", "val_accuracy": 0.5}]
    results, arrays = collect_results(
        task_sets, config.test_batch_norm_statistics, models, [[SplitEvaluation({}, scores, labels)]]
    )
    for result in results:
        result["task_list_digest"] = digest
    summary = results[0] | {
        "results": results,
        "selection": final_test.BEST_MODELS,
        "epochs_trained": epochs,
        "stopped_early": None,
        "suffix": "",
    }
    (logs / "test_predictions.safetensors").write_bytes(checkpoint_bytes(arrays, {"models": models}))
    write_json(logs / "test_summary.json", summary)


def change_json(path: Path, **changes: Any) -> None:
    """Give a JSON file other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
