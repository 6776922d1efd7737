"""The order of events, with a learner and data made for these tests: nothing is learned, every number is known."""

import csv
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiment_builder import ExperimentBuilder, ExperimentSettings
from experiment_parts.evaluation import test_results as final_test
from experiment_parts.evaluation.task_sets import TaskSet, protocols
from experiment_parts.records.observers import Observer
from experiment_parts.runs.checkpoints import epoch_path, list_epochs, load_checkpoint
from experiment_parts.runs.run_folder import RunFolder
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError, NonFiniteError, StorageError

N_WAY, N_QUERY_IMAGES, N_STEPS, N_TASKS = 5, 10, 2, 3


class FakeData(EpisodeSource):
    """Episodes that only know their numbers; keeps a list of what was asked for."""

    def __init__(self):
        self.asked = []

    def episodes(self, split, indices, shape=None):
        self.asked.append((split, tuple(indices)))
        labels = torch.arange(N_QUERY_IMAGES).remainder(N_WAY).repeat(len(indices), 1)
        return SimpleNamespace(split=split, indices=tuple(indices), query_labels=labels)

    def task_list_digest(self, split, indices, shape=None):
        return f"{split} {list(indices)}"

    def summary(self):
        return None

    class_names = {"test": [f"class {rank}" for rank in range(9)]}  # noqa: RUF012

    def draw(self, split, indices, shape=None):
        return SimpleNamespace(classes=np.array([np.arange(i, i + N_WAY) % 9 for i in indices]))


class FakeLearner:
    """Its weight counts updates; the share of right answers after each epoch is given.

    Args:
        qualities: epoch (from 1) -> right answers among the 10 query images of every task.
        fails_at: iteration (from 1) whose loss is nan.
    """

    def __init__(self, iterations_per_epoch=4, qualities=(), fails_at=None):
        self.iterations_per_epoch, self.qualities, self.fails_at = (
            iterations_per_epoch,
            dict(enumerate(qualities, 1)),
            fails_at,
        )
        self.weight, self.moment = torch.zeros(2, dtype=torch.float64), torch.zeros(())
        self.automatic_choices = {"task_chunk_size": 3}
        self.reused = None

    def meta_gradients(self, episodes, epoch):
        assert episodes.split == "train"
        step = torch.tensor([1.0, sum(episodes.indices) / 7 + epoch], dtype=torch.float64)
        loss = torch.tensor(1 / (1 + sum(episodes.indices)))
        if int(self.weight[0]) + 1 == self.fails_at:
            loss = loss * float("nan")
        metrics = {"loss": loss, "accuracy": torch.tensor(0.5), "gradient_norm": torch.tensor(2.0)}
        for name in ("support_loss", "support_accuracy", "query_loss", "query_accuracy"):
            metrics[name] = torch.tensor([float("nan"), 0.25])
        return SimpleNamespace(gradients={"weight": step}, statistics={}, metrics=metrics)

    def meta_update(self, meta_gradients, epoch):
        self.weight = self.weight + meta_gradients.gradients["weight"]
        self.moment = self.moment * 0.9 + 0.1
        return torch.isfinite(meta_gradients.metrics["loss"])

    annealing_epochs = 3

    def anneal_over(self, epochs):
        self.annealing_epochs = epochs

    def evaluate(self, episodes, n_steps=None, statistics=None):
        assert episodes.split in ("val", "test")
        epoch = round(float(self.weight[0]) / self.iterations_per_epoch)
        n_right = self.qualities.get(epoch, 5)
        right = torch.arange(N_QUERY_IMAGES) < n_right
        answers = torch.where(right, episodes.query_labels, (episodes.query_labels + 1) % N_WAY)
        logits = torch.nn.functional.one_hot(answers, N_WAY).float() * (2.0 if statistics == "running" else 1.0)
        rows = torch.full((N_STEPS + 1, len(episodes.indices)), 0.5)
        return SimpleNamespace(
            query_logits=logits, query_loss=rows, query_accuracy=rows, support_loss=rows, support_accuracy=rows
        )

    def multi_step_loss_weights(self, epoch):
        return [0.5, 0.5] if epoch == 0 else [0.0, 1.0]

    def meta_learning_rate(self, epoch):
        return 0.001 / (epoch + 1)

    def snapshot(self):
        return {"learned_rates": {"weight": [0.1, 0.1]}, "batch_norm": {}}

    def memory_per_task(self):
        return {}

    def state_tensors(self):
        return {"network.weight": self.weight, "optimizer.moment": self.moment}

    def load_state_tensors(self, tensors, *, optimizer=True):
        assert set(tensors) == {"network.weight", "optimizer.moment"}
        self.weight = tensors["network.weight"].clone()
        if optimizer:
            self.moment = tensors["optimizer.moment"].clone()

    def reuse_choices(self, choices):
        self.reused = choices


