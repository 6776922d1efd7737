"""All that one run has written, for its report: what is missing or damaged is said, never fatal. Needs no torch.

`experiment_tools.parts.run_reading` is the short form, for lists and comparisons of many runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiment_parts.runs.checkpoints import read_checkpoint_state
from utils.errors import ConfigError, StorageError

Arrays = dict[str, np.ndarray]


@dataclass
class RunFiles:
    """What a run has written so far; an empty value where a file says nothing.

    Attributes:
        epochs: entries of logs/curves.json.
        rows: one dict per epoch, of logs/summary_statistics.json.
        iterations: lines of logs/metrics.jsonl.
        test: logs/test_summary.json.
        scores: tensors and state of logs/test_predictions.safetensors.
        examples: those of logs/validation_episodes.safetensors.
        problems: sentences about files that are damaged.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    iterations: list[dict[str, Any]] = field(default_factory=list)
    test: dict[str, Any] = field(default_factory=dict)
    scores: tuple[Arrays, dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    examples: tuple[Arrays, dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    problems: list[str] = field(default_factory=list)
    modified: float = 0.0
    """Time of the newest of these files, in seconds since 1970."""

    @property
    def name(self) -> str:
        """Of the experiment."""
        return str(self.config.get("experiment_name") or self.path.name)

    @property
    def is_regression(self) -> bool:
        """Whether what is written as accuracy is minus the mean squared error."""
        return self.config.get("loss") == "mean_squared_error" or any(
            (row.get("val_accuracy_mean") or 0.0) < 0 for row in self.rows
        )

    def shown(self, score: float | None) -> float | None:
        """A score as people read it: the accuracy, or the mean squared error."""
        return -score if self.is_regression and score is not None else score


def read_run(path: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        ConfigError: it is no run folder.
    """
    if not (path / "config.json").is_file() and not (path / "logs").is_dir():
        raise ConfigError(
            f"{path}: no run folder (neither config.json nor logs/ is there). Give experiments/<experiment_name>."
        )
    run = RunFiles(path)
    logs = path / "logs"
    run.config = _read(run, path / "config.json", _json_object) or {}
    run.starts = (
        _read(run, path / "environment.json", lambda file: _list_of_objects(_json_object(file)["starts"])) or []
    )
    run.epochs = _read(run, logs / "curves.json", lambda file: _list_of_objects(_json_object(file)["epochs"])) or []
    run.rows = _read(run, logs / "summary_statistics.json", lambda file: _rows(_json_object(file))) or []
    run.iterations = _read(run, logs / "metrics.jsonl", _json_lines) or []
    run.test = _read(run, logs / "test_summary.json", _json_object) or {}
    run.scores = _read(run, logs / "test_predictions.safetensors", _arrays) or ({}, {})
    run.examples = _read(run, logs / "validation_episodes.safetensors", _arrays) or ({}, {})
    return run


def _read(run: RunFiles, file: Path, read: Callable[[Path], Any]) -> Any:
    if not file.is_file():
        return None
    name = file.relative_to(run.path).as_posix()
    try:
        run.modified = max(run.modified, file.stat().st_mtime)
        return read(file)
    except StorageError as error:
        run.problems.append(f"{name} is damaged or not of this release: {str(error).removeprefix(f'{file}: ')}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
    return None


def _json_object(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _list_of_objects(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("not a list of JSON objects")
    return content


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    length = len(columns.get("epoch", ()))
    return [{name: values[index] for name, values in columns.items()} for index in range(length)] if length else []


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """All whole lines: the last one of a run that is writing, or was killed, may be cut."""
    lines = file.read_bytes().split(b"\n")[:-1]
    return _list_of_objects([json.loads(line) for line in lines])


def _arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    from safetensors.numpy import load_file

    state = read_checkpoint_state(file)
    return load_file(file), state
