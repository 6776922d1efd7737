"""A save that dies anywhere leaves the old checkpoint or the new one; damage is always found; one process wins.

Children are forked from this process, in which torch is already imported: a kill costs milliseconds.
"""

import errno
import os
import random
import signal
import time

import pytest
import torch

from benchmarks.reliability import time_saves
from experiment_parts.runs.checkpoints import (
    checkpoint_bytes,
    epoch_path,
    read_checkpoint_state,
    save_checkpoint,
    unfinished_path,
)
from experiment_parts.runs.run_folder import RunFolder
from utils.errors import ExperimentInUseError, StorageError
from utils.files.atomic_files import remove_temporary_files

NAMED = {"experiment_name": "run"}
IO_CALLS = ("open", "fsync", "replace", "close", "rename", "unlink")


def checkpoint(iteration, size=3000):
    """(tensors, state) that belong to an iteration of the first epoch."""
    state = {"epoch": 1, "iteration": iteration, "rows": [], "curves": [], "metrics_jsonl_bytes": 0, "config": NAMED}
    state |= {"automatic_choices": {}, "annealing_epochs": 0}
    return {"w": torch.full((size,), float(iteration))}, state


@pytest.fixture
def folder(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.create()
    run_folder.lock()
    yield run_folder
    run_folder.unlock()


def in_child(action):
    """Wait status of a forked child that runs `action` and leaves with 0."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:  # noqa: BLE001 -- nothing may come back into the test run
            os._exit(99)
    return os.waitpid(child, 0)[1]


def dies_at_call(number, before):
    """Make this process exit at its n-th call of the system's file functions, before or after the call is done."""
    import builtins

    count = 0

    def counting(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number and before:
                os._exit(77)
            result = function(*args, **kwargs)
            if count == number:
                os._exit(77)
            return result

        return call

    for name in IO_CALLS:
        setattr(os, name, counting(getattr(os, name)))
    original = builtins.open

    class Watched:
        """A file whose write is an I/O call of its own, done in halves: torn writes are tried too."""

        def __init__(self, *args, **kwargs):
            self.file = original(*args, **kwargs)

        def write(self, data):
            half = len(data) // 2
            counting(lambda: (self.file.write(data[:half]), self.file.flush()))()
            counting(lambda: (self.file.write(data[half:]), self.file.flush()))()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    builtins.open = counting(Watched)


@pytest.mark.parametrize("before", [True, False])
def test_a_save_that_dies_at_any_call_leaves_the_old_or_the_new(folder, before):
    path = epoch_path(folder.saved_models, 1)
    outcomes = []
    for number in range(1, 100):
        save_checkpoint(path, *checkpoint(1))

        def save(number=number):
            dies_at_call(number, before)
            save_checkpoint(path, *checkpoint(2))

        status = in_child(save)
        remove_temporary_files(folder.saved_models)
        assert os.listdir(folder.saved_models) == [path.name]
        _, state = folder.newest_good_checkpoint()
        outcomes.append(state["iteration"])
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == 77
    assert len(outcomes) >= 8  # open, two writes, fsync, replace, open, fsync, close of the folder
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


@pytest.mark.parametrize("n_kills", [30, pytest.param(200, marks=pytest.mark.full)])
def test_kills_during_saves(folder, n_kills):
    """SIGKILL at random moments of a loop that saves inside an epoch and at its end, as the builder does."""
    generator = random.Random(0)
    folder_path = folder.saved_models
    last = 0

    def save_forever(first, has_begun):
        for iteration in range(first, first + 100000):
            if iteration % 3:
                save_checkpoint(unfinished_path(folder_path), *checkpoint(iteration))
            else:
                save_checkpoint(epoch_path(folder_path, 1), *checkpoint(iteration))
                unfinished_path(folder_path).unlink(missing_ok=True)
            if iteration == first:
                os.write(has_begun, b"!")

    leftovers = 0
    for _ in range(n_kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            save_forever(last + 1, writer)
            os._exit(99)
        os.read(reader, 1)  # on a busy machine it may take long until it begins
        os.close(reader), os.close(writer)
        time.sleep(0.002 + 0.03 * generator.random())
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        leftovers += any(path.name.endswith(".partial") for path in folder_path.iterdir())
        remove_temporary_files(folder_path)
        found = folder.newest_good_checkpoint()
        if found is not None:
            assert found[1]["iteration"] >= last
            last = found[1]["iteration"]
    assert not list(folder_path.glob("*.corrupt*"))
    assert leftovers > n_kills / 10  # many kills did hit a save
    assert last >= n_kills


def damage_and_recover(folder, damaged):
    """The newest checkpoint is `damaged`: it is found, set aside, and the one before is taken."""
    newest = epoch_path(folder.saved_models, 2)
    newest.write_bytes(damaged)
    path, state = folder.newest_good_checkpoint()
    assert (path.name, state["iteration"]) == ("train_model_1.safetensors", 1)
    newest.with_name(newest.name + ".corrupt").unlink()
    assert not newest.exists()


def test_1000_flipped_bits_are_found_and_recovered_from(folder):
    save_checkpoint(epoch_path(folder.saved_models, 1), *checkpoint(1, 50))
    data = checkpoint_bytes(*checkpoint(2, 500))
    generator = random.Random(1)
    for _ in range(1000):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damage_and_recover(folder, damaged)


def test_200_truncations_are_found_and_recovered_from(folder):
    save_checkpoint(epoch_path(folder.saved_models, 1), *checkpoint(1, 50))
    data = checkpoint_bytes(*checkpoint(2, 500))
    for number in range(200):
        damage_and_recover(folder, data[: number * len(data) // 200])


def test_of_20_simultaneous_starts_one_wins_and_a_killed_winner_leaves_no_lock(folder):
    folder.unlock()
    begin, told = os.pipe(), os.pipe()
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.read(begin[0], 1)
            try:
                RunFolder(folder.path).lock()
                answer = b"w"
            except ExperimentInUseError as error:
                answer = b"l" if "in use by" in str(error) and error.exit_code == 5 else b"?"
            os.write(told[1], answer)
            time.sleep(60)
            os._exit(0)
        children.append(child)
    try:
        os.write(begin[1], b"." * 20)
        answers = b"".join(os.read(told[0], 1) for _ in range(20))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert sorted(answers) == sorted(b"w" + b"l" * 19)
    again = RunFolder(folder.path)
    again.lock()
    again.unlock()


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_failing_call_keeps_the_old_file_and_says_why(folder, monkeypatch, call, number):
    path = epoch_path(folder.saved_models, 1)
    save_checkpoint(path, *checkpoint(1))

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StorageError) as raised:
        save_checkpoint(path, *checkpoint(2))
    assert f"{path}: cannot be written ({os.strerror(number)})" in str(raised.value)
    assert ("MiB free on that disk" in str(raised.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert read_checkpoint_state(path)["iteration"] == 1
    assert os.listdir(folder.saved_models) == [path.name]


def test_saving_costs_less_than_one_percent_of_a_minute(tmp_path):
    """The Omniglot network with Adam's moments, and a history of 100 epochs; once a minute."""
    times, size = time_saves(tmp_path, 5)
    assert size > 2**20
    assert min(times) < 0.01 * 60
