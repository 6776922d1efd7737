"""Sharp-MAML: the outer gradient a little uphill."""

import pytest
import torch

from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner, worst_difference
from train_maml_system import _check_ranks
from utils.errors import ConfigError

RADIUS = 0.05


def sharp_gradients(choice):
    """Of MAML at the network's parameters moved along their gradient, which a plain learner gives; and its own."""
    episodes, learner = random_episodes(small_config(**choice)), small_learner(**choice)
    first = learner.meta_gradients(episodes, 0)
    of_network = {name: value for name, value in first.gradients.items() if name.startswith("network.")}
    norm = torch.cat([value.flatten() for value in of_network.values()]).norm()
    with torch.no_grad():
        for name, value in of_network.items():
            learner.meta_parameters()[name].add_(RADIUS * value / norm)
    return first, learner.meta_gradients(episodes, 0)


@pytest.mark.parametrize(
    "choice",
    [{}, PLUS_PLUS, {"task_chunk_size": 1}, {"outer_loss": "cvar"}, {"second_order": False}, {"head": "shared"}],
    ids=str,
)
def test_the_gradient_is_that_of_parameters_moved_uphill(choice):
    episodes = random_episodes(small_config(**choice))
    learner = small_learner(**choice, sharpness_radius=RADIUS)
    here, uphill = sharp_gradients(choice)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    found = learner.meta_gradients(episodes, 0)
    assert worst_difference(found.gradients, uphill.gradients) < 1e-9
    assert worst_difference(found.gradients, here.gradients) > 1e-3
    assert found.metrics["loss"] == here.metrics["loss"]
    assert torch.isclose(found.metrics["gradient_norm"], uphill.metrics["gradient_norm"], rtol=1e-9)
    assert all(torch.equal(found.statistics[name], value) for name, value in here.statistics.items())
    assert all(torch.equal(value, learner.state_tensors()[name]) for name, value in before.items())


def test_a_radius_of_zero_is_maml():
    episodes = random_episodes(small_config())
    ours, maml = (small_learner(**choice).meta_gradients(episodes, 0) for choice in ({"sharpness_radius": 0.0}, {}))
    assert all(torch.equal(ours.gradients[name], value) for name, value in maml.gradients.items())


def test_parameters_are_as_before_after_an_error(monkeypatch):
    learner = small_learner(sharpness_radius=RADIUS)
    before, compute = {n: v.clone() for n, v in learner.state_tensors().items()}, learner._gradients_here
    calls = []

    def fails_uphill(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return compute(*arguments)

    monkeypatch.setattr(learner, "_gradients_here", fails_uphill)
    with pytest.raises(RuntimeError, match="out of memory"):
        learner.meta_gradients(random_episodes(small_config()), 0)
    assert all(torch.equal(value, learner.state_tensors()[name]) for name, value in before.items())


def test_several_processes_and_reptile_are_refused():
    with pytest.raises(ConfigError, match=r'"sharpness_radius" 0\.05 moves along the gradient of a whole meta-batch'):
        _check_ranks(small_config(sharpness_radius=RADIUS), 2)
    with pytest.raises(ConfigError, match="has no outer loss to be sharp"):
        small_config(sharpness_radius=RADIUS, outer_update="displacement", second_order=False)
