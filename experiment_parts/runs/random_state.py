"""PyTorch's global random state as tensors. Episodes and dropout do not use it (they follow from their index)."""

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "rng."
"""Of the names of its tensors in a checkpoint."""


def random_state_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return uint8 states of the CPU generator and, on CUDA, of the device's."""
    states = {f"{PREFIX}cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{PREFIX}cuda"] = torch.cuda.get_rng_state(device)
    return states


def without_random_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that are the learner's."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}


def restore_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators from a checkpoint's tensors; a state of a kind of device that is not in use is left out."""
    if f"{PREFIX}cpu" in tensors:
        torch.set_rng_state(tensors[f"{PREFIX}cpu"].cpu())
    if f"{PREFIX}cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"{PREFIX}cuda"].cpu(), device)
