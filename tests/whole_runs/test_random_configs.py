"""The fast path against plain torch layers task by task, over configs drawn at random."""

import random
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tools.learners import (
    PlainNetwork,
    plain_outer_loss,
    plain_parameters,
    random_episodes,
    small_config,
    small_learner,
    worst_difference,
)

N_CONFIGS = 20


def drawn(seed: int) -> dict:
    """Draw a config's choices and sizes; whatever is drawn is possible."""
    pick = random.Random(seed)
    n_stages, padding = pick.choice([(1, True), (2, True), (3, True), (1, False), (2, False)])
    side = {True: (8, 11, 14), False: (10, 13, 14)}[padding]
    return {
        "image_channels": pick.choice([1, 3]),
        "image_height": pick.choice(side),
        "image_width": pick.choice(side),
        "num_stages": n_stages,
        "conv_padding": padding,
        "cnn_num_filters": pick.choice([2, 5, 8]),
        "num_classes_per_set": pick.choice([2, 3, 5]),
        "num_samples_per_class": pick.choice([1, 2]),
        "num_target_samples": pick.choice([1, 3]),
        "batch_size": pick.choice([1, 2, 5]),
        "number_of_training_steps_per_iter": pick.choice([1, 2, 4]),
        "second_order": pick.random() < 0.8,
        "use_multi_step_loss_optimization": pick.random() < 0.5,
        "per_step_bn_statistics": pick.random() < 0.5,
        "learnable_per_layer_per_step_inner_loop_learning_rate": pick.random() < 0.5,
        "task_chunk_size": pick.choice(["auto", 1, 2]),
        "gradient_checkpointing": pick.random() < 0.3,
        "normalisation": "none",
    }


def meta_gradients(seed: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our meta-gradient and the plain one."""
    changes = drawn(seed) | {"precision": str(dtype).removeprefix("torch.")}
    config, learner = small_config(**changes), small_learner(**changes)
    episodes = random_episodes(config, seed)
    episodes = replace(
        episodes, support_images=episodes.support_images.to(dtype), query_images=episodes.query_images.to(dtype)
    )
    ours = learner.meta_gradients(episodes, 0).gradients
    parameters, rates = plain_parameters(learner), learner.inner_loop.learning_rates.detach().clone().requires_grad_()
    loss = plain_outer_loss(
        parameters,
        rates,
        episodes,
        learner.multi_step_loss_weights(0),
        second_order=config.second_order,
        network=PlainNetwork(config).to(dtype),
    )
    values = torch.autograd.grad(loss, [*parameters.values(), rates])
    plain = dict(zip([*(f"network.{name}" for name in parameters), "inner_loop.learning_rates"], values, strict=True))
    return ours, {name: plain[name] for name in ours}


@pytest.mark.parametrize("seed", range(N_CONFIGS))
def test_the_fast_path_equals_the_plain_one(seed):
    assert worst_difference(*meta_gradients(seed, torch.float64)) <= 1e-9, drawn(seed)


def test_in_float32_the_two_differ_by_rounding(capsys):
    found = []
    for seed in range(N_CONFIGS):
        ours, plain = (
            torch.cat([value.flatten() for value in gradients.values()])
            for gradients in meta_gradients(seed, torch.float32)
        )
        found.append(float((ours - plain).norm() / plain.norm()))
    with capsys.disabled():
        print(
            f"\nfloat32, {N_CONFIGS} random configs: norm(ours - plain) / norm(plain): median "
            f"{statistics.median(found):.1e}, worst {max(found):.1e}"
        )
    assert statistics.median(found) < 1e-4
