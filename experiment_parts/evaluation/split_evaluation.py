"""Evaluate a learner on the fixed tasks of a split, batch by batch."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiment_parts.learner import Learner
from experiment_parts.records.epoch_records import STEP_METRICS
from utils.episodes.drawing import EpisodeShape
from utils.episodes.prefetching import episodes_in_turn
from utils.episodes.source import Episodes, EpisodeSource
from utils.metrics import is_regression
from utils.ranks.group import ALONE, RankGroup

BASELINE = "baselines."


@dataclass(frozen=True)
class BaselineTasks:
    """Of how many of the first tasks the baselines that need passes of their own are computed."""

    n_untrained: int
    n_reordered: int

    def of_batch(self, tasks: Sequence[int]) -> "BaselineTasks":
        """Return how many these are of a batch, whose tasks ascend."""
        counts = (sum(task < n for task in tasks) for n in (self.n_untrained, self.n_reordered))
        return BaselineTasks(*counts)


@dataclass(frozen=True)
class SplitEvaluation:
    """Evaluation of one model on T fixed tasks: metric -> (S+1, T) numbers; class scores and labels where asked for."""

    metrics: dict[str, list[list[float]]]
    scores: Tensor | None  # (T, N*Q, N), on the host; outputs (T, Q, D) in a regression
    labels: Tensor | None  # (T, N*Q), on the host; (T, Q, D) in a regression
    baselines: dict[str, list] | None = None  # name -> T accuracies, or T lists of some; nan where not computed


def evaluate_tasks(
    learner: Learner, data: EpisodeSource, split: str, *, n_tasks: int, tasks_per_batch: int,
    statistics: str | None = None, with_scores: bool = False, shape: EpisodeShape | None = None,
    before_each_batch: Callable[[], None] = lambda: None, group: RankGroup = ALONE,
    baselines: BaselineTasks | None = None,
) -> SplitEvaluation:  # fmt: skip
    """Evaluate on tasks 0..T-1 of a split; the last batch is as small as it must be. Changes nothing.

    Args:
        tasks_per_batch: over all ranks.
        shape: of the tasks; None: the one that the data has of itself.
        before_each_batch: may raise to stop; called equally often on all ranks.
        group: each of its ranks evaluates its part and gets the result of all.
        baselines: what is computed beside; None: nothing.
    """

    def compute(episodes: Episodes, tasks: Sequence[int]) -> dict[str, Tensor]:
        beside = None if baselines is None else baselines.of_batch(tasks)
        return _evaluate_batch(learner, episodes, statistics, with_scores, beside)

    # A recording serves support sets of one size, of which there may be as many as batches.
    recorded = shape is None or shape.least_shot is None
    with nullcontext() if recorded else learner.step_by_step():
        of_all = _of_all_tasks(compute, data, split, n_tasks, tasks_per_batch, shape, before_each_batch, group)
    together = of_all["metrics"].permute(1, 2, 0).tolist()  # (4, S+1, T)
    metrics = dict(zip(STEP_METRICS, together, strict=True))
    if "hits" in of_all:  # from whole numbers, so that models with equally many hits tie exactly
        metrics["query_accuracy"][-1] = [hits / n_query for hits, n_query in of_all["hits"].tolist()]
    beside = {name.removeprefix(BASELINE): value.tolist() for name, value in of_all.items() if BASELINE in name}
    return SplitEvaluation(metrics, of_all.get("scores"), of_all.get("labels"), None if baselines is None else beside)


def evaluate_centroids(
    learner: Learner, data: EpisodeSource, split: str, *, n_tasks: int, tasks_per_batch: int,
    before_each_batch: Callable[[], None], group: RankGroup,
) -> list[float]:  # fmt: skip
    """Return the accuracy of class centroids, without adaptation, on tasks 0..T-1 of a split; arguments as above."""

    def compute(episodes: Episodes, _: Sequence[int]) -> dict[str, Tensor]:
        return {"accuracy": learner.centroid_accuracies(episodes)}

    found = _of_all_tasks(compute, data, split, n_tasks, tasks_per_batch, None, before_each_batch, group)
    return found["accuracy"].tolist()


def _of_all_tasks(
    compute: Callable[[Episodes, Sequence[int]], dict[str, Tensor]], data: EpisodeSource, split: str, n_tasks: int,
    tasks_per_batch: int, shape: EpisodeShape | None, before_each_batch: Callable[[], None], group: RankGroup,
) -> dict[str, Tensor]:  # fmt: skip
    """Return what is computed of all batches on all ranks, in the order of the tasks."""
    per_batch = len(group.part(tasks_per_batch, 0))
    of_ranks = [_batches(data, split, group.part(n_tasks, rank), per_batch, shape) for rank in range(group.size)]
    batches = of_ranks[group.index]
    found: dict[str, list[Tensor]] = {}
    places: dict[str, list[int]] = {}
    for tasks, episodes in zip(batches, episodes_in_turn(data, split, batches, shape, before_each_batch), strict=True):
        for name, tensor in compute(episodes, tasks).items():
            found.setdefault(name, []).append(tensor)
            places.setdefault(name, []).extend(tasks)
    for _ in range(max(map(len, of_ranks)) - len(batches)):
        before_each_batch()
    # An order for each name: what is known of the first tasks alone is missing in a batch without any of them.
    return group.together({name: torch.cat(tensors)[np.argsort(places[name])] for name, tensors in found.items()})


def _batches(
    data: EpisodeSource, split: str, tasks: range, per_batch: int, shape: EpisodeShape | None
) -> list[Sequence[int]]:
    """Divide tasks into batches of equally many support images: padding would count in transductive batch norm."""
    sizes = data.support_sizes(split, tasks, shape)
    groups = (
        [tasks] if sizes is None else [(tasks.start + np.flatnonzero(sizes == n)).tolist() for n in np.unique(sizes)]
    )
    return [group[first : first + per_batch] for group in groups for first in range(0, len(group), per_batch)]


def _evaluate_batch(
    learner: Learner, episodes: Episodes, statistics: str | None, with_scores: bool, beside: BaselineTasks | None
) -> dict[str, Tensor]:
    """Return metrics (B, 4, S+1) and, where tasks have classes, hits (B, 2): right answers and questions; scores and
    labels on the host; baselines.
    """
    keep = {} if beside is None else {"keep_features": True}
    evaluation = learner.evaluate(episodes, statistics=statistics, **keep)
    metrics = torch.stack([getattr(evaluation, name).detach() for name in STEP_METRICS])  # (4, S+1, B)
    result = {"metrics": metrics.permute(2, 0, 1)}
    if not is_regression(episodes.query_labels):
        hits = (evaluation.query_logits.argmax(dim=-1) == episodes.query_labels).sum(dim=-1)  # (B,)
        result["hits"] = torch.stack([hits, torch.full_like(hits, episodes.query_labels.shape[1])], dim=1)
    if with_scores:
        result |= {"scores": evaluation.query_logits.detach().cpu(), "labels": episodes.query_labels.cpu()}
    if beside is not None:
        found = learner.baselines(
            episodes, evaluation, statistics, n_untrained=beside.n_untrained, n_reordered=beside.n_reordered
        )
        result |= {BASELINE + name: values for name, values in found.items()}
    return result
