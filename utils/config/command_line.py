"""Command-line arguments: the path of a config file, and overrides of any of its keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from utils.config import config_file, current_name
from utils.config.messages import json_or_text
from utils.config.schema import fields
from utils.config.value_types import DatasetName, choices
from utils.errors import ConfigError
from utils.paths import command
from utils.registry import load_plugins


def options_of(words: Sequence[str]) -> list[str]:
    """Return a command line whose first words, a config's path or name and then GPU ids, are written as options.

    Raises:
        ConfigError: no config of this name, or a word that is no id.
    """
    n_words = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    rest = list(words[n_words:])
    if not n_words:
        return rest
    try:
        config = config_file(words[0])
    except ConfigError as error:
        raise ConfigError(f"command line: {error} Options are written --key value") from error
    ids = [one for word in words[1:n_words] for one in word.split(",") if one]
    if wrong := [one for one in ids if one != "all" and not one.isdecimal()]:
        raise ConfigError(
            f'command line: "{wrong[0]}" is neither a GPU id nor an override; as in: {command("train")} '
            f"{words[0]} 0 --total_epochs 10. For the CPU: --gpu_to_use cpu"
        )
    options = ["--name_of_args_json_file", str(config), *(["--gpu_to_use", ",".join(ids)] if ids else [])]
    launch = rest.index("--") + 1 if "--" in rest else 0  # what stands before it is for the launcher
    return [*rest[:launch], *options, *rest[launch:]]


def parse_command_line(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """Split `--key value` arguments into the config file's path and the overrides.

    A value is read as JSON where it is JSON (`5`, `0.1`, `true`, `[1, 2]`) and its key does not take text, else as
    text; several values make a list; a key without a value means true. `--key=value` works too.

    Raises:
        ConfigError: a word before any key or with one dash alone, or a key without the value that it needs.
    """
    given: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            before = given.get(key, []) if key == "plugin" else []  # a generated script names one, its user more
            given[key] = [*before, *([value] if equals else [])]
        elif argument.startswith("-") and argument[1:2].isalpha():
            raise ConfigError(
                f'command line: "{argument}": a key is written with two dashes, as in -{argument}, and a value that '
                "begins with a dash as in --key=-value"
            )
        elif key is None:
            raise ConfigError(
                f'command line: argument "{argument}" stands before any --key; options are written --key value'
            )
        else:
            given[key].append(argument)
    path = given.pop("name_of_args_json_file", None)
    if path is not None and len(path) != 1:
        raise ConfigError("command line: --name_of_args_json_file needs one path")
    if "gpu_to_use" in given and not given["gpu_to_use"]:
        given["gpu_to_use"] = ["auto"]
    bare = [key for key, values in given.items() if not values and not _may_be_true(key)]
    if bare:
        raise ConfigError("\n".join(f"command line: --{key} needs a value, as in --{key} VALUE" for key in bare))
    overrides = {}
    for key, values in given.items():
        read = [_value(key, value, alone=len(values) == 1) for value in values]
        overrides[key] = True if not read else read[0] if len(read) == 1 else read
    return (Path(path[0]) if path else None), overrides


def read_command_line(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """Return the config file's path and the overrides, after the files that `--plugin` names are executed.

    Raises:
        ConfigError: as `parse_command_line`; a plugin file cannot be read, fails or registers nothing.
    """
    given = load_plugins(parse_command_line(arguments)[1]).get("plugin_sha256")
    path, overrides = parse_command_line(arguments)  # once more: plugins bring keys, whose types decide how to read
    if overrides.pop("plugin", None) is not None:
        overrides["plugin_sha256"] = given
    return path, overrides


def _value(key: str, text: str, *, alone: bool) -> Any:
    """Read one value; it stays text where the key is one of text, and `none` where that is a value of the key."""
    field = fields().get(current_name(key))
    annotation = None if field is None else field.annotation
    if text.lower() == "none" and "none" in choices(annotation):
        return "none"
    value = json_or_text(text)
    is_part_of_texts = get_args(annotation)[:1] in ((str,), (DatasetName,)) and not isinstance(value, list)
    return text if is_part_of_texts or (alone and annotation is str) else value


def _may_be_true(key: str) -> bool:
    """Return whether a key can stand alone; unknown keys and dead ones can, so that it is they that are reported."""
    field = fields().get(current_name(key))
    return field is None or bool in (field.annotation, *get_args(field.annotation))
