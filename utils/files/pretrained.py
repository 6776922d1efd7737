"""Weights that come with this project: which there are, and the file of one, once its bytes are those of the index.

Needs no torch.
"""

import hashlib
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DamagedCheckpointError, StorageError
from utils.files.atomic_files import read_regular
from utils.files.reading import read_object, why_unreadable
from utils.paths import PACKAGE, REPOSITORY_ROOT, expanded, experiments_root

FOLDER = REPOSITORY_ROOT / "pretrained"
LICENCE = "MIT"
"""Of all of them, as of the project."""
MOST_BYTES = 600_000
"""Of one file: they are part of every clone and of the installed package."""
MOST_BYTES_TOGETHER = 3_000_000


def index_path() -> Path:
    """Return the file that says which weights there are."""
    return FOLDER / "index.json"


def remedy(path: Path) -> str:
    """Return what brings a file of `FOLDER` back, as it was published."""
    if PACKAGE:
        return "install this version again"
    return f"git -C {REPOSITORY_ROOT} checkout -- {FOLDER.name}/{path.name} restores it, if it was published"


def pretrained_index() -> dict[str, Any]:
    """Return name -> sha256 of its file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return read_object(index_path())
    except (OSError, ValueError) as error:
        raise StorageError(f"{index_path()}: {why_unreadable(error)}; {remedy(index_path())}") from error


def pretrained_file(name: str) -> Path:
    """Return the safetensors file of these weights, all of whose bytes have been compared with the index.

    Raises:
        ConfigError: no such name. StorageError: the file is missing, or not the one that was published.
    """
    index = pretrained_index()
    if not isinstance(name, str):
        raise ConfigError(f"weights are named by a text, such as {next(iter(index), None)!r}, not by {name!r}")
    if name not in index:
        raise ConfigError(f'there are no pretrained weights "{name}"; {index_path()} has: {", ".join(index) or "none"}')
    path = FOLDER / f"{name}.safetensors"
    try:
        digest = hashlib.sha256(read_regular(path, MOST_BYTES)).hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: {why_unreadable(error)}; {remedy(path)}") from error
    if digest != index[name]:
        raise DamagedCheckpointError(
            f"{path}: not the weights that were published, and not used: its sha256 is {digest}, that of "
            f"{index_path().name} {index[name]}; {remedy(path)}"
        )
    return path


def weights_file(given: str) -> Path:
    """Return the file that `initial_weights` means: of the index, else at a path, which may begin in the folder of the
    runs, with that folder's usual name, experiments/, before it or without.

    Raises:
        ConfigError, StorageError: as `pretrained_file`.
    """
    path, of_a_run = expanded(given), experiments_root() / given.removeprefix("experiments/")
    if "/" not in given and given in pretrained_index():
        return pretrained_file(given)
    return of_a_run if of_a_run.is_file() and not path.exists() else path
