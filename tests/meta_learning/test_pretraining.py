"""Pre-training: plain classification, written out here once more, and what it leaves to the episodes."""

import csv
import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from experiment_parts.runs.checkpoints import list_epochs, load_checkpoint
from tests.tools.learners import PLUS_PLUS, Episodes, random_episodes, small_config, small_learner
from tests.tools.runs import TINY, run_tiny, tiny_data
from utils.config import check_config
from utils.errors import ConfigError

N_CLASSES = 7


@dataclass(frozen=True)
class NamedEpisodes(Episodes):
    """That say which of seven classes theirs are."""

    training_classes: torch.Tensor


def named_episodes(seed=0):
    episodes = random_episodes(small_config(), seed)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.stack([torch.randperm(N_CLASSES, generator=generator)[:3] for _ in episodes.support_labels])
    return NamedEpisodes(**vars(episodes), training_classes=classes)


def pretrained_learner(**changes):
    learner = small_learner(pretraining_epochs=2, **changes)
    learner.begin_pretraining(N_CLASSES, seed=1)
    return learner


def plain_gradients(learner, episodes):
    """One task after the other: the mean of the mean losses, differentiated by autograd."""
    head = learner.pretraining.state_tensors()
    weight, bias = (head[f"pretraining.head.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    losses = []
    for b, of_task in enumerate(episodes.training_classes):
        images = torch.cat([episodes.support_images[b], episodes.query_images[b]])[None]
        labels = of_task[torch.cat([episodes.support_labels[b], episodes.query_labels[b]])]
        losses.append(F.cross_entropy(learner.network.features(images)[0] @ weight.T + bias, labels))
    body = {f"network.{n}": p for n, p in learner.network.named_parameters() if not n.startswith("head.")}
    loss = torch.stack(losses).mean()
    values = torch.autograd.grad(loss, [*body.values(), weight, bias])
    return loss.detach(), dict(zip([*body, "pretraining.head.weight", "pretraining.head.bias"], values, strict=True))


@pytest.mark.parametrize("chunk", [4, 1])
def test_the_gradient_is_that_of_plain_classification(chunk):
    learner, episodes = pretrained_learner(task_chunk_size=chunk), named_episodes()
    loss, wanted = plain_gradients(learner, episodes)
    found = learner.meta_gradients(episodes, 1)
    assert found.gradients.keys() == wanted.keys()
    norm = torch.stack([value.norm() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (found.gradients[name] - value).norm() <= 1e-9 * max(value.norm(), 1e-6 * norm), name
    assert found.metrics["loss"] == pytest.approx(float(loss), rel=1e-12)


def test_rows_of_norm_layers_stay_alike_and_the_head_of_the_episodes_stays_as_it_was():
    learner = pretrained_learner(**PLUS_PLUS, batch_norm_statistics="running")
    with torch.no_grad():  # `small_learner` draws other rows; a network begins with equal ones
        for layer in learner.network.norm_layers().values():
            layer.weight.fill_(1.0), layer.bias.zero_()
    head = {n: p.clone() for n, p in learner.network.head.named_parameters()}
    conv = learner.network.block0.conv.weight.clone()
    for epoch in (0, 0, 1):
        learner.meta_update(learner.meta_gradients(named_episodes(epoch), epoch), epoch)
    assert not torch.equal(conv, learner.network.block0.conv.weight)
    assert all(torch.equal(value, head[name]) for name, value in learner.network.head.named_parameters())
    for layer in learner.network.norm_layers().values():
        for name in ("weight", "bias", "running_mean", "running_var"):
            rows = getattr(layer, name)
            assert rows.shape[0] == 3 and all(torch.equal(row, rows[0]) for row in rows)
        assert layer.has_running_statistics()
    assert not torch.equal(layer.weight[0], torch.ones_like(layer.weight[0]))


def test_the_first_episode_drops_the_head_and_counts_from_there():
    learner = pretrained_learner(**PLUS_PLUS, multi_step_loss_num_epochs=2, first_order_to_second_order_epoch=0)
    plain = small_learner(**PLUS_PLUS, multi_step_loss_num_epochs=2, first_order_to_second_order_epoch=0)
    for epoch in range(4):
        assert learner.is_second_order(epoch + 2) == plain.is_second_order(epoch)
        assert learner.multi_step_loss_weights(epoch + 2) == plain.multi_step_loss_weights(epoch)
    episodes = named_episodes()
    assert "pretraining.head.weight" in learner.state_tensors()
    learner.meta_update(learner.meta_gradients(episodes, 2), 2)
    assert not any(name.startswith("pretraining.") for name in learner.state_tensors())
    after, wanted = learner.meta_gradients(episodes, 3), plain.meta_gradients(episodes, 1)
    assert after.gradients.keys() == wanted.gradients.keys()


def test_episodes_that_name_no_classes_are_refused():
    with pytest.raises(ConfigError, match='"pretraining_epochs" needs to know which of all training classes'):
        pretrained_learner().meta_gradients(random_episodes(small_config()), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_epochs": 3, "pretraining_epochs": 3}, '"pretraining_epochs" 3 are of "total_epochs" 3 and leave none'),
        ({"loss": "mean_squared_error", "pretraining_epochs": 1}, "has no classes; set it to 0"),
    ],
)
def test_what_cannot_be_pre_trained_is_said_before_it_starts(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config({"experiment_name": "x"} | changes, "test")


def test_turned_classes_are_classes_of_their_own():
    """Two episodes with the same class in other turns have other numbers, the same turn the same."""
    config = check_config(TINY | {"pretraining_epochs": 1, "class_rotation": True}, "test")
    data = tiny_data(config)
    batch, drawn = data.episodes("train", range(20)), data.draw("train", range(20))
    assert data.n_training_classes == 12 and int(batch.training_classes.max()) < 12
    pairs = zip(drawn.classes.ravel(), drawn.rotations.ravel(), batch.training_classes.ravel().tolist(), strict=True)
    assert len({(c, turn) for c, turn, _ in pairs}) == len(set(batch.training_classes.ravel().tolist()))
    assert data.episodes("val", [0]).training_classes is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    changes = PLUS_PLUS | {"pretraining_epochs": 2, "total_epochs": 4, "max_models_to_save": "all"}
    return run_tiny(tmp_path_factory.mktemp("runs"), number_of_ensemble_models=5, **changes)


def test_a_run_validates_pre_training_by_centroids_and_never_tests_it(run):
    with (run / "logs" / "summary_statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["pretraining_val_accuracy_mean"]) for row in rows] == [True, True, False, False]
    assert [bool(row["val_accuracy_mean"]) for row in rows] == [False, False, True, True]
    summary = json.loads((run / "logs" / "test_summary.json").read_text())
    assert sorted(summary["ensemble"]["epochs"]) == [3, 4]
    heads = [
        any(name.startswith("pretraining.") for name in load_checkpoint(path)[0])
        for _, path in sorted(list_epochs(run / "saved_models").items())
    ]
    assert heads == [True, True, False, False]
    for line in (run / "logs" / "metrics.jsonl").read_text().splitlines():
        assert (len(json.loads(line)["query_accuracy"]) == 1) == (json.loads(line)["epoch"] <= 2)


def test_pre_training_alone_is_a_run_of_a_classifier_that_is_chosen_and_tested_by_class_centroids(tmp_path):
    centroids = {"head": "prototypes", "number_of_training_steps_per_iter": 0, "number_of_evaluation_steps_per_iter": 0}
    run = run_tiny(
        tmp_path, **centroids, pretraining_epochs=5, total_epochs=2, number_of_ensemble_models=1, test_baselines=True
    )
    with (run / "logs" / "summary_statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row.get("pretraining_val_accuracy_mean") for row in rows] == [None, None]
    accuracies = [float(row["val_accuracy_mean"]) for row in rows]
    summary = json.loads((run / "logs" / "test_summary.json").read_text())
    assert summary["ensemble"]["epochs"] == [1 + accuracies.index(max(accuracies))]
    beside = summary["baselines"]["rows"]
    assert beside["centroids"]["mean"] == beside["after_0_steps"]["mean"] == summary["test_accuracy_mean"]
    for path in list_epochs(run / "saved_models").values():
        assert "pretraining.head.weight" in load_checkpoint(path)[0]  # to the end, plain classification
