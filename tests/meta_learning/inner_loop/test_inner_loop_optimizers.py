"""Update rules of the inner loop against hand-worked derivatives; against `torch.optim` they are checked in
test_check_gradients.
"""

import math

import pytest
import torch

from meta_learning.inner_loop.adam import Adam
from meta_learning.inner_loop.base import RATE_QUANTILES
from meta_learning.inner_loop.gradient_descent import GradientDescent
from meta_learning.inner_loop.rmsprop import RMSprop
from tests.tools.learners import random_episodes, small_config, small_learner
from utils.errors import ConfigError

DOUBLE = {"dtype": torch.float64}


def run(optimizer, start: float, n_steps: int, slope):
    """Adapt one weight with the inner gradient slope(w) for n_steps; return the weight before and after."""
    weight = torch.tensor([start], dtype=torch.float64, requires_grad=True)  # (B = 1,)
    params, state = {"w": weight}, optimizer.init({"w": weight})
    for step in range(n_steps):
        params, state = optimizer.update(params, [slope(params["w"])], state, step)
    return weight, params["w"]


def test_two_steps_with_momentum_have_the_derivative_worked_by_hand():
    """L(w) = a w^2 / 2, so g = a w. With momentum m: b0 = a w0, w1 = w0 - r b0, b1 = m b0 + a w1, w2 = w1 - r b1.

    w1 = (1 - r a) w0,  w2 = w1 - r m a w0 - r a w1 = [(1 - r a)^2 - r m a] w0, and d w2 / d w0 is the bracket.
    """
    a, r, m = 0.7, 0.3, 0.9
    before, after = run(GradientDescent({"w": ()}, r, 2, momentum=m, **DOUBLE), 2.0, 2, lambda w: a * w)
    bracket = (1 - r * a) ** 2 - r * m * a
    assert after.item() == pytest.approx(2.0 * bracket, rel=1e-12)
    assert torch.autograd.grad(after, before)[0].item() == pytest.approx(bracket, rel=1e-12)


def test_a_step_with_weight_decay_has_the_derivative_worked_by_hand():
    """g = sin(w), coupled decay d: w1 = w0 - r (sin(w0) + d w0), so d w1 / d w0 = 1 - r (cos(w0) + d)."""
    w, r, d = 0.4, 0.3, 0.05
    before, after = run(GradientDescent({"w": ()}, r, 1, weight_decay=d, **DOUBLE), w, 1, torch.sin)
    assert after.item() == pytest.approx(w - r * (math.sin(w) + d * w), rel=1e-12)
    assert torch.autograd.grad(after, before)[0].item() == pytest.approx(1 - r * (math.cos(w) + d), rel=1e-12)


def test_meta_sgd_has_the_gradient_of_each_element_worked_by_hand():
    """w1[i] = w0[i] - alpha[i] g[i], outer loss sum_i c[i] w1[i]: the gradient of alpha[i] is -c[i] g[i], that of
    w0[i] is c[i].
    """
    optimizer = GradientDescent({"layer.w": (3,)}, 0.1, 5, learning_rates="per_element", **DOUBLE)
    c, g = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), torch.tensor([[0.5, 0.25, -4.0]], dtype=torch.float64)
    start = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    after, _ = optimizer.update({"layer.w": start}, [g], {}, step=4)
    (after["layer.w"] * c).sum().backward()
    assert optimizer.element_rates["layer/w"].grad.tolist() == pytest.approx((-c * g[0]).tolist(), rel=1e-12)
    assert start.grad[0].tolist() == c.tolist()
    assert optimizer.mean_rates() == {"layer.w": [pytest.approx(0.1)]}


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_a_gradient_of_zero_leaves_the_weight_and_a_finite_meta_gradient(kind):
    optimizer = kind({"w": ()}, 0.1, 3, **DOUBLE)
    before, after = run(optimizer, 1.5, 3, lambda w: 0.0 * w)
    assert after.item() == 1.5
    assert torch.isfinite(torch.autograd.grad(after, before)[0]).all()
    before, after = run(optimizer, 0.0, 3, lambda w: w**3)  # gradient and curvature are zero at the start
    assert torch.isfinite(torch.autograd.grad(after, before)[0]).all()


