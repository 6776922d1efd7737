"""What stands beside a test's result, each against the same computed another way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from meta_learning.networks.passes import Pass
from tests.tools.learners import PLUS_PLUS, random_episodes, small_config, small_learner


def beside(learner, episodes, n_untrained=3, n_reordered=2, **more):
    evaluation = learner.evaluate(episodes, keep_features=True, **more)
    return evaluation, learner.baselines(episodes, evaluation, n_untrained=n_untrained, n_reordered=n_reordered, **more)


def features_of(network, episodes, statistics="transductive"):
    """Support and query features of each task alone, by a plain call of the network."""
    pass_ = Pass(statistics=statistics)
    return [
        tuple(network.features(images[b : b + 1], {}, pass_)[0].detach().numpy() for images in
              (episodes.support_images, episodes.query_images))
        for b in range(len(episodes.support_labels))
    ]  # fmt: skip


def centroid_accuracies(features, episodes):
    found = []
    for (support, query), labels, wanted in zip(features, episodes.support_labels, episodes.query_labels, strict=True):
        means = [support[labels.numpy() == c].mean(0) for c in range(episodes.n_way)]
        answers = [int(np.argmin([((x - mean) ** 2).sum() for mean in means])) for x in query]
        found.append(np.mean(np.array(answers) == wanted.numpy()))
    return found


@pytest.mark.parametrize(
    "config", [{}, PLUS_PLUS, {"adapted_parameters": "head"}, {"head": "prototypes"}, {"backbone": "mlp"}],
    ids=["maml", "maml++", "anil", "protomaml", "mlp"],
)  # fmt: skip
def test_features_of_the_evaluation_itself_give_the_rows_of_the_body(config):
    learner, episodes = small_learner(**config), random_episodes(small_config(), seed=3)
    evaluation, found = beside(learner, episodes)
    for b, (support, query) in enumerate(features_of(learner.network, episodes)):
        assert np.abs(evaluation.support_features[b].numpy() - support).max() < 1e-9
        assert np.abs(evaluation.query_features[b].numpy() - query).max() < 1e-9
    assert found["centroids"].tolist() == centroid_accuracies(features_of(learner.network, episodes), episodes)
    assert torch.equal(evaluation.query_logits, learner.evaluate(episodes).query_logits)


def test_the_untrained_body_is_the_one_that_the_config_begins_with():
    learner, episodes = small_learner(), random_episodes(small_config(), seed=3)
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    _, found = beside(learner, episodes)
    first = replace(episodes, **{name: value[:3] for name, value in vars(episodes).items()})
    from few_shot_learning_system import build_learner

    own = build_learner(small_config(), "cpu").network  # `small_learner` has moved its weights since
    assert found["untrained"][:3].tolist() == centroid_accuracies(features_of(own, first), first)
    assert found["untrained"][3:].isnan().all()
    after = learner.state_tensors()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_label_orders_are_evaluations_with_the_labels_moved_on():
    learner, episodes = small_learner(), random_episodes(small_config(), seed=3)
    _, found = beside(learner, episodes, n_reordered=2)
    assert found["label_orders"].shape == (4, 2)  # three ways have three such orders, one of them the task's own
    for place, shift in enumerate((1, 2)):
        names = ("support_labels", "query_labels")
        moved = replace(episodes, **{name: (getattr(episodes, name) + shift) % 3 for name in names})
        accuracies = learner.evaluate(moved).query_accuracy[-1]
        assert found["label_orders"][:2, place].tolist() == accuracies[:2].tolist()
    assert found["label_orders"][2:].isnan().all()


def test_many_ways_have_five_orders_of_labels_spread_over_them():
    config = small_config(num_classes_per_set=11, num_samples_per_class=1, num_target_samples=1)
    learner = small_learner(num_classes_per_set=11)
    assert beside(learner, random_episodes(config))[1]["label_orders"].shape == (4, 4)


@pytest.mark.parametrize(
    ("config", "statistics", "missing"),
    [
        ({"head": "zero"}, None, {"label_orders"}),
        ({}, "episodic", {"centroids", "ridge", "untrained"}),
        ({}, "support", set()),
        ({"norm_layer": "layer_norm"}, None, set()),
    ],
)
def test_a_row_without_a_meaning_is_absent(config, statistics, missing):
    learner, episodes = small_learner(**config), random_episodes(small_config())
    _, found = beside(learner, episodes, **({"statistics": statistics} if statistics else {}))
    assert set(found) == {"pixels", "centroids", "ridge", "untrained", "label_orders"} - missing


def test_running_statistics_leave_out_the_body_that_never_collected_any():
    learner, episodes = small_learner(batch_norm_statistics="running"), random_episodes(small_config())
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    assert set(beside(learner, episodes)[1]) == {"pixels", "centroids", "ridge", "label_orders"}


def test_chunks_of_tasks_change_nothing():
    episodes = random_episodes(small_config(), seed=5)
    whole, pieces = (beside(small_learner(task_chunk_size=size), episodes)[1] for size in (4, 1))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name].nan_to_num(-1), pieces[name].nan_to_num(-1)) for name in whole)


@pytest.mark.parametrize("config", [{}, {"adapted_parameters": "head"}, {"head": "prototypes"}])
@pytest.mark.parametrize("statistics", ["transductive", "support"])
def test_the_images_that_are_counted_are_those_that_pass(config, statistics):
    """Every forward pass of the body is counted by a hook; a backward pass counts twice its images."""
    learner, episodes = small_learner(**config), random_episodes(small_config())
    seen = []
    make = learner.network.features

    def counting(images, params=None, pass_=None):
        features = make(images, params, pass_)
        # An inner step's pass is the one that is differentiated.
        n_images = features.shape[1]
        seen.append(n_images * (3 if features.requires_grad and not learner.adaptation.features_stay(pass_) else 1))
        return features

    learner.network.features = counting
    learner.evaluate(episodes, statistics=statistics)
    counted = learner.images_per_task(6, 6, statistics)
    assert counted["evaluation"] == sum(seen)
