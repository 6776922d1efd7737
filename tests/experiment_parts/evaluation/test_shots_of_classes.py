"""Tasks whose classes have shots of their own: every prediction and every number beside it is what the same support
set gives elsewhere.
"""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import train_maml_system
from experiment_parts.evaluation.split_evaluation import BaselineTasks, evaluate_tasks
from experiment_parts.runs.checkpoints import load_checkpoint
from few_shot_classifier import FewShotClassifier
from meta_learning.execution.cuda_graphs import GraphedComputation
from tests.conftest import draw_dataset
from tests.tools.learners import small_learner
from tests.tools.runs import TINY, other_task_sets, tiny_data
from utils.config import check_config
from utils.data_sources.task_lists import TaskLists, read_task_lists, write_task_lists
from utils.episodes.drawing import EpisodeShape
from utils.metrics import summarise
from utils.prepare_dataset.__main__ import main as prepare_dataset

CONFIG = {
    "experiment_name": "run", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
    "train_val_test_split": [0.34, 0.33], "num_classes_per_set": 5, "num_target_samples": 2, "cnn_num_filters": 3,
    "total_epochs": 1, "total_iter_per_epoch": 2, "batch_size": 3, "num_evaluation_tasks": 4, "gpu_to_use": "cpu",
    "number_of_training_steps_per_iter": 2, "report_every_s": 0, "number_of_ensemble_models": 1,
    "precision": "float64",
}  # fmt: skip

NO_STEPS = {"number_of_training_steps_per_iter": 0, "number_of_evaluation_steps_per_iter": 0}


@pytest.fixture
def tested(tmp_path, tiny_dataset, monkeypatch):
    """`tested(**keys)` -> logs of a run of CONFIG and keys, tested on 20 tasks of each way of the list `varying` of a
    dataset with seven classes of 2 to 8 images; with a learned head on 5 ways alone.
    """
    folder = tiny_dataset("tiny", n_classes=18)
    for number in range(7):
        draw_dataset(folder.parent / "odd", [f"test/c{number}"], images_per_class=number + 2, side=14)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))

    def test(**keys):
        assert prepare_dataset(["tasks", "--domain", "odd"]) == 0
        file = folder.parent / "odd_tasks/varying.tasks.json"
        lists = read_task_lists(file).lists
        assert [tasks.digest for tasks in other_task_sets(check_config(CONFIG | {"task_list": str(file)}, "test"))] == [
            one.digest for one in lists
        ]
        ways = [one for one in lists if keys.get("head", "learned") != "learned" or one.shape.n_way == 5]
        few = tuple(type(one)(one.shape, one.tasks[:20], one.seed) for one in ways)
        write_task_lists(tmp_path / "few.json", TaskLists("odd", few))
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | keys))
        for more in ([], ["--task_list", str(tmp_path / "few.json")]):
            assert train_maml_system.main(["--name_of_args_json_file", str(tmp_path / "config.json"), *more]) == 0
        return few, tmp_path / "experiments/run/logs", folder.parent / "odd"

    return test


def pixels(folder, paths):
    return np.stack([np.asarray(Image.open(folder / path)) for path in paths])


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="learned"),
        pytest.param(
            {"head": "prototypes", "test_batch_norm_statistics": ["transductive", "support"]}, id="prototypes"
        ),
        pytest.param({"head": "zero"}, id="zero", marks=pytest.mark.full),
        pytest.param({"head": "shared"}, id="shared", marks=pytest.mark.full),
        pytest.param({"head": "ridge"} | NO_STEPS, id="ridge", marks=pytest.mark.full),
    ],
)
def test_each_task_is_what_a_classifier_fitted_to_its_support_set_says(tested, keys, capsys):
    lists, logs, folder = tested(**keys)
    tensors, _ = load_checkpoint(logs / "test_predictions_on_few.safetensors")
    summary = json.loads((logs / "test_summary_on_few.json").read_text())
    accuracies = {}
    for result in summary["results"]:
        protocol = result["protocol"]
        (tasks,) = (one.tasks for one in lists if one.shape.n_way == protocol["ways"])
        assert protocol["shots"] == "1-5" and protocol["tasks"] == len(tasks) == 20
        suffix = f".odd.{protocol['ways']}way_1-5shot_1query" if len(lists) > 1 else ""
        scores, labels = tensors[f"scores.{protocol['statistics']}{suffix}"][0], tensors[f"query_labels{suffix}"]
        learned = FewShotClassifier.from_experiment(logs.parent)
        learned.set_params(batch_norm_statistics=protocol["statistics"])
        neighbours = []
        for task, of_task in zip(tasks, scores, strict=True):
            support = [(path, label) for label, (_, paths) in enumerate(task) for path in paths[:-1]]
            images, targets = pixels(folder, [path for path, _ in support]), np.array([label for _, label in support])
            queries = pixels(folder, [paths[-1] for _, paths in task])
            probabilities = learned.fit(images, targets).predict_proba(queries)
            np.testing.assert_allclose(of_task.softmax(-1).numpy(), probabilities, atol=1e-6)  # its pixels are float32
            distances = ((queries[:, None].astype(float) - images[None]) ** 2).sum((2, 3))
            neighbours.append((targets[distances.argmin(1)] == range(len(task))).mean())
        of_set = (scores.argmax(-1) == labels).double().mean(-1).tolist()
        assert result["test_accuracy_mean"] == pytest.approx(summarise(of_set).mean)
        assert result["baselines"]["rows"]["pixels"]["mean"] == pytest.approx(np.mean(neighbours))
        accuracies.setdefault(protocol["statistics"], []).extend(of_set)
    with (logs / "test_summary_on_few.csv").open() as file:
        assert {row["shots"] for row in csv.DictReader(file)} == {"1-5"}
    shown = capsys.readouterr().out
    if len(lists) == 1:
        assert "5-way 1-5-shot, 1 query per class" in shown and "all_tasks" not in summary
        return
    for whole, (kind, of_kind) in zip(summary["all_tasks"], accuracies.items(), strict=True):
        expected = summarise(of_kind)
        assert (whole["statistics"], whole["tasks"]) == (kind, 60)
        assert whole["test_accuracy_mean"] == pytest.approx(expected.mean)
        assert whole["test_accuracy_std"] == pytest.approx(expected.std)
        assert whole["test_accuracy_ci95"] == pytest.approx(expected.ci95)
        mean, interval = 100 * expected.mean, 100 * expected.ci95
        assert f"\n  over all 60 tasks, {kind}: {mean:.2f} % +- {interval:.2f}\n" in shown


