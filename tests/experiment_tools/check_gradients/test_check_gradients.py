"""Every choice of the learner, alone and in pairs, keeps the laws of `experiment_tools.check_gradients.checks`."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from experiment_tools.check_gradients.__main__ import check_config_gradients, main
from experiment_tools.check_gradients.checks import check_learner
from few_shot_learning_system import build_learner
from meta_learning.inner_loop.base import InnerLoopOptimizer
from tests.tools.learners import random_episodes, small_config, small_learner
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT

CHOICES = {
    "order": {"second": {}, "first": {"second_order": False}},
    "adapted": {
        "all": {},
        "head": {"adapted_parameters": "head"},
        "body": {"adapted_parameters": "body"},
        "frozen": {"frozen_layers": ["block0"]},
    },
    "rates": {
        "fixed": {},
        "lslr": {"learnable_per_layer_per_step_inner_loop_learning_rate": True},
        "meta_sgd": {"learnable_inner_loop_learning_rates": "per_element"},
        "per_layer": {"learnable_inner_loop_learning_rates": "per_layer"},
        "head_rate": {"init_head_inner_loop_learning_rate": 0.05},
    },
    "rule": {
        "sgd": {},
        "momentum": {"inner_loop_momentum": 0.9, "inner_loop_weight_decay": 0.01},
        "adam": {"inner_loop_optimizer": "adam", "init_inner_loop_learning_rate": 0.01, "inner_loop_epsilon": 0.001},
        "rmsprop": {
            "inner_loop_optimizer": "rmsprop",
            "init_inner_loop_learning_rate": 0.01,
            "inner_loop_weight_decay": 0.1,
            "inner_loop_epsilon": 0.001,
        },
        "clipped": {"inner_loop_gradient_clip_norm": 0.5, "inner_loop_gradient_clamp": 0.3},
    },
    "head": {"learned": {}, "zero": {"head": "zero"}, "prototypes": {"head": "prototypes"}},
    "loss": {
        "last": {},
        "msl": {"use_multi_step_loss_optimization": True},
        "smooth": {"label_smoothing": 0.1},
        "binary": {"loss": "binary_cross_entropy"},
    },
    "norm": {
        "transductive": {},
        "support": {"batch_norm_statistics": "support"},
        "episodic": {"batch_norm_statistics": "episodic"},
        "running": {"batch_norm_statistics": "running"},
        "mixed": {"batch_norm_statistics": ["episodic", "support"]},
        "per_step": {"per_step_bn_statistics": True},
        "adapted": {"enable_inner_loop_optimizable_bn_params": True},
        "task_norm": {"norm_layer": "task_norm", "batch_norm_statistics": "support"},
        "task_norm_transductive": {"norm_layer": "task_norm"},
        "group_norm": {"norm_layer": "group_norm", "norm_groups": 1},
        "layer_norm": {"norm_layer": "layer_norm"},
    },
    "update": {"gradient": {}, "reptile": {"outer_update": "displacement"}},
    "steps": {"two": {}, "none": {"number_of_training_steps_per_iter": 0}},
    "dropout": {"off": {}, "on": {"dropout_rate_value": 0.3}},
    "pooling": {"max": {}, "strides": {"max_pooling": False}},
}
"""Choice -> value's name -> config keys. The first value of each is MAML's."""
FIRST = tuple(f"{choice}.{next(iter(named))}" for choice, named in CHOICES.items())

IMPOSSIBLE = {
    frozenset({"adapted.body", "head.zero"}): "BOIL",
    frozenset({"update.reptile", "rates.lslr"}): "no gradient for inner learning rates",
    frozenset({"update.reptile", "rates.meta_sgd"}): "no gradient for inner learning rates",
    frozenset({"update.reptile", "rates.per_layer"}): "no gradient for inner learning rates",
    frozenset({"update.reptile", "loss.msl"}): "no second order and no outer loss",
    frozenset({"update.reptile", "order.second"}): "no second order",
    frozenset({"steps.none", "head.learned"}): "ProtoNet",
    frozenset({"steps.none", "head.zero"}): "ProtoNet",
    frozenset({"steps.none", "rates.lslr"}): "ProtoNet",
    frozenset({"steps.none", "rates.meta_sgd"}): "ProtoNet",
    frozenset({"steps.none", "rates.per_layer"}): "ProtoNet",
    frozenset({"steps.none", "loss.msl"}): "ProtoNet",
    frozenset({"steps.none", "update.reptile"}): "ProtoNet",
}
"""Pairs that are config errors, and a word of the reason."""


def allowed(names) -> bool:
    return not any(pair <= set(names) for pair in IMPOSSIBLE)


def pairs() -> set[frozenset[str]]:
    """Every possible pair of values of two different choices."""
    values = [f"{choice}.{name}" for choice, named in CHOICES.items() for name in named]
    different = (
        frozenset(pair) for pair in itertools.combinations(values, 2) if pair[0].split(".")[0] != pair[1].split(".")[0]
    )
    return {pair for pair in different if allowed(pair)}


def combinations_that_hold_every_pair() -> list[tuple[str, ...]]:
    """One value of each choice per combination, so that all of them together hold every possible pair; found
    greedily.
    """
    waiting, found = pairs(), []
    while waiting:
        chosen = sorted(min(waiting, key=sorted))
        for choice, named in CHOICES.items():
            if any(name.split(".")[0] == choice for name in chosen):
                continue
            candidates = [name for value in named if allowed([*chosen, name := f"{choice}.{value}"])]
            chosen.append(
                max(candidates, key=lambda name: sum(frozenset({name, other}) in waiting for other in chosen))
            )
        waiting -= {frozenset(pair) for pair in itertools.combinations(chosen, 2)}
        found.append(tuple(sorted(chosen)))
    return found


def keys_of(*names: str) -> dict:
    keys = {
        "num_stages": 2,
        "number_of_training_steps_per_iter": 2,
        "batch_size": 2,
        "test_batch_norm_statistics": None,
    }
    for name in names:
        choice, value = name.split(".")
        keys |= CHOICES[choice][value]
    return keys


def statistics_after_training(learner) -> None:
    """Running statistics as some training would leave them."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in learner.network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))


