"""Try values of config keys: python -m experiment_tools.sweep SWEEP.toml [--gpus ID ...] [--workers N] [--test]
[--wandb_yaml FILE]

The sweep file stands beside a template (docs/sweeps.md). Every trial is a run in EXPERIMENTS_DIR/sweep_<name>/ that
ends with its last validation, whose best accuracy counts; with --test the best trial alone is tested, at the end.
Killed? The same command goes on where it was.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_parts.runs.folder_lock import is_in_use
from experiment_tools.parts.run_reading import read_run
from experiment_tools.sweep.file import Sweep, read_sweep, trial_config, wandb_yaml
from experiment_tools.sweep.results import trial_text, write_results
from experiment_tools.sweep.trials import (
    Trial,
    best_trial,
    config_path,
    is_hopeless,
    load_trials,
    next_point,
    save_trials,
)
from utils.config.command_line import parse_command_line
from utils.errors import ConfigError, ExperimentInUseError, Interrupted, StorageError, prints_user_errors
from utils.files.atomic_files import open_regular, refuse_link, storage_errors, write_bytes_atomically
from utils.files.tables import write_json
from utils.images.folders import some_of
from utils.machine.stop_signals import StopSignals
from utils.paths import child_process, command, experiments_root
from utils.words import say

SECONDS_BETWEEN_CHECKS = 0.5
OWN_NAMES = re.compile(r"\.lock|output|configs|wandb_\w+")
"""What is in the folder of a sweep of which agents alone have run trials; else it has a sweep.toml."""
PROGRAM = child_process("train")


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; return the exit code: 0, or 1 when every trial failed or the sweep file is wrong."""
    parser = argparse.ArgumentParser(
        prog=command("sweep"),
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="SWEEP.toml",
        help="what to try, e.g. experiment_template_config/quickstart.sweep.toml",
    )
    parser.add_argument("--gpus", nargs="+", metavar="ID", help="GPU ids; one trial at a time on each")
    parser.add_argument("--workers", type=int, default=1, help="without --gpus: trials at a time (default 1)")
    parser.add_argument(
        "--test", action="store_true", help="when all trials are done, test the best one; no other meets the test set"
    )
    parser.add_argument(
        "--wandb_yaml", type=Path, metavar="FILE", help="write the same sweep for `wandb sweep`, and leave"
    )
    parser.add_argument(
        "--trial", action="store_true", help="run one trial with the --key=value that follow, for `wandb agent`"
    )
    options, rest = parser.parse_known_args(arguments)
    try:
        if rest and not options.trial:
            raise ConfigError(
                f"command line: unknown argument {rest[0]}; what is fixed stands in the sweep file, under [fixed]"
            )
        sweep = read_sweep(options.file)
        if options.trial:
            return run_one(sweep, parse_command_line(rest)[1])
        if options.wandb_yaml:
            write_bytes_atomically(options.wandb_yaml, wandb_yaml(sweep, options.file).encode())
            say(f"Written to {options.wandb_yaml}. Next: wandb sweep {options.wandb_yaml}")
            return 0
        slots = [*(options.gpus or ["auto"] * max(1, options.workers))]
        with StopSignals() as stop:
            return run_sweep(sweep, experiments_root() / f"sweep_{sweep.name}", slots, stop, with_test=options.test)
    except Interrupted as error:
        say(f"{error.number.name}: every trial is saved; run the same command to go on.", file=sys.stderr)
        return error.exit_code


@dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen
    slot: str
    is_pruned: bool = False


def run_sweep(sweep: Sweep, folder: Path, slots: list[str], stop: StopSignals, *, with_test: bool = False) -> int:
    """Run what is left of a sweep; return the exit code.

    Args:
        slots: a value of gpu_to_use for each trial that may run at a time.
        with_test: test the best trial, or show its result again.
    Raises:
        ConfigError: the sweep has started with another sweep file.
        StorageError: its folder cannot be made, or is somebody else's.
        Interrupted: a signal has come; the trials under way have saved.
    """
    _make_folder(folder)
    with _locked(folder):
        trials = load_trials(folder, sweep)
        done = sum(trial.is_done for trial in trials)
        before = f", {done} of them done before" if done else ""
        say(f"Sweep {sweep.name}: {sweep.method}, {sweep.trials} trials{before}, {len(slots)} at a time", flush=True)
        with stop.deferred():
            _run_trials(sweep, folder, trials, slots, stop)
    say(write_results(folder, sweep, trials))
    best = best_trial(trials)
    if best is None:
        say(f"Every trial failed; see {folder / 'output'}", file=sys.stderr)
        return 1
    say(f"Best: trial {best.number}. Its config: {config_path(folder, best)}", flush=True)
    if with_test:
        with stop.deferred():
            return _test(folder, best, slots[0], stop)
    say("Next: the same command with --test, which tests this trial alone")
    return 0


