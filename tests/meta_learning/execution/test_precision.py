"""Convolutions in bfloat16, and the guard that compares their meta-gradients with float32's."""

import logging
from dataclasses import replace

import pytest
import torch

from meta_learning.execution.precision import ConvolutionPrecision
from meta_learning.operations.convolution import Geometry, convolve
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from utils.errors import ConfigError


def float32(episodes):
    """The same episodes with images in float32."""
    return replace(episodes, support_images=episodes.support_images.float(), query_images=episodes.query_images.float())


def learner_and_episodes(**changes):
    """A small MAML++ learner in bfloat16 that lets any error pass."""
    learner = small_learner(precision="bfloat16", precision_error_limit=1e6, **PLUS_PLUS | changes)
    return learner, float32(random_episodes(small_config()))


def flat(gradients):
    """All gradients in one vector."""
    return torch.cat([value.flatten() for value in gradients.gradients.values()])


def test_products_are_rounded_to_bfloat16_and_sums_are_not():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 6, 6, generator=generator), torch.randn(4, 3, 3, 3, generator=generator)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    narrow, wide = convolve(x, weight, None, geometry, torch.bfloat16), convolve(x, weight, None, geometry)
    of_rounded = convolve(x.bfloat16().float(), weight.bfloat16().float(), None, geometry)
    assert narrow.dtype == torch.float32
    assert 0 < float((narrow - wide).norm() / wide.norm()) < 0.01
    torch.testing.assert_close(narrow, of_rounded, rtol=2**-7, atol=2**-7)  # the result is rounded once more


def test_gradients_come_in_the_format_of_the_parameters():
    learner, episodes = learner_and_episodes()
    gradients = learner.meta_gradients(episodes, 0).gradients
    assert {value.dtype for value in gradients.values()} == {torch.float32}
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}


def test_the_guard_reports_the_relative_error_once_in_an_epoch(caplog):
    learner, episodes = learner_and_episodes()
    with caplog.at_level(logging.INFO, logger="meta_learning.execution.precision"):
        narrow = learner.meta_gradients(episodes, 0)
        learner.meta_gradients(episodes, 0)
        assert len(caplog.records) == 1
        learner.meta_gradients(episodes, 1)
    assert len(caplog.records) == 2
    with learner.execution.precision.exact():
        exact = learner.meta_gradients(episodes, 0)
    error = float((flat(narrow).double() - flat(exact).double()).norm() / flat(exact).double().norm())
    assert 0.001 < error < 1
    assert (
        caplog.records[0].message
        == f"epoch 1: the meta-gradient in bfloat16 differs from that in float32 by {error:.3g} of its norm."
    )


def test_a_large_error_stops_training_and_names_the_way_out():
    learner, episodes = learner_and_episodes()
    learner.execution.precision.error_limit = 0.0001
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    with pytest.raises(ConfigError) as raised:
        learner.meta_gradients(episodes, 2)
    text = str(raised.value)
    assert text.startswith(
        '"precision" bfloat16: in epoch 3 the meta-gradient of one meta-batch differs from that in float32 by 0.'
    )
    assert text.endswith(
        '"precision_error_limit" allows 0.0001. Set "precision" to float32, or allow more: a rerun goes on'
    )
    assert all(torch.equal(before[name], value) for name, value in learner.state_tensors().items())


def test_numbers_that_are_not_finite_stop_it_too():
    precision = ConvolutionPrecision(torch.nn.Identity(), torch.bfloat16)
    with pytest.raises(ConfigError, match="by nan of its norm"):
        precision.check(lambda: {"weight": torch.tensor([float("nan")])}, 0)


def test_without_it_the_guard_computes_nothing():
    ConvolutionPrecision(torch.nn.Identity()).check(lambda: pytest.fail("computed"), 0)


def test_only_built_in_networks_of_convolutions_can_have_it():
    with pytest.raises(ConfigError) as raised:
        small_config(precision="bfloat16", backbone="mlp", mlp_hidden_sizes=[4])
    assert (
        '"precision" bfloat16 concerns the convolutions of the built-in networks, and "backbone" mlp has none of those'
        in str(raised.value)
    )
