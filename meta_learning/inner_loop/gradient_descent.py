"""Gradient descent in the inner loop, with or without momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer, State
from utils.registry import register_inner_loop_optimizer


class GradientDescent(InnerLoopOptimizer):
    """Gradient descent, with momentum where that is asked for: buffer = momentum * buffer + g, from zero in each
    episode.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        learning_rate: float,
        n_steps: int,
        *,
        momentum: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.momentum = momentum

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the buffers of `torch.optim.SGD` (no dampening, no Nesterov); they stay in the graph."""
        if not self.momentum:
            return gradients, state
        if state:
            gradients = [
                self.momentum * buffer + gradient for buffer, gradient in zip(state["momentum"], gradients, strict=True)
            ]
        return gradients, {"momentum": gradients}


register_inner_loop_optimizer(
    "sgd",
    GradientDescent,
    reads={"momentum": "inner_loop_momentum"},
    meaning="gradient descent, with `inner_loop_momentum`",
)
