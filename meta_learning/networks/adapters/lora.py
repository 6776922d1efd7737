"""LoRA: a product of two thin matrices beside the weight of a layer.

    y = W x + U D x,   D (r, inputs), U (outputs, r), U = 0 at the start

Of a convolution D is one of the same kernel to r channels, U a 1x1 convolution. With r = min(inputs, outputs) U D may
be any matrix: any update of W. The scale alpha / r of the paper is the inner learning rate's. D and U are meta-learned,
and adapted by each task.

Source: Hu et al. 2022, "LoRA: Low-rank adaptation of large language models", section 4.1.
"""

import torch
from torch import Tensor, nn

from meta_learning.networks.adapters.base import Adapter, convolution_like
from utils.registry import register_adapter_kind


class LoRA(Adapter):
    """A low-rank update beside a linear layer or convolution.

    Args:
        rank: r.
    """

    adapts = ("down.weight", "up.weight")
    title = "LoRA"

    def __init__(self, layer: nn.Module, *, rank: int) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.down = convolution_like(
                layer, layer.in_channels, rank, layer.kernel_size, stride=layer.stride, padding=layer.padding,
                dilation=layer.dilation,
            )  # fmt: skip
            self.up = convolution_like(layer, rank, layer.out_channels, 1)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return out + U D x."""
        return out + self.up(self.down(x))

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return W + U D, and the bias."""
        return weight + torch.tensordot(self.up.weight.flatten(1), self.down.weight, 1), bias


register_adapter_kind(
    "lora",
    LoRA,
    reads={"rank": "adapter_rank"},
    meaning="a product of two matrices, of `adapter_rank`, beside each weight (LoRA)",
)