def test_the_spread_of_meta_sgd_s_rates_is_that_of_its_elements():
    optimizer = GradientDescent({"a.weight": (7, 3), "b": ()}, 0.1, 3, learning_rates="per_element", **DOUBLE)
    with torch.no_grad():
        optimizer.element_rates["a/weight"].copy_(torch.arange(21, dtype=torch.float64).flip(0).reshape(7, 3) / 20)
    quantiles = optimizer.rate_quantiles()
    expected = torch.quantile(
        torch.linspace(0, 1, 21, dtype=torch.float64), torch.tensor(RATE_QUANTILES, dtype=torch.float64)
    )
    assert quantiles["a.weight"] == pytest.approx(expected.tolist(), abs=1e-12)
    assert quantiles["b"] == [pytest.approx(0.1)] * len(RATE_QUANTILES)
    assert GradientDescent({"b": ()}, 0.1, 3, **DOUBLE).rate_quantiles() == {}


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_adaptive_rules_have_the_derivative_of_finite_differences(kind):
    optimizer = kind({"w": ()}, 0.1, 3, epsilon=1e-3, **DOUBLE)
    before, after = run(optimizer, 0.8, 3, torch.sin)
    ends = [run(optimizer, 0.8 + h, 3, torch.sin)[1].item() for h in (1e-6, -1e-6)]
    assert torch.autograd.grad(after, before)[0].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-7)


def test_the_norm_is_clipped_for_each_task_by_itself():
    optimizer = GradientDescent({"a": (2,), "b": ()}, 1.0, 1, clip_norm=1.0, **DOUBLE)
    params = {"a": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    gradients = [
        torch.tensor([[2.0, 1.0], [0.2, 0.1]], dtype=torch.float64),
        torch.tensor([2.0, 0.2], dtype=torch.float64),
    ]
    after, _ = optimizer.update(params, gradients, {}, 0)
    norms = torch.sqrt(after["a"].square().sum(1) + after["b"].square())
    assert norms.tolist() == pytest.approx([1.0, 0.3], rel=1e-5)  # the second task's norm of 0.3 is within the bound


def test_anil_adapts_the_head_alone_and_has_the_gradient_of_full_maml_with_a_frozen_body():
    """ANIL: theta_body enters the outer loss only through the features, the head through its steps as well."""
    episodes = random_episodes(small_config())
    anil = small_learner(adapted_parameters="head")
    frozen = small_learner(frozen_layers=["block0", "block1"])
    assert anil.inner_loop.names == frozen.inner_loop.names == ("head.weight", "head.bias")
    # Per-step norm rows switch off the shortcut by which one pass through the body serves all steps.
    slow = small_learner(adapted_parameters="head", per_step_bn_statistics=True)
    with torch.no_grad():
        for name, value in slow.network.named_parameters():
            value.copy_(dict(anil.network.named_parameters())[name].expand_as(value))
    fast_gradients, slow_gradients = (learner.meta_gradients(episodes, 0).gradients for learner in (anil, slow))
    for name, value in fast_gradients.items():
        other = slow_gradients[name]
        other = other.sum(0) if other.dim() > value.dim() else other
        assert torch.allclose(value, other, rtol=1e-9, atol=1e-12), name


def test_a_pattern_of_frozen_layers_that_matches_nothing_is_an_error():
    with pytest.raises(
        ConfigError,
        match='"frozen_layers": "conv9" matches no parameter; layers and parameters are, for example, block0, ',
    ):
        small_learner(frozen_layers=["conv9"])
    with pytest.raises(ConfigError, match="leave nothing for the inner loop to adapt"):
        small_learner(frozen_layers=["block*", "head"])
    assert small_learner(frozen_layers=["conv", "head.bias"]).inner_loop.names == ("head.weight",)
