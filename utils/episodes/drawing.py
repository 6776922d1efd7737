"""Which classes and images make up episode i: a pure function of (seed, split, i), on the host, in numpy."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.episodes.randomness import below, random_words, sample_without_replacement

SPLITS = ("train", "val", "test")

_CLASSES, _ROTATIONS, _IMAGES, _SEEDS, _SHAPE, SUPPORT_AUGMENTATION, QUERY_AUGMENTATION, WAYS, _SHOTS = range(9)
"""Purposes of an episode's draws: asking for more images never changes the classes."""


@dataclass(frozen=True)
class EpisodeShape:
    """How large an episode is: N way, K shot, Q query."""

    n_way: int
    n_shot: int
    n_query: int
    least_shot: int | None = None
    """Each class of an episode has a number of support images of its own, from this one to K; None: all have K."""

    @property
    def n_images(self) -> int:
        """K+Q, images of each class, the most that one has."""
        return self.n_shot + self.n_query

    @property
    def least_images(self) -> int:
        """Images that a class needs to be drawn."""
        return (self.least_shot or self.n_shot) + self.n_query

    @property
    def shots(self) -> int | str:
        """K; "1-5" where classes have 1 to 5."""
        return f"{self.least_shot}-{self.n_shot}" if self.least_shot else self.n_shot

    def __str__(self) -> str:
        return f"{self.n_way} way {str(self.shots).replace('-', ' to ')} shot {self.n_query} query"


def combinations(ways: Sequence[int], shots: Sequence[int], queries: Sequence[int]) -> tuple[EpisodeShape, ...]:
    """Return every shape of these ways, shots and queries; the ways change slowest."""
    return tuple(EpisodeShape(*numbers) for numbers in itertools.product(ways, shots, queries))


def training_shape(shapes: Sequence[EpisodeShape], seed: int, meta_batch: int) -> EpisodeShape:
    """Draw the shape that all episodes of a meta-batch have: a pure function of (seed, meta_batch).

    Args:
        shapes: equally likely; a single one is returned as it is.
        meta_batch: number of the meta-batch, from 0 on.
    """
    if len(shapes) == 1:
        return shapes[0]
    return shapes[int(below(random_words(seed, "train", [meta_batch], _SHAPE, 1), len(shapes))[0, 0])]


@dataclass(frozen=True)
class EpisodeIndices:
    """B episodes as numbers. N way, K shot, Q query."""

    classes: np.ndarray
    """int64 (B, N), distinct within an episode; position = episode label."""
    images: np.ndarray
    """int64 (B, N, K+Q), place within the class, distinct; the first K are the support images. -1: none, where a class
    has fewer shots than K.
    """
    rotations: np.ndarray
    """int64 (B, N), quarter turns 0..3 of all images of the class; zeros without rotation."""
    seeds: np.ndarray
    """int64 (B,), not negative: one number per episode for whatever else is random in it, such as dropout masks."""

    def at(self, places: Sequence[int]) -> "EpisodeIndices":
        """Return the episodes at these places."""
        rows = np.asarray(places)
        return EpisodeIndices(self.classes[rows], self.images[rows], self.rotations[rows], self.seeds[rows])

    def support_sizes(self, n_shot: int) -> np.ndarray:
        """Return how many support images each episode has: int64 (B,)."""
        return (self.images[:, :, :n_shot] >= 0).sum(axis=(1, 2))


