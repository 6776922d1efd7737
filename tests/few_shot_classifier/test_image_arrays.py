"""Images and labels as people hold them: one form out of many, and a clear error for what cannot work."""

import numpy as np
import pytest
import torch
from PIL import Image

from few_shot_classifier import FewShotClassifier, arrays
from few_shot_classifier.arrays import InputError, as_input, class_labels, image_arrays, resized
from utils.episodes.inputs import Inputs
from utils.images.decoding import PixelFormat, decode_image

GREY = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
COLOUR = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "images",
    [GREY, GREY[:, None], GREY[..., None], list(GREY), torch.from_numpy(GREY), torch.from_numpy(GREY[:, None])],
    ids=["n h w", "n 1 h w", "n h w 1", "list", "tensor n h w", "tensor n 1 h w"],
)
def test_grey_images_come_in_several_shapes(images):
    np.testing.assert_array_equal(image_arrays(images).pixels, GREY[:, None])


def test_tensors_that_need_a_gradient_are_their_numbers():
    images, labels = torch.rand(2, 3, 4, 5, requires_grad=True), torch.zeros(2, requires_grad=True)
    for given in (images, list(images)):
        np.testing.assert_array_equal(image_arrays(given).pixels, images.detach().numpy())
        examples = image_arrays(given, inputs=Inputs.of((3, 4, 5))).pixels
        np.testing.assert_array_equal(examples, images.detach().numpy())
    assert class_labels(list(labels), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    "images", [COLOUR, COLOUR.transpose(0, 2, 3, 1), torch.from_numpy(COLOUR), list(COLOUR.transpose(0, 2, 3, 1))],
    ids=["channels first", "channels last", "tensor", "list"],
)  # fmt: skip
def test_colours_are_found_at_either_end(images):
    np.testing.assert_array_equal(image_arrays(images, channels=3).pixels, COLOUR)
    np.testing.assert_array_equal(image_arrays(images).pixels, COLOUR)


def test_where_both_ends_could_be_colours_arrays_have_them_last_and_tensors_first():
    small = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    np.testing.assert_array_equal(image_arrays(small).pixels, small.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(image_arrays(torch.from_numpy(small)).pixels, small)


def test_flat_images_are_what_image_shape_says():
    flat = COLOUR.reshape(2, -1)
    for shape in ((3, 4, 5), (3, -1, 5), (3, 4, -1)):
        given = image_arrays(flat, image_shape=shape)
        np.testing.assert_array_equal(given.pixels, COLOUR)
        assert (given.n_features, given.flat) == (60, True)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (COLOUR, {"channels": 1}, r'3 channels, but the network takes 1; convert them to grey, .*convert\("L"\)'),
        (GREY, {"channels": 3}, r'1 channels, but the network takes 3; convert them to RGB, .*convert\("RGB"\)'),
        (["a.png", "b.png"], {}, r"images have 1 axes; .* open the files first: numpy\.asarray\(PIL"),
        (GREY[0], {}, r"one grey image \(H, W\) alone is given as image\[None\]"),
        (np.zeros((2, 7, 4, 5)), {}, "neither the first nor the last of its axes is 1 or 3 channels"),
        (np.zeros((2, 60)), {}, r"images are flat, 60 numbers each; say what they are: image_shape=\(C, H, W\)"),
        (
            np.zeros((2, 61)),
            {"image_shape": (3, 4, 5)},
            r"image_shape is \(3, 4, 5\), but images are flat with 61 numbers each",
        ),
        (np.zeros((2, 60)), {"image_shape": (-1, -1, 5)}, "C \\* H \\* W must be that"),
        (np.zeros((0, 4, 5)), {}, r"0 sample\(s\)"),
        (np.zeros(5), {}, "Reshape your data"),
        (np.full((2, 4, 5), np.nan), {}, "images hold NaN or values that are infinite"),
        (np.full((2, 4, 5), 1e300), {}, "too large for float32"),
        (np.ma.masked_equal(GREY, GREY.max()), {}, r"images hold masked values; fill them, array\.filled\(value\), or"),
        (list(np.ma.masked_equal(GREY, GREY.max())), {}, "images hold masked values"),
        ([np.zeros((4, 5)), np.zeros((4, 6))], {}, r"several shapes, such as \[\(4, 5\), \(4, 6\)\]"),
        (np.zeros((2, 4, 5), dtype=complex), {}, "Complex data not supported"),
    ],
)
def test_images_that_cannot_work_say_why(images, arguments, message):
    with pytest.raises(InputError, match=message):
        image_arrays(images, **arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "2 images, but 3 labels"),
        (None, "requires y to be passed"),
        ([[0, 1], [1, 0]], "labels have 2 axes"),
        ([0.5, 1.5], "Unknown label type: continuous"),
        ([0.0, np.nan], "contains NaN or infinity"),
        (
            ["a", None],
            "labels are NoneType, str, which cannot be sorted; give numbers or texts, one per image, no None",
        ),
        ([None, None], "labels are NoneType, which cannot be sorted"),
        (np.array([1, "a"], dtype=object), "labels are int, str, which cannot be sorted"),
        (np.ma.array([0, 1], mask=[True, False]), "labels hold masked values; fill them"),
    ],
)
def test_labels_that_cannot_work_say_why(labels, message):
    with pytest.raises(InputError, match=message):
        class_labels(labels, 2)


def test_a_mask_that_hides_nothing_is_none():
    np.testing.assert_array_equal(image_arrays(np.ma.array(GREY)).pixels, image_arrays(GREY).pixels)


def test_a_column_of_labels_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="A column-vector y was passed"):
        assert class_labels([["a"], ["b"]], 2).tolist() == ["a", "b"]


