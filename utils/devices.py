"""From the key gpu_to_use to a torch device."""

import logging
import os
from typing import TYPE_CHECKING

from utils.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def check_gpu_ids(gpu_to_use: str) -> None:
    """Refuse several GPUs before anything slow starts. Needs no torch.

    Raises:
        ConfigError: more than one id; training on several GPUs is not there yet.
    """
    if len(_ids(gpu_to_use)) > 1:
        raise ConfigError(
            f'gpu_to_use: "{gpu_to_use}" names several GPUs; an experiment uses one. Give one of the ids.'
        )


def choose_device(gpu_to_use: str) -> "torch.device":
    """The GPU of that id; for `auto` the first one, else the CPU. Without CUDA an id is one notice and the CPU.

    Args:
        gpu_to_use: `auto`, `all`, `cpu`, or ids separated by commas.
    Raises:
        ConfigError: an id that this machine does not have (names those it has), or several GPUs.
    """
    import torch

    check_gpu_ids(gpu_to_use)
    if gpu_to_use == "cpu":
        return torch.device("cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        if gpu_to_use != "auto":
            log.info("gpu_to_use %s: this machine has no CUDA device; running on the CPU.", gpu_to_use)
        return torch.device("cpu")
    if gpu_to_use == "all" and available > 1:
        raise ConfigError(f'gpu_to_use: "all" means {available} GPUs here; an experiment uses one. Give one id.')
    chosen = next(iter(_ids(gpu_to_use)), 0)
    if chosen >= available:
        names = ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(available))
        raise ConfigError(f"gpu_to_use: there is no GPU {chosen} on this machine; there are: {names}.")
    return torch.device("cuda", chosen)


def make_deterministic() -> None:
    """Let CUDA use only operations that give the same bits every time. Call it before the first use of the GPU.

    Warnings instead of errors: torch calls the backward of max-pooling not deterministic, as overlapping windows add to one
    pixel in any order; ours do not overlap.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def describe_device(device: "torch.device") -> str:
    """Name of the device for people, e.g. 'cuda:0 (NVIDIA H200)' or 'cpu, 2 threads'."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads"


def _ids(gpu_to_use: str) -> set[int]:
    return set() if gpu_to_use in ("auto", "all", "cpu") else {int(part) for part in gpu_to_use.split(",")}
