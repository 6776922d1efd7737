"""Run folders as they lie on the disk, for every tool: state, history and test results. Changes nothing, and needs no
torch. What is missing or damaged is named, never fatal.
"""

import csv
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiment_parts.evaluation.test_results import OTHER_DATA, TESTED_ON
from experiment_parts.runs.checkpoints import read_checkpoint
from experiment_parts.runs.folder_lock import is_in_use
from utils.errors import ConfigError, StorageError
from utils.files.atomic_files import read_regular
from utils.files.reading import parse_json, read_object
from utils.metrics import ACCURACY, Score, score_named
from utils.paths import command, expanded, experiments_root

Arrays = dict[str, np.ndarray]
PREDICTIONS = Path("logs") / "test_predictions.safetensors"


@dataclass
class Run:
    """What a run has written so far; an empty value where a file is missing or damaged.

    Attributes:
        rows: one dict per epoch, of logs/summary_statistics.json.
        test: logs/test_summary.json.
        starts: entries of environment.json. These and what follows are read by `read_whole_run` alone.
        epochs: entries of logs/curves.json.
        iterations: lines of logs/metrics.jsonl.
        test_curve: rows of logs/test_curve.csv, the test of every kept epoch; numbers as numbers.
        scores: tensors and state of logs/test_predictions.safetensors.
        examples: those of logs/validation_episodes.safetensors.
    """

    path: Path
    state: str = "unfinished"
    """finished, trained (not tested), running, unfinished, empty or damaged."""
    problem: str = ""
    """What is damaged, or what is left to do; empty: nothing."""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    test: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    iterations: list[dict[str, Any]] = field(default_factory=list)
    test_curve: list[dict[str, Any]] = field(default_factory=list)
    scores: tuple[Arrays, dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    examples: tuple[Arrays, dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    problems: list[str] = field(default_factory=list)
    """A sentence per damaged file."""
    command: str = ""
    """That makes it, where its config alone is left; empty: `settings.command_of` finds it."""
    modified: float = 0.0
    """Time of the newest file that was read, in seconds since 1970."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def experiment_name(self) -> str:
        """As the config has it; the folder may have been renamed since."""
        return str(self.config.get("experiment_name") or self.name)

    @property
    def best_val(self) -> float | None:
        """Highest validation accuracy so far."""
        scores = [row["val_accuracy_mean"] for row in self.rows if row.get("val_accuracy_mean") is not None]
        return max(scores, default=None)

    @property
    def other_data(self) -> list[str]:
        """What differs between the data of the test and those of the training, a line each."""
        return list(self.test.get(OTHER_DATA) or ())

    @property
    def is_regression(self) -> bool:
        """Whether what is written as accuracy is minus the mean squared error."""
        return self.config.get("loss") == "mean_squared_error" or any(
            (row.get("val_accuracy_mean") or 0.0) < 0 for row in self.rows
        )

    def shown(self, score: float | None) -> float | None:
        """Return a score as people read it: the accuracy, or the mean squared error."""
        return -score if self.is_regression and score is not None else score

    @property
    def epochs_text(self) -> str:
        """'3/100': epochs done, and wanted; where a running one is, 'epoch 4 of 100, iteration 30 of 500'."""
        if self.state == "running":
            return self.problem
        return f"{len(self.rows)}/{self.config.get('total_epochs', '?')}"

    def disk_use_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())


def find_run(text: str) -> Path:
    """Find the run folder that a command line means: a path, or the name of one below EXPERIMENTS_DIR.

    Raises:
        ConfigError: there is neither.
    """
    for path in (expanded(text), experiments_root() / text):
        if path.is_dir():
            return path
    raise ConfigError(
        f"{text}: no such run folder, neither as a path nor below {experiments_root()} (set EXPERIMENTS_DIR to look "
        f"elsewhere). List the runs: {command('runs')}"
    )


def list_runs(root: Path) -> list[Path]:
    """List the folders below `root` in which a run has begun, those inside sweeps too; sorted."""
    return sorted(_run_folders(root, depth=3))


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = [path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith(".")]
    except OSError:
        return
    if os.path.exists(folder / "config.json") or os.path.isdir(folder / "saved_models"):
        yield folder
    elif depth:
        for child in children:
            yield from _run_folders(child, depth - 1)


def read_run(path: Path) -> Run:
    """Read config, epochs and test result of a run folder, and judge its state."""
    run = Run(path)
    run.config = _read(run, "config.json", _config) or {}
    run.rows = _read(run, "logs/summary_statistics.json", _rows) or []
    run.test = _read(run, "logs/test_summary.json", _test_summary) or {}
    run.state, run.problem = _state(run)
    return run


def read_whole_run(path: Path) -> Run:
    """Read everything that a run has written, curves, predictions and example episodes too.

    Raises:
        ConfigError: it is no run folder.
    """
    if not (path / "config.json").is_file() and not (path / "logs").is_dir():
        raise ConfigError(
            f"{path}: no run folder (neither config.json nor logs/ is there). Give experiments/<experiment_name>."
        )
    run = read_run(path)
    run.starts = read_starts(run)
    run.epochs = _read(run, "logs/curves.json", lambda file: _objects(read_object(file)["epochs"])) or []
    run.iterations = _read(run, "logs/metrics.jsonl", _lines) or []
    run.test_curve = _read(run, "logs/test_curve.csv", _table) or []
    run.scores = _read(run, PREDICTIONS.as_posix(), _arrays) or ({}, {})
    run.examples = _read(run, "logs/validation_episodes.safetensors", _arrays) or ({}, {})
    return run


def read_starts(run: Run) -> list[dict[str, Any]]:
    """Read the entries of environment.json, none where there are none."""
    return _read(run, "environment.json", lambda file: _objects(read_object(file)["starts"])) or []


def data_of_result(run: Run) -> dict[str, Any]:
    """Return what environment.json says of the data of test_summary.json; without a test, of those of the training.

    The newest start may have been a test on other data, whose result has files of its own.
    """
    known = [start["data"] for start in run.starts or read_starts(run) if start.get("data")]
    if digest := run.test.get(TESTED_ON):
        return next((data for data in known if data.get("content_sha256") == digest), {"content_sha256": digest})
    return next(iter(known[::-1] if run.other_data else known), {})  # of a release whose results do not say


def _state(run: Run) -> tuple[str, str]:
    """Return (state, problem) of a run whose small files are read."""
    if not run.config and not any(problem.startswith("config.json") for problem in run.problems):
        return "empty", "holds no config.json: nothing has been started in it"
    if run.problems:
        return "damaged", "; ".join(run.problems)
    wanted, done = run.config["total_epochs"], len(run.rows)
    if is_in_use(run.path):
        return "running", _place(run) if done < wanted else f"{done}/{wanted}"
    is_tested = run.test.get("epochs_trained") == done
    if is_tested and (done >= wanted or run.test.get("stopped_early")):
        return "finished", ""
    if done >= wanted:
        return "trained", "not tested"
    return "unfinished", f"epoch {done} of {wanted}; run its script again to go on"


def _place(run: Run) -> str:
    """Return the epoch that a running one is in and, once it has logged one of it, the iteration."""
    done, per_epoch = len(run.rows), run.config.get("total_iter_per_epoch")
    last = (_read(run, "logs/metrics.jsonl", _last_line) or [{}])[0]
    epoch = f"epoch {done + 1} of {run.config['total_epochs']}"
    if last.get("epoch") != done + 1 or not all(isinstance(one, int) for one in (last.get("iteration"), per_epoch)):
        return epoch
    return f"{epoch}, iteration {last['iteration'] - done * per_epoch} of {per_epoch}"


def _read(run: Run, name: str, read: Callable[[Path], Any]) -> Any:
    """Read the content of one file of a run; None where it is missing, or damaged, which `problems` then says."""
    file = run.path / name
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        run.modified = max(run.modified, status.st_mtime)
        return read(file)
    except FileNotFoundError:
        return None
    except (StorageError, OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        run.problems.append(f"{name}: {_reason(error, file)}")
    return None


def _reason(error: Exception, file: Path) -> str:
    if isinstance(error, StorageError):
        return str(error).removeprefix(f"{file}: ")
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    return f"lacks the entry {error}" if isinstance(error, KeyError) else f"damaged, {error}"


def _objects(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("not a list of JSON objects")
    return content


def _config(file: Path) -> dict[str, Any]:
    content = read_object(file)
    content["experiment_name"], content["total_epochs"]  # what every run has
    return content


def _rows(file: Path) -> list[dict[str, Any]]:
    columns = read_object(file)
    n_epochs = len(columns["epoch"])
    return [{name: values[place] for name, values in columns.items()} for place in range(n_epochs)]


def _test_summary(file: Path) -> dict[str, Any]:
    content = read_object(file)
    for result in content["results"]:
        result["protocol"]["statistics"], result["test_accuracy_mean"]  # what every test has
    return content


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return all whole lines: the last one of a run that is writing, or was killed, may be cut."""
    return _objects([parse_json(line) for line in read_regular(file).split(b"\n")[:-1]])


def _last_line(file: Path) -> list[dict[str, Any]]:
    """Return the last whole line, if there is one."""
    return _objects([parse_json(line) for line in read_regular(file).split(b"\n")[-2:-1]])


def _table(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file; what is no number stays text, an empty cell is None."""
    lines = read_regular(file).decode().splitlines()
    return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(lines)]


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    checkpoint = read_checkpoint(file)
    try:
        return load(checkpoint.data), checkpoint.state
    except SafetensorError as error:
        raise ValueError(str(error)) from error


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
    baselines: Mapping[str, Any] = field(default_factory=dict)
    """What stands beside it, `experiment_parts.evaluation.baselines`; nothing in a test without."""


def results_of(run: Run, statistics: str | None = None) -> list[Result]:
    """Return the results of a tested run: one per set of test tasks.

    Args:
        statistics: kind of batch-norm statistics; None: the first that was tested.
    """
    if not run.test:
        return []
    wanted = statistics or run.test["results"][0]["protocol"]["statistics"]
    file, arrays, damage = run.path / PREDICTIONS, {}, ""
    try:
        arrays, _ = _arrays(file)
    except (StorageError, ValueError) as error:
        damage = f"{file}: {_reason(error, file)}"
    found = []
    for result in run.test["results"]:
        protocol = result["protocol"]
        if protocol["statistics"] != wanted:
            continue
        scores, loss, problem = None, None, damage
        if not damage:
            try:
                scores, loss = scores_and_loss(arrays, protocol)
                if abs(float(scores.mean()) - result["test_accuracy_mean"]) > 2e-3:  # float32 in torch, float64 here
                    scores, loss = None, None
                    problem = f"{PREDICTIONS} does not belong to logs/test_summary.json"
            except (KeyError, ValueError) as error:
                problem = f"{file}: {_reason(error, file)}"
        found.append(
            Result(
                protocol, result["test_accuracy_mean"], result["test_accuracy_ci95"], result["ensemble"]["models"],
                result.get("task_list_digest") or run.test.get("task_list_digest"), scores, loss, problem,
                score_named(result.get("score")), result.get("baselines") or {},
            )
        )  # fmt: skip
    return found


def scores_and_loss(arrays: Arrays, protocol: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """Return the score of each task, of the mean over models of the class scores, and their mean loss.

    The score is the share of right answers, or minus the mean squared error.

    Raises:
        KeyError: the predictions hold no scores for this protocol.
    """
    suffix = f".{protocol['dataset']}.{protocol['ways']}way_{protocol['shots']}shot_{protocol['queries']}query"
    suffix = suffix if f"query_labels{suffix}" in arrays else ""
    scores, labels = arrays[f"scores.{protocol['statistics']}{suffix}"], arrays[f"query_labels{suffix}"]
    mean = scores.astype(np.float64).mean(axis=0)  # (tasks, queries, classes)
    if np.issubdtype(labels.dtype, np.floating):
        errors = np.square(mean - labels).mean(axis=(1, 2))
        return -errors, float(errors.mean())
    from scipy.special import log_softmax

    loss = -np.take_along_axis(log_softmax(mean, axis=-1), labels[..., None], axis=-1).mean()
    return (mean.argmax(axis=-1) == labels).mean(axis=-1), float(loss)
