"""python -m experiment_tools lists the commands of this project."""

import ast
import shutil

from utils.paths import COMMANDS, PACKAGE, REPOSITORY_ROOT, command, module_of
from utils.words import guarded_output, say


def tools() -> dict[str, str]:
    """Return what a user types -> what it does: the first paragraph of its docstring, without the former."""
    found = {}
    for name in COMMANDS:
        path = REPOSITORY_ROOT / module_of(name).removeprefix(PACKAGE).replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        found[command(name)] = " ".join(text.split()).partition(command(name))[0].rstrip(".: `")
    return found


@guarded_output()
def main() -> None:
    """Print them."""
    found = tools()
    width, columns = max(map(len, found)), shutil.get_terminal_size((200, 24)).columns
    for typed, text in found.items():
        say(f"{typed:<{width}}  {text}"[:columns])


if __name__ == "__main__":
    main()
