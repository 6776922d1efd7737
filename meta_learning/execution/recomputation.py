"""The meta-gradient with the memory of one inner step: activations are computed a second time instead of being kept."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from meta_learning.adaptation import Adapted

TrainingStep = Callable[[int, Adapted], tuple[Adapted, Tensor, dict[str, Tensor]]]


def recomputed_gradient(
    training_step: TrainingStep, path: Sequence[Adapted], start: Adapted, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """Rebuild one step's graph at a time, the last one first.

        adjoint[s] = (d step_s / d theta[s])^T adjoint[s+1] + v[s] d L(theta[s+1], query) / d theta[s]

    Args:
        training_step: called as (step, learners before it); returns the learners after it, v[s] * query loss, shape (),
            and metrics.
        path: the learners before each of the S steps, each the beginning of a graph of its own.
        start: the learners before the first step, with their history back to the parameters.
        parameters: name -> meta-parameter.
    Returns:
        the meta-gradient, equal to that through the whole graph up to rounding; of each step weight * query loss,
        and metrics.
    """
    values = list(parameters.values())
    totals = [torch.zeros_like(parameter) for parameter in values]
    adjoint: list[Tensor] = []
    losses, metrics = [], []
    for step in reversed(range(len(path))):
        before = path[step]
        after, loss, of_step = training_step(step, before)
        # After the last step nothing follows but its own query loss: there the adjoint is still empty.
        outputs, inputs = [loss, *after.tensors()], [*before.tensors(), *values]
        gradients = gradients_of(outputs, [torch.ones_like(loss), *adjoint], inputs)
        adjoint = gradients[: len(before.tensors())]
        totals = [total + value for total, value in zip(totals, gradients[len(adjoint) :], strict=True)]
        losses.append(loss.detach())
        metrics.append(of_step)
    # theta[0] is made of the parameters, too: expanded, or as prototypes of the body's features.
    at_start = gradients_of(start.tensors(), adjoint, values)
    gradients = {name: total + value for name, total, value in zip(parameters, totals, at_start, strict=True)}
    return gradients, losses[::-1], metrics[::-1]


def gradients_of(outputs: list[Tensor], weights: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradient of sum(weights * outputs), zero where nothing leads to an input; missing weights are zero."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=False) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(value) for value in inputs]
    outputs, weights = map(list, zip(*pairs, strict=True))
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True))
