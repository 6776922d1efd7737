"""Reptile: the way that the adapted parameters went, in the place of a gradient.

    theta[0] - mean over tasks of theta[S], zero for what is not adapted

Source: Nichol et al. 2018, Algorithm 2.
"""

from collections.abc import Mapping

import torch
from torch import nn

from meta_learning.outer_gradients.base import OuterGradient, OuterResult
from meta_learning.outer_gradients.training_steps import TrainingSteps


class Displacement(OuterGradient):
    """Follow the adapted parameters; nothing is learned from the query images, whose loss is a metric."""

    def compute(
        self, steps: TrainingSteps, parameters: Mapping[str, nn.Parameter], *, second_order: bool
    ) -> OuterResult:
        start = steps.start(create_graph=False)
        adapted, losses, metrics = steps.take_all(start, create_graph=False, detached=True, query_gradients=False)
        # Not theta[S] - theta[0], since the outer optimiser descends: SGD of rate epsilon then takes the paper's step,
        # theta + epsilon (theta[S] - theta), and Adam takes this for the gradient, as is proposed there, too.
        after = {f"network.{name}": value.detach().mean(0) for name, value in adapted.params.items()}
        gradients = {
            name: parameter.detach() - after[name] if name in after else torch.zeros_like(parameter)
            for name, parameter in parameters.items()
        }
        return gradients, losses, metrics

    def refusal_of(self, name: str) -> str | None:
        return None if name.startswith("network.") else "displacement (Reptile)"
