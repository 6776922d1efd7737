"""Part of `claims.py`, `speedrun.py` and `methods_on_omniglot.py`: the runs that their tables are made of, started or
resumed by the program itself, read from their own files.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.paths import REPOSITORY_ROOT, experiments_root

SMALL_GROCERIES = {
    "dataset_name": "grocery_few_shot", "dataset_path": "grocery_few_shot", "sets_are_pre_split": True,
    "image_channels": 3, "normalisation": "imagenet", "class_rotation": False,
}  # fmt: skip
"""The photographs of groceries, seen in 28 x 28 in colour: what differs from a config of Omniglot."""


@dataclass(frozen=True)
class TrainedRun:
    """One run: a generated config, a name of its own and what differs from the config."""

    config_name: str
    experiment_name: str
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What a user types for the same run."""
        script = f"bash experiment_scripts/{self.config_name}.sh"
        return shlex.join([*script.split(), "--experiment_name", self.experiment_name, *as_arguments(self.overrides)])

    @property
    def folder(self) -> Path:
        """Of the run."""
        return experiments_root() / self.experiment_name

    def carry_out(self, **one_start: Any) -> None:
        """Train and test, from wherever the folder stands; a finished run costs a second.

        Args:
            one_start: overrides of this start alone, e.g. of another test.
        Raises:
            SystemExit: the run failed; its own message was shown.
        """
        command = [sys.executable, str(REPOSITORY_ROOT / "train_maml_system.py"), "--name_of_args_json_file"]
        command += [
            str(REPOSITORY_ROOT / "experiment_config" / f"{self.config_name}.json"),
            "--experiment_name",
            self.experiment_name,
        ]
        finished = subprocess.run(
            [*command, *as_arguments(self.overrides | one_start)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if finished.returncode:
            sys.exit(f"{self.command}\nended with exit code {finished.returncode}:\n{finished.stderr[-2000:]}")

    def read(self, name: str) -> Any:
        """Return a JSON file of the run's logs; None while it is not there."""
        path = self.folder / "logs" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def as_arguments(overrides: dict[str, Any]) -> list[str]:
    """Return the overrides as the command line has them: `--key value value`."""
    arguments = []
    for key, value in overrides.items():
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return arguments


def with_interval(mean: float, half_width: float) -> str:
    """Return `87.15 ± 1.21`, in per cent."""
    return f"{100 * mean:.2f} ± {100 * half_width:.2f}"


def table(heading: list[str], rows: list[list[str]]) -> str:
    """As Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def say(text: str) -> None:
    """Print a line about the progress, which is not part of the table."""
    print(text, file=sys.stderr, flush=True)
