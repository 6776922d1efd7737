"""Part of `reliability.py`: real scripts that are interrupted at random moments of every phase of their life, or whose
terminal or disk goes away, and that are run again to their end.

A history is a run of experiment_scripts/quickstart.sh, shortened by flags, with everything below a folder of its
own: its dataset is ready, or still has to be drawn, or to be unpacked from an archive. Its whole folder, and what it
made of its dataset, is compared with that of a run that was never interrupted.
"""

import contextlib
import hashlib
import json
import logging
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiment_parts.runs.comparison import differences
from utils.paths import REPOSITORY_ROOT

FLAGS = {
    "total_epochs": 2, "total_iter_per_epoch": 12, "batch_size": 2, "num_evaluation_tasks": 60, "cnn_num_filters": 8,
    "log_every_iterations": 3, "checkpoint_every_s": 0.05, "gpu_to_use": "cpu",
}  # fmt: skip
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 0}
DATASET = "synthetic_strokes"
STARTS = ("ready", "drawn", "unpacked")
PHASES = (
    "start",
    "drawing",
    "unpacking",
    "packing",
    "set-up",
    "training",
    "save",
    "validation",
    "end of an epoch",
    "test",
    "end",
)
"""In the order of a run's life, as its files show them."""
TARGETS = ("start", "packing", "set-up", "training", "validation", "test", "end")
"""What an interruption may aim at besides drawing and unpacking; the short ones between are met by the way."""
POLL_S = 0.003


@dataclass(frozen=True)
class Interruption:
    """One signal to a running script."""

    number: int
    phase: str
    code: int
    """As a shell shows it: 128 + the signal's number where that ended the process."""
    latency_s: float
    finished: bool
    """The run had its result all the same."""

    @property
    def code_is_right(self) -> bool:
        """As promised: 130, 143, 0; or 0 because the run was finished."""
        return self.code == EXIT_CODES[signal.Signals(self.number)] or (self.code == 0 and self.finished)


