"""Losses of the outer loop, their weights over inner steps, and the schedule of the meta learning rate."""

import math

import torch.nn.functional as F
from torch import Tensor


def per_task_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's mean cross-entropy: logits (B, n, N), labels int64 (B, n) -> (B,)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(dim=1)


def per_task_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each task's share of right answers: logits (B, n, N), labels (B, n) -> (B,)."""
    return (logits.detach().argmax(dim=-1) == labels).to(logits.dtype).mean(dim=1)


def multi_step_loss_weights(epoch: int, n_steps: int, n_epochs: int) -> list[float]:
    """Weigh the query losses after each inner step (multi-step loss, MSL).

    For epoch e < E, S steps, with m = 0.03 / S:
        v[i] = max(1/S - e / (S E), m) for i < S-1,   v[S-1] = 1 - sum of the others
    and the last step alone from epoch E on. The weights sum to one.

    Source: Antoniou et al. 2019, section 4 (MSL); constants of the released code.
    """
    if epoch >= n_epochs:
        return last_step_weights(n_steps)
    floor = 0.03 / n_steps
    other = max((1 - epoch / n_epochs) / n_steps, floor)
    return [other] * (n_steps - 1) + [1 - (n_steps - 1) * other]


def last_step_weights(n_steps: int) -> list[float]:
    """Weigh the last inner step's query loss alone, as MAML does."""
    return [0.0] * (n_steps - 1) + [1.0]


def cosine_annealed(epoch: int, n_epochs: int, start: float, end: float) -> float:
    """Return end + (start - end) (1 + cos(pi e / E)) / 2, constant within an epoch (Loshchilov & Hutter 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(epoch, n_epochs) / n_epochs)) / 2
