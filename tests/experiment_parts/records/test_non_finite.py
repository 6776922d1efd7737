"""A loss, gradient or statistic that is not finite changes nothing, is reported, and can be computed again."""

import csv
import json
import logging

import pytest
import torch

from experiment_parts.runs.checkpoints import list_epochs, load_checkpoint, unfinished_path
from experiment_parts.runs.comparison import differences
from experiment_tools.report.page import write_report
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from tests.tools.runs import run_tiny
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
    learner.take_back_steps(2)
    after = state_of(learner)
    if first_update:
        assert all(not value.any() for name, value in after.items() if name.startswith("optimizer."))
        after = {name: value for name, value in after.items() if name in before}
    assert equal(before, after)


def test_skips_leave_out_single_updates_until_they_are_used_up():
    config = small_config()
    with_skips, without = small_learner(), small_learner()
    with_skips.allow_skips(2)
    for seed, is_bad in ((0, False), (1, True), (2, False), (3, True), (4, False)):
        gradients = with_skips.meta_gradients(random_episodes(config, seed), 0)
        assert bool(with_skips.meta_update(spoil(gradients, "loss") if is_bad else gradients, 0)) == (not is_bad)
        if not is_bad:
            without.meta_update(without.meta_gradients(random_episodes(config, seed), 0), 0)
        else:
            for state in without.meta_optimizer.torch_optimizer.state.values():
                state["step"] += 1  # Adam counts the skipped ones
    assert equal(state_of(with_skips), state_of(without))
    assert not with_skips.meta_update(spoil(with_skips.meta_gradients(random_episodes(config, 5), 0), "loss"), 0)
    assert not with_skips.meta_update(with_skips.meta_gradients(random_episodes(config, 6), 0), 0)


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


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_the_run_stops_with_the_state_before_the_failing_iteration(tmp_path, log_every):
    changes = {"log_every_iterations": log_every, "total_iter_per_epoch": 6}
    with pytest.raises(NonFiniteError) as raised:
        run_tiny(tmp_path, learner_changes=failing_at(4, 6), **changes)
    text = str(raised.value)
    assert (
        "iteration 4 (epoch 1): the loss is nan; training tasks 6 to 7. Its update was not applied; saved at "
        "iteration 3." in text
    )
    assert "--skip_non_finite_iterations 1" in text
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

        def meta_gradients(episodes, epoch):
            result = compute(episodes, epoch)
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


def test_skipped_iterations_are_named_and_leave_no_number(tmp_path, caplog):
    changes = {"skip_non_finite_iterations": 2, "log_every_iterations": 1}
    folder = run_tiny(tmp_path, learner_changes=failing_at(2, 7), **changes)
    assert "iteration 2: the loss is nan; skipped (1 of at most 2)." in caplog.messages
    assert "iteration 7: the loss is nan; skipped (2 of at most 2)." in caplog.messages
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3, 4, 5, 6, 8, 9, 10]
    with pytest.raises(NonFiniteError, match="iteration 9 "):
        run_tiny(tmp_path / "one more", learner_changes=failing_at(2, 7, 9), **changes)


def test_a_run_with_a_skipped_iteration_resumes_exactly(tmp_path):
    changes = {"skip_non_finite_iterations": 1, "checkpoint_every_s": 1e-9, "log_every_iterations": 100}
    whole = run_tiny(tmp_path / "whole", learner_changes=failing_at(3), **changes)

    def dies(learner):
        failing_at(3)(learner)
        count = learner.meta_update

        def meta_update(meta_gradients, epoch):
            if dies.left == 0:
                raise SystemExit
            dies.left -= 1
            return count(meta_gradients, epoch)

        learner.meta_update = meta_update

    for dies.left in (4, 2):
        with pytest.raises(SystemExit):
            run_tiny(tmp_path, learner_changes=dies, **changes)
    assert differences(run_tiny(tmp_path, learner_changes=failing_at(3), **changes), whole) == []


def test_a_start_that_allows_fewer_skips_than_there_were_stops_at_the_next(tmp_path):
    changes = {"total_iter_per_epoch": 4, "log_every_iterations": 1}
    run_tiny(tmp_path, learner_changes=failing_at(1, 2), skip_non_finite_iterations=2, total_epochs=1, **changes)
    with pytest.raises(NonFiniteError, match=r"iteration 6 .*saved at iteration 5.*skip_non_finite_iterations 3"):
        run_tiny(tmp_path, learner_changes=failing_at(6), skip_non_finite_iterations=0, total_epochs=3, **changes)


def test_an_epoch_of_which_every_iteration_is_skipped_is_a_row_without_training_numbers(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    changes = {"total_iter_per_epoch": 2, "log_every_iterations": 1, "skip_non_finite_iterations": 2}
    folder = run_tiny(tmp_path, learner_changes=failing_at(1, 2), **changes)
    first, second = csv.DictReader((folder / "logs" / "summary_statistics.csv").read_text().splitlines())
    assert first["train_loss_mean"] == first["train_accuracy_std"] == first["gradient_norm_mean"] == ""
    assert first["val_accuracy_mean"] and second["train_loss_mean"]
    assert any(message.startswith("epoch 1/2: every iteration skipped; val loss ") for message in caplog.messages)
    assert write_report(folder)
