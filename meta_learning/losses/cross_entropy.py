"""Cross-entropy over the classes: mean over images of -log softmax(logits)[label].

With label smoothing e towards (1 - e) one-hot + e / N.

Source: Szegedy et al. 2016, section 7 (label smoothing).
"""

import torch.nn.functional as F
from torch import Tensor

from meta_learning.losses.base import TaskLoss
from utils.registry import register_loss


class CrossEntropy(TaskLoss):
    """Cross-entropy over the classes.

    Args:
        label_smoothing: e.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (B,)."""
        losses = F.cross_entropy(
            outputs.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.view(labels.shape).mean(dim=1)


register_loss(
    "cross_entropy",
    CrossEntropy,
    reads={"label_smoothing": "label_smoothing"},
    meaning="cross-entropy over the classes, with `label_smoothing`",
)
