"""Make the folder of an experiment ready when a process starts: refuse one that is no run's, lock it, start over or
branch off, check the config.
"""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from experiment_parts.runs.checkpoints import epoch_path, list_epochs, read_checkpoint, unfinished_path, with_state
from experiment_parts.runs.folder_lock import LOCK_NAME, holder_of
from experiment_parts.runs.run_folder import FOLDERS, IS_BRANCH, RUN_ID, RunFolder, stored_config
from utils.config.changes import check_config_changes
from utils.errors import ConfigError, StorageError
from utils.files.atomic_files import (
    free_path,
    read_regular,
    remove_temporary_files,
    storage_errors,
    write_bytes_atomically,
)
from utils.files.reading import read_object
from utils.files.tables import write_json
from utils.words import printable

log = logging.getLogger(__name__)


def check_is_run_folder(path: Path) -> None:
    """Refuse a folder that holds something and was not made by a run, so that nothing of the user's is written over.

    Raises:
        StorageError: naming what is in it.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise StorageError(f"{path}: no folder. Move this file away, or give the run another --experiment_name.")
    lock, saved_models = path / LOCK_NAME, path / "saved_models"
    is_ours = (
        (lock.is_file() and not lock.is_symlink() and (holder_of(path) or "process ").startswith("process "))
        or stored_config(path)
        or list_epochs(saved_models)
        or unfinished_path(saved_models).exists()
    )
    if is_ours:
        return
    # What a start leaves that was killed before it held its lock: empty folders.
    others = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in FOLDERS or not entry.is_dir() or any(entry.iterdir())
    )
    if others:
        found = ", ".join(map(printable, others[:3])) + (" ..." if len(others) > 3 else "")
        raise StorageError(
            f"{path}: holds {found}, but no run of this program: neither its config.json nor its .lock nor a "
            "checkpoint. Nothing was written there. Give the run another --experiment_name, or set EXPERIMENTS_DIR to "
            "another folder."
        )


def open_run_folder(
    root: Path,
    experiment_name: str,
    config: dict[str, Any],
    *,
    continue_from_epoch: int | str = "latest",
    only_testing: bool = False,
    keeps_config: bool = False,
    source_experiment: str | None = None,
    allowed_changes: Collection[str] = (),
) -> RunFolder:
    """Make an experiment's folder ready for this process: create, lock, start over or branch off, check the config.

    A run that is there and cannot be written is only read: it is not locked (`is_held` is false) and nothing of it
    changes.

    Args:
        config: the resolved config as a dict; becomes config.json unless this start only looks at a run that has one:
            `only_testing` or `keeps_config`.
        continue_from_epoch: `latest`; `from_scratch`, which renames the old folder; or the epoch to go on from.
        source_experiment: where a new experiment takes that epoch from.
        allowed_changes: keys that may change although the run has started.
    Raises:
        ConfigError: a key changed that must not, or the epoch is not to be had.
        StorageError: the folder cannot be written, or its checkpoints cannot be read.
        ExperimentInUseError: another process holds it.
    """
    if only_testing and continue_from_epoch == "from_scratch":
        raise ConfigError("evaluate_on_test_set_only has nothing to test with continue_from_epoch from_scratch.")
    check_is_run_folder(root / experiment_name)
    run_folder = RunFolder(root / experiment_name)
    if run_folder.is_writable or only_testing or continue_from_epoch != "latest":
        run_folder.create()
        run_folder.lock()
    try:
        if continue_from_epoch == "from_scratch":
            run_folder = _start_over(run_folder)
        if run_folder.is_held:
            for folder in (run_folder.path, run_folder.saved_models, run_folder.logs):
                remove_temporary_files(folder)
        if isinstance(continue_from_epoch, int):
            _go_on_from(run_folder, root, continue_from_epoch, source_experiment)
        newest = run_folder.newest_good_checkpoint()
        if only_testing and not list_epochs(run_folder.saved_models) and not config["load_checkpoint"]:
            raise ConfigError(
                f"{run_folder.path}: no checkpoint to test yet. Train first, or give --load_checkpoint PATH."
            )
        if newest is not None:
            stored = newest[1]["config"]
            if stored["experiment_name"] == experiment_name:  # a branch may differ from where it comes from
                changed = check_config_changes(
                    stored,
                    config,
                    only_testing=only_testing,
                    experiment=experiment_name,
                    allowed_by_user=allowed_changes,
                )
                for key in changed:
                    log.info("config: %s is %s now, was %s", key, json.dumps(config[key]), json.dumps(stored[key]))
        run_folder.run_id = run_folder.run_id or secrets.token_hex(16)
        keeps_config = keeps_config or only_testing
        if run_folder.is_held and not (keeps_config and (run_folder.path / "config.json").exists()):
            write_json(run_folder.path / "config.json", {RUN_ID: run_folder.run_id, **config})
    except BaseException:
        run_folder.remove_failed_start()
        run_folder.unlock()
        raise
    return run_folder


def _start_over(run_folder: RunFolder) -> RunFolder:
    """Rename the folder if a run has started in it, and make a new one; the lock is moved along."""
    started = any(run_folder.saved_models.iterdir()) or (run_folder.logs / "summary_statistics.csv").exists()
    if not started:  # a start that failed before it trained leaves no more than its log
        return run_folder
    target = free_path(run_folder.path.with_name(f"{run_folder.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
    with storage_errors(target):
        run_folder.path.rename(target)
    log.info("from_scratch: the old run is now %s", target)
    run_folder.unlock()
    fresh = RunFolder(run_folder.path)
    fresh.create()
    fresh.lock()
    return fresh


def _go_on_from(run_folder: RunFolder, root: Path, epoch: int, source_experiment: str | None) -> None:
    epochs = list_epochs(run_folder.saved_models)
    name = run_folder.path.name
    is_branch = source_experiment is not None and source_experiment != name
    if is_branch:
        if not epochs:  # else this is a rerun of the branch, which resumes
            _branch(run_folder, RunFolder(root / str(source_experiment)), epoch)
        return
    if epoch not in epochs:
        raise ConfigError(f"continue_from_epoch {epoch}: {name} holds {_names(epochs)}. Use one of these, or latest.")
    if epoch != max(epochs):
        raise ConfigError(
            f"continue_from_epoch {epoch}: {name} goes on to epoch {max(epochs)}, which would be lost. Branch off with "
            "a new --experiment_name on the command line, or use latest."
        )


def _branch(run_folder: RunFolder, source: RunFolder, epoch: int) -> None:
    """Copy the checkpoints up to `epoch` and metrics.jsonl; the folder of checkpoints appears in one rename."""
    epochs = list_epochs(source.saved_models)
    if epoch not in epochs:
        raise ConfigError(f"continue_from_epoch {epoch}: {source.path} holds {_names(epochs)}. Use one of these.")
    run_folder.run_id = run_folder.run_id or secrets.token_hex(16)
    arriving = run_folder.path / "saved_models.arriving"
    with storage_errors(arriving):
        shutil.rmtree(arriving, ignore_errors=True)  # our own, from a copy that was killed
        arriving.mkdir()
        for number, path in sorted(epochs.items(), reverse=True):  # the one that was asked for first: it must be good
            if number <= epoch:
                checkpoint = read_checkpoint(path)
                state = checkpoint.state | {RUN_ID: run_folder.run_id, IS_BRANCH: True}
                write_bytes_atomically(epoch_path(arriving, number), with_state(checkpoint, state))
        if (source.logs / "metrics.jsonl").exists():
            write_bytes_atomically(run_folder.logs / "metrics.jsonl", read_regular(source.logs / "metrics.jsonl"))
        arriving.rename(run_folder.saved_models)
    log.info("continuing %s from epoch %d of %s", run_folder.path.name, epoch, source.path.name)


def _names(epochs: dict[int, Path]) -> str:
    return "no checkpoint" if not epochs else "the epochs " + ", ".join(map(str, epochs))


def add_start(path: Path, entry: dict[str, Any]) -> None:
    """Append one start to environment.json; an unreadable file is begun anew.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        starts = list(read_object(path)["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    write_json(path, {"starts": [*starts, entry]})
