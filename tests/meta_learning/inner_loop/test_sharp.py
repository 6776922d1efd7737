"""The lower level of Sharp-MAML, against a few lines of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients

CHOICE = {"inner_loop_optimizer": "sharp", "sharp_radius": 0.05}


@pytest.mark.parametrize("choice", [{}, {"gradient_checkpointing": True}, {"task_chunk_size": 1}], ids=str)
def test_the_meta_gradient_is_that_of_steps_with_gradients_from_uphill(choice):
    learner = small_learner(**CHOICE, **choice)
    episodes, names = random_episodes(small_config(**CHOICE)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        def update(step, now, gradients):
            norm = torch.cat([gradients[name].flatten() for name in names]).norm()
            uphill = now | {name: now[name] + 0.05 * gradients[name] / norm for name in names}
            loss = F.cross_entropy(logits_of(uphill, task.support_images[0]), task.support_labels[0])
            there = torch.autograd.grad(loss, [uphill[name] for name in names], create_graph=True)
            return {name: now[name] - 0.2 * gradient for name, gradient in zip(names, there, strict=True)}

        values = adapted(network_values(leaves), names, task, 3, update)
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9


def test_a_radius_of_zero_is_maml():
    episodes = random_episodes(small_config())
    sharp, maml = small_learner(**CHOICE | {"sharp_radius": 0.0}), small_learner()
    ours, plain = (learner.meta_gradients(episodes, 0) for learner in (sharp, maml))
    assert worst_difference(ours.gradients, plain.gradients) < 1e-9
    assert worst_difference(ours.statistics, plain.statistics) < 1e-9


@pytest.mark.parametrize("choice", [{}, {"second_order": False}, {"adapted_parameters": "head"}], ids=str)
def test_every_check_of_gradients_passes(choice):
    learner = small_learner(**CHOICE, **choice)
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []
