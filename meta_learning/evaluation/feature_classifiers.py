"""Classifiers that the support images of a task give in closed form, without an inner step, for B tasks at once.

    ridge      W = argmin over W of |(F - f) W - (Y - y)|^2 + lambda |W|^2 over the support features F (n, D) and
               one-hot labels Y (n, N), whose means are f and y; logits of features x: (x - f) W + y. With n < D it is
               W = (F - f)^T (K + lambda I)^-1 (Y - y), K = (F - f) (F - f)^T, a system of n equations
    nearest    the class of the support image at the smallest Euclidean distance

Class centroids are the head `prototypes` of `meta_learning.heads`.

Source: Bertinetto et al. 2019, equations 4 and 6 (ridge, there with a learned lambda and without the means).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ridge_head(features: Tensor, labels: Tensor, n_way: int, penalty: float = 1.0) -> dict[str, Tensor]:
    """Return the linear head of ridge regression on the labels; differentiable with respect to the features.

    Args:
        features: (B, n, D) of the support images.
        labels: int64 (B, n), 0..N-1.
        penalty: lambda over the mean squared length of F - f, so that it means the same for features of any scale.
    Returns:
        "head.weight" (B, N, D) and "head.bias" (B, N).
    """
    targets = F.one_hot(labels, n_way).to(features.dtype)  # (B, n, N)
    mean, mean_target = features.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    centred = features - mean
    kernel = centred @ centred.mT  # (B, n, n)
    diagonal = kernel.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.mean(-1, keepdim=True)
    # Features that are all equal say nothing: any lambda but zero gives the weights zero that they deserve. With the
    # scale in it the system's condition number is n / penalty + 1 at most, so that float32 will do.
    kernel = kernel + torch.diag_embed((penalty * torch.where(scale > 0, scale, 1.0)).expand_as(diagonal))
    weight = torch.linalg.solve(kernel, targets - mean_target).mT @ centred  # (B, N, D)
    return {"head.weight": weight, "head.bias": (mean_target - mean @ weight.mT).squeeze(1)}


def predictions(features: Tensor, head: dict[str, Tensor]) -> Tensor:
    """Return the classes (B, n) of features (B, n, D) by a head like the one above; of equal logits the first."""
    logits = torch.baddbmm(head["head.bias"].unsqueeze(1), features, head["head.weight"].mT)
    return logits.argmax(dim=-1)


def nearest_neighbours(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Return the classes (B, m) of query vectors (B, m, P) by the nearest of the support vectors (B, n, P)."""
    # |q - s|^2 without |q|^2, which is the same for all s.
    distances = torch.baddbmm(support.square().sum(-1).unsqueeze(1), query, support.mT, alpha=-2.0)  # (B, m, n)
    return labels.gather(1, distances.argmin(dim=-1))
