"""Residual adapters: a matrix beside a layer, of a convolution one for all pixels of its kernel.

    y = W * x + A x,   A (outputs, inputs), 0 at the start

A x is a 1x1 convolution at the pixels where the kernel of W is centred. A is meta-learned, and adapted by each task. In
the paper the body is fixed, A begins at zero for every task, and the head is made of class centroids: here
`adapter_base` frozen and `head` prototypes.

Source: Li et al. 2022, "Cross-domain few-shot learning with task-specific adapters", section 3 (parallel).
"""

from torch import Tensor, nn

from meta_learning.networks.adapters.base import CONVOLUTIONS, Adapter, convolution_like
from utils.registry import register_adapter_kind


class ResidualAdapter(Adapter):
    """A matrix beside a linear layer or convolution."""

    adapts = ("matrix.weight",)
    title = "residual adapters"

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.matrix = nn.Linear(layer.in_features, layer.out_features, bias=False)
        else:
            self.matrix = convolution_like(layer, layer.in_channels, layer.out_channels, 1, stride=layer.stride)
        nn.init.zeros_(self.matrix.weight)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Return whether a layer is linear, or a convolution that is centred on the pixels of its input."""
        if not Adapter.fits(layer) or not isinstance(layer, CONVOLUTIONS):
            return Adapter.fits(layer)
        reaches = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        return not isinstance(layer.padding, str) and all(2 * pad == (size - 1) * gap for size, gap, pad in reaches)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return out + A x."""
        return out + self.matrix(x)

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return W, in the middle of its kernel W + A, and the bias."""
        if not all(side % 2 for side in weight.shape[2:]):  # the taps of a dilated one lie around its middle
            raise NotImplementedError
        weight = weight.clone()
        weight[(..., *(side // 2 for side in weight.shape[2:]))] += self.matrix.weight.flatten(1)
        return weight, bias


register_adapter_kind(
    "residual",
    ResidualAdapter,
    meaning="a matrix beside each weight, of a convolution a 1x1 one (residual adapters)",
)
