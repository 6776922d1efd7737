"""What it costs to watch a run: how long training stands still for a report, and for diagnostics between epochs.

    python benchmarks/observation_cost.py [CONFIG.json] [--key value ...]

CONFIG.json: any config (default: the quickstart's); --key value: changes to it, any key of a config.

Trains two short epochs in a temporary folder, then prints a table: the calls by which a training process starts the
report's process, orders a report and takes leave of it; a report itself, which another process of the lowest
priority makes; and the diagnostics of gradients, updates and example episodes (diagnostics_every_epochs), beside an
epoch of the config. Run it when nothing else runs.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import measure_config, seconds_of, timed_iterations
from utils.config import ExperimentConfig
from utils.machine.devices import choose_device

ORDERS, TIMED = 50, 5
LONGEST_ORDER_MS = 1.0
"""What training may be blocked for per report."""


def measure(config: ExperimentConfig) -> dict[str, list[float]]:
    """Return name -> seconds of each of its repetitions; leaves nothing behind."""
    import torch

    from data import build_data
    from experiment_builder import build_experiment
    from experiment_parts.records.diagnostics import Diagnostics
    from experiment_parts.runs.opening import open_run_folder
    from few_shot_learning_system import build_learner

    device, n_tasks = choose_device(config.gpu_to_use), config.tasks_per_meta_batch
    data, learner = build_data(config, device, getattr(torch, config.parameter_format)), build_learner(config, device)
    epoch = config.total_epochs - 1  # of the heaviest derivative order
    short = config.model_copy(
        update={"total_epochs": 2, "total_iter_per_epoch": TIMED, "num_evaluation_tasks": n_tasks}
    )

    seconds = partial(seconds_of, device=device)

    def evaluate(first: int) -> None:
        learner.evaluate(data.episodes("val", range(first, first + n_tasks))).query_logits.sum().item()

    with tempfile.TemporaryDirectory(prefix="observation_cost_") as folder:
        run_folder = open_run_folder(Path(folder), config.experiment_name, short.to_json_dict())
        build_experiment(short, learner, data, [], run_folder, device).run()
        run_folder.unlock()
        inspect = Diagnostics(run_folder.logs / "validation_episodes.safetensors", n_tasks).inspect
        timed = timed_iterations(learner, data, n_tasks, epoch, device)
        return measure_reports(run_folder.path, seconds) | {
            "a look": [seconds(lambda: inspect(learner, data, epoch, is_last=False)) for _ in range(TIMED)],
            "a training iteration": [supply + step for supply, step in itertools.islice(timed, TIMED)],
            "a meta-batch of validation": [seconds(partial(evaluate, i * n_tasks)) for i in range(TIMED)],
        }


def measure_reports(run_folder: Path, seconds: Callable[[Callable[[], Any]], float]) -> dict[str, list[float]]:
    """Time the calls of a training process for its report, and the report itself, by a clock of calls."""
    from experiment_tools.report.observer import ReportObserver
    from experiment_tools.report.page import write_report

    observer = ReportObserver(every_s=1e-9)
    started = seconds(lambda: observer.on_start(run_folder, {}, []))
    orders = []
    for _ in range(ORDERS):
        orders.append(seconds(lambda: observer.on_epoch({}, {})))
        time.sleep(0.1)
    return {
        "start the report's process": [started],
        "order a report": orders,
        "wait for the last report": [seconds(observer.on_end)],
        "a report": [seconds(lambda: write_report(run_folder)) for _ in range(TIMED)],
    }


def table(config: ExperimentConfig, measured: dict[str, list[float]]) -> str:
    """Return the measurements and what follows from them."""
    lines = [f"{'':<30}{'median':>12}{'longest':>12}{'repeated':>10}"]
    lines += [
        f"{name:<30}{_text(statistics.median(row)):>12}{_text(max(row)):>12}{len(row):>10}"
        for name, row in measured.items()
    ]
    median = {name: statistics.median(row) for name, row in measured.items()}
    epoch_s = config.total_iter_per_epoch * median["a training iteration"]
    epoch_s += -(-config.num_evaluation_tasks // config.tasks_per_meta_batch) * median["a meta-batch of validation"]
    share = median["a look"] / epoch_s
    longest_ms = 1000 * max(measured["order a report"])
    return "\n".join(
        [
            *lines,
            f"Training is blocked for {longest_ms:.3f} ms per report at most "
            f"({'less' if longest_ms < LONGEST_ORDER_MS else 'not less'} than {LONGEST_ORDER_MS:g} ms).",
            f"An epoch of {config.experiment_name} takes about {_text(epoch_s)}; a look after each adds "
            f"{100 * share:.2f} %, "
            f"after every fifth {20 * share:.2f} %.",
        ]
    )


def _text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3f} ms"


if __name__ == "__main__":
    sys.exit(measure_config(sys.argv[1:], __doc__, measure, table))
