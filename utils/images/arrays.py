"""Images that are in memory already, with the face of packed ones."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, with the face of `utils.images.packed.PackedImages`."""

    images: np.ndarray
    """uint8 (images, C, H, W)."""
    names: Sequence[str]
    """Of each image, split/class/number."""

    @cached_property
    def identical(self) -> list[list[int]]:
        """Return the ranks of images with equal pixels, a list per picture that is there more than once."""
        ranks_of: dict[bytes, list[int]] = defaultdict(list)
        for rank, image in enumerate(self.images):
            ranks_of[hashlib.blake2b(image, digest_size=16).digest()].append(rank)
        return [ranks for ranks in ranks_of.values() if len(ranks) > 1]

    @property
    def n_bytes(self) -> int:
        """Size of all images."""
        return self.images.nbytes

    def verify(self) -> None:
        """Do nothing: nothing has been packed that could have changed since."""

    def read(self, into_memory: bool) -> np.ndarray:
        """Return the images, which are in memory in any case."""
        return self.images

    def image_path(self, rank: int) -> str:
        """Return what stands for the path of an image."""
        return self.names[rank]
