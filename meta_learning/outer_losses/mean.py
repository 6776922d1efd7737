"""The mean over the tasks of a meta-batch: MAML's outer loss."""

from torch import Tensor

from meta_learning.outer_losses.base import OuterLoss
from utils.registry import register_outer_loss


class MeanOverTasks(OuterLoss):
    """Each task counts alike."""

    is_mean = True

    def forward(self, losses: Tensor) -> Tensor:
        """Return the mean of the tasks' losses (B,)."""
        return losses.mean()


register_outer_loss("mean", MeanOverTasks, meaning="the mean over tasks")
