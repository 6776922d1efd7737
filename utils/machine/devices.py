"""From the key gpu_to_use to a torch device."""

import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.errors import ConfigError
from utils.words import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)


def choose_device(gpu_to_use: str, place: tuple[int, int] | None = None) -> "torch.device":
    """Choose the GPU of that id; for `auto` the first one, else the CPU. Without CUDA an id is one notice and the CPU.

    Args:
        gpu_to_use: `auto`, `all`, `cpu`, or ids separated by commas.
        place: index of this process among those of its run on this machine, each of which takes the next GPU, and their
            number; None: alone.
    Raises:
        ConfigError: an id that this machine does not have (names those it has), or several GPUs for one process.
    """
    import torch

    if gpu_to_use == "cpu":
        return torch.device("cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        if gpu_to_use != "auto":
            log.info("gpu_to_use %s: this machine has no CUDA device; running on the CPU.", gpu_to_use)
        return torch.device("cpu")
    ids = gpu_ids(gpu_to_use)
    if place is None and (len(ids) > 1 or (gpu_to_use == "all" and available > 1)):
        meant = f'"all" means {available} GPUs here' if gpu_to_use == "all" else f'"{gpu_to_use}" names several GPUs'
        raise ConfigError(f"gpu_to_use: {meant}, which training and the scripts use; here it can be one. Give one id.")
    index, count = place or (0, 1)
    if ids and index >= len(ids):
        raise ConfigError(
            f'gpu_to_use: "{gpu_to_use}" names fewer GPUs than there are processes on this machine ({count}).'
        )
    chosen = ids[index] if ids else index
    check_gpus([chosen], [torch.cuda.get_device_name(index) for index in range(available)])
    return torch.device("cuda", chosen)


def make_deterministic() -> None:
    """Let CUDA use only operations that give the same bits every time. Call it before the first use of the GPU.

    Warnings instead of errors: torch calls the backward of max-pooling not deterministic, as overlapping windows add
    to one pixel in any order; ours do not overlap.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def copy_to(device: "torch.device", host: "Tensor") -> "Tensor":
    """Copy a tensor of the host to a device, for which a GPU need not be waited for: only memory that cannot be paged
    is copied meanwhile.
    """
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def clock(device: "torch.device") -> float:
    """Seconds of `time.perf_counter`, once the device has done all that it was asked for."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_device(device: "torch.device") -> str:
    """Return the name of the device for people, e.g. 'cuda:0 (NVIDIA H200)' or 'cpu, 2 threads'."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {counted(torch.get_num_threads(), 'thread')}"


def gpu_ids(gpu_to_use: str) -> list[int]:
    """Return the ids that the key names, each once; none for `auto`, `all` and `cpu`."""
    return (
        [] if gpu_to_use in ("auto", "all", "cpu") else list(dict.fromkeys(int(part) for part in gpu_to_use.split(",")))
    )


def check_gpus(wanted: Sequence[int], names: Sequence[str]) -> None:
    """Refuse an id beyond the GPUs of this machine, given by name.

    Raises:
        ConfigError: names those that are there.
    """
    for index in wanted:
        if index >= len(names):
            there = ", ".join(f"{place} ({name})" for place, name in enumerate(names))
            raise ConfigError(f"gpu_to_use: there is no GPU {index} on this machine; there are: {there}.")
