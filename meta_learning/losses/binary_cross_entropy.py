"""Binary cross-entropy: mean over images and classes of N independent yes-or-no questions, labels one-hot."""

import torch.nn.functional as F
from torch import Tensor

from meta_learning.losses.base import TaskLoss
from utils.registry import register_loss


class BinaryCrossEntropy(TaskLoss):
    """A yes-or-no question per class."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return (B,)."""
        wanted = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(dim=(1, 2))


register_loss("binary_cross_entropy", BinaryCrossEntropy, meaning="a yes-or-no question per class, on one-hot labels")
