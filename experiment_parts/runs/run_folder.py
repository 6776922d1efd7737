"""The folder of an experiment: its layout, its lock, and which of its checkpoints can be used.

    config.json  environment.json  saved_models/train_model_<epoch>.safetensors  unfinished.safetensors
    logs/summary_statistics.csv|json  metrics.jsonl  curves.json  test_*  run.log     visual_outputs/

Nothing here needs torch: a folder that cannot be written or a key that must not change is found in the first second.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from experiment_parts.runs.checkpoints import (
    Checkpoint,
    epoch_of,
    list_epochs,
    read_checkpoint,
    set_aside,
    unfinished_path,
)
from experiment_parts.runs.folder_lock import LOCK_NAME, holder_of, is_at, is_in_use
from experiment_parts.runs.run_state import RunState
from utils.errors import DamagedCheckpointError, ExperimentInUseError, StorageError
from utils.files.atomic_files import open_regular, refuse_link, storage_error, storage_errors
from utils.files.reading import object_or_nothing

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
START_OVER = "To start over: --continue_from_epoch from_scratch (this folder is renamed, not deleted)."

FILES_OF_A_START = {LOCK_NAME, "config.json", "environment.json", "logs/run.log"}
"""What there is before the first iteration."""
IS_BRANCH = "is_branch"
"""In the state of a checkpoint that was taken over from another run, whose config and data may differ."""
FOLDERS = ("saved_models", "logs", "visual_outputs")
FOLDERS_OF_TRACKERS = ("logs/tensorboard", "logs/wandb")
RUN_ID = "run_id"
"""Key of config.json and of a checkpoint's state: a number drawn when the run first started. It says which files belong
together whatever folder and files are called, so that a checkpoint that was copied here from another run is noticed.
"""


class RunFolder:
    """The paths of one experiment, and the lock on them; `opening.open_run_folder` makes it ready."""

    def __init__(self, path: Path):
        self.path = path
        self.saved_models = path / "saved_models"
        self.logs = path / "logs"
        self.visual_outputs = path / "visual_outputs"
        self.run_id = _run_id_of(stored_config(path))
        """"": not known, as for a run of a release that had none."""
        self._lock: int | None = None  # without it, nothing here is written or renamed
        self._is_new = False  # made by this process
        self._read: dict[Path, tuple[tuple[int, ...], Checkpoint]] = {}  # what was verified, as long as its file stays

    @property
    def is_held(self) -> bool:
        """Whether this process may write here, as it holds the lock."""
        return self._lock is not None

    @property
    def is_writable(self) -> bool:
        """Whether a run can go on here. Of another user's folder, or on a disk that is read only, all can be read."""
        places = (self.path, self.saved_models, self.logs, self.visual_outputs, self.path / LOCK_NAME)
        return all(os.access(place, os.W_OK) for place in places if os.path.exists(place))

    def create(self) -> None:
        """Make the folders that are missing.

        Raises:
            StorageError: no permission, no space, a file in the way, or a link that leads out of the run folder.
        """
        self._is_new |= not self.path.exists()
        for name in FOLDERS + FOLDERS_OF_TRACKERS:
            refuse_link(self.path / name)
        for folder in (self.saved_models, self.logs, self.visual_outputs):
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if not self.is_writable:
            raise StorageError(f"{self.path}: no permission to write there. Set EXPERIMENTS_DIR to another folder.")

    def lock(self) -> None:
        """Hold the folder until the process ends (or `unlock`), however it ends.

        An fcntl lock on a descriptor that is not opened again: it goes with its process, unlike an flock, which a
        forked child would keep.

        Raises:
            ExperimentInUseError: another process holds it.
        """
        path = self.path / LOCK_NAME
        while True:
            try:
                descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:  # a start that failed has just taken its folder away
                self.create()
                continue
            except OSError as error:
                raise storage_error(path, error) from error
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                raise self._in_use() from error
            if is_at(path, descriptor):
                break
            os.close(descriptor)  # it was taken away, or its folder renamed, before we held it
        self._lock = descriptor
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, started {started}".encode(), 0)
        except OSError as error:
            self.unlock()
            raise storage_error(path, error) from error
        self.create()  # a failed start may have removed folders while we waited for its lock

    def check_not_in_use(self, within_s: float) -> None:
        """Take no lock, but see whether another process holds it; one that was just killed gets some time to be gone.

        Raises:
            ExperimentInUseError: it does, and still does after `within_s`.
        """
        deadline = time.monotonic() + within_s
        while is_in_use(self.path):
            if time.monotonic() > deadline:
                raise self._in_use()
            time.sleep(0.1)

    def _in_use(self) -> ExperimentInUseError:
        holder = holder_of(self.path) or "another process"
        return ExperimentInUseError(
            f"{self.path}: in use by {holder}. Wait for it or stop it, or give this run another --experiment_name."
        )

    def unlock(self) -> None:
        """Let the folder go; also safe when it is not held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove_failed_start(self) -> None:
        """Take away what this process has made when nothing came of it: no checkpoint, no result, no file of anybody
        else.

        Only the files that every start writes and empty folders go; the rest stays, and so do the folders around it.
        """
        files = [path for path in self.path.rglob("*") if not path.is_dir()]
        if not self._is_new or not {path.relative_to(self.path).as_posix() for path in files} <= FILES_OF_A_START:
            return
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            for path in files:
                if path.name != LOCK_NAME:
                    path.unlink()
            for folder in (self.saved_models, self.logs, self.visual_outputs):
                folder.rmdir()
            (self.path / LOCK_NAME).unlink()
            self.path.rmdir()

    def has_checkpoints(self) -> bool:
        """Return whether a run has been saved here; nothing is verified."""
        return bool(list_epochs(self.saved_models)) or unfinished_path(self.saved_models).exists()

    def newest_save(self) -> tuple[int, int]:
        """Return (newest epoch saved, time in ns of the save inside an epoch), 0 for none; nothing is opened.

        Of two views of one folder the older one has the smaller value.
        """
        try:
            inside_ns = unfinished_path(self.saved_models).stat().st_mtime_ns
        except FileNotFoundError:
            inside_ns = 0
        return max(list_epochs(self.saved_models), default=0), inside_ns

    def newest_good_checkpoint(self, before_iteration: int | None = None) -> tuple[Path, dict[str, Any]] | None:
        """Return path and state of the newest checkpoint of this run that verifies: an epoch's, or inside an epoch.

        With `before_iteration`, the newest in which that iteration (counted from 1) is not done yet; None: from the
        start. None when nothing was ever saved. Damaged ones on the way are renamed to `*.corrupt`, and those of
        another run or epoch to `*.foreign` once there is one to go on from, with one line each; a process that does
        not hold the folder renames nothing.

        Raises:
            StorageError: something was saved once, but nothing usable is left, or one cannot be read, which may be
                as good as when it was saved; never a silent start from zero.
        """

        def is_wanted(entry: tuple[Path, dict[str, Any]] | None) -> bool:
            return entry is not None and (before_iteration is None or entry[1]["iteration"] < before_iteration)

        foreign: dict[Path, str] = {}
        epochs = (self._verified(path, foreign) for path in reversed(list_epochs(self.saved_models).values()))
        newest_epoch = next(filter(is_wanted, epochs), None)
        unfinished = unfinished_path(self.saved_models)
        found = [newest_epoch, self._verified(unfinished, foreign) if unfinished.exists() else None]
        found = [entry for entry in found if is_wanted(entry)]
        if before_iteration is not None:
            return max(found, key=lambda entry: entry[1]["iteration"], default=None)
        if found:
            for path, reason in foreign.items():
                self._set_foreign_aside(path, reason)
            return max(found, key=lambda entry: entry[1]["iteration"])  # of equals the epoch's own
        if foreign:
            listed = "; ".join(f"{path.name} {reason}" for path, reason in foreign.items())
            raise StorageError(
                f"{self.saved_models}: no usable checkpoint is left: {listed}. Put this run's own files back under "
                f"their names. {START_OVER}"
            )
        if self.has_checkpoints() or any(self.saved_models.glob("*.safetensors.[cf]*")):
            raise StorageError(
                f"{self.saved_models}: no usable checkpoint is left, all are damaged or of another run. {START_OVER}"
            )
        if (self.logs / "summary_statistics.csv").exists():
            raise StorageError(
                f"{self.saved_models}: empty, although logs/summary_statistics.csv shows finished epochs. "
                f"Put the checkpoints back. {START_OVER}"
            )
        return None

    def load(self, path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Return tensors (on the CPU) and state of a checkpoint of this run; one that was verified is not read again.

        Raises:
            DamagedCheckpointError, StorageError: as `load_checkpoint`.
        """
        signature, checkpoint = self._read.pop(path, (None, None))  # the caller may change the state that it gets
        if checkpoint is None or signature != _signature(path):
            checkpoint = read_checkpoint(path)
        self._read.clear()  # a run has taken its place: the bytes of others would only take memory
        return checkpoint.tensors(), checkpoint.state

    def load_usable(self, path: Path) -> "dict[str, Tensor] | None":
        """Return the tensors of the checkpoint of an epoch; None: damaged, or of another run or epoch, and set aside.

        Raises:
            StorageError: it cannot be read, or is of another release.
        """
        foreign: dict[Path, str] = {}
        if self._verified(path, foreign) is None:
            for found, reason in foreign.items():
                self._set_foreign_aside(found, reason)
            return None
        try:
            return self.load(path)[0]
        except DamagedCheckpointError as error:
            self._set_aside(path, str(error))
            return None

    def _verified(self, path: Path, foreign: dict[Path, str]) -> tuple[Path, dict[str, Any]] | None:
        """Return path and state, or None for a damaged file, which is set aside, and for one that is not what folder
        and name say, which becomes an entry of `foreign` with the reason.
        """
        signature, checkpoint = self._read.get(path, (None, None))
        if checkpoint is None or signature != _signature(path):
            before = _signature(path)
            try:
                checkpoint = read_checkpoint(path)
                _check_state(path, checkpoint.state)
            except DamagedCheckpointError as error:
                self._set_aside(path, str(error))
                return None
            reason = self._foreign_because(path, checkpoint.state)
            if reason:
                foreign[path] = reason
                return None
            self._read[path] = before, checkpoint
        return path, checkpoint.state

    def _foreign_because(self, path: Path, state: dict[str, Any]) -> str:
        stored = _run_id_of(state)
        self.run_id = self.run_id or stored  # config.json is gone, or of a release that kept no id
        if stored and stored != self.run_id:
            return f"is of another run (its {RUN_ID} {stored[:8]}..., here {self.run_id[:8]}...)"
        epoch = epoch_of(path)
        if epoch not in (None, state["epoch"]) or (epoch is not None and "under_way" in state):
            return f"holds epoch {state['epoch']}{' and a part of the next' if 'under_way' in state else ''}"
        return ""

    def _set_foreign_aside(self, path: Path, reason: str) -> None:
        self._set_aside(path, f"{path}: not used, it {reason}.", ".foreign")

    def _set_aside(self, path: Path, reason: str, suffix: str = ".corrupt") -> None:
        """Rename a checkpoint that cannot be used; it stays where it is as long as the folder is only read."""
        if self.is_held:
            reason += f" Set aside as {set_aside(path, suffix).name}."
        log.warning("%s", reason)


def _check_state(path: Path, state: Any) -> None:
    """Refuse the state of a file whose digest is right, but which no run has written.

    Raises:
        DamagedCheckpointError: naming what is missing or of another kind.
    """
    try:
        RunState.model_validate(state, strict=True)
    except ValidationError as error:
        wrong = dict.fromkeys(str(found["loc"][0]) if found["loc"] else "form" for found in error.errors())
        text = f"{path}: no checkpoint of a run, its state lacks a valid {', '.join(wrong)}."
        raise DamagedCheckpointError(text) from error


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file: every save is a new one, renamed into its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stored_config(path: Path) -> dict[str, Any]:
    """Return config.json of a run folder; nothing where it is not there, damaged, or not that of a run."""
    config = object_or_nothing(path / "config.json")
    return config if {"experiment_name", "total_epochs"} <= config.keys() else {}


def _run_id_of(content: Mapping[str, Any]) -> str:
    """Return the number of a config or a checkpoint's state; "" of a release that kept none, or a forged one."""
    run_id = content.get(RUN_ID)
    return run_id if isinstance(run_id, str) else ""