class Recorder(Observer):
    def __init__(self):
        self.events = []

    def on_start(self, run_folder, config, rows):
        self.events.append(("start", len(rows)))

    def on_iteration_metrics(self, record):
        self.events.append(("iteration", record["iteration"]))

    def on_epoch(self, row, curves):
        self.events.append(("epoch", row["epoch"]))

    def on_test(self, summary):
        self.events.append(("test", summary["ensemble"]["epochs"]))


@pytest.fixture
def experiment(tmp_path):
    """`experiment(learner=..., **settings)` -> an ExperimentBuilder in the same folder each time: 3 epochs of 4
    iterations.
    """
    folder = RunFolder(tmp_path / "run")
    folder.create()

    def build(learner=None, data=None, observers=(), **settings):
        defaults = {
            "total_epochs": 3,
            "total_iter_per_epoch": 4,
            "tasks_per_meta_batch": N_TASKS,
            "num_evaluation_tasks": 7,
        }
        settings, data = ExperimentSettings(**defaults | settings), data or FakeData()
        protocol = {"ways": 5, "shots": 1, "queries": 2, "steps": 2, "seed": 0, "dataset": "fake"}
        protocol["tasks"] = settings.num_evaluation_tasks
        return ExperimentBuilder(
            learner or FakeLearner(), data, observers, folder,
            settings, [TaskSet(data, None, protocol)], {"experiment_name": "run"},
        )  # fmt: skip

    yield build
    folder.unlock()


def csv_rows(experiment):
    with (experiment.run_folder.logs / "summary_statistics.csv").open() as file:
        return list(csv.DictReader(file))


def metric_lines(experiment):
    return [json.loads(line) for line in (experiment.run_folder.logs / "metrics.jsonl").read_text().splitlines()]


def read_json(experiment, name):
    return json.loads((experiment.run_folder.logs / name).read_text())


def without_times(content):
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if "time" not in key and "per_s" not in key}
    return [without_times(entry) for entry in content] if isinstance(content, list) else content


def run_content(experiment):
    """Everything that a run leaves, without times and run.log."""
    folder = experiment.run_folder
    content = {"csv": without_times(csv_rows(experiment)), "jsonl": without_times(metric_lines(experiment))}
    for name in ("summary_statistics.json", "curves.json", "test_summary.json"):
        content[name] = without_times(read_json(experiment, name))
    for path in list_epochs(folder.saved_models).values():
        tensors, state = load_checkpoint(path)
        content[path.name] = ({name: tensor.tolist() for name, tensor in tensors.items()}, without_times(state["rows"]))
    return content, sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*"))


# --- training and its files -------------------------------------------------------------------------------------------


def test_each_training_task_comes_once_in_order_and_the_number_of_evaluation_tasks_is_exact(experiment):
    data = FakeData()
    experiment(data=data, total_epochs=2).run()
    trained = [index for split, indices in data.asked if split == "train" for index in indices]
    assert trained == list(range(2 * 4 * N_TASKS))
    assert [indices for split, indices in data.asked if split == "val"][:3] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_the_columns_of_the_reference_come_first_under_its_names(experiment):
    run = experiment()
    run.run()
    weights = [f"loss_importance_vector_{step}_{kind}" for step in (0, 1) for kind in ("mean", "std")]
    assert list(csv_rows(run)[0])[:20] == [
        "train_loss_mean", "train_loss_std", "train_accuracy_mean", "train_accuracy_std",
        *(f"train_{name}" for name in weights), "train_learning_rate_mean", "train_learning_rate_std",
        "val_loss_mean", "val_loss_std", "val_accuracy_mean", "val_accuracy_std",
        *(f"val_{name}" for name in weights), "epoch", "epoch_run_time",
    ]  # fmt: skip


