"""Recomputed inner steps and halved chunks give the same gradients; memory is measured in benchmarks/inner_loop_memory.py."""

import logging

import pytest
import torch

from meta_learning.image_patches import fold_images
from tests.learner_tools import PLUS_PLUS, random_episodes, small_config, small_learner, worst_difference
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


def saved_bytes(learner, episodes) -> int:
    """Bytes that autograd holds at most at one time."""
    held, peak = {}, 0

    def pack(tensor):
        nonlocal peak
        held[id(tensor)] = tensor.numel() * tensor.element_size()
        peak = max(peak, sum(held.values()))
        return _Held(tensor, held)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        learner.meta_gradients(episodes, 0)
    return peak


class _Held:
    def __init__(self, tensor, held):
        self.tensor, self._held, self._key = tensor, held, id(tensor)

    def __del__(self):
        self._held.pop(self._key, None)


def test_recomputation_holds_the_activations_of_one_step_only():
    episodes = random_episodes(small_config())
    held = {
        (steps, on): saved_bytes(small_learner(cnn_num_filters=16, number_of_training_steps_per_iter=steps, gradient_checkpointing=on), episodes)
        for steps in (3, 9) for on in (False, True)
    }  # fmt: skip
    assert held[9, False] > 2.5 * held[3, False]
    assert held[9, True] < 1.1 * held[3, True]
    assert held[9, True] < held[9, False] / 4


class OutOfMemoryAbove:
    """Makes a network fail like torch's allocator when it is given more than so many tasks."""

    def __init__(self, network, n_tasks: int) -> None:
        self.features, self.n_tasks = network.features, n_tasks

    def __call__(self, images, *arguments):
        if fold_images(images)[1] > self.n_tasks:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return self.features(images, *arguments)


def test_out_of_memory_halves_the_chunk_and_repeats_with_equal_gradients(caplog):
    episodes, config = random_episodes(small_config()), {"task_chunk_size": "auto"}
    whole, learner = small_learner(**config), small_learner(**config)
    assert learner.task_chunk_size == 4
    learner.network.features = OutOfMemoryAbove(learner.network, 1)
    with caplog.at_level(logging.WARNING):
        gradients = learner.meta_gradients(episodes, 0).gradients
    assert worst_difference(gradients, whole.meta_gradients(episodes, 0).gradients) <= 1e-9
    assert [record.message for record in caplog.records] == [
        "Out of memory with 4 tasks at once; going on with 2, which changes no result.",
        "Out of memory with 2 tasks at once; going on with 1, which changes no result.",
    ]
    assert learner.automatic_choices == {"task_chunk_size": 1}


def test_a_chunk_size_that_the_user_chose_is_not_halved():
    learner = small_learner(task_chunk_size=2)
    learner.network.features = OutOfMemoryAbove(learner.network, 1)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        learner.meta_gradients(random_episodes(small_config()), 0)
    with pytest.raises(ConfigError, match='"gradient_checkpointing" is 2'):
        small_config(gradient_checkpointing=2)
