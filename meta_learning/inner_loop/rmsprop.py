"""RMSprop in the inner loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer, State, square_root
from utils.registry import register_inner_loop_optimizer


class RMSprop(InnerLoopOptimizer):
    """RMSprop that can be differentiated: the numbers of `torch.optim.RMSprop`.

    v = a v + (1 - a) g^2,  direction = g / (sqrt(v) + eps)
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        learning_rate: float,
        n_steps: int,
        *,
        smoothing: float = 0.99,
        epsilon: float = 1e-8,
        **shared: Any,
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.smoothing, self.epsilon = smoothing, epsilon

    def init(self, params: Mapping[str, Tensor]) -> State:
        """Return mean squares of zero."""
        return {"square": [torch.zeros_like(params[name]) for name in self.names]}

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the gradient over the root of the moving mean of its square."""
        a = self.smoothing
        squares = [a * square + (1 - a) * g.square() for square, g in zip(state["square"], gradients, strict=True)]
        directions = [g / (square_root(square) + self.epsilon) for g, square in zip(gradients, squares, strict=True)]
        return directions, {"square": squares}


register_inner_loop_optimizer(
    "rmsprop",
    RMSprop,
    reads={"smoothing": "inner_loop_smoothing", "epsilon": "inner_loop_epsilon"},
    meaning="as `torch.optim.RMSprop`",
)
