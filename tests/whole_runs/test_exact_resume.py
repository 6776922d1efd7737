"""A run that was stopped or killed anywhere ends with the same bits as one that never was."""

import json
import logging
import random
import shutil
import signal

import pytest
import torch

from experiment_parts.runs.checkpoints import read_checkpoint, read_checkpoint_state, unfinished_path, with_state
from experiment_parts.runs.comparison import differences
from experiment_parts.runs.run_folder import RunFolder
from tests.tools.fuzz import changed
from tests.tools.gate import few_of
from tests.tools.runs import PLUS_PLUS, SINUSOID, run_tiny
from utils.errors import Interrupted, UserError
from utils.files.atomic_files import read_regular
from utils.machine.stop_signals import StopSignals

VARIANTS = {
    "second order": {"batch_norm_statistics": "running"},
    "first order": {"second_order": False, "dropout_rate_value": 0.3},
    "multi-step loss": PLUS_PLUS,
    "augmentation": {
        "class_rotation": True,
        "first_order_to_second_order_epoch": 0,
        "support_augmentation": ["crop"],
        "query_augmentation": ["resize"],
        "num_samples_per_class": [1, 2],
    },
    "momentum": {
        "meta_optimizer": "sgd",
        "meta_momentum": 0.9,
        "gradient_clip_norm": 1.0,
        "meta_learning_rate_schedule": "one_cycle",
    },
    "regression": SINUSOID,
    "pre-training": PLUS_PLUS
    | {"pretraining_epochs": 2, "total_epochs": 3, "class_rotation": True, "batch_norm_statistics": "running"},
    "early stopping": {"total_epochs": 5, "total_iter_per_epoch": 2, "early_stopping_patience": 1},
    "chunks": PLUS_PLUS | {"task_chunk_size": 1, "log_every_iterations": 100},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


class StopsAt(StopSignals):
    """Says that a signal has come when it has been asked so often; or ends the run there, as SIGKILL would."""

    def __init__(self, n_looks: int, *, kills: bool):
        self._looks, self._kills = n_looks, kills
        super().__init__()

    @property
    def received(self):
        self._looks -= 1
        if self._looks >= 0:
            return None
        if self._kills:
            raise Killed
        return signal.SIGTERM

    @received.setter
    def received(self, value):
        pass


class Counter(StopsAt):
    """Never stops; counts."""

    def __init__(self):
        super().__init__(10**9, kills=False)

    @property
    def looks(self):
        return 10**9 - self._looks


@pytest.mark.parametrize("n_histories", [1, pytest.param(5, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "variant", few_of(VARIANTS, "second order", "multi-step loss", "augmentation", "pre-training", "chunks")
)
def test_random_interruptions_change_no_bit(tmp_path, variant, n_histories):
    """Seeded histories of up to three interruptions, between iterations, in validation or in the test."""
    changes = VARIANTS[variant] | {"checkpoint_every_s": 1e-9}  # a save before every iteration
    count = Counter()
    whole = run_tiny(tmp_path / "whole", count, **changes)
    generator = random.Random(variant)
    for history in range(n_histories):
        root = tmp_path / str(history)
        looks_left = count.looks
        for _ in range(3):
            looks = generator.randrange(1 + looks_left * 2 // 3)
            looks_left -= looks
            with pytest.raises((Interrupted, Killed)):
                run_tiny(root, StopsAt(looks, kills=generator.random() < 0.5), **changes)
        assert differences(run_tiny(root, **changes), whole) == []


def test_runs_of_different_seeds_are_told_apart(tmp_path):
    """So that the comparison is not empty."""
    found = differences(run_tiny(tmp_path / "a"), run_tiny(tmp_path / "b", train_seed=1))
    assert {
        "logs/metrics.jsonl: differs",
        "logs/curves.json: differs",
        "saved_models/train_model_2.safetensors: differs",
    } <= {*found}


def test_when_it_is_saved_changes_no_bit(tmp_path):
    """Log lines and running sums do not depend on when metrics were brought to the host."""
    whole = run_tiny(tmp_path / "never", checkpoint_every_s=1e9)
    for name, every_s in (("always", 1e-9), ("at every reading", 0)):
        found = differences(run_tiny(tmp_path / name, checkpoint_every_s=every_s), whole)
        assert all("config.json" in line or "safetensors" in line for line in found)  # the key itself, in the state


def stop_at_iteration(root, n_looks, **changes):
    with pytest.raises(Interrupted) as stopped:
        run_tiny(root, StopsAt(n_looks, kills=False), **changes)
    return str(stopped.value)


def test_a_signal_is_answered_with_the_iteration_that_was_saved(tmp_path):
    message = stop_at_iteration(tmp_path, 3)
    path = unfinished_path(tmp_path / "tiny" / "saved_models")
    iteration = read_checkpoint_state(path)["iteration"]
    assert 0 < iteration < 5
    assert message == f"SIGTERM: saved at iteration {iteration}, run the same command to go on"
    run_tiny(tmp_path)
    assert not path.exists()


def test_a_damaged_save_inside_an_epoch_falls_back_to_the_epoch_before(tmp_path, caplog):
    whole = run_tiny(tmp_path / "whole")
    stop_at_iteration(tmp_path, 14)
    path = unfinished_path(tmp_path / "tiny" / "saved_models")
    assert read_checkpoint_state(path)["epoch"] == 1
    path.write_bytes(path.read_bytes()[:-1])
    folder = run_tiny(tmp_path)
    assert "unfinished.safetensors: damaged, its bytes do not fit its digest. Set aside" in caplog.text
    assert differences(folder, whole) == [f"saved_models/unfinished.safetensors.corrupt: only in {folder}"]


def test_a_damaged_epoch_file_falls_back_to_the_save_inside_it(tmp_path):
    for _ in range(2):
        whole = run_tiny(tmp_path / "whole", total_epochs_before_pause=1)
    stop_at_iteration(tmp_path, 4, total_epochs_before_pause=1)
    saved_models = tmp_path / "tiny" / "saved_models"
    kept = unfinished_path(saved_models).read_bytes()
    run_tiny(tmp_path, total_epochs_before_pause=1)
    unfinished_path(saved_models).write_bytes(kept)  # as if it had been killed before removing it
    epoch_file = saved_models / "train_model_1.safetensors"
    epoch_file.write_bytes(epoch_file.read_bytes()[:-1])
    for _ in range(2):
        folder = run_tiny(tmp_path, total_epochs_before_pause=1)
    assert differences(folder, whole) == [f"saved_models/train_model_1.safetensors.corrupt: only in {folder}"]


def test_a_leftover_of_a_kill_between_two_files_is_removed(tmp_path):
    for _ in range(2):
        whole = run_tiny(tmp_path / "whole", total_epochs_before_pause=1)
    stop_at_iteration(tmp_path, 4, total_epochs_before_pause=1)
    path = unfinished_path(tmp_path / "tiny" / "saved_models")
    kept = path.read_bytes()
    run_tiny(tmp_path, total_epochs_before_pause=1)
    path.write_bytes(kept)
    assert differences(run_tiny(tmp_path, total_epochs_before_pause=1), whole) == []


def test_the_random_state_is_that_of_the_save(tmp_path):
    stop_at_iteration(tmp_path, 4)
    torch.rand(1)
    run_tiny(tmp_path)
    assert differences(tmp_path / "tiny", run_tiny(tmp_path / "whole")) == []


# --- another number of epochs -----------------------------------------------------------------------------------------


def rates(folder):
    history = json.loads((folder / "logs" / "summary_statistics.json").read_text())
    return history["train_learning_rate_mean"]


def test_more_epochs_keep_the_schedule_of_the_first_start_unless_told_otherwise(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    short = {"total_iter_per_epoch": 1, "batch_size": 1, "num_evaluation_tasks": 1}
    first = rates(run_tiny(tmp_path / "run", **short))
    more = rates(run_tiny(tmp_path / "run", total_epochs=4, **short))
    assert more == [*first, 1e-5, 1e-5]
    assert "annealed over 2 epochs, as when the run began; over 4 with --restart_schedule true." in caplog.text
    assert rates(run_tiny(tmp_path / "run", total_epochs=5, **short)) == [*more, 1e-5]  # also the third start
    run_tiny(tmp_path / "other", **short)
    anew = rates(run_tiny(tmp_path / "other", total_epochs=4, restart_schedule=True, **short))
    whole = rates(run_tiny(tmp_path / "whole", total_epochs=4, **short))
    assert anew == [*first, *whole[2:]]
    assert rates(run_tiny(tmp_path / "other", total_epochs=4, **short)) == anew


def test_a_resume_reads_the_newest_checkpoint_once(tmp_path, monkeypatch):
    folder = run_tiny(tmp_path, total_epochs=2)
    newest = folder / "saved_models" / "train_model_2.safetensors"
    reads = []

    def counted(path):
        reads.extend([path] if path == newest else [])
        return read_regular(path)

    monkeypatch.setattr("experiment_parts.runs.checkpoints.read_regular", counted)
    run_tiny(tmp_path, total_epochs=3, allow_config_change=["total_epochs"], test_after_training=False)
    assert len(reads) == 1 and (folder / "saved_models" / "train_model_3.safetensors").exists()


def is_json(value):
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("n_forged", [5, pytest.param(300, marks=pytest.mark.full)])
def test_whatever_a_checkpoint_says_the_run_goes_on_or_says_why(tmp_path, n_forged):
    """Something in its state is of another kind, and its digest is right, as of a folder that somebody has made."""
    changes = PLUS_PLUS | {"total_iter_per_epoch": 2, "log_every_iterations": 1, "early_stopping_patience": 1}
    with pytest.raises(Interrupted):
        run_tiny(tmp_path / "whole", StopsAt(3, kills=False), **changes)
    path = unfinished_path(RunFolder(tmp_path / "whole" / "tiny").saved_models)
    checkpoint, draw = read_checkpoint(path), random.Random(0)
    for number in range(n_forged):
        forged = changed(draw, checkpoint.state)
        if not isinstance(forged, dict) or not is_json(forged):  # no file of ours can hold it; a reader's test has it
            continue
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number)) / "tiny"
        unfinished_path(RunFolder(folder).saved_models).write_bytes(with_state(checkpoint, forged))
        try:
            run_tiny(folder.parent, **changes)
        except UserError as error:
            assert len(str(error)) < 2000
