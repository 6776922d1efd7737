"""Exact test tasks as a file: which classes, and which images for support and query, by name, so that others can
score them.

The file is JSON, with every name written once:

    {"format": "few-shot task list", "version": 1, "dataset": "omniglot_dataset", "classes": [name, ...], "images":
    [path, ...],
     "lists": [{"n_way": 5, "n_shot": 1, "n_query": 15, "seed": 0, "digest": sha256,
                "tasks": [[[class, [support image, ...], [query image, ...]], ... N of them], ...]}]}

Classes and images in a task are places in the two lists of names; paths are relative to the dataset's folder. Where
each class of a task has shots of its own, "n_shot" is [1, 5], the fewest and the most, and "version" 2. Needs no torch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import EpisodeIndices, EpisodeShape
from utils.errors import DataError
from utils.files.atomic_files import write_bytes_atomically
from utils.files.reading import read_object
from utils.paths import command
from utils.words import printable

FORMAT = "few-shot task list"
EQUAL_SHOTS, OWN_SHOTS = VERSIONS = 1, 2
"""Of the file; the second where classes have shots of their own, which earlier releases do not know."""

ClassImages = tuple[str, tuple[str, ...]]
"""A class of a task: its name, and the paths of its support images and then its Q query images."""


@dataclass(frozen=True)
class TaskList:
    """Tasks of one shape."""

    shape: EpisodeShape
    tasks: tuple[tuple[ClassImages, ...], ...]
    """N classes each."""
    seed: int | None = None
    """With which they were drawn."""
    digest: str = ""
    """As `tasks_digest` gives it; empty where nobody said."""


@dataclass(frozen=True)
class TaskLists:
    """All tasks of a file."""

    dataset: str
    """Name of the dataset's folder in DATASET_DIR."""
    lists: tuple[TaskList, ...]


def tasks_digest(
    split: str,
    shape: EpisodeShape,
    indices: Sequence[int],
    drawn: EpisodeIndices,
    table: ClassTable,
    image_path: Callable[[int], str],
) -> str:
    """Return the sha256 of class and image names of episodes: equal means the same tasks.

    Args:
        indices, drawn: of the episodes.
        image_path: rank of an image -> its path.
    """
    lines = [f"{split} {shape}"]
    for index, classes, ranks, turns in zip(indices, drawn.classes, table.ranks(drawn), drawn.rotations, strict=True):
        for class_rank, image_ranks, quarter_turns in zip(classes, ranks, turns, strict=True):
            images = "\t".join(image_path(int(rank)) for rank in image_ranks if rank >= 0)
            lines.append(f"{index}\t{table.names[class_rank]}\t{quarter_turns}\t{images}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def named_tasks(
    drawn: EpisodeIndices, table: ClassTable, image_path: Callable[[int], str]
) -> tuple[tuple[ClassImages, ...], ...]:
    """Return drawn episodes by name."""
    return tuple(
        tuple(
            (table.names[class_rank], tuple(image_path(int(rank)) for rank in image_ranks if rank >= 0))
            for class_rank, image_ranks in zip(classes, ranks, strict=True)
        )
        for classes, ranks in zip(drawn.classes, table.ranks(drawn), strict=True)
    )


def indexed_tasks(
    lists: Sequence[TaskList], rank_of: Mapping[str, int]
) -> tuple[dict[str, list[int]], dict[EpisodeShape, EpisodeIndices], list[str]]:
    """Return named tasks as numbers: the inverse of `named_tasks`.

    Args:
        rank_of: path of an image -> its rank; only what is in the tasks has to be in it.
    Returns:
        (class name -> ranks of its images; shape -> its episodes in the order of the file; paths that `rank_of` lacks).
    """
    paths_of: dict[str, dict[str, int]] = {}  # class -> path -> place
    for name, paths in (entry for one in lists for task in one.tasks for entry in task):
        places = paths_of.setdefault(name, {})
        for path in paths:
            places.setdefault(path, len(places))
    missing = sorted({path for places in paths_of.values() for path in places if path not in rank_of})
    if missing:
        return {}, {}, missing
    class_ranks = {name: rank for rank, name in enumerate(paths_of)}
    episodes = {}
    for one in lists:
        classes = np.array([[class_ranks[name] for name, _ in task] for task in one.tasks], dtype=np.int64)
        images = np.full((*classes.shape, one.shape.n_images), -1)
        for i, task in enumerate(one.tasks):
            for label, (name, paths) in enumerate(task):
                places, n_support = [paths_of[name][path] for path in paths], len(paths) - one.shape.n_query
                images[i, label, :n_support] = places[:n_support]
                images[i, label, one.shape.n_shot :] = places[n_support:]
        episodes[one.shape] = EpisodeIndices(classes, images, np.zeros_like(classes), np.arange(len(classes)))
    return {name: [rank_of[path] for path in places] for name, places in paths_of.items()}, episodes, []