def combinations_by_change():
    """Return all combinations; at every change those that bring a value that none before them had."""
    seen: set[str] = set()
    parameters = []
    for names in combinations_that_hold_every_pair():
        name = "+".join(n for n in names if not n.endswith(FIRST))
        marks = [pytest.mark.full] if seen.issuperset(names) else []
        parameters.append(pytest.param(names, id=name, marks=marks))
        seen.update(names)
    return parameters


@pytest.mark.parametrize("names", combinations_by_change())
def test_every_possible_pair_of_choices_keeps_the_laws(names):
    learner = small_learner(**keys_of(*names))
    statistics_after_training(learner)
    checks = check_learner(learner, random_episodes(small_config(**keys_of(*names))))
    assert not [check for check in checks if not check.passed]


@pytest.mark.parametrize("pair", IMPOSSIBLE, ids=lambda pair: "+".join(sorted(pair)))
def test_an_impossible_pair_is_a_config_error_with_its_reason(pair):
    with pytest.raises(ConfigError, match=IMPOSSIBLE[pair]):
        small_config(**keys_of(*pair))


def test_a_cut_graph_and_a_wrong_gradient_are_found():
    """The checks themselves: a learner whose inner gradients are detached, and one whose rates are off by a
    thousandth.
    """
    episodes = random_episodes(small_config())
    cut = small_learner()
    update = cut.inner_loop.update
    cut.inner_loop.update = lambda params, gradients, state, step: update(
        params, [g.detach() for g in gradients], state, step
    )
    failed = {check.name: check.where for check in check_learner(cut, episodes) if not check.passed}
    assert failed.keys() == {"meta-gradient", "second order"} and failed["meta-gradient"].startswith("most: network.")
    wrong = small_learner()
    rates = wrong.inner_loop.rates
    wrong.inner_loop.direction = lambda params, gradients, state, step: ([1.001 * g for g in gradients], state)
    assert rates(0)[0] == 0.2
    assert {check.name for check in check_learner(wrong, episodes) if not check.passed} == {"adaptation"}


class OwnRate(InnerLoopOptimizer):
    """Gradient descent that learns a factor of its rate; `spare` is learned in name alone, `hidden` behind a zero."""

    def __init__(self, *arguments, slip=1.0, **shared):
        super().__init__(*arguments, **shared)
        self.factor, self.zero, self.hidden, self.spare = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.0, 1.0, 1.0)
        )
        self.slip = slip

    def direction(self, params, gradients, state, step):
        factor = self.factor + self.zero * self.hidden
        return [gradient * (factor.detach() + self.slip * (factor - factor.detach())) for gradient in gradients], state


def test_what_a_rule_learns_has_a_gradient_and_a_wrong_one_names_its_parameter():
    def failed(**arguments):
        config = small_config(precision="float64")
        learner = build_learner(config, "cpu", inner_loop_optimizer=partial(OwnRate, **arguments))
        checks = check_learner(learner, random_episodes(config))
        assert (
            "inner_loop.factor, inner_loop.zero, inner_loop.hidden"
            in {c.name: c for c in checks}["own parameters"].against
        )
        return {check.name: check.where for check in checks if not check.passed}

    assert failed() == {"own parameters": "inner_loop.spare: no gradient"}
    assert failed(slip=3.0)["meta-gradient"] in ("most: inner_loop.factor", "most: inner_loop.zero")


def test_the_command_checks_a_config_and_says_what_it_did(capsys):
    config = REPOSITORY_ROOT / "experiment_config" / "synthetic_strokes_maml++_5way_1shot_seed0.json"
    assert main(["--name_of_args_json_file", str(config)]) == 0
    out = capsys.readouterr().out
    assert "ok      meta-gradient" in out
    assert "against finite differences" in out
    assert out.endswith("5 checks, all passed\n")
    assert main(["--name_of_args_json_file", str(config), "--head", "random"]) == 1
    assert '"head" is "random", but must be' in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize(
    "template",
    sorted({path.stem.rsplit("_seed", 1)[0] for path in (REPOSITORY_ROOT / "experiment_config").glob("[!.]*.json")}),
)
def test_every_generated_config_keeps_the_laws(template):
    path = next((REPOSITORY_ROOT / "experiment_config").glob(f"{template}*.json"))
    # Of omniglot_fast they are those of a run; the laws hold at any weights.
    checks = check_config_gradients(path, {"initial_weights": ""})
    assert not [check for check in checks if not check.passed]
