"""That the processes of a run were started alike: the same config, the same code, the same images, on all machines; and
that all see the run's folder, as any of them may be the one that writes.
"""

import hashlib
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataError
from utils.paths import REPOSITORY_ROOT
from utils.ranks.group import RankGroup

OF_A_MACHINE = frozenset(
    {
        "gpu_to_use",
        "dataset_path",
        "num_dataprovider_workers",
        "load_into_memory",
        "reset_stored_filepaths",
        "initial_weights",
        "load_checkpoint",
    }
)
"""Keys that may differ: where a machine has its data (their content is compared), and what rank 0 alone reads."""
DATA_FACTS = ("content_sha256", "image_shape", "splits")
MOST_DIFFERENCES = 5
SEEN_WITHIN_S = 75.0
"""A new file, by all machines: NFS may keep a folder's old content for 60 s."""
POLL_S = 0.1


def check_same_program(group: RankGroup, config: Mapping[str, Any]) -> None:
    """Refuse a group whose processes have other configs, other code of this project or another PyTorch.

    Raises:
        ConfigError: the same on all ranks; names each key, with the values and where they are.
    """
    if group.is_alone:
        return
    keys = {key: value for key, value in config.items() if key not in OF_A_MACHINE}
    facts = {
        **keys,
        "the version of PyTorch": version("torch"),
        "the sha256 of this project's code": code_digest(REPOSITORY_ROOT),
    }
    differences = _differences(group, facts)
    if differences:
        raise ConfigError(
            "the processes of this run were not started alike: " + "; ".join(differences)
            + ". Start the same command with the same config, from the same version of this project, on all machines."
        )  # fmt: skip


def check_same_data(group: RankGroup, summary: Mapping[str, Any]) -> None:
    """Refuse a group whose processes read other images.

    Args:
        summary: `summary()` of the data, or those of several datasets by name.
    Raises:
        DataError: the same on all ranks.
    """
    if group.is_alone:
        return
    named = {name: value for name, value in summary.items() if isinstance(value, Mapping) and "splits" in value} or {
        str(summary.get("dataset_name", "the data")): summary
    }
    facts = {
        f"{fact} of {name}": of_one[fact] for name, of_one in named.items() for fact in DATA_FACTS if fact in of_one
    }
    differences = _differences(group, facts)
    if differences:
        raise DataError(
            "the images differ between the machines of this run: " + "; ".join(differences)
            + ". Copy the dataset from one to the others, or share DATASET_DIR."
        )  # fmt: skip


def check_same_folder(group: RankGroup, folder: Path, newest_save: Callable[[], Sequence[int]]) -> None:
    """Refuse machines that do not see the folder of the run in which rank 0 writes, or see a newer state there.

    Rank 0 may be on any machine: one with a folder of its own, or with an old view of it, would begin anew.

    Args:
        folder: of the run, as this process has it; rank 0 has made it.
        newest_save: two numbers, larger for a newer state of the run.
    Raises:
        ConfigError: the same on all ranks.
    """

    def put_mark() -> str:
        name = f".seen_by_all_{uuid.uuid4().hex}.partial"  # a temporary file: the next start removes what a kill leaves
        (folder / name).touch()
        return name

    mark, deadline = folder / group.of_main(put_mark), time.monotonic() + SEEN_WITHIN_S
    while not (is_seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    views = group.of_all([socket.gethostname(), str(folder), is_seen, list(newest_save())])
    if group.is_main:
        mark.unlink(missing_ok=True)
    host, path, _, newest = views[0]
    for index, (other_host, other_path, other_sees, other_newest) in enumerate(views):
        if not other_sees:
            raise ConfigError(
                f"EXPERIMENTS_DIR must be one folder that all machines of a run share: what process 0 writes to {path} "
                f"on {host} is not in {other_path} on {other_host} (process {index}). Any machine may have process 0."
            )
        if other_newest > newest:
            raise ConfigError(
                f"process {index} on {other_host} sees a newer state of this run in {other_path} than process 0 on "
                f"{host} does in {path}, which would begin again from the older one. Nothing was begun. Start again "
                "in a minute; if this comes back, EXPERIMENTS_DIR is not the same folder on these machines."
            )


def code_digest(root: Path) -> str:
    """Return the sha256 of the project's Python files that a run imports, with their paths."""
    digest = hashlib.sha256()
    rooms = (root.glob(f"{room}/**/*.py") for room in ("experiment_parts", "meta_learning", "utils"))
    for path in sorted(filter(Path.is_file, (*root.glob("*.py"), *(path for room in rooms for path in room)))):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _differences(group: RankGroup, facts: Mapping[str, Any]) -> list[str]:
    """Return one text per fact that is not the same everywhere: two values of it and where they are."""
    all_ranks: Sequence[Any] = group.of_all([socket.gethostname(), facts])
    texts = []
    for name in sorted({name for _, of_one in all_ranks for name in of_one}):
        first = all_ranks[0][1].get(name)
        index = next((index for index, (_, of_one) in enumerate(all_ranks) if of_one.get(name) != first), None)
        if index is not None:
            host, of_one = all_ranks[index]
            texts.append(
                f"{name} is {_text(first)} in process 0 on {all_ranks[0][0]}, but {_text(of_one.get(name))} in "
                f"process {index} on {host}"
            )
    more = len(texts) - MOST_DIFFERENCES
    return texts if more <= 0 else [*texts[:MOST_DIFFERENCES], f"and {more} more"]


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:20]}..."
