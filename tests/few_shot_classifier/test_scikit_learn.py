"""scikit-learn's own checks of a classifier, and its tools around ours."""

from pickle import PicklingError

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from few_shot_classifier import FewShotClassifier

DO_NOT_APPLY = {
    "check_estimators_pickle": "pickling is refused: reading a pickle can run anything; save and load are there "
    "instead",
    "check_array_api_input": "needs an environment variable of scipy; torch tensors are taken without it",
}
"""Of scikit-learn 1.9. Checks of pandas objects are skipped by scikit-learn itself where pandas is not installed."""


def flat_classifier(**changes):
    """For flat rows of any length as images of one row; its statistics are those of the support set, so that rows do
    not mix.
    """
    parameters = {
        "image_shape": (1, 1, -1),
        "num_stages": 1,
        "max_pooling": False,
        "cnn_num_filters": 16,
        "batch_norm_statistics": "support",
        "number_of_evaluation_steps_per_iter": 30,
    }
    return FewShotClassifier(**(parameters | changes))


@parametrize_with_checks([flat_classifier()], expected_failed_checks=lambda _: DO_NOT_APPLY)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def patterns(n_classes, per_class, seed, new=0):
    """Flat 6 x 6 images: each class a 3 x 3 pattern of its own, anywhere, in noise. `new` shifts to other classes."""
    generator = np.random.default_rng(seed)
    images = generator.normal(0.3, 0.1, (n_classes * per_class, 6, 6))
    labels = np.repeat(np.arange(n_classes) + new, per_class)
    for image, label in zip(images, labels, strict=True):
        row, column = generator.integers(0, 4, 2)
        image[row : row + 3, column : column + 3] += 0.6 * (np.random.default_rng(100 + label).random((3, 3)) > 0.5)
    return (images.clip(0, 1).reshape(-1, 36) * 255).astype(np.uint8), np.array([f"class {label}" for label in labels])


SMALL = {
    "image_shape": (1, 6, 6),
    "num_stages": 2,
    "cnn_num_filters": 16,
    "batch_norm_statistics": "support",
    "num_classes_per_set": 3,
    "num_target_samples": 3,
    "num_samples_per_class": 3,
    "number_of_training_steps_per_iter": 2,
    "batch_size": 4,
    "total_epochs": 3,
    "total_iter_per_epoch": 40,
    "num_evaluation_tasks": 20,
    "meta_learning_rate": 0.01,
    "min_learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def meta_fitted():
    return FewShotClassifier(**SMALL).meta_fit(patterns(12, 20, seed=1))


def test_cross_validation_of_fit_is_better_after_meta_fit_than_before(meta_fitted):
    X, y = patterns(3, 12, seed=2, new=30)
    order = np.random.default_rng(0).permutation(len(y))
    before = cross_val_score(FewShotClassifier(**SMALL), X[order], y[order], cv=3)
    after = cross_val_score(meta_fitted, X[order], y[order], cv=3)
    assert after.mean() > before.mean() + 0.1, (before, after)
    assert after.mean() > 0.8


def test_a_grid_search_finds_the_number_of_steps_and_clones_keep_what_was_learned(meta_fitted):
    X, y = patterns(3, 12, seed=2, new=30)
    search = GridSearchCV(meta_fitted, {"number_of_evaluation_steps_per_iter": [0, 5]}, cv=3).fit(X, y)
    assert search.best_params_ == {"number_of_evaluation_steps_per_iter": 5}
    assert search.best_estimator_.initialisation_ is meta_fitted.initialisation_
    assert search.best_estimator_.score(X, y) > 0.8


def test_a_clone_is_unfitted_and_predicts_the_same_once_it_is(meta_fitted):
    X, y = patterns(3, 6, seed=3)
    one = clone(meta_fitted).fit(X, y)
    other = clone(one)
    with pytest.raises(NotFittedError, match="call fit"):
        other.predict(X)
    np.testing.assert_array_equal(one.predict_proba(X), other.fit(X, y).predict_proba(X))


def test_it_stands_at_the_end_of_a_pipeline(meta_fitted):
    X, y = patterns(3, 6, seed=3)
    pipeline = make_pipeline(FunctionTransformer(lambda pixels: pixels[:, ::-1]), meta_fitted).fit(X, y)
    assert pipeline.predict(X).shape == y.shape


def test_other_processes_are_refused_with_the_reason(meta_fitted):
    X, y = patterns(3, 6, seed=3)
    with pytest.raises(PicklingError) as error:
        cross_val_score(meta_fitted, X, y, cv=3, n_jobs=2)
    assert "use save(path) and load(path)" in str(error.value.__cause__)
