"""How fast data start and how fast episodes come, against a loader that decodes every image in worker processes.

    python benchmarks/data_supply.py --data FOLDER [--seconds 10] [--only start supply step] [--workers N]

FOLDER holds omniglot_dataset.tar.bz2 and grocery_few_shot.tar.gz, which are copied and left alone; a missing one is
left out. About ten minutes on two cores. Every measurement is a process of its own, and prints a row:

start   from the archive to the first meta-batch (unpacked, decoded, packed), and the same in a second process
supply  episodes per second from packed images: read into memory; mapped, with the file in the system's cache;
        mapped, with the file dropped from it before (the first meta-batches of a run). Against torch's DataLoader
        over torchvision's transforms: the same episodes, a worker process per core, each decoding, resizing and
        normalising the images of a whole meta-batch
step    time for a meta-batch against that of the training step that uses it, on this machine's CPU

Run it when nothing else runs.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import in_own_process, timed_iterations
from utils.config import ExperimentConfig, load_config
from utils.machine.host import tune_host
from utils.paths import REPOSITORY_ROOT

OMNIGLOT = "Omniglot 28x28x1, 20-way 1-shot"
PHOTOGRAPHS = "photographs 84x84x3, 5-way 5-shot"
ARCHIVES = {OMNIGLOT: "omniglot_dataset.tar.bz2", PHOTOGRAPHS: "grocery_few_shot.tar.gz"}
CONFIGS = {
    OMNIGLOT: ("omniglot_maml++_20way_1shot_seed0.json", {}),
    PHOTOGRAPHS: (
        "mini_imagenet_maml++_5way_5shot_seed0.json",
        {"dataset_name": "grocery_few_shot", "dataset_path": "grocery_few_shot", "normalisation": "imagenet"},
    ),
}
WARM_UP = 2
COLD_META_BATCHES = 20


def config_of(problem: str, **changes: Any) -> ExperimentConfig:
    """Return the shipped config of a problem, on the CPU."""
    name, own = CONFIGS[problem]
    return load_config(REPOSITORY_ROOT / "experiment_config" / name, own | {"gpu_to_use": "cpu"} | changes)


# --- measurements, each in a process of its own -----------------------------------------------------------------------


def measure_start(problem: str) -> dict[str, Any]:
    """Seconds from `build_data` to the first meta-batch."""
    from data import build_data

    config = config_of(problem)
    start = time.perf_counter()
    data = build_data(config, "cpu")
    data.episodes("train", range(config.tasks_per_meta_batch))
    return {
        "seconds": time.perf_counter() - start,
        "images": sum(s["images"] for s in data.summary()["splits"].values()),
    }


def measure_supply(problem: str, kind: str, seconds: float) -> dict[str, Any]:
    """Episodes per second from packed images. Args: kind: memory, mapped or cold."""
    from data import build_data

    config = config_of(problem, load_into_memory=kind == "memory")
    data = build_data(config, "cpu")
    n_tasks = config.tasks_per_meta_batch
    if kind == "cold":
        packed_file = data.summary()["packed_file"]
        read_before = _bytes_read()
        _drop_from_cache(packed_file)
        rate = _rate(
            (data.episodes("train", range(i * n_tasks, (i + 1) * n_tasks)) for i in range(COLD_META_BATCHES)),
            n_tasks,
            None,
            0,
        )
        return {"episodes_per_s": rate, "mib_read": (_bytes_read() - read_before) / 2**20}
    meta_batches = (data.episodes("train", range(i * n_tasks, (i + 1) * n_tasks)) for i in range(10**9))
    return {"episodes_per_s": _rate(meta_batches, n_tasks, seconds, WARM_UP)}


def measure_baseline(problem: str, seconds: float, workers: int) -> dict[str, Any]:
    """Episodes per second from a DataLoader whose workers decode image files."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    from data import NORMALISATIONS, build_data

    config = config_of(problem)
    data = build_data(config, "cpu")
    n_tasks, shape, table = config.tasks_per_meta_batch, config.validation_shape, data.tables["train"]
    grey = config.image_channels == 1
    mean, std = NORMALISATIONS[config.normalisation]
    transform = v2.Compose(
        [
            v2.Resize([config.image_height, config.image_width]), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            *([] if config.normalisation == "none" else [v2.Normalize(mean, std)]),
        ]
    )  # fmt: skip
    folder = Path(data.summary()["dataset_folder"])
    paths = {int(rank): folder / data.image_path(int(rank)) for rank in table.images}

    class Images(torch.utils.data.Dataset):
        """One image per (rank, quarter turns)."""

        def __getitem__(self, item: tuple[int, int]):
            rank, turns = item
            with Image.open(paths[rank]) as image:
                pixels = transform(image.convert("L" if grey else "RGB"))
            return torch.rot90(pixels, turns, (1, 2)) if turns else pixels

        def __len__(self) -> int:
            return len(paths)

    def meta_batches() -> Iterator[list[tuple[int, int]]]:
        for i in range(10**9):
            drawn = data.draw("train", range(i * n_tasks, (i + 1) * n_tasks))
            turns = drawn.rotations[:, :, None].repeat(shape.n_images, axis=2)
            yield list(zip(table.ranks(drawn).reshape(-1).tolist(), turns.reshape(-1).tolist(), strict=True))

    loader = torch.utils.data.DataLoader(
        Images(), batch_sampler=meta_batches(), num_workers=workers, prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,  # the images are of a class in this function
    )  # fmt: skip
    episodes = (images.unflatten(0, (n_tasks, shape.n_way, shape.n_images)) for images in loader)
    return {"episodes_per_s": _rate(episodes, n_tasks, seconds, max(WARM_UP, workers))}


