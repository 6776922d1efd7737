"""The keys of a config in words: for `--help` and for the tables in docs/config_keys.md."""

import json
import textwrap
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.config import meaning
from utils.config.schema import sections
from utils.config.value_types import NameOf
from utils.paths import command

USAGE = f"""usage: bash experiment_scripts/NAME.sh [GPU ids, or all] [--option value ... --] [--key value ...]
       {command("train")} CONFIG_OR_NAME [GPU ids, or all] [--option value ... --] [--key value ...]
       {command("train")} [--option value ... --] --name_of_args_json_file CONFIG.json [--key value ...]
GPU ids are numbers separated by spaces or commas; without them: the first GPU, else the CPU; --gpu_to_use cpu: the CPU.
Several GPUs get a process each; options before a -- are torchrun's, for several machines (docs/many_gpus.md).
--plugin FILE.py executes a file of yours first, which registers networks, datasets or parts of a method
(docs/own_method.md)."""


def type_text(annotation: Any) -> str:
    """Return a type as people write it: `integer`, `"auto"`, `list of number`, ..."""
    names = {int: "integer", float: "number", bool: "true, false", str: "text", type(None): "null"}
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, NameOf):
        return ", ".join(f"`{json.dumps(name)}`" for name in annotation.names())
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0]) + range_text(arguments[1])
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return ", ".join(type_text(argument) for argument in arguments)
    raise TypeError(f"no words for the type {annotation}")


def range_text(field: FieldInfo) -> str:
    """Return the bounds of a number, e.g. ` >= 1` or ` >= 0 and < 1`; empty without bounds."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        (sign, getattr(item, name))
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return " and".join(f" {sign} {bound if isinstance(bound, int) else format(bound, 'g')}" for sign, bound in bounds)


def values_text(field: FieldInfo) -> str:
    """Return what a key may be: type, bounds and null."""
    kinds, null, _ = type_text(field.annotation).partition(", null")
    return f"{kinds}{range_text(field)}{null}"


def default_text(field: FieldInfo) -> str | None:
    """Return the default as JSON, None for a key that must be given."""
    return None if field.default is PydanticUndefined else json.dumps(field.default)


def help_text() -> str:
    """Return usage and all keys with values, default and meaning."""
    lines = [
        USAGE,
        "",
        "A true/false key without a value means true; several values, separated by spaces, make a list. Keys:",
    ]
    for section in sections():
        lines += ["", (section.__doc__ or "").strip()]
        for name, field in section.model_fields.items():
            default = default_text(field)
            values = values_text(field).replace("`", "")
            lines.append(f"  --{name}  {values}; {'required' if default is None else 'default ' + default}")
            lines += textwrap.wrap(
                meaning(name), 110, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
            )
    return "\n".join(lines)
