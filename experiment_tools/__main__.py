"""python -m experiment_tools lists the tools, each a `python -m experiment_tools.<name>`."""

import ast
from pathlib import Path

from utils.words import say


def tools() -> dict[str, str]:
    """Return name -> what it does, the first sentence of its docstring; a tool is a module of this folder whose
    docstring says how to start it.
    """
    found = {}
    folder = Path(__file__).parent
    for path in [*folder.glob("[a-z]*.py"), *folder.glob("*/__main__.py")]:
        name = path.parent.name if path.stem == "__main__" else path.stem
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"python -m experiment_tools.{name}" in text:
            found[name] = text.splitlines()[0].partition(": python -m")[0].rstrip(".")
    return dict(sorted(found.items()))


def main() -> None:
    """Print them."""
    names = tools()
    width = max(map(len, names))
    for name, text in names.items():
        say(f"python -m experiment_tools.{name:<{width}}  {text}")


if __name__ == "__main__":
    main()
