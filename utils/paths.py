"""Where this checkout, its datasets and its runs are."""

import os
from pathlib import Path

from utils.errors import ConfigError

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


def dataset_root() -> Path:
    """Return the folder of the datasets: environment variable DATASET_DIR, else `datasets/` of this checkout."""
    return expanded(os.environ.get("DATASET_DIR") or REPOSITORY_ROOT / "datasets")


def experiments_root() -> Path:
    """Return the folder of the runs: environment variable EXPERIMENTS_DIR, else `experiments/` of this checkout."""
    return expanded(os.environ.get("EXPERIMENTS_DIR") or REPOSITORY_ROOT / "experiments")


def expanded(path: str | Path) -> Path:
    """Return a path of the user's with ~ or ~name in front written out.

    Raises:
        ConfigError: the system knows of no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home folder that ~ could stand for here; write the path out") from error
