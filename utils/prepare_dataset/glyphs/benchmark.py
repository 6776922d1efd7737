"""The fixed test tasks of a glyph domain, drawn from a seed, and what nearest neighbour on pixels makes of them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import WAYS, EpisodeIndices, EpisodeShape, draw_episodes
from utils.episodes.randomness import below, random_words
from utils.images.folders import scan
from utils.metrics import summarise

SEED, N_TASKS = 0, 1000
SHAPES = {
    "5way_1shot": EpisodeShape(5, 1, 3),
    "5way_5shot": EpisodeShape(5, 5, 1),
    "20way_1shot": EpisodeShape(20, 1, 3),
}
"""Name of a list -> ways, shots and queries: a class of four images has one for support and three for queries."""
OTHER_DOMAINS: dict[str, dict[str, Any]] = {
    "omniglot_dataset": {"sets_are_pre_split": False},
    "synthetic_strokes": {"sets_are_pre_split": False, "train_val_test_split": [0.6, 0.15, 0.25]},
}
"""Datasets that are domains beside the glyphs -> config keys that say which of their classes are test."""
VARYING = "varying"
VARYING_WAYS, VARYING_SHOTS = range(5, 21), (1, 5)
TOO_EASY = 0.95
"""Accuracy of nearest neighbour at 5 ways and 1 shot from which on a domain is none of the matrix."""

Lists = dict[str, dict[EpisodeShape, EpisodeIndices]]
"""Name of a list -> shape -> its tasks."""


@dataclass(frozen=True)
class TestImages:
    """The test classes of a dataset and their images, by name."""

    __test__ = False

    classes: Mapping[str, Sequence[int]]
    """Name -> places of its images in `paths`."""
    paths: Sequence[str]
    """Below the dataset's folder."""

    @classmethod
    def of(cls, paths_of: Mapping[str, Sequence[str]]) -> "TestImages":
        """Those of class name -> paths."""
        ends = np.cumsum([len(paths) for paths in paths_of.values()]).tolist()
        places = [range(end - len(paths), end) for paths, end in zip(paths_of.values(), ends, strict=True)]
        return cls(dict(zip(paths_of, places, strict=True)), list(itertools.chain(*paths_of.values())))

    @classmethod
    def of_folder(cls, dataset_folder: Path) -> "TestImages":
        """Those of the folder `test`."""
        folders = [folder for folder in scan(dataset_folder)[0] if folder.path.startswith("test/")]
        return cls.of({folder.path: list(map(folder.path_of, folder.files)) for folder in folders})

    def table(self, shape: EpisodeShape) -> ClassTable:
        """Those classes that have images enough for a shape."""
        return ClassTable.of({name: ranks for name, ranks in self.classes.items() if len(ranks) >= shape.least_images})


def fixed_tasks(images: TestImages) -> Lists:
    """Draw the four lists; a list is left out where too few classes have images enough for it.

    The varying one has 5 to 20 ways, and 1 to 5 shots for each class of a task, up to its images but one.
    """
    lists: Lists = {name: {shape: _draw(images, shape, range(N_TASKS))} for name, shape in _shapes_of(images)}
    least, most = VARYING_SHOTS
    ways = VARYING_WAYS[0] + below(random_words(SEED, "test", range(N_TASKS), WAYS, 1)[:, 0], len(VARYING_WAYS))
    varying = {}
    for way in VARYING_WAYS:
        shape = EpisodeShape(way, most, 1, least)
        if len(images.table(shape).names) >= way:
            varying[shape] = _draw(images, shape, np.flatnonzero(ways == way).tolist())
    return lists | ({VARYING: varying} if varying else {})


def _shapes_of(images: TestImages) -> list[tuple[str, EpisodeShape]]:
    return [(name, shape) for name, shape in SHAPES.items() if len(images.table(shape).names) >= shape.n_way]


def _draw(images: TestImages, shape: EpisodeShape, indices: Sequence[int]) -> EpisodeIndices:
    sizes = images.table(shape).sizes
    return draw_episodes(seed=SEED, split="test", indices=indices, class_sizes=sizes, shape=shape, rotate=False)


def small_pixels(dataset_folder: Path, images: TestImages) -> np.ndarray:
    """Return all test images grey and 28 x 28: float32 (images, 784), 0..1."""
    return np.stack([_small(dataset_folder / path) for path in images.paths])


def _small(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((28, 28), Image.Resampling.BOX), np.float32).ravel() / 255


def nearest_neighbour(pixels: np.ndarray, table: ClassTable, shape: EpisodeShape, tasks: EpisodeIndices) -> np.ndarray:
    """Return the accuracy in each task of taking the class of the nearest support image, by Euclid: float (B,).

    Args:
        pixels: (images, features).
        table: of the classes that the tasks are of.
    """
    drawn = pixels[table.ranks(tasks)]  # (B, N, K+Q, features)
    support, query = (
        part.reshape(len(drawn), -1, part.shape[-1])
        for part in (drawn[:, :, : shape.n_shot], drawn[:, :, shape.n_shot :])
    )
    distances = (support**2).sum(-1)[:, None] - 2 * query @ support.transpose(0, 2, 1)  # (B, N*Q, N*K)
    labels = np.repeat(np.arange(shape.n_way), shape.n_query)
    return (distances.argmin(-1) // shape.n_shot == labels).mean(axis=1)


def by_pixels(dataset_folder: Path, images: TestImages) -> dict[str, tuple[float, float]]:
    """Return name of a list of one shape -> mean accuracy of nearest neighbour on its tasks, and 95 % interval."""
    shapes, found = _shapes_of(images), {}
    pixels = small_pixels(dataset_folder, images) if shapes else np.zeros((0, 0))
    for name, shape in shapes:
        tasks = _draw(images, shape, range(N_TASKS))
        summary = summarise(nearest_neighbour(pixels, images.table(shape), shape, tasks).tolist())
        found[name] = summary.mean, summary.ci95 or 0.0
    return found


def is_too_easy(found: Mapping[str, Sequence[float]]) -> bool:
    """Whether a domain is none of the matrix: by `by_pixels` of its 5-way 1-shot tasks."""
    return found.get("5way_1shot", [0.0])[0] > TOO_EASY


def pixel_lines(found: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a line for each list of `by_pixels`."""
    easy = f"; too easy for the matrix (above {100 * TOO_EASY:.0f} %)" if is_too_easy(found) else ""
    return [
        f"nearest neighbour on pixels, {name}: {100 * mean:.1f} ± {100 * ci95:.1f} %"
        + (easy if name == "5way_1shot" else "")
        for name, (mean, ci95) in found.items()
    ]
