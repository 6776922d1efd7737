"""A head of zeros in each episode: W = 0, b = 0.

Source: Kao et al. 2022.
"""

from torch import Tensor

from meta_learning.heads.base import Head
from utils.registry import register_head


class ZeroHead(Head):
    """Begins each episode at zero."""

    classes_begin_alike = True

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return zeros like features (B, n, D)."""
        # With W = 0 the gradient at the features, W^T (softmax - label), is 0: the first step moves the head alone.
        n_tasks, _, n_features = features.shape
        return {
            "head.weight": features.new_zeros(n_tasks, n_way, n_features),
            "head.bias": features.new_zeros(n_tasks, n_way),
        }


register_head("zero", ZeroHead, meaning="zeros, for any number of ways")
