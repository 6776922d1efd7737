"""Evaluate a learner on the fixed tasks of a split, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.episodes import EpisodeShape
from utils.epoch_records import STEP_METRICS
from utils.prefetching import episodes_in_turn
from utils.task_scores import is_regression


@dataclass(frozen=True)
class SplitEvaluation:
    """Evaluation of one model on T fixed tasks: metric -> (S+1, T) numbers; class scores and labels where asked for."""

    metrics: dict[str, list[list[float]]]
    scores: Tensor | None  # (T, N*Q, N), on the host; outputs (T, Q, D) in a regression
    labels: Tensor | None  # (T, N*Q), on the host; (T, Q, D) in a regression


def evaluate_tasks(
    learner: Any, data: Any, split: str, *, n_tasks: int, tasks_per_batch: int, statistics: str | None = None,
    with_scores: bool = False, shape: EpisodeShape | None = None, before_each_batch: Callable[[], None] = lambda: None,
) -> SplitEvaluation:  # fmt: skip
    """Evaluate on tasks 0..T-1 of a split; the last batch is as small as it must be. Changes nothing.

    Args:
        shape: of the tasks; None: the one that the data has of itself.
        before_each_batch: may raise to stop.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in STEP_METRICS}
    hits, scores, labels = [], [], []
    batches = [range(first, min(first + tasks_per_batch, n_tasks)) for first in range(0, n_tasks, tasks_per_batch)]
    for episodes in episodes_in_turn(data, split, batches, shape, before_each_batch):
        evaluation = learner.evaluate(episodes, statistics=statistics)
        for name, tensors in parts.items():
            tensors.append(getattr(evaluation, name).detach())  # (S+1, B)
        if not is_regression(episodes.query_labels):
            hits.append((evaluation.query_logits.argmax(dim=-1) == episodes.query_labels).sum(dim=-1))  # (B,)
            n_query = episodes.query_labels.shape[1]
        if with_scores:
            scores.append(evaluation.query_logits.detach().cpu())
            labels.append(episodes.query_labels.cpu())
    together = torch.stack([torch.cat(tensors, dim=1) for tensors in parts.values()]).tolist()  # (4, S+1, T)
    metrics = dict(zip(parts, together, strict=True))
    if hits:  # from whole numbers, so that models with equally many hits tie exactly
        metrics["query_accuracy"][-1] = [n_hits / n_query for n_hits in torch.cat(hits).tolist()]
    return SplitEvaluation(
        metrics,
        torch.cat(scores) if with_scores else None,
        torch.cat(labels) if with_scores else None,
    )
