"""A loss, gradient or statistic that is not finite changes nothing, is reported, and can be computed again."""

import csv
import json
import logging

import pytest
import torch

from experiment_parts.records.epoch_metrics import EpochMetrics
from experiment_parts.runs.checkpoints import list_epochs, load_checkpoint, unfinished_path
from experiment_parts.runs.comparison import differences
from experiment_tools.report.page import write_report
from few_shot_learning_system import build_learner
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from tests.tools.runs import TINY, run_tiny, tiny_data
from utils.config import check_config
from utils.errors import ConfigError, NonFiniteError


def state_of(learner):
    return {name: value.clone() for name, value in learner.state_tensors().items()}


def equal(first, second, *, but=()):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first if not name.startswith(but or "-"))


def spoil(meta_gradients, where):
    """Put one nan or inf into what `meta_gradients` returned."""
    if where == "loss":
        meta_gradients.metrics["loss"].fill_(float("nan"))
    elif where == "gradient":
        gradient = next(iter(meta_gradients.gradients.values()))
        gradient.view(-1)[0] = float("inf")
        meta_gradients.metrics["gradient_norm"].fill_(float("inf"))
    else:
        next(iter(meta_gradients.statistics.values())).view(-1)[0] = float("inf")
    return meta_gradients


# --- the update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient", "statistic"])
@pytest.mark.parametrize("first_update", [True, False])
def test_weights_moments_and_statistics_stay_and_so_do_they_afterwards(where, first_update):
    learner, config = small_learner(**PLUS_PLUS), small_config()
    if not first_update:
        assert learner.meta_update(learner.meta_gradients(random_episodes(config), 0), 0)
    before = state_of(learner)
    assert not learner.meta_update(spoil(learner.meta_gradients(random_episodes(config, 1), 0), where), 0)
    assert not learner.meta_update(learner.meta_gradients(random_episodes(config, 2), 0), 0)  # sticky
    after = state_of(learner)
    if first_update:
        assert all(not value.any() for name, value in after.items() if name.startswith("optimizer."))
        after = {name: value for name, value in after.items() if name in before}
    assert equal(before, after)


# --- a whole run ------------------------------------------------------------------------------------------------------


def failing_at(*iterations):
    """A change of the learner: the query loss of these iterations (from 1, two tasks each) is nan."""

    def change(learner):
        compute = learner._meta_gradients

        def chunk_meta_gradients(episodes, *arguments):
            result = compute(episodes, *arguments)
            if episodes.indices[0] // 2 + 1 in iterations:
                result["metrics"]["loss"] = result["metrics"]["loss"] * float("nan")
                result["gradients"] = {name: value * float("nan") for name, value in result["gradients"].items()}
            return result

        learner._meta_gradients = chunk_meta_gradients

    return change


@pytest.mark.parametrize("log_every", [3, *(pytest.param(every, marks=pytest.mark.full) for every in (1, 100))])
def test_the_run_stops_with_the_state_before_the_failing_iteration(tmp_path, log_every):
    changes = {"log_every_iterations": log_every, "total_iter_per_epoch": 6}
    with pytest.raises(NonFiniteError) as raised:
        run_tiny(tmp_path, learner_changes=failing_at(4, 6), **changes)
    text = str(raised.value)
    assert (
        "iteration 4 (epoch 1): the loss is nan; training tasks 6 to 7. Its update was not applied; saved at "
        "iteration 3." in text
    )
    assert "A rerun would come to it again: " in text and "leave this iteration out: --skip_iterations 4\n" in text
    assert "config.json --replay_iteration 4" in text
    saved, state = load_checkpoint(unfinished_path(tmp_path / "tiny" / "saved_models"))
    assert state["iteration"] == 3

    captured = {}

    def keep_third(learner):
        update = learner.meta_update

        def meta_update(meta_gradients, epoch):
            applied = update(meta_gradients, epoch)
            captured.setdefault("states", []).append(state_of(learner))
            return applied

        learner.meta_update = meta_update

    whole = run_tiny(tmp_path / "whole", learner_changes=keep_third, **changes)
    third = captured["states"][2]
    assert all(torch.equal(saved[name], third[name]) for name in third)
    (tmp_path / "tiny" / "logs" / "non_finite_iteration_4.json").unlink()
    assert differences(run_tiny(tmp_path, **changes), whole) == []  # where the cause is gone, it goes on exactly


