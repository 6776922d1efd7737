"""A thread that stays ahead: the same results, its errors where they belong, and an end."""

import threading
import time
import weakref

import pytest
import torch

from experiment_parts.runs.comparison import differences
from tests.tools import runs as run_tools
from tests.tools.runs import TINY, tiny_data
from utils.config import check_config
from utils.episodes.prefetching import Prefetcher, TrainingEpisodes, episodes_in_turn


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetching")]


def test_results_are_those_of_their_numbers_in_any_order_and_computed_before_they_are_asked_for():
    computed = []

    def compute(number):
        computed.append((number, threading.current_thread().name))
        return 10 * number

    prefetcher = Prefetcher(compute, ahead=2)
    assert [prefetcher.get(number) for number in (0, 1, 2, 7, 8, 3)] == [0, 10, 20, 70, 80, 30]
    prefetcher.close()
    assert {name.split("_")[0] for _, name in computed} == {"prefetching"}
    assert not prefetching_threads()


def test_it_stays_ahead_by_as_much_as_it_is_told_and_no_more():
    computed = []
    prefetcher = Prefetcher(computed.append, ahead=2)
    prefetcher.get(5)
    deadline = time.monotonic() + 5
    while len(computed) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert computed == [5, 6, 7]
    prefetcher.close()


def test_a_number_that_is_passed_over_is_not_kept():
    class Result:
        pass

    made = weakref.WeakSet()

    def compute(number):
        result = Result()
        made.add(result)
        return result

    prefetcher = Prefetcher(compute, ahead=2)
    for number in range(0, 20, 2):
        prefetcher.get(number)
    assert len(made) <= 4  # two ahead, one under way, and the last one, which this frame may still hold
    prefetcher.close()


def test_an_error_in_the_thread_is_raised_where_its_number_is_asked_for():
    def compute(number):
        if number == 2:
            raise OSError("the disk is gone")
        return number

    prefetcher = Prefetcher(compute, ahead=3)
    assert [prefetcher.get(0), prefetcher.get(1)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        prefetcher.get(2)
    assert prefetcher.get(3) == 3
    prefetcher.close()


def test_nothing_is_computed_from_the_end_on():
    computed = []
    prefetcher = Prefetcher(lambda number: computed.append(number) or number, ahead=3, end=2)
    assert [prefetcher.get(0), prefetcher.get(1), prefetcher.get(7)] == [0, 1, 7]
    prefetcher.close()
    assert computed == [0, 1, 7]


def test_closing_gives_up_what_waits_and_one_may_begin_again():
    begun, leave = threading.Event(), threading.Event()

    def compute(number):
        if number == 1:
            begun.set()
            leave.wait(5)
        return number

    prefetcher = Prefetcher(compute, ahead=3)
    prefetcher.get(0)
    assert begun.wait(5)
    threading.Timer(0.05, leave.set).start()
    prefetcher.close()  # after number 1, without 2 and 3
    assert not prefetching_threads()
    assert prefetcher.get(4) == 4
    prefetcher.close()


def test_tasks_of_an_evaluation_are_the_same_and_the_thread_ends_with_them_or_with_a_signal():
    config = check_config(TINY, "test")
    plain, ahead = tiny_data(config), tiny_data(config)
    ahead.meta_batches_ahead = 1
    batches = [range(2), range(2, 4), range(4, 5)]
    found = [list(episodes_in_turn(data, "val", batches, None, lambda: None)) for data in (plain, ahead)]
    assert [batch.indices for batch in found[1]] == [(0, 1), (2, 3), (4,)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.query_images, other.query_images) and torch.equal(one.query_labels, other.query_labels)
    assert not prefetching_threads()

    def stop():
        if prefetching_threads():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(episodes_in_turn(ahead, "val", batches, None, stop))
    assert not prefetching_threads()


def test_a_whole_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    folders = []
    for ahead in (0, 2):

        def data(config, ahead=ahead):
            made = tiny_data(config)
            made.meta_batches_ahead = ahead
            return made

        monkeypatch.setattr(run_tools, "tiny_data", data)
        folders.append(run_tools.run_tiny(tmp_path / str(ahead), total_epochs=1))
    assert differences(*folders) == []
    assert not prefetching_threads()


@pytest.mark.parametrize("shots", [1, [1, 2, 3]])
def test_episodes_gathered_ahead_are_the_same(shots):
    config = check_config(TINY | {"num_samples_per_class": shots, "class_rotation": True}, "test")
    plain, ahead = tiny_data(config), tiny_data(config)
    ahead.meta_batches_ahead = 2
    episodes = [TrainingEpisodes(data, 2, config.training_shapes, config.train_seed) for data in (plain, ahead)]
    for iteration in (1, 2, 3, 9, 10, 4):
        one, other = (source.of_iteration(iteration) for source in episodes)
        assert one.indices == other.indices and one.split == other.split == "train"
        for name in ("support_images", "support_labels", "query_images", "query_labels", "seeds"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert len(prefetching_threads()) == 1
    for source in episodes:
        source.close()
    assert not prefetching_threads()
