"""What is written for people: norms and angles against autograd's own, Adam's updates against Adam, examples against
the learner.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiment_parts.records.diagnostics import (
    Diagnostics,
    angle_degrees,
    inspect_gradients,
    inspect_update,
    magnitudes,
    weight_magnitudes,
    write_examples,
)
from experiment_parts.records.epoch_records import (
    BINS_PER_POWER,
    HIGHEST_POWER,
    LOWEST_POWER,
    accuracy_histogram,
)
from experiment_parts.runs.checkpoints import load_checkpoint
from few_shot_learning_system import build_learner
from meta_learning.execution.cuda_graphs import GraphedComputation
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner
from tests.tools.runs import TINY, run_tiny, tiny_data
from utils.config import check_config


def test_the_angle_between_gradients_is_that_of_the_vectors():
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0])}
    assert angle_degrees(one, {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([0.0])}) == pytest.approx(90)
    assert angle_degrees(one, {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([2.0])}) == pytest.approx(45)
    assert angle_degrees(one, {"a": torch.tensor([1.0, 1e-9]), "b": torch.tensor([0.0])}) == pytest.approx(
        math.degrees(1e-9)
    )
    assert angle_degrees(one, {"a": torch.zeros(2), "b": torch.tensor([0.0])}) is None


def flat(meta_gradients):
    return torch.cat([gradient.flatten() for gradient in meta_gradients.gradients.values()])


@pytest.mark.parametrize("changes", [{}, PLUS_PLUS | {"first_order_to_second_order_epoch": 0}])
@pytest.mark.parametrize("epoch", [0, 1])
def test_norms_and_angle_are_those_of_the_learners_own_gradients(changes, epoch):
    """The other order comes from a learner built for it, with the same weights."""
    learner = small_learner(**changes)
    episodes = random_episodes(small_config())
    own, inspected = inspect_gradients(learner, episodes, epoch)
    assert inspected["norms"] == pytest.approx(
        {name.removeprefix("network."): float(value.norm()) for name, value in own.gradients.items()}
    )
    assert inspected["order"] == ("second" if learner.is_second_order(epoch) else "first")
    second = inspected["order"] == "second"
    other = small_learner(**changes | {"second_order": not second, "first_order_to_second_order_epoch": -1})
    other.load_state_tensors(learner.state_tensors())
    a, b = flat(own), flat(other.meta_gradients(episodes, epoch))
    assert inspected["angle_degrees"] == pytest.approx(
        math.degrees(math.acos(float(a @ b / a.norm() / b.norm()))), rel=1e-6
    )
    assert inspected["angle_degrees"] > 0.01


def test_the_histogram_of_a_gradient_is_numpy_s_over_powers_of_ten():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn((4, 300), generator=generator, dtype=torch.float64) * 10 ** torch.linspace(-12, 3, 300)
    gradient[0, :7] = 0.0
    edges = 10.0 ** np.linspace(LOWEST_POWER, HIGHEST_POWER, (HIGHEST_POWER - LOWEST_POWER) * BINS_PER_POWER + 1)
    edges[0], edges[-1] = 0.0, np.inf
    counts = magnitudes(gradient)
    assert counts == np.histogram(gradient.abs().numpy(), edges)[0].tolist()
    assert sum(counts) == gradient.numel() and min(counts[0], counts[-1]) > 10
    assert sum(magnitudes(torch.tensor([float("nan"), float("inf"), 1.0]))) == 3, "whatever it holds"
    learner, episodes = small_learner(**PLUS_PLUS), random_episodes(small_config())
    own = learner.meta_gradients(episodes, 0).gradients
    assert weight_magnitudes(learner, episodes, 0) == {
        name.removeprefix("network."): magnitudes(own[name])
        for name in own
        if name.endswith("weight") and ".norm." not in name
    }


def test_a_run_of_first_order_is_spared_the_second():
    learner = small_learner(second_order=False)
    _, inspected = inspect_gradients(learner, random_episodes(small_config()), 0)
    assert (inspected["order"], inspected["angle_degrees"]) == ("first", None)


def test_a_look_at_numbers_that_are_not_finite_leaves_the_learner_willing_to_learn(tmp_path):
    """A learner refuses updates after one that is not finite; those that people look at do not count."""
    learner, config = small_learner(), small_config()
    data = SimpleNamespace(
        shape_of=lambda _: config.validation_shape, class_names={"val": []}, episodes=lambda *_: random_episodes(config)
    )
    compute = learner.meta_gradients

    def spoilt(episodes, epoch, **order):
        result = compute(episodes, epoch, **order)
        next(iter(result.statistics.values())).view(-1)[0] = float("inf")  # and all gradients are finite
        return result

    learner.meta_gradients = spoilt
    inspected = Diagnostics(tmp_path / "examples", 2).inspect(learner, data, 0, is_last=False)
    assert None not in inspected["gradients"]["norms"].values() and "updates" not in inspected
    assert learner.meta_update(compute(random_episodes(config), 0), 0)


@pytest.mark.parametrize("changes", [{}, {"second_order": False}, PLUS_PLUS | {"task_chunk_size": 1}])
def test_looking_takes_time_of_both_loops_and_changes_nothing(changes):
    learner = small_learner(**changes)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    _, inspected = inspect_gradients(learner, random_episodes(small_config()), 0)
    assert inspected["time_inner_s"] > 0 and inspected["time_outer_s"] > 0
    after = learner.state_tensors()
    assert all(torch.equal(before[name], after[name]) for name in before | after)


def test_the_look_watches_the_computation_itself_and_no_replay():
    """A CUDA graph calls no functions, and nothing may wait for the device while one is recorded."""

    def record(function):
        raise AssertionError("looked at while recording")

    learner = small_learner(**PLUS_PLUS)
    learner.execution.replayed = GraphedComputation(record)
    _, inspected = inspect_gradients(learner, random_episodes(small_config()), 0)
    assert inspected["time_inner_s"] > 0 and inspected["time_outer_s"] > 0 and inspected["angle_degrees"] > 0.01
    with pytest.raises(AssertionError, match="looked at while recording"):
        learner.meta_gradients(random_episodes(small_config()), 0)


@pytest.mark.parametrize(
    "optimizer", [{}, {"meta_optimizer": "sgd", "meta_momentum": 0.9}, {"gradient_clip_norm": 0.01}]
)
def test_the_update_is_the_difference_that_it_would_make_and_is_taken_back(optimizer):
    learner, episodes = small_learner(**PLUS_PLUS | optimizer), random_episodes(small_config())
    for epoch in range(2):
        learner.meta_update(learner.meta_gradients(episodes, epoch), epoch)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    gradients = learner.meta_gradients(episodes, 2)
    inspected = inspect_update(learner, gradients, 2)
    after = learner.state_tensors()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    learner.meta_update(gradients, 2)
    assert len(inspected) == len(learner.meta_parameters())
    for name, parameter in learner.meta_parameters().items():
        update = inspected[name.removeprefix("network.")]
        assert update["update_norm"] == pytest.approx(float((parameter - before[name]).detach().norm()), rel=1e-9)
        assert update["norm"] == pytest.approx(float(before[name].norm()))


def test_looking_at_a_run_does_not_change_what_it_learns(tmp_path):
    folders = [run_tiny(tmp_path / str(n), **PLUS_PLUS, diagnostics_every_epochs=n) for n in (0, 1)]
    weights = [load_checkpoint(folder / "saved_models/train_model_2.safetensors")[0] for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


@pytest.mark.parametrize("normalisation, channels", [("none", 1), ("imagenet", 3)])
def test_the_examples_are_the_episodes_and_the_learners_answers(tmp_path, normalisation, channels):
    config = check_config(
        TINY | {"normalisation": normalisation, "image_channels": channels, "num_target_samples": 3}, "test"
    )
    data, learner = tiny_data(config), build_learner(config, "cpu")
    write_examples(tmp_path / "examples.safetensors", learner, data, 6)
    tensors, state = load_checkpoint(tmp_path / "examples.safetensors")
    assert (state["epoch"], state["queries_per_task"]) == (7, 9)
    assert tensors["support_images"].shape == (4, 3, 1, channels, 10, 10)
    assert tensors["query_images"].shape == (4, 3, 3, channels, 10, 10)
    episodes = data.episodes("val", range(4))
    assert state["class_names"][2] == [data.class_names["val"][rank] for rank in episodes.class_ids[2]]
    for suffix, n_steps in (("_before", 0), ("", None)):
        evaluation = learner.evaluate(episodes, n_steps=n_steps)
        assert torch.equal(tensors[f"predictions{suffix}"].flatten(1), evaluation.query_logits.argmax(-1))
        assert (tensors[f"right{suffix}"] / 9).tolist() == pytest.approx(evaluation.query_accuracy[-1].tolist())
    drawn = data.draw("val", [0])
    pixels = data._images[data.tables["val"].ranks(drawn)[0]]  # (N, K+Q, C, H, W), as stored
    assert torch.equal(tensors["support_images"][0], pixels[:, :1])
    assert torch.equal(tensors["query_images"][0], pixels[:, 1:])


def test_large_images_are_reduced_and_few_of_many_are_kept(tmp_path):
    changes = {
        "image_height": 96,
        "image_width": 60,
        "num_samples_per_class": 2,
        "num_target_samples": 3,
        "num_stages": 1,
    }
    config = check_config(TINY | changes, "test")
    write_examples(tmp_path / "examples.safetensors", build_learner(config, "cpu"), tiny_data(config), 0)
    tensors, _ = load_checkpoint(tmp_path / "examples.safetensors")
    assert tensors["support_images"].shape[-2:] == (48, 30)


def test_the_histogram_counts_every_task_once():
    assert accuracy_histogram([0.0, 0.049, 0.05, 0.6, 1.0, float("nan")], 20) == [2, 1] + [0] * 10 + [1] + [0] * 6 + [1]
    assert accuracy_histogram([k / 20 for k in range(20)], 20) == [1] * 20


def test_a_run_writes_it_every_so_many_epochs_and_at_the_end(tmp_path):
    folder = run_tiny(tmp_path, total_epochs=3, diagnostics_every_epochs=2)
    entries = json.loads((folder / "logs/curves.json").read_text())["epochs"]
    assert ["gradients" in entry for entry in entries] == [False, True, True]
    assert entries[2]["updates"].keys() >= {"block0.conv.weight", "head.bias"}
    assert entries[2]["peak_memory_mib"] > 50
    assert sum(entries[2]["val_accuracy_histogram"]) == 3
    assert 0 < entries[2]["time"]["data_time_s"] < entries[2]["time"]["train_time_s"]
    assert load_checkpoint(folder / "logs/validation_episodes.safetensors")[1]["epoch"] == 3


def test_a_run_that_is_told_to_writes_nothing_of_it(tmp_path):
    folder = run_tiny(tmp_path, diagnostics_every_epochs=0)
    assert "gradients" not in json.loads((folder / "logs/curves.json").read_text())["epochs"][0]
    assert not (folder / "logs/validation_episodes.safetensors").exists()


def test_the_scores_of_the_test_name_their_classes(tmp_path):
    folder = run_tiny(tmp_path)
    tensors, state = load_checkpoint(folder / "logs/test_predictions.safetensors")
    assert state["class_names"] == {"omniglot_dataset": ["test0", "test1", "test2"]}
    assert torch.equal(tensors["class_ids"].sort(dim=1).values, torch.arange(3).expand(3, -1))
