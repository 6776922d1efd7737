"""All methods on Omniglot, 5-way 1-shot, on one budget: accuracy, time and memory, and the command of each row.

    python benchmarks/methods_on_omniglot.py [--only anil boil] [--on groceries] [--seeds 0 1 2] [--rounds 3]

Trains what is not trained yet (`EXPERIMENTS_DIR/methods_<name>`; interrupted runs are resumed) on the Omniglot in
`DATASET_DIR`, or on the photographs of groceries, seen in 28 x 28 in colour; then times `--iterations` meta-iterations
of every method in turns, `--rounds` times (0: not at all), on one thread by the process's own clock, which other
programs do not move. Accuracies are read from the runs' files, and so is what each method is above MAML on the same
tasks, where MAML is among them; memory is what the log says of one task.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.matrix_cells import task_accuracies
from benchmarks.parts.measuring import random_episodes
from benchmarks.parts.trained_runs import REPOSITORY_ROOT, SMALL_GROCERIES, TrainedRun, say, table, with_interval
from utils.config import load_config
from utils.metrics import summarise

METHODS = {
    "proto_net": "ProtoNet",
    "anil": "ANIL",
    "boil": "BOIL",
    "meta_sgd": "Meta-SGD",
    "fomaml": "first-order MAML",
    "maml": "MAML",
    "maml++": "MAML++",
    "proto_maml": "ProtoMAML",
    "zero_head_maml": "MAML, zero head",
    "reptile": "Reptile",
    "r2d2": "R2D2",
    "unicorn_maml": "UNICORN-MAML, from scratch",
    "meta_curvature": "Meta-Curvature",
    "gap": "GAP",
    "t_net": "T-Net",
    "warp_maml": "Warp-MAML",
    "alfa": "ALFA",
    "l2f": "L2F",
    "worst_tasks": "worst tasks (CVaR)",
    "sharp_maml": "Sharp-MAML",
    "imaml": "iMAML",
    "sharp_inner": "Sharp-MAML, lower level",
    "metal": "MeTAL",
    "cavia": "CAVIA",
    "film": "FiLM",
    "lora": "LoRA",
}
"""Template, or key of `BY_KEYS` -> name; the quick ones first."""
BY_KEYS: dict[str, dict[str, object]] = {
    "sharp_inner": {"inner_loop_optimizer": "sharp"},
    "metal": {"inner_loop_optimizer": "metal"},
    "cavia": {
        "adapter_kind": "context", "adapter_targets": ["block2.norm"], "adapter_rank": 100, "adapted_parameters": "body"
    },
    "film": {"adapter_kind": "film", "adapter_targets": ["norm"]},
    "lora": {"adapter_kind": "lora"},
}  # fmt: skip
"""Methods that are MAML's template and these keys."""
UNLIKE = {"reptile"}
"""Whose test tasks are not MAML's: of ten shots."""
BUDGET = {
    "total_epochs": 2,
    "total_iter_per_epoch": 125,
    "batch_size": 8,
    "num_evaluation_tasks": 600,
    "validate_every_epochs": 2,
    "max_models_to_save": 1,
    "diagnostics_every_epochs": 2,
    "report_every_s": 0,
}
"""250 iterations of 8 tasks; 600 test tasks; the last model is tested, alone."""
DATASETS: dict[str, dict[str, object]] = {"omniglot": {}, "groceries": SMALL_GROCERIES}
"""Name -> what differs from the config of Omniglot."""


def run_of(method: str, dataset: str = "omniglot", seed: int = 0) -> TrainedRun:
    """Return the run of a method with a seed of training."""
    template = "maml" if method in BY_KEYS else method
    name = f"methods_{'' if dataset == 'omniglot' else f'{dataset}_'}{method}{f'_seed{seed}' if seed else ''}"
    keys = BUDGET | BY_KEYS.get(method, {}) | DATASETS[dataset] | ({"train_seed": seed} if seed else {})
    return TrainedRun(f"omniglot_{template}_5way_1shot_seed0", name, keys)


