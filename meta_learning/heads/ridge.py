"""The head of R2D2: ridge regression of one-hot labels on the support features, solved in closed form.

    W = scale * Y^T (X X^T + lambda I)^-1 X,   lambda and scale learned, X (n, D) features, Y (n, N) one-hot labels

which is scale * (X^T X + lambda I)^-1 X^T Y with a system of n equations instead of D. Differentiated through. With
inner steps the head is where they begin. The paper's second calibration number, added to all logits alike, has no
effect on a softmax and is left out.

Source: Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers", equations 4 to 6.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.heads.base import Head
from utils.registry import Key, register_head


class RidgeHead(Head):
    """Ridge regression; its two numbers are learned as logarithms, so that they stay positive.

    Args:
        n_features: D.
        regularisation: where lambda begins.
        scale: where the scale of the logits begins.
    """

    uses_features = True
    title = "R2D2"

    def __init__(self, n_features: int, *, regularisation: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(n_features)
        self.log_regularisation = nn.Parameter(torch.tensor(math.log(regularisation)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        """Return the head that fits the support features best; shapes as in `Head.make`, biases of zero."""
        targets = F.one_hot(labels, n_way).to(features.dtype)  # (B, n, N)
        kernel = torch.bmm(features, features.transpose(1, 2))  # (B, n, n)
        ridge = self.log_regularisation.exp() * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
        weights = torch.bmm(torch.linalg.solve(kernel + ridge, targets).transpose(1, 2), features)  # (B, N, D)
        return {"head.weight": self.log_scale.exp() * weights, "head.bias": torch.zeros_like(weights[..., 0])}


register_head(
    "ridge",
    RidgeHead,
    keys={
        "regularisation": Key(1.0, "Where the learned weight of the squared norm begins.", gt=0.0),
        "scale": Key(1.0, "Where the learned scale of the logits begins.", gt=0.0),
    },
    meaning="ridge regression on the support features in closed form, for any number of ways; without inner steps R2D2",
)
