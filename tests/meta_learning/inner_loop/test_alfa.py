"""ALFA, against a few lines of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients
from utils.errors import ConfigError

CHOICE = {"inner_loop_optimizer": "alfa", "alfa_weight_decay_start": 0.1}


def test_the_meta_gradient_is_that_of_generated_rates_and_decays():
    learner = small_learner(**CHOICE)
    episodes, names = random_episodes(small_config(**CHOICE)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        own = {name.removeprefix("inner_loop."): value for name, value in leaves.items()}

        def update(step, now, gradients):
            means = torch.stack([now[n].mean() for n in names] + [gradients[n].mean() for n in names])
            hidden = F.relu(F.linear(means, own["generator.0.weight"], own["generator.0.bias"]))
            made = F.linear(hidden, own["generator.2.weight"], own["generator.2.bias"])
            return {
                n: (1 - made[len(names) + i] * own["decays"][i, step]) * now[n]
                - made[i] * own["learning_rates"][i, step] * gradients[n]
                for i, n in enumerate(names)
            }

        values = adapted(network_values(leaves), names, task, 3, update)
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9


def test_a_generator_of_zeros_leaves_every_task_at_its_start():
    learner, episodes = small_learner(**CHOICE), random_episodes(small_config())
    with torch.no_grad():
        for parameter in learner.inner_loop.generator.parameters():
            parameter.zero_()
    evaluation = learner.evaluate(episodes)
    assert torch.equal(evaluation.query_loss[0], evaluation.query_loss[-1])


def test_another_form_of_rates_is_refused():
    with pytest.raises(ConfigError, match='alfa learns a rate per layer and step; set "learnable_inner_loop_learning'):
        small_learner(**CHOICE, learnable_inner_loop_learning_rates="per_element")
