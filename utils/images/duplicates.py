"""What the images of a dataset say together: their digest, which are of one colour, which are there more than once.

Needs no torch.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.images.decoding import one_colour_reason
from utils.images.folders import MOST_ALIKE, ImageClass
from utils.words import printable, some_of

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
    """Return the ranks of those of some images (n, C, H, W) whose pixels are all equal."""
    return np.flatnonzero((images.min(axis=(2, 3)) == images.max(axis=(2, 3))).all(axis=1))


def one_colour_text(folder: Path, paths: Sequence[str], n_images: int) -> str:
    """Return what is said of images of one colour, with what may have made a few of them so."""
    examples = [f"{path} ({one_colour_reason(folder / path)})" for path in paths[:MOST_ALIKE]]
    return f"{len(paths)} of {n_images} images are of one colour after decoding, such as {some_of(examples)}"


def identical_files(
    dataset_folder: Path, files: Sequence[str], candidates: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return, of images with equal pixels, those with equal files, and one of each file of those with several: small
    pictures may have equal pixels by chance.

    Args:
        files: path of every rank.
        candidates: groups of ranks.
    """
    groups, alike = [], []
    for ranks in candidates:
        ranks_of: dict[bytes, list[int]] = defaultdict(list)
        for rank in ranks:
            ranks_of[hashlib.sha256((dataset_folder / files[rank]).read_bytes()).digest()].append(rank)
        groups += [same for same in ranks_of.values() if len(same) > 1]
        alike += [[same[0] for same in ranks_of.values()]] if len(ranks_of) > 1 else []
    return groups, alike


def find_repeats(
    sets: Mapping[str, Sequence[ImageClass]], identical: Sequence[Sequence[int]]
) -> tuple[list[list[tuple[str, int]]], list[list[int]], list[list[int]]]:
    """Sort identical images by where they are.

    Returns:
        (for every image in two or three splits its (split, rank), in the order of `sets`; ranks of every image that is
        in a class more than once, the first of them, which may stay, first; ranks of every image that is in several
        classes of one split, one per class).
    """
    place_of = (
        {rank: (split, c.name) for split, classes in sets.items() for c in classes for rank in c.images}
        if identical
        else {}
    )
    leaks, in_one_class, in_classes = [], [], []
    for ranks in identical:
        by_class: dict[tuple[str, str], list[int]] = defaultdict(list)
        for rank in ranks:
            if rank in place_of:
                by_class[place_of[rank]].append(rank)
        ranks_of = {split: [rank for rank in ranks if place_of.get(rank, ("",))[0] == split] for split in sets}
        if sum(map(bool, ranks_of.values())) > 1:
            leaks.append([(split, rank) for split in sets for rank in ranks_of[split]])
        in_one_class += [same for same in by_class.values() if len(same) > 1]
        firsts = [[same[0] for place, same in by_class.items() if place[0] == split] for split in sets]
        in_classes += [ranks_of_one_split for ranks_of_one_split in firsts if len(ranks_of_one_split) > 1]
    return leaks, in_one_class, in_classes


def leaked(leaks: Sequence[Sequence[tuple[str, int]]]) -> set[int]:
    """Return the ranks of images in several splits that are not in the last of them, so that the test keeps its own."""
    return {rank for places in leaks for split, rank in places if split != places[-1][0]}


def without_images(sets: Mapping[str, Sequence[ImageClass]], left_out: Collection[int]) -> dict[str, list[ImageClass]]:
    """Return the sets without the images of these ranks."""
    return {
        split: [replace(c, images=tuple(rank for rank in c.images if rank not in left_out)) for c in classes]
        for split, classes in sets.items()
    }


def leak_text(dataset_folder: Path, paths: Sequence[str], places: Sequence[tuple[str, int]]) -> str:
    """Return one line about an image in several splits; `paths` are in the order of `places`."""
    where = ", ".join(
        f"{printable(dataset_folder / path)} ({split})" for path, (split, _) in zip(paths, places, strict=True)
    )
    return (
        f"the same image in two splits: {where}. Take it out of one, or leave it in the last alone: --on_bad_image skip"
    )
