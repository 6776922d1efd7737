"""Kill, stop, damage and attack real runs, and write what came of it into RELIABILITY.md.

    python benchmarks/reliability.py                a few minutes on two cores
    python benchmarks/reliability.py --soak         an hour or more: 200 kills, each signal 25 times
    python benchmarks/reliability.py --only-costs   measure times alone, on a quiet machine, for the report
    python benchmarks/reliability.py --only-altered  alter data, checkpoints, terminals and disks alone, for the report

How scripts are interrupted is in `parts/interrupted_scripts.py`, what is altered in `parts/altered_files.py`. With
--progress FILE every history is written down as it ends, and the same command goes on after the last one.
"""

import argparse
import json
import logging
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.altered_files import (
    measure_altered_images,
    measure_changed_data,
    measure_damage,
    measure_hostile_files,
    measure_swapped_checkpoints,
)
from benchmarks.parts.interrupted_scripts import (
    EXIT_CODES,
    PHASES,
    Histories,
    Interruption,
    measure_full_disks,
    measure_lost_terminals,
)
from utils.config import check_config
from utils.paths import REPOSITORY_ROOT

BUSY = 0.15
"""Share of the processors that other programs use from which on times are marked."""
ROW_OF_SAVING = "a save of the Omniglot network in epoch 100"


@dataclass
class Tally:
    """What came of all histories with one kind of signal."""

    histories: int = 0
    equal: int = 0
    interruptions: list[Interruption] = field(default_factory=list)
    seconds: float = 0.0
    shares: list[float] = field(default_factory=list)
    """Of the processors, used by other programs before each history."""

    def add(self, entry: dict) -> None:
        """Count one history."""
        self.histories += 1
        self.equal += entry["equal"]
        self.interruptions += [Interruption(**answer) for answer in entry["interruptions"]]
        self.seconds += entry["seconds"]
        self.shares.append(entry["share_of_others"])

    def row(self, number: signal.Signals) -> list[str]:
        """Return the rows of the report about this signal, without times."""
        count, codes = len(self.interruptions), ""
        phases = Counter(answer.phase for answer in self.interruptions)
        where = ", ".join(f"{phase} {phases[phase]}" for phase in PHASES if phases[phase])
        if number in EXIT_CODES:
            right = sum(answer.code_is_right for answer in self.interruptions)
            codes = f"exit code {EXIT_CODES[number]}, or 0 of a finished run, {right} of {count} times; "
        return [
            f"| {number.name} to a running script | {count} times in {self.histories} runs | "
            f"{codes}{self.equal} of {self.histories} runs ended with every bit equal |",
            f"| {number.name} came during | | {where} |",
        ]


def interrupt_scripts(
    histories: Histories, number: signal.Signals, count: int, in_a_history: int, progress: Path | None
) -> Tally:
    """Interrupt real scripts `count` times, up to so many times in a history; goes on after what `progress` holds."""
    tally = Tally()
    for line in progress.read_text().splitlines() if progress and progress.exists() else ():
        entry = json.loads(line)
        if entry["number"] == number:
            tally.add(entry)
    while (left := count - len(tally.interruptions)) > 0:
        begin, share = time.monotonic(), share_of_others()
        n_signals = min(1 + tally.histories % in_a_history, left)
        answers, is_equal = histories.interrupted([number] * n_signals, 1000 * number + tally.histories)
        entry = {
            "number": number, "equal": is_equal, "interruptions": [asdict(answer) for answer in answers],
            "seconds": time.monotonic() - begin, "share_of_others": share,
        }  # fmt: skip
        tally.add(entry)
        if progress:
            with progress.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        for answer in answers:
            if number in EXIT_CODES and not answer.code_is_right:
                logging.error("%s in %s: exit code %d", number.name, answer.phase, answer.code)
        done = f"{len(tally.interruptions)} of {count}, {tally.equal} of {tally.histories} runs equal"
        print(f"{number.name}: {done}", flush=True)
    return tally


def share_of_others(seconds: float = 0.5) -> float:
    """Measure, while this process sleeps, the share of the processors that others use; 0 where it is not known."""

    def times() -> list[int]:
        try:
            return [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError):
            return [0] * 8

    before = times()
    time.sleep(seconds)
    used = [now - then for now, then in zip(times(), before, strict=True)]
    return 1 - (used[3] + used[4]) / sum(used) if sum(used) else 0.0


def mark(shares: Sequence[float]) -> str:
    """Return what a row says about the machine on which its times were measured."""
    return " (while other programs ran; more than on a quiet machine)" if statistics.mean(shares) > BUSY else ""


def latency_row(number: signal.Signals, tally: Tally) -> str:
    """Return the row with the times from a signal to the end of the process."""
    times = [answer.latency_s for answer in tally.interruptions]
    return (
        f"| from {number.name} to the end of the process | {len(times)} | {statistics.median(times):.2f} s (median), "
        f"{max(times):.2f} s (most){mark(tally.shares)} |"
    )


def measure_altered(histories: Histories) -> list[str]:
    """Measure the rows about what is altered between two starts, or goes away during one."""
    folder = histories.folder
    logging.disable(logging.WARNING)  # hundreds of what is expected
    return [
        *measure_altered_images(folder / "altered_images", 200),
        *measure_swapped_checkpoints(folder / "swapped"),
        *measure_changed_data(folder / "changed"),
        *measure_lost_terminals(histories),
        *measure_full_disks(histories, 6),
    ]