def test_a_row_holds_means_over_the_iterations_of_the_epoch(experiment):
    run = experiment(total_epochs=2, log_every_iterations=3)
    run.run()
    row = csv_rows(run)[1]
    sums = [sum(range(i * N_TASKS, (i + 1) * N_TASKS)) for i in range(4, 8)]
    losses = torch.tensor([1 / (1 + total) for total in sums])
    assert float(row["train_loss_mean"]) == pytest.approx(float(losses.mean()), rel=1e-6)
    assert float(row["train_loss_std"]) == pytest.approx(float(losses.std(correction=0)), rel=1e-6)
    assert float(row["train_learning_rate_mean"]) == 0.0005
    assert row["train_query_loss_after_1_steps"] == ""  # not computed
    assert float(row["train_query_loss_after_2_steps"]) == 0.25
    assert float(row["val_query_loss_after_2_steps"]) == 0.5
    assert read_json(run, "summary_statistics.json")["epoch"] == [1, 2]
    curves = read_json(run, "curves.json")["epochs"]
    assert [entry["multi_step_loss_weights"] for entry in curves] == [[0.5, 0.5], [0.0, 1.0]]
    assert curves[0]["train"]["support_loss"] == [None, 0.25]
    assert curves[0]["learned_rates"] == {"weight": [0.1, 0.1]}


def test_metrics_are_read_every_n_iterations_and_at_the_end_of_an_epoch(experiment):
    run = experiment(total_epochs=2, log_every_iterations=3)
    run.run()
    lines = metric_lines(run)
    assert [(line["epoch"], line["iteration"], line["iterations_averaged"]) for line in lines] == [
        (1, 3, 3), (1, 4, 1), (2, 6, 2), (2, 8, 2),
    ]  # fmt: skip
    assert lines[0]["query_loss"] == [None, 0.25]


def test_observers_hear_everything_in_order(experiment):
    recorder = Recorder()
    experiment(observers=[recorder], total_epochs=1, log_every_iterations=2).run()
    assert recorder.events == [("start", 0), ("iteration", 2), ("iteration", 4), ("epoch", 1), ("test", [1])]


def test_epochs_without_validation_have_empty_cells_and_the_last_one_is_validated(experiment):
    run = experiment(total_epochs=5, validate_every_epochs=2)
    run.run()
    assert [row["epoch"] for row in csv_rows(run) if row["val_accuracy_mean"]] == ["2", "4", "5"]
    assert csv_rows(run)[0]["val_loss_importance_vector_0_mean"] == ""
    assert read_json(run, "test_summary.json")["ensemble"]["epochs"] == [2, 4, 5]


STOPPED = (
    "Training stopped early, after 4 of 9 epochs: no validation since epoch 2 was better (early_stopping_patience 2)."
)


def test_training_stops_early_when_no_validation_was_better_for_so_many_epochs(experiment, caplog):
    caplog.set_level(logging.INFO)
    run = experiment(learner=FakeLearner(qualities=[3, 9, 9, 8, 10]), total_epochs=9, early_stopping_patience=2)
    run.run()
    assert (run.epochs_done, read_json(run, "test_summary.json")["epochs_trained"]) == (4, 4)
    assert caplog.messages.count(STOPPED) == 1 and read_json(run, "test_summary.json")["stopped_early"] == STOPPED
    assert final_test.result_text(read_json(run, "test_summary.json"), run.run_folder.path).splitlines()[-4] == STOPPED
    tested = protocols(run.task_sets, ["transductive"])
    text = final_test.stored_result(run.run_folder, 9, tested, 4, with_curve=False, patience=2)
    assert text.startswith("This experiment is finished (4 epochs). Its result:\nTest accuracy") and STOPPED in text
    assert final_test.stored_result(run.run_folder, 9, tested, 4, with_curve=False) is None


def test_a_run_that_stopped_early_stays_so_until_it_is_told_otherwise(experiment):
    qualities = [3, 9, 9, 8, 10]
    whole = run_content_of(experiment, FakeLearner(qualities=qualities), total_epochs=9, early_stopping_patience=2)
    assert (
        run_content_of(experiment, FakeLearner(qualities=qualities), total_epochs=9, early_stopping_patience=2) == whole
    )
    patient = experiment(learner=FakeLearner(qualities=qualities), total_epochs=9, early_stopping_patience=3)
    patient.run()
    assert patient.epochs_done == 8 and read_json(patient, "test_summary.json")["epochs_trained"] == 8