def _make_folder(folder: Path) -> None:
    """Make the folder of a sweep, or use the one that a sweep has made.

    Raises:
        StorageError: it holds what no sweep has written, or leads elsewhere inside.
    """
    names = [] if not folder.is_dir() or (folder / "sweep.toml").is_file() else os.listdir(folder)
    if others := sorted(name for name in names if not OWN_NAMES.fullmatch(name)):
        raise StorageError(
            f"{folder}: holds {some_of(others)}, but no sweep; nothing was written there. Give the sweep file another "
            "name, or set EXPERIMENTS_DIR to another folder."
        )
    for name in ("output", "configs"):
        refuse_link(folder / name)
    with storage_errors(folder):
        (folder / "output").mkdir(parents=True, exist_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder as long as this process lives.

    Raises:
        ExperimentInUseError: another process runs this sweep.
    """
    with storage_errors(folder):
        descriptor = open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT)
    with open(descriptor, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExperimentInUseError(
                f"{folder}: another process runs this sweep. Wait for it, or stop it."
            ) from error
        yield


def _run_trials(sweep: Sweep, folder: Path, trials: list[Trial], slots: list[str], stop: StopSignals) -> None:
    running: list[_Running] = []
    reported: set[str] = set()
    free, waiting = list(slots), [trial for trial in trials if not trial.is_done]
    try:
        while True:
            # A sweep that was killed leaves its trials running; each takes a place until it has ended.
            left_over = [trial for trial in waiting if is_in_use(folder / trial.name)]
            ready = [trial for trial in waiting if trial not in left_over]
            while len(free) > len(left_over) and (ready or len(trials) < sweep.trials):
                if not ready:
                    ready.append(Trial(len(trials), next_point(sweep, trials)))
                    trials.append(ready[0])
                trial = ready.pop(0)
                waiting = [other for other in waiting if other is not trial]
                running.append(_start(sweep, folder, trial, free.pop(0)))
                save_trials(folder, trials)
            for trial in left_over:
                if trial.name not in reported:
                    reported.add(trial.name)
                    say(f"trial {trial.number} still runs since before; its end is waited for", flush=True)
            if not running and not waiting:
                return
            stop.check()
            time.sleep(SECONDS_BETWEEN_CHECKS)
            for entry in list(running):
                has_ended = entry.process.poll() is not None
                _check_progress(sweep, folder, entry, trials)
                if has_ended:
                    running.remove(entry)
                    free.append(entry.slot)
                    _finish(folder, entry)
                    save_trials(folder, trials)
                    write_results(folder, sweep, trials)
                    say(trial_text(sweep, entry.trial, best_trial(trials)), flush=True)
    finally:
        for entry in running:
            entry.process.send_signal(signal.SIGTERM)
        for entry in running:
            entry.process.wait()
        save_trials(folder, trials)


def _start(sweep: Sweep, folder: Path, trial: Trial, slot: str) -> _Running:
    config = config_path(folder, trial)
    config.parent.mkdir(exist_ok=True)
    write_json(config, trial_config(sweep, trial.name, trial.point))
    trial.state = "running"
    with open(open_regular(_output_path(folder, trial), os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as output:
        return _Running(trial, _run_of(folder, trial, slot, stdout=output, stderr=subprocess.STDOUT), slot)


def _run_of(folder: Path, trial: Trial, slot: str, *overrides: str, **streams: Any) -> subprocess.Popen:
    command = [
        *PROGRAM,
        "--name_of_args_json_file",
        str(config_path(folder, trial)),
        "--gpu_to_use",
        slot,
        *overrides,
    ]
    # In a session of its own: Ctrl-C reaches the sweep alone, which asks its trials to save.
    return subprocess.Popen(
        command,
        env=os.environ | {"EXPERIMENTS_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **streams,
    )


def _check_progress(sweep: Sweep, folder: Path, entry: _Running, trials: Sequence[Trial]) -> None:
    """Read how far a trial is, and ask it to stop where it is hopeless."""
    rows = read_run(folder / entry.trial.name).rows
    entry.trial.accuracies = {
        int(row["epoch"]): row["val_accuracy_mean"] for row in rows if row["val_accuracy_mean"] is not None
    }
    if (
        entry.process.poll() is None
        and not entry.is_pruned
        and is_hopeless(entry.trial, trials, sweep.prune_after_epochs)
    ):
        entry.is_pruned = True
        entry.process.send_signal(signal.SIGTERM)


def _test(folder: Path, trial: Trial, slot: str, stop: StopSignals) -> int:
    """Run the final test of a trained trial and show it; one that was tested shows its result.

    Returns the exit code.
    """
    process = _run_of(folder, trial, slot, "--test_after_training", "true")
    try:
        while process.poll() is None:
            stop.check()
            time.sleep(SECONDS_BETWEEN_CHECKS)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    return process.returncode


def _finish(folder: Path, entry: _Running) -> None:
    trial, code = entry.trial, entry.process.returncode
    trial.state = "complete" if code == 0 else "pruned" if entry.is_pruned else "failed"
    if trial.state == "failed":
        lines = _output_path(folder, trial).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        trial.note = f"exit code {code}: {lines[-1] if lines else 'no output'}"


def _output_path(folder: Path, trial: Trial) -> Path:
    return folder / "output" / f"{trial.name}.txt"


def run_one(sweep: Sweep, point: dict[str, Any]) -> int:
    """Become the run of one point that `wandb agent` has chosen.

    Raises:
        ConfigError: a key that the sweep file does not have under [parameters].
    """
    unknown = sorted(point.keys() - sweep.parameters.keys())
    if unknown:
        raise ConfigError(f"command line: {', '.join(unknown)} is not under [parameters] of the sweep file")
    folder = experiments_root() / f"sweep_{sweep.name}"
    name = f"wandb_{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]}"
    config = folder / "configs" / f"{name}.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    write_json(config, trial_config(sweep, name, point) | {"trackers": ["wandb"], "wandb_mode": "online"})
    command = [*PROGRAM, "--name_of_args_json_file", str(config), "--gpu_to_use", "auto"]
    return subprocess.run(command, env=os.environ | {"EXPERIMENTS_DIR": str(folder)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
