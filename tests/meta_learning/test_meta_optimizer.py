"""The meta-update is torch's own optimisers and schedules; what is not finite never gets in; its state survives a
checkpoint.
"""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from meta_learning.meta_optimizer import LearningRateSchedule, MetaOptimizer, OuterUpdate
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from utils.errors import ConfigError

CONSTANT = LearningRateSchedule("constant", 0.01)
OPTIMIZERS = {
    "adam": (OuterUpdate("adam", CONSTANT), lambda p: torch.optim.Adam(p, 0.01)),
    "adam with decay": (
        OuterUpdate("adam", CONSTANT, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (OuterUpdate("adamw", CONSTANT, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
    "adamw without decay": (OuterUpdate("adamw", CONSTANT), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0)),
    "sgd": (OuterUpdate("sgd", CONSTANT), lambda p: torch.optim.SGD(p, 0.01)),
    "sgd with momentum": (
        OuterUpdate("sgd", CONSTANT, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    ),
    "rmsprop": (OuterUpdate("rmsprop", CONSTANT), lambda p: torch.optim.RMSprop(p, 0.01)),
    "rmsprop with momentum": (
        OuterUpdate("rmsprop", CONSTANT, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1),
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def parameters(prefix="network."):
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (3, 2), "bias": (3,)}
    return {prefix + name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients_of_step(step, learned):
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(value.shape, generator=generator) for name, value in learned.items()}


def take_step(optimizer, gradients, epoch=0, evidence=None):
    with optimizer.update(gradients, epoch, [torch.zeros(())] if evidence is None else [evidence]) as applied:
        pass
    return bool(applied)


def copies(tensors):
    return {name: value.detach().clone() for name, value in tensors.items()}


def all_equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@every_optimizer
def test_each_step_is_that_of_torch(name):
    choices, make = OPTIMIZERS[name]
    ours, theirs = parameters(), parameters()
    optimizer, expected = MetaOptimizer(ours, choices), make(theirs.values())
    for step in range(5):
        gradients = gradients_of_step(step, ours)
        assert take_step(optimizer, gradients)
        for parameter, gradient in zip(theirs.values(), gradients.values(), strict=True):
            parameter.grad = gradient
        expected.step()
        assert all_equal(ours, theirs)
    own = {key for parameter in theirs.values() for key in expected.state[parameter]}
    assert {key.split(".")[0] for key in optimizer.state_tensors()} == own


@every_optimizer
@pytest.mark.parametrize("steps_before", [0, 2])
def test_an_update_that_is_not_finite_reaches_neither_weights_nor_moments(name, steps_before):
    learned, untouched = parameters(), parameters()
    optimizer, other = (MetaOptimizer(p, OPTIMIZERS[name][0]) for p in (learned, untouched))
    for step in range(steps_before):
        for one in (optimizer, other):
            take_step(one, gradients_of_step(step, learned))
    before = copies(learned)
    bad = {key: value * float("nan") for key, value in gradients_of_step(9, learned).items()}
    assert not take_step(optimizer, bad, evidence=torch.tensor(float("inf")))
    assert all_equal(before, learned)
    assert not take_step(optimizer, gradients_of_step(10, learned))  # nothing gets in any more
    optimizer.load_state_tensors(copies(optimizer.state_tensors()) if steps_before else {})
    for one in (optimizer, other):
        assert take_step(one, gradients_of_step(3, learned))
    assert all_equal(learned, untouched) and all_equal(optimizer.state_tensors(), other.state_tensors())


@every_optimizer
def test_a_stored_state_goes_on_with_the_same_bits(name):
    learned = parameters()
    optimizer = MetaOptimizer(learned, OPTIMIZERS[name][0])
    assert optimizer.state_tensors() == {}
    for step in range(3):
        take_step(optimizer, gradients_of_step(step, learned))
    again = parameters()
    with torch.no_grad():
        for key, value in learned.items():
            again[key].copy_(value)
    resumed = MetaOptimizer(again, OPTIMIZERS[name][0])
    resumed.load_state_tensors(copies(optimizer.state_tensors()))
    for step in range(3, 5):
        for one in (optimizer, resumed):
            take_step(one, gradients_of_step(step, learned))
    assert all_equal(learned, again) and all_equal(optimizer.state_tensors(), resumed.state_tensors())


def test_the_state_of_another_optimizer_is_refused():
    adam, sgd = (
        MetaOptimizer(parameters(), OuterUpdate()),
        MetaOptimizer(parameters(), OuterUpdate("sgd", momentum=0.9)),
    )
    for optimizer in (adam, sgd):
        take_step(optimizer, gradients_of_step(0, parameters()))
    text = (
        r'of another meta-optimiser than "meta_optimizer" sgd with "meta_momentum" 0.9: its tensor '
        r'"optimizer.exp_avg.network.bias" is there, but'
    )
    with pytest.raises(ConfigError, match=text):
        sgd.load_state_tensors(adam.state_tensors())
    state = adam.state_tensors()
    del state["exp_avg_sq.network.weight"]
    with pytest.raises(
        ConfigError, match=r'"optimizer.exp_avg_sq.network.weight" is missing. Go on with the values that'
    ):
        adam.load_state_tensors(state)


def test_the_names_in_a_checkpoint_are_those_of_the_releases_before():
    learner = small_learner(**PLUS_PLUS)
    learner.meta_update(learner.meta_gradients(random_episodes(small_config()), 0), 0)
    names = {name for name in learner.state_tensors() if name.startswith("optimizer.")}
    assert names == {
        f"optimizer.{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in learner.meta_parameters()
    }


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_the_network_decays_and_learned_rates_do_not(name):
    learned = parameters() | parameters("inner_loop.")
    before = copies(learned)
    choices = OuterUpdate(name, CONSTANT, weight_decay=0.5)
    take_step(MetaOptimizer(learned, choices), {key: torch.zeros_like(value) for key, value in learned.items()})
    for key, value in learned.items():
        assert torch.equal(value, before[key]) == key.startswith("inner_loop.")


# --- clamp and clip ---------------------------------------------------------------------------------------------------


def applied_gradients(choices, gradients, learned):
    """What plain gradient descent with rate 1 subtracts."""
    before = copies(learned)
    take_step(MetaOptimizer(learned, choices), gradients)
    return {name: before[name] - value.detach() for name, value in learned.items()}


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_the_norm_is_clipped_as_torch_does(bound):
    learned = {
        name: nn.Parameter(torch.zeros_like(value))
        for name, value in (parameters() | parameters("inner_loop.")).items()
    }
    gradients = gradients_of_step(0, learned)
    applied = applied_gradients(
        OuterUpdate("sgd", LearningRateSchedule("constant", 1.0), gradient_clip_norm=bound), gradients, learned
    )
    for name, parameter in learned.items():
        parameter.grad = gradients[name].clone()
    torch.nn.utils.clip_grad_norm_(learned.values(), bound)
    for name, parameter in learned.items():
        assert torch.allclose(applied[name], parameter.grad, rtol=1e-6)


def test_the_clamp_comes_before_the_clip_and_spares_learned_rates():
    learned = {"network.a": nn.Parameter(torch.zeros(2)), "inner_loop.b": nn.Parameter(torch.zeros(1))}
    gradients = {"network.a": torch.tensor([50.0, -4.0]), "inner_loop.b": torch.tensor([6.0])}
    choices = OuterUpdate("sgd", LearningRateSchedule("constant", 1.0), gradient_clamp=4.0, gradient_clip_norm=1.0)
    norm = (16 + 16 + 36) ** 0.5  # of (4, -4) and 6
    applied = applied_gradients(choices, gradients, learned)
    assert applied["network.a"].tolist() == pytest.approx([4 / norm, -4 / norm], rel=1e-5)
    assert applied["inner_loop.b"].tolist() == pytest.approx([6 / norm], rel=1e-5)


# --- schedules --------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "cosine": (
        LearningRateSchedule("cosine", 0.01, 0.001, 20),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001),
    ),
    "step": (
        LearningRateSchedule("step", 0.01, milestones=(3, 4, 11), gamma=0.5),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 4, 11], gamma=0.5),
    ),
    "one cycle": (
        LearningRateSchedule("one_cycle", 0.01, 0.0001, 20),
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 0.01, total_steps=20, final_div_factor=4, cycle_momentum=False
        ),
    ),
    "constant": (LearningRateSchedule("constant", 0.01), lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_torchs_of_that_name(name):
    schedule, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = make(optimizer)
    for epoch in range(20):
        assert schedule.at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if epoch < 19:
            scheduler.step()
    assert schedule.at(50) == pytest.approx(
        {"cosine": 0.001, "step": 0.00125, "one cycle": 0.0001, "constant": 0.01}[name]
    )


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_cycle_of_few_epochs_ends_low(epochs):
    schedule = LearningRateSchedule("one_cycle", 0.01, 0.0001, epochs)
    assert schedule.at(epochs - 1) == pytest.approx(0.0001)
    assert all(0.0001 <= schedule.at(epoch) <= 0.01 for epoch in range(epochs))


def test_every_key_of_the_update_reaches_it():
    choices = {
        "meta_optimizer": "rmsprop",
        "meta_momentum": 0.5,
        "meta_weight_decay": 0.25,
        "gradient_clamp": 3.0,
        "gradient_clip_norm": 2.0,
        "meta_learning_rate": 0.02,
        "meta_learning_rate_schedule": "step",
        "meta_learning_rate_milestones": [2, 5],
        "meta_learning_rate_gamma": 0.75,
        "min_learning_rate": 0.01,
        "total_epochs": 7,
    }
    schedule = LearningRateSchedule("step", 0.02, 0.01, 7, (2, 5), 0.75)
    assert small_learner(**choices).meta_optimizer.choices == OuterUpdate("rmsprop", schedule, 0.5, 0.25, 3.0, 2.0)


def test_only_schedules_with_a_period_have_one():
    learner = small_learner(meta_learning_rate_schedule="constant", total_epochs=7)
    assert learner.annealing_epochs == 0 and learner.meta_learning_rate(6) == 0.001
    learner = small_learner(meta_learning_rate_schedule="one_cycle", total_epochs=7)
    assert learner.annealing_epochs == 7
    learner.anneal_over(20)
    assert learner.annealing_epochs == 20 and learner.meta_learning_rate(5) == pytest.approx(0.001)
