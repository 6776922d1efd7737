"""Kill, stop, damage and attack real runs, and write what came of it into RELIABILITY.md.

    python benchmarks/reliability.py            about 4 minutes on two cores
    python benchmarks/reliability.py --soak     about an hour: 200 kills, each signal 25 times
    python benchmarks/reliability.py --kills 3 --signals 1 --output other.md

A history is a run of experiment_scripts/quickstart.sh, shortened by flags, with everything below a folder of its own: its
dataset is ready, or still has to be drawn, or to be unpacked from an archive. It is interrupted at random times, started
again until it ends, and its whole folder is compared with that of a run that was never interrupted.
"""

import argparse
import logging
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoints import read_checkpoint_state
from utils.config import REPOSITORY_ROOT, check_config
from utils.errors import StorageError, UserError
from utils.run_comparison import differences

FLAGS = {
    "total_epochs": 2, "total_iter_per_epoch": 12, "batch_size": 2, "num_evaluation_tasks": 40, "cnn_num_filters": 8,
    "log_every_iterations": 3, "checkpoint_every_s": 0.05, "gpu_to_use": "cpu",
}  # fmt: skip
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 0}
DATASET = "synthetic_strokes"
FINISHED = "finished before it came"
STARTS = ("ready", "drawn", "unpacked")


def with_default_signals() -> None:
    """In a child: a run in the background may have been started with SIGINT ignored."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_DFL)


class ScriptRun:
    """Starts of experiment_scripts/quickstart.sh with datasets and experiments below one folder."""

    def __init__(self, folder: Path, **flags: object):
        self.folder = folder
        self.datasets, self.run_folder = folder / "datasets", folder / "experiments" / "quickstart"
        self.datasets.mkdir(parents=True, exist_ok=True)
        self._arguments = [text for key, value in (FLAGS | flags).items() for text in (f"--{key}", str(value))]
        self._environment = os.environ | {
            "DATASET_DIR": str(self.datasets), "EXPERIMENTS_DIR": str(folder / "experiments"), "VIRTUAL_ENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self) -> subprocess.Popen:
        """A new process; its output goes to a file."""
        with open(self.folder / "output.txt", "wb") as output:
            return subprocess.Popen(
                ["bash", REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sh", *self._arguments],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
            )  # fmt: skip

    def output(self) -> str:
        """What the last process printed."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def finish(self) -> float:
        """Run to the end; returns the seconds that it took."""
        begin = time.monotonic()
        code = self.start().wait(timeout=600)
        if code != 0:
            raise RuntimeError(f"{self.folder}: exit code {code}\n{self.output()}")
        return time.monotonic() - begin

    def interrupt(self, after_s: float, number: int) -> tuple[int, float, str]:
        """Start, send a signal after some seconds, wait: (exit code, seconds from signal to end, where it was).

        SIGKILL may come at any time; the other signals after the first line of output, before which bash is still looking
        for Python and the system's own action would end it.
        """
        process = self.start()
        while number != signal.SIGKILL and not self.output() and process.poll() is None:
            time.sleep(0.005)
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        place = self.place()
        begin = time.monotonic()
        process.send_signal(number)
        code = process.wait(timeout=120)
        return code, time.monotonic() - begin, FINISHED if code == 0 and number != signal.SIGUSR1 else place

    def place(self) -> str:
        """What the run is doing, as its files show it."""
        if list(self.datasets.glob(f".{DATASET}.unfinished")):
            return "dataset being unpacked or drawn"
        if list(self.datasets.glob(".packed/*.unfinished")):
            return "images being packed"
        log = self.run_folder / "logs" / "run.log"
        lines = log.read_text().splitlines() if log.exists() else []
        if not lines:
            return "start"
        text = lines[-1]
        if "Testing" in text or "Test accuracy" in text:
            return "test"
        metrics = self.run_folder / "logs" / "metrics.jsonl"
        if not metrics.exists() or not metrics.stat().st_size:
            return "start"
        iteration = metrics.read_text().count("\n") * FLAGS["log_every_iterations"]
        return "training" if iteration % FLAGS["total_iter_per_epoch"] else "validation or a save"


