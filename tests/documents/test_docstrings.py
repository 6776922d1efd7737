"""What people call has docstrings that are true: names of arguments, shapes of tensors, errors that it raises
itself.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from utils.paths import REPOSITORY_ROOT

FACE = [
    "few_shot_classifier/classifier.py",
    "train_maml_system.py",
    "data.py",
    "few_shot_classifier/datasets.py",
    "few_shot_classifier/given_tasks.py",
    "few_shot_learning_system.py",
    *sorted(
        f"experiment_tools/{path.name}"
        for path in (REPOSITORY_ROOT / "experiment_tools").glob("*.py")
        if "__main__" in path.read_text()
    ),
]
"""The modules that users import, and the tools that they start."""
CATCHES_ALL = {"prints_user_errors", "on_console"}
"""Decorators of main functions that turn what these raise into an exit code."""
ARRAYS = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"\(\.\.\.\)|\([A-Za-z0-9 *+.|]+,[^()]*\)|\bscalar\b|shapes?\b", re.IGNORECASE)
"""(B, N*K, C, H, W), (n,), "the shapes of params"."""


def public_definitions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """(qualified name, node) of every public class, function and method."""
    tree = ast.parse((REPOSITORY_ROOT / module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from (
                    (f"{node.name}.{m.name}", m)
                    for m in node.body
                    if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")
                )


def signature(function: ast.FunctionDef) -> dict[str, str]:
    """Parameter -> annotation; "return" too."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = {argument.arg: ast.unparse(argument.annotation) if argument.annotation else "" for argument in arguments}
    for more in (function.args.vararg, function.args.kwarg):
        if more is not None:
            named[more.arg] = "more"
    named["return"] = ast.unparse(function.returns) if function.returns else ""
    return named


def described_arguments(text: str) -> list[str]:
    """The names in the section Args of a docstring."""
    section = re.search(r"^ *Args:\n(.*?)(?=^ *(?:Returns|Raises|Source):|\Z)", text, re.MULTILINE | re.DOTALL)
    if not section:
        return []
    indent = len(section[1]) - len(section[1].lstrip())
    lines = re.findall(rf"^ {{{indent}}}([\w*, ]+):", section[1], re.MULTILINE)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def errors_raised(node: ast.AST) -> Iterator[str]:
    """Names of the errors that the statements of a definition raise, outside of a `try` that would catch them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and isinstance(child.exc.func, ast.Name):
            yield "StorageError" if child.exc.func.id == "storage_error" else child.exc.func.id
        elif isinstance(child, ast.With) and any("storage_errors(" in ast.unparse(item) for item in child.items):
            yield "StorageError"
            yield from errors_raised(child)
        elif isinstance(child, ast.Try):
            for handled in [*child.handlers, *child.orelse, *child.finalbody]:
                yield from errors_raised(handled)
        else:
            yield from errors_raised(child)


def problems_of(name: str, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """Yield what the docstring of a public definition leaves out, or says wrongly."""
    text = ast.get_docstring(node, clean=False)
    if not text:
        yield f"{name}: no docstring"
        return
    if isinstance(node, ast.ClassDef):
        return
    parameters = signature(node)
    for described in described_arguments(text):
        if described not in parameters:
            yield f'{name}: describes "{described}", which is no argument'
    takes_or_gives = [
        annotation for annotation in parameters.values() if ARRAYS.search(annotation) and "Callable" not in annotation
    ]
    if takes_or_gives and not SHAPE.search(text):
        yield f"{name}: has arrays, and its docstring no shape"
    if not CATCHES_ALL.isdisjoint(map(ast.unparse, node.decorator_list)):
        return
    for error in dict.fromkeys(errors_raised(node)):
        if error not in text:
            yield f"{name}: raises {error}, which its docstring does not say"


@pytest.mark.parametrize("module", FACE)
def test_docstrings_are_there_and_true(module):
    assert [problem for name, node in public_definitions(module) for problem in problems_of(name, node)] == []


def test_what_is_missing_is_found():
    source = '''
def f(images: Tensor, n: int) -> Tensor:
    """Do something.

    Args:
        pictures: of things.
    """
    raise InputError("no")
'''
    found = list(problems_of("f", ast.parse(source).body[0]))
    assert found == [
        'f: describes "pictures", which is no argument', "f: has arrays, and its docstring no shape",
        "f: raises InputError, which its docstring does not say",
    ]  # fmt: skip
