"""What the rows beside the result of a test cost: the final test of a config with and without them, in turns.

    python benchmarks/baseline_cost.py [CONFIG.json] [--key value ...]

CONFIG.json: any config (default: the quickstart's); --key value: changes to it, any key of a config, such as
num_evaluation_tasks for a shorter measurement and number_of_ensemble_models.

Evaluates the network as it is initialised, as many times as models would be tested, on the test tasks of the config,
and scores all of them, five times with test_baselines and five times without. Run it when nothing else runs.
"""

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import measure_config, seconds_of
from utils.config import ExperimentConfig
from utils.machine.devices import choose_device

if TYPE_CHECKING:
    from experiment_parts.evaluation.task_sets import TaskSet
    from few_shot_learning_system import FewShotLearner

TURNS = 5
MOST_SHARE = 0.2
"""Of a test's time, which everything beside its result may add."""


def measure(config: ExperimentConfig) -> tuple[list[float], list[float]]:
    """Return the seconds of each test without the rows, and with them."""
    import torch

    from data import build_data
    from experiment_parts.evaluation.task_sets import build_task_sets
    from few_shot_learning_system import build_learner

    device = choose_device(config.gpu_to_use)
    data = build_data(config, device, getattr(torch, config.parameter_format))
    learner, task_sets = build_learner(config, device), build_task_sets(config, data)

    ways = [partial(test, config, learner, task_sets, with_rows=with_rows) for with_rows in (False, True)]
    turns = [[seconds_of(way, device) for way in ways] for _ in range(1 + TURNS)]
    # Without the first turn, which alone records kernels, say.
    return tuple(map(list, zip(*turns[1:], strict=True)))


def test(config: ExperimentConfig, learner: "FewShotLearner", task_sets: "list[TaskSet]", *, with_rows: bool) -> None:
    """Do what a final test does between reading the models and writing the results."""
    from experiment_parts.evaluation.baselines import tasks_of_baselines
    from experiment_parts.evaluation.split_evaluation import BaselineTasks
    from experiment_parts.evaluation.task_sets import collect_results, evaluate_task_sets
    from utils.ranks.group import ALONE

    n_models, kinds = config.number_of_ensemble_models, config.test_batch_norm_statistics

    def beside(protocol: dict) -> BaselineTasks:
        counts = tasks_of_baselines(learner, protocol, n_models, is_regression=config.is_regression)
        return BaselineTasks(*counts)

    evaluations = [
        evaluate_task_sets(
            learner, task_sets, kinds, config.tasks_per_meta_batch, lambda: None, ALONE,
            beside if with_rows and number == 0 else None,
        )
        for number in range(n_models)
    ]  # fmt: skip
    models = [{"epoch": epoch, "file": "", "val_accuracy": None} for epoch in range(1, n_models + 1)]
    collect_results(task_sets, kinds, models, evaluations)


def table(config: ExperimentConfig, measured: tuple[Sequence[float], Sequence[float]]) -> str:
    """Return the measurements and what follows from them."""
    without, with_rows = measured
    lines = [f"{'':<14}{'median':>10}{'shortest':>10}{'longest':>10}"]
    for name, row in (("without", without), ("with the rows", with_rows)):
        lines.append(f"{name:<14}" + "".join(f"{x:>8.3f} s" for x in (statistics.median(row), min(row), max(row))))
    share = statistics.median(with_rows) / statistics.median(without) - 1
    return "\n".join(
        [
            *lines,
            f"{config.experiment_name}, {config.number_of_ensemble_models} models: the test takes {100 * share:.1f} % "
            f"longer ({'not more' if share <= MOST_SHARE else 'more'} than {100 * MOST_SHARE:g} %).",
        ]
    )


if __name__ == "__main__":
    sys.exit(measure_config(sys.argv[1:], __doc__, measure, table))
