"""2-d max-pooling and leaky ReLU as one operation that keeps only what it puts out, and the places of the maxima,
for second order.

f, a leaky ReLU of slope a for negative values, is increasing, so it commutes with the maximum:

    forward           y[p] = f(x[i(p)]),  i(p) the first place of the maximum of window p
    backward          f'[p] g[p] goes to place i(p),  f'[p] = 1 where y[p] > 0, else a
    double backward   of a cotangent v of that: f'[p] v[i(p)]

torch's own double backward also makes, and adds, maps of zeros for the inputs of both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def pool_and_activate(x: Tensor, window: tuple[int, int], negative_slope: float) -> Tensor:
    """Return f(max-pooling of x) for x (n, C, H, W) over windows that do not overlap: (n, C, H // h, W // w).

    Args:
        negative_slope: a, from 0 (ReLU) to below 1.
    """
    return _PoolAndActivate.apply(x, window, negative_slope)


class _PoolAndActivate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int], negative_slope: float) -> Tensor:
        out, places = F.max_pool2d(x, window, return_indices=True)
        F.leaky_relu_(out, negative_slope)
        ctx.save_for_backward(out, places)
        ctx.setting = window, negative_slope, x.shape, x.stride()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, places = ctx.saved_tensors
        return _PoolAndActivateBackward.apply(grad, out.detach(), places, ctx.setting), None, None


class _PoolAndActivateBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        out: Tensor,
        places: Tensor,
        setting: tuple[tuple[int, int], float, torch.Size, tuple[int, ...]],
    ) -> Tensor:
        window, ctx.negative_slope, shape, strides = setting
        ctx.save_for_backward(out, places)
        shape_only = torch.empty_strided(
            shape, strides, dtype=grad.dtype, device=grad.device
        )  # nobody reads its values
        return torch.ops.aten.max_pool2d_with_indices_backward(
            times_slope(grad, out, ctx.negative_slope), shape_only, window, window, [0, 0], [1, 1], False, places
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        out, places = ctx.saved_tensors
        if cotangent.is_contiguous(memory_format=torch.channels_last):
            pixels, wanted = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (cotangent, places))
            values = pixels.gather(1, wanted).unflatten(1, places.shape[2:]).permute(0, 3, 1, 2)
        else:
            values = cotangent.flatten(2).gather(2, places.flatten(2)).unflatten(2, places.shape[2:])
        return times_slope(values, out, ctx.negative_slope), None, None, None


def times_slope(grad: Tensor, out: Tensor, negative_slope: float) -> Tensor:
    """Return f' grad; what f puts out has the sign of what it got."""
    return torch.ops.aten.leaky_relu_backward(grad, out, negative_slope, True)
