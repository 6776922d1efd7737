"""The rooms of the house, a line per file, for docs/layout.md: what each is for is said by the file itself.

python tests/tools/list_rooms.py        writes them there
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.paths import REPOSITORY_ROOT as ROOT

LAYOUT = ROOT / "docs" / "layout.md"
BEGIN, END = "<!-- rooms: begin (generated) -->", "<!-- rooms: end -->"
ON_TOP = (
    "mamlkit.py",
    "train_maml_system.py",
    "experiment_builder.py",
    "few_shot_learning_system.py",
    "meta_neural_network_architectures.py",
    "data.py",
    "python_datasets.py",
    "setup.py",
)
HOUSES = (
    "meta_learning", "experiment_parts", "utils", "few_shot_classifier", "experiment_tools", "script_generation_tools",
    "benchmarks",
)  # fmt: skip
"""In the order in which one reads them: what a run is made of, then what stands around runs."""
COMMAND = re.compile(r"`?python (-m )?[\w./<>]+( .*|`)?")


def purpose(path: Path) -> str:
    """What a file says that it is for: the first sentence of its docstring, without the command that starts it."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    parts = text.split(": ")
    rest = ": ".join(part for part in parts if not COMMAND.fullmatch(part)) or text
    if not text.startswith(rest):  # the command stood before it
        rest = rest[0].upper() + rest[1:]
    return re.split(r"\.(?: [A-Z]|$)", rest)[0].replace("|", r"\|")


def rows_of(folder: Path, house: Path) -> Iterator[tuple[str, str]]:
    """(path below the house, purpose) of a folder's files, then of its wings and theirs."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield path.relative_to(house).as_posix(), purpose(path)
    for wing in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield f"{wing.relative_to(house).as_posix()}/", f"**{purpose(wing / '__init__.py')}**"
        yield from rows_of(wing, house)


def section(title: str, says: str, rows: Iterable[tuple[str, str]]) -> str:
    """A heading, what the house is for, and a table with a row per room."""
    return "\n".join(
        [f"### {title}", "", f"{says}.", "", *("| | |", "| --- | --- |"), *map("| `{0[0]}` | {0[1]} |".format, rows)]
    )


def with_rooms(text: str) -> str:
    """Return a document with the list between its two comments brought up to date."""
    sections = [section("On top", "One file per idea", [(name, purpose(ROOT / name)) for name in ON_TOP])]
    for name in HOUSES:
        says = ROOT / name / "__init__.py"
        says = purpose(says) if says.is_file() else "Measurements that print tables, each a command"
        sections.append(section(f"{name}/", says, rows_of(ROOT / name, ROOT / name)))
    before, _, rest = text.partition(BEGIN)
    return "\n\n".join([before + BEGIN, *sections, END + rest.partition(END)[2]])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    LAYOUT.write_text(with_rooms(LAYOUT.read_text(encoding="utf-8")), encoding="utf-8")
    print("docs/layout.md: the rooms are up to date")
