"""The head of ProtoMAML, made of the class means of the support features.

    W_c = 2 mean(f_c), b_c = -|mean(f_c)|^2 over the support features f_c of class c, so that
    logit_c = |f|^2 - |f - mean(f_c)|^2: up to a constant the squared Euclidean distance of ProtoNet

Source: Snell et al. 2017, equation 8 (prototypes); Triantafillou et al. 2020, section 3 (ProtoMAML).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_learning.heads.base import Head
from utils.registry import register_head


class PrototypeHead(Head):
    """The linear head whose logits are squared distances to the class means."""

    uses_features = True

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return the head of these support features; shapes as in `Head.make`."""
        # Sums by a product, so that labels may come in any order and classes differ in size.
        members = F.one_hot(labels, n_way).to(features.dtype)  # (B, N*K, N)
        prototypes = torch.bmm(members.transpose(1, 2), features) / members.sum(1).unsqueeze(-1)
        return {"head.weight": 2 * prototypes, "head.bias": -prototypes.square().sum(-1)}


register_head(
    "prototypes",
    PrototypeHead,
    meaning="the class means of the support features, for any number of ways: ProtoMAML; without inner steps ProtoNet",
)
