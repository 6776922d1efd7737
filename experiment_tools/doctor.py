"""See whether everything is in order: python -m experiment_tools.doctor [CONFIG] [--key value ...]

Without a config: versions, devices, folders, disk space. With one (a path, or a name in experiment_config/) also the
config, its data, a training iteration, a validation, a save and a resume, and how long the whole run will take. Each
line is ok, a warning or an error, with the fix. Exit code 0, or 1 when there is an error. Nothing is left behind,
apart from images that any run needs unpacked and decoded.
"""

import logging
import math
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiment_parts.learner import Learner
from utils.config import ExperimentConfig, load_config
from utils.config.command_line import options_of, read_command_line
from utils.config.messages import COMMAND_LINE
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError, UserError
from utils.files.atomic_files import nearest_existing
from utils.machine.devices import choose_device, clock, describe_device
from utils.machine.failures import KEYS_TO_LOWER, is_out_of_memory, out_of_memory_reason
from utils.machine.packages import extras_command, installed_version, requirements, set_up_command
from utils.paths import command, dataset_root, experiments_root
from utils.words import counted, guarded_output, say, size_text

if TYPE_CHECKING:
    import torch

    from experiment_builder import ExperimentBuilder

OK, WARNING, ERROR = "ok", "warning", "error"
LEAST_FREE_GIB = 2.0
TIMED_ITERATIONS, TIMED_SECONDS = 5, 5.0
"""At most so many iterations, and no more of them after so many seconds: one alone where it takes longer."""


class Finding(NamedTuple):
    """One line: how it is, what was examined, and what to do about it."""

    level: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        fix = textwrap.indent(f"\nfix: {self.fix}", 9 * " ") if self.fix else ""
        return f"{self.level:<8} {self.text}{fix}"


@guarded_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Examine everything, print each finding as it is made, and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"}.intersection(arguments):
        say(__doc__)
        return 0
    levels = []
    for finding in examine(arguments):
        say(finding, flush=True)
        levels.append(finding.level)
    n_errors, n_warnings = levels.count(ERROR), levels.count(WARNING)
    counts = f"{counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}"
    say(f"\n{counts if n_errors or n_warnings else 'everything is in order'}")
    return 1 if n_errors else 0


def examine(arguments: Sequence[str]) -> Iterator[Finding]:
    """Yield all findings in order; what cannot be examined because of an error before it is left out."""
    yield from check_packages()
    yield from check_devices()
    yield from check_folders()
    if not arguments:
        yield Finding(OK, f"give a config to look at it and its data too: {command('doctor')} quickstart")
        return
    try:
        config = _config_of(arguments)
    except ConfigError as error:
        yield Finding(ERROR, f"config: {error}")
        return
    yield Finding(OK, f"config: {config.experiment_name}" + "".join(f"; {note}" for note in config.notes))
    yield from check_run(config)


def _config_of(arguments: Sequence[str]) -> ExperimentConfig:
    path, overrides = read_command_line(options_of(arguments))
    return load_config(path, overrides, place=COMMAND_LINE)


# --- the machine ------------------------------------------------------------------------------------------------------


def check_packages() -> Iterator[Finding]:
    """Check Python, and every package of requirements.txt and requirements-extras.txt."""
    python = f"Python {platform.python_version()} at {sys.executable}"
    fits = sys.version_info >= (3, 11)
    yield Finding(OK if fits else ERROR, python, "" if fits else "install Python 3.11 or newer")
    found = []
    for name, least, _ in requirements():
        there = installed_version(name)
        if there is None or (least and _numbers(there) < _numbers(least)):
            wanted = f"{name} >= {least}" if least else name
            yield Finding(ERROR, f"{wanted} is needed, found {there or 'nothing'}", set_up_command())
        else:
            found.append(f"{name} {there}")
    yield Finding(OK, ", ".join(found))
    missing = {extra.name: str(extra.only_for) for extra in requirements("requirements-extras.txt")
               if installed_version(extra.name) is None}  # fmt: skip
    if missing:
        how = extras_command(",".join(dict.fromkeys(missing.values())))
        yield Finding(OK, f"optional, not installed: {', '.join(missing)} ({how})")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]


