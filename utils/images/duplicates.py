"""Images that are in a dataset more than once: harmless within a class, a leak from training to test between splits.

Needs no torch.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.images.folders import ImageClass
from utils.words import printable

logger = logging.getLogger(__name__)

IMAGES_READ_AT_ONCE = 4096


def content_digest(packed_file: Path, n_images: int, image_bytes: int) -> tuple[str, list[list[int]]]:
    """Read a packed file once.

    Returns:
        (sha256 of all of it, ranks of images with equal pixels, a list per picture that is there more than once).
    """
    whole = hashlib.sha256()
    ranks_of: dict[bytes, list[int]] = defaultdict(list)
    with open(packed_file, "rb") as file:
        for first in range(0, n_images, IMAGES_READ_AT_ONCE):
            block = file.read(IMAGES_READ_AT_ONCE * image_bytes)
            whole.update(block)
            for rank in range(first, min(first + IMAGES_READ_AT_ONCE, n_images)):
                start = (rank - first) * image_bytes
                ranks_of[hashlib.blake2b(block[start : start + image_bytes], digest_size=16).digest()].append(rank)
    return whole.hexdigest(), [ranks for ranks in ranks_of.values() if len(ranks) > 1]


def identical_files(dataset_folder: Path, files: Sequence[str], candidates: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return, of images with equal pixels, those with equal files: small pictures may have equal pixels by chance.

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
    """Find the splits in which identical images are.

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
    """Return one line about an image in several splits; `paths` are in the order of `places`."""
    where = ", ".join(
        f"{printable(dataset_folder / path)} ({split})" for path, (split, _) in zip(paths, places, strict=True)
    )
    return (
        f"the same image in two splits: {where}. Take it out of one, or leave it in the last alone: --on_bad_image skip"
    )