@pytest.fixture(autouse=True)
def nothing_said_yet():
    arrays.say_once.cache_clear()


def test_floats_that_look_like_bytes_are_taken_with_a_warning(caplog):
    for harmless in (GREY / 255.0, GREY.astype(float) - 19.5, GREY):  # 0 to 1, normalised, bytes
        image_arrays(harmless)
    assert not caplog.messages
    assert image_arrays(GREY.astype(float)).pixels.max() == 39
    assert caplog.messages == ["images are floats up to 39; floats are taken as 0 to 1: divide by 255, or give uint8"]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64])
def test_whole_numbers_of_any_type_are_pixels_as_bytes_are(caplog, dtype):
    of_bytes = image_arrays(GREY)
    given = image_arrays(GREY.astype(dtype))
    assert given.pixels.dtype == np.uint8
    np.testing.assert_array_equal(given.pixels, of_bytes.pixels)
    black_and_white = (GREY > 20).astype(dtype)
    np.testing.assert_array_equal(image_arrays(black_and_white).pixels * 255, image_arrays(black_and_white > 0).pixels)
    with pytest.raises(
        InputError, match=rf"images are {dtype.__name__} from 0 to 390; whole numbers are pixels from 0"
    ):
        image_arrays(GREY.astype(dtype) * 10)
    flat = image_arrays(GREY.astype(dtype).reshape(len(GREY), -1), image_shape=(1, *GREY.shape[1:3]))
    assert flat.pixels.dtype == np.float32 and not caplog.messages  # numbers as scikit-learn's, of any range


@pytest.mark.parametrize("resize_filter", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_another_size_is_resized_with_a_warning_and_as_files_are(caplog, tmp_path, channels, resize_filter):
    pixel_format = PixelFormat(5, 4, channels, resize_filter)
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 15, 15), dtype=np.uint8)
    for rank, image in enumerate(pixels):
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(tmp_path / f"{rank}.png")
    of_files = np.stack([decode_image(tmp_path / f"{rank}.png", pixel_format) for rank in range(2)])
    small = resized(pixels, pixel_format)
    np.testing.assert_array_equal(small, of_files)
    assert small.dtype == np.uint8
    assert resized(small, pixel_format) is small
    resized(np.concatenate([pixels, pixels]), pixel_format)  # to predict, after the fit
    assert caplog.messages == ["images of 15 x 15 pixels are resized to the network's 5 x 4"]
    of_floats = resized(pixels / 255.0, pixel_format)
    assert of_floats.min() >= 0 and of_floats.max() <= 1
    np.testing.assert_allclose(of_floats * 255, of_files, atol=1)


def test_what_nearest_pixels_make_of_thin_lines_is_said(caplog):
    resized(np.zeros((1, 1, 105, 105), dtype=np.uint8), PixelFormat(28, 28, 1, "nearest"))  # Omniglot's own
    resized(np.zeros((1, 1, 1000, 1000), dtype=np.uint8), PixelFormat(28, 28, 1, "bicubic"))
    assert len(caplog.messages) == 2 and all("are resized to" in text for text in caplog.messages)
    resized(np.zeros((1, 1, 1000, 500), dtype=np.uint8), PixelFormat(28, 28, 1, "nearest"))
    assert caplog.messages[-1] == (
        'images: 1000 x 500 pixels become 28 x 28 by taking the nearest one, as in training ("resize_filter"): lines '
        "thinner than 36 pixels break or vanish. Make the images smaller first, to about 112 x 112, by a filter that "
        "averages"
    )


def test_light_drawings_for_a_network_of_dark_ones_are_named_once(caplog):
    dark = np.full((5, 28, 28), 255, dtype=np.uint8)
    dark[:, 10:12] = 0
    trained = FewShotClassifier.from_pretrained("omniglot_5way_1shot_fast")
    untrained = FewShotClassifier(backbone="vgg", cnn_num_filters=4)
    for harmless, classifier in (
        (dark, trained),
        (dark / 255, trained),
        (dark / 255 - 1, trained),  # normalised by whoever gives them
        (255 - dark, untrained),
    ):
        classifier.fit(harmless, range(5)).predict(harmless)
    assert not caplog.messages
    for light in (255 - dark, 255 - dark, 1 - dark / 255):
        trained.fit(light, range(5))
    assert caplog.messages == [
        "images are dark (mean 0.07 of 0 to 1), and those of omniglot_dataset, on which the network was trained, are "
        "dark lines on a light ground: invert them (255 - image)"
    ]


def test_ink_and_paper_of_one_bit_are_read_as_black_and_white(tmp_path):
    bits = np.random.default_rng(0).random((1, 8, 8)) < 0.5
    Image.fromarray(bits[0]).save(tmp_path / "x.png")
    np.testing.assert_array_equal(
        image_arrays(bits).pixels[0], decode_image(tmp_path / "x.png", PixelFormat(8, 8, 1, "nearest"))
    )


def test_bytes_become_0_to_1_and_floats_stay_before_both_are_normalised():
    normalise = ((0.5, 0.0, 0.0), (0.5, 1.0, 2.0))
    out = as_input(np.full((1, 3, 1, 1), 255, dtype=np.uint8), normalise)
    assert out.flatten().tolist() == [1.0, 1.0, 0.5]
    assert as_input(np.full((1, 3, 1, 1), 1.0, dtype=np.float32), normalise).equal(out)
    ordered = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    assert as_input(ordered, ((0.0,), (1.0,)), reverse_channels=True).flatten().tolist() == [2.0, 1.0, 0.0]