def with_default_signals() -> None:
    """Set the signals of a child back: a run in the background may have been started with SIGINT ignored."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_DFL)


class ScriptRun:
    """Starts of experiment_scripts/quickstart.sh with datasets and experiments below one folder."""

    def __init__(self, folder: Path, **flags: object):
        self.folder = folder
        self.datasets, self.run_folder = folder / "datasets", folder / "experiments" / "quickstart"
        self.datasets.mkdir(parents=True, exist_ok=True)
        self._started_at, self._resumes = 0.0, False
        self._arguments = [text for key, value in (FLAGS | flags).items() for text in (f"--{key}", str(value))]
        self._environment = os.environ | {
            "DATASET_DIR": str(self.datasets),
            "EXPERIMENTS_DIR": str(folder / "experiments"),
            "VIRTUAL_ENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, terminal: int | None = None, redirection: str = "") -> subprocess.Popen:
        """Start a new process; its output goes to a file, to this descriptor, or where bash redirects it to."""
        self._started_at = time.time()
        self._resumes = any(self.run_folder.glob("saved_models/*.safetensors"))
        command = ["bash", str(REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sh"), *self._arguments]
        with open(self.folder / "output.txt", "wb") as output:
            return subprocess.Popen(
                ["bash", "-c", f'exec "$@" {redirection}', "bash", *command] if redirection else command,
                env=self._environment, stdin=subprocess.DEVNULL, stdout=terminal or output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
            )  # fmt: skip

    def output(self) -> str:
        """Return what the last process printed."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def finish(self) -> dict[str, float]:
        """Run to the end; returns phase -> seconds in it.

        Raises:
            RuntimeError: exit code other than 0; with the output.
        """
        process = self.start()
        seconds: defaultdict[str, float] = defaultdict(float)
        before = time.monotonic()
        while process.poll() is None:
            phase = self.phase()
            time.sleep(POLL_S)
            now = time.monotonic()
            seconds[phase] += now - before
            before = now
        if process.returncode != 0:
            raise RuntimeError(f"{self.folder}: exit code {process.returncode}\n{self.output()}")
        return dict(seconds)

    def interrupt(self, number: int, target: str, after_s: float) -> Interruption | None:
        """Start, wait for a phase or a later one and some seconds more, send a signal; None when it ended before
        that.
        """
        process = self.start()
        while PHASES.index(self.phase()) < PHASES.index(target) and process.poll() is None:
            time.sleep(POLL_S)
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(POLL_S)
        phase = self.phase()
        begin = time.monotonic()
        if process.poll() is not None:
            return None
        process.send_signal(number)
        code = process.wait(timeout=300)
        latency_s = time.monotonic() - begin
        return Interruption(number, phase, code if code >= 0 else 128 - code, latency_s, self.is_finished())

    def use_dataset_of(self, other: "ScriptRun") -> None:
        """Have its dataset, which is linked, and what it has packed; a copy of the images would be packed anew."""
        (self.datasets / DATASET).symlink_to(other.datasets / DATASET)
        shutil.copytree(other.datasets / ".packed", self.datasets / ".packed", copy_function=shutil.copy2)

    def is_finished(self) -> bool:
        """Return whether the result is there."""
        return (self.run_folder / "logs" / "test_summary.json").exists()

    def phase(self) -> str:
        """Return what the run is doing, as its files and the output of this start show it."""
        if list(self.datasets.glob(f".{DATASET}.unfinished")):
            return "unpacking" if list(self.datasets.glob("*.tar.gz")) else "drawing"
        if list(self.datasets.glob(".packed/*.unfinished")):
            return "packing"
        output = self.output()
        if "Test accuracy" in output:
            return "end"
        if "Testing" in output:
            return "test"
        if "test: " not in output:  # the last line about the dataset
            return "start"
        saved = self.run_folder / "saved_models"
        if list(saved.glob(".*.partial")):
            return "save"
        metrics = self.run_folder / "logs" / "metrics.jsonl"
        if (
            (self._resumes and "Resuming" not in output)
            or not metrics.exists()
            or not metrics.stat().st_size
            or (not self._resumes and metrics.stat().st_mtime < self._started_at)
        ):
            return "set-up"
        iteration = metrics.read_bytes().count(b"\n") * FLAGS["log_every_iterations"]
        if iteration % FLAGS["total_iter_per_epoch"]:
            return "training"
        epoch = iteration // FLAGS["total_iter_per_epoch"]
        return "end of an epoch" if (saved / f"train_model_{epoch}.safetensors").exists() else "validation"


class Histories:
    """Many interrupted runs, all compared with the same whole one; `flags` are of every run."""

    def __init__(self, folder: Path, seed: int, **flags: object):
        self.folder, self.seed, self.flags = folder, seed, flags
        self.whole = ScriptRun(folder / "whole", **flags)
        self.seconds = self.whole.finish()  # of each phase
        self.archive = folder / f"{DATASET}.tar.gz"
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(self.whole.datasets / DATASET, arcname=DATASET)
        unpacked = self.make("unpacked")
        self.seconds |= {"unpacking": unpacked.finish().get("unpacking", 0.5)}
        shutil.rmtree(unpacked.folder)

    def make(self, start: str, folder: Path | None = None) -> ScriptRun:
        """Make a run whose dataset is ready, or an archive, or still to be drawn; None: in a folder of its own."""
        run = ScriptRun(folder or Path(tempfile.mkdtemp(dir=self.folder)), **self.flags)
        if start == "unpacked":
            shutil.copy(self.archive, run.datasets)
        elif start == "ready":
            run.use_dataset_of(self.whole)
        return run

    def interrupted(self, numbers: Sequence[int], history: int) -> tuple[list[Interruption], bool]:
        """Run one history with these signals to its end; return what came of each, and whether all was equal.

        `history` is its number: together with the seed it draws the moments.
        """
        generator = random.Random(f"{self.seed} {history}")
        start = generator.choice(STARTS)
        run = self.make(start)
        answers = []
        for number in numbers:
            is_ready = (run.datasets / DATASET).exists()
            making = [] if is_ready else {"drawn": ["drawing"], "unpacked": ["unpacking"]}.get(start, [])
            packing = [] if list(run.datasets.glob(".packed/*.json")) else ["packing"]
            # Twice what can be met only before the dataset is ready: it is so once in a history.
            target = generator.choice(2 * (making + packing) + [name for name in TARGETS if name != "packing"])
            answer = run.interrupt(number, target, generator.uniform(0, self.seconds.get(target, 0.1)))
            answers += [answer] if answer else []
        run.finish()
        found = differences(run.run_folder, self.whole.run_folder)
        found += dataset_differences(run.datasets, self.whole.datasets)
        if found:
            logging.error("%s: %s", run.folder, found)
        else:
            shutil.rmtree(run.folder)
        return answers, not found


