"""Batch norm of a linear map of patches, from the patches' mean and covariance, with its double backward in a few
small products.

Per task and filter, with w the filter's weights, m and C mean and covariance of the patches p, and gamma, beta of
the norm:

    q = <w, m>,   v = w^T C w,   r = 1 / sqrt(v + eps),   s = gamma r
    forward           A = s w,  c = beta - s q, so that A p + c is the norm of w p + b; the bias b cancels
    backward          for G of A and h of c, with d = <G, w> - h q:
                      dw = s (G - h m) - s r^2 d C w,   dgamma = r d,   dbeta = h
    double backward   for cotangents x of dw, a of dgamma and b of dbeta, the gradient of
                      L = <x, dw> + a dgamma + b dbeta;
                      with P = <x, G> - h <x, m>,  u = x^T C w,  D = a r - s r^2 u (= dL / dd):
        with respect to G, h    s x + D w,   b - s <x, m> - D q
        with respect to gamma   r (P - r^2 d u)
        with respect to w       D (G - h m) - s r^2 d C x - r^3 (gamma (P - 3 r^2 d u) + a d) C w

The double backward itself cannot be differentiated again: MAML needs second order, not third.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def normalised_map(
    weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, moments: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the linear map of patches that convolution and batch norm are together.

    Args:
        weight: (B, F, K).
        bias: (B, F), of the convolution; its gradient is zero.
        gamma, beta: (B, F).
        moments: (B, K, K + 1), covariance and, in the last column, mean of each task's patches.
    Returns:
        A and, in the last column, c, (B, F, K + 1); mean and variance of w p + b, (B, F) each, which are not
        differentiated.
    """
    return _NormalisedMap.apply(weight, bias, gamma, beta, moments, eps)


class _NormalisedMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, moments: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        products = torch.bmm(weight, moments)  # C w and q
        of_weight, q = _parts(products)
        mean, var = q + bias, (of_weight * weight).sum(2).clamp_(min=0)  # rounding may leave less of what is zero
        r = (var + eps).rsqrt_()
        scale = gamma * r
        out = torch.empty_like(products)
        torch.mul(weight, scale.unsqueeze(2), out=out[..., :-1])
        torch.addcmul(beta, scale, q, value=-1, out=out[..., -1])
        ctx.save_for_backward(weight, gamma, moments, products, r)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None, None
        for_weight, *for_others = _NormalisedMapBackward.apply(grad, *ctx.saved_tensors)
        # The norm takes the convolution's bias out again: its gradient is zero, one number seen B*F times.
        return for_weight, grad.new_zeros(()).expand(grad.shape[:2]), *for_others, None, None


class _NormalisedMapBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, gamma: Tensor, moments: Tensor, products: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (of_weight, q), (g, h) = _parts(products), _parts(grad)
        d = (g * weight).sum(2).addcmul_(h, q, value=-1)
        scale, for_gamma = gamma * r, r * d
        for_weight = (g * scale.unsqueeze(2)).addcmul_(
            (scale * h).unsqueeze(2), moments[..., -1].unsqueeze(1), value=-1
        )
        for_weight.addcmul_(of_weight, (scale * r).mul_(for_gamma).unsqueeze(2), value=-1)
        ctx.save_for_backward(grad, weight, gamma, moments, products, r, d)
        ctx.set_materialize_grads(False)
        return for_weight, for_gamma, h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, x: Tensor | None, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, weight, gamma, moments, products, r, d = ctx.saved_tensors
        (of_weight, q), (g, h) = _parts(products), _parts(grad)
        x = torch.zeros_like(weight) if x is None else x
        a = torch.zeros_like(d) if a is None else a
        of_x, x_dot_mean = _parts(torch.bmm(x, moments))
        p = (x * g).sum(2).addcmul_(h, x_dot_mean, value=-1)
        u = (x * of_weight).sum(2)
        r_squared, scale, d_u = r * r, gamma * r, d * u
        steep = scale * r_squared
        for_d = (a * r).addcmul_(steep, u, value=-1)

        for_grad = torch.empty_like(products)
        torch.mul(x, scale.unsqueeze(2), out=for_grad[..., :-1]).addcmul_(weight, for_d.unsqueeze(2))
        for_h = (scale * x_dot_mean).addcmul_(for_d, q).neg_()
        torch.add(for_h, 0 if b is None else b, out=for_grad[..., -1])

        for_r = torch.addcmul(p, r_squared, d_u, value=-3).mul_(gamma).addcmul_(a, d).mul_(r_squared).mul_(r)
        for_weight = (g * for_d.unsqueeze(2)).addcmul_(
            (for_d * h).unsqueeze(2), moments[..., -1].unsqueeze(1), value=-1
        )
        for_weight.addcmul_(of_x, (steep * d).unsqueeze(2), value=-1).addcmul_(of_weight, for_r.unsqueeze(2), value=-1)
        for_gamma = p.addcmul_(r_squared, d_u, value=-1).mul_(r)
        return for_grad, for_weight, for_gamma, None, None, None


def _parts(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return all columns but the last one, and that one."""
    return columns[..., :-1], columns[..., -1]
