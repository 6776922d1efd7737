"""Tasks at once: what one needs is measured, as many as fit are chosen and kept, and fewer where memory still runs
out.
"""

import itertools
import logging
import os
from dataclasses import replace

import pytest
import torch

from meta_learning.execution import chunk_size as task_chunks
from meta_learning.execution.chunk_size import SAFE_SHARE, TaskChunks, free_bytes, peak_bytes
from meta_learning.networks.first_block import fold_images
from tests.tools.gate import few_of
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner, worst_difference
from utils.machine.failures import report_failure
from utils.words import mib_text

IMAGES = {
    "num_stages": 4,
    "cnn_num_filters": 16,
    "image_height": 28,
    "image_width": 28,
    "batch_size": 1,
    "number_of_training_steps_per_iter": 5,
}
VARIANTS = {
    "second_order": {},
    "first_order": {"second_order": False},
    "multi_step": PLUS_PLUS,
    "recomputed": {"gradient_checkpointing": True},
    "anil": {"adapted_parameters": "head"},
    "support": {"batch_norm_statistics": "support"},
    "task_norm": {"norm_layer": "task_norm"},
    "reptile": {"second_order": False, "outer_update": "displacement"},
    "adam": {"inner_loop_optimizer": "adam"},
    "resnet10": {"backbone": "resnet10", "number_of_training_steps_per_iter": 1, "image_height": 8, "image_width": 8},
}  # fmt: skip


def allocated_peak(compute) -> int:
    """Return the most bytes that torch's CPU allocator had given out at one time, by its profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(itertools.accumulate(n_bytes for _, n_bytes in changes))


@pytest.mark.parametrize("name", few_of(VARIANTS, "second_order", "multi_step", "recomputed", "reptile"))
def test_the_memory_of_a_task_is_about_what_torchs_allocator_gives_out(name):
    """In float32: torch's convolutions in float64 make copies of their own."""
    keys = IMAGES | {"precision": "float32"} | VARIANTS[name]
    learner, episodes = small_learner(**keys), random_episodes(small_config(**keys))
    episodes = replace(
        episodes, support_images=episodes.support_images.float(), query_images=episodes.query_images.float()
    )

    def compute():
        learner.meta_gradients(episodes, 0)

    compute()
    ours = peak_bytes(compute, torch.device("cpu"), learner.execution.chunks.parameter_bytes)
    assert 0.75 < ours / allocated_peak(compute) < 1.35


@pytest.fixture
def memory(monkeypatch):
    """`memory(bytes)`: so much is free from now on; None: unknown."""

    def has(n_bytes):
        monkeypatch.setattr(task_chunks, "free_bytes", lambda device: n_bytes)

    return has


def fresh(**keys):
    return small_learner(task_chunk_size="auto", **keys), random_episodes(small_config())


def test_as_many_tasks_as_fit_are_computed_at_once_with_equal_gradients(memory, caplog):
    whole, episodes = fresh()
    expected = whole.meta_gradients(episodes, 0).gradients
    per_task = whole.execution.chunks.bytes_per_task
    for n_fit, chosen in ((0.4, 1), (1.1, 1), (3.1, 3), (40, 4)):
        memory(int(n_fit * per_task / SAFE_SHARE))
        learner, _ = fresh()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            gradients = learner.meta_gradients(episodes, 0).gradients
        assert learner.automatic_choices == {"task_chunk_size": chosen}
        assert worst_difference(gradients, expected) <= 1e-9
        (line,) = [record.message for record in caplog.records if record.message.startswith("Memory")]
        assert line.startswith("Memory: about ") and line.endswith(f" free; {chosen} of 4 tasks at once.")
    assert learner.memory_per_task()["peak_memory_per_task_mib"] == pytest.approx(per_task / 2**20, abs=0.01)


def test_the_choice_is_made_once_and_reused_by_a_resumed_run_on_a_fuller_machine(memory):
    learner, episodes = fresh()
    memory(None)
    learner.meta_gradients(episodes, 0)
    memory(1)
    learner.meta_gradients(episodes, 0)
    assert learner.automatic_choices == {"task_chunk_size": 4}
    resumed, _ = fresh()
    resumed.reuse_choices({"task_chunk_size": 3})
    resumed.meta_gradients(episodes, 0)
    assert resumed.automatic_choices == {"task_chunk_size": 3}


def test_a_size_that_the_user_chose_stays(memory):
    memory(1)
    learner = small_learner(task_chunk_size=2)
    learner.meta_gradients(random_episodes(small_config()), 0)
    assert learner.execution.chunks.size == 2 and learner.automatic_choices == {}


def test_the_first_choice_is_at_most_that_of_device_and_image_size_and_nothing_is_measured_for_one_task(memory, caplog):
    memory(2**30)
    chunks = TaskChunks(1, automatic=True)
    chunks.choose(8, torch.device("cpu"), lambda: pytest.fail("there is nothing to choose"))
    assert (chunks.size, chunks.bytes_per_task, caplog.messages) == (1, None, [])


@pytest.mark.parametrize("n_bytes", [2**30, None])
def test_the_log_says_what_a_task_needs(memory, monkeypatch, caplog, n_bytes):
    monkeypatch.setattr(task_chunks, "peak_bytes", lambda compute, device, parameter_bytes: 300 * 2**20)
    memory(n_bytes)
    with caplog.at_level(logging.INFO):
        TaskChunks(None, automatic=True).choose(8, torch.device("cuda"), lambda: None)
    expected = ", 1.0 GiB free; 2 of 8" if n_bytes else "; 8 of 8"
    assert caplog.messages == [f"Memory: about 300 MiB per task{expected} tasks at once."]


def test_free_memory_is_within_that_of_the_machine():
    free = free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("the memory of this machine is unknown: no /proc/meminfo")
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class OutOfMemoryAbove:
    """Makes a network fail like torch's allocator when it is given more than so many tasks."""

    def __init__(self, network, n_tasks: int) -> None:
        self.features, self.n_tasks = network.features, n_tasks

    def __call__(self, images, *arguments):
        if fold_images(images)[1] > self.n_tasks:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 1 bytes."
            )
        return self.features(images, *arguments)


def test_out_of_memory_halves_the_chunk_and_repeats_with_equal_gradients(caplog):
    (whole, episodes), (learner, _) = fresh(), fresh()
    expected = whole.meta_gradients(episodes, 0).gradients
    learner.network.features = OutOfMemoryAbove(learner.network, 1)
    with caplog.at_level(logging.WARNING):
        gradients = learner.meta_gradients(episodes, 0).gradients
    assert worst_difference(gradients, expected) <= 1e-9
    assert caplog.messages == [
        "Out of memory with 4 tasks at once; going on with 2, which changes no result.",
        "Out of memory with 2 tasks at once; going on with 1, which changes no result.",
    ]
    assert learner.automatic_choices == {"task_chunk_size": 1}


@pytest.mark.parametrize("stage", ["meta_gradients", "evaluate"])
def test_where_nothing_can_be_halved_the_message_has_the_need_and_the_keys(caplog, stage):
    learner, episodes = small_learner(task_chunk_size=2), random_episodes(small_config())
    learner.network.features = OutOfMemoryAbove(learner.network, 1)
    with pytest.raises(RuntimeError, match="can't allocate memory") as failure:
        learner.meta_gradients(episodes, 0) if stage == "meta_gradients" else learner.evaluate(episodes)
    assert report_failure(failure.value) == 6
    (text,) = caplog.messages
    per_task = learner.execution.chunks.bytes_per_task
    need = f"2 of 4 tasks at once need about {mib_text(2 * per_task)}, {mib_text(per_task)} each."
    assert f"1 bytes.\n{need}\nSet gradient_checkpointing to true or lower one of these keys" in text
    assert "batch_size, task_chunk_size, num_target_samples" in text


def test_a_single_task_that_does_not_fit_says_so(memory):
    memory(50 * 2**20)
    learner, episodes = fresh()
    learner.network.features = OutOfMemoryAbove(learner.network, 0)
    with pytest.raises(RuntimeError) as failure:
        learner.meta_gradients(episodes, 0)
    assert failure.value.__notes__ == ["One task alone needs more than is free (50 MiB)."]
