"""The packages that this project needs, as requirements.txt lists them, and how to get them. Needs none of them."""

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from utils.paths import PACKAGE, REPOSITORY_ROOT

LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:>=\s*([0-9.]+))?\s*(?:#\s*(.+))?")
IMPORTED_AS = {"pillow": "PIL"}


class Requirement(NamedTuple):
    """A line of a file of requirements."""

    name: str
    least: str | None
    """The oldest version that works; None: any."""
    only_for: str | None
    """What alone needs it, the comment behind it; training goes without. None: training needs it."""

    @property
    def module(self) -> str:
        """What is imported."""
        return IMPORTED_AS.get(self.name, self.name)


def requirements(file: str = "requirements.txt") -> list[Requirement]:
    """Return the packages of a file of the checkout."""
    lines = (REPOSITORY_ROOT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(*match.groups()) for match in map(LINE.fullmatch, lines) if match]


def missing_to_train() -> list[str]:
    """Return the modules that a run cannot do without and that are not installed; nothing is imported."""
    modules = [package.module for package in requirements() if not package.only_for]
    return [module for module in modules if find_spec(module) is None]


def installed_version(package: str) -> str | None:
    """Return the version of a package by the name under which it is installed; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def set_up_command() -> str:
    """Return what brings a Python with the required packages: the environment of install.sh, or making it; or pip."""
    if PACKAGE:
        return f"{shlex.quote(sys.executable)} -m pip install {PACKAGE[:-1]}"
    made = REPOSITORY_ROOT / ".venv" / "bin" / "activate"
    if made.is_file() and Path(sys.prefix).resolve() != made.parent.parent:
        return f"source {shlex.quote(str(made))}"
    return f"bash {shlex.quote(str(REPOSITORY_ROOT / 'install.sh'))}"


def extras_command(purposes: str) -> str:
    """Return what installs optional packages: all of them, or those for `trackers,sweep`."""
    what = f"'{PACKAGE[:-1]}[{purposes}]'" if PACKAGE else "-r requirements-extras.txt"
    return f"python -m pip install {what}"
