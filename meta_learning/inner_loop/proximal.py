"""Gradient descent that is held near its start: the inner problem of iMAML.

    minimise L(theta, support) + lambda / 2 |theta - theta[0]|^2
    theta[s+1] = theta[s] - alpha * (grad L(theta[s]) + lambda (theta[s] - theta[0]))

With `outer_update` gradient it is differentiated through like any other; with implicit it should have come to rest.

Source: Rajeswaran et al. 2019, "Meta-learning with implicit gradients", equation 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer, State
from utils.registry import Key, register_inner_loop_optimizer


class ProximalGradientDescent(InnerLoopOptimizer):
    """Gradient descent with a pull towards the start of the episode.

    Args:
        strength: lambda.
    """

    comes_to_rest = True

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, *, strength: float, **shared: Any
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.strength = strength

    def init(self, params: Mapping[str, Tensor]) -> State:
        """Return where the episode starts."""
        return {"start": [params[name] for name in self.names]}

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the gradients of the loss with the proximal term."""
        pulled = [
            gradient + self.strength * (params[name] - start)
            for name, gradient, start in zip(self.names, gradients, state["start"], strict=True)
        ]
        return pulled, state


register_inner_loop_optimizer(
    "proximal",
    ProximalGradientDescent,
    keys={"strength": Key(1.0, "Weight of half the squared distance from the start of the episode.", gt=0.0)},
    meaning="gradient descent with a pull towards the start of the episode",
)
