"""Run folders as they lie on the disk: state, history and test results. Changes nothing, and needs no torch."""

import fcntl
import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiment_parts.runs.checkpoints import read_checkpoint_state
from utils.errors import ConfigError, StorageError
from utils.metrics import ACCURACY, Score, score_named
from utils.paths import experiments_root

FLOCK_FORMAT = "qqihh" if sys.platform == "darwin" else "hhqqi4x"
"""struct flock of fcntl(2)."""


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    path: Path
    state: str
    """finished, trained (not tested), running, unfinished, empty or damaged."""
    problem: str = ""
    """What is damaged, or what is left to do; empty: nothing."""
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    """One per epoch, as in logs/summary_statistics.csv."""
    summary: Mapping[str, Any] | None = None
    """Content of logs/test_summary.json."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def best_val(self) -> float | None:
        """Highest validation accuracy so far."""
        scores = [row["val_accuracy_mean"] for row in self.rows if row.get("val_accuracy_mean") is not None]
        return max(scores, default=None)

    @property
    def epochs_text(self) -> str:
        """'3/100': epochs done, and wanted."""
        return f"{len(self.rows)}/{self.config.get('total_epochs', '?')}"

    def disk_use_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())


def find_run(text: str) -> Path:
    """The run folder that a command line means: a path, or the name of one below EXPERIMENTS_DIR.

    Raises:
        ConfigError: there is neither.
    """
    for path in (Path(text).expanduser(), experiments_root() / text):
        if path.is_dir():
            return path
    raise ConfigError(
        f"{text}: no such run folder, neither as a path nor below {experiments_root()} (set EXPERIMENTS_DIR to look "
        "elsewhere). "
        "List the runs: python -m experiment_tools.runs"
    )


def list_runs(root: Path) -> list[Path]:
    """Folders below `root` in which a run has begun, those inside sweeps too; sorted."""
    return sorted(_run_folders(root, depth=3))


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return
    if (folder / "config.json").exists() or (folder / "saved_models").is_dir():
        yield folder
    elif depth:
        for child in children:
            yield from _run_folders(child, depth - 1)


def read_run(path: Path) -> Run:
    """Read a run folder; whatever is damaged in it is said in `problem`, never raised."""
    known: dict[str, Any] = {}
    try:
        if not (path / "config.json").exists():
            return Run(path, "empty", "holds no config.json: nothing has been started in it")
        known["config"] = _read_json(path / "config.json")
        known["config"]["experiment_name"], known["config"]["total_epochs"]  # what every run has
        if (path / "logs" / "summary_statistics.json").exists():
            known["rows"] = _rows(_read_json(path / "logs" / "summary_statistics.json"))
        if (path / "logs" / "test_summary.json").exists():
            summary = _read_json(path / "logs" / "test_summary.json")
            for result in summary["results"]:
                result["protocol"]["statistics"], result["test_accuracy_mean"]
            known["summary"] = summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Run(path, "damaged", _reason(error), **known)
    wanted, done = known["config"]["total_epochs"], len(known.get("rows", ()))
    if is_in_use(path):
        return Run(path, "running", f"epoch {done} of {wanted}", **known)
    is_tested = known.get("summary") is not None and known["summary"].get("epochs_trained") == done
    if is_tested and (done >= wanted or known["summary"].get("stopped_early")):
        return Run(path, "finished", **known)
    if done >= wanted:
        return Run(path, "trained", "not tested", **known)
    return Run(path, "unfinished", f"epoch {done} of {wanted}; run its script again to go on", **known)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a file in it lacks the entry {error}"
    return str(error) or type(error).__name__


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged, not a JSON object")
    return content


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    n_epochs = len(columns["epoch"])
    return [{name: values[place] for name, values in columns.items()} for place in range(n_epochs)]


def is_in_use(run_folder: Path) -> bool:
    """Whether another process holds the folder's lock. Asks without taking it."""
    try:
        descriptor = os.open(run_folder / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        wanted = _flock(fcntl.F_WRLCK)
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted)
        return found[: len(wanted)] != wanted and _lock_type(found) != fcntl.F_UNLCK
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def _flock(kind: int) -> bytes:
    return struct.pack(FLOCK_FORMAT, *((0, 0, 0, kind, 0) if sys.platform == "darwin" else (kind, 0, 0, 0, 0)))


def _lock_type(data: bytes) -> int:
    values = struct.unpack(FLOCK_FORMAT, data)
    return values[3] if sys.platform == "darwin" else values[0]


# --- test results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The test of a run on one set of tasks with one kind of batch-norm statistics."""

    protocol: Mapping[str, Any]
    mean: float
    """Of the ensemble's scores over tasks."""
    ci95: float | None
    n_models: int
    digest: str | None
    """Equal means the same test tasks."""
    task_scores: np.ndarray | None
    """float64 (tasks,), of the ensemble; None where the predictions are missing or damaged."""
    loss: float | None = None
    """Mean of the cross-entropy (or squared error) of the ensemble's mean scores."""
    problem: str = ""
    """Why scores and loss are missing."""
    score: Score = ACCURACY


def results_of(run: Run, statistics: str | None = None) -> list[Result]:
    """The results of a tested run: one per set of test tasks.

    Args:
        statistics: kind of batch-norm statistics; None: the first that was tested.
    """
    if run.summary is None:
        return []
    results = run.summary["results"]
    wanted = statistics or results[0]["protocol"]["statistics"]
    found = []
    for result in results:
        protocol = result["protocol"]
        if protocol["statistics"] != wanted:
            continue
        scores, loss, problem = None, None, ""
        try:
            scores, loss = _scores_and_loss(run.path / "logs" / "test_predictions.safetensors", protocol)
            if abs(float(scores.mean()) - result["test_accuracy_mean"]) > 2e-3:  # float32 in torch, float64 here
                scores, loss, problem = (
                    None,
                    None,
                    "logs/test_predictions.safetensors does not belong to logs/test_summary.json",
                )
        except (StorageError, KeyError, ValueError) as error:
            problem = _reason(error)
        found.append(
            Result(
                protocol, result["test_accuracy_mean"], result["test_accuracy_ci95"], result["ensemble"]["models"],
                result.get("task_list_digest") or run.summary.get("task_list_digest"), scores, loss, problem,
                score_named(result.get("score")),
            )
        )  # fmt: skip
    return found


def _scores_and_loss(path: Path, protocol: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """Score of each task, of the mean over models of the class scores, and their mean loss.

    The score is the share of right answers, or minus the mean squared error.

    Raises:
        StorageError: the file is missing or damaged.
        KeyError: it holds no scores for this protocol.
    """
    from safetensors.numpy import load

    read_checkpoint_state(path)  # verifies every byte
    arrays = load(path.read_bytes())
    suffix = f".{protocol['dataset']}.{protocol['ways']}way_{protocol['shots']}shot_{protocol['queries']}query"
    suffix = suffix if f"query_labels{suffix}" in arrays else ""
    scores, labels = arrays[f"scores.{protocol['statistics']}{suffix}"], arrays[f"query_labels{suffix}"]
    mean = scores.astype(np.float64).mean(axis=0)  # (tasks, queries, classes)
    if np.issubdtype(labels.dtype, np.floating):
        errors = np.square(mean - labels).mean(axis=(1, 2))
        return -errors, float(errors.mean())
    shifted = mean - mean.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()
    return (mean.argmax(axis=-1) == labels).mean(axis=-1), float(loss)
