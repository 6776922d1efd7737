"""Meta-Curvature: gradient descent whose gradient is multiplied, mode by mode, by learned matrices.

    theta[s+1] = theta[s] - alpha * (G x1 M_out x2 M_in x3 M_kernel)

G is the gradient of a tensor as (outputs, inputs, height times width of the kernel); a matrix has one mode less, a bias
one mode. The matrices begin at the identity, which is MAML. Of a head that each episode brings, the classes share one
matrix over the features, and biases have none.

A mode of d entries costs d^2 meta-parameters: for a head on 1,600 features 2.6 million.

Source: Park & Oliva 2019, "Meta-Curvature", equations 3 to 7.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.inner_loop.base import InnerLoopOptimizer, State
from utils.registry import register_inner_loop_optimizer


class MetaCurvature(InnerLoopOptimizer):
    """Gradient descent with a learned matrix for each mode of each tensor."""

    learns_of_steps = True
    title = "Meta-Curvature"

    def __init__(self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, **shared: Any) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        # A parameter's name may not hold dots.
        self.matrices = nn.ParameterDict(
            {
                f"{name.replace('.', '/')}:{mode}": nn.Parameter(torch.eye(size))
                for name, shape in shapes.items()
                for mode, size in enumerate(modes(shape))
            }
        )
        self.n_modes = {name: len(modes(shape)) for name, shape in shapes.items()}

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return the gradients times their matrices."""
        return [self._transformed(name, gradient) for name, gradient in zip(self.names, gradients, strict=True)], state

    def _transformed(self, name: str, gradient: Tensor) -> Tensor:
        n_modes = self.n_modes[name]
        # The modes stand last: before them the tasks and, of an episode's head, its classes.
        folded = gradient.flatten(3) if gradient.dim() > 3 else gradient
        for mode in range(n_modes):
            place, matrix = folded.dim() - n_modes + mode, self.matrices[f"{name.replace('.', '/')}:{mode}"]
            folded = (folded.movedim(place, -1) @ matrix.T).movedim(-1, place)
        return folded.reshape(gradient.shape)


def modes(shape: Sequence[int]) -> list[int]:
    """Return the sizes of a tensor's modes: outputs, inputs, and kernel positions together."""
    kernel = 1
    for size in shape[2:]:
        kernel *= size
    return [*shape[:2], *([kernel] if len(shape) > 2 else [])]


register_inner_loop_optimizer(
    "meta_curvature",
    MetaCurvature,
    meaning="gradient descent whose gradient is multiplied by learned matrices, one per mode of each tensor",
)
