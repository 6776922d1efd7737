"""The mean of the worst tasks, against its variational formula and plain torch."""

import pytest
import torch
import torch.nn.functional as F

from meta_learning.outer_losses.cvar import ConditionalValueAtRisk
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.3, 0.01])
def test_it_is_the_least_value_of_rockafellar_and_uryasev(share):
    """min over t of t + mean max(L - t, 0) / a, attained at one of the losses."""
    losses = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = min(float(t + (losses - t).clamp(min=0).mean() / share) for t in losses)
    assert float(ConditionalValueAtRisk(share=share)(losses)) == pytest.approx(expected, rel=1e-12)


CHOICES = [{}, {"task_chunk_size": 1}, {"gradient_checkpointing": True}, {"use_multi_step_loss_optimization": True}]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_meta_gradient_is_that_of_the_worst_tasks_however_it_is_computed(choice):
    changes = {"outer_loss": "cvar", "cvar_share": 0.6} | choice  # 2.4 of 4 tasks
    learner = small_learner(**changes)
    episodes, names = random_episodes(small_config(**changes)), list(learner.inner_loop.names)
    weights = learner.multi_step_loss_weights(0)

    def loss_of_task(leaves, task):
        values, loss = network_values(leaves), 0.0
        for weight in weights:
            values = adapted(values, names, task, 1, lambda s, now, g: {n: now[n] - 0.2 * g[n] for n in names})
            loss = loss + weight * F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])
        return loss

    def outer(losses):
        largest = losses.sort(descending=True).values
        return (largest[0] + largest[1] + 0.4 * largest[2]) / 2.4

    found = learner.meta_gradients(episodes, 0)
    expected = plain_meta_gradients(learner, episodes, loss_of_task, outer)
    assert worst_difference(found.gradients, expected) < 1e-9
    leaves = {name: value.detach().requires_grad_() for name, value in learner.meta_parameters().items()}
    losses = torch.stack([loss_of_task(leaves, episodes.task(index)) for index in range(4)])
    assert float(found.metrics["loss"]) == pytest.approx(outer(losses).item(), rel=1e-12)


def test_all_tasks_are_the_mean():
    learners = small_learner(), small_learner(outer_loss="cvar", cvar_share=1.0)
    one, other = (learner.meta_gradients(random_episodes(small_config()), 0).gradients for learner in learners)
    assert worst_difference(other, one) < 1e-12
