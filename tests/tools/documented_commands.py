"""The commands and the Python of the READMEs and of docs/*.md: found, marked, counted.

    python tests/tools/documented_commands.py        writes their counts into docs/README.md

A command of a bash block is run by `bash run_tests.sh --full` as it stands, unless a comment above its block says
why not. docs/README.md describes the comments.
"""

import argparse
import re
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.config import load_config
from utils.config.command_line import parse_command_line
from utils.config.schema import fields
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT
from utils.ranks.launch import split_arguments
from utils.registry.choices import KINDS

REASONS = ("a GPU", "a cluster", "hours", "the network")
MARK = re.compile(r"<!-- (not run, needs|run with|write to|append to) (.+?)(?: \| (.+?))? -->")
FENCE = re.compile(r"^( *)(`{3,})(\w*)\s*$")
SHELL = ("bash", "sh", "shell", "console", "zsh")
LOOKS_LIKE_A_COMMAND = re.compile(
    r"^\s*(\$ |bash |python3? |pip |cd |torchrun |srun |sbatch |[A-Z_]+=\S+ (bash|python))", re.MULTILINE
)
QUICK = (
    "bash install.sh",
    "cd script_generation_tools",
    "cp ",
    "sed ",
    "python script_generation_tools/",
    "python -m utils.prepare_dataset folder",
)
"""How commands begin that are run at every change: those that do without torch."""
BEGIN, END = "<!-- counts: begin (generated) -->", "<!-- counts: end -->"


@dataclass(frozen=True)
class Mark:
    """A comment above a block: what it says of all its commands, or of those that contain `part`."""

    kind: str
    value: str
    part: str | None


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[Mark, ...]

    @property
    def place(self) -> str:
        """Page and line, as editors open them."""
        return f"{self.page}:{self.line}"

    def marks_of(self, kind: str, text: str = "") -> list[str]:
        """Values of its marks of a kind that hold for a command."""
        return [mark.value for mark in self.marks if mark.kind == kind and (mark.part is None or mark.part in text)]


@dataclass(frozen=True)
class Command:
    """A command of a bash block, as it stands there."""

    block: Block
    text: str
    reasons: tuple[str, ...] = field(default=())
    appended: str = ""

    @property
    def runs(self) -> bool:
        """Whether a test runs it."""
        return not self.reasons

    @property
    def is_quick(self) -> bool:
        """Whether it is run at every change."""
        return self.runs and (self.text.startswith(QUICK) or "--help" in self.text)


def pages() -> list[str]:
    """README.md, the pages of docs/ and the READMEs of folders, as paths below the repository."""
    return [
        "README.md",
        "datasets/README.md",
        "experiment_template_config/README.md",
        *sorted(f"docs/{path.name}" for path in (REPOSITORY_ROOT / "docs").glob("*.md")),
    ]


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of a page with the marks right above them."""
    blocks: list[Block] = []
    marks: list[Mark] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if fence := FENCE.match(line):
            _, ticks, language = fence.groups()
            content = []
            for _, inner in lines:
                if inner.strip() == ticks:
                    break
                content.append(inner)
            blocks.append(Block(page, number, language, textwrap.dedent("\n".join(content)) + "\n", tuple(marks)))
            marks = []
        elif mark := MARK.fullmatch(line.strip()):
            marks.append(Mark(*mark.groups()))
        elif line.strip():
            marks = []
    return blocks


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [
        block for page in pages() for block in blocks_of(page, (REPOSITORY_ROOT / page).read_text(encoding="utf-8"))
    ]


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a bash block: lines, joined where one ends with a backslash or stands in a loop."""
    commands, pending, loops = [], [], 0
    for line in block.text.splitlines():
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending.append(line)
        loops += bool(re.match(r"\s*(for|while|if) ", line)) - bool(re.match(r"\s*(done|fi)\b", line))
        if loops == 0 and not line.rstrip().endswith("\\"):
            text = "\n".join(pending)
            commands.append(
                Command(
                    block,
                    text,
                    tuple(block.marks_of("not run, needs", text)),
                    " ".join(block.marks_of("run with", text)),
                )
            )
            pending = []
    assert not pending, f"{block.place}: the last command does not end"
    return commands


def all_commands() -> list[Command]:
    """The commands of all pages."""
    return [command for block in all_blocks() if block.language in SHELL for command in commands_of(block)]


