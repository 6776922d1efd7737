"""Heads that are made for each episode: what they start from, and that the number of ways may vary."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from meta_learning.heads.prototypes import PrototypeHead
from meta_learning.heads.zero import ZeroHead
from tests.tools.learners import random_episodes, small_config, small_learner
from utils.errors import ConfigError


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_prototypes_classify_by_squared_distance_to_the_class_means(scale):
    generator = torch.Generator().manual_seed(0)
    features, queries = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (6, 5))
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])
    head = PrototypeHead(4, scale=scale).make(features, labels, 3)
    logits = torch.einsum("bqd,bnd->bqn", queries, head["head.weight"]) + head["head.bias"][:, None]
    means = torch.stack([torch.stack([features[b][labels[b] == n].mean(0) for n in range(3)]) for b in range(2)])
    distances = -scale * torch.cdist(queries, means).square()
    assert torch.allclose(F.softmax(logits, -1), F.softmax(distances, -1), rtol=1e-9)


def test_a_zero_head_gives_every_class_the_same_chance_before_adaptation():
    assert not any(value.any() for value in ZeroHead(4).make(torch.ones(2, 3, 4), torch.zeros(2, 3), 5).values())
    learner, config = small_learner(head="zero"), small_config()
    evaluation = learner.evaluate(random_episodes(config))
    assert torch.allclose(evaluation.query_loss[0], torch.log(torch.tensor(3.0, dtype=torch.float64)).expand(4))
    assert "head.weight" not in dict(learner.network.named_parameters())


@pytest.mark.parametrize("head", ["zero", "prototypes", "shared", "ridge"])
@pytest.mark.parametrize("rates", ["none", "per_element"])
def test_other_ways_and_shots_than_in_training_work_with_heads_made_per_episode(head, rates):
    learner = small_learner(head=head, learnable_inner_loop_learning_rates=rates)
    wider = random_episodes(small_config(num_classes_per_set=4, num_samples_per_class=3))
    assert learner.evaluate(wider).query_logits.shape == (4, 8, 4)
    learner.meta_update(learner.meta_gradients(wider, 0), 0)


def test_a_permutation_of_the_classes_permutes_the_answers_of_heads_made_per_episode():
    episodes = random_episodes(small_config())
    order = torch.tensor([2, 0, 1])
    renamed = replace(
        episodes, support_labels=order[episodes.support_labels], query_labels=order[episodes.query_labels]
    )
    for head in ("zero", "prototypes", "shared", "ridge"):
        learner = small_learner(head=head)
        before, after = learner.evaluate(episodes).query_logits, learner.evaluate(renamed).query_logits
        assert torch.allclose(before, after[..., order], rtol=1e-9, atol=1e-12)


def test_a_learned_head_says_what_to_do_about_other_ways():
    wider = random_episodes(small_config(num_classes_per_set=4))
    with pytest.raises(
        ConfigError,
        match=r"the learned head has 3 outputs, but the episodes have 4 ways; use weights that were trained with "
        r'"head" "zero" or "prototypes", .* or train with one of these, or with "num_classes_per_set" 4',
    ):
        small_learner().evaluate(wider)
