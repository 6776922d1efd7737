"""The outer loss: weights over steps, per-task losses, and the meta learning rate's schedule."""

import pytest
import torch
from torch import nn

from meta_learning.outer_losses import (
    cosine_annealed,
    multi_step_loss_weights,
    per_task_accuracy,
    per_task_cross_entropy,
)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("n_epochs", [1, 10, 100])
def test_multi_step_weights_sum_to_one_and_move_to_the_last_step(n_steps, n_epochs):
    table = [multi_step_loss_weights(epoch, n_steps, n_epochs) for epoch in range(n_epochs + 2)]
    assert all(sum(weights) == pytest.approx(1.0, abs=1e-12) for weights in table)
    last = [weights[-1] for weights in table]
    assert last == sorted(last) and last[0] == pytest.approx(1 / n_steps) and last[n_epochs] == 1.0


def test_multi_step_weights_follow_the_published_schedule():
    """S = 5, E = 10: 1/5 each at first; each epoch takes 1/(S E) = 0.02 from every step but the last."""
    assert multi_step_loss_weights(0, 5, 10) == pytest.approx([0.2] * 5)
    assert multi_step_loss_weights(1, 5, 10) == pytest.approx([0.18] * 4 + [0.28])
    assert multi_step_loss_weights(2, 5, 10) == pytest.approx([0.16] * 4 + [0.36])
    assert multi_step_loss_weights(10, 5, 10) == [0, 0, 0, 0, 1]


def test_multi_step_weights_do_not_fall_below_the_floor():
    """The floor 0.03 / S = 0.006 is reached from epoch 98 of 100 on: 0.2 - 98 * 0.002 = 0.004."""
    assert multi_step_loss_weights(98, 5, 100) == pytest.approx([0.006] * 4 + [0.976])


def test_per_task_losses_and_accuracies_are_those_of_each_task_alone():
    logits, labels = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6).remainder(4).expand(3, 6)
    losses, accuracies = per_task_cross_entropy(logits, labels), per_task_accuracy(logits, labels)
    for task in range(3):
        assert losses[task] == pytest.approx(float(nn.CrossEntropyLoss()(logits[task], labels[task])), rel=1e-6)
        assert accuracies[task] == (logits[task].argmax(1) == labels[task]).float().mean()


def test_cosine_annealing_equals_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001)
    for epoch in range(20):
        assert cosine_annealed(epoch, 20, 0.01, 0.001) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
