"""Where this program, its commands, datasets and runs are, and what they are called.

Installed, the same files are one package: the copies import each other as `mamlkit.utils.paths` (setup.py).
"""

import os
import sys
from pathlib import Path

from utils.errors import ConfigError

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
"""Of the checkout; installed, the package's folder. Code and what it reads: nothing is written here when installed."""
__version__ = "0.1.0"
MARK = ".mamlkit"
"""A file by which a folder that `mamlkit new` has made is known."""
PACKAGE = __name__.removesuffix("utils.paths")
"""What stands in front of the name of each of our modules: nothing in a checkout, `mamlkit.` installed."""
COMMANDS = {
    "train": "train_maml_system.py",
    "prepare_dataset": "utils.prepare_dataset",
    "doctor": "experiment_tools.doctor",
    "show_data": "experiment_tools.show_data",
    "runs": "experiment_tools.runs",
    "report": "experiment_tools.report",
    "compare": "experiment_tools.compare",
    "sweep": "experiment_tools.sweep",
    "adapt": "experiment_tools.adapt",
    "demo": "experiment_tools.demo",
    "export": "experiment_tools.export",
    "verify_pretrained": "experiment_tools.verify_pretrained",
    "check_gradients": "experiment_tools.check_gradients",
    "new_method": "experiment_tools.new_method",
    "new": "script_generation_tools.new",
    "generate_configs": "script_generation_tools/generate_configs.py",
    "generate_scripts": "script_generation_tools/generate_scripts.py",
    "convert_config": "script_generation_tools/convert_config.py",
    "convert_checkpoint": "experiment_tools.convert_checkpoint",
    "docs": "script_generation_tools.docs",
}
"""Name -> module, or file where that is how the checkout's user starts it. Nowhere else is a module named in a text:
installed, it has another name.
"""
PARTS = {"": "experiment_tools", "decoding": "utils.images.decoding", "torchrun": "utils.ranks.agent"}
"""The same for what only programs start, and for the list of commands."""


def command(name: str) -> str:
    """Return what a user types to start a command, here: `python -m experiment_tools.adapt`, or `mamlkit adapt`."""
    if PACKAGE:
        return f"{PACKAGE[:-1]} {name}"
    return f"python {COMMANDS[name]}" if COMMANDS[name].endswith(".py") else f"python -m {COMMANDS[name]}"


def module_of(name: str) -> str:
    """Return the full name of the module of a command or part.

    Raises:
        KeyError: there is none of this name.
    """
    return PACKAGE + (COMMANDS | PARTS)[name].removesuffix(".py").replace("/", ".")


def child_process(name: str) -> list[str]:
    """Return the words that start a command or part as a process, from any folder.

    No folder of the user's comes before ours on its sys.path, and installed none of ours is on it.
    """
    program = ["-P", "-m", PACKAGE[:-1]] if PACKAGE else [str(REPOSITORY_ROOT / "mamlkit.py")]
    return [sys.executable, *program, name]


def working_folder() -> Path:
    """Return the folder in which a user works: the checkout; installed, the nearest one at or above the current folder
    that `mamlkit new` has made, else the current one.
    """
    if not PACKAGE:
        return REPOSITORY_ROOT
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / MARK).is_file()), here)


def configs() -> dict[str, Path]:
    """Return the generated configs by name, ours and those of the working folder, which come first."""
    folders = (REPOSITORY_ROOT / "experiment_config", working_folder() / "experiment_config")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("[!.]*.json"))}


def dataset_root() -> Path:
    """Return the folder of the datasets: environment variable DATASET_DIR, else `datasets/` of the working folder."""
    return expanded(os.environ.get("DATASET_DIR") or working_folder() / "datasets")


def experiments_root() -> Path:
    """Return the folder of the runs: variable EXPERIMENTS_DIR, else `experiments/` of the working folder."""
    return expanded(os.environ.get("EXPERIMENTS_DIR") or working_folder() / "experiments")


def without_user(path: str | Path) -> str | None:
    """Return a path without a user's name, as it can be shown to others and typed again: from the working folder or the
    checkout, from the home as ~, or from the current folder; None: it is elsewhere.
    """
    path = expanded(path).resolve()
    home = Path(os.path.expanduser("~"))  # "~" itself where nobody's home is known
    for root, front in ((working_folder(), ""), (REPOSITORY_ROOT, ""), (home, "~/"), (Path.cwd(), "")):
        if path.is_relative_to(root.resolve()):
            return f"{front}{path.relative_to(root.resolve())}"
    return None


def expanded(path: str | Path) -> Path:
    """Return a path of the user's with ~ or ~name in front written out.

    Raises:
        ConfigError: the system knows of no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home folder that ~ could stand for here; write the path out") from error
