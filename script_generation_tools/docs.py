"""Open these pages as a site: python -m script_generation_tools.docs [PAGE]

    python -m script_generation_tools.docs config_keys

It lies on this computer, loads nothing from anywhere, and can be searched. Installed, it comes with the package; in a
checkout mkdocs builds it anew.
"""

import argparse
import os
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from utils.errors import ConfigError, prints_user_errors
from utils.paths import PACKAGE, REPOSITORY_ROOT, command
from utils.words import say

SITE = REPOSITORY_ROOT / ("site" if PACKAGE else ".site")


def build_site(folder: Path, *options: str) -> None:
    """Build the site of a checkout into a folder.

    Args:
        options: of mkdocs, such as --strict, for which a warning is an error.
    Raises:
        ConfigError: mkdocs, its theme or what reads the docstrings is not installed.
        CalledProcessError: a page is wrong; mkdocs has said which.
    """
    if missing := [name for name in ("material", "mkdocstrings_handlers") if not find_spec(name)]:
        how = "python -m pip install -r requirements-extras.txt"
        raise ConfigError(f"the site of docs/ needs mkdocs; there is no {' or '.join(missing)} here: {how}")
    line = [sys.executable, "-P", "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder), *options]
    subprocess.run(line, cwd=REPOSITORY_ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Open the page of a command line; return the exit code."""
    parser = argparse.ArgumentParser(prog=command("docs"), description="Open the documentation in a browser.")
    parser.add_argument("page", nargs="?", default="index", help="such as train, config_keys or api")
    page = parser.parse_args(arguments).page
    if not PACKAGE:
        build_site(SITE)
    # Several folders have an index; the one on top comes last, and stays.
    pages = {path.stem: path for path in sorted(SITE.rglob("*.html"), key=lambda path: -len(path.parts))}
    if page not in pages:
        raise ConfigError(f'there is no page "{page}"; there are: {", ".join(sorted(pages))}')
    say(pages[page].as_uri())
    webbrowser.open(pages[page].as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
