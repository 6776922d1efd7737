"""L2F: every layer's initial weights are multiplied by a number that a small network makes of the task's gradients.

    theta_l[0] = gamma_l theta_l,   gamma = sigmoid(MLP(mean of grad_l, over all layers l)), grad at theta

then gradient descent. The MLP has one hidden layer of as many units as there are layers. The pass at theta costs as
much as an inner step.

Source: Baik et al. 2020, "Learning to forget for meta-learning", section 3; released code (baiksung/L2F).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.inner_loop.base import InnerLoopOptimizer, per_task
from utils.registry import register_inner_loop_optimizer


class L2F(InnerLoopOptimizer):
    """Gradient descent from attenuated initial weights."""

    begins = True
    learns_of_steps = True
    title = "L2F"

    def __init__(self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, **shared: Any) -> None:
        super().__init__(shapes, learning_rate, n_steps, **shared)
        n_layers = len(self.names)
        self.attenuator = nn.Sequential(
            nn.Linear(n_layers, n_layers), nn.ReLU(), nn.Linear(n_layers, n_layers), nn.Sigmoid()
        )

    def begin(self, params: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the attenuated weights; arguments as of `InnerLoopOptimizer.begin`."""
        means = torch.stack([gradient.flatten(1).mean(1) for gradient in gradients], dim=1)  # (B, L)
        shares = self.attenuator(means).unbind(1)
        pairs = zip(self.names, shares, strict=True)
        return {name: per_task(share, params[name]) * params[name] for name, share in pairs}


register_inner_loop_optimizer("l2f", L2F, meaning="gradient descent from initial weights that each task attenuates")
