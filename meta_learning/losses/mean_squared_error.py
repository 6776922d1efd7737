"""Mean squared error of a regression: mean over points and output dimensions of (output - label)^2."""

from torch import Tensor

from meta_learning.losses.base import TaskLoss
from utils.registry import register_loss


class MeanSquaredError(TaskLoss):
    """The loss of a regression."""

    is_regression = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (B,)."""
        return (outputs - labels).square().mean(dim=(1, 2))


register_loss("mean_squared_error", MeanSquaredError, meaning="for regression")
