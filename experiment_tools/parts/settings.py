"""Which config a run was started with, or is nearest to, and the command that makes it again."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiment_tools.parts.run_reading import Run
from utils.config import ExperimentConfig, load_config
from utils.config.changes import as_argument
from utils.config.schema import fields
from utils.errors import ConfigError
from utils.files.pretrained import weights_file
from utils.files.reading import file_digest, read_object
from utils.paths import (
    PACKAGE,
    REPOSITORY_ROOT,
    command,
    configs,
    expanded,
    experiments_root,
    without_user,
    working_folder,
)
from utils.registry import plugin_path


def given_files(config: ExperimentConfig) -> dict[str, Any]:
    """Return what a start was given, without a user's name: its config file, those of `--plugin`, and the sha256 of
    `initial_weights`, whose file another may take the place of.
    """
    plugins = [plugin_path(digest) for digest in config.plugin_sha256]
    weights = weights_file(config.initial_weights) if config.initial_weights else None
    return {
        "config": config.file and without_user(config.file),
        "plugins": [shared_path(path) for path in plugins],
        "initial_weights_sha256": weights and file_digest(weights),
    }


def shared_path(path: str | Path) -> str:
    """Return a path as others may see it: outside of checkout, home and current folder its name alone."""
    return without_user(path) or Path(path).name


def config_of(run: Run) -> Path | None:
    """Return the config file that a run was first started with; None: not known, or not here."""
    given = next((text for start in run.starts if (text := start.get("config"))), None)
    if not isinstance(given, str):
        return None
    folders = (working_folder(), REPOSITORY_ROOT, Path.cwd())
    return next((path for folder in folders if (path := folder / expanded(given)).is_file()), None)


def nearest_config(
    config: Mapping[str, Any], file: Path | None = None
) -> tuple[Path, dict[str, tuple[Any, Any]]] | None:
    """Return the config file that a run comes from, and key -> (value there, value here) where they differ.

    Args:
        config: of the run.
        file: that the run was started with. None: the generated config of the experiment's own name if there is one,
            else that with the fewest differences.
    Returns:
        None where there is none that can be read.
    """
    files = configs()
    nearest = (
        file
        or files.get(str(config.get("experiment_name")))
        or min(files.values(), key=lambda path: _n_differences(path, config), default=None)
    )
    try:
        values = load_config(nearest).to_json_dict() if nearest and nearest.is_file() else None  # a pipe is empty now
    except ConfigError:
        return None
    if nearest is None or values is None:
        return None
    # A key that only the run has is of a choice, ours or a plugin's; else it is of another release.
    known = {key: list(field.default) if isinstance(field.default, tuple) else field.default
             for key, field in fields().items()} | values  # fmt: skip
    if config.get("plugin_sha256"):
        known = dict.fromkeys(config) | known
    return nearest, {
        key: (known[key], value)
        for key, value in config.items()
        if key in known and key != "run_id" and known[key] != value
    }


def _n_differences(path: Path, config: Mapping[str, Any]) -> int:
    """Count keys of a config file that a run has with other values, as they stand there: checking every file would take
    a second.
    """
    try:
        return sum(config.get(key) != value for key, value in read_object(path).items())
    except (OSError, ValueError):
        return len(config) + 1


def script_command(config: Path, changed: Mapping[str, tuple[Any, Any]], plugins: Iterable[str] = ()) -> str:
    """Return the command that starts a generated config's script with other values, as `nearest_config` has them."""
    name = config.stem
    words = [*command("train").split(), name] if PACKAGE else ["bash", f"experiment_scripts/{name}.sh"]
    arguments = [f"--{key} {as_argument(here)}" for key, (_, here) in changed.items() if key != "plugin_sha256"]
    return " ".join([*(shlex.quote(word) for word in words), *arguments, *with_plugins(plugins)])


def command_of(run: Run) -> str:
    """Return a command that makes this run again: its script with what differs, or its own config.json."""
    if run.command:
        return run.command
    entries = run.config.get("plugin_sha256") or ()
    given = next((start["plugins"] for start in reversed(run.starts) if start.get("plugins")), None)
    plugins = given or [entry.partition(":")[0] for entry in entries]
    file = config_of(run)
    nearest = nearest_config(run.config, file) if run.config else None
    is_known = file is not None or (nearest and nearest[0].stem == run.config.get("experiment_name"))
    if nearest is not None and is_known and nearest[0] in configs().values():
        return script_command(*nearest, plugins)
    path = run.path / "config.json"
    shown = without_user(path)
    if shown is None:
        root = experiments_root().resolve()
        name = path.resolve().relative_to(root) if path.resolve().is_relative_to(root) else Path(run.name, path.name)
        shown = f"$EXPERIMENTS_DIR/{name}"  # where such runs are, and no user's name
    return " ".join([command("train"), "--name_of_args_json_file", shell_word(shown), *with_plugins(plugins)])


def with_plugins(plugins: Iterable[str]) -> list[str]:
    """Return the words by which a command is given these files; none for none."""
    words = [shell_word(path) for path in plugins]
    return ["--plugin", *words] if words else []


def shell_word(path: str) -> str:
    """Quote a path for the shell, but for what it has to expand in front."""
    for front, kept in (("~/", "~/"), ("$EXPERIMENTS_DIR/", '"$EXPERIMENTS_DIR"/')):
        if path.startswith(front):
            return kept + shlex.quote(path.removeprefix(front))
    return shlex.quote(path)