OWN_SHOTS = EpisodeShape(3, 3, 1, least_shot=1)


def evaluated(tasks_per_batch, shape=OWN_SHOTS, record=None):
    learner = small_learner(image_height=10, image_width=10)
    learner.execution.replayed = GraphedComputation(record)
    return evaluate_tasks(
        learner, tiny_data(check_config(TINY | {"precision": "float64"}, "test")), "test", n_tasks=12,
        tasks_per_batch=tasks_per_batch, with_scores=True, shape=shape,
        baselines=BaselineTasks(n_untrained=5, n_reordered=3),
    )  # fmt: skip


def test_tasks_are_evaluated_by_their_support_images_and_reported_in_their_order():
    together, alone = evaluated(4), evaluated(1)
    data = tiny_data(check_config(TINY, "test"))
    sizes = data.support_sizes("test", range(12), OWN_SHOTS)
    assert len(set(sizes.tolist())) > 2 and sizes.tolist() != sorted(sizes.tolist())
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(together.labels, alone.labels)
    for name, of_steps in together.metrics.items():
        np.testing.assert_allclose(of_steps, alone.metrics[name], rtol=1e-9, atol=1e-12)
    assert together.baselines.keys() == alone.baselines.keys() > {"pixels", "centroids", "ridge", "label_orders"}
    for name, values in together.baselines.items():
        of_known = len(alone.baselines[name])
        np.testing.assert_allclose(values[:of_known], alone.baselines[name])
        assert np.isnan(values[of_known:]).all()


def test_support_sets_of_many_sizes_are_not_recorded():
    """A stand-in for CUDA graphs, which would keep a recording of each size."""
    recordings = []

    class Recording:
        def replay(self):
            """The result is there already."""

    def record(function):
        recordings.append(Recording())
        return recordings[-1], function()

    evaluated(4, record=record)
    assert recordings == []
    evaluated(4, EpisodeShape(3, 3, 1), record)
    assert recordings


def test_a_class_of_the_list_has_its_own_images_and_labels_and_no_others():
    data = tiny_data(check_config(TINY, "test"))
    for task in range(12):
        drawn, batch = data.draw("test", [task], OWN_SHOTS), data.episodes("test", [task], OWN_SHOTS)
        expected = [
            (label, data.tables["test"].images[data.tables["test"].starts[rank] + place])
            for label, rank in enumerate(drawn.classes[0])
            for place in drawn.images[0, label, :3]
            if place >= 0
        ]
        assert batch.support_labels[0].tolist() == [label for label, _ in expected]
        images = torch.stack([data._images[rank] for _, rank in expected]) / 255
        assert torch.equal(batch.support_images[0], images)
        assert batch.query_labels[0].tolist() == [0, 1, 2] and batch.query_images.shape[1] == 3
    with pytest.raises(ValueError, match=r"a batch of episodes with \[\d, .*\] support images; they need equally many"):
        data.episodes("test", range(12), OWN_SHOTS)


def test_a_list_whose_classes_all_have_the_most_shots_is_that_of_equal_shots():
    data = tiny_data(check_config(TINY, "test"))
    equal, own = (data.episodes("test", range(6), EpisodeShape(3, 3, 2, least)) for least in (None, 3))
    for name in ("support_images", "support_labels", "query_images", "query_labels", "seeds"):
        assert torch.equal(getattr(equal, name), getattr(own, name)), name
