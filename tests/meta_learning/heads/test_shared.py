"""UNICORN-MAML's head, against a few lines of plain torch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients

CHOICE = {"head": "shared", "shared_temperature": 0.5, "number_of_training_steps_per_iter": 2}


def yes_or_no(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).double())


@pytest.mark.parametrize(("name", "loss"), [("cross_entropy", F.cross_entropy), ("binary_cross_entropy", yes_or_no)])
def test_the_meta_gradient_is_that_of_a_repeated_vector(name, loss):
    changes = CHOICE | {"loss": name}
    learner = small_learner(**changes)
    episodes, names = random_episodes(small_config(**changes)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        values = network_values(leaves)
        values |= {"head.weight": leaves["head.weight"].repeat(3, 1), "head.bias": leaves["head.bias"].repeat(3)}
        values = adapted(values, names, task, 2, lambda s, now, g: {n: now[n] - 0.2 * g[n] for n in names}, loss)
        return loss(logits_of(values, task.query_images[0]) / 0.5, task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9
    assert (expected["head.weight"].abs().max() > 1e-3) == (name == "binary_cross_entropy")


def test_what_all_classes_share_has_no_effect_on_a_softmax():
    episodes = random_episodes(small_config())
    shared, zero = (small_learner(head=head).evaluate(episodes) for head in ("shared", "zero"))
    assert torch.allclose(shared.query_logits.softmax(-1), zero.query_logits.softmax(-1), rtol=1e-9)


def test_every_order_of_labels_gives_the_same_accuracy_and_ways_may_vary():
    learner, episodes = small_learner(**CHOICE), random_episodes(small_config())
    before = learner.evaluate(episodes)
    for order in ([2, 0, 1], [1, 0, 2]):
        order = torch.tensor(order)
        renamed = replace(
            episodes, support_labels=order[episodes.support_labels], query_labels=order[episodes.query_labels]
        )
        after = learner.evaluate(renamed)
        # Before any step all classes are as likely, and the first of them is the answer.
        assert torch.equal(before.query_accuracy[1:], after.query_accuracy[1:])
        assert torch.allclose(before.query_logits, after.query_logits[..., order], rtol=1e-9, atol=1e-12)
    wider = random_episodes(small_config(num_classes_per_set=4))
    assert learner.evaluate(wider).query_logits.shape[-1] == 4


def test_before_adaptation_every_class_is_as_likely():
    evaluation = small_learner(**CHOICE).evaluate(random_episodes(small_config()))
    assert evaluation.query_loss[0].tolist() == pytest.approx([float(torch.log(torch.tensor(3.0)))] * 4, rel=1e-6)
