"""The meta-gradient with the memory of one inner step: activations are computed a second time instead of being kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from meta_learning.adaptation import Adapted
from meta_learning.networks.passes import BatchStatistics, Pass


def recomputed_gradient(
    learner: Any, episodes: Any, start: Adapted, mode: Pass, weights: Sequence[Tensor | None], create_graph: bool
) -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """Keep only the adapted parameters of each step, and rebuild one step's graph at a time, the last one first.

        adjoint[s] = (d step_s / d theta[s])^T adjoint[s+1] + v[s] d L(theta[s+1], query) / d theta[s]

    Returns:
        The meta-gradient, equal to that through the whole graph up to rounding; of each step weight * query loss,
        and metrics.
    """
    path = [start.as_leaves()]
    for step in range(len(weights) - 1):
        unseen = replace(mode, step=step, collected=BatchStatistics())  # the second time counts
        adapted, _, _ = learner.adaptation.step(episodes, path[-1], unseen, create_graph=False)
        path.append(adapted.as_leaves())
    parameters = learner.meta_parameters()
    totals = [torch.zeros_like(parameter) for parameter in parameters.values()]
    adjoint: list[Tensor] = []
    losses, metrics = [], []
    for step in reversed(range(len(weights))):
        before = path.pop()
        after, loss, of_step = learner.training_step(
            episodes, before, replace(mode, step=step), weights[step], create_graph=create_graph
        )
        values = gradients_of(
            [loss, *after.tensors()], [torch.ones_like(loss), *adjoint], [*before.tensors(), *parameters.values()]
        )
        adjoint = values[: len(before.tensors())]
        totals = [total + value for total, value in zip(totals, values[len(adjoint) :], strict=True)]
        losses.append(loss.detach())
        metrics.append(of_step)
    values = gradients_of(start.tensors(), adjoint, list(parameters.values()))
    gradients = {name: total + value for name, total, value in zip(parameters, totals, values, strict=True)}
    return gradients, losses[::-1], metrics[::-1]


def gradients_of(outputs: list[Tensor], weights: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradient of sum(weights * outputs), zero where nothing leads to an input; missing weights are zero."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=False) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(value) for value in inputs]
    outputs, weights = map(list, zip(*pairs, strict=True))
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True))
