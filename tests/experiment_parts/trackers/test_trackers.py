"""TensorBoard and Weights & Biases watch a run: what they hold is what the run's own files hold, through kills, and
they never stop it.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiment_parts import trackers
from experiment_parts.records.observers import Observer, Observers
from experiment_parts.runs.checkpoints import save_checkpoint
from experiment_parts.runs.comparison import differences
from experiment_parts.trackers.episode_image import GAP, NEUTRAL, RIGHT, WRONG, episode_image
from experiment_parts.trackers.scalars import epoch_scalars, iteration_scalars, summary_scalars
from experiment_parts.trackers.tensorboard_tracker import TensorBoardTracker
from experiment_parts.trackers.wandb_tracker import WandbTracker
from tests.tools.gate import few_of
from tests.tools.runs import PLUS_PLUS, TINY, run_tiny
from tests.tools.tracker_files import (
    tensorboard_curves,
    tensorboard_scalars,
    tensorboard_tags,
    wandb_history,
    wandb_run_ids,
    wandb_summary,
)
from utils.config import check_config
from utils.machine.stop_signals import StopSignals
from utils.paths import REPOSITORY_ROOT


def metric_lines(run_folder):
    return [json.loads(line) for line in (run_folder / "logs" / "metrics.jsonl").read_text().splitlines()]


def column(run_folder, name):
    return json.loads((run_folder / "logs" / "summary_statistics.json").read_text())[name]


def steps_of(curve):
    return [step for step, _ in curve]


# --- observers --------------------------------------------------------------------------------------------------------


class Breaks(Observer):
    """Fails at one event."""

    def __init__(self, event):
        setattr(self, event, self._fail)
        self.n_failures = 0

    def _fail(self, *_):
        self.n_failures += 1
        raise OSError("no network")


def test_observers_that_fail_are_dropped_with_one_warning_each_and_change_nothing(tmp_path, caplog):
    plain = run_tiny(tmp_path / "plain")
    broken = [Breaks(name) for name in vars(Observer) if name.startswith("on_")]
    assert len(broken) == 7
    run = run_tiny(tmp_path / "watched", observers=broken)
    assert [observer.n_failures for observer in broken] == [1] * 7
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["Breaks stops watching, the run goes on: no network"] * 7
    assert differences(plain, run) == []


def test_the_others_go_on_watching(caplog):
    events = []
    second = Observer()
    second.on_save = events.append
    observers = Observers([Breaks("on_save"), second])
    observers.on_save(3), observers.on_save(4)
    assert events == [3, 4]


# --- scalars ----------------------------------------------------------------------------------------------------------


def test_a_line_of_metrics_becomes_scalars_and_what_was_not_computed_is_left_out():
    record = {
        "iteration": 20,
        "epoch": 2,
        "iterations_averaged": 10,
        "loss": 0.5,
        "accuracy": 0.75,
        "support_loss": [2.0, 1.0],
        "query_loss": [None, 0.25],
        "gradient_norm": 3.0,
        "multi_step_loss_weights": [0.0, 1.0],
        "time_tasks_per_s": 9.5,
    }
    assert iteration_scalars(record) == {
        "epoch/number": 2.0, "train/loss": 0.5, "train/accuracy": 0.75, "train/gradient_norm": 3.0,
        "inner_steps/train_support_loss/after_0_steps": 2.0, "inner_steps/train_support_loss/after_1_steps": 1.0,
        "inner_steps/train_query_loss/after_2_steps": 0.25,
        "multi_step_loss_weights/step_1": 0.0, "multi_step_loss_weights/step_2": 1.0,
    }  # fmt: skip


def test_an_epoch_becomes_validation_scalars_and_learned_rates():
    curves = {"val": {"query_accuracy": [0.2, 0.5]}, "learned_rates": {"block0": [0.1, 0.2]}}
    scalars = epoch_scalars({"val_accuracy_mean": 0.5, "val_loss_mean": None, "epoch_run_time": 2.0}, curves)
    assert scalars == {
        "val/accuracy": 0.5,
        "time/epoch_s": 2.0,
        "inner_steps/val_query_accuracy/after_0_steps": 0.2,
        "inner_steps/val_query_accuracy/after_1_steps": 0.5,
        "learned_rates/block0/step_1": 0.1,
        "learned_rates/block0/step_2": 0.2,
    }
    assert epoch_scalars({}, {"val": None}) == {}


def test_every_result_of_a_test_has_a_name_of_its_own():
    protocol = {"dataset": "d", "ways": 5, "shots": 1, "queries": 2, "statistics": "running"}
    results = [
        {"protocol": protocol | {"shots": s}, "test_accuracy_mean": s / 10, "test_accuracy_ci95": None} for s in (1, 5)
    ]
    assert summary_scalars({"suffix": "_x", "results": results}) == {
        "test_x/accuracy": 0.1, "test_x/d_5way_5shot_2query_running/accuracy": 0.5,
    }  # fmt: skip


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_holds_what_the_run_s_files_hold(tmp_path):
    run = run_tiny(tmp_path, observers=[TensorBoardTracker(track_gradients=True)], **PLUS_PLUS)
    folder = run / "logs" / "tensorboard"
    scalars = tensorboard_scalars(folder)
    for name in ("loss", "accuracy", "gradient_norm"):
        expected = [(line["iteration"], pytest.approx(line[name])) for line in metric_lines(run)]
        assert scalars[f"train/{name}"] == expected
    assert scalars["val/accuracy"] == list(
        zip((5, 10), map(pytest.approx, column(run, "val_accuracy_mean")), strict=True)
    )
    summary = json.loads((run / "logs" / "test_summary.json").read_text())
    assert scalars["test/accuracy"] == [(10, pytest.approx(summary["test_accuracy_mean"]))]
    tags = tensorboard_tags(folder)
    assert "gradients/network.block0.conv.weight" in tags["histograms"]
    assert tags["images"] == ["validation/episodes"]
    assert "config/text_summary" in tags["tensors"]


def test_without_track_grad_norm_there_are_no_histograms(tmp_path):
    run = run_tiny(tmp_path, observers=[TensorBoardTracker()])
    assert tensorboard_tags(run / "logs" / "tensorboard")["histograms"] == []


def test_a_tracker_that_is_turned_on_later_gets_what_came_before(tmp_path):
    run_tiny(tmp_path, total_epochs_before_pause=1)
    run = run_tiny(tmp_path, observers=[TensorBoardTracker()])
    scalars = tensorboard_scalars(run / "logs" / "tensorboard")
    assert steps_of(scalars["train/loss"]) == [line["iteration"] for line in metric_lines(run)]
    assert steps_of(scalars["val/accuracy"]) == [5, 10]


def test_a_folder_that_cannot_be_written_stops_the_tracker_and_not_the_run(tmp_path, caplog):
    (tmp_path / "tiny" / "logs").mkdir(parents=True)
    (tmp_path / "tiny" / ".lock").touch()  # a folder of this program's
    (tmp_path / "tiny" / "logs" / "tensorboard").write_text("a file in the way")
    run = run_tiny(tmp_path, observers=[TensorBoardTracker()])
    assert (run / "logs" / "test_summary.json").exists()
    assert "TensorBoardTracker stops watching, the run goes on: " in caplog.text


def test_a_replay_starts_and_ends_no_tracker(tmp_path):
    run_tiny(tmp_path)
    run = run_tiny(tmp_path, observers=[TensorBoardTracker()], replay_iteration=2)
    assert not (run / "logs" / "tensorboard").exists()


# --- killed and started again -----------------------------------------------------------------------------------------


def dies_at(iteration, before=lambda: None):
    """A change of the learner: the process ends in this iteration, after `before` was called."""

    def change(learner):
        compute = learner.meta_gradients

        def meta_gradients(episodes, epoch, **order):
            if episodes.indices[0] // TINY["batch_size"] + 1 == iteration:
                before()
                raise SystemExit
            return compute(episodes, epoch, **order)

        learner.meta_gradients = meta_gradients

    return change


def test_after_a_kill_and_a_resume_tensorboard_shows_each_step_once(tmp_path):
    """Copies of the run folder, made in iteration 9, stand for what a kill leaves; iteration 5 has the checkpoint."""
    tracker, changes = TensorBoardTracker(track_gradients=True), {"checkpoint_every_s": 1000}

    def copies():
        shutil.copytree(tmp_path / "tiny", tmp_path / "early" / "tiny")
        tracker._writer.flush()  # as the writer does of itself, now and then
        shutil.copytree(tmp_path / "tiny", tmp_path / "late" / "tiny")

    with pytest.raises(SystemExit):
        run_tiny(tmp_path, learner_changes=dies_at(9, copies), observers=[tracker], **changes)
    early = tensorboard_scalars(tmp_path / "early" / "tiny" / "logs" / "tensorboard")
    for name in ("train/loss", "gradient_norms/network.head.weight"):
        assert steps_of(early[name])[:3] == [2, 4, 5], "all that the checkpoint holds is on the disk"
    assert steps_of(early["val/accuracy"]) == [5]

    (torn,) = (tmp_path / "late" / "tiny" / "logs" / "tensorboard").iterdir()
    torn.write_bytes(torn.read_bytes()[:-3])
    run = run_tiny(tmp_path / "late", observers=[TensorBoardTracker(track_gradients=True)], **changes)
    written, shown = tensorboard_scalars(torn.parent), tensorboard_curves(torn.parent)
    assert steps_of(written["train/loss"]) == [2, 4, 5, 6, 8, 6, 8, 10]
    assert set(written["train/loss"]) == set(shown["train/loss"]), "what is written twice is the same twice"
    assert shown["train/loss"] == [(line["iteration"], pytest.approx(line["loss"])) for line in metric_lines(run)]
    assert all(one < other for curve in shown.values() for one, other in pairwise(steps_of(curve)))
    assert steps_of(shown["gradient_norms/network.head.weight"]) == [2, 4, 5, 6, 8, 10]
    assert steps_of(shown["val/accuracy"]) == [5, 10]


class RecordedWandb:
    """Stands for the package wandb, and for its run: keeps what is sent."""

    def __init__(self):
        self.api, self.step = SimpleNamespace(api_key="key"), 0
        self.ids, self.rows, self.summary = [], [], {}

    def init(self, *, id, **settings):
        assert settings["resume"] == "allow"
        self.ids.append(id)
        return self

    def Settings(self, **settings):
        return settings

    def Image(self, picture):
        return picture

    def log(self, content, *, step, commit):
        assert commit
        self.rows.append((step, content))

    def finish(self):
        pass


@pytest.fixture
def recorded_wandb(monkeypatch):
    recorded = RecordedWandb()
    monkeypatch.setitem(sys.modules, "wandb", recorded)
    return recorded


def test_wandb_is_sent_each_step_once_and_none_that_no_checkpoint_holds(tmp_path, recorded_wandb):
    changes = {"checkpoint_every_s": 1000}
    with pytest.raises(SystemExit):
        run_tiny(tmp_path, learner_changes=dies_at(9), observers=[WandbTracker(project="test")], **changes)
    assert steps_of(recorded_wandb.rows) == [2, 4, 5]
    run = run_tiny(tmp_path, observers=[WandbTracker(project="test")], **changes)
    assert [(step, row["train/loss"]) for step, row in recorded_wandb.rows] == [
        (line["iteration"], line["loss"]) for line in metric_lines(run)
    ]
    assert [step for step, row in recorded_wandb.rows if "val/accuracy" in row] == [5, 10]
    first, second = recorded_wandb.ids
    assert first == second


def test_what_wandb_s_server_does_not_have_is_sent_again(tmp_path, recorded_wandb):
    run_tiny(tmp_path, observers=[WandbTracker(project="test", mode="online")])
    recorded_wandb.rows.clear()
    recorded_wandb.step = 5  # of the next row: up to step 4 it has all
    run_tiny(tmp_path, observers=[WandbTracker(project="test", mode="online")])
    assert steps_of(recorded_wandb.rows) == [5, 6, 8, 10]


KILLED = {
    "experiment_name": "killed",
    "dataset_name": "tiny",
    "image_height": 14,
    "image_width": 14,
    "train_val_test_split": [0.34, 0.33],
    "total_epochs": 2,
    "total_iter_per_epoch": 100,
    "batch_size": 2,
    "num_classes_per_set": 3,
    "num_target_samples": 2,
    "num_stages": 2,
    "cnn_num_filters": 3,
    "number_of_training_steps_per_iter": 1,
    "num_evaluation_tasks": 4,
    "log_every_iterations": 2,
    "checkpoint_every_s": 1000,
    "num_dataprovider_workers": 0,
    "gpu_to_use": "cpu",
    "trackers": ["tensorboard", "wandb"],
    "track_grad_norm": True,
    "diagnostics_every_epochs": 1,
}


@pytest.mark.full
def test_after_a_kill_and_a_resume_the_curves_go_on_without_saw_teeth(tmp_path, tiny_dataset):
    tiny_dataset("tiny", n_classes=12)
    (tmp_path / "config.json").write_text(json.dumps(KILLED))
    command = [sys.executable, "train_maml_system.py", "--name_of_args_json_file", str(tmp_path / "config.json")]
    environment = os.environ | {"EXPERIMENTS_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    run = tmp_path / "killed"
    process = subprocess.Popen(
        command, cwd=REPOSITORY_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 300
        while not (run / "logs" / "metrics.jsonl").exists() or len(metric_lines_so_far(run)) < 60:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert json.loads((run / "logs" / "wandb.json").read_text())["iteration"] == 100, "only what is saved is sent"
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Resuming after epoch 1" in done.stdout

    expected = [(line["iteration"], pytest.approx(line["loss"])) for line in metric_lines(run)]
    assert [step for step, _ in expected] == list(range(2, 201, 2))
    scalars = tensorboard_curves(run / "logs" / "tensorboard")
    assert len(list((run / "logs" / "tensorboard").iterdir())) == 2
    assert scalars["train/loss"] == expected
    assert all(one < other for curve in scalars.values() for one, other in pairwise(steps_of(curve)))
    assert steps_of(scalars["gradient_norms/network.block0.conv.weight"]) == list(range(2, 201, 2))

    history = wandb_history(run)
    without_last_sent = [entry for entry in expected if entry[0] != 100]
    assert [(row["_step"], row["train/loss"]) for row in history] in (expected, without_last_sent)
    assert all("gradients/network.block0.conv.weight/values" in row for row in history)
    assert [row["_step"] for row in history if "val/accuracy" in row] in ([100, 200], [200])
    assert wandb_summary(run)["test/accuracy"] == pytest.approx(scalars["test/accuracy"][0][1])
    first, second = wandb_run_ids(run)
    assert first == second


def metric_lines_so_far(run_folder):
    return (run_folder / "logs" / "metrics.jsonl").read_bytes().splitlines()


class StopsAtLook(StopSignals):
    """Says at its n-th look that SIGTERM has come."""

    def __init__(self, n_looks):
        self._looks = n_looks
        super().__init__()

    @property
    def received(self):
        self._looks -= 1
        return None if self._looks >= 0 else signal.SIGTERM

    @received.setter
    def received(self, value):
        pass


@pytest.mark.parametrize("n_looks", few_of([3, 7, 12], 7))
def test_wherever_a_run_is_stopped_tensorboard_goes_on_where_it_was(n_looks, tmp_path):
    from utils.errors import Interrupted

    with pytest.raises(Interrupted):
        run_tiny(tmp_path, StopsAtLook(n_looks), observers=[TensorBoardTracker(track_gradients=True)])
    run = run_tiny(tmp_path, observers=[TensorBoardTracker(track_gradients=True)])
    scalars = tensorboard_scalars(run / "logs" / "tensorboard")
    assert steps_of(scalars["train/loss"]) == [line["iteration"] for line in metric_lines(run)] == [2, 4, 5, 6, 8, 10]
    assert steps_of(scalars["val/accuracy"]) == [5, 10]


# --- choosing trackers ------------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_one_warning_with_the_command_that_installs_it(monkeypatch, caplog):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else SimpleNamespace())
    config = check_config({"experiment_name": "x", "trackers": ["wandb", "tensorboard"]}, "test")
    assert [type(tracker).__name__ for tracker in trackers.build_trackers(config)] == ["TensorBoardTracker"]
    assert caplog.messages == [
        "trackers: the package wandb is not installed, so nothing is sent to it; the run goes on. Install it: "
        "python -m pip install -r requirements-extras.txt"
    ]


def test_the_extras_file_names_what_the_trackers_need():
    names = (REPOSITORY_ROOT / "requirements-extras.txt").read_text().split()
    assert {"tensorboard", "wandb", "optuna"} <= set(names)


def test_a_tracker_may_be_given_alone_on_the_command_line():
    assert check_config({"experiment_name": "x", "trackers": "wandb"}, "test").trackers == ("wandb",)


# --- the picture ------------------------------------------------------------------------------------------------------


def test_right_and_wrong_answers_are_framed_in_their_colours(tmp_path):
    path = tmp_path / "episodes.safetensors"
    tensors = {
        "support_images": torch.full((1, 2, 1, 1, 4, 4), 10, dtype=torch.uint8),
        "query_images": torch.full((1, 2, 2, 1, 4, 4), 20, dtype=torch.uint8),
        "predictions": torch.tensor([[[0, 1], [1, 1]]]),
    }
    save_checkpoint(path, tensors, {"epoch": 3})
    image = episode_image(path, 3)
    assert image.shape == (2 * 8, 3 * 8 + GAP, 3)
    frames = [[tuple(image[row, left].tolist()) for left in (0, 8 + GAP, 16 + GAP)] for row in (0, 8)]
    assert frames == [[NEUTRAL, RIGHT, WRONG], [NEUTRAL, RIGHT, RIGHT]]
    assert np.array_equal(image[2:6, 2:6], np.full((4, 4, 3), 10))
    assert episode_image(path, 4) is None and episode_image(tmp_path / "none", 3) is None
