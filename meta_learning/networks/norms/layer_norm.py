"""Layer norm over B tasks at once."""

import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.layers import Parameters, given_or_own
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from utils.registry import register_norm_layer


class MetaLayerNorm(nn.LayerNorm, MetaNorm):
    """`nn.LayerNorm` over (C, H, W) of each image, for B tasks at once. Its weight stays 1, as in the reference."""

    def __init__(self, shape: tuple[int, int, int], *, learn_bias: bool = True) -> None:
        super().__init__(shape)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(learn_bias)

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*C, H, W) image by image; "bias" is (B, C, H, W) where it is adapted."""
        unfolded = x.unflatten(1, (n_tasks, -1))  # (n, B, C, H, W)
        # Without weight and bias, which differ from task to task; torch's function takes one for all.
        out = F.layer_norm(unfolded, self.normalized_shape, eps=self.eps)
        out = out * given_or_own(self, params, "weight", n_tasks) + given_or_own(self, params, "bias", n_tasks)
        return out.flatten(1, 2)


def build_layer_norm(shape: tuple[int, int, int], norm: NormChoice) -> MetaLayerNorm:
    """Build the layer of a feature map (F, H, W)."""
    return MetaLayerNorm(shape, learn_bias=norm.learn_bias)


register_norm_layer("layer_norm", build_layer_norm, statistics=("transductive",))
