"""Which generated config a run is nearest to, and the command that starts it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment_tools.parts.run_reading import Run
from utils.config import load_config
from utils.config.changes import as_argument
from utils.errors import ConfigError
from utils.files.reading import read_object
from utils.paths import PACKAGE, command, configs


def nearest_config(config: Mapping[str, Any]) -> tuple[str, dict[str, tuple[Any, Any]]] | None:
    """Return the generated config that a run's config is nearest to, and key -> (value there, value here) where they
    differ.

    The one of the experiment's own name if there is one, else the one with the fewest differences; None where there
    is none.
    """
    files = configs()
    nearest = files.get(str(config.get("experiment_name"))) or min(
        files.values(), key=lambda path: _n_differences(path, config), default=None
    )
    try:
        values = load_config(nearest).to_json_dict() if nearest else None
    except ConfigError:
        return None
    if values is None:
        return None
    return nearest.stem, {
        key: (values[key], value) for key, value in config.items() if key in values and values[key] != value
    }


def _n_differences(path: Path, config: Mapping[str, Any]) -> int:
    """Count keys of a config file that a run has with other values, as they stand there: checking every file would take
    a second.
    """
    try:
        return sum(config.get(key) != value for key, value in read_object(path).items())
    except (OSError, ValueError):
        return len(config) + 1


def command_of(run: Run) -> str:
    """Return a command that makes this run again."""
    nearest = nearest_config(run.config) if run.config else None
    if nearest is not None and nearest[0] == run.config.get("experiment_name"):
        words = [*command("train").split(), nearest[0]] if PACKAGE else ["bash", f"experiment_scripts/{nearest[0]}.sh"]
        changed = nearest[1]
        arguments = [f"--{key} {as_argument(here)}" for key, (_, here) in changed.items()]
        return " ".join([*(shlex.quote(word) for word in words), *arguments])
    config = Path(*run.path.resolve().parts[-2:]) / "config.json"  # no user's name from higher up
    return f"{command('train')} --name_of_args_json_file {shlex.quote(str(config))}"