class Histories:
    """Many interrupted runs, all compared with the same whole one."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.whole = ScriptRun(folder / "whole")
        self.seconds = {"drawn": self.whole.finish()}
        self.archive = folder / f"{DATASET}.tar.gz"
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(self.whole.datasets / DATASET, arcname=DATASET)
        self.seconds["ready"] = self.make("ready").finish()
        self.seconds["unpacked"] = self.seconds["drawn"]
        self.made = self.equal = 0

    def make(self, start: str) -> ScriptRun:
        """A run whose dataset is ready, or an archive, or still to be drawn."""
        run = ScriptRun(Path(tempfile.mkdtemp(dir=self.folder)))
        if start == "unpacked":
            shutil.copy(self.archive, run.datasets)
        elif start == "ready":
            for name in (DATASET, ".packed"):
                shutil.copytree(self.whole.datasets / name, run.datasets / name, copy_function=shutil.copy2)
        return run

    def interrupted(self, numbers: list[int]) -> list[tuple[int, float, str]]:
        """One history with these signals, run to its end and compared."""
        start = self.random.choice(STARTS)
        run = self.make(start)
        answers = []
        for number in numbers:
            answers.append(run.interrupt(self.random.uniform(0.2, 1.0) * self.seconds[start], number))
            start = "ready"
        run.finish()
        found = differences(run.run_folder, self.whole.run_folder)
        leftovers = [path for path in run.datasets.rglob("*") if ".unfinished" in path.name]
        self.made += 1
        self.equal += not found and not leftovers
        if found or leftovers:
            logging.error("%s: %s %s", run.folder, found, leftovers)
        else:
            shutil.rmtree(run.folder)
        return answers


def measure_kills(histories: Histories, count: int) -> list[str]:
    """SIGKILL at random times, up to three in a history."""
    places: Counter[str] = Counter()
    before = histories.made, histories.equal
    while places.total() < count:
        n_kills = min(histories.random.randint(1, 3), count - places.total())
        places.update(place for _, _, place in histories.interrupted([signal.SIGKILL] * n_kills))
    made, equal = histories.made - before[0], histories.equal - before[1]
    where = ", ".join(f"{place} {number}" for place, number in places.most_common())
    return [
        f"| SIGKILL to a running script | {places.total()} kills in {made} runs | {equal} of {made} runs ended with every bit equal |",
        f"| where the kills came | {where} | |",
    ]


def measure_signals(histories: Histories, count: int) -> list[str]:
    """Each signal so often at random times, two in a history: exit codes and the time until the process has ended."""
    lines = []
    for number, expected in EXIT_CODES.items():
        answers = []
        before = histories.made, histories.equal
        while len(answers) < count:
            answers += histories.interrupted([number] * min(2, count - len(answers)))
        right = sum(code == expected or place == FINISHED for code, _, place in answers)
        latencies = [latency for _, latency, _ in answers]
        made, equal = histories.made - before[0], histories.equal - before[1]
        lines.append(
            f"| {number.name} | {count} times | exit code right {right} times; end after {statistics.median(latencies):.2f} s "
            f"(median), {max(latencies):.2f} s (most); {equal} of {made} runs ended with every bit equal |"
        )
    return lines


def measure_damage(checkpoint: Path, flips: int, truncations: int) -> list[str]:
    """Damage a real checkpoint in every way and read it."""
    data, copy, generator = checkpoint.read_bytes(), checkpoint.with_name("damaged"), random.Random(0)

    def is_found(damaged: bytes) -> bool:
        copy.write_bytes(damaged)
        try:
            read_checkpoint_state(copy)
        except StorageError:
            return True
        return False

    found = 0
    for _ in range(flips):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        found += is_found(damaged)
    cut = sum(is_found(data[: generator.randrange(len(data))]) for _ in range(truncations))
    copy.unlink()
    size = f"a checkpoint of {len(data) / 1024:.0f} KiB"
    return [
        f"| one flipped bit in {size} | {flips} | {found} found |",
        f"| {size} cut off anywhere | {truncations} | {cut} found |",
    ]


def measure_hostile_files(folder: Path) -> list[str]:
    """Archives and checkpoints that want to write elsewhere, fill the disk or run code."""
    import io

    from utils.archives import unpack_archive
    from utils.checkpoints import load_checkpoint

    folder.mkdir()
    canary = folder / "canary"

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
        entry, content = tarfile.TarInfo(name), b"x" if kind == tarfile.REGTYPE else b""
        entry.type, entry.linkname, entry.size = kind, link, len(content)
        return entry, content

    archives = {
        "parent": [member("../canary")], "deep parent": [member("a/../../canary")], "absolute": [member(str(canary))],
        "symbolic link": [member("l", tarfile.SYMTYPE, ".."), member("l/canary")], "hard link": [member("h", tarfile.LNKTYPE, "/etc/hostname")],
        "device": [member("d", tarfile.CHRTYPE)], "pipe": [member("p", tarfile.FIFOTYPE)], "twice": [member("a"), member("a")],
    }  # fmt: skip
    tried = refused = 0
    for name, members in archives.items():
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for entry, content in members:
                tar.addfile(entry, io.BytesIO(content))
        tried += 1
        try:
            unpack_archive(path, folder / "target")
        except UserError:
            refused += not canary.exists() and not (folder / "target").exists()
    checkpoints = {
        "pickle that makes a folder": f"cos\nmkdir\n(V{canary}\ntR.".encode(), "empty": b"", "giant header": b"\xff" * 8 + b"{}", "text": b"#!/bin/sh\n",
        "header beyond the end": (10**6).to_bytes(8, "little") + b"{}", "nested": (10**4).to_bytes(8, "little") + b"[" * 10**4,
    }  # fmt: skip
    for name, content in checkpoints.items():
        path = folder / name
        path.write_bytes(content)
        tried += 1
        try:
            load_checkpoint(path)
        except UserError:
            refused += not canary.exists()
    return [f"| hostile archives and checkpoints | {tried} | {refused} refused, nothing written elsewhere, nothing run |"]


def measure_save(folder: Path, repetitions: int) -> list[str]:
    """Time a whole save of the Omniglot network as the paper has it, with Adam's moments."""
    from few_shot_learning_system import build_learner
    from utils.checkpoints import save_checkpoint

    config = check_config(
        {
            "experiment_name": "x", "cnn_num_filters": 64, "num_classes_per_set": 20, "per_step_bn_statistics": True,
            "learnable_per_layer_per_step_inner_loop_learning_rate": True,
        },
        "Omniglot network",
    )  # fmt: skip
    learner = build_learner(config, "cpu")
    tensors = learner.state_tensors()
    for name, parameter in learner.meta_parameters().items():
        tensors |= {f"optimizer.{key}.{name}": parameter.detach() * 0.1 for key in ("exp_avg", "exp_avg_sq")}
    rows = [dict.fromkeys((f"column_{i}" for i in range(80)), 0.123456789012345)] * 100
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        save_checkpoint(folder / "timed.safetensors", tensors, {"iteration": 50000, "rows": rows})
        times.append(time.perf_counter() - begin)
    size = (folder / "timed.safetensors").stat().st_size / 2**20
    median = statistics.median(times)
    return [
        f"| a save of the Omniglot network in epoch 100 ({size:.1f} MiB) | {repetitions} | {1e3 * median:.0f} ms (median), "
        f"{1e3 * max(times):.0f} ms (most): {100 * median / 60:.2f} % of the minute between two saves |"
    ]


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", action="store_true", help="200 kills and each signal 25 times")
    parser.add_argument("--kills", type=int, help="default 16")
    parser.add_argument("--signals", type=int, help="of each kind, default 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=REPOSITORY_ROOT / "RELIABILITY.md")
    options = parser.parse_args()
    kills = options.kills if options.kills is not None else 200 if options.soak else 16
    signals = options.signals if options.signals is not None else 25 if options.soak else 2
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        histories = Histories(folder, options.seed)
        lines = measure_kills(histories, kills) + measure_signals(histories, signals)
        checkpoint = histories.whole.run_folder / "saved_models" / "train_model_2.safetensors"
        lines += measure_damage(checkpoint, 1000, 200)
        lines += measure_hostile_files(folder / "hostile")
        lines += measure_save(folder, 50)
    minutes = (time.monotonic() - begin) / 60
    import torch

    from utils.environment import describe_environment

    versions = describe_environment(torch.device("cpu"), {})["packages"]
    options.output.write_text(
        "# Reliability, measured\n\n"
        f"Written by `python benchmarks/reliability.py --kills {kills} --signals {signals} --seed {options.seed}` in "
        f"{minutes:.0f} minutes, on a CPU with torch {versions['torch']}.\n"
        "A run is `bash experiment_scripts/quickstart.sh`, shortened by flags; its whole folder is compared, times aside.\n\n"
        "| what | tried | came of it |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n\n"
        "Not covered: power loss (the order of fsync and rename is tested, not the disk), object stores, file systems without\n"
        "locks. Bits are equal for equal versions, machine type and thread count; on CUDA with `deterministic` true.\n"
    )
    print(options.output.read_text())


if __name__ == "__main__":
    main()
