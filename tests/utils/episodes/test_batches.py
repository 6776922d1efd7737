"""Episodes of a user's own arrays: what does not fit together is refused by name."""

import numpy as np
import pytest
import torch

from few_shot_classifier.adapted_task import adapt
from tests.tools.learners import small_config, small_learner
from train_maml_system import main as train
from utils.episodes.batches import episodes_from_arrays
from utils.errors import ConfigError

IMAGES, LABELS = np.zeros((2, 3, 6)), np.tile([0, 1, 2], (2, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: "images"}, r"support images are no array of numbers \(str: .*\); give a tensor or an array"),
        ({0: None}, "support images are no array of numbers"),
        ({2: {"ids": IMAGES}}, "query images are no array of numbers .* several parts go through FewShotClassifier"),
        ({0: IMAGES.astype(complex)}, "support images are complex; must be real numbers"),
        ({2: np.full_like(IMAGES, np.nan)}, r"query images are not finite everywhere \(NaN or inf\); must be real"),
        ({0: IMAGES[:, :0], 1: LABELS[:, :0]}, r"support images are empty, of shape \(2, 0, 6\)"),
        ({2: np.zeros((2, 3, 7))}, r"support images are \(2, 3, 6\) and query images \(2, 3, 7\); an example has one"),
        ({1: LABELS.astype(float)}, r"support labels are floats of shape \(2, 3\); give integers"),
        ({1: LABELS + 1}, r"support labels are \[1, 2, 3\]; must be 0 to N-1"),
        ({2: IMAGES[:, :2]}, r"query images are \(2, 2, 6\), their labels \(2, 3\)"),
    ],
    ids=str,
)
def test_arrays_that_make_no_episode_are_refused(changes, message):
    arrays = dict(enumerate((IMAGES, LABELS, IMAGES, LABELS))) | changes
    with pytest.raises(ConfigError, match=f"episodes_from_arrays: {message}"):
        episodes_from_arrays(*arrays.values())


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, 1], [0.0, 1.0, 2.0]], ids=str)
def test_adapt_wants_an_integer_below_n_way_for_each_image(labels):
    images = torch.zeros(3, *small_config().example_shape)
    with pytest.raises(ConfigError, match=r"adapt: 3 images and labels of shape .*; must be an integer for each image"):
        adapt(small_learner(head="zero"), images, torch.tensor(labels), n_way=3)


def test_a_run_is_not_started_by_a_bare_word():
    with pytest.raises(ConfigError, match=r"train\('quickstart'\): arguments are a list of words"):
        train("quickstart")
