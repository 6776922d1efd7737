"""Where packed images are kept while episodes are drawn from them: on the device, in memory, or mapped from the
file.
"""

import logging

import torch
from torch import Tensor

from utils.images.arrays import ArrayImages
from utils.images.packed import PackedImages

logger = logging.getLogger(__name__)

LARGEST_PART_OF_DEVICE_MEMORY = 0.25
"""The packed images move to the device when they take no more of its free memory than this."""

LARGEST_READ_INTO_MEMORY = 2**30
"""Bytes. A larger file is mapped: reading it would take seconds, and once read it stays in the system's cache
anyway.
"""


def place_images(
    packed: PackedImages | ArrayImages, load_into_memory: bool, device: torch.device
) -> tuple[Tensor, int]:
    """Return the images as one uint8 tensor, and how many meta-batches are worth preparing ahead.

    With `load_into_memory` on a CUDA device with room for them, else in memory unless they are large, else mapped.

    Returns:
        (uint8 (images, C, H, W), meta-batches ahead: 0 where gathering costs next to nothing).
    """
    n_bytes = packed.n_bytes
    if load_into_memory and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if n_bytes <= LARGEST_PART_OF_DEVICE_MEMORY * free:
            return torch.from_numpy(packed.read(into_memory=False)).to(device), 0
        logger.info(
            "the packed images (%.1f GiB) stay outside of %s, which has %.1f GiB free",
            n_bytes / 2**30,
            device,
            free / 2**30,
        )
    if load_into_memory and n_bytes <= LARGEST_READ_INTO_MEMORY:
        return torch.from_numpy(packed.read(into_memory=True)), 1 if device.type == "cuda" else 0
    if load_into_memory:
        logger.info("the packed images (%.1f GiB) are mapped, not read into memory", n_bytes / 2**30)
    return torch.from_numpy(packed.read(into_memory=False)), 2
