"""How much each task of a meta-batch counts, where the outer loss is not their mean.

The outer loss F of the losses L_1 ... L_B is descended as the weighted mean of the losses, w_b = B dF/dL_b being
constants, which has the same gradient. The L_b are computed first, so that tasks may be computed in chunks, or with
recomputed steps, as ever.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_learning.outer_losses.base import OuterLoss
from utils.episodes.source import Episodes
from utils.errors import ConfigError


@dataclass(frozen=True)
class WeightedEpisodes:
    """B tasks with the right answers, and how much each of them counts."""

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    seeds: Tensor
    task_weights: Tensor
    """(B,), of mean 1 where the outer loss is a weighted mean."""
    n_way: int


def weighted(
    episodes: Episodes, losses: Tensor, outer_loss: OuterLoss
) -> tuple[WeightedEpisodes, Tensor, dict[str, Tensor]]:
    """Return the tasks with the weights that the outer loss gives them, the outer loss, and the gradients of its own
    parameters, by name.

    Args:
        losses: (B,), of the tasks.
    Raises:
        ConfigError: the outer loss is not one number.
    """
    own = {name: parameter for name, parameter in outer_loss.named_parameters() if parameter.requires_grad}
    leaf = losses.detach().requires_grad_()
    with torch.enable_grad():
        value = outer_loss(leaf)
    if value.shape != ():
        raise ConfigError(
            f'"outer_loss": {type(outer_loss).__name__} returns a tensor of shape {tuple(value.shape)} of the tasks\' '
            "losses (B,), but must return one number, of shape ()"
        )
    of_losses, *of_own = torch.autograd.grad(value, [leaf, *own.values()], allow_unused=True, materialize_grads=True)
    tasks = WeightedEpisodes(
        episodes.support_images, episodes.support_labels, episodes.query_images, episodes.query_labels, episodes.seeds,
        of_losses * len(losses), episodes.n_way,
    )  # fmt: skip
    return tasks, value.detach(), dict(zip(own, of_own, strict=True))
