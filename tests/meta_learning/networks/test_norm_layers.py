"""Norm layers and the four sources of batch-norm statistics, against formulas written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.norms.group_norm import MetaGroupNorm
from meta_learning.networks.norms.statistics import warn_of_unfit
from meta_learning.networks.norms.task_norm import MetaTaskNorm2d
from meta_learning.networks.passes import Pass, PassRecord
from tests.tools.learners import random_episodes, small_config, small_learner
from utils.errors import ConfigError

INDUCTIVE = ("running", "support", "episodic")


def folded(n: int, n_tasks: int = 2, filters: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n_tasks * filters, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x, mean, var, eps=1e-5):
    return (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + eps)


def test_support_statistics_normalise_both_sets_of_a_joint_pass():
    layer, support, query = MetaBatchNorm2d(3).double(), folded(5), folded(7, seed=1)
    pass_ = Pass(statistics="support", is_query=True, n_support=5)
    out = layer(torch.cat([support, query]), n_tasks=2, pass_=pass_)
    expected = normalised(torch.cat([support, query]), support.mean((0, 2, 3)), support.var((0, 2, 3), correction=0))
    assert torch.allclose(out, expected, rtol=1e-12)
    assert torch.allclose(out[:5], layer(support, n_tasks=2, pass_=Pass(statistics="support")), rtol=1e-10)


def test_episodic_statistics_are_a_moving_average_over_the_support_passes_from_zero_and_one():
    layer, moving = MetaBatchNorm2d(3, momentum=0.2).double(), {}
    mean, var = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for step in range(3):
        support = folded(5, seed=step)
        layer(
            support, n_tasks=2, pass_=Pass(step, statistics="episodic", record=PassRecord(moving=moving)), name="norm"
        )
        mean, var = 0.8 * mean + 0.2 * support.mean((0, 2, 3)), 0.8 * var + 0.2 * support.var((0, 2, 3))
    query = folded(7, seed=9)
    out = layer(
        query,
        n_tasks=2,
        pass_=Pass(2, statistics="episodic", is_query=True, record=PassRecord(moving=moving)),
        name="norm",
    )
    assert torch.allclose(out, normalised(query, mean, var), rtol=1e-6)


def test_task_norm_equals_its_formula_and_mixes_as_learned():
    layer, support, query = MetaTaskNorm2d(3).double(), folded(5), folded(7, seed=1)
    with torch.no_grad():
        layer.alpha_scale.fill_(0.1)
        layer.alpha_offset.fill_(-0.3)
    alpha = torch.sigmoid(torch.tensor(0.1 * 5 - 0.3, dtype=torch.float64))
    mean_c, var_c = support.mean((0, 2, 3)), support.var((0, 2, 3), correction=0)
    mean_i, var_i = query.mean((2, 3)), query.var((2, 3), correction=0)
    mean = alpha * mean_c + (1 - alpha) * mean_i
    var = alpha * (var_c + (mean_c - mean) ** 2) + (1 - alpha) * (var_i + (mean_i - mean) ** 2)
    expected = (query - mean[..., None, None]) / torch.sqrt(var[..., None, None] + 1e-5)
    out = layer(torch.cat([support, query]), n_tasks=2, pass_=Pass(statistics="support", is_query=True, n_support=5))
    assert torch.allclose(out[5:], expected, rtol=1e-10)


def test_group_norm_is_torchs_for_each_task():
    ours, x = MetaGroupNorm(3, 6).double(), folded(4, filters=6)
    params = {name: torch.randn(2, 6, dtype=torch.float64) for name in ("weight", "bias")}
    out = ours(x, params, n_tasks=2)
    for task in range(2):
        plain = F.group_norm(x[:, task * 6 : task * 6 + 6], 3, params["weight"][task], params["bias"][task])
        assert torch.allclose(out[:, task * 6 : task * 6 + 6], plain, rtol=1e-10)


def logits_of_first_query(learner, episodes, others: float, statistics: str) -> torch.Tensor:
    """Logits of each task's first query image when all other query images are multiplied by `others`."""
    images = episodes.query_images.clone()
    images[:, 1:] *= others
    changed = type(episodes)(
        episodes.support_images, episodes.support_labels, images, episodes.query_labels, episodes.seeds
    )
    return learner.evaluate(changed, statistics=statistics).query_logits[:, 0]


@pytest.mark.parametrize("statistics", INDUCTIVE)
def test_inductive_statistics_make_a_query_independent_of_the_others(statistics):
    learner, episodes = small_learner(), random_episodes(small_config())
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    alone, among_others = (logits_of_first_query(learner, episodes, factor, statistics) for factor in (1.0, 3.0))
    assert torch.allclose(alone, among_others, rtol=1e-9)
    alone, among_others = (logits_of_first_query(learner, episodes, factor, "transductive") for factor in (1.0, 3.0))
    assert not torch.allclose(alone, among_others, rtol=1e-2)


def test_each_block_can_have_statistics_of_its_own():
    """Two blocks of one kind are that kind; a mixture is neither of its parts."""
    episodes = random_episodes(small_config())
    of_kind = {
        kind: small_learner(batch_norm_statistics=kind).evaluate(episodes).query_logits
        for kind in ("support", "episodic")
    }
    for kind, logits in of_kind.items():
        assert torch.allclose(
            small_learner(batch_norm_statistics=[kind, kind]).evaluate(episodes).query_logits, logits, rtol=1e-9
        )
    mixed = small_learner(batch_norm_statistics=["support", "episodic"]).evaluate(episodes).query_logits
    assert all(not torch.allclose(mixed, logits, rtol=1e-3) for logits in of_kind.values())
    with pytest.raises(
        ConfigError, match=r'"batch_norm_statistics" lists 3 values, but the network has 2 stages \(block0, block1\)'
    ):
        small_learner(batch_norm_statistics=["support"] * 3)


def test_running_statistics_that_were_never_collected_are_an_error():
    learner, episodes = small_learner(), random_episodes(small_config())
    with pytest.raises(ConfigError, match=r'"running" were never collected .*block0.norm.*train first'):
        learner.evaluate(episodes, statistics="running")
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    learner.evaluate(episodes, statistics="running")


def test_statistics_that_an_adapted_body_was_not_trained_with_are_named_once(caplog):
    episodes, text = random_episodes(small_config()), "and a body that the inner steps adapt"
    for choices, statistics, reason in (
        ({}, "running", "the inner steps move the means"),
        ({}, "episodic", 'begin at mean 0 and variance 1 in each task, and training was with "transductive"'),
        ({"batch_norm_statistics": "episodic"}, "episodic", ""),
        ({}, "support", ""),
        ({"batch_norm_statistics": ["running", "transductive"]}, None, "the inner steps move the means"),
        ({"adapted_parameters": "head"}, "running", ""),
        ({"norm_layer": "layer_norm"}, "running", ""),
    ):
        warn_of_unfit.cache_clear()
        caplog.clear()
        learner = small_learner(**choices)
        learner.meta_update(learner.meta_gradients(episodes, 0), 0)
        for _ in range(2):
            learner.evaluate(episodes, statistics=statistics)
        assert caplog.text.count(text) == bool(reason) and reason in caplog.text


def test_batch_norm_without_a_mode_is_torchs():
    plain = nn.BatchNorm2d(3).double()
    x, training = folded(5, n_tasks=1), Pass(is_training=True)
    assert torch.equal(MetaBatchNorm2d(3).double()(x, pass_=training, name="n"), plain(x))
    assert torch.allclose(0.1 * training.record.mean_statistics()["n.running_mean"], plain.running_mean, rtol=1e-6)