def draw_episodes(
    *,
    seed: int,
    split: str,
    indices: Sequence[int],
    class_sizes: np.ndarray,
    shape: EpisodeShape,
    rotate: bool,
    n_tasks: int | None = None,
) -> EpisodeIndices:
    """Draw the episodes with these numbers: classes without replacement, then images of each without replacement.

    Args:
        seed: 0..2**56-1.
        split: "train", "val" or "test"; each has a stream of its own.
        indices: B episode numbers from 0 on.
        class_sizes: int64 (number of classes,), images per class of the split.
        shape: N way, K shot, Q query.
        rotate: draw one of four quarter turns per class.
        n_tasks: size of a pool of fixed tasks: episode i has the classes, images and rotations of task i mod
            n_tasks, and a seed of its own. None: no pool.
    Raises:
        ValueError: fewer classes than N, a drawn class with too few images, an unknown split.
    """
    class_sizes = np.asarray(class_sizes, dtype=np.int64)
    n_episodes, n_way, n_images = len(indices), shape.n_way, shape.n_images
    tasks = np.asarray(indices, dtype=np.int64) % n_tasks if n_tasks else indices
    classes = sample_without_replacement(
        random_words(seed, split, tasks, _CLASSES, n_way), np.full(n_episodes, len(class_sizes))
    )
    words = random_words(seed, split, tasks, _IMAGES, n_way * n_images).reshape(n_episodes * n_way, n_images)
    sizes = class_sizes[classes]
    if shape.least_shot is None:
        images = sample_without_replacement(words, sizes.reshape(-1)).reshape(n_episodes, n_way, n_images)
    else:
        bounds = np.minimum(shape.n_shot, sizes - shape.n_query) - shape.least_shot + 1
        shots = shape.least_shot + below(random_words(seed, split, tasks, _SHOTS, n_way), bounds)
        images = _with_shots(shape, shots, words, sizes)
    rotations = np.zeros((n_episodes, n_way), dtype=np.int64)
    if rotate:
        rotations = below(random_words(seed, split, tasks, _ROTATIONS, n_way), 4)
    # Of the episode, not of its task: a task of a pool that comes again gets other dropout masks. 63 bits, for an
    # int64.
    seeds = (random_words(seed, split, indices, _SEEDS, 1)[:, 0] >> np.uint64(1)).astype(np.int64)
    return EpisodeIndices(classes=classes, images=images, rotations=rotations, seeds=seeds)


def _with_shots(shape: EpisodeShape, shots: np.ndarray, words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw the images of classes that have shots of their own; those of a class of K are what they are without.

    Args:
        shots: int64 (B, N), support images of each class.
        words: uint64 (B*N, K+Q).
        sizes: int64 (B, N), images that each class has.
    Returns:
        int64 (B, N, K+Q), -1 where a class has no support image.
    """
    n_drawn, sizes = shots.reshape(-1) + shape.n_query, sizes.reshape(-1)
    images = np.full(words.shape, -1)
    for count in np.unique(n_drawn).tolist():
        rows, n_support = n_drawn == count, count - shape.n_query
        drawn = sample_without_replacement(words[rows, :count], sizes[rows])
        images[rows, :n_support], images[rows, shape.n_shot :] = drawn[:, :n_support], drawn[:, n_support:]
    return images.reshape(*shots.shape, -1)


def split_classes(names: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split classes into train, val and test by the rule of the reference.

    With n classes: shuffle; the first int(f0 * n) are train, those up to int((f0 + f1) * n) val, the rest test. For
    Omniglot's 1,623 classes and seed 0 these are the very 1,150 / 50 / 423 classes of HowToTrainYourMAMLPytorch
    (data.py, load_dataset), whose legacy RandomState numpy promises never to change.

    Args:
        names: class names in rank order (sorted).
        fractions: of the classes, train and val first; a third number has no effect.
        seed: of the split, 0..2**32-1.
    Returns:
        split -> names in rank order.
    """
    # 985773 for seed 0. The reference draws this second seed first, so the split hangs on it.
    derived_seed = np.random.RandomState(seed).randint(1, 999999)
    shuffled = np.arange(len(names), dtype=np.int32)
    np.random.RandomState(derived_seed).shuffle(shuffled)
    end_of_train = int(fractions[0] * len(names))
    end_of_val = int((fractions[0] + fractions[1]) * len(names))
    parts = {
        "train": shuffled[:end_of_train],
        "val": shuffled[end_of_train:end_of_val],
        "test": shuffled[end_of_val:],
    }
    return {split: [names[rank] for rank in sorted(ranks)] for split, ranks in parts.items()}


def fitting_fractions(n_classes: int, least: Sequence[int]) -> tuple[float, float] | None:
    """Fractions for `split_classes`: 64 % train, 16 % val, 20 % test, or what the smaller splits need at least.

    Args:
        least: classes that train, val and test need.
    Returns:
        fractions for train and val; None: there are fewer classes than that.
    """
    if sum(least) > n_classes:
        return None
    n_val = max(least[1], min(int(0.16 * n_classes), n_classes - least[0] - least[2]))
    n_test = max(least[2], min(int(0.2 * n_classes), n_classes - least[0] - n_val))
    digits = len(str(n_classes)) + 2
    # In the middle between two numbers of classes, so that no rounding gives a class less.
    return round((n_classes - n_val - n_test + 0.5) / n_classes, digits), round(n_val / n_classes, digits)
