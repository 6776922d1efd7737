"""L2F, against a few lines of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients

CHOICE = {"inner_loop_optimizer": "l2f"}


@pytest.mark.parametrize("choice", [{}, {"gradient_checkpointing": True}, {"task_chunk_size": 1}], ids=str)
def test_the_meta_gradient_is_that_of_attenuated_weights(choice):
    learner = small_learner(**CHOICE, **choice)
    episodes, names = random_episodes(small_config(**CHOICE)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        own = {name.removeprefix("inner_loop.attenuator."): value for name, value in leaves.items()}

        def attenuated(step, now, gradients):
            means = torch.stack([gradients[name].mean() for name in names])
            hidden = F.relu(F.linear(means, own["0.weight"], own["0.bias"]))
            shares = torch.sigmoid(F.linear(hidden, own["2.weight"], own["2.bias"]))
            return {name: share * now[name] for name, share in zip(names, shares, strict=True)}

        values = adapted(network_values(leaves), names, task, 1, attenuated)
        values = adapted(values, names, task, 3, lambda s, now, g: {n: now[n] - 0.2 * g[n] for n in names})
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9


def test_shares_of_one_are_maml():
    episodes, learner = random_episodes(small_config()), small_learner(**CHOICE)
    with torch.no_grad():
        learner.inner_loop.attenuator[2].bias.fill_(1000.0)
    ours, maml = learner.evaluate(episodes), small_learner().evaluate(episodes)
    assert torch.allclose(ours.query_logits, maml.query_logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("second_order", [True, False])
def test_every_check_of_gradients_passes(second_order):
    learner = small_learner(**CHOICE, second_order=second_order)
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []
