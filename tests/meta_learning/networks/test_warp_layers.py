"""T-Net and warp layers: convolutions that only the outer loop learns, against a plain network with them."""

import pytest
import torch
import torch.nn.functional as F

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from meta_learning.networks.layers import WarpLayer
from tests.tools.learners import (
    PlainNetwork,
    plain_outer_loss,
    plain_parameters,
    random_episodes,
    small_config,
    small_learner,
    worst_difference,
)


def moved(learner):
    """The learner with its warp layers away from the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in learner.network.modules():
            if isinstance(layer, WarpLayer):
                layer.weight.add_(0.2 * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    return learner


class PlainWarped(PlainNetwork):
    """The small network with a convolution after each of its own."""

    def __init__(self, size):
        super().__init__()
        for index in range(self.n_blocks):
            getattr(self, f"block{index}").warp = torch.nn.Conv2d(3, 3, size, padding=size // 2, bias=False)

    def forward(self, x):
        """Return logits."""
        for index in range(self.n_blocks):
            block = getattr(self, f"block{index}")
            x = F.max_pool2d(F.leaky_relu(block.norm(block.warp(block.conv(x)))), 2)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("size", [1, 3])
def test_the_meta_gradient_is_that_of_a_plain_network_whose_inner_steps_leave_the_warps(size):
    choice = {"warp_kernel_size": size}
    learner, episodes = moved(small_learner(**choice)), random_episodes(small_config(**choice))
    assert not any("warp" in name for name in learner.inner_loop.names)
    network, parameters = PlainWarped(size).double(), plain_parameters(learner)

    def without_warps(values):
        return {name: value for name, value in values.items() if "warp" not in name}

    # Constants of the inner loop and leaves of the gradient, so set into the network itself.
    for name, value in parameters.items():
        if "warp" in name:
            layer = network.get_submodule(name.rsplit(".", 1)[0])
            del layer.weight
            layer.weight = value
    rates = torch.full((len(learner.inner_loop.names), 3), 0.2, dtype=torch.float64)
    loss = plain_outer_loss(
        without_warps(parameters), rates, episodes, [0.0, 0.0, 1.0], second_order=True, network=network
    )
    expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    ours = learner.meta_gradients(episodes, 0).gradients
    assert worst_difference({name.removeprefix("network."): value for name, value in ours.items()}, expected) < 1e-9


@pytest.mark.parametrize("size", [1, 3])
def test_warps_at_the_identity_are_maml(size):
    episodes = random_episodes(small_config())
    warped, maml = (small_learner(**choice) for choice in ({"warp_kernel_size": size}, {}))
    ours, plain = (learner.meta_gradients(episodes, 0).gradients for learner in (warped, maml))
    assert worst_difference({name: ours[name] for name in plain}, plain) < 1e-9
    assert all(ours[f"network.block{index}.warp.weight"].abs().max() > 0 for index in range(2))


@pytest.mark.parametrize(
    "choice",
    [{"warp_kernel_size": 1}, {"warp_kernel_size": 3, "max_pooling": False}, {"warp_kernel_size": 3, "head": "zero"}],
    ids=str,
)
def test_every_check_of_gradients_passes(choice):
    learner = moved(small_learner(**choice))
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []


def test_a_module_of_ones_own_is_left_alone_where_it_says_so():
    from few_shot_learning_system import build_learner

    class Fixed(torch.nn.Linear):
        is_never_adapted = True

    network = torch.nn.Sequential(torch.nn.Flatten(), Fixed(144, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    learner = build_learner(small_config(), "cpu", network=network)
    assert len(learner.inner_loop.names) == 2
    assert len(learner.meta_parameters()) == 4
