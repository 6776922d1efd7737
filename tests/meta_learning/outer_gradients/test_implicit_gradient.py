"""iMAML: the implicit meta-gradient, against the unrolled one of the same inner problem."""

import pytest
import torch
from torch import nn

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from few_shot_learning_system import build_learner
from meta_learning.inner_loop.alfa import Alfa
from meta_learning.outer_gradients.implicit_gradient import conjugate_gradients
from tests.tools.gate import few_of
from tests.tools.learners import held_bytes, random_episodes, small_config, small_learner, worst_difference
from utils.config import load_config
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT

PROXIMAL = {
    "inner_loop_optimizer": "proximal",
    "proximal_strength": 50.0,
    "init_inner_loop_learning_rate": 0.01,
    "number_of_training_steps_per_iter": 80,
    "batch_size": 2,
}
IMPLICIT = PROXIMAL | {"outer_update": "implicit", "implicit_gradient_iterations": 40}


def smooth_learner(**changes):
    """A learner of a network without the kinks of ReLU and max-pooling, where an inner problem may have its least."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 4, stride=4), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3))
    return build_learner(small_config(**changes), "cpu", network=network)


@pytest.mark.parametrize(
    "choice",
    few_of(
        [
            {},
            {"adapted_parameters": "head"},
            {"adapted_parameters": "body"},
            {"head": "prototypes"},
            {"inner_loop_weight_decay": 0.1, "task_chunk_size": 1},
            {"outer_loss": "cvar", "batch_norm_statistics": "support"},
        ],
        {},
        {"outer_loss": "cvar", "batch_norm_statistics": "support"},
    ),
    ids=str,
)
def test_at_convergence_it_is_the_gradient_through_all_steps(choice):
    episodes = random_episodes(small_config(**IMPLICIT, **choice))
    implicit, unrolled, first_order = (
        smooth_learner(**keys, **choice).meta_gradients(episodes, 0)
        for keys in (IMPLICIT, PROXIMAL, PROXIMAL | {"second_order": False})
    )
    assert worst_difference(implicit.gradients, unrolled.gradients) < 1e-9
    assert worst_difference(implicit.gradients, first_order.gradients) > 1e-3
    assert torch.allclose(implicit.metrics["loss"], unrolled.metrics["loss"], rtol=1e-12)


@pytest.mark.parametrize("choice", [{}, {"head": "prototypes"}, {"adapted_parameters": "head"}], ids=str)
def test_every_check_of_gradients_passes(choice):
    keys = IMPLICIT | {"number_of_training_steps_per_iter": 3, "proximal_strength": 2.0}
    learner = small_learner(**keys, **choice)
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []


def test_its_memory_does_not_grow_with_the_steps():
    episodes = random_episodes(small_config(**IMPLICIT))

    def held(keys, steps):
        return held_bytes(small_learner(**keys | {"number_of_training_steps_per_iter": steps}), episodes)

    of_metrics = 9 * 8 * 8  # the numbers of nine more steps
    assert held(IMPLICIT, 12) <= held(IMPLICIT, 3) + of_metrics
    assert held(PROXIMAL, 12) > 2 * held(PROXIMAL, 3)


def test_proximal_steps_are_gradient_descent_on_the_loss_and_the_distance():
    """Step by step by torch.optim, of a loss that has the distance inside."""
    keys = PROXIMAL | {"number_of_training_steps_per_iter": 3}
    learner, episodes = small_learner(**keys), random_episodes(small_config(**keys)).task(0)
    ours = learner.adapt(episodes).params
    values = {name: dict(learner.network.named_parameters())[name].detach().clone() for name in ours}
    start = {name: value.clone() for name, value in values.items()}
    optimizer = torch.optim.SGD([value.requires_grad_() for value in values.values()], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        logits = learner.network(episodes.support_images, {name: value[None] for name, value in values.items()})[0]
        distance = sum((values[name] - start[name]).square().sum() for name in values)
        (torch.nn.functional.cross_entropy(logits, episodes.support_labels[0]) + 25.0 * distance).backward()
        optimizer.step()
    assert worst_difference({name: value[0] for name, value in ours.items()}, values) < 1e-9


def test_conjugate_gradients_solve_each_task_in_as_many_steps_as_it_has_numbers():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    matrix, right = root @ root.mT + torch.eye(5, dtype=torch.float64), torch.randn(3, 5, generator=generator).double()
    right[2] = 0  # solved before the first step

    def multiply(vectors):
        return torch.einsum("bij,bj->bi", matrix, torch.cat([value.flatten(1) for value in vectors], 1)).split(
            [2, 3], 1
        )

    solution = torch.cat(conjugate_gradients(multiply, right.split([2, 3], 1), 8), dim=1)
    assert torch.allclose(solution, torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_loop_optimizer": "sgd"}, 'set "inner_loop_optimizer" to "proximal", not sgd'),
        ({"second_order": False}, "uses second derivatives in every epoch"),
        ({"use_multi_step_loss_optimization": True}, "the query loss after the last inner step alone"),
        ({"per_step_bn_statistics": True}, "needs one inner problem, the same at every step"),
        ({"batch_norm_statistics": "episodic"}, "to any value but episodic"),
        ({"learnable_inner_loop_learning_rates": "per_element"}, "implicit has no gradient for inner learning rates"),
        (
            {"number_of_training_steps_per_iter": 0},
            'of the support features, "outer_update" gradient$',
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_has_no_implicit_gradient_is_refused(changes, message):
    keys = {key: value for key, value in IMPLICIT.items() if key not in ("proximal_strength", *changes)}
    with pytest.raises(ConfigError, match=message):
        small_config(**keys, **changes)


def test_steps_that_end_far_from_the_solution_are_noted():
    """By what they leave of the way on a flat loss, and in the template never."""

    def noted(**keys):
        return [note for note in small_config(**IMPLICIT | keys).notes if "far from the solution" in note]

    rate, strength, steps = 0.1, 1.0, 3
    few = {"init_inner_loop_learning_rate": rate, "proximal_strength": strength}
    (note,) = noted(**few, number_of_training_steps_per_iter=steps)
    assert note.startswith(
        '"init_inner_loop_learning_rate" 0.1 times "proximal_strength" 1 times "number_of_training_steps_per_iter" 3 '
        "is 0.3: "
    )
    for steps in range(1, 60):
        left = (1 - rate * strength) ** steps
        if not 0.04 < left < 0.06:
            assert bool(noted(**few, number_of_training_steps_per_iter=steps)) == (left > 0.05)
    assert not noted(**few, outer_update="gradient")
    template = load_config(REPOSITORY_ROOT / "experiment_config" / "omniglot_imaml_5way_1shot_seed0.json")
    assert not [note for note in template.notes if "solution" in note]


def test_what_the_rule_learns_of_its_own_is_refused():
    keys = {key: value for key, value in IMPLICIT.items() if key != "proximal_strength"}
    config = small_config(**keys | {"inner_loop_optimizer": "given"})
    with pytest.raises(ConfigError, match=r'"outer_update" implicit \(iMAML\) has no gradient for inner_loop'):
        build_learner(config, "cpu", inner_loop_optimizer=Alfa)
