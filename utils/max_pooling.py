"""2-d max-pooling that keeps only the places of the maxima for second order, and none of its input.

    forward           y[p] = x[i(p)],  i(p) the first place of the maximum of window p
    backward          g[p] goes to place i(p)
    double backward   of a cotangent v of that: v[i(p)]

torch's own double backward also makes, and adds, a map of zeros for the input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def max_pool(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Pool x (n, C, H, W) over windows that do not overlap, as `F.max_pool2d` does: (n, C, H // h, W // w)."""
    return _MaxPool.apply(x, window)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int]) -> Tensor:
        out, places = F.max_pool2d(x, window, return_indices=True)
        ctx.save_for_backward(places)
        ctx.window, ctx.shape, ctx.strides = window, x.shape, x.stride()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _MaxPoolBackward.apply(grad, *ctx.saved_tensors, ctx.window, ctx.shape, ctx.strides), None


class _MaxPoolBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, places: Tensor, window: tuple[int, int], shape: torch.Size, strides: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(places)
        shape_only = torch.empty_strided(shape, strides, dtype=grad.dtype, device=grad.device)  # nobody reads its values
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, shape_only, window, window, [0, 0], [1, 1], False, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        if cotangent.is_contiguous(memory_format=torch.channels_last):
            pixels, wanted = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (cotangent, places))
            values = pixels.gather(1, wanted).unflatten(1, places.shape[2:]).permute(0, 3, 1, 2)
        else:
            values = cotangent.flatten(2).gather(2, places.flatten(2)).unflatten(2, places.shape[2:])
        return values, None, None, None, None
