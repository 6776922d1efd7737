"""What models are tested on: sets of fixed tasks, each of one shape, and how their results become one table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment_parts.evaluation import test_results as final_test
from experiment_parts.evaluation.baselines import summarise_baselines
from experiment_parts.learner import Learner
from utils.config import ExperimentConfig
from utils.episodes.drawing import EpisodeShape
from utils.episodes.source import FixedEpisodeSource
from utils.metrics import calibration_bins, calibration_error, task_scores

if TYPE_CHECKING:
    from torch import Tensor

    from experiment_parts.evaluation.split_evaluation import BaselineTasks, SplitEvaluation
    from utils.ranks.group import RankGroup


@dataclass(frozen=True)
class TaskSet:
    """Tasks 0..T-1 of one shape of a data source's test split."""

    data: FixedEpisodeSource
    shape: EpisodeShape | None
    """None: the shape that the data has of itself."""
    protocol: Mapping[str, Any]
    """What every result says about its tasks: ways, shots, queries, steps, tasks, seed, dataset."""

    @property
    def n_tasks(self) -> int:
        """T."""
        return self.protocol["tasks"]

    @property
    def name(self) -> str:
        """By which the arrays of several sets are distinguished."""
        protocol = self.protocol
        return f"{protocol['dataset']}.{protocol['ways']}way_{protocol['shots']}shot_{protocol['queries']}query"

    @property
    def class_names(self) -> list[str]:
        """Of the test split; a class is its place in this list."""
        return list(self.data.class_names["test"])

    @property
    def class_ids(self) -> np.ndarray:
        """int64 (T, N), the classes of each task."""
        return self.data.draw("test", range(self.n_tasks), self.shape).classes

    @property
    def digest(self) -> str:
        """sha256 of the class and image names: equal means the same tasks."""
        return self.data.task_list_digest("test", range(self.n_tasks), self.shape)


def protocol_of(config: ExperimentConfig, shape: EpisodeShape) -> dict[str, Any]:
    """Return what a result of the test of a config says about tasks of this shape."""
    return {
        "ways": shape.n_way, "shots": shape.shots, "queries": shape.n_query,
        "steps": config.number_of_evaluation_steps_per_iter, "tasks": config.num_evaluation_tasks,
        "seed": config.val_seed, "dataset": config.dataset_name,
    }  # fmt: skip


def shape_protocols(config: ExperimentConfig) -> list[tuple[EpisodeShape, dict[str, Any]]]:
    """Return every shape of the test of a config, and what a result says about it."""
    return [(shape, protocol_of(config, shape)) for shape in config.test_shapes]


def build_task_sets(config: ExperimentConfig, data: FixedEpisodeSource) -> list[TaskSet]:
    """Build the sets that a config tests on: one per shape; none where it leaves the test for later."""
    if not (config.test_after_training or config.evaluate_on_test_set_only):
        return []
    return [TaskSet(data, shape, protocol) for shape, protocol in shape_protocols(config)]


def build_other_task_sets(
    config: ExperimentConfig, found: Iterable[tuple[FixedEpisodeSource, EpisodeShape, Mapping[str, Any]]]
) -> list[TaskSet]:
    """Build the sets that a finished run is tested on, of what `data.build_other_data` has found: source, shape, and
    facts that take the place of the config's in the protocol.
    """
    return [TaskSet(data, shape, protocol_of(config, shape) | facts) for data, shape, facts in found]


