"""ALFA: gradient descent with rates and decays that a small network makes anew for every layer, step and task.

    theta_l[s+1] = (1 - h_l B_l[s]) theta_l[s] - g_l A_l[s] grad_l
    (g, h) = MLP(mean of theta_l[s], mean of grad_l, over all layers l)

A (from the inner learning rate) and B (from a decay times that rate) are learned per layer and step; the MLP has one
hidden layer of twice as many units as there are layers. A network that makes zeros leaves every task at its start. The
released code takes the means of the gradients for constants; here, in second order, all is differentiated.

Source: Baik et al. 2020, "Meta-learning with adaptive hyperparameters", section 3; released code (baiksung/ALFA).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.inner_loop.base import InnerLoopOptimizer, State, per_task
from utils.errors import ConfigError
from utils.registry import Key, register_inner_loop_optimizer


class Alfa(InnerLoopOptimizer):
    """Gradient descent with generated rates and decays.

    Args:
        weight_decay_start: where B begins, before it is multiplied by the inner learning rate.
    Raises:
        ConfigError: the form of the rates is another one than "per_layer_per_step" or "fixed".
    """

    learns_of_steps = True
    title = "ALFA"

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        learning_rate: float,
        n_steps: int,
        *,
        weight_decay_start: float = 0.0005,
        learning_rates: str = "fixed",
        **shared: Any,
    ) -> None:
        if learning_rates not in ("fixed", "per_layer_per_step"):
            raise ConfigError(
                '"inner_loop_optimizer" alfa learns a rate per layer and step; set '
                '"learnable_inner_loop_learning_rates" to "none"'
            )
        super().__init__(shapes, learning_rate, n_steps, learning_rates="per_layer_per_step", **shared)
        n_layers = len(self.names)
        self.decays = nn.Parameter(weight_decay_start * self.learning_rates.detach())  # (tensors, S)
        self.generator = nn.Sequential(
            nn.Linear(2 * n_layers, 2 * n_layers), nn.ReLU(), nn.Linear(2 * n_layers, 2 * n_layers)
        )

    def update(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """Take one step; arguments as of `InnerLoopOptimizer.update`."""
        gradients = self.prepared(params, gradients)
        values = [params[name] for name in self.names]
        means = torch.stack([value.flatten(1).mean(1) for value in (*values, *gradients)], dim=1)  # (B, 2L)
        of_rates, of_decays = self.generator(means).chunk(2, dim=1)  # (B, L) each
        row = min(step, self.learning_rates.shape[1] - 1)
        rates = of_rates * self.learning_rates[:, row]
        kept = 1 - of_decays * self.decays[:, row]
        updated = [
            per_task(share, value) * value - per_task(rate, value) * gradient
            for share, rate, value, gradient in zip(kept.T, rates.T, values, gradients, strict=True)
        ]
        return dict(zip(self.names, updated, strict=True)), state


register_inner_loop_optimizer(
    "alfa",
    Alfa,
    keys={"weight_decay_start": Key(0.0005, "Where the learned decays begin, times the inner rate.", ge=0.0)},
    meaning="gradient descent with rates and decays that a small network makes for every layer, step and task",
)
