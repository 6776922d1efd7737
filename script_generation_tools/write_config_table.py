"""Write the tables of config keys into docs/config_keys.md, from the schema.

    python script_generation_tools/write_config_table.py

The tables stand between two HTML comments; everything else in the file stays as it is.
"""

import json
import sys
from pathlib import Path

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import OLD_KEYS, meaning
from utils.config.help import default_text, values_text
from utils.config.schema import sections
from utils.paths import REPOSITORY_ROOT

PAGE = REPOSITORY_ROOT / "docs" / "config_keys.md"
BEGIN, END = "<!-- config keys: begin (generated) -->", "<!-- config keys: end -->"


def config_table() -> str:
    """Return the Markdown tables of all keys, a table per section, and that of the original's other keys."""
    parts = []
    for section in sections():
        parts += [
            f"\n**{(section.__doc__ or '').strip()}**\n",
            "| key | values | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for name, field in section.model_fields.items():
            default, text = default_text(field), meaning(name).replace("|", "\\|")
            shown = "required" if default is None else f"`{default}`"
            parts.append(f"| `{name}` | {values_text(field)} | {shown} | {text} |")
    parts += ["\n**Other keys of the original and of earlier releases**\n", "| key | here |", "| --- | --- |"]
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
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(REPOSITORY_ROOT)}: the tables of config keys are up to date")
