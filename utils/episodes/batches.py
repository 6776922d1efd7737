"""Episodes as tensors: a batch on the device, and what of it can be prepared without the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.episodes.drawing import EpisodeIndices, EpisodeShape
from utils.episodes.inputs import refuse_masked
from utils.errors import ConfigError


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


def episodes_from_arrays(
    support_images: Any,
    support_labels: Any,
    query_images: Any,
    query_labels: Any,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EpisodeBatch:
    """Make a batch of B episodes of arrays or tensors of one's own; nothing is normalised.

        >>> import numpy as np
        >>> from mamlkit import episodes_from_arrays
        >>> labels = np.tile([0, 1, 2], (4, 1))  # 4 tasks, 3-way 1-shot
        >>> episodes = episodes_from_arrays(np.ones((4, 3, 1, 8, 8)), labels, np.ones((4, 3, 1, 8, 8)), labels)
        >>> episodes.n_way, episodes.n_query
        (3, 1)

    Args:
        support_images, query_images: (B, n, ...), the first ones in class order.
        support_labels, query_labels: (B, n), integers 0..N-1; in a regression (B, n, D), floats.
    Raises:
        ConfigError: no finite numbers, numbers of tasks or of examples or shapes of an example that differ, labels that
            are not 0..N-1, or a mask that hides something.
    """
    given = {"support images": support_images, "support labels": support_labels}
    given |= {"query images": query_images, "query labels": query_labels}
    for name, value in given.items():
        refuse_masked(value, f"episodes_from_arrays: {name} hold", ConfigError)
    tensors = [_numbers(value, name).to(device) for name, value in given.items()]
    is_regression, n_way = _check_form(tensors)
    support_images, query_images = tensors[0].to(dtype), tensors[2].to(dtype)
    support_labels, query_labels = (labels.to(dtype if is_regression else torch.int64) for labels in tensors[1::2])
    return EpisodeBatch(
        support_images, support_labels, query_images, query_labels,
        seeds=torch.arange(len(support_images), device=device), n_way=n_way,
        n_shot=support_labels.shape[1] // n_way, n_query=query_labels.shape[1] // n_way, split="train",
        indices=tuple(range(len(support_images))), class_ids=np.zeros((len(support_images), n_way), dtype=np.int64),
    )  # fmt: skip


def _check_form(tensors: Sequence[Tensor]) -> tuple[bool, int]:
    """Return whether support images, their labels, query images and theirs are a regression, and the ways.

    Raises:
        ConfigError: shapes that do not belong together, or labels that are not 0..N-1.
    """
    if tensors[0].shape[2:] != tensors[2].shape[2:]:
        raise ConfigError(
            f"episodes_from_arrays: support images are {tuple(tensors[0].shape)} and query images "
            f"{tuple(tensors[2].shape)}; an example has one shape, behind tasks and examples of a task"
        )
    for role, images, labels in (("support", *tensors[:2]), ("query", *tensors[2:])):
        if images.shape[:2] != labels.shape[:2] or len(images) != len(tensors[0]):
            raise ConfigError(
                f"episodes_from_arrays: {role} images are {tuple(images.shape)}, their labels {tuple(labels.shape)}, "
                f"and there are {len(tensors[0])} tasks; both begin with (tasks, examples of a task)"
            )
    is_regression = tensors[1].is_floating_point()
    if is_regression and tensors[1].dim() == 2:
        raise ConfigError(
            f"episodes_from_arrays: support labels are floats of shape {tuple(tensors[1].shape)}; give integers, which "
            "classes have, or (tasks, examples, outputs) for a regression"
        )
    n_way = 1 if is_regression else int(tensors[1].max()) + 1
    known = tensors[1].unique().tolist()
    if not is_regression and not (known == list(range(n_way)) and set(tensors[3].unique().tolist()) <= set(known)):
        raise ConfigError(f"episodes_from_arrays: support labels are {known}; must be 0 to N-1, those of the query too")
    return is_regression, n_way


def _numbers(value: Any, name: str) -> Tensor:
    """Return an array as a tensor of real numbers."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"episodes_from_arrays: {name} are no array of numbers ({type(value).__name__}: {error}); give a tensor or "
            "an array; examples of several parts go through FewShotClassifier (docs/any_modality.md)"
        ) from error
    wrong = (
        "complex" if tensor.is_complex()
        else f"empty, of shape {tuple(tensor.shape)}" if not tensor.numel()
        else "" if bool(torch.isfinite(tensor).all())
        else "not finite everywhere (NaN or inf)"
    )  # fmt: skip
    if wrong:
        raise ConfigError(f"episodes_from_arrays: {name} are {wrong}; must be real numbers, at least one of them")
    return tensor


def rotate_by_quarter_turns(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn each image counter-clockwise by its own number of quarter turns, as numpy.rot90 does.

    Args:
        images: (..., H, W) with H = W.
        quarter_turns: int64, values 0..3, broadcast against images.
    """
    images = torch.where(quarter_turns >= 2, images.flip(-2, -1), images)
    return torch.where(quarter_turns % 2 == 1, images.transpose(-2, -1).flip(-2), images)


@dataclass(frozen=True)
class GatheredEpisodes:
    """What can be made of an episode batch without the device, for `FewShotData.finish`."""

    split: str
    indices: tuple[int, ...]
    shape: EpisodeShape
    drawn: EpisodeIndices
    numbers: Tensor
    """int64, on the host: ranks of the images, those of all support sets first, quarter turns of the classes, seeds of
    the episodes.
    """
    augmentation: dict[str, Tensor]
    """"support" and "query", where they are augmented -> parameters, on the host."""
    images: Tensor | None
    """uint8 (images, C, H, W), in the order of their ranks, on the host; None where they are gathered on the device."""
