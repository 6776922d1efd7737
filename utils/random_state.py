"""PyTorch's global random state as tensors. Episodes and dropout do not use it (they follow from their index)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state_tensors(device: torch.device) -> dict[str, Tensor]:
    """uint8 states of the CPU generator and, on CUDA, of the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators; a state of a kind of device that is not in use is left out."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