def time_saves(folder: Path, repetitions: int) -> tuple[list[float], int]:
    """Measure the seconds of whole saves of the Omniglot network as the paper has it, with Adam's moments; and bytes of
    the file.
    """
    from experiment_parts.runs.checkpoints import save_checkpoint
    from few_shot_learning_system import build_learner

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
    return times, (folder / "timed.safetensors").stat().st_size


def measure_save(folder: Path, repetitions: int) -> str:
    """Measure the row about what saving costs."""
    shares = [share_of_others()]
    times, size = time_saves(folder, repetitions)
    shares.append(share_of_others())
    median = statistics.median(times)
    return (
        f"| {ROW_OF_SAVING} ({size / 2**20:.1f} MiB) | {repetitions} | {1e3 * median:.0f} ms (median), "
        f"{1e3 * max(times):.0f} ms (most): {100 * median / 60:.2f} % of the minute between two saves{mark(shares)} |"
    )


def measure_costs(histories: Histories, count: int) -> list[str]:
    """Measure the rows with times anew."""
    rows = [latency_row(number, interrupt_scripts(histories, number, count, 4, None)) for number in EXIT_CODES]
    return [*rows, measure_save(histories.folder, 50)]


def replace_rows(report: str, rows: Sequence[str]) -> str:
    """Return the report with these rows in the place of those that begin with the same words; new ones before the last.

    Raises:
        ValueError: no report.
    """
    lines = report.splitlines()
    for row in rows:
        label = ROW_OF_SAVING if ROW_OF_SAVING in row else row.split("|")[1].strip()
        is_it = [line.startswith(f"| {label}") for line in lines]
        place = is_it.index(True) if True in is_it else [f"| {ROW_OF_SAVING}" in line for line in lines].index(True)
        lines[place : place + any(is_it)] = [row]
    return "\n".join(lines) + "\n"


def report(arguments: str, minutes: float, rows: Sequence[str], where: str = "a CPU") -> str:
    """Return the text of RELIABILITY.md."""
    import torch

    from utils.machine.environment import describe_environment

    versions = describe_environment(torch.device("cpu"), {})["packages"]
    return (
        "# Reliability, measured\n\n"
        f"Written by `python benchmarks/reliability.py {arguments}` (histories: {minutes:.0f} minutes) on {where} "
        f"with torch {versions['torch']}.\n"
        "A run is `bash experiment_scripts/quickstart.sh`, shortened by flags, whose dataset is ready, or an archive, "
        "or still to be\n"
        "drawn. Signals come at random moments of its whole life, up to eight in a run; then it is started until it "
        "ends. Equal means:\n"
        "its whole folder and its packed images are those of a run that nothing interrupted, times aside.\n\n"
        "| what | tried | came of it |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        "Exit codes are those that a shell shows: before Python is there, SIGINT and SIGTERM end bash itself. In the "
        "first hundredth of\n"
        "a second, while bash has not read the script's first line yet, SIGUSR1 can end it with 138 instead of 0.\n\n"
        "Not covered: power loss (the order of fsync and rename is tested, not the disk), object stores, file systems "
        "without\n"
        "locks. Bits are equal for equal versions, machine type and thread count; on CUDA with `deterministic` true.\n"
    )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", action="store_true", help="200 kills and each signal 25 times")
    parser.add_argument("--kills", type=int, help="default 16")
    parser.add_argument("--signals", type=int, help="of each kind, default 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, help="a file to write every history to, and to go on from")
    parser.add_argument("--only-costs", action="store_true", help="measure times again and replace their rows")
    parser.add_argument("--only-altered", action="store_true", help="alter things alone and replace their rows")
    parser.add_argument("--gpu", metavar="ID", help="run on this GPU, in deterministic mode, instead of the CPU")
    parser.add_argument("--output", type=Path, default=REPOSITORY_ROOT / "RELIABILITY.md")
    options = parser.parse_args()
    kills = options.kills if options.kills is not None else 200 if options.soak else 16
    signals = options.signals if options.signals is not None else 25 if options.soak else 2
    with tempfile.TemporaryDirectory() as name:
        flags = {} if options.gpu is None else {"gpu_to_use": options.gpu, "deterministic": True}
        histories = Histories(Path(name), options.seed, **flags)
        if options.only_costs or options.only_altered:
            rows = measure_costs(histories, options.signals or 6) if options.only_costs else measure_altered(histories)
            options.output.write_text(replace_rows(options.output.read_text(), rows))
        else:
            tallies = {
                number: interrupt_scripts(histories, number, signals, 4, options.progress) for number in EXIT_CODES
            }
            tallies[signal.SIGKILL] = interrupt_scripts(histories, signal.SIGKILL, kills, 8, options.progress)
            rows = [row for number in (signal.SIGKILL, *EXIT_CODES) for row in tallies[number].row(number)]
            rows += [latency_row(number, tallies[number]) for number in EXIT_CODES]
            checkpoint = histories.whole.run_folder / "saved_models" / "train_model_2.safetensors"
            rows += measure_damage(checkpoint, 1000, 200) + measure_hostile_files(histories.folder / "hostile")
            rows += [*measure_altered(histories), measure_save(histories.folder, 50)]
            minutes = sum(tally.seconds for tally in tallies.values()) / 60
            arguments = f"--kills {kills} --signals {signals} --seed {options.seed}"
            where = "a CPU" if options.gpu is None else f"GPU {options.gpu} in deterministic mode"
            options.output.write_text(report(arguments, minutes, rows, where))
    print(options.output.read_text())


if __name__ == "__main__":
    main()
