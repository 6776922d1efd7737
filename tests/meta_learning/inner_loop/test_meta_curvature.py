"""Meta-Curvature, against the one large matrix that its modes are."""

import torch
import torch.nn.functional as F

from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import adapted, logits_of, network_values, plain_meta_gradients

CHOICE = {"inner_loop_optimizer": "meta_curvature"}


def moved(learner):
    """The learner with its matrices away from the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for matrix in learner.inner_loop.matrices.values():
            matrix.add_(0.2 * torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype))
    return learner


def test_the_meta_gradient_is_that_of_kronecker_products():
    """vec(G x1 A x2 B x3 C) = (A kron B kron C) vec(G)."""
    learner = moved(small_learner(**CHOICE))
    episodes, names = random_episodes(small_config(**CHOICE)), list(learner.inner_loop.names)

    def loss_of_task(leaves, task):
        def product(name, gradient):
            whole = torch.ones(1, 1, dtype=gradient.dtype)
            for mode in range(min(gradient.dim(), 3)):
                whole = torch.kron(whole, leaves[f"inner_loop.matrices.{name.replace('.', '/')}:{mode}"])
            return (whole @ gradient.flatten()).view(gradient.shape)

        values = adapted(
            network_values(leaves), names, task, 3,
            lambda s, now, g: {n: now[n] - 0.2 * product(n, g[n]) for n in names},
        )  # fmt: skip
        return F.cross_entropy(logits_of(values, task.query_images[0]), task.query_labels[0])

    expected = plain_meta_gradients(learner, episodes, loss_of_task)
    assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9


def test_identity_matrices_are_maml():
    episodes = random_episodes(small_config())
    with_matrices, maml = small_learner(**CHOICE), small_learner()
    ours, plain = (learner.meta_gradients(episodes, 0).gradients for learner in (with_matrices, maml))
    assert worst_difference({name: ours[name] for name in plain}, plain) < 1e-12


def test_the_classes_of_a_head_made_per_episode_share_a_matrix():
    learner = moved(small_learner(**CHOICE, head="zero"))
    assert learner.inner_loop.matrices["head/weight:0"].shape == (27, 27)
    assert learner.evaluate(random_episodes(small_config(num_classes_per_set=4))).query_logits.shape[-1] == 4
