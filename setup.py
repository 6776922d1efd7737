"""Builds one package, `mamlkit`, of this flat checkout: no `data` or `utils` of ours is in anybody's way.

The sources stay as they are. In the copies that go into the wheel, imports of our own modules get the package's name in
front: `from utils.config import load_config` becomes `from mamlkit.utils.config import load_config`.
"""

import ast
import itertools
import re
import sys
import tempfile
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

from script_generation_tools.docs import build_site
from utils.machine.packages import requirements
from utils.paths import COMMANDS, REPOSITORY_ROOT, __version__, command

PACKAGE = "mamlkit"
_TOOLS = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
OURS = set(_TOOLS["ruff"]["lint"]["isort"]["known-first-party"]) - {"benchmarks", "tests", PACKAGE}
ENDINGS = (".css", ".csv", ".html", ".jinja", ".js", ".sbatch", ".sh", ".toml", ".txt")
"""Of the files beside the modules, which they read."""
ASSETS = [
    "py.typed",
    "requirements.txt",
    "requirements-extras.txt",
    "experiment_config/*.json",
    "experiment_template_config/*",
    "pretrained/*",
    *(f"{room}/**/[!.]*{ending}" for room in sorted(OURS) for ending in ENDINGS),
]
OF_THE_CHECKOUT = {"script_generation_tools.write_config_table"}
"""Modules that write pages of the checkout."""
TABLES = ("utils/__init__.py", "utils/paths.py", "utils/registry/choices.py")
"""Where names of modules stand as text, and the code that reads them puts the package's name in front."""
_PLACES = re.compile(rf"(?<![\w./])(?:{'|'.join(sorted(OURS))})(?:[./]\w+)*")
_PAGES = re.compile(r"\bdocs/(\w+)\.md\b")
_STARTED = re.compile(rf"-m\s+(?:{'|'.join(sorted(OURS))})\b")


def renamed(path: str, source: str) -> str:
    """Return a source file as it is installed: imports of our modules, commands in its docstrings, pages that it names.

    Args:
        path: of the file, below the checkout.
    Raises:
        ValueError: it imports in a way that cannot be renamed, or names a module of ours in a text; each with its line.
    """
    tree = ast.parse(source)
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    changes: list[tuple[int, int, bytes]] = []  # first byte, last, what comes in their place
    wrong: list[str] = []
    explained = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = f"{path}, line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.ImportFrom) and not node.level and _top(node.module) in OURS:
            statement = offsets[node.lineno - 1] + node.col_offset
            name = source.encode().index(node.module.encode(), statement + len("from "))
            changes.append((name, name, f"{PACKAGE}.".encode()))
        elif isinstance(node, ast.Import):
            for alias in (alias for alias in node.names if _top(alias.name) in OURS):
                if not alias.asname:
                    wrong.append(f"{line}import {alias.name} gives another name when installed; write from ... import")
                name = offsets[alias.lineno - 1] + alias.col_offset
                changes.append((name, name, f"{PACKAGE}.".encode()))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in explained:
                begin = offsets[node.lineno - 1] + node.col_offset
                end = offsets[node.end_lineno - 1] + node.end_col_offset
                changes.append((begin, end, _explained(source.encode()[begin:end].decode()).encode()))
            elif path not in TABLES and (named := _named_module(node.value)):
                wrong.append(f'{line}"{named}" is another name when installed; take it from utils.paths.COMMANDS')
        elif isinstance(node, ast.List | ast.Tuple):
            words = [word.value if isinstance(word, ast.Constant) else None for word in node.elts]
            wrong += [f"{line}-m {name} is another name when installed; take it from utils.paths.child_process"
                      for option, name in itertools.pairwise(words)
                      if option == "-m" and _top(str(name)) in OURS]  # fmt: skip
    if wrong:
        raise ValueError("\n".join(wrong))
    data = source.encode()
    for begin, end, text in sorted(changes, reverse=True):
        data = data[:begin] + text + data[end:]
    return _PAGES.sub(rf"{PACKAGE} docs \1", data.decode())


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _named_module(text: str) -> str | None:
    """Return a module of ours that a text names as one: with its dots, with its file's name, or behind -m."""
    for match in _PLACES.finditer(text):
        path = REPOSITORY_ROOT / match[0].removesuffix(".py").replace(".", "/")
        if match[0] not in OURS and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
            return match[0]
    started = _STARTED.search(text)
    return started and started[0]


def _explained(text: str) -> str:
    """Return a docstring with the commands that a user of the package types."""
    for name in COMMANDS:
        text = text.replace(command(name), f"{PACKAGE} {name}")
    return text


class OnePackage(build_py):
    """Copies modules with their imports renamed, of the root only our modules, and builds the documentation."""

    def run(self) -> None:
        """Refuse `pip install --editable`: what it would install are the files of the checkout as they are."""
        if self.editable_mode:
            sys.exit(f"{PACKAGE} cannot be installed as editable; a checkout needs no installation: bash install.sh")
        super().run()
        build_site(Path(self.build_lib, PACKAGE, "site").resolve())

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return (package, module, file); `mamlkit.py` is what `import mamlkit` and `python -m mamlkit` find."""
        if package != PACKAGE:
            found = super().find_package_modules(package, package_dir)
            return [
                entry for entry in found if f"{package}.{entry[1]}".removeprefix(f"{PACKAGE}.") not in OF_THE_CHECKOUT
            ]
        files = {name: f"{name}.py" for name in sorted(OURS) if (REPOSITORY_ROOT / f"{name}.py").is_file()}
        files |= dict.fromkeys(("__init__", "__main__"), f"{PACKAGE}.py")
        return [(PACKAGE, name, file) for name, file in files.items()]

    def build_module(self, module: str, module_file: str, package: str | list[str]) -> tuple[str, bool]:
        """Copy one, renamed."""
        target, copied = super().build_module(module, module_file, package)
        path = Path(target)
        path.write_text(renamed(Path(module_file).as_posix(), path.read_text(encoding="utf-8")), encoding="utf-8")
        return target, copied


def main() -> None:
    """Build."""
    rooms = find_packages(str(REPOSITORY_ROOT), include=[pattern for name in OURS for pattern in (name, f"{name}.*")])
    extras: dict[str, list[str]] = {}
    for package in requirements("requirements-extras.txt"):
        extras.setdefault(str(package.only_for), []).append(package.name)
    with tempfile.TemporaryDirectory() as base:  # nothing of an older build is in this one
        setup(
            options={"build": {"build_base": base}, "egg_info": {"egg_base": base}},
            version=__version__,
            packages=[PACKAGE, *(f"{PACKAGE}.{room}" for room in rooms)],
            package_dir={PACKAGE: "."},
            package_data={PACKAGE: ASSETS},
            include_package_data=False,
            install_requires=[f"{one.name}>={one.least}" if one.least else one.name for one in requirements()],
            extras_require=extras,
            cmdclass={"build_py": OnePackage},
        )


if __name__ == "__main__":
    main()
