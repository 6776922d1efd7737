"""What a plugin's part promises is tried before any data are read: each broken promise is one error that names it."""

import pytest
import torch
from torch import nn

from few_shot_learning_system import build_learner
from meta_learning.heads.base import Head
from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.losses.base import TaskLoss
from meta_learning.networks.adapters.base import Adapter
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.outer_losses.base import OuterLoss
from tests.tools.learners import random_episodes, small_config
from utils.errors import ConfigError
from utils.registry import choices, register_adapter_kind


def rule(direction, **methods):
    return type("Rule", (InnerLoopOptimizer,), {"direction": direction, **methods})


class Remembers(InnerLoopOptimizer):
    steps_seen = 0

    def direction(self, params, gradients, state, step):
        self.steps_seen += 1
        return [gradient * self.steps_seen for gradient in gradients], state


class Momentum(InnerLoopOptimizer):
    """Keeps what it must, as a list."""

    def init(self, params):
        return {"moving": [torch.zeros_like(value) for value in params.values()], "count": [torch.zeros(())]}

    def direction(self, params, gradients, state, step):
        moving = [0.5 * before + gradient for before, gradient in zip(state["moving"], gradients, strict=True)]
        return moving, {"moving": moving, "count": [state["count"][0] + 1]}


class Generated(Momentum):
    """Learns a layer that makes a factor of every step."""

    def __init__(self, shapes, learning_rate, n_steps, **shared):
        super().__init__(shapes, learning_rate, n_steps, **shared)
        self.factor = nn.Linear(1, 1)

    def direction(self, params, gradients, state, step):
        moving, state = super().direction(params, gradients, state, step)
        return [self.factor(value[..., None])[..., 0] for value in moving], state


BROKEN_RULES = {
    r"fails: TypeError: .* takes 2 positional arguments but 5 were given": rule(lambda self, x: x),
    "`direction` returns None, but must return a pair": rule(lambda self, p, g, s, step: None),
    "`direction` returns a list of 1, but must return a list of [0-9]+ tensors": rule(
        lambda self, p, g, s, step: (list(g[:1]), s)
    ),
    r"`direction` returns for block0.conv.weight a tensor of \(., 1, 3, 3\), but must return a tensor of \(2, ": rule(
        lambda self, p, g, s, step: ([x.mean(0) for x in g], s)
    ),
    "its state is None, but must be a dict of name -> list of tensors": rule(lambda self, p, g, s, step: (g, None)),
    "its state is count: 1, but must be a dict": rule(lambda self, p, g, s, step: (g, {"count": 1})),
    "`update` returns a list of [0-9]+, but must return block0.conv.weight, ": rule(
        lambda self, p, g, s, step: (g, s), update=lambda self, p, g, s, step: (list(p.values()), s)
    ),
    "the same first steps move block0.conv.weight otherwise the second time; .* belongs in its state": Remembers,
}


def head(make, **facts):
    return type("Own", (Head,), {"make": make, **facts})


def loss(losses, **facts):
    return type("Own", (TaskLoss,), {"losses": losses, **facts})


def outer(forward, **methods):
    return type("Own", (OuterLoss,), {"forward": forward, **methods})


@pytest.mark.parametrize("message", BROKEN_RULES)
def test_a_rule_that_breaks_its_promise_is_named(message):
    with pytest.raises(ConfigError, match=rf'inner_loop_optimizer "\w+":? {message}'):
        build_learner(small_config(), "cpu", inner_loop_optimizer=BROKEN_RULES[message])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"head": head(lambda self, x: {})}, r'head "Own" fails: TypeError: .*takes 2 positional arguments but 4'),
        ({"head": head(lambda self, x, y, n: {"weight": x})}, "`make` returns weight, but must return head.weight, "),
        (
            {"head": head(lambda self, x, y, n: {"head.weight": x.mean(1), "head.bias": y})},
            r"`make` returns for head.weight a tensor of \(2, [0-9]+\), but must return a tensor of \(2, .*first axis",
        ),
        ({"loss": loss(lambda self, o, y: o.mean())}, r"`losses` returns a tensor of \(\), .*: one loss per task"),
        ({"loss": type("Own", (TaskLoss,), {})}, 'loss "Own": has no method `losses`, which its base class asks for'),
        ({"outer_loss": outer(lambda self, losses: 0.5)}, r"`forward` returns 0.5, but must return a tensor of \(\)"),
        ({"outer_loss": outer(lambda self, losses: losses)}, r"`forward` returns a tensor of \(2,\), .*: one number"),
        ({"outer_loss": type("Own", (OuterLoss,), {})}, 'outer_loss "Own": has no method `forward`'),
        (
            {"outer_loss": outer(lambda self, losses: losses.mean(), step_weights=lambda self, e, n: [1.0] * 7)},
            "`step_weights` returns 7 weights for . inner steps, but must return as many as there are steps",
        ),
        (
            {"norm_layer": lambda shape, choice: type("Own", (MetaNorm,), {"forward": lambda self, x: x})()},
            r'norm_layer "given" fails: TypeError: .*takes 2 positional arguments but 6 were given',
        ),
    ],
)  # fmt: skip
def test_so_is_any_other_part(part, message):
    with pytest.raises(ConfigError, match=message):
        build_learner(small_config(), "cpu", **part)


def test_an_adapter_keeps_the_shape_of_its_layers_outputs(monkeypatch):
    class First(Adapter):
        adapts = ("scale",)

        def __init__(self, layer):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x, out):
            return out[:1] * self.scale

    monkeypatch.setattr(choices, "_chosen", {})
    register_adapter_kind("first", First)
    with pytest.raises(ConfigError, match=r'adapter_kind "first" makes features of \(1, 1, .* keep their shape'):
        build_learner(small_config(adapter_kind="first"), "cpu")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_keeps_its_promise_trains(precision):
    def make(self, features, labels, n_way):
        of_classes = nn.functional.one_hot(labels, n_way).to(features.dtype).mT @ features
        return {"head.weight": of_classes, "head.bias": of_classes.mean(2)}

    learner = build_learner(
        config := small_config(precision=precision),
        "cpu",
        inner_loop_optimizer=Generated,
        head=head(make, uses_features=True),
        loss=loss(lambda self, outputs, labels: (outputs - 1).square().mean((1, 2))),
    )
    if precision == "float64":  # that of the episodes
        assert torch.isfinite(learner.meta_gradients(random_episodes(config), 0).metrics["loss"])
