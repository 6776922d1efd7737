"""The lower level of Sharp-MAML: each step takes the gradient where the support loss is higher, at a given distance.

    theta[s+1] = theta[s] - alpha * grad L(theta[s] + rho g / |g|),   g = grad L(theta[s])

|g| is over all adapted parameters of the task. In second order the way uphill is differentiated through, too.

The upper level is the key `sharpness_radius`.

Source: Abbas et al. 2022, "Sharp-MAML"; Foret et al. 2021 (SAM).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer, norms_of_tasks, per_task
from utils.registry import Key, register_inner_loop_optimizer


class SharpGradientDescent(InnerLoopOptimizer):
    """Gradient descent with gradients from a little uphill.

    Args:
        radius: rho.
    """

    looks_ahead = True
    title = "sharp inner steps"

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, *, radius: float, **shared: Any
    ) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.radius = radius

    def ahead(self, params: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parameters uphill; arguments as of `InnerLoopOptimizer.ahead`."""
        shares = self.radius / (norms_of_tasks(gradients) + 1e-12)  # the constant of SAM's code: norms of zero
        pairs = zip(self.names, gradients, strict=True)
        return {name: params[name] + per_task(shares, gradient) * gradient for name, gradient in pairs}


register_inner_loop_optimizer(
    "sharp",
    SharpGradientDescent,
    keys={"radius": Key(0.0005, "How far uphill the gradient of a step is taken.", ge=0.0)},
    meaning="gradient descent with the gradient a little uphill (Sharp-MAML, lower level)",
)
