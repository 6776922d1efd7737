"""GAP: gradient descent whose gradient has its singular values multiplied by learned numbers.

    theta[s+1] = theta[s] - alpha * U C S V^T,   G = U S V^T,   C = diag(softplus(M))

G is the gradient of a tensor as (outputs, all else); the numbers begin at one, which is MAML. Biases, and a head that
each episode brings, have none. The approximation C G (G C where outputs are more than all else) decomposes nothing.

The released code preconditions convolutions alone and takes U for a constant of the meta-gradient, since autograd's
derivative of a decomposition divides by differences of squared singular values. Here all is differentiated, by a
formula without poles while the numbers are equal, and at singular values of zero.

Source: Kang et al. 2023, "Meta-learning with a geometry-adaptive preconditioner", section 4; released code
(Suhyun777/CVPR23-GAP).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from meta_learning.inner_loop.base import InnerLoopOptimizer, State
from utils.registry import Key, register_inner_loop_optimizer

SHARPNESS = 2.0
"""Of softplus, as in the paper: log(1 + exp(2 x)) / 2."""


class GeometryAdaptive(InnerLoopOptimizer):
    """Gradient descent with a learned scale of each singular value of each tensor's gradient.

    Args:
        approximate: scale rows, or columns where these are fewer, instead of singular values.
    """

    learns_of_steps = True
    title = "GAP"

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        learning_rate: float,
        n_steps: int,
        *,
        approximate: bool = False,
        dtype: torch.dtype = torch.float32,
        **shared: Any,
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, dtype=dtype, **shared)
        self.approximate = approximate
        one = math.log(math.expm1(SHARPNESS)) / SHARPNESS
        # A parameter's name may not hold dots.
        self.scales = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(
                    torch.full((min(shape[0], math.prod(shape[1:])),), one, dtype=dtype)
                )
                for name, shape in shapes.items()
                if len(shape) > 1
            }
        )

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the gradients with their singular values scaled."""
        return [self._scaled(name, gradient) for name, gradient in zip(self.names, gradients, strict=True)], state

    def _scaled(self, name: str, gradient: Tensor) -> Tensor:
        key = name.replace(".", "/")
        if key not in self.scales:
            return gradient
        scales, matrix = F.softplus(self.scales[key], beta=SHARPNESS), gradient.flatten(2)  # (B, outputs, all else)
        if not self.approximate:
            scaled = _ScaledSingularValues.apply(matrix, scales)
        elif matrix.shape[1] <= matrix.shape[2]:
            scaled = scales[:, None] * matrix
        else:
            scaled = matrix * scales
        return scaled.view(gradient.shape)


class _ScaledSingularValues(torch.autograd.Function):
    """U C S V^T of matrices (B, n, m) = U S V^T and k = min(n, m) numbers C, largest singular value first.

    With P = U^T dG V, and E + O the halves of P that are symmetric and skew, the derivative is
        U (A * E + D * O) V^T + U C U^T dG (1 - V V^T) + (1 - U U^T) dG V C V^T
        A[i,j] = (c_i s_i - c_j s_j) / (s_i - s_j),   D[i,j] = (c_i s_i + c_j s_j) / (s_i + s_j),   A[i,i] = c_i
    which is its own adjoint.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, scales: Tensor) -> Tensor:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)  # (B, n, k), (B, k), (B, k, m)
        ctx.save_for_backward(left, values, right, scales)
        return (left * (scales * values)[:, None]) @ right

    @staticmethod
    @once_differentiable  # see `meta_learning.inner_loop.base._Step`
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        left, values, right, scales = ctx.saved_tensors
        of_left, of_right = left.mT @ grad, grad @ right.mT  # (B, k, m), (B, n, k)
        inner = of_left @ right.mT
        mean, half = (scales[:, None] + scales) / 2, (scales[:, None] - scales) / 2
        total, gap = values[:, :, None] + values[:, None], values[:, :, None] - values[:, None]
        # Two values within rounding of one another, or of zero, have no order, and so no derivative of their own.
        rounding = values.amax(1)[:, None, None] * max(grad.shape[1:]) * torch.finfo(grad.dtype).eps

        def weights(numerator: Tensor, denominator: Tensor) -> Tensor:
            told_apart = denominator.abs() > rounding
            return mean + half * torch.where(told_apart, numerator / torch.where(told_apart, denominator, 1), 0)

        # (c_i s_i -+ c_j s_j) / (s_i -+ s_j), written so that equal numbers give them exactly.
        inside = weights(total, gap) * (inner + inner.mT) / 2 + weights(gap, total) * (inner - inner.mT) / 2
        scaled_left, scaled_right = left * scales, scales[:, None] * right
        for_matrix = (
            left @ inside @ right + scaled_left @ (of_left - inner @ right) + (of_right - left @ inner) @ scaled_right
        )
        return for_matrix, (values * inner.diagonal(dim1=1, dim2=2)).sum(0)


register_inner_loop_optimizer(
    "gap",
    GeometryAdaptive,
    keys={"approximate": Key(False, "Scale rows or columns of the gradient, not its singular values.")},
    meaning="gradient descent whose gradient has its singular values multiplied by learned numbers",
)