def check_devices() -> Iterator[Finding]:
    """Check CPU threads and GPUs."""
    try:
        import torch
    except ImportError as error:
        yield Finding(ERROR, f"torch cannot be imported ({error})", set_up_command())
        return
    yield Finding(OK, f"CPU: {os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')} for torch")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            text = (
                f"GPU {number}: {torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB "
                "free"
            )
            is_taken = free < total / 2
            yield Finding(
                WARNING if is_taken else OK,
                text,
                "another process uses it; wait, or give another id" if is_taken else "",
            )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            WARNING, f"there is an NVIDIA driver, but torch {torch.__version__} finds no GPU; runs use the CPU",
            "install a torch built for this driver: TORCH_VARIANT=cu130 bash install.sh in a new environment",
        )  # fmt: skip
    else:
        yield Finding(OK, "no GPU; runs use the CPU")


def check_folders() -> Iterator[Finding]:
    """Check where datasets and runs are put: writable, with space."""
    for variable, folder in (("DATASET_DIR", dataset_root()), ("EXPERIMENTS_DIR", experiments_root())):
        existing = nearest_existing(folder)
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(
                ERROR, f"{variable} {folder}: cannot be written", f"set {variable} to a folder that you can write to"
            )
            continue
        free = shutil.disk_usage(existing).free
        text = f"{variable} {folder}: {size_text(free)} free" + ("" if folder.exists() else "; it will be made")
        is_full = free < LEAST_FREE_GIB * 2**30
        yield Finding(
            WARNING if is_full else OK, text, f"make room, or set {variable} to another disk" if is_full else ""
        )


# --- one run ----------------------------------------------------------------------------------------------------------


