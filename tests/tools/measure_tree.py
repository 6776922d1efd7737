"""Measure a checkout: how much lies where, and what one has to know before one changes the inner loop.

    python tests/tools/measure_tree.py                      writes the column "after" of the table in docs/layout.md
    python tests/tools/measure_tree.py --before CHECKOUT    writes the column "before"
    python tests/tools/measure_tree.py CHECKOUT             prints the table of another checkout

Stands on the standard library alone, so that any checkout of the project's history can be measured by this one.
"""

import argparse
import ast
import multiprocessing
import os
import re
import statistics
import sys
import tokenize
from collections.abc import Collection, Mapping, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "docs" / "layout.md"
NONE = "–"
BEGIN, END = "<!-- measures: begin (generated) -->", "<!-- measures: end -->"
NO_SOURCES = ("experiments", "datasets", "build")
DIRECTIVE = re.compile(r"#!|# (noqa|fmt|type|ruff|pragma)\b")
LEARNER = "few_shot_learning_system.py"
INNER_LOOP = ("meta_learning/adaptation.py", "meta_learning/outer_gradients/training_steps.py")
"""Where the inner loop stands, where nothing is learned from it and where something is: who changes it reads these."""


@dataclass(frozen=True)
class Source:
    """A file of Python."""

    path: str
    """Below the checkout."""
    lines: list[str]
    tree: ast.Module


def sources_of(root: Path) -> list[Source]:
    """Every file of Python that belongs to a checkout, by path."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] not in NO_SOURCES and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            text = path.read_text(encoding="utf-8")
            found.append(Source("/".join(parts), text.splitlines(), ast.parse(text)))
    return found


def n_comments(source: Source) -> tuple[int, int]:
    """Lines that are a comment, and lines that have one; what is meant for a program is none."""
    lines = iter([f"{line}\n" for line in source.lines])
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    comments = [token for token in tokens if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string)]
    return sum(token.line.lstrip().startswith("#") for token in comments), len(comments)


def measure(root: Path) -> dict[str, str]:
    """Name of a measure -> its value, of a checkout: the rows of the table."""
    sources = sources_of(root)
    tests = [source for source in sources if source.path.startswith("tests/")]
    outside = [source for source in sources if not source.path.startswith("tests/")]
    return {
        "all but the tests: files, lines": _files_and_lines(outside),
        **_sizes(outside),
        "tests: files, lines": _files_and_lines(tests),
        "tests: lines of more than 120 columns": f"{_n_long_lines(tests):,}",
        **_way_to_the_meta_gradient(root, outside),
        **{f"{name}: files, lines": _files_and_lines(some) for name, some in sorted(by_folder(outside).items())},
    }


def by_folder(sources: list[Source]) -> dict[str, list[Source]]:
    """Folder, as it is written in the table -> the sources that lie in it, not those in its wings."""
    folders: dict[str, list[Source]] = {}
    for source in sources:
        parent = source.path.rpartition("/")[0]
        folders.setdefault(f"`{parent}/`" if parent else "`/`", []).append(source)
    return folders


def _sizes(sources: list[Source]) -> dict[str, str]:
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    statements = [node for node in nodes if isinstance(node, ast.stmt)]
    texts = [s for s in statements if isinstance(s, ast.Expr) and isinstance(getattr(s.value, "value", None), str)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [len(source.lines) for source in sources]
    alone, anywhere = (sum(counts) / sum(lengths) for counts in zip(*map(n_comments, sources), strict=True))
    longest = max(sources, key=lambda source: len(source.lines))
    folder, members = max(by_folder(sources).items(), key=lambda item: len(item[1]))
    return {
        "statements; without docstrings": f"{len(statements):,}; {len(statements) - len(texts):,}",
        "most files in one folder": f"{len(members)}, {folder}",
        "longest file, lines": f"{len(longest.lines):,}, `{longest.path}`",
        "median file, lines": f"{statistics.median(lengths):.0f}",
        "functions of more than 50 lines": str(sum(node.end_lineno - node.lineno >= 50 for node in functions)),
        "lines that are a comment; that have one": f"{100 * alone:.1f} %; {100 * anywhere:.1f} %",
        "lines of more than 120 columns": f"{_n_long_lines(sources):,}",
    }


def _n_long_lines(sources: list[Source]) -> int:
    return sum(len(line) > 120 for source in sources for line in source.lines)


def _files_and_lines(sources: list[Source]) -> str:
    return f"{len(sources)}, {sum(len(source.lines) for source in sources):,}"


@dataclass(frozen=True)
class Function:
    """A function that has run."""

    path: str
    name: str
    line: int

    @property
    def top(self) -> tuple[str, str]:
        """(file, name) of itself or, inside a class or function, of that."""
        return self.path, self.name.split(".")[0]


def _way_to_the_meta_gradient(root: Path, sources: list[Source]) -> dict[str, str]:
    # A process of its own: modules of two checkouts have the same names.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        calls = pool.submit(calls_of_a_meta_gradient, root, {source.path for source in sources}).result()
    passed = {called.path for _, called in calls}

    def size(paths: Collection[str]) -> str:
        known = concepts(calls, sources, paths)
        files = {path for path, _ in known}
        return f"{len(known)} ({_files_and_lines([source for source in sources if source.path in files])})"

    return {
        "from the device to the meta-gradient: files in which something runs": str(len(passed)),
        "concepts that the learner and its inner loop name or call; their files, lines": size([LEARNER, *INNER_LOOP]),
        # Before the house was built, the inner loop stood in the learner's own file.
        "concepts that the inner loop alone names or calls; their files, lines": size(
            INNER_LOOP if (root / INNER_LOOP[-1]).exists() else [LEARNER, INNER_LOOP[0]]
        ),
    }


def calls_of_a_meta_gradient(root: Path, paths: Set[str]) -> set[tuple[Function | None, Function]]:
    """(caller, called) of all calls between functions in these files while quickstart's learner computes one."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True
    import torch

    from few_shot_learning_system import build_learner
    from utils.config import load_config

    config = load_config("experiment_config/quickstart.json", {"batch_size": 2, "task_chunk_size": 2})
    learner = build_learner(config, "cpu")
    images = torch.rand(2, 5, config.image_channels, config.image_height, config.image_width)
    labels = torch.arange(5).repeat(2, 1)
    episodes = _Episodes(images, labels, images.flip(0), labels, torch.arange(2))
    calls = set()
    names = {str(root / path): path for path in paths}

    def function_of(frame: FrameType | None) -> Function | None:
        while frame is not None and frame.f_code.co_filename not in names:
            frame = frame.f_back  # torch's own, between a module and its forward
        code = frame and frame.f_code
        return code and Function(names[code.co_filename], code.co_qualname, code.co_firstlineno)

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename in names:
            calls.add((function_of(frame.f_back), function_of(frame)))

    sys.setprofile(note)
    learner.meta_gradients(episodes, 0)
    sys.setprofile(None)
    return calls


