"""Losses: what a task's outputs are judged by, their weights over inner steps, and the score that is reported."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from utils.errors import ConfigError
from utils.metrics import is_regression, task_scores


@dataclass(frozen=True)
class OuterLoop:
    """Choices of the outer loss; the meanings are those of the config keys."""

    displacement: bool = False
    """The meta-update follows theta[0] - theta[S] (Reptile); there is no outer loss to differentiate."""
    second_order: bool = True
    first_order_to_second_order_epoch: int = -1
    multi_step_loss: bool = False
    multi_step_loss_epochs: int = 10


@dataclass(frozen=True)
class TaskLoss:
    """The loss of inner and outer loop, and the score of a task: higher is better.

        cross_entropy:         mean over images of -log softmax(logits)[label]; with label smoothing e towards
                               (1 - e) one-hot + e / N (Szegedy et al. 2016)
        binary_cross_entropy:  mean over images and classes of N independent yes-or-no questions, labels one-hot
        mean_squared_error:    mean over points and output dimensions of (output - label)^2
    The score is the share of right answers, and minus the error for regression.

    Args:
        name: one of the above.
        label_smoothing: e, of cross_entropy.
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0

    @property
    def is_regression(self) -> bool:
        """Whether labels are real numbers."""
        return self.name == "mean_squared_error"

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
        self._check(labels)
        if self.is_regression:
            return (outputs - labels).square().mean(dim=(1, 2))
        if self.name == "binary_cross_entropy":
            wanted = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
            return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(dim=(1, 2))
        losses = F.cross_entropy(
            outputs.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.view(labels.shape).mean(dim=1)

    def per_task_score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each task's score (B,), without a graph; shapes as in `per_task_loss`."""
        return task_scores(outputs.detach(), labels)

    def _check(self, labels: Tensor) -> None:
        found = is_regression(labels)
        if found != self.is_regression:
            kind = "real numbers" if found else "classes"
            fix = "set it to mean_squared_error" if found else "set it to cross_entropy or binary_cross_entropy"
            raise ConfigError(f'"loss" is "{self.name}", but the labels of this dataset are {kind}; {fix}')


CROSS_ENTROPY = TaskLoss()


def multi_step_loss_weights(epoch: int, n_steps: int, n_epochs: int) -> list[float]:
    """Weigh the query losses after each inner step (multi-step loss, MSL).

    For epoch e < E, S steps, with m = 0.03 / S:
        v[i] = max(1/S - e / (S E), m) for i < S-1,   v[S-1] = 1 - sum of the others
    and the last step alone from epoch E on. The weights sum to one.

    Source: Antoniou et al. 2019, section 4 (MSL); constants of the released code.
    """
    if epoch >= n_epochs:
        return last_step_weights(n_steps)
    # 0.03 is fixed in the released code, which never reads its key minimum_per_task_contribution. With E up to 33 no
    # weight comes down to the floor before the last step stands alone.
    floor = 0.03 / n_steps
    other = max((1 - epoch / n_epochs) / n_steps, floor)
    return [other] * (n_steps - 1) + [1 - (n_steps - 1) * other]


def last_step_weights(n_steps: int) -> list[float]:
    """Weigh the last inner step's query loss alone, as MAML does."""
    # S = 0 (ProtoNet) gives [1.0] as well: there is no step, but one query pass.
    return [0.0] * (n_steps - 1) + [1.0]