def measured_in_turns(
    methods: Sequence[str], dataset: str, rounds: int, iterations: int
) -> dict[str, tuple[float, float]]:
    """Measure ms of a meta-iteration on one thread, and MiB of one task: method -> medians over the rounds."""
    import torch

    from few_shot_learning_system import build_learner
    from utils.machine.host import tune_host

    tune_host()
    torch.set_num_threads(1)
    measured: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for turn in range(rounds):
        for method in methods:
            run = run_of(method, dataset)
            config = load_config(REPOSITORY_ROOT / "experiment_config" / f"{run.config_name}.json", run.overrides)
            learner = build_learner(config, "cpu")
            episodes = random_episodes(config, "cpu", torch.float32)
            learner.meta_update(learner.meta_gradients(episodes, 0), 0)  # does not count
            start = time.process_time()
            for _ in range(iterations):
                learner.meta_update(learner.meta_gradients(episodes, 0), 0)
            milliseconds = 1000 * (time.process_time() - start) / iterations
            measured[method].append((milliseconds, learner.memory_per_task()["peak_memory_per_task_mib"]))
            say(f"round {turn + 1}/{rounds}: {method} {milliseconds:.0f} ms")
    return {
        method: tuple(map(statistics.median, zip(*values, strict=True)))
        for method, values in measured.items()
        if values
    }


def accuracies_of(method: str, dataset: str, seeds: Sequence[int]) -> np.ndarray:
    """Return the accuracy of each test task by the finished run of each seed: float64 (seeds, tasks)."""
    predictions = [run_of(method, dataset, seed).folder / "logs/test_predictions.safetensors" for seed in seeds]
    return np.stack([task_accuracies(path) for path in predictions])


def row_of(
    method: str, accuracies: np.ndarray, baseline: np.ndarray, measured: tuple[float, float] | None, command: str
) -> list[str]:
    """Return name, accuracy, that of each seed, what it is above MAML, time, memory of a task and command.

    Intervals are over the test tasks, of each of which the mean over the seeds counts: they speak of these trained
    models. The difference is of the same tasks; where a method's tasks are others, as Reptile's of ten shots, `-`.

    Args:
        accuracies: of the method, (seeds, tasks).
        baseline: of MAML; empty: not trained.
        measured: ms and MiB.
    """
    of_tasks, of_maml = accuracies.mean(axis=0), baseline.mean(axis=0) if baseline.size else np.empty(0)
    texts = [f"{value:.{digits}f}" for value, digits in zip(measured or (), (0, 1), strict=False)]
    return [
        METHODS[method],
        _interval(of_tasks),
        " ".join(f"{100 * mean:.2f}" for mean in accuracies.mean(axis=1)),
        _interval(of_tasks - of_maml) if method not in UNLIKE and of_tasks.shape == of_maml.shape else "-",
        *(texts or ["not measured"] * 2),
        f"`{command}`",
    ]


def _interval(values: np.ndarray) -> str:
    summary = summarise(values.tolist())
    return with_interval(summary.mean, summary.ci95 or 0.0)


def main() -> None:
    """Train, time and print the table of what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="methods; default: all")
    parser.add_argument("--on", choices=DATASETS, default="omniglot", help="what is learned")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training; the row is their mean")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the timing; 0: none")
    parser.add_argument(
        "--iterations", type=int, default=4, help="meta-iterations of a turn, after one that does not count"
    )
    options = parser.parse_args()
    for method, seed in itertools.product(options.only, options.seeds):
        run = run_of(method, options.on, seed)
        say(run.command)
        run.carry_out()
    measured = measured_in_turns(options.only, options.on, options.rounds, options.iterations)
    accuracies = {method: accuracies_of(method, options.on, options.seeds) for method in options.only}
    baseline = accuracies.get("maml", np.empty(0))
    rows = [
        row_of(method, values, baseline, measured.get(method), run_of(method, options.on, options.seeds[0]).command)
        for method, values in sorted(accuracies.items(), key=lambda item: -item[1].mean())
    ]
    print(f"5-way 1-shot, 1 query per class, {BUDGET['num_evaluation_tasks']} test tasks, seeds {options.seeds}\n")
    heading = ["method", "test accuracy, %", "each seed", "above MAML, same tasks", "ms per iteration", "MiB per task"]
    print(table([*heading, "command"], rows), end="")


if __name__ == "__main__":
    main()
