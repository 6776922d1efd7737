"""The score of a task, higher is better: the share of right answers, or minus the mean squared error."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def task_scores(outputs: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the score of each task, by what its labels are.

        classes:      mean over images of (argmax of the outputs = label)
        real numbers: - mean over points and output dimensions of (output - label)^2

    Args:
        outputs: (B, n, N), higher is better; (B, n, D) for real numbers.
        labels: int64 (B, n); float (B, n, D) for real numbers.
    Returns:
        (B,), of the outputs' dtype.
    """
    if is_regression(labels):
        return -(outputs - labels).square().mean(dim=(1, 2))
    return (outputs.argmax(dim=-1) == labels).to(outputs.dtype).mean(dim=1)


def is_regression(labels: "Tensor") -> bool:
    """Whether labels are real numbers and not classes."""
    return labels.is_floating_point()