def test_patience_ends_at_a_validation_and_not_between_two(experiment):
    run = experiment(
        learner=FakeLearner(qualities=[3, 9, 9, 9, 9, 8]),
        total_epochs=9,
        early_stopping_patience=1,
        validate_every_epochs=2,
    )
    run.run()
    assert run.epochs_done == 4
    run = experiment(learner=FakeLearner(), total_epochs=4, early_stopping_patience=0)
    run.run()
    assert run.stopped_early is None


def run_content_of(experiment, learner, **settings):
    run = experiment(learner=learner, **settings)
    run.run()
    return run_content(run)


def test_every_checkpoint_stays_where_all_are_wanted_and_the_curve_tests_them_all(experiment):
    run = experiment(
        learner=FakeLearner(qualities=[3, 9, 4, 8]), total_epochs=4, max_models_to_save="all", validate_every_epochs=3,
        test_curve=True,
    )  # fmt: skip
    run.run()
    assert list(list_epochs(run.run_folder.saved_models)) == [1, 2, 3, 4]
    with (run.run_folder.logs / "test_curve.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_the_best_and_the_newest_two_checkpoints_stay(experiment):
    run = experiment(
        learner=FakeLearner(qualities=[3, 9, 4, 9, 8, 2, 1, 0]),
        total_epochs=8,
        max_models_to_save=3,
        number_of_ensemble_models=3,
    )
    run.run()
    assert list(list_epochs(run.run_folder.saved_models)) == [2, 4, 5, 7, 8]


def test_a_checkpoint_that_cannot_be_removed_does_not_stop_the_run(experiment, monkeypatch, caplog):
    run = experiment(total_epochs=4, max_models_to_save=1, number_of_ensemble_models=1)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", denied)
    run.run()
    assert "train_model_2.safetensors: cannot be removed (Permission denied)." in caplog.text
    assert list(list_epochs(run.run_folder.saved_models)) == [1, 2, 3, 4]


def test_a_non_finite_loss_stops_the_run_and_is_not_saved(experiment):
    run = experiment(learner=FakeLearner(fails_at=7))
    with pytest.raises(NonFiniteError, match=r"iteration 7 \(epoch 2\): the loss is nan; training tasks 18 to 20"):
        run.run()
    assert list(list_epochs(run.run_folder.saved_models)) == [1]
    again = experiment(learner=FakeLearner())
    again.run()
    assert [row["epoch"] for row in csv_rows(again)] == ["1", "2", "3"]


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", [1, 2, 5, 8, 9, 12])
def test_a_run_that_died_at_any_iteration_ends_as_if_it_had_not(tmp_path, experiment, dies_at):
    class Dying(FakeLearner):
        def meta_update(self, meta_gradients, epoch):
            applied = super().meta_update(meta_gradients, epoch)
            if self.weight[0] == dies_at:
                raise SystemExit
            return applied

    qualities = [3, 9, 4]
    with pytest.raises(SystemExit):
        experiment(learner=Dying(qualities=qualities), log_every_iterations=1).run()
    resumed = experiment(learner=FakeLearner(qualities=qualities), log_every_iterations=1)
    resumed.run()
    content = run_content(resumed)
    resumed.run_folder.path.rename(tmp_path / "died")
    resumed.run_folder.create()
    whole = experiment(learner=FakeLearner(qualities=qualities), log_every_iterations=1)
    whole.run()
    assert content == run_content(whole)


def test_a_resumed_run_reuses_automatic_choices_and_moments(experiment):
    experiment(total_epochs_before_pause=1).run()
    learner = FakeLearner()
    experiment(learner=learner, total_epochs_before_pause=1).run()
    assert learner.reused == {"task_chunk_size": 3}
    assert float(learner.moment) == pytest.approx(1 - 0.9**8)


def test_logs_are_rewritten_from_the_checkpoint(experiment):
    run = experiment(total_epochs_before_pause=2)
    run.run()
    logs = run.run_folder.logs
    (logs / "summary_statistics.csv").write_text("torn,")
    (logs / "curves.json").unlink()
    with (logs / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "epoch": 3}\n{"iterat')
    finished = experiment(total_epochs_before_pause=2)
    finished.run()
    assert [row["epoch"] for row in csv_rows(finished)] == ["1", "2", "3"]
    assert len(read_json(finished, "curves.json")["epochs"]) == 3
    assert [line["iteration"] for line in metric_lines(finished)] == [4, 8, 10, 12]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(experiment, caplog):
    run = experiment(total_epochs_before_pause=2)
    run.run_folder.lock()
    run.run()
    damaged = epoch_path(run.run_folder.saved_models, 2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed = experiment()
    resumed.run()
    assert "do not fit its digest. Set aside as train_model_2.safetensors.corrupt." in caplog.text
    assert [row["epoch"] for row in csv_rows(resumed)] == ["1", "2", "3"]


def test_when_all_checkpoints_are_damaged_nothing_starts_from_zero(experiment):
    run = experiment(total_epochs_before_pause=1)
    run.run_folder.lock()
    run.run()
    epoch_path(run.run_folder.saved_models, 1).write_bytes(b"nonsense")
    for _ in range(2):  # the second time only the *.corrupt file is there
        with pytest.raises(StorageError, match="no usable checkpoint is left, all are damaged"):
            experiment().run()


def test_when_the_checkpoints_are_gone_the_logs_are_not_overwritten(experiment):
    run = experiment(total_epochs_before_pause=1)
    run.run()
    epoch_path(run.run_folder.saved_models, 1).unlink()
    with pytest.raises(StorageError, match=r"summary_statistics\.csv shows finished epochs"):
        experiment().run()
    assert len(csv_rows(run)) == 1


def test_pause_after_so_many_epochs_of_this_process_unless_the_run_is_complete(experiment, caplog):
    caplog.set_level(logging.INFO)
    first = experiment(total_epochs=4, total_epochs_before_pause=2)
    first.run()
    assert "Paused after 2 epochs, at epoch 2 of 4. Run the same command to go on." in caplog.text
    assert not (first.run_folder.logs / "test_summary.json").exists()
    experiment(total_epochs=4, total_epochs_before_pause=2).run()
    assert caplog.text.count("Paused") == 1
    assert (first.run_folder.logs / "test_summary.json").exists()


# --- testing ----------------------------------------------------------------------------------------------------------


def test_the_ensemble_is_the_best_models_and_ties_go_to_the_earlier_epoch(experiment):
    run = experiment(learner=FakeLearner(qualities=[3, 9, 4, 9, 8]), total_epochs=5, number_of_ensemble_models=3)
    run.run()
    summary = read_json(run, "test_summary.json")
    assert summary["ensemble"]["epochs"] == [2, 4, 5]
    assert [model["test_accuracy_mean"] for model in summary["models"]] == pytest.approx([0.9, 0.9, 0.8])
    assert summary["test_accuracy_mean"] == pytest.approx(0.9)  # two of three are right where the third is wrong
    assert (summary["test_accuracy_std"], summary["test_accuracy_ci95"]) == (0.0, 0.0)
    assert summary["protocol"] == {
        "ways": 5,
        "shots": 1,
        "queries": 2,
        "steps": 2,
        "tasks": 7,
        "seed": 0,
        "dataset": "fake",
        "statistics": "transductive",
    }
    assert summary["task_list_digest"] == "test [0, 1, 2, 3, 4, 5, 6]"


def test_predictions_hold_the_scores_of_every_model(experiment):
    run = experiment(learner=FakeLearner(qualities=[3, 9, 4]))
    run.run()
    tensors, state = load_checkpoint(run.run_folder.logs / "test_predictions.safetensors")
    assert tensors["scores.transductive"].shape == (3, 7, N_QUERY_IMAGES, N_WAY)
    hits = tensors["scores.transductive"].argmax(-1) == tensors["query_labels"]
    assert hits.double().mean(dim=(1, 2)).tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert [model["epoch"] for model in state["models"]] == [2, 3, 1]


def test_every_kind_of_statistics_is_tested(experiment):
    run = experiment(test_batch_norm_statistics=("transductive", "running"))
    run.run()
    with (run.run_folder.logs / "test_summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["statistics"] for row in rows] == ["transductive", "running"]
    assert list(rows[0])[:2] == ["test_accuracy_mean", "test_accuracy_std"]
    tensors, _ = load_checkpoint(run.run_folder.logs / "test_predictions.safetensors")
    assert torch.equal(tensors["scores.running"], 2 * tensors["scores.transductive"])


def test_a_damaged_model_is_replaced_by_the_next_best(experiment, caplog):
    qualities = [3, 9, 4, 8]
    run = experiment(learner=FakeLearner(qualities=qualities), total_epochs=4, number_of_ensemble_models=2)
    run.run_folder.lock()
    run.run()
    epoch_path(run.run_folder.saved_models, 2).write_bytes(b"nonsense")
    again = experiment(
        learner=FakeLearner(qualities=qualities),
        total_epochs=4,
        number_of_ensemble_models=2,
        evaluate_on_test_set_only=True,
        tag="again",
    )
    again.run()
    assert read_json(again, "test_summary_again.json")["ensemble"]["epochs"] == [4, 3]
    assert "Set aside as train_model_2.safetensors.corrupt" in caplog.text


def test_a_tagged_test_of_an_unfinished_run_trains_nothing_and_leaves_other_files_alone(experiment):
    data = FakeData()
    run = experiment(total_epochs_before_pause=2)
    run.run()
    before = run.run_folder.logs.joinpath("summary_statistics.csv").read_bytes()
    names = {path.name for path in run.run_folder.logs.iterdir()}
    experiment(data=data, evaluate_on_test_set_only=True, tag="T", num_evaluation_tasks=2).run()
    assert {split for split, _ in data.asked} == {"test"}
    new = {path.name for path in run.run_folder.logs.iterdir()} - names
    assert new == {"test_summary_T.csv", "test_summary_T.json", "test_predictions_T.safetensors"}
    assert read_json(run, "test_summary_T.json")["epochs_trained"] == 2
    assert run.run_folder.logs.joinpath("summary_statistics.csv").read_bytes() == before


@pytest.mark.parametrize("by_path", [False, True])
def test_chosen_weights_are_tested(experiment, by_path):
    learner = FakeLearner(qualities=[3, 9, 4])
    run = experiment(learner=learner)
    run.run()
    wanted = str(epoch_path(run.run_folder.saved_models, 1)) if by_path else "1"
    experiment(learner=learner, evaluate_on_test_set_only=True, tag="one", load_checkpoint=wanted).run()
    summary = read_json(run, "test_summary_one.json")
    assert summary["ensemble"]["epochs"] == [1]
    assert summary["test_accuracy_mean"] == pytest.approx(0.3)


def test_an_epoch_that_is_not_there_is_named(experiment):
    experiment().run()
    with pytest.raises(ConfigError, match=r"load_checkpoint 9: .*train_model_9.* Epochs of this run: 1, 2, 3\."):
        experiment(evaluate_on_test_set_only=True, load_checkpoint="9").run()


def test_a_new_run_starts_from_given_weights_without_their_moments(experiment, tmp_path):
    first = experiment(total_epochs=1)
    first.run()
    kept = epoch_path(first.run_folder.saved_models, 1).rename(tmp_path / "weights.safetensors")
    first.run_folder.path.rename(tmp_path / "first")
    first.run_folder.create()
    learner = FakeLearner()
    experiment(learner=learner, total_epochs=1, total_epochs_before_pause=1, load_checkpoint=str(kept)).run()
    tensors, _ = load_checkpoint(epoch_path(first.run_folder.saved_models, 1))
    assert float(tensors["network.weight"][0]) == 8.0  # 4 iterations on top of 4
    assert float(tensors["optimizer.moment"]) == pytest.approx(1 - 0.9**4)


def test_the_curve_tests_every_kept_epoch_and_selects_nothing(experiment):
    run = experiment(learner=FakeLearner(qualities=[3, 9, 4]), test_curve=True, number_of_ensemble_models=1)
    run.run()
    with (run.run_folder.logs / "test_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], float(row["test_accuracy_mean"])) for row in rows] == [
        ("1", pytest.approx(0.3)), ("2", pytest.approx(0.9)), ("3", pytest.approx(0.4)),
    ]  # fmt: skip
    assert read_json(run, "test_summary.json")["ensemble"]["epochs"] == [2]


def test_the_result_names_interval_protocol_and_files(experiment, caplog):
    caplog.set_level(logging.INFO)
    run = experiment(learner=FakeLearner(qualities=[3, 9, 4]), number_of_ensemble_models=1)
    run.run()
    text = caplog.messages[-1]
    assert "Test accuracy of the model: 90.00 % +- 0.00 (95 % interval over 7 tasks)" in text
    assert "5-way 1-shot, 2 queries per class, 2 inner steps, transductive batch-norm statistics" in text
    assert str(run.run_folder.path) in text
    assert "logs/test_summary.csv" in text
