"""Where the weights of the linear head come from at the start of an episode.

    learned      meta-parameters of the network, for one number of ways
    zero         W = 0, b = 0
    prototypes   W_c = 2 mean(f_c), b_c = -|mean(f_c)|^2 over the support features f_c of class c, so that
                 logit_c = |f|^2 - |f - mean(f_c)|^2: up to a constant the squared Euclidean distance of ProtoNet

The last two are made per episode and never saved; the number of ways may then differ from episode to episode.

Source: Snell et al. 2017, equation 8 (prototypes); Triantafillou et al. 2020, section 3 (ProtoMAML); Kao et al. 2022
(zero head).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor


def zero_head(features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
    """Return "head.weight" (B, N, D) and "head.bias" (B, N) of zeros, like features (B, n, D), ready to be adapted."""
    # With W = 0 the gradient at the features, W^T (softmax - label), is 0: the first step moves the head alone.
    n_tasks, _, n_features = features.shape
    return {
        "head.weight": features.new_zeros(n_tasks, n_way, n_features).requires_grad_(),
        "head.bias": features.new_zeros(n_tasks, n_way).requires_grad_(),
    }


def prototype_head(features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
    """Return the head of ProtoMAML; differentiable with respect to the features.

    Args:
        features: (B, N*K, D) of the support images.
        labels: int64 (B, N*K), 0..N-1, each at least once.
    Returns:
        "head.weight" (B, N, D) and "head.bias" (B, N).
    """
    # Sums by a product, so that labels may come in any order and classes differ in size.
    members = F.one_hot(labels, n_way).to(features.dtype)  # (B, N*K, N)
    prototypes = torch.bmm(members.transpose(1, 2), features) / members.sum(1).unsqueeze(-1)
    return {"head.weight": 2 * prototypes, "head.bias": -prototypes.square().sum(-1)}


@dataclass(frozen=True)
class Head:
    """Where the weights of the head come from: what the inner loop asks of a value of the key `head`."""

    make: Callable[[Tensor, Tensor, int], dict[str, Tensor]] | None
    """Make(support features (B, N*K, D), labels, N) -> "head.weight" and "head.bias"; None: meta-parameters."""
    uses_features: bool = False
    """Whether `make` reads the features, which costs a pass; else it is given none of them, (B, 0, D)."""


HEADS: Mapping[str, Head] = MappingProxyType(
    {"learned": Head(None), "zero": Head(zero_head), "prototypes": Head(prototype_head, uses_features=True)}
)
"""Value of the key `head` -> the head."""
