"""Write the table of config keys into README.md, from the schema.

    python script_generation_tools/write_config_table.py

The table stands between two HTML comments; everything else in the file stays as it is.
"""

import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.config import OLD_KEYS, REPOSITORY_ROOT, SECTIONS

BEGIN, END = "<!-- config keys: begin (generated) -->", "<!-- config keys: end -->"


def type_text(annotation: Any) -> str:
    """Return a type as people write it: `integer`, `"auto"`, `list of number`, ..."""
    names = {int: "integer", float: "number", bool: "true, false", str: "text", type(None): "null"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return ", ".join(type_text(argument) for argument in arguments)
    raise TypeError(f"no words for the type {annotation}")


def range_text(field: FieldInfo) -> str:
    """Return the bounds of a number, e.g. `>= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return "".join(
        f" {sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    )


def config_table() -> str:
    """Return the Markdown tables of all keys, a table per section, and that of the original's other keys."""
    parts = []
    for section in SECTIONS:
        parts += [f"\n**{(section.__doc__ or '').strip()}**\n", "| key | values | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in section.model_fields.items():
            default = "required" if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            kinds, null, _ = type_text(field.annotation).partition(", null")
            parts.append(f"| `{name}` | {kinds}{range_text(field)}{null} | {default} | {meaning} |")
    parts += ["\n**Other keys of the original**\n", "| key | here |", "| --- | --- |"]
    for name, old in OLD_KEYS.items():
        if old.renamed_to:
            text = f"read as `{old.renamed_to}`; {json.dumps(old.unset)} means not given"
        elif old.neutral is None:
            text = f"no effect: {old.advice}"
        else:
            allowed = " or ".join(f"`{json.dumps(value)}`" for value in old.neutral)
            text = f"no effect; {allowed} is accepted with a note, anything else is an error: {old.advice}"
        parts.append(f"| `{name}` | {text} |")
    return "\n".join(parts).strip() + "\n"


def with_table(text: str) -> str:
    """Return a document with the table between its two comments brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{config_table()}\n{END}{after}"


if __name__ == "__main__":
    readme = REPOSITORY_ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{readme.name}: the table of config keys is up to date")