def protocols(task_sets: Sequence[TaskSet], statistics: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the rows of the table say about themselves, in their order."""
    return [dict(tasks.protocol) | {"statistics": name} for tasks in task_sets for name in statistics]


def protocols_of(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return `protocols` of the test of a config, without its data."""
    return [
        protocol | {"statistics": name}
        for _, protocol in shape_protocols(config)
        for name in config.test_batch_norm_statistics
    ]


Evaluations = Sequence["SplitEvaluation"]
"""Of one model: in the order of `protocols`."""
BaselinesOf = Callable[[Mapping[str, Any]], "BaselineTasks"]


def evaluate_task_sets(
    learner: Learner, task_sets: Sequence[TaskSet], statistics: Sequence[str], tasks_per_batch: int,
    before_each_batch: Callable[[], None], group: "RankGroup", beside: "BaselinesOf | None" = None,
) -> list["SplitEvaluation"]:  # fmt: skip
    """Evaluate one model on every set with every kind of statistics, in the order of `protocols`.

    Args:
        before_each_batch: may raise to stop.
        group: its ranks share the tasks.
        beside: of a protocol, which baselines are computed; None: none.
    """
    from experiment_parts.evaluation.split_evaluation import evaluate_tasks

    return [
        evaluate_tasks(
            learner, tasks.data, "test", n_tasks=tasks.n_tasks, tasks_per_batch=tasks_per_batch, statistics=kind,
            with_scores=True, shape=tasks.shape, before_each_batch=before_each_batch, group=group,
            baselines=beside and beside(dict(tasks.protocol) | {"statistics": kind}),
        )
        for tasks in task_sets
        for kind in statistics
    ]  # fmt: skip


def collect_results(
    task_sets: Sequence[TaskSet],
    statistics: Sequence[str],
    models: Sequence[dict[str, Any]],
    evaluations: Sequence[Evaluations],
    *,
    are_logits: bool = True,
) -> tuple[list[dict[str, Any]], "dict[str, Tensor]"]:
    """Score the models together and alone on every set with every kind of statistics.

    Args:
        evaluations: of each model; the first one's may have baselines.
        are_logits: whether the softmax of the scores is meant as probabilities.
    Returns:
        (results in the order of `protocols`; name -> scores (models, tasks, queries, classes), labels (tasks,
        queries) and classes (tasks, N): `scores.<statistics>`, `query_labels` and `class_ids` for one set, with the
        set's name behind for several).
    """
    import torch

    results, arrays = [], {}
    digests = [tasks.digest for tasks in task_sets]
    for place, protocol in enumerate(protocols(task_sets, statistics)):
        tasks, kind = task_sets[place // len(statistics)], protocol["statistics"]
        scores = torch.stack([of_model[place].scores for of_model in evaluations])
        labels = evaluations[0][place].labels
        suffix = f".{tasks.name}" if len(task_sets) > 1 else ""
        arrays |= {f"query_labels{suffix}": labels, f"scores.{kind}{suffix}": scores}
        arrays[f"class_ids{suffix}"] = torch.from_numpy(tasks.class_ids.copy())
        result = {"protocol": protocol, "task_list_digest": digests[place // len(statistics)]}
        if len(tasks.class_names) == protocol["ways"] > 1:  # of a regression 1
            result |= {final_test.SAME_CLASSES: True}
        result |= final_test.score_models(scores, labels, models)
        best, mean = evaluations[0][place], scores.mean(dim=0).double()
        if best.baselines is not None:
            of_ensemble = task_scores(mean, labels).tolist() if len(models) > 1 else None
            steps = best.metrics["query_accuracy"]
            result["baselines"] = summarise_baselines(best.baselines, steps, models[0], protocol["ways"], of_ensemble)
            if are_logits and best.baselines:
                bins = calibration_bins(mean.softmax(-1).numpy(), labels.numpy())
                result["baselines"]["calibration_error"] = calibration_error(bins)
        results.append(result)
    return results, arrays


def curve_rows(
    task_sets: Sequence[TaskSet],
    statistics: Sequence[str],
    epoch: int,
    val_accuracy: float | None,
    evaluations: Evaluations,
) -> list[dict[str, Any]]:
    """Return the rows of test_curve.csv of one epoch's model."""
    return [
        {"epoch": epoch, "val_accuracy_mean": val_accuracy}
        | final_test.accuracy_columns(result.scores, result.labels)
        | protocol
        for protocol, result in zip(protocols(task_sets, statistics), evaluations, strict=True)
    ]
