"""FiLM: a scale and a shift of every channel, both zero at the start of every episode and never learned.

    y_c = (1 + scale_c) layer(x)_c + shift_c

Beside a norm, where nothing takes them out again; a batch norm would undo both on the convolution before it.

Source: Perez et al. 2018, "FiLM: Visual reasoning with a general conditioning layer", equation 2.
"""

import torch
from torch import Tensor, nn

from meta_learning.networks.adapters.base import Adapter, is_norm, output_channels
from utils.registry import register_adapter_kind


class Modulation(Adapter):
    """A scale and a shift per channel, wherever they come from."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.n_channels, self.dim = output_channels(layer)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Return whether a layer is linear, a convolution, or a norm with a weight per channel."""
        return Adapter.fits(layer) or is_norm(layer)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return both, (F,) each, for F channels."""
        raise NotImplementedError

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return (1 + scale) out + shift."""
        return modulated(out, *self.scale_and_shift(), self.dim)

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 + scale) W and (1 + scale) b + shift."""
        scale, shift = self.scale_and_shift()
        return modulated(weight[None], scale, 0 * shift, 1)[0], modulated(bias[None], scale, shift, 1)[0]


class FiLM(Modulation):
    """A scale and a shift of their own."""

    adapts = ("scale", "shift")
    title = "FiLM"

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.scale = nn.Parameter(torch.zeros(self.n_channels), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(self.n_channels), requires_grad=False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return both, (F,) each, for F channels."""
        return self.scale, self.shift


def modulated(out: Tensor, scale: Tensor, shift: Tensor, dim: int) -> Tensor:
    """Return (1 + scale) out + shift, for (F,) of each and the channels of `out` in a dimension, 1 or the last."""
    shape = (-1, *[1] * (out.dim() - 2)) if dim == 1 else (-1,)
    return (1 + scale.view(shape)) * out + shift.view(shape)


register_adapter_kind("film", FiLM, meaning="a scale and a shift per channel, from a fixed zero (FiLM)")
