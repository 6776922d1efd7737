"""MeTAL, against a few lines of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from few_shot_classifier.adapted_task import adapt
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import logits_of, network_values, plain_meta_gradients
from utils.errors import ConfigError

CHOICE = {"inner_loop_optimizer": "metal"}
INDUCTIVE = CHOICE | {"metal_unlabelled_queries": False}
TENSORS = ("hidden_weight", "hidden_bias", "last_weight", "last_bias")


def moved(learner):
    """The learner with losses that tasks shape."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in learner.inner_loop.named_parameters():
            if not name.startswith("learning_rates"):
                value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return learner


def normalised(x):
    return (x - x.mean()) / (x.std() + 1e-12)


def learned_loss(own, states, shared, step):
    """The mean over images of one task's loss network, entry by entry of the equations."""
    hidden = F.relu(F.linear(shared, own[f"shapers.{step}.0.weight"], own[f"shapers.{step}.0.bias"]))
    g, h = F.linear(hidden, own[f"shapers.{step}.2.weight"], own[f"shapers.{step}.2.bias"]).chunk(2)
    a, b = own["shares"][step]
    w1, b1, w2, b2 = ((1 + a[i] * g[i]) * own[name][step] + b[i] * h[i] for i, name in enumerate(TENSORS))
    return torch.stack([(w2 @ F.relu(w1 @ state + b1) + b2).sum() for state in states]).mean()


@pytest.mark.parametrize("choice", [CHOICE, INDUCTIVE, CHOICE | {"gradient_checkpointing": True}], ids=str)
def test_the_meta_gradient_is_that_of_the_learned_losses(choice):
    learner, episodes = moved(small_learner(**choice)), random_episodes(small_config())
    names = list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        values = network_values(leaves)
        of_support, of_query = (
            {n.removeprefix(f"inner_loop.{part}."): v for n, v in leaves.items() if n.startswith(f"inner_loop.{part}.")}
            for part in ("of_support", "of_query")
        )
        for step in range(3):
            logits = logits_of(values, task.support_images[0])
            loss = F.cross_entropy(logits, task.support_labels[0])
            means = torch.stack([values[name].mean() for name in names])
            shared = torch.cat([loss[None], means])
            one_hot = torch.eye(3, dtype=logits.dtype)[task.support_labels[0]]
            states = torch.stack([torch.cat([shared, *pair]) for pair in zip(logits, one_hot, strict=True)])
            objective = loss + learned_loss(of_support, normalised(states), normalised(shared), step)
            if of_query:
                queries = logits_of(values, task.query_images[0])
                minus_entropy = [(q.softmax(0) * q.softmax(0).log()).sum()[None] for q in queries]
                states = normalised(
                    torch.stack([torch.cat([means, *pair]) for pair in zip(queries, minus_entropy, strict=True)])
                )
                objective = objective + learned_loss(of_query, states, states.mean(0), step)
            gradients = torch.autograd.grad(objective, [values[name] for name in names], create_graph=True)
            values = values | {n: values[n] - 0.2 * g for n, g in zip(names, gradients, strict=True)}
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    ours = learner.meta_gradients(episodes, 0).gradients
    assert worst_difference(ours, expected) < 1e-9
    assert all(ours[f"inner_loop.of_support.{name}"].any() for name in (*TENSORS[:3], "shares"))


def test_losses_of_zero_are_maml():
    episodes, learner = random_episodes(small_config()), small_learner(**CHOICE)
    with torch.no_grad():
        for part in (learner.inner_loop.of_support, learner.inner_loop.of_query):
            part.last_weight.zero_()
    ours, maml = learner.evaluate(episodes), small_learner().evaluate(episodes)
    assert torch.allclose(ours.query_logits, maml.query_logits, rtol=1e-12, atol=1e-12)
    assert torch.allclose(ours.support_loss, maml.support_loss, rtol=1e-12)


def test_with_alfa_losses_of_zero_are_alfa():
    episodes = random_episodes(small_config())
    with_losses, alfa = (small_learner(inner_loop_optimizer=name) for name in ("metal_alfa", "alfa"))
    with torch.no_grad():
        for part in (with_losses.inner_loop.of_support, with_losses.inner_loop.of_query):
            part.last_weight.zero_()
    shared = {n: v for n, v in with_losses.state_dict().items() if "inner_loop.of_" not in n}
    alfa.load_state_dict(shared)
    ours, plain = (learner.meta_gradients(episodes, 0).gradients for learner in (with_losses, alfa))
    assert worst_difference({name: ours[name] for name in plain}, plain) < 1e-9


ALFA_TOO = {"inner_loop_optimizer": "metal_alfa"}


@pytest.mark.parametrize("choice", [CHOICE, ALFA_TOO, INDUCTIVE | {"batch_norm_statistics": "support"}], ids=str)
def test_every_check_of_gradients_passes(choice):
    learner = moved(small_learner(**choice))
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("choice", [CHOICE, INDUCTIVE], ids=str)
def test_other_query_images_change_the_adapted_weights_where_the_method_sees_them(choice):
    learner, episodes = moved(small_learner(**choice)), random_episodes(small_config())
    others = random_episodes(small_config(), seed=1)
    changed = type(episodes)(**vars(episodes) | {"query_images": others.query_images})
    one, other = (learner.adapt(each).params["head.weight"] for each in (episodes, changed))
    assert torch.equal(one, other) == (choice is INDUCTIVE)


def test_a_task_without_query_images_is_adapted_by_its_support_images():
    learner, episodes = moved(small_learner(**CHOICE)), random_episodes(small_config())
    adapted = adapt(learner, episodes.support_images[0], episodes.support_labels[0], n_way=3)
    assert adapted.logits(episodes.query_images[0], step=3).isfinite().all()


def test_wrong_use_gives_one_clear_error():
    with pytest.raises(
        ConfigError, match="metal learns what it descends on, which has no gradient in first order; set"
    ):
        small_config(**CHOICE, second_order=False)
    with pytest.raises(ConfigError, match=r'one number of classes, but "num_classes_per_set" is \[3, 4\]'):
        small_learner(**CHOICE, head="zero", num_classes_per_set=[3, 4])
    with pytest.raises(ConfigError, match="metal was made for 3 classes, but an episode has 4"):
        small_learner(**CHOICE, head="zero").evaluate(random_episodes(small_config(num_classes_per_set=4)))
