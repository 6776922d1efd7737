"""The datasets that `python -m utils.prepare_dataset` knows: folder names, what they have, whose terms hold, which
forms are read.
"""

import re
import shlex
from collections.abc import Mapping

from utils.errors import ConfigError
from utils.known_datasets import known_by_folder
from utils.paths import command
from utils.words import printable

GENERIC = {
    "csv": "a folder images with train.csv, val.csv and test.csv of rows file,label; --name names the dataset",
    "folder": "any tree of class folders, or an archive of one; --name names the dataset",
}
"""Forms rather than datasets: the user names them."""

MostSamples = Mapping[str | None, int]
"""Split (None: each) -> most images per class."""


def check_name(name: str) -> None:
    """Refuse what is no plain name of one folder: a path, a hidden name, other letters.

    Raises:
        ConfigError: the name, and which letters it may have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_+=,.\- ]{1,150}", name) or name.startswith("."):
        raise ConfigError(
            f'"{printable(name)}" cannot be the name of a dataset: letters, digits, spaces and _ + = , . - can. Give '
            "another name (--name); the folder above it is another argument (--to)."
        )


def folder_name(base: str, most: MostSamples, seed: int, *, names_seed: bool) -> str:
    """Return the name of a dataset's folder; what was drawn by seed is in it, so that two preparations never mix."""
    if most:
        counts = "_".join(str(count) if split is None else f"{split}{count}" for split, count in most.items())
        return f"{base}_{counts}_samples_seed{seed}"
    return f"{base}_seed{seed}" if names_seed else base


def command_for(dataset_name: str) -> str:
    """Return the one command that prepares the dataset of this folder name."""
    match = re.fullmatch(r"(.+?)(?:_(\d+|(?:(?:train|val|test)\d+_?)+)_samples)?(?:_seed(\d+))?", dataset_name)
    base, counts, seed = match.groups() if match else (dataset_name, None, None)
    known = known_by_folder(base)
    prepare = f"{command('prepare_dataset')} "
    if dataset_name.startswith("glyphs_"):
        return f"{prepare}glyphs --domain {shlex.quote(dataset_name.removeprefix('glyphs_'))} --from PACKAGES"
    if not known.forms:
        return prepare + f"folder --from FOLDER_OR_ARCHIVE --name {shlex.quote(dataset_name)}"
    prepare += known.name
    if known.fetched != "everything":
        prepare += " --from PATH_OR_ADDRESS"
    if counts:
        given = re.sub(r"(train|val|test)(\d+)_?", r"\1=\2,", counts).rstrip(",")
        prepare += f" --max_samples_per_class {given}"
    return prepare + (f" --seed {seed}" if seed else "")
