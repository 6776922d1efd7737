"""What every loss of a task is: a number per task, in both loops, beside the score that is reported."""

from torch import Tensor, nn

from utils.errors import ConfigError
from utils.metrics import is_regression, task_scores


class TaskLoss(nn.Module):
    """The loss of inner and outer loop, and the score of a task: higher is better. Its `nn.Parameter`s are
    meta-learned.

    The score is the share of right answers, and minus the mean squared error for regression.
    """

    is_regression = False
    """Whether labels are real numbers."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each task's loss (B,); arguments as of `per_task_loss`, labels of the right kind."""
        raise NotImplementedError

    def per_task_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each task's loss.

        Args:
            outputs: (B, n, N), logits; (B, n, D) for regression.
            labels: int64 (B, n), 0..N-1; float (B, n, D) for regression.
        Returns:
            (B,).
        Raises:
            ConfigError: the labels are not of the kind that the loss needs.
        """
        if is_regression(labels) != self.is_regression:
            of, kind, fix = "classes", "real numbers", "mean_squared_error"
            if self.is_regression:
                of, kind, fix = "real numbers", "classes", "cross_entropy or binary_cross_entropy"
            raise ConfigError(f'"loss" is one of {of}, but the labels of this dataset are {kind}; set it to {fix}')
        return self.losses(outputs, labels)

    def per_task_score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each task's score (B,), without a graph; shapes as in `per_task_loss`."""
        return task_scores(outputs.detach(), labels)
