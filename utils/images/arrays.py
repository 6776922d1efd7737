"""Examples that a program holds as arrays, of any type and shape, with the face of packed images."""

import glob
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.episodes.inputs import in_blocks
from utils.files.atomic_files import storage_errors
from utils.files.atomic_folders import lock
from utils.files.reading import file_digest


@dataclass(eq=False)
class ArrayImages:
    """Images in memory or mapped, with the face of `utils.images.packed.PackedImages`."""

    images: np.ndarray
    """uint8 (images, C, H, W); other examples (examples, ...) of any type."""
    names: Sequence[str]
    """Of each image, split/class/number."""

    @cached_property
    def identical(self) -> list[list[int]]:
        """Return the ranks of images with equal pixels, a list per picture that is there more than once."""
        ranks_of: dict[bytes, list[int]] = defaultdict(list)
        for rank, image in enumerate(self.images):
            ranks_of[hashlib.blake2b(image, digest_size=16).digest()].append(rank)
        return [ranks for ranks in ranks_of.values() if len(ranks) > 1]

    @cached_property
    def content_sha256(self) -> str:
        """Digest of all numbers in their order, with their type and shape."""
        digest = hashlib.sha256(f"{self.images.dtype} {self.images.shape}".encode())
        for block in in_blocks(self.images):
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of all images."""
        return self.images.nbytes

    def verify(self) -> None:
        """Do nothing: nothing has been packed that could have changed since."""

    def read(self, into_memory: bool) -> np.ndarray:
        """Return the images, which are where they are to be already."""
        return self.images

    def image_path(self, rank: int) -> str:
        """Return what stands for the path of an image."""
        return self.names[rank]


def mapped(parts: Sequence[np.ndarray], stem: Path) -> np.ndarray:
    """Put arrays (n, ...) of one type after one another into a file, once, and map it.

    Args:
        stem: of the file's path, which goes on with the digest of what is in it and their type.
    Raises:
        StorageError: no space or no permission.
    """
    digest = hashlib.sha256()
    for part in parts:
        for block in in_blocks(part):
            digest.update(np.ascontiguousarray(block))
    dtype, shape = parts[0].dtype, (sum(map(len, parts)), *parts[0].shape[1:])
    file = stem.with_name(f"{stem.name}.{digest.hexdigest()[:12]}.{dtype}")
    with storage_errors(file), lock(stem.with_name(f"{stem.name}.lock")):
        if not file.is_file() or file_digest(file) != digest.hexdigest():
            unfinished = file.with_name(f"{file.name}.unfinished")
            with open(unfinished, "wb") as out:
                os.posix_fallocate(out.fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
                for part in parts:
                    for block in in_blocks(part):
                        out.write(np.ascontiguousarray(block))
                os.fsync(out.fileno())
            unfinished.rename(file)
        for other in file.parent.glob(f"{glob.escape(stem.name)}.*.{dtype}"):
            if other != file:
                other.unlink()  # of an earlier version of these data; who has mapped it keeps it
    return np.memmap(file, dtype=dtype, mode="c", shape=shape)
