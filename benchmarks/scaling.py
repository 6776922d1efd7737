"""Cost of a meta-iteration against tasks, inner steps, ways, image size, filters and ranks, and the exponent with
which it grows.

    .venv/bin/python benchmarks/scaling.py [--what tasks steps ...] [--quick] [--iterations N] [--key value ...]

Everything else stays as in the Omniglot MAML++ 5-way 1-shot config, or as keys say. An iteration is meta-gradient,
all-reduce over the ranks and meta-update on random data. Ranks share one meta-batch: GPUs where there are any, else
processes with one thread each. The last line is one JSON object.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import names_among, random_episodes, seconds_of, whole_number
from utils.config import ExperimentConfig, load_config
from utils.config.command_line import parse_command_line
from utils.config.messages import COMMAND_LINE
from utils.errors import ConfigError, prints_user_errors
from utils.machine.devices import choose_device
from utils.machine.host import tune_host
from utils.paths import REPOSITORY_ROOT

CONFIG = REPOSITORY_ROOT / "experiment_config" / "omniglot_maml++_5way_1shot_seed0.json"
AXES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "tasks": (("batch_size",), (2, 4, 8, 16)),
    "steps": (("number_of_training_steps_per_iter",), (1, 2, 4, 8)),
    "ways": (("num_classes_per_set",), (5, 10, 20)),
    "image_size": (("image_height", "image_width"), (28, 42, 84)),
    "filters": (("cnn_num_filters",), (16, 32, 64, 128)),
    "ranks": ((), (1, 2, 4, 8)),
}
"""Name -> keys that get a value each time, and the values."""
QUICK = {
    "batch_size": 2,
    "number_of_training_steps_per_iter": 1,
    "cnn_num_filters": 4,
    "image_height": 16,
    "image_width": 16,
    "gpu_to_use": "cpu",
}
QUICK_VALUES = {
    "tasks": (1, 2),
    "steps": (1, 2),
    "ways": (2, 4),
    "image_size": (16, 24),
    "filters": (4, 8),
    "ranks": (1, 2),
}
EXPECTED = {"tasks": 1.0, "steps": 1.0, "ways": 1.0, "image_size": 2.0, "filters": 2.0, "ranks": -1.0}
"""What counting products alone would give."""
AS_RANK = "SCALING_AS_RANK"
"""Environment variable of the processes that measure ranks: the overrides, as JSON."""


def fitted_exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the least-squares line through (log value, log cost): cost is about value to this power.

    Raises:
        ValueError: fewer than two different values.
    """
    if len(set(values)) < 2:
        raise ValueError(f"an exponent needs two different values, not {list(values)}")
    return statistics.linear_regression(
        *([math.log(number) for number in numbers] for numbers in (values, costs))
    ).slope


def seconds_per_iteration(config: ExperimentConfig, iterations: int, warm_up: int = 2) -> float:
    """Return the median over `iterations`, after some that do not count; this process computes its rank's part."""
    tune_host()
    import torch

    from few_shot_learning_system import build_learner
    from utils.ranks.group import join_group
    from utils.ranks.rank import this_rank

    rank = this_rank()
    device = choose_device(config.gpu_to_use, rank and rank.place_on_machine)
    group = join_group(rank, device)
    torch.manual_seed(0)
    learner = build_learner(config, device)
    episodes = random_episodes(config, device, getattr(torch, config.parameter_format))
    part = group.part(config.tasks_per_meta_batch)
    tensors = {
        item.name: value for item in fields(episodes) if isinstance(value := getattr(episodes, item.name), torch.Tensor)
    }
    episodes = replace(episodes, **{name: value[part.start : part.stop] for name, value in tensors.items()})

    def iterate() -> None:
        meta_gradients, _ = group.mean(learner.meta_gradients(episodes, 0), config.tasks_per_meta_batch)
        learner.meta_update(meta_gradients, 0)

    return statistics.median([seconds_of(iterate, device) for _ in range(warm_up + iterations)][warm_up:])


def seconds_of_ranks(n_ranks: int, overrides: dict[str, Any], iterations: int) -> float:
    """Measure the same in several processes under torchrun.

    Raises:
        ConfigError: they failed; with what they said.
    """
    environment = os.environ | {AS_RANK: json.dumps(overrides), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1", f"--nproc_per_node={n_ranks}",
        __file__, "--iterations", str(iterations),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{n_ranks} ranks cannot be measured: {done.stderr.strip()}")
    return float(done.stdout.split()[-1])


def values_of(what: str, quick: bool, overrides: dict[str, Any]) -> tuple[int, ...]:
    """Return the values along an axis; of ranks no more than there are GPUs, or cores, or tasks."""
    values = QUICK_VALUES[what] if quick else AXES[what][1]
    if what != "ranks" or quick:
        return values
    import torch

    on_gpu = torch.cuda.is_available() and overrides.get("gpu_to_use") != "cpu"
    most = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    most = min(most, load_config(CONFIG, overrides, place=COMMAND_LINE).tasks_per_meta_batch)
    return tuple(value for value in values if value <= most)


def measure(what: str, quick: bool, overrides: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Measure one axis: values, milliseconds, and the fitted exponent; None where there is only one value."""
    base = (QUICK if quick else {}) | overrides
    values, milliseconds = values_of(what, quick, base), []
    for value in values:
        if what == "ranks":
            seconds = seconds_of_ranks(value, base, iterations)
        else:
            config = load_config(CONFIG, base | dict.fromkeys(AXES[what][0], value), place=COMMAND_LINE)
            seconds = seconds_per_iteration(config, iterations)
        milliseconds.append(1000 * seconds)
    exponent = fitted_exponent(values, milliseconds) if len(values) > 1 else None
    return {
        "what": what,
        "values": list(values),
        "ms_per_iteration": milliseconds,
        "exponent": exponent,
        "products_alone": EXPECTED[what],
    }


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = ["| what | values | ms per iteration | exponent | by products alone |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        shown = " ".join(f"{number:.4g}" for number in row["ms_per_iteration"])
        exponent = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
        lines.append(
            f"| {row['what']} | {' '.join(map(str, row['values']))} | {shown} | {exponent} | "
            f"{row['products_alone']:g} |"
        )
    return "\n".join(lines)


@prints_user_errors
def main(arguments: list[str]) -> int:
    """Run the benchmark; returns the exit code."""
    if {"-h", "--help"}.intersection(arguments):
        print(__doc__)
        return 0
    path, overrides = parse_command_line(arguments)
    if path is not None:
        raise ConfigError(
            f"command line: --name_of_args_json_file is not for this benchmark, which changes keys of {CONFIG.name}"
        )
    iterations = whole_number(overrides, "iterations", 10, 1)
    if AS_RANK in os.environ:
        config = load_config(CONFIG, json.loads(os.environ[AS_RANK]), place=COMMAND_LINE)
        seconds = seconds_per_iteration(config, iterations)
        if os.environ["RANK"] == "0":
            print(seconds)
        return 0
    quick = bool(overrides.pop("quick", False))
    chosen = names_among(AXES, overrides, "what")
    rows = [measure(what, quick, overrides, iterations) for what in chosen]
    print(table_of(rows))
    print(
        json.dumps(
            {"rows": rows, "iterations": iterations, "config": CONFIG.name, "overrides": overrides, "quick": quick}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
