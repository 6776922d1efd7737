"""What is written down about a training iteration that gave numbers which are not finite."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiment_parts.learner import Learner
from utils.episodes.batches import EpisodeBatch
from utils.paths import command

if TYPE_CHECKING:
    from meta_learning.meta_gradients import MetaGradients

CHECKED_METRICS = ("loss", "gradient_norm")


def reason(metrics: Mapping[str, Sequence[float]]) -> str:
    """Return which of an iteration's numbers is not finite, e.g. 'the loss is nan'."""
    for name in CHECKED_METRICS:
        if not math.isfinite(metrics[name][0]):
            return f"the {name.replace('_', ' ')} is {metrics[name][0]}"
    return "a batch-norm statistic is not finite"


def is_finite(meta_gradients: "MetaGradients") -> bool:
    """Return whether the learner would apply a meta-gradient; waits for the device."""
    checked = [*(meta_gradients.metrics[name] for name in CHECKED_METRICS), *meta_gradients.statistics.values()]
    return all(bool(torch.isfinite(value).all()) for value in checked)


def iteration_report(learner: Learner, episodes: EpisodeBatch, iteration: int, epoch: int) -> dict[str, Any]:
    """Compute a training iteration without applying it and say everything about it, JSON-able.

    Args:
        learner: as it is before that iteration.
        episodes: its meta-batch.
        iteration: counted from 1.
        epoch: counted from 0.
    """
    result = learner.meta_gradients(episodes, epoch)
    metrics = {name: value.detach().reshape(-1).tolist() for name, value in result.metrics.items()}
    return {
        "iteration": iteration,
        "epoch": epoch + 1,
        "is_finite": is_finite(result),
        "training_tasks": list(episodes.indices),
        "metrics": {name: _readable(values) for name, values in metrics.items()},
        "meta_learning_rate": learner.meta_learning_rate(epoch),
        "multi_step_loss_weights": list(learner.multi_step_loss_weights(epoch)),
        "gradient_norms": _norms(result.gradients),
        "statistic_norms": _norms(result.statistics),
        "state_norms": _norms(learner.state_tensors()),
        **learner.snapshot(),
    }


def report_path(logs: Path, iteration: int) -> Path:
    """Return where the report of a failed iteration lies."""
    return logs / f"non_finite_iteration_{iteration}.json"


def replay_command(run_folder: Path, iteration: int) -> str:
    """Return what the user types to compute an iteration again."""
    config = shlex.quote(str(run_folder / "config.json"))
    return f"{command('train')} --name_of_args_json_file {config} --replay_iteration {iteration}"


def _norms(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: _readable([float(torch.linalg.vector_norm(t.double()))])[0] for name, t in tensors.items() if t.numel()
    }


def _readable(values: Sequence[float]) -> list[float | str]:
    """Return the values with nan and infinity, which JSON does not have, as text."""
    return [value if math.isfinite(value) else str(value) for value in values]
