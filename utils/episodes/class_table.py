"""The classes of a split as arrays, from which whole meta-batches are gathered at once."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.episodes.drawing import EpisodeIndices


@dataclass(frozen=True)
class ClassTable:
    """The classes of one split and where their images are."""

    names: tuple[str, ...]
    sizes: np.ndarray
    """int64 (classes,), images per class."""
    starts: np.ndarray
    """int64 (classes,), place of each class's first image in `images`."""
    images: np.ndarray
    """int64 (images of the split,), rank in the packed file."""

    @classmethod
    def of(cls, images_by_class: Mapping[str, Sequence[int]]) -> "ClassTable":
        """Build the table of class name -> ranks of its images."""
        sizes = np.array([len(images) for images in images_by_class.values()], dtype=np.int64)
        return cls(
            names=tuple(images_by_class),
            sizes=sizes,
            starts=np.cumsum(sizes) - sizes,
            images=np.array([rank for images in images_by_class.values() for rank in images], dtype=np.int64),
        )

    def digest(self, image_path: Callable[[int], str]) -> str:
        """sha256 of the names of the classes and, in their order, of their images.

        Args:
            image_path: rank of an image -> its path.
        """
        ends = self.starts + self.sizes
        classes = sorted(
            (name, [image_path(rank) for rank in self.images[start:end].tolist()])
            for name, start, end in zip(self.names, self.starts, ends, strict=True)
        )
        return hashlib.sha256(json.dumps(classes).encode()).hexdigest()

    def ranks(self, drawn: EpisodeIndices) -> np.ndarray:
        """Return the rank of each image of these episodes in the packed file: int64 (B, N, K+Q), -1 where none is."""
        ranks = self.images[self.starts[drawn.classes][:, :, None] + drawn.images]
        return np.where(drawn.images < 0, -1, ranks)
