"""Command-line arguments: the path of a config file, and overrides of any of its keys."""

import json
from pathlib import Path
from typing import Any

from utils.config import ExperimentConfig
from utils.errors import ConfigError


def parse_command_line(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """Split `--key value` arguments into the config file's path and the overrides.

    A value is read as JSON where it is JSON (`5`, `0.1`, `true`, `[1, 2]`), else as text; several values make a list; a key
    without a value means true. `--key=value` works too.
    """
    given: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            given[key] = [value] if equals else []
        elif key is None:
            raise ConfigError(f'argument "{argument}" stands before any --key; options are written --key value')
        else:
            given[key].append(argument)
    path = given.pop("name_of_args_json_file", None)
    if path is not None and len(path) != 1:
        raise ConfigError("--name_of_args_json_file needs one path")
    if "gpu_to_use" in given and not given["gpu_to_use"]:
        given["gpu_to_use"] = ["auto"]
    text_keys = {name for name, field in ExperimentConfig.model_fields.items() if field.annotation is str}
    overrides = {
        key: True if not values else [_json_or_text(v) for v in values] if len(values) > 1
        else values[0] if key in text_keys else _json_or_text(values[0])
        for key, values in given.items()
    }  # fmt: skip
    return (Path(path[0]) if path else None), overrides


def _json_or_text(text: str) -> Any:
    for read in (json.loads, float):  # float also takes ".5", which JSON does not
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
