"""2-d convolution whose double backward is two forward passes and one backward pass, grouped or not.

torch's own double backward walks through the groups one by one; with a task in each group that is the loop over
tasks again.

The forward pass is bilinear in input x and weights w, so with I(g, w) and W(g, x) for the gradients with respect to
x and w:

    forward           y = x * w + b
    backward          I(g, w),   W(g, x),   sum(g)
    double backward   for cotangents v of I, u of W and c of sum(g):
        with respect to g          v * w + x * u + c
        with respect to x and w    I(g, u) and W(g, v): one backward pass with v for the input and u for the weights

The double backward itself cannot be differentiated again: MAML needs second order, not third.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Geometry(NamedTuple):
    """How the kernel moves."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, dtype: torch.dtype | None = None
) -> Tensor:
    """Convolve as `F.conv2d` does, for second order.

    Args:
        x: (n, C, H, W).
        weight: (F, C / groups, k, k).
        bias: (F,).
        dtype: in which products are computed, forward and backward; sums, and everything that comes out, have that
            of x. None: that of x.
    Returns:
        (n, F, H', W').
    """
    return _Convolution.apply(x, weight, bias, geometry, dtype or x.dtype)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, list(wanted)
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, dtype: torch.dtype
    ) -> Tensor:
        narrow = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(*narrow)
        ctx.geometry = geometry
        return F.conv2d(*narrow, None if bias is None else bias.to(dtype), *geometry).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:3])
        return *_ConvolutionBackward.apply(grad, *ctx.saved_tensors, ctx.geometry, wanted), None, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        narrow = grad.to(x.dtype)
        ctx.save_for_backward(narrow, x, weight)
        ctx.geometry, ctx.dtype = geometry, grad.dtype
        ctx.set_materialize_grads(False)
        for_x, for_weight, _ = _backward(narrow, x, weight, geometry, (*wanted[:2], False))
        # A sum over the wide gradient, not by the convolution's backward, which would round it first.
        for_bias = grad.sum(dim=(0, 2, 3)) if wanted[2] else None
        return _as(grad.dtype, for_x), _as(grad.dtype, for_weight), for_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, x, weight = ctx.saved_tensors
        v, u = _as(x.dtype, v), _as(x.dtype, u)
        for_grad = _for_grad(grad, x, weight, v, u, c, ctx) if ctx.needs_input_grad[0] else None
        for_x = for_weight = None
        wanted = ctx.needs_input_grad[1] and u is not None, ctx.needs_input_grad[2] and v is not None, False
        if any(wanted):
            for_x, for_weight, _ = _backward(
                grad, x if v is None else v, weight if u is None else u, ctx.geometry, wanted
            )
        return for_grad, _as(ctx.dtype, for_x), _as(ctx.dtype, for_weight), None, None


def _as(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _for_grad(
    grad: Tensor, x: Tensor, weight: Tensor, v: Tensor | None, u: Tensor | None, c: Tensor | None, ctx: Any
) -> Tensor:
    """Return v * w + x * u + c, of which any may be missing."""
    total = None
    for images, kernels in ((v, weight), (x, u)):
        if images is not None and kernels is not None:
            part = F.conv2d(images, kernels, _as(x.dtype, c) if total is None else None, *ctx.geometry).to(ctx.dtype)
            total = part if total is None else total.add_(part)
    if total is not None:
        return total
    return torch.zeros_like(grad, dtype=ctx.dtype) if c is None else c.view(-1, 1, 1).expand_as(grad)