def measure_lost_terminals(histories: Histories) -> list[str]:
    """Run scripts whose output goes nowhere: full, closed, a reader that has gone, a terminal that has."""
    equal, kinds = 0, ("> /dev/full 2>&1", ">&- 2>&-", "2>&1 | head -c 1", "a terminal")
    for kind in kinds:
        run = histories.make("ready")
        if kind == "a terminal":
            ours, theirs = pty.openpty()
            process = run.start(terminal=theirs)
            os.close(theirs)
            os.read(ours, 1)
            os.close(ours)
        else:
            process = run.start(redirection=f"{kind}; exit ${{PIPESTATUS[0]}}" if "|" in kind else kind)
        code, found = process.wait(), differences(run.run_folder, histories.whole.run_folder)
        equal += code == 0 and not found
        if code or found:
            logging.error("output to %s: exit code %d, %s", kind, code, found)
    what = "output that is lost: /dev/full, closed, a pipe nobody reads, a terminal that goes"
    return [f"| {what} | {len(kinds)} | {equal} runs ended with exit code 0 and every bit equal |"]


def measure_full_disks(histories: Histories, count: int) -> list[str]:
    """Fill the disk of a run to the last byte, before its start or at a random moment, then free it and run again."""
    what, generator = "no byte left on the disk of a run", random.Random(histories.seed)
    equal, codes, seconds = 0, Counter(), sum(histories.seconds.values())
    for number in range(count):
        disk = Path(tempfile.mkdtemp(dir=histories.folder))
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
            return [f"| {what} | 0 | not tried: mounting a small disk needs root |"]
        try:
            run = histories.make("ready", disk)
            process = run.start() if number else None
            time.sleep(generator.uniform(0, seconds) if number else 0)
            with open(disk / "filler", "wb", buffering=0) as filler:
                for n_bytes in (2**20, 2**12, 1):  # what is left is less than each
                    with contextlib.suppress(OSError):
                        while filler.write(bytes(n_bytes)):
                            pass
            codes[(process or run.start()).wait()] += 1
            (disk / "filler").unlink()
            run.finish()
            found = differences(run.run_folder, histories.whole.run_folder)
            equal += not found
            if found:
                logging.error("full disk %d: %s", number, found)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    ended = f"exit code 4 in {codes[4]} runs, 0 of a finished run in {codes[0]}"
    return [f"| {what} | {count} | {ended}; with space again {equal} of {count} runs ended with every bit equal |"]


def dataset_differences(datasets: Path, whole: Path) -> list[str]:
    """Return the files of a dataset and its packed images, archives and locks aside, that are missing or differ."""

    def content(folder: Path) -> dict[str, str]:
        found = {}
        for path in (*folder.rglob("*"), *(folder / DATASET).rglob("*")):  # the second may be a link
            if path.is_file() and path.suffix not in (".gz", ".lock"):
                data, name = path.read_bytes(), path.relative_to(folder).as_posix()
                if name.startswith(".packed/"):  # name and fingerprint say where the dataset is, too
                    name = re.sub(r"\.[0-9a-f]{8}\.", ".", name)
                    if path.suffix == ".json":
                        data = json.dumps(json.loads(data) | {"fingerprint": None, "sha256": None}).encode()
                found[name] = hashlib.sha256(data).hexdigest()
        return found

    ours, other = content(datasets), content(whole)
    return sorted(
        f"datasets/{name}: differs" for name in ours.keys() | other.keys() if ours.get(name) != other.get(name)
    )
