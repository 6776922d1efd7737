"""Evaluate a learner on the fixed tasks of a split, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass

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

    def of_batch(self, tasks: range) -> "BaselineTasks":
        """Return how many these are of a batch."""
        counts = (min(max(n - tasks.start, 0), len(tasks)) for n in (self.n_untrained, self.n_reordered))
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

    def compute(episodes: Episodes, tasks: range) -> dict[str, Tensor]:
        beside = None if baselines is None else baselines.of_batch(tasks)
        return _evaluate_batch(learner, episodes, statistics, with_scores, beside)

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

    def compute(episodes: Episodes, _: range) -> dict[str, Tensor]:
        return {"accuracy": learner.centroid_accuracies(episodes)}

    found = _of_all_tasks(compute, data, split, n_tasks, tasks_per_batch, None, before_each_batch, group)
    return found["accuracy"].tolist()


def _of_all_tasks(
    compute: Callable[[Episodes, range], dict[str, Tensor]], data: EpisodeSource, split: str, n_tasks: int,
    tasks_per_batch: int, shape: EpisodeShape | None, before_each_batch: Callable[[], None], group: RankGroup,
) -> dict[str, Tensor]:  # fmt: skip
    """Return what is computed of all batches on all ranks, in the order of the tasks."""
    part, per_batch = group.part(n_tasks), len(group.part(tasks_per_batch, 0))
    batches = [range(first, min(first + per_batch, part.stop)) for first in range(part.start, part.stop, per_batch)]
    found: dict[str, list[Tensor]] = {}
    for tasks, episodes in zip(batches, episodes_in_turn(data, split, batches, shape, before_each_batch), strict=True):
        for name, tensor in compute(episodes, tasks).items():
            found.setdefault(name, []).append(tensor)
    for _ in range(-(-len(group.part(n_tasks, 0)) // per_batch) - len(batches)):  # rank 0 has the most
        before_each_batch()
    return group.together({name: torch.cat(tensors) for name, tensors in found.items()})


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
