"""What all pixels and files of a dataset say together: its digest, images of one colour, and images that are there
more than once: support and query of one task within a class, a leak from training to test between splits.

Needs no torch.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.images.folders import ImageClass
from utils.words import printable

IMAGES_READ_AT_ONCE = 4096


@dataclass(frozen=True)
class Content:
    """What is found by reading all pixels once."""

    sha256: str
    same_pixels: list[list[int]]
    """Ranks of images with equal pixels, a list per picture that is there more than once."""
    one_colour: list[int]
    """Ranks of images whose pixels are all equal."""


def read_content(packed_file: Path, shape: Sequence[int]) -> Content:
    """Read a packed file once; its shape is (images, C, H, W)."""
    whole = hashlib.sha256()
    ranks_of: dict[bytes, list[int]] = defaultdict(list)
    one_colour: list[int] = []
    with open(packed_file, "rb") as file:
        for first in range(0, shape[0], IMAGES_READ_AT_ONCE):
            block = np.fromfile(file, np.uint8, IMAGES_READ_AT_ONCE * math.prod(shape[1:])).reshape(-1, *shape[1:])
            whole.update(block)
            for rank, image in enumerate(block, start=first):
                ranks_of[hashlib.blake2b(image, digest_size=16).digest()].append(rank)
            one_colour += (first + are_of_one_colour(block)).tolist()
    return Content(whole.hexdigest(), [ranks for ranks in ranks_of.values() if len(ranks) > 1], one_colour)


def are_of_one_colour(images: np.ndarray) -> np.ndarray:
    """Ranks of those of some images (n, C, H, W) whose pixels are all equal."""
    return np.flatnonzero((images.min(axis=(2, 3)) == images.max(axis=(2, 3))).all(axis=1))


def identical_files(dataset_folder: Path, files: Sequence[str], candidates: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of images with equal pixels those whose files are equal byte by byte: small pictures may look the same by chance.

    Args:
        files: path of every rank.
        candidates: groups of ranks.
    """
    groups = []
    for ranks in candidates:
        ranks_of: dict[bytes, list[int]] = defaultdict(list)
        for rank in ranks:
            ranks_of[hashlib.sha256((dataset_folder / files[rank]).read_bytes()).digest()].append(rank)
        groups += [same for same in ranks_of.values() if len(same) > 1]
    return groups


def find_leaks(
    sets: Mapping[str, Sequence[ImageClass]], identical: Sequence[Sequence[int]]
) -> tuple[list[list[tuple[str, int]]], int]:
    """Look at which splits identical images are in.

    Returns:
        (for every image in two or three splits its (split, rank), in the order of `sets`; number of images that are
        there again within one split).
    """
    split_of = (
        {rank: split for split, classes in sets.items() for c in classes for rank in c.images} if identical else {}
    )
    order = list(sets)
    leaks, again = [], 0
    for ranks in identical:
        places = sorted(
            ((split_of[rank], rank) for rank in ranks if rank in split_of),
            key=lambda place: (order.index(place[0]), place[1]),
        )
        if len({split for split, _ in places}) > 1:
            leaks.append(places)
        else:
            again += max(0, len(places) - 1)
    return leaks, again


def without_leaks(
    sets: Mapping[str, Sequence[ImageClass]], leaks: Sequence[Sequence[tuple[str, int]]]
) -> tuple[dict[str, list[ImageClass]], int]:
    """Leave images that are in several splits in the last of them alone, so that the test keeps its own.

    Returns:
        (the sets, the number of images that were left out).
    """
    left_out = {rank for places in leaks for split, rank in places if split != places[-1][0]}
    kept = {
        split: [replace(c, images=tuple(rank for rank in c.images if rank not in left_out)) for c in classes]
        for split, classes in sets.items()
    }
    return kept, len(left_out)


def leak_text(dataset_folder: Path, paths: Sequence[str], places: Sequence[tuple[str, int]]) -> str:
    """One line about an image in several splits; `paths` are in the order of `places`."""
    where = ", ".join(
        f"{printable(dataset_folder / path)} ({split})" for path, (split, _) in zip(paths, places, strict=True)
    )
    return (
        f"the same image in two splits: {where}. Take it out of one, or leave it in the last alone: --on_bad_image skip"
    )
