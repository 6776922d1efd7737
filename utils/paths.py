"""Where this checkout, its datasets and its runs are."""

import os
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


def dataset_root() -> Path:
    """Return the folder of the datasets: environment variable DATASET_DIR, else `datasets/` of this checkout."""
    return Path(os.environ.get("DATASET_DIR") or REPOSITORY_ROOT / "datasets").expanduser()


def experiments_root() -> Path:
    """Return the folder of the runs: environment variable EXPERIMENTS_DIR, else `experiments/` of this checkout."""
    return Path(os.environ.get("EXPERIMENTS_DIR") or REPOSITORY_ROOT / "experiments").expanduser()