def commands_in_sentences(page: str) -> list[Command]:
    """Commands within sentences, between backticks; those with a <placeholder> are left out."""
    text = re.sub(
        r"^ *```.*?^ *```", "", (REPOSITORY_ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [
        Command(Block(page, 0, "bash", span, ()), span)
        for span in spans
        if re.match(r"(bash|python) ", span) and "<" not in span
    ]


def problems_of_marks(block: Block) -> Iterator[str]:
    """Yield what is wrong with the comments above a block."""
    commands = [command.text for command in commands_of(block)] if block.language in SHELL else [block.text]
    for mark in block.marks:
        if mark.kind == "not run, needs" and mark.value not in REASONS:
            yield f'{block.place}: "{mark.value}" is no reason; known are {", ".join(REASONS)}'
        if mark.part is not None and not any(mark.part in text for text in commands):
            yield f'{block.place}: no command contains "{mark.part}"'
        if mark.kind == "run with" and block.language not in SHELL:
            yield f"{block.place}: only commands can be run with more arguments"


def problem_of_command(command: Command) -> str | None:
    """What can be told to be wrong with a command without running it: files, options, config keys that do not exist."""
    if command.text.lstrip().startswith(("for ", "while ")):
        return None  # its lines are run together or not at all
    folder = REPOSITORY_ROOT
    text = command.text.replace("\\\n", " ").replace("my_experiments/", "")  # `mamlkit new` makes one like the checkout
    for part in re.split(r"&&|\|\||;|\|", text):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words[:1] == ["cd"]:
            folder = folder / words[1]
        elif words[:1] in (["bash"], ["python"]):
            problem = _problem_of_program(words, folder)
            if problem:
                return f"{command.block.place}: {problem}"
    return None


def _problem_of_program(words: Sequence[str], folder: Path) -> str | None:
    name, arguments = words[1], list(words[2:])
    if name == "-m":
        name, arguments = words[2].replace(".", "/"), list(words[3:])
        if name.split("/")[0] in ("pip", "venv", "torch"):
            return None
        name = f"{name}/__main__.py" if (folder / name).is_dir() else f"{name}.py"
    path = folder / name
    if name.startswith("experiment_scripts/my_"):  # the reader makes it
        return None
    if not path.is_file():
        return f"{name} does not exist"
    if path.parent.name == "experiment_scripts":
        return _problem_of_overrides(REPOSITORY_ROOT / "experiment_config" / f"{path.stem}.json", arguments)
    options = {word.split("=")[0] for word in arguments if word.startswith("--")}
    sources = [path, *path.parent.glob("*.py")] if words[1] == "-m" else [path]
    if arguments[:1] == ["tasks"]:
        sources = [folder / "utils" / "data_sources" / "write_task_lists.py"]
    if arguments[:1] == ["glyphs"]:
        sources = (folder / "utils" / "prepare_dataset" / "glyphs").glob("*.py")
    known = "".join(source.read_text(encoding="utf-8") for source in sources)
    unknown = [
        option for option in options if option not in known and option[2:] not in fields() and option != "--help"
    ]
    return f"{name} has no option {', '.join(unknown)}" if unknown else None


def _problem_of_overrides(config: Path, arguments: Sequence[str]) -> str | None:
    ids = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    try:
        _, keys = split_arguments([word for word in arguments[ids:] if word != "--help"])
        _, overrides = parse_command_line(keys)
        if overrides.pop("plugin", None) is not None:
            # What the plugin brings: names, and keys of its own.
            brought = {"backbone", *KINDS, *(overrides.keys() - fields().keys())}
            overrides = {key: value for key, value in overrides.items() if key not in brought}
        load_config(config, overrides)
    except ConfigError as error:
        return str(error)
    return None


def counts_table() -> str:
    """Return the Markdown table of the counts, a row per page and one for all."""
    header = ["page", "run", "at every change", *REASONS, "Python run", "not run"]
    rows, total = [], Counter[str]()
    for page in pages():
        counts = Counter[str]()
        for command in all_commands():
            if command.block.page == page:
                counts.update(
                    ["run", *(["at every change"] if command.is_quick else [])] if command.runs else command.reasons
                )
        for block in all_blocks():
            if block.page == page and block.language == "python":
                counts["not run" if block.marks_of("not run, needs") else "Python run"] += 1
        total += counts
        if counts:
            rows.append([f"`{page}`", *(str(counts[name] or "") for name in header[1:])])
    rows.append(["all", *(str(total[name]) for name in header[1:])])
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]) + "\n"


def with_counts(text: str) -> str:
    """Return a document with the table between its two comments brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{counts_table()}\n{END}{after}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    index = REPOSITORY_ROOT / "docs" / "README.md"
    index.write_text(with_counts(index.read_text(encoding="utf-8")), encoding="utf-8")
    print("docs/README.md: the counts are up to date")