def write_task_lists(path: Path, task_lists: TaskLists) -> None:
    """Write the file; two shapes in it may not be the same.

    Raises:
        StorageError: no space or no permission.
    """
    classes: dict[str, int] = {}
    images: dict[str, int] = {}
    lists = [
        {
            "n_way": one.shape.n_way,
            "n_shot": [one.shape.least_shot, one.shape.n_shot] if one.shape.least_shot else one.shape.n_shot,
            "n_query": one.shape.n_query,
            "seed": one.seed, "digest": one.digest,
            "tasks": [
                [_entry(name, paths, one.shape.n_query, classes, images) for name, paths in task] for task in one.tasks
            ],
        }
        for one in task_lists.lists
    ]  # fmt: skip
    content = {
        "format": FORMAT,
        "version": OWN_SHOTS if any(one.shape.least_shot for one in task_lists.lists) else EQUAL_SHOTS,
        "dataset": task_lists.dataset,
        "classes": list(classes),
        "images": list(images),
        "lists": lists,
    }
    write_bytes_atomically(path, json.dumps(content, separators=(",", ":")).encode())


def _entry(name: str, paths: Sequence[str], n_query: int, classes: dict[str, int], images: dict[str, int]) -> list[Any]:
    places = [images.setdefault(path, len(images)) for path in paths]
    return [classes.setdefault(name, len(classes)), places[:-n_query], places[-n_query:]]


def read_task_lists(path: Path) -> TaskLists:
    """Read and check a file of tasks.

    Raises:
        DataError: not there, not such a file, or tasks that cannot be; names the list and the task.
    """
    try:
        content = read_object(path)
        if content.get("format") != FORMAT:
            raise ValueError(f'it does not say "format": "{FORMAT}"')
        if content["version"] not in VERSIONS:
            raise ValueError(f"version {content['version']}; this release reads {' and '.join(map(str, VERSIONS))}")
        classes, images = _names(content, "classes"), _names(content, "images")
        lists = tuple(_task_list(one, classes, images, f"list {place}") for place, one in enumerate(content["lists"]))
        if not lists or len({one.shape for one in lists}) != len(lists):
            raise ValueError("it needs at least one list, and no two of one shape")
        dataset = content["dataset"]
        if not isinstance(dataset, str) or not dataset or "/" in dataset or dataset.startswith("."):
            raise ValueError(f'"dataset" is {json.dumps(dataset)}; it must be the name of a folder')
    except OSError as error:
        raise DataError(f"{printable(path)}: this task list cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(
            f"{printable(path)}: not a task list: {reason}. Make one with: {command('prepare_dataset')} tasks "
            "--config CONFIG.json"
        ) from error
    return TaskLists(dataset, lists)


def _names(content: Mapping[str, Any], key: str) -> list[str]:
    names = content[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'"{key}" must be a list of names')
    return names


def _task_list(content: Mapping[str, Any], classes: Sequence[str], images: Sequence[str], where: str) -> TaskList:
    n_way, shots, n_query = given = [content[key] for key in ("n_way", "n_shot", "n_query")]
    *least, most = shots if isinstance(shots, list) and len(shots) == 2 else [shots]
    numbers = [n_way, most, n_query, *least]
    are_counts = all(isinstance(number, int) and number > 0 for number in numbers)
    if not are_counts or (least and not least[0] < most <= len(images)):
        raise ValueError(
            f"{where}: n_way, n_shot and n_query are {json.dumps(given)}, but must be whole numbers above 0; n_shot "
            f"may be two, the fewest and the most, as [1, 5], up to the {len(images)} images there are"
        )
    shape = EpisodeShape(*numbers)
    if not content["tasks"]:
        raise ValueError(f"{where} has no tasks")
    tasks = tuple(_task(task, shape, classes, images, f"{where}, task {i}") for i, task in enumerate(content["tasks"]))
    return TaskList(shape, tasks, content.get("seed"), content.get("digest", ""))


def _task(
    content: Sequence[Any], shape: EpisodeShape, classes: Sequence[str], images: Sequence[str], where: str
) -> tuple[ClassImages, ...]:
    shots, queries = {len(support) for _, support, _ in content}, {len(query) for _, _, query in content}
    fitting = range(shape.least_shot or shape.n_shot, shape.n_shot + 1)
    if len(content) != shape.n_way or queries != {shape.n_query} or not all(shot in fitting for shot in shots):
        raise ValueError(f"{where} is not of {shape}")
    flat = [place for _, support, query in content for place in [*support, *query]]
    ranks = [rank for rank, _, _ in content]
    for kind, places, names in (("a class", ranks, classes), ("an image", flat, images)):
        if not all(isinstance(place, int) and 0 <= place < len(names) for place in places):
            raise ValueError(f"{where} names {kind} outside of the {len(names)} there are")
        if len(set(places)) != len(places):
            raise ValueError(f"{where} has {kind} twice")
    return tuple(
        (classes[rank], tuple(images[place] for place in [*support, *query])) for rank, support, query in content
    )
