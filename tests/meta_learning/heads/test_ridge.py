"""R2D2's head, against the normal equations in plain torch."""

import pytest
import torch
import torch.nn.functional as F

from meta_learning.heads.ridge import RidgeHead
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import body_of, network_values, plain_meta_gradients

CHOICE = {
    "head": "ridge", "number_of_training_steps_per_iter": 0, "ridge_regularisation": 0.7, "ridge_scale": 1.5,
}  # fmt: skip


def test_the_meta_gradient_is_that_of_the_normal_equations():
    """W = scale (X^T X + lambda I)^-1 X^T Y, a system of as many equations as features."""
    learner = small_learner(**CHOICE)
    episodes = random_episodes(small_config(**CHOICE))

    def loss_of_task(leaves, task):
        x, queries = (body_of(network_values(leaves), images[0]) for images in (task.support_images, task.query_images))
        ridge = leaves["head.log_regularisation"].exp() * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.inv(x.T @ x + ridge) @ x.T @ F.one_hot(task.support_labels[0], 3).double()
        return F.cross_entropy(leaves["head.log_scale"].exp() * queries @ weights, task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9
    assert expected["head.log_regularisation"] != 0 and expected["head.log_scale"] != 0


def test_an_infinite_weight_of_the_norm_is_a_head_of_zeros_and_a_small_one_fits_the_labels():
    features = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])

    def head(regularisation):
        return RidgeHead(9, regularisation=regularisation).double().make(features, labels, 3)["head.weight"].detach()

    assert head(1e14).abs().max() < 1e-12
    fitted = features @ head(1e-13).transpose(1, 2)
    assert torch.allclose(fitted, F.one_hot(labels, 3).double(), atol=1e-6)


def test_inner_steps_begin_at_it():
    learner = small_learner(head="ridge")
    evaluation = learner.evaluate(random_episodes(small_config()), n_steps=2)
    without = small_learner(head="ridge", number_of_training_steps_per_iter=0).evaluate(random_episodes(small_config()))
    assert evaluation.query_loss[0].tolist() == pytest.approx(without.query_loss[0].tolist(), rel=1e-9)