def test_the_report_holds_what_happened_and_the_replay_finds_the_same(tmp_path, caplog):
    with pytest.raises(NonFiniteError):
        run_tiny(tmp_path, learner_changes=failing_at(9))
    report = json.loads((tmp_path / "tiny" / "logs" / "non_finite_iteration_9.json").read_text())
    assert (report["iteration"], report["epoch"], report["training_tasks"]) == (9, 2, [16, 17])
    assert report["metrics"]["loss"] == ["nan"]
    assert len(report["metrics"]["support_loss"]) == 2
    assert report["gradient_norms"]["network.head.weight"] == "nan"
    assert report["state_norms"]["network.head.weight"] > 0
    assert report["learned_rates"]["head.weight"] == [pytest.approx(0.1)] * 2
    assert report["replay"].endswith("--replay_iteration 9")
    names = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    caplog.set_level(logging.INFO)
    run_tiny(tmp_path, learner_changes=failing_at(9), replay_iteration=9)
    replayed = json.loads(caplog.messages[-1])
    assert replayed == {name: value for name, value in report.items() if name != "replay"}
    assert not replayed["is_finite"]
    assert "Replaying iteration 9 from iteration 8." in caplog.messages
    assert names == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_an_iteration_of_a_finished_run_is_trained_up_to_from_the_checkpoint_before_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = run_tiny(tmp_path)
    run_tiny(tmp_path, replay_iteration=8)
    assert "Replaying iteration 8 from iteration 5." in caplog.messages
    report = json.loads(caplog.messages[-1])
    assert report["is_finite"]
    for path in list_epochs(folder / "saved_models").values():
        path.unlink()
    (folder / "logs" / "summary_statistics.csv").unlink()
    run_tiny(tmp_path, replay_iteration=8)
    assert "Replaying iteration 8 from iteration 0." in caplog.messages
    assert json.loads(caplog.messages[-1]) == report
    with pytest.raises(ConfigError, match="replay_iteration 11: the run ends with iteration 10"):
        run_tiny(tmp_path, replay_iteration=11)


def test_a_replay_begins_with_the_weights_that_the_run_began_with(tmp_path):
    given = run_tiny(tmp_path / "given", total_epochs=1) / "saved_models" / "train_model_1.safetensors"
    losses = []

    def listens(learner):
        compute = learner.meta_gradients

        def meta_gradients(episodes, epoch, **order):
            result = compute(episodes, epoch, **order)
            losses.append((episodes.indices, float(result.metrics["loss"])))
            return result

        learner.meta_gradients = meta_gradients

    changes = {
        "load_checkpoint": str(given),
        "total_epochs": 1,
        "total_iter_per_epoch": 3,
        "diagnostics_every_epochs": 0,
        "learner_changes": listens,
    }
    run_tiny(tmp_path, **changes)
    trained, losses[:] = list(losses), []
    run_tiny(tmp_path, replay_iteration=3, **changes)
    assert losses == trained


# --- going on without an iteration ------------------------------------------------------------------------------------


def learned_by_hand(folder, *iterations):
    """The weights after these iterations alone, computed without the builder."""
    torch.manual_seed(0)
    config = check_config(TINY, "test")
    learner, data = build_learner(config, "cpu"), tiny_data(config)
    for iteration in iterations:
        episodes = data.episodes("train", range(2 * iteration - 2, 2 * iteration))
        epoch = (iteration - 1) // config.total_iter_per_epoch
        assert learner.meta_update(learner.meta_gradients(episodes, epoch), epoch)
    return learner.state_tensors()


