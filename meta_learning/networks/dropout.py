"""Dropout whose masks follow from the episode: the same episode, inner step and layer drop the same activations
anywhere.
"""

from torch import Tensor

from meta_learning.networks.passes import Pass
from meta_learning.operations.hashed_noise import hashed_uniform

LAYERS_PER_PASS = 1024


def drop(x: Tensor, rate: float, pass_: Pass, index: int, n_tasks: int = 1, *, whole_channels: bool = False) -> Tensor:
    """Drop activations with probability `rate` and scale the rest by 1 / (1 - rate); nothing without the episodes'
    seeds.

    Args:
        x: (n, B*F, ...), tasks folded into the channels.
        index: number of the layer in the pass, so that layers have different masks.
        whole_channels: drop or keep all of an image's channel, as `nn.Dropout2d` does.
    """
    if not rate or pass_.dropout_seeds is None:
        return x
    stream = (pass_.step * 2 + int(pass_.is_query)) * LAYERS_PER_PASS + index
    per_task = x.unflatten(1, (n_tasks, -1))  # (n, B, F, ...)
    shape = (x.shape[0], *per_task.shape[2:])
    if whole_channels:
        shape = (*shape[:2], *(1 for _ in shape[2:]))
    uniform = hashed_uniform(pass_.dropout_seeds, stream, shape)  # (B, n, F, ...)
    keep = (uniform >= rate).transpose(0, 1).to(x.dtype) / (1 - rate)
    return (per_task * keep).flatten(1, 2)
