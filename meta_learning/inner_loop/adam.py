"""Adam in the inner loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer, State, square_root
from utils.registry import register_inner_loop_optimizer


class Adam(InnerLoopOptimizer):
    """Adam that can be differentiated: the numbers of `torch.optim.Adam`, with derivative 0 where a gradient has
    always been 0.

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  direction = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Source: Kingma & Ba 2015, Algorithm 1.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        learning_rate: float,
        n_steps: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        **shared: Any,
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.betas, self.epsilon = betas, epsilon

    def init(self, params: Mapping[str, Tensor]) -> State:
        """Return moments of zero."""
        zeros = [torch.zeros_like(params[name]) for name in self.names]
        return {"mean": zeros, "square": zeros}

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the bias-corrected mean over the root of the bias-corrected square."""
        (b1, b2), t = self.betas, step + 1
        means = [b1 * mean + (1 - b1) * g for mean, g in zip(state["mean"], gradients, strict=True)]
        squares = [b2 * square + (1 - b2) * g.square() for square, g in zip(state["square"], gradients, strict=True)]
        directions = [
            mean / (1 - b1**t) / (square_root(square / (1 - b2**t)) + self.epsilon)
            for mean, square in zip(means, squares, strict=True)
        ]
        return directions, {"mean": means, "square": squares}


register_inner_loop_optimizer(
    "adam",
    Adam,
    reads={"betas": "inner_loop_betas", "epsilon": "inner_loop_epsilon"},
    meaning="as `torch.optim.Adam`",
)
