"""The head of ProtoMAML, made of the class means of the support features.

    W_c = 2 t mean(f_c), b_c = -t |mean(f_c)|^2 over the support features f_c of class c, so that
    logit_c = t |f|^2 - t |f - mean(f_c)|^2: up to a constant the squared Euclidean distance of ProtoNet, times t


Source: Snell et al. 2017, equation 8 (prototypes); Triantafillou et al. 2020, section 3 (ProtoMAML).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_learning.heads.base import Head
from utils.registry import Key, register_head


class PrototypeHead(Head):
    """The linear head whose logits are squared distances to the class means.

    Args:
        n_features: D.
        scale: t.
    """

    uses_features = True

    def __init__(self, n_features: int, *, scale: float = 1.0) -> None:
        super().__init__(n_features)
        self.scale = scale

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return the head of these support features; shapes as in `Head.make`."""
        # Sums by a product, so that labels may come in any order and classes differ in size.
        members = F.one_hot(labels, n_way).to(features.dtype)  # (B, N*K, N)
        prototypes = torch.bmm(members.transpose(1, 2), features) / members.sum(1).unsqueeze(-1)
        # Distances in 64 dimensions begin so large that a softmax sees nothing but the nearest class, and the support
        # loss of prototypes, each the mean of its own images, so small that no inner step does anything.
        return {"head.weight": 2 * self.scale * prototypes, "head.bias": -self.scale * prototypes.square().sum(-1)}


register_head(
    "prototypes",
    PrototypeHead,
    keys={
        "scale": Key(
            1.0,
            "What squared distances to the class means are multiplied by; below 1, adaptation has more to learn.",
            gt=0.0,
        )
    },
    meaning="the class means of the support features, for any number of ways: ProtoMAML; without inner steps ProtoNet",
)
