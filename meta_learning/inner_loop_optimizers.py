"""Inner-loop optimisers: pure update rules over stacked parameters, B tasks at once.

    init(params) -> state,   update(params, gradients, state, step) -> (params, state)

State that is passed around can be differentiated, and nothing is left behind between episodes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GradientDescent(nn.Module):
    """Gradient descent with one rate per parameter tensor and step; with `learnable`, LSLR of MAML++.

        theta[s+1] = theta[s] - alpha[name, min(s, S-1)] * gradient

    Args:
        names: the adapted parameters.
        learning_rate: initial value of every alpha.
        n_steps: S, steps of meta-training. Later steps (evaluation only) reuse the last rates.
        learnable: make the alphas meta-parameters.
    Source: Finn et al. 2017, Algorithm 1; Antoniou et al. 2019, section 4 (LSLR).
    """

    def __init__(
        self, names: Sequence[str], learning_rate: float, n_steps: int, *, learnable: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.n_steps = n_steps
        rates = torch.full((len(self.names), n_steps), learning_rate, dtype=dtype)
        self.learning_rates = nn.Parameter(rates, requires_grad=learnable)  # (tensors, S)

    def init(self, params: dict[str, Tensor]) -> dict[str, Any]:
        """Return the state before the first step: gradient descent has none."""
        return {}

    def update(
        self, params: dict[str, Tensor], gradients: Sequence[Tensor], state: dict[str, Any], step: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take one step.

        Args:
            params: name -> (B, ...), in the order of `names`.
            gradients: of the support loss, the shapes of params.
            step: s, from 0.
        """
        rates = self.learning_rates[:, min(step, self.n_steps - 1)].unbind()
        updated = {
            name: params[name] - rate * gradient
            for name, rate, gradient in zip(self.names, rates, gradients, strict=True)
        }
        return updated, state
