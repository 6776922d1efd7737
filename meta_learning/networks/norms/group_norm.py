"""Group norm over B tasks at once."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from meta_learning.networks.layers import Parameters
from meta_learning.networks.norms.base import AffineNorm
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from utils.errors import ConfigError
from utils.registry import register_norm_layer


class MetaGroupNorm(AffineNorm):
    """`nn.GroupNorm` for B tasks at once: each image is normalised over groups of filters. Wu & He 2018."""

    def __init__(self, n_groups: int, n_filters: int, **affine: Any) -> None:
        super().__init__(n_filters, **affine)
        self.n_groups = n_groups

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*F, H, W); "weight" and "bias" are (B, F) where the inner loop adapts them."""
        weight, bias = self.affine(params, n_tasks, pass_ or Pass(), name)
        # B*F channels in B*G neighbouring groups: none reaches over two tasks.
        return F.group_norm(x, n_tasks * self.n_groups, weight, bias, self.eps)


def build_group_norm(shape: tuple[int, int, int], norm: NormChoice, *, n_groups: int) -> MetaGroupNorm:
    """Build the layer of a feature map (F, H, W).

    Raises:
        ConfigError: the groups do not divide the filters.
    """
    if shape[0] % n_groups:
        raise ConfigError(
            f'"norm_groups" {n_groups} does not divide the {shape[0]} filters of a layer; choose a divisor'
        )
    return MetaGroupNorm(n_groups, shape[0], **norm.affine)


register_norm_layer("group_norm", build_group_norm, reads={"n_groups": "norm_groups"}, statistics=("transductive",))
