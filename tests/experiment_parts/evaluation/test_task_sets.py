"""A test over several ways, shots and queries: one table, one row and one array of scores for each."""

import csv
import json

import pytest

from experiment_builder import build_experiment
from experiment_parts.evaluation.task_sets import protocols_of
from experiment_parts.evaluation.test_results import result_text, stored_result
from experiment_parts.records.diagnostics import write_examples
from experiment_parts.runs.checkpoints import load_checkpoint
from experiment_parts.runs.run_folder import RunFolder
from few_shot_learning_system import build_learner
from tests.tools.runs import TINY, run_tiny, tiny_data
from utils.config import check_config
from utils.episodes.drawing import training_shape
from utils.metrics import summarise

SHAPES = {"test_num_samples_per_class": [1, 3], "test_num_target_samples": [1, 2]}


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A run folder of an experiment that trained with 1 and 2 shots and was tested with 1 and 3."""
    return run_tiny(
        tmp_path_factory.mktemp("runs"), num_samples_per_class=[1, 2], total_epochs=1, **SHAPES,
        test_batch_norm_statistics=["transductive", "running"], number_of_ensemble_models=1,
    )  # fmt: skip


def test_every_combination_has_its_row_and_its_scores(tested):
    with (tested / "logs" / "test_summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(s, q, kind) for s in "13" for q in "12" for kind in ("transductive", "running")]
    assert [(row["shots"], row["queries"], row["statistics"]) for row in rows] == expected
    tensors, _ = load_checkpoint(tested / "logs" / "test_predictions.safetensors")
    assert len(tensors) == 4 + 4 + 8  # labels, classes, scores
    for row in rows:
        name = f"omniglot_dataset.3way_{row['shots']}shot_{row['queries']}query"
        scores, labels = tensors[f"scores.{row['statistics']}.{name}"], tensors[f"query_labels.{name}"]
        assert scores.shape == (1, 3, 3 * int(row["queries"]), 3)
        accuracies = (scores[0].argmax(-1) == labels).double().mean(-1).tolist()
        assert float(row["test_accuracy_mean"]) == pytest.approx(summarise(accuracies).mean)


def test_every_set_of_tasks_has_a_digest_of_its_own(tested):
    results = json.loads((tested / "logs" / "test_summary.json").read_text())["results"]
    assert len({result["task_list_digest"] for result in results}) == 4


def test_the_result_is_one_table_and_says_where_all_tasks_have_the_same_classes(tested, tmp_path):
    text = result_text(json.loads((tested / "logs" / "test_summary.json").read_text()), tested)
    lines = text.splitlines()
    assert lines[0] == (
        "Note: every 3-way task has the same classes, all that there are: the interval is over their images and says "
        "nothing about other classes"
    )
    assert lines[1] == (
        "Test accuracy of the model (95 % interval over 3 tasks each), 2 inner steps, test tasks of seed 0"
    )
    assert lines[2].split() == ["dataset", "ways", "shots", "queries", "statistics", "accuracy"]
    assert [line.split()[:5] for line in lines[3:11]] == [
        ["omniglot_dataset", "3", shots, queries, kind]
        for shots in "13" for queries in "12" for kind in ("transductive", "running")
    ]  # fmt: skip
    assert lines[11].startswith("Everything was written to")
    fewer = run_tiny(tmp_path, num_classes_per_set=2, total_epochs=1, number_of_ensemble_models=1)
    assert "same classes" not in result_text(json.loads((fewer / "logs" / "test_summary.json").read_text()), fewer)
    assert "every_task_has_the_same_classes" not in json.loads((fewer / "logs" / "test_summary.json").read_text())


def test_a_finished_run_says_when_the_config_now_asks_for_another_test(tested):
    def shown(**changes):
        config = check_config(TINY | {"num_samples_per_class": [1, 2], "total_epochs": 1} | changes, "test")
        return stored_result(RunFolder(tested), 1, protocols_of(config), 1, with_curve=False)

    same = SHAPES | {"test_batch_norm_statistics": ["transductive", "running"]}
    assert "other test keys" not in shown(**same)
    assert "This test used other test keys" in shown(**same | {"test_num_samples_per_class": [1, 2]})


def test_each_meta_batch_of_the_training_has_the_shape_of_its_number(tmp_path):
    config = check_config(TINY | {"num_samples_per_class": [1, 2, 3], "train_seed": 4}, "test")
    folder = RunFolder(tmp_path / "run")
    folder.create()
    run = build_experiment(config, None, tiny_data(config), [], folder)
    shots = [run.training_episodes(iteration).n_shot for iteration in range(1, 21)]
    assert set(shots) == {1, 2, 3}
    assert shots == [training_shape(config.training_shapes, 4, number).n_shot for number in range(20)]


@pytest.mark.parametrize("head", ["zero", "prototypes"])
def test_a_head_made_for_each_task_trains_and_tests_on_any_number_of_ways(tmp_path, head):
    changes = {
        "head": head,
        "num_classes_per_set": [2, 3],
        "test_num_classes_per_set": [2, 3],
        "num_samples_per_class": [1, 2],
        "train_seed": 2,
    }
    config = check_config(TINY | changes, "test")
    folder = run_tiny(tmp_path, **changes, total_epochs=1, number_of_ensemble_models=1)
    results = json.loads((folder / "logs" / "test_summary.json").read_text())["results"]
    assert [(r["protocol"]["ways"], r["protocol"]["shots"]) for r in results] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    tensors, _ = load_checkpoint(folder / "logs" / "test_predictions.safetensors")
    assert tensors["scores.transductive.omniglot_dataset.2way_1shot_2query"].shape == (1, 3, 4, 2)
    assert {training_shape(config.training_shapes, 2, number).n_way for number in range(5)} == {2, 3}


def test_validation_with_ways_of_its_own_is_of_its_own_tasks(tmp_path):
    """Fewer than the training's: the same tasks as where the training has these, and shown so in the report."""
    keys = {"head": "prototypes", "total_epochs": 1, "number_of_ensemble_models": 1, "num_classes_per_set": 3}
    folder = run_tiny(tmp_path, **keys, val_num_classes_per_set=2)
    assert json.loads((folder / "logs" / "test_summary.json").read_text())["protocol"]["ways"] == 3
    config = check_config(TINY | keys | {"val_num_classes_per_set": 2}, "test")
    data = tiny_data(config)
    write_examples(tmp_path / "examples", build_learner(config, "cpu"), data, 0)
    tensors, state = load_checkpoint(tmp_path / "examples")
    assert tensors["support_images"].shape[1] == 2 and {len(names) for names in state["class_names"]} == {2}
    narrow = tiny_data(check_config(TINY | keys | {"num_classes_per_set": 2}, "test"))
    assert data.episodes("train", [0]).n_way == 3 and data.episodes("test", [0]).n_way == 3
    assert data.episodes("val", [4]).class_ids.tolist() == narrow.episodes("val", [4]).class_ids.tolist()
