"""Classifiers in closed form, against numpy's least squares and against a search by hand."""

import numpy as np
import pytest
import torch

from meta_learning.evaluation.feature_classifiers import nearest_neighbours, predictions, ridge_head

LABELS = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 0]])  # the second task's classes differ in size


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("n_features", [3, 9], ids=["fewer features than images", "more"])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 50.0])
def test_ridge_is_numpys_least_squares_with_rows_for_the_penalty(n_features, penalty):
    """|A W - Y|^2 + lambda |W|^2 is the squared error of [A; sqrt(lambda) I] W = [Y; 0]."""
    features, queries = drawn(2, 6, n_features), drawn(2, 5, n_features)
    head = ridge_head(features, LABELS, 3, penalty)
    for task in range(2):
        support, targets = features[task].numpy(), np.eye(3)[LABELS[task].numpy()]
        centred = support - support.mean(0)
        scale = penalty * (centred**2).sum(1).mean()
        rows = np.vstack([centred, np.sqrt(scale) * np.eye(n_features)])
        wanted = np.vstack([targets - targets.mean(0), np.zeros((n_features, 3))])
        weight = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        logits = (queries[task].numpy() - support.mean(0)) @ weight + targets.mean(0)
        ours = queries[task] @ head["head.weight"][task].T + head["head.bias"][task]
        assert np.abs(ours.numpy() - logits).max() < 1e-9
        assert predictions(queries, head)[task].tolist() == logits.argmax(1).tolist()


def test_the_penalty_means_the_same_for_features_of_any_scale_and_place():
    features, queries = drawn(2, 6, 9), drawn(2, 5, 9)
    logits = [
        torch.einsum("bqd,bnd->bqn", moved(queries), head["head.weight"]) + head["head.bias"].unsqueeze(1)
        for moved in (lambda x: x, lambda x: 1000 * x + 7)
        for head in (ridge_head(moved(features), LABELS, 3),)
    ]
    assert (logits[0] - logits[1]).abs().max() < 1e-9


def test_an_infinite_penalty_leaves_the_shares_of_the_classes_and_no_penalty_fits_the_labels():
    features = drawn(2, 6, 9)
    head = ridge_head(features, LABELS, 3, 1e15)
    assert head["head.weight"].abs().max() < 1e-12
    shares = torch.stack([torch.bincount(labels, minlength=3).double() / 6 for labels in LABELS])
    assert (head["head.bias"] - shares).abs().max() < 1e-12
    assert torch.equal(predictions(features, ridge_head(features, LABELS, 3, 1e-9)), LABELS)


def test_features_that_are_all_equal_say_nothing_and_break_nothing():
    head = ridge_head(torch.ones(2, 6, 4), LABELS, 3)
    assert not head["head.weight"].any() and torch.isfinite(head["head.bias"]).all()


def test_ridge_is_differentiable_with_respect_to_the_features():
    features = drawn(2, 6, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(ridge_head(x, LABELS, 3).values()), features)


def test_the_nearest_neighbour_is_the_one_of_a_search_by_hand():
    support, queries = drawn(2, 6, 7), drawn(2, 11, 7)
    found = nearest_neighbours(support, LABELS, queries)
    for task in range(2):
        for place, query in enumerate(queries[task].numpy()):
            distances = [float(((query - image) ** 2).sum()) for image in support[task].numpy()]
            assert found[task, place] == LABELS[task, int(np.argmin(distances))]
