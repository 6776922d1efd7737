"""Conditional value at risk: the mean loss of the worst tasks of a meta-batch.

    CVaR_a(L) = min over t of t + mean over tasks of max(L - t, 0) / a

the mean of the a B largest of B losses; where a B is no whole number, the last of them counts for a part. a = 1 is the
mean over all.

Source: Rockafellar & Uryasev 2000; for MAML Lv et al. 2024 (DR-MAML).
"""

import torch
from torch import Tensor

from meta_learning.outer_losses.base import OuterLoss
from utils.registry import Key, register_outer_loss


class ConditionalValueAtRisk(OuterLoss):
    """The mean of the largest losses.

    Args:
        share: a, of the tasks.
    """

    title = "worst tasks"

    def __init__(self, *, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def forward(self, losses: Tensor) -> Tensor:
        """Return the mean of the a B largest of the tasks' losses (B,)."""
        counted = self.share * len(losses)
        places = torch.arange(len(losses), dtype=losses.dtype, device=losses.device)
        return losses.sort(descending=True).values @ (counted - places).clamp(0.0, 1.0) / counted


register_outer_loss(
    "cvar",
    ConditionalValueAtRisk,
    keys={"share": Key(0.5, "Share of the tasks of a meta-batch, the worst ones, that counts.", gt=0.0, le=1.0)},
    meaning="the mean over the worst tasks (conditional value at risk)",
)