def test_a_run_goes_past_a_nan_without_the_iteration_that_gives_it(tmp_path, caplog):
    """And ends as if that one had never been, step counts and schedule included; so does one that knew it at once."""
    changes = {"log_every_iterations": 1}
    with pytest.raises(NonFiniteError, match="leave this iteration out: --skip_iterations 4\n"):
        run_tiny(tmp_path, learner_changes=failing_at(4), **changes)
    with pytest.raises(NonFiniteError, match=r"iteration 4 .* --skip_iterations 4\n"):
        run_tiny(tmp_path, learner_changes=failing_at(4), **changes)
    caplog.set_level(logging.INFO)
    folder = run_tiny(tmp_path, learner_changes=failing_at(4), skip_iterations=4, **changes)
    assert "iteration 4 is left out (skip_iterations)." in caplog.messages
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    saved, _ = load_checkpoint(list_epochs(folder / "saved_models")[2])
    expected = learned_by_hand(folder, 1, 2, 3, 5, 6, 7, 8, 9, 10)
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    (folder / "logs" / "non_finite_iteration_4.json").unlink()
    assert differences(folder, run_tiny(tmp_path / "at once", skip_iterations=4, **changes)) == []


def test_the_next_failure_names_all_the_iterations_to_leave_out(tmp_path):
    run_tiny(tmp_path, learner_changes=failing_at(2, 7, 9), skip_iterations=[7, 2, 9])
    with pytest.raises(NonFiniteError, match=r"iteration 9 .* --skip_iterations 2 7 9\n"):
        run_tiny(tmp_path / "one more", learner_changes=failing_at(2, 7, 9), skip_iterations=[7, 2])


@pytest.mark.parametrize("log_every", [1, pytest.param(100, marks=pytest.mark.full)])
def test_killed_and_resumed_it_is_as_if_it_had_not_been_killed(tmp_path, log_every):
    changes = {"skip_iterations": [3, 5, 6], "checkpoint_every_s": 1e-9, "log_every_iterations": log_every}
    whole = run_tiny(tmp_path / "whole", **changes)

    def dies(learner):
        count = learner.meta_update

        def meta_update(meta_gradients, epoch):
            if dies.left == 0:
                raise SystemExit
            dies.left -= 1
            return count(meta_gradients, epoch)

        learner.meta_update = meta_update

    for dies.left in (2, 1, 2):
        with pytest.raises(SystemExit):
            run_tiny(tmp_path, learner_changes=dies, **changes)
    assert differences(run_tiny(tmp_path, **changes), whole) == []


def test_a_replay_leaves_them_out_too(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    changes = {"skip_iterations": [7, 8], "learner_changes": failing_at(7, 8)}
    run_tiny(tmp_path, **changes)
    run_tiny(tmp_path, replay_iteration=8, **changes)
    of_failing = json.loads(caplog.messages[-1])
    assert of_failing["metrics"]["loss"] == ["nan"]
    run_tiny(tmp_path, replay_iteration=9, **changes)
    report = json.loads(caplog.messages[-1])
    assert report["is_finite"] and report["state_norms"] == of_failing["state_norms"]


def test_an_epoch_of_which_every_iteration_is_left_out_is_a_row_without_training_numbers(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = run_tiny(tmp_path, total_iter_per_epoch=2, log_every_iterations=1, skip_iterations=[1, 2])
    first, second = csv.DictReader((folder / "logs" / "summary_statistics.csv").read_text().splitlines())
    assert first["train_loss_mean"] == first["train_accuracy_std"] == first["gradient_norm_mean"] == ""
    assert float(first["train_tasks_per_s"]) == 0
    assert first["val_accuracy_mean"] and second["train_loss_mean"]
    assert any(message.startswith("epoch 1/2: every iteration skipped; val loss ") for message in caplog.messages)
    assert write_report(folder)


def test_a_checkpoint_of_an_earlier_release_goes_on(tmp_path):
    """There an entry says whether its update was applied; one that was not counts nowhere."""
    metrics = EpochMetrics(0)
    metrics.add(1, {"loss": torch.tensor(0.5)}, torch.tensor(True))
    now = metrics.state()
    (entry,) = now["interval"]
    left_out = {"iteration": 2, "applied": False, "metrics": {"loss": [None]}}
    earlier = now | {"interval": [{"iteration": 1, "applied": True, **entry}, left_out]}
    assert EpochMetrics(0, earlier).interval() == metrics.interval() == [{"loss": [0.5]}]
    assert EpochMetrics(0, earlier).refused() is None