def check_run(config: ExperimentConfig) -> Iterator[Finding]:
    """Check the data of a config, and a short run of it."""
    try:
        import torch
    except ImportError:  # `check_devices` has reported it
        return
    from data import build_data

    root, warned = logging.getLogger(), BufferingHandler(capacity=1000)
    root.setLevel(logging.WARNING)
    root.addHandler(warned)
    try:
        device = choose_device(config.gpu_to_use)
        yield Finding(OK, f"device of the run: {describe_device(device)}")
        start = time.perf_counter()
        try:
            data = build_data(config, device, getattr(torch, config.parameter_format))
        finally:
            root.removeHandler(warned)
            root.setLevel(logging.ERROR)  # what a run tells beyond its data is not asked for here
        splits = ", ".join(
            f"{name} {n['classes']} classes with {n['images']} images" for name, n in data.summary()["splits"].items()
        )
        yield Finding(OK, f"data {config.dataset_name}: {splits}; ready in {time.perf_counter() - start:.1f} s")
        yield from _findings_of(warned)
        with tempfile.TemporaryDirectory(prefix="doctor_") as folder:
            yield from _short_run(config, data, device, Path(folder))
    except UserError as error:
        yield from _findings_of(warned)
        yield Finding(ERROR, str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        yield Finding(
            ERROR,
            f"out of memory: {out_of_memory_reason(error)}",
            f"lower one of {', '.join(KEYS_TO_LOWER)}; task_chunk_size changes no result",
        )


def _findings_of(warned: BufferingHandler) -> list[Finding]:
    """Return what was logged since the last call."""
    findings = [Finding(WARNING, record.getMessage()) for record in warned.buffer]
    warned.flush()
    return findings


def _short_run(config: ExperimentConfig, data: EpisodeSource, device: "torch.device", root: Path) -> Iterator[Finding]:
    import torch

    from experiment_builder import build_experiment
    from experiment_parts.runs.checkpoints import list_epochs
    from experiment_parts.runs.opening import open_run_folder
    from few_shot_learning_system import build_learner

    heaviest = {"first_order_to_second_order_epoch": -1} if config.second_order else {}
    limits = {
        "total_epochs": 2, "total_iter_per_epoch": 1, "num_evaluation_tasks": 1, "load_checkpoint": "", "trackers": (),
        "test_after_training": True, "diagnostics_every_epochs": 0,  # which takes as long as several iterations
    }  # fmt: skip
    small = config.model_copy(update=limits | heaviest)

    def start(epochs_before_pause: int) -> "ExperimentBuilder":
        torch.manual_seed(config.initialisation_seed)
        run_folder = open_run_folder(root, config.experiment_name, small.to_json_dict())
        paused = small.model_copy(update={"total_epochs_before_pause": epochs_before_pause})
        try:
            experiment = build_experiment(paused, build_learner(paused, device), data, [], run_folder, device)
            experiment.run()
        finally:
            run_folder.unlock()
        return experiment

    first = start(epochs_before_pause=1)
    (row,) = first.rows
    yield Finding(
        OK,
        f"one training iteration: loss {row['train_loss_mean']:.4f}; one validation task: loss "
        f"{row['val_loss_mean']:.4f}",
    )
    (path,) = list_epochs(first.run_folder.saved_models).values()
    size = path.stat().st_size
    yield Finding(OK, f"one save: {size / 2**20:.1f} MiB")
    yield from _check_space(size * (min(config.models_kept, config.total_epochs) + 3))
    second = start(epochs_before_pause=0)
    has_resumed = second.iteration == 2 and second.rows[0] == row
    yield Finding(
        OK if has_resumed else ERROR,
        "one resume: went on at iteration 2 and was tested"
        if has_resumed
        else "one resume: it did not go on where it was saved",
        "" if has_resumed else "this is a bug in the program; please report it",
    )
    yield _estimate(config, second.learner, data)


def _check_space(needed_bytes: float) -> Iterator[Finding]:
    free = shutil.disk_usage(nearest_existing(experiments_root())).free
    if free < needed_bytes:
        yield Finding(
            ERROR, f"the checkpoints need {size_text(needed_bytes)}, {size_text(free)} are free",
            "make room, lower max_models_to_save, or set EXPERIMENTS_DIR to another disk",
        )  # fmt: skip


def _estimate(config: ExperimentConfig, learner: Learner, data: EpisodeSource) -> Finding:
    """Estimate how long the whole run takes, by timing a few iterations of its heaviest derivative order and a batch of
    validation tasks.
    """
    n_tasks = config.tasks_per_meta_batch
    epoch = config.total_epochs

    def iteration(number: int) -> None:
        episodes = data.episodes("train", range(number * n_tasks, (number + 1) * n_tasks))
        learner.meta_update(learner.meta_gradients(episodes, epoch), epoch)

    def evaluation(number: int) -> None:
        batch = range(number * n_tasks, (number + 1) * n_tasks)
        learner.evaluate(data.episodes("val", batch)).query_logits.sum().item()

    iteration_s, evaluation_s = _timed(iteration, learner), _timed(evaluation, learner)
    batches = math.ceil(config.num_evaluation_tasks / n_tasks)
    validations = math.ceil(config.total_epochs / config.validate_every_epochs)
    tests = (
        config.number_of_ensemble_models
        * len(config.test_shapes)
        * len(config.test_batch_norm_statistics)
        * config.test_after_training
    )
    training_s = config.total_epochs * config.total_iter_per_epoch * iteration_s
    total_s = training_s + (validations + tests) * batches * evaluation_s
    return Finding(
        OK,
        f"the whole run: about {duration_text(total_s)} ({config.total_epochs} epochs of "
        f"{config.total_iter_per_epoch} iterations of "
        f"{1000 * iteration_s:.0f} ms, and {validations} validations and {tests} tests of "
        f"{config.num_evaluation_tasks} tasks)",
    )


def _timed(step: Callable[[int], None], learner: Learner) -> float:
    """Median seconds of a step, without the first where there are others."""
    device = next(iter(learner.meta_parameters().values())).device
    seconds: list[float] = []
    for number in range(TIMED_ITERATIONS + 1):
        start = clock(device)
        step(number)
        seconds.append(clock(device) - start)
        if sum(seconds) > TIMED_SECONDS:
            break
    return statistics.median(seconds[1:] or seconds)


def duration_text(seconds: float) -> str:
    """Return '45 s', '12 min', '3 h 20 min', '2 days 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


if __name__ == "__main__":
    sys.exit(main())