def measure_step(problem: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of a training step and of the episodes for it, one after the other."""
    import torch

    from data import build_data
    from few_shot_learning_system import build_learner

    config = config_of(problem)
    data, learner = build_data(config, "cpu"), build_learner(config, torch.device("cpu"))
    timed = timed_iterations(learner, data, config.tasks_per_meta_batch, 0, torch.device("cpu"))
    next(timed)  # does not count
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        times.append(next(timed))
    supply, step = (sorted(column)[len(times) // 2] for column in zip(*times, strict=True))
    return {"supply_ms": 1000 * supply, "step_ms": 1000 * step, "share": supply / (supply + step), "steps": len(times)}


def _rate(meta_batches: Iterator[Any], n_tasks: int, seconds: float | None, warm_up: int) -> float:
    """Return the episodes per second, over the given time, or until there are no more."""
    for _ in range(warm_up):
        next(meta_batches)
    start, count = time.perf_counter(), 0
    for _ in meta_batches:
        count += n_tasks
        if seconds is not None and time.perf_counter() - start >= seconds:
            break
    return count / (time.perf_counter() - start)


def _drop_from_cache(path: str) -> None:
    """Make the system forget a file's pages, so that they are read from the disk again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _bytes_read() -> int:
    """Return the bytes that this process has had read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines() if Path("/proc/self/io").exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


# --- the tables -------------------------------------------------------------------------------------------------------


def _begin() -> None:
    logging.disable()
    tune_host()


measured = partial(in_own_process, begin=_begin)
"""measured(measurement, *arguments): in a fresh process, tuned as a training run's is, and silent."""


def report_start(problems: list[str]) -> None:
    """Archive to first meta-batch, and again."""
    print("\n| dataset | images | archive to first meta-batch, s | second start, s |\n| --- | --- | --- | --- |")
    for problem in problems:
        first, second = (measured(measure_start, problem) for _ in range(2))
        print(
            f"| {ARCHIVES[problem]} | {first['images']} | {first['seconds']:.1f} | {second['seconds']:.2f} |",
            flush=True,
        )


def report_supply(problems: list[str], seconds: float, workers: int) -> None:
    """Episodes per second."""
    print(
        f"\n| episodes per second | in memory | mapped, warm | mapped, cold | DataLoader, {workers} workers | times "
        "as fast |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for problem in problems:
        measured(measure_start, problem)  # packed, if `start` was not asked for
        memory, mapped, cold = (
            measured(measure_supply, problem, kind, seconds) for kind in ("memory", "mapped", "cold")
        )
        baseline = measured(measure_baseline, problem, seconds, workers)["episodes_per_s"]
        rates = [found["episodes_per_s"] for found in (memory, mapped, cold)]
        ratios = " / ".join(f"{rate / baseline:.1f}" for rate in rates)
        cells = [
            problem,
            f"{rates[0]:.0f}",
            f"{rates[1]:.0f}",
            f"{rates[2]:.0f} ({cold['mib_read']:.0f} MiB read)",
            f"{baseline:.1f}",
            ratios,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def report_step(problems: list[str], seconds: float) -> None:
    """Share of a training step."""
    print("\n| config | meta-batch, ms | training step, ms | share of the data |\n| --- | --- | --- | --- |")
    for problem in problems:
        found = measured(measure_step, problem, seconds)
        print(
            f"| {CONFIGS[problem][0]} | {found['supply_ms']:.2f} | {found['step_ms']:.0f} | "
            f"{100 * found['share']:.2f} % |",
            flush=True,
        )


def main() -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--data", type=Path, help="folder with the archives")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of a speed (default 10)")
    parser.add_argument("--only", nargs="+", choices=("start", "supply", "step"), default=("start", "supply", "step"))
    parser.add_argument(
        "--workers", type=int, default=cores, help=f"processes of the DataLoader (default {cores}, the cores)"
    )
    options = parser.parse_args()
    problems = [problem for problem, archive in ARCHIVES.items() if options.data and (options.data / archive).is_file()]
    if not problems:
        print(f"--data: give a folder that holds {' or '.join(ARCHIVES.values())}", file=sys.stderr)
        return 1
    tune_host()  # what it says in the environment is read when a process imports torch
    with tempfile.TemporaryDirectory(prefix="data_supply.") as folder:
        for problem in problems:
            shutil.copy(options.data / ARCHIVES[problem], folder)
        os.environ["DATASET_DIR"] = folder  # of the processes that measure
        if "start" in options.only:
            report_start(problems)
        if "supply" in options.only:
            report_supply(problems, options.seconds, options.workers)
        if "step" in options.only:
            report_step(problems, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
