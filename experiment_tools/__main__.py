"""python -m experiment_tools lists the tools, each a `python -m experiment_tools.<name>`."""

import ast
from pathlib import Path


def tools() -> dict[str, str]:
    """Name -> what it does, the first sentence of its docstring; a tool is a module of this folder whose docstring says how to start it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"python -m experiment_tools.{path.stem}" in text:
            found[path.stem] = text.splitlines()[0].partition(": python -m")[0].rstrip(".")
    return found


def main() -> None:
    """Print them."""
    names = tools()
    width = max(map(len, names))
    for name, text in names.items():
        print(f"python -m experiment_tools.{name:<{width}}  {text}")


if __name__ == "__main__":
    main()
