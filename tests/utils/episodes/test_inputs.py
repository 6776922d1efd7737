"""What an example is where it is no image: read from a config, joined to one array, and taken apart again."""

import numpy as np
import pytest
import torch

from utils.config import check_config
from utils.episodes.inputs import Inputs
from utils.errors import ConfigError

TEXT = ["ids:int:5", "mask:bool:5"]


def parts(n=4):
    draw = np.random.default_rng(0)
    return {"ids": draw.integers(0, 2**24, (n, 5)), "mask": draw.random((n, 5)) < 0.5}


def test_what_is_joined_and_taken_apart_is_the_same_bit_for_bit():
    given = parts()
    inputs = Inputs.of(TEXT)
    joined = inputs.joined(given)
    assert joined.shape == (4, *inputs.shape) == (4, 10) and not inputs.are_numbers
    positional, by_name = inputs.arguments(torch.from_numpy(joined).float())  # as it goes through episodes
    assert positional == () and by_name["ids"].dtype == torch.int64 and by_name["mask"].dtype == torch.bool
    assert all(np.array_equal(by_name[name].numpy(), given[name]) for name in given)


def test_parts_without_names_are_arguments_by_position():
    inputs = Inputs.of(["float:2x3", "bool:2"])
    series, mask = np.random.default_rng(0).standard_normal((4, 2, 3)), np.array([[True, False]] * 4)
    (first, second), by_name = inputs.arguments(torch.from_numpy(inputs.joined((series, mask))))
    assert by_name == {} and np.array_equal(first.numpy(), series) and np.array_equal(second.numpy(), mask)


def test_one_array_is_handed_on_as_it_is_whatever_its_type():
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.uint8, bool):
        array = np.ones((3, 2, 4), dtype)
        assert Inputs.of([2, 4]).joined(array) is array
    assert Inputs.of([2]).joined(np.ones((3, 2), ">f4")).dtype == np.float64  # torch reads no other machine's bytes
    assert Inputs.of([2]).joined(np.ones((3, 2), np.uint16)).dtype == np.int64


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ([4], np.zeros((3, 5)), r"is float64 \(3, 5\), but must be an array \(n, 4\) of numbers, as input_shape says"),
        ([4], np.full((3, 4), np.nan), "holds NaN or infinity"),
        ([4], np.full((3, 4), 1e200), "holds NaN or infinity, or is too large for float32"),
        ([4], np.full((3, 4), -1e39), "too large for float32"),
        ([4], np.ma.masked_less(np.eye(4), 1), "holds masked values; fill them"),
        (
            TEXT,
            parts() | {"ids": np.ma.masked_equal(parts()["ids"], parts()["ids"][0, 0])},
            '"ids" holds masked values',
        ),
        ([4], np.array([["a"] * 4]), r"is <U1 \(1, 4\), but must be"),
        (
            [4],
            [np.zeros(4), np.zeros(3)],
            "has examples of 2 shapes, such as .*; bring sequences to one length and give a",
        ),
        (TEXT, np.zeros((3, 5)), r"is float64 \(3, 5\), but must be a dict of ids, mask"),
        (TEXT, {"ids": np.zeros((3, 5), int)}, "has ids, but must be a dict of ids, mask"),
        (TEXT, parts() | {"mask": parts()["mask"][:3]}, "has parts of 4, 3 examples"),
        (
            TEXT,
            parts() | {"ids": np.zeros((4, 5))},
            r'"ids" is float64 .*, but must be an array \(n, 5\) of whole numbers',
        ),
        (TEXT, parts() | {"mask": np.zeros((4, 5))}, '"mask" is float64 .* of true and false'),
        (TEXT, parts() | {"ids": np.full((4, 5), 2**24 + 1)}, "above 16,777,216, which float32 has not all of"),
        (TEXT, parts() | {"ids": np.full((4, 5), -(2**24) - 1)}, "above 16,777,216"),
        (["float:2", "float:3"], (np.zeros((1, 2)),), "is a tuple, but must be a tuple of 2 arrays"),
    ],
)
def test_arrays_that_do_not_fit_say_why(shape, given, message):
    with pytest.raises(ValueError, match=message):
        Inputs.of(shape).joined(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": [4, "mask:bool:4"]}, "but must be: the sides of one array, as"),
        ({"input_shape": ["ids:long:4"]}, "KIND being float, int or bool"),
        ({"input_shape": ["a:int:4", "a:int:4"]}, "all with a name of their own or none"),
        ({"input_shape": [0, 4]}, '"input_shape" is \\[0, 4\\], but must be'),
        ({"input_shape": [6, 128]}, r'"backbone" vgg takes one array of numbers, \(C, H, W\), not "input_shape"'),
        ({"input_shape": ["int:4"], "backbone": "mlp"}, '"backbone" mlp takes one array of numbers, not "input_shape"'),
        (
            {"input_shape": [4], "backbone": "mlp", "class_rotation": True, "query_augmentation": ["flip"]},
            'is of what is no image; set "class_rotation" to false and "query_augmentation" to',
        ),
        ({"input_shape": [4], "backbone": "mlp", "normalisation": "imagenet"}, 'needs "image_channels" 3, not 4'),
        (
            {"input_shape": [1], "backbone": "mlp", "dataset_name": "sinusoid", "loss": "mean_squared_error",
             "image_height": 1, "image_width": 1},
            r'points of a wave, needs "input_shape" \[\], not \[1\]',
        ),
    ],
)  # fmt: skip
def test_a_config_that_cannot_work_says_why(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config({"experiment_name": "x", "dataset_name": "mine"} | changes, "test")


def test_arrays_are_never_turned_of_themselves():
    """Under Omniglot's name, too, which is that of every config that names no dataset."""
    config = check_config({"experiment_name": "x", "input_shape": [4], "backbone": "mlp"}, "test")
    assert (config.dataset_name, config.class_rotation, config.resize_filter) == ("omniglot_dataset", False, "nearest")


def test_a_config_of_arrays_ignores_the_size_of_images():
    config = check_config({"experiment_name": "x", "dataset_name": "mine", "input_shape": [5, 20, 30]}, "test")
    assert config.example_shape == (5, 20, 30) and config.class_rotation is False
    assert check_config(config.to_json_dict(), "test").to_json_dict() == config.to_json_dict()
