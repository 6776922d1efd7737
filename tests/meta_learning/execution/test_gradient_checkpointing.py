"""Recomputed inner steps give the same gradients; memory is measured in benchmarks/inner_loop_memory.py."""

import pytest
import torch

from tests.tools.learners import PLUS_PLUS, held_bytes, random_episodes, small_config, small_learner, worst_difference
from utils.errors import ConfigError

VARIANTS = {
    "maml": {},
    "maml++": PLUS_PLUS,
    "first_order": {"second_order": False},
    "momentum": {"inner_loop_momentum": 0.9, "inner_loop_weight_decay": 0.01},
    "adam_meta_sgd": {
        "inner_loop_optimizer": "adam", "init_inner_loop_learning_rate": 0.01, "inner_loop_epsilon": 0.001,
        "learnable_inner_loop_learning_rates": "per_element",
    },
    "proto_maml": {"head": "prototypes"},
    "boil_from_prototypes": {"head": "prototypes", "adapted_parameters": "body", "batch_norm_statistics": "episodic"},
    "zero_head_support": {"head": "zero", "batch_norm_statistics": "support", "dropout_rate_value": 0.2},
    "anil": {"adapted_parameters": "head"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_recomputed_steps_give_gradients_statistics_and_metrics_of_the_unrolled_loop(name):
    episodes = random_episodes(small_config(**VARIANTS[name]))
    plain, recomputed = (
        small_learner(gradient_checkpointing=on, **VARIANTS[name]).meta_gradients(episodes, 0) for on in (False, True)
    )
    assert worst_difference(recomputed.gradients, plain.gradients) <= 1e-9
    assert worst_difference(recomputed.statistics, plain.statistics) <= 1e-9
    for metric, values in plain.metrics.items():
        assert torch.allclose(recomputed.metrics[metric], values, rtol=1e-9, equal_nan=True), metric


def test_recomputation_holds_the_activations_of_one_step_only():
    episodes = random_episodes(small_config())
    held = {
        (steps, on): held_bytes(
            small_learner(cnn_num_filters=16, number_of_training_steps_per_iter=steps, gradient_checkpointing=on),
            episodes,
        )
        for steps in (3, 9)
        for on in (False, True)
    }
    assert held[9, False] > 2.2 * held[3, False]  # the images are held once
    assert held[9, True] < 1.1 * held[3, True]
    assert held[9, True] < held[9, False] / 4


def test_the_key_takes_true_or_false():
    with pytest.raises(ConfigError, match='"gradient_checkpointing" is 2'):
        small_config(gradient_checkpointing=2)
