"""The meta-gradient where the inner problem is solved, from that point alone: no inner step is kept.

An update rule comes to rest where its direction d is zero. For phi with d(phi, psi) = 0, psi being all else, the start
of the episode among it, the implicit function theorem gives the gradient of the outer loss F(phi, psi)

    dF/dpsi - (dd/dpsi)^T y,   (dd/dphi)^T y = dF/dphi

y by conjugate gradients. For a proximal inner problem d = grad L(phi) + lambda (phi - theta[0]), hence
y = (H + lambda)^-1 dF/dphi, H being the Hessian of the support loss, and the gradient for theta[0] is lambda y.

Source: Rajeswaran et al. 2019, "Meta-learning with implicit gradients", equations 5 to 7.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from meta_learning.adaptation import Adapted
from meta_learning.execution.recomputation import gradients_of
from meta_learning.inner_loop.base import per_task
from meta_learning.outer_gradients.base import OuterGradient, OuterResult
from meta_learning.outer_gradients.training_steps import TrainingSteps
from utils.errors import ConfigError

Vectors = Sequence[Tensor]


class Implicit(OuterGradient):
    """iMAML: the gradient of the outer loss of learners that have come to rest.

    Args:
        n_iterations: of conjugate gradients.
    """

    def __init__(self, n_iterations: int) -> None:
        self.n_iterations = n_iterations

    def compute(
        self, steps: TrainingSteps, parameters: Mapping[str, nn.Parameter], *, second_order: bool
    ) -> OuterResult:
        if any(weight is not None for weight in steps.weights[:-1]):
            raise ConfigError(
                '"outer_update" implicit (iMAML) has a gradient after the last inner step alone, but the outer loss '
                'counts others, too; set "outer_update" to "gradient"'
            )
        start = steps.start(create_graph=second_order)
        adapted, losses, metrics = steps.take_all(start, create_graph=False, detached=True)
        last = replace(steps.pass_, step=steps.n_steps - 1).recording(seen={})
        gradients = implicit_gradient(
            losses[-1],
            adapted,
            lambda at: steps.adaptation.direction(steps.prepared, at, last),
            start,
            list(parameters.values()),
            self.n_iterations,
        )
        return dict(zip(parameters, gradients, strict=True)), losses, metrics

    def refusal_of(self, name: str) -> str | None:
        return "implicit (iMAML)" if name.startswith("inner_loop.") else None


def implicit_gradient(
    loss: Tensor,
    adapted: Adapted,
    direction: Callable[[Adapted], Vectors],
    start: Adapted,
    parameters: Vectors,
    n_iterations: int,
) -> list[Tensor]:
    """Differentiate an outer loss of learners that have come to rest.

    Args:
        loss: outer loss of the learners, (); its history goes back to their parameters and `parameters`.
        adapted: the learners, B of them.
        direction: of the update rule at learners that it is given, with a history back to them and to `parameters`.
        start: the learners before the first step, with their history back to `parameters`.
        n_iterations: of conjugate gradients.
    Returns:
        its gradient with respect to `parameters`.
    """
    phi, fixed = list(adapted.params.values()), list(adapted.fixed.values())
    inputs = [*phi, *fixed, *parameters]
    # Kept: where features stay, those of the support images are a part of it.
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    of_phi, of_fixed, of_parameters = (
        found[: len(phi)],
        found[len(phi) : len(phi) + len(fixed)],
        found[-len(parameters) :],
    )
    at = adapted.detached()
    phi, at_rest = list(at.params.values()), direction(at)

    def multiply(vectors: Vectors) -> Vectors:
        return torch.autograd.grad(at_rest, phi, vectors, retain_graph=True)

    solution = conjugate_gradients(multiply, of_phi, n_iterations)
    others = [*at.tensors()[len(phi) :], *parameters]
    through = gradients_of(list(at_rest), [-value for value in solution], others)
    n_others = len(others) - len(parameters)
    adjoint = [torch.zeros_like(value) for value in phi] + through[:n_others]
    for place, value in enumerate(of_fixed, start=len(phi)):
        adjoint[place] = adjoint[place] + value
    from_start = gradients_of(start.tensors(), adjoint, list(parameters))
    return [sum(parts) for parts in zip(of_parameters, through[n_others:], from_start, strict=True)]


def conjugate_gradients(multiply: Callable[[Vectors], Vectors], right: Vectors, n_iterations: int) -> list[Tensor]:
    """Solve A x = b for each task from x = 0, A symmetric and positive definite.

    Args:
        multiply: A times vectors.
        right: b, tensors (B, ...) that are one vector together.
    """

    def products(one: Vectors, other: Vectors) -> Tensor:
        return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(one, other, strict=True)]).sum(0)  # (B,)

    def moved(values: Vectors, share: Tensor, by: Vectors) -> list[Tensor]:
        return [value + per_task(share, value) * step for value, step in zip(values, by, strict=True)]

    def ratio(one: Tensor, other: Tensor) -> Tensor:
        nonzero = other != 0  # a task that is solved exactly stays as it is
        return torch.where(nonzero, one / torch.where(nonzero, other, 1), 0)

    solution, rest, search = [torch.zeros_like(value) for value in right], list(right), list(right)
    size = products(rest, rest)
    for _ in range(n_iterations):
        product = multiply(search)
        rate = ratio(size, products(search, product))
        solution, rest = moved(solution, rate, search), moved(rest, -rate, product)
        before, size = size, products(rest, rest)
        search = moved(rest, ratio(size, before), search)
    return solution
