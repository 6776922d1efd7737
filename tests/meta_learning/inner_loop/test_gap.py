"""GAP, against autograd through torch's own decomposition."""

import pytest
import torch
import torch.nn.functional as F

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from meta_learning.inner_loop.gap import _ScaledSingularValues
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients

CHOICE = {"inner_loop_optimizer": "gap"}


def moved(learner):
    """The learner with its numbers away from one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for scales in learner.inner_loop.scales.values():
            scales.add_(0.3 * torch.randn(scales.shape, generator=generator, dtype=scales.dtype))
    return learner


def exact(matrix, scales):
    """U C S V^T; autograd's derivative has poles where two singular values are equal, as zeros may be."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ torch.diag(scales * values) @ right


def approximate(matrix, scales):
    """C G, or G C."""
    return torch.diag(scales) @ matrix if len(matrix) <= matrix.shape[1] else matrix @ torch.diag(scales)


@pytest.mark.parametrize(
    ("choice", "formula"), [({}, exact), ({"gap_approximate": True}, approximate)], ids=["exact", "approximate"]
)
def test_the_meta_gradient_is_that_of_scaled_singular_values(choice, formula):
    learner = moved(small_learner(**CHOICE, **choice))
    episodes, names = random_episodes(small_config(**CHOICE)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        def direction(name, gradient):
            if gradient.dim() < 2:
                return gradient
            scales = F.softplus(2 * leaves[f"inner_loop.scales.{name.replace('.', '/')}"]) / 2
            return formula(gradient.flatten(1), scales).view(gradient.shape)

        values = adapted(
            network_values(leaves), names, task, 3,
            lambda s, now, g: {n: now[n] - 0.2 * direction(n, g[n]) for n in names},
        )  # fmt: skip
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9


@pytest.mark.parametrize("choice", [{}, {"gap_approximate": True}], ids=str)
def test_numbers_of_one_are_maml(choice):
    episodes = random_episodes(small_config())
    with_numbers, maml = small_learner(**CHOICE, **choice), small_learner()
    ours, plain = (learner.meta_gradients(episodes, 0).gradients for learner in (with_numbers, maml))
    assert worst_difference({name: ours[name] for name in plain}, plain) < 1e-9


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4), (2, 3, 3)], ids=str)
def test_the_derivative_is_that_of_differences(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    scales = torch.rand(min(shape[1:]), generator=generator, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(_ScaledSingularValues.apply, (matrix, scales))


def test_matrices_of_low_rank_have_a_finite_derivative_right_along_those_of_that_rank():
    """Of rank 2 among 5 x 4, where autograd's derivative of the decomposition has a pole."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((1, 5, 2), (1, 2, 4))]
    scales = torch.tensor([1.5, 0.5, 2.0, 1.0], dtype=torch.float64)

    def scaled(left, right):
        return _ScaledSingularValues.apply(left @ right, scales)

    assert torch.autograd.gradcheck(scaled, [factor.requires_grad_() for factor in factors])


def test_equal_singular_values_pass_a_gradient_through():
    matrix = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(_ScaledSingularValues.apply(matrix, scales).square().sum(), matrix)
    assert torch.isfinite(gradient).all()


def test_a_head_made_per_episode_has_no_numbers():
    learner = small_learner(**CHOICE, head="zero")
    assert list(learner.inner_loop.scales) == ["block0/conv/weight", "block1/conv/weight"]
    assert learner.evaluate(random_episodes(small_config(num_classes_per_set=4))).query_logits.shape[-1] == 4


@pytest.mark.parametrize("choice", [{}, {"adapted_parameters": "head"}, {"second_order": False}], ids=str)
def test_every_check_of_gradients_passes(choice):
    learner = moved(small_learner(**CHOICE, **choice))
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []
