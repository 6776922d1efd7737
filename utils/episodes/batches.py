"""Episodes as tensors: a batch on the device, and what of it can be prepared without the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.episodes.drawing import EpisodeIndices, EpisodeShape


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes of N way, K shot, Q query; images in class order: the K (or Q) images of class 0 first.

    In a regression there are no classes: N is 1, K and Q count points, and labels are real numbers.
    """

    support_images: Tensor
    """float (B, N*K, C, H, W), normalised, on the device."""
    support_labels: Tensor
    """int64 (B, N*K), 0..N-1; float (B, K, D) in a regression."""
    query_images: Tensor
    """float (B, N*Q, C, H, W)."""
    query_labels: Tensor
    """int64 (B, N*Q); float (B, Q, D) in a regression."""
    seeds: Tensor
    """int64 (B,) on the device: a number per episode that keys what else is random in it."""
    n_way: int
    n_shot: int
    n_query: int
    split: str
    indices: tuple[int, ...]
    """Episode numbers, on the host."""
    class_ids: np.ndarray
    """int64 (B, N), on the host: rank of each class in the split's list of classes."""
    training_classes: Tensor | None = None
    """int64 (B, N): which of all training classes each is, a class of its own in each turn; None: nobody asks."""


def rotate_by_quarter_turns(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn each image counter-clockwise by its own number of quarter turns, as numpy.rot90 does.

    Args:
        images: (..., H, W) with H = W.
        quarter_turns: int64, values 0..3, broadcast against images.
    """
    images = torch.where(quarter_turns >= 2, images.flip(-2, -1), images)
    return torch.where(quarter_turns % 2 == 1, images.transpose(-2, -1).flip(-2), images)


@dataclass(frozen=True)
class PreparedEpisodes:
    """What can be made of an episode batch without the device, for `FewShotData.finish`."""

    split: str
    indices: tuple[int, ...]
    shape: EpisodeShape
    drawn: EpisodeIndices
    numbers: Tensor
    """int64, on the host: ranks of the images, quarter turns of the classes, seeds of the episodes."""
    augmentation: dict[str, Tensor]
    """"support" and "query", where they are augmented -> parameters, on the host."""
    images: Tensor | None
    """uint8 (B*N*(K+Q), C, H, W), on the host; None where they are gathered on the device."""
