"""The outer loss: weights over steps, and the losses and scores of tasks."""

import pytest
import torch

from meta_learning.losses.binary_cross_entropy import BinaryCrossEntropy
from meta_learning.losses.cross_entropy import CrossEntropy
from meta_learning.losses.mean_squared_error import MeanSquaredError
from meta_learning.outer_losses.step_weights import multi_step_loss_weights
from utils.errors import ConfigError


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


def outputs_and_labels():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=generator, dtype=torch.float64), torch.arange(6).remainder(4).expand(3, 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_and_accuracy_are_those_of_each_task_alone(smoothing):
    outputs, labels = outputs_and_labels()
    loss = CrossEntropy(smoothing)
    losses, scores = loss.per_task_loss(outputs, labels), loss.per_task_score(outputs, labels)
    for task in range(3):
        targets = (1 - smoothing) * torch.eye(4, dtype=torch.float64)[labels[task]] + smoothing / 4
        assert losses[task] == pytest.approx(float(-(targets * outputs[task].log_softmax(1)).sum(1).mean()), rel=1e-12)
        assert scores[task] == (outputs[task].argmax(1) == labels[task]).double().mean()


def test_binary_cross_entropy_asks_a_question_per_class():
    outputs, labels = outputs_and_labels()
    losses = BinaryCrossEntropy().per_task_loss(outputs, labels)
    for task in range(3):
        yes = outputs[task].sigmoid()
        wanted = torch.eye(4, dtype=torch.float64)[labels[task]]
        expected = -(wanted * yes.log() + (1 - wanted) * (1 - yes).log()).mean()
        assert losses[task] == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(
        BinaryCrossEntropy().per_task_score(outputs, labels), CrossEntropy().per_task_score(outputs, labels)
    )


def test_the_score_of_a_regression_is_minus_its_error():
    outputs, labels = torch.tensor([[[1.0], [3.0]], [[0.0], [0.5]]]), torch.tensor([[[0.0], [1.0]], [[0.0], [0.0]]])
    loss = MeanSquaredError()
    assert loss.per_task_loss(outputs, labels).tolist() == [2.5, 0.125]
    assert loss.per_task_score(outputs.requires_grad_(), labels).tolist() == [-2.5, -0.125]


@pytest.mark.parametrize("loss", [CrossEntropy(), BinaryCrossEntropy(), MeanSquaredError()])
def test_every_loss_can_be_differentiated_twice(loss):
    outputs, labels = outputs_and_labels()
    labels = outputs.flip(1) if loss.is_regression else labels
    torch.autograd.gradgradcheck(lambda x: loss.per_task_loss(x, labels), outputs.requires_grad_())


def test_labels_of_the_wrong_kind_are_refused():
    outputs, labels = outputs_and_labels()
    with pytest.raises(
        ConfigError, match='"loss" is one of real numbers, but the labels of this dataset are classes; set it to cross'
    ):
        MeanSquaredError().per_task_loss(outputs, labels)
    with pytest.raises(ConfigError, match="the labels of this dataset are real numbers; set it to mean_squared_error"):
        CrossEntropy().per_task_loss(outputs, outputs)
