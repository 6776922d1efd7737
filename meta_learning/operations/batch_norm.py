"""Batch norm with batch statistics whose double backward is a few fused passes instead of some thirty elementwise ones.

Letters: per channel, N values x with mean mu and r = 1 / sqrt(var + eps); u = (x - mu) r; w the weight.

    forward           y = w u + b
    backward          P(g) = w r (g - mean(g) - u mean(g u)),  dw = <g, u>,  db = sum(g)
    double backward   for cotangents v of P(g), a of dw and c of db, the gradient of <v, P(g)> + a <g, u> + c sum(g):
        with respect to g   P(v) + a u + c                                  (P is symmetric)
        with respect to w   r K,   K = <v, g> - sum(v) sum(g) / N - <v, u> <g, u> / N
        with respect to x   r (q - mean(q) - u mean(q u)) - w r^2 K u / N
                            where q = -w r <g, u> / N v + (a - w r <v, u> / N) g

P and its two sums are torch's own fused backward; <g, u> and sum(g) are left over from the first backward. The
double backward itself cannot be differentiated again: MAML needs second order, not third.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by its own batch statistics; equals `F.batch_norm(..., training=True)`.

    Works inside `torch.vmap` too, where the tasks become further channels.

    Args:
        x: (n, C, H, W).
        weight, bias: (C,).
    Returns:
        x normalised, and this batch's mean and unbiased variance, (C,) each, which are not differentiated.
    """
    return _BatchNorm.apply(x, weight, bias, eps)[:3]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        # With momentum 1 torch leaves the statistics of this very batch in the two tensors.
        batch_mean, batch_var = x.new_zeros(2, len(weight)).unbind()
        out, mean, rstd = torch.native_batch_norm(x, weight, bias, batch_mean, batch_var, True, 1.0, eps)
        return out, batch_mean, batch_var, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        _, *statistics = output
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *statistics[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        grad_x, grad_weight, grad_bias = _BatchNormBackward.apply(grad, *ctx.saved_tensors, ctx.eps)
        return grad_x, grad_weight, grad_bias, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def tasks_at(place: int, tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.unsqueeze(place).expand(*tensor.shape[:place], info.batch_size, *tensor.shape[place:])
            return tensor.movedim(dim, place)

        folded = tasks_at(1, x, in_dims[0]).flatten(1, 2)  # (n, B*C, H, W)
        per_channel = [tasks_at(0, tensor, dim).flatten() for tensor, dim in ((weight, in_dims[1]), (bias, in_dims[2]))]
        out, *statistics = _BatchNorm.apply(folded, *per_channel, eps)
        unfolded = [tensor.unflatten(0, (info.batch_size, -1)) for tensor in statistics]
        return (out.unflatten(1, (info.batch_size, -1)), *unfolded), (1, 0, 0, 0, 0)


def _torchs_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    same_format = grad.contiguous(
        memory_format=torch.channels_last
        if x.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    return torch.ops.aten.native_batch_norm_backward(
        same_format, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )


class _BatchNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_weight, grad_bias = _torchs_backward(grad, x, weight, mean, rstd, eps)
        ctx.save_for_backward(grad, x, weight, mean, rstd, grad_weight, grad_bias)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return grad_x, grad_weight, grad_bias

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v: Tensor | None, grad_of_weight: Tensor | None, grad_of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, rstd, g_dot_u, g_sum = ctx.saved_tensors
        share = g.shape[1] / g.numel()  # 1 / N
        if v is None:
            v = torch.zeros_like(x)
        for_g, v_dot_u, v_sum = _torchs_backward(v, x, weight, mean, rstd, ctx.eps)
        k = (v * g).sum(dim=(0, 2, 3)).addcmul_(v_sum, g_sum, value=-share).addcmul_(v_dot_u, g_dot_u, value=-share)

        scale = (weight * rstd).mul_(-share)
        of_v = scale * g_dot_u  # q = of_v v + of_g g
        of_g = scale * v_dot_u if grad_of_weight is None else torch.addcmul(grad_of_weight, scale, v_dot_u)
        q_sum = (of_v * v_sum).addcmul_(of_g, g_sum)
        q_dot_u = (of_v * v_dot_u).addcmul_(of_g, g_dot_u)
        of_u = q_dot_u.addcmul_(scale, k, value=-1 / share).mul_(rstd)  # times -N
        of_x = of_u.mul_(rstd).mul_(-share)
        constant = (q_sum.mul_(rstd).mul_(-share)).addcmul_(of_x, mean, value=-1)
        for_x = v * _per_channel(of_v.mul_(rstd))
        for_x.addcmul_(g, _per_channel(of_g.mul_(rstd))).addcmul_(x, _per_channel(of_x)).add_(_per_channel(constant))

        if grad_of_weight is not None:
            of_x = grad_of_weight * rstd
            shift = -of_x * mean if grad_of_bias is None else torch.addcmul(grad_of_bias, of_x, mean, value=-1)
            for_g.addcmul_(x, _per_channel(of_x)).add_(_per_channel(shift))
        elif grad_of_bias is not None:
            for_g.add_(_per_channel(grad_of_bias))
        return for_g, for_x, k.mul_(rstd), None, None, None


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