@dataclass(frozen=True)
class _Episodes:
    """What a learner reads of `EpisodeBatch`, whose module is not the same in all checkouts."""

    support_images: Any
    support_labels: Any
    query_images: Any
    query_labels: Any
    seeds: Any
    n_way: int = 5
    n_shot: int = 1
    n_query: int = 1


def concepts(
    calls: set[tuple[Function | None, Function]], sources: list[Source], paths: Collection[str]
) -> set[tuple[str, str]]:
    """(file, name) of the project's classes and functions that what runs in some files belongs to, names or calls.

    A kind of a class that counts does not count itself; neither do errors and private names.
    """
    tops = {
        (source.path, node.name): node
        for source in sources
        for node in source.tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    running = {called for _, called in calls if called.path in paths}
    found = {called.top for caller, called in calls if called in running or caller in running}
    for source in sources:
        named = _classes_in_sight(source, tops)
        lines = {function.line for function in running if function.path == source.path}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef) and lines.intersection(_lines_before_its_body(node)):
                found |= {named[part.id] for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in named}
    found = {(path, name) for path, name in found if (path, name) in tops and not re.match("_|.*Error$", name)}
    names = {name for _, name in found}
    return {top for top in found if not names & {ast.unparse(base) for base in getattr(tops[top], "bases", ())}}


def _lines_before_its_body(node: ast.FunctionDef) -> range:
    first = min(part.lineno for part in [node, *node.decorator_list])
    return range(first, max(node.body[0].lineno, first + 1))


def _classes_in_sight(source: Source, tops: Mapping[tuple[str, str], ast.stmt]) -> dict[str, tuple[str, str]]:
    """Name -> (file, name) of the project's classes that a file defines or imports."""
    own = {name: (path, name) for path, name in tops if path == source.path}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            path = f"{(node.module or '').replace('.', '/')}.py"
            own |= {alias.asname or alias.name: (path, alias.name) for alias in node.names}
    return {name: top for name, top in own.items() if isinstance(tops.get(top), ast.ClassDef)}


def table(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Markdown, a row per measure; the folders come last, in alphabetical order."""
    names = list(dict.fromkeys([*after, *before]))
    names = [name for name in names if name[0] != "`"] + sorted(name for name in names if name[0] == "`")
    rows = [f"| {name} | {before.get(name, NONE)} | {after.get(name, NONE)} |" for name in names]
    return "\n".join(["| | before | after |", "| --- | --- | --- |", *rows])


def columns(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Read the two columns of the table in a document."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text.partition(BEGIN)[2].partition(END)[0], re.MULTILINE)
    rows = [row for row in rows if row[0] != "---"]
    return tuple({row[0]: row[place] for row in rows if row[place] != NONE} for place in (1, 2))


def with_columns(text: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return a document with the table between its two comments made anew."""
    start, _, rest = text.partition(BEGIN)
    return f"{start}{BEGIN}\n\n{table(before, after)}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path)
    parser.add_argument("--before", metavar="CHECKOUT", type=Path)
    given = parser.parse_args()
    if given.checkout:
        for name, value in measure(given.checkout.resolve()).items():
            print(f"| {name} | {value} |")
        return
    text = LAYOUT.read_text(encoding="utf-8")
    before, after = columns(text)
    if given.before:
        before = measure(given.before.resolve())
    else:
        after = measure(ROOT)
    LAYOUT.write_text(with_columns(text, before, after), encoding="utf-8")
    print("docs/layout.md: the table is up to date")


if __name__ == "__main__":
    main()
