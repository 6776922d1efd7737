"""Images and labels as people hold them in Python, checked and brought into one form.

Letters: n images of C x H x W pixels.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import NORMALISATIONS
from utils.config import ExperimentConfig
from utils.data_sources.dataset_classes import pixel_format_of
from utils.episodes.inputs import Inputs, as_array
from utils.errors import ConfigError
from utils.images.decoding import PixelFormat, resize_planes, thin_lines_text
from utils.known_datasets import known_by_folder

log = logging.getLogger(__name__)

CHANNELS = (1, 3)


class InputError(ConfigError, ValueError):
    """Images or labels that cannot work. A ValueError too, as users of scikit-learn expect."""


class Images(NamedTuple):
    """Images in one form, and how they were given: numbers per image, and whether flat."""

    pixels: np.ndarray
    """(n, C, H, W): uint8 from 0 to 255, or float32 as given, which is 0 to 1 for photographs. Of other examples their
    numbers, (n, ...)."""
    n_features: int
    flat: bool


LIKELY_BYTES = 32.0
"""Floats above this, none of them negative, are pixels from 0 to 255 rather than normalised ones."""
HALF_BRIGHT = 0.5
"""Means below this, of images from 0 to 1, are of light lines on a dark ground rather than the other way round."""


def image_arrays(
    images: Any,
    *,
    channels: int | None = None,
    image_shape: Sequence[int] | None = None,
    inputs: Inputs | None = None,
) -> Images:
    """Check images and bring them to (n, C, H, W).

    Args:
        images: array, tensor or list of images: (n, H, W), (n, H, W, C), (n, C, H, W), or flat (n, C*H*W).
        channels: C, where it is known; else 1 or 3 by the shape.
        image_shape: C, H, W of flat images; one of them may be -1.
        inputs: what examples are that are no images.
    Raises:
        InputError: no images, a shape that cannot be read, values that are not finite, or hidden by a mask.
        TypeError: not numbers.
    """
    if inputs is not None:
        return _examples(images, inputs)
    array = _numbers(images)
    flat = array.ndim == 2
    if flat:
        array, n_features = _unflattened(array, image_shape), array.shape[1]
    else:
        n_features = int(np.prod(array.shape[1:]))
        array = _channels_first(array, channels, channels_last=not isinstance(images, Tensor))
    if len(array) == 0:
        raise InputError(f"Found array with 0 sample(s) (shape={array.shape}) while a minimum of 1 is required.")
    if channels is not None and array.shape[1] != channels:
        form, mode = ("grey", "L") if channels == 1 else ("RGB", "RGB")
        raise InputError(
            f"images have {array.shape[1]} channels, but the network takes {channels}; convert them to {form}, as PIL "
            f'does by image.convert("{mode}")'
        )
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(
                "images hold NaN or values that are infinite (inf) or too large for float32; replace or leave out "
                "such images"
            )
        if not flat and array.min() >= 0 and array.max() > LIKELY_BYTES:
            say_once(
                f"images are floats up to {array.max():g}; floats are taken as 0 to 1: divide by 255, or give uint8"
            )
    return Images(array, n_features, flat)


def is_pair(dataset: Any) -> bool:
    """Return whether a dataset is two arrays, images (or parts of examples) and labels."""
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
        return False
    parts = dataset[0].values() if isinstance(dataset[0], Mapping) else dataset[0]
    of_parts = isinstance(dataset[0], Mapping | tuple) and not isinstance(dataset[1], Mapping | tuple)
    return hasattr(dataset[0], "shape") or (of_parts and all(hasattr(part, "shape") for part in parts))


def by_part(given: Any, change: Callable[[Any], Any]) -> Any:
    """Change an array, or each of those in a dict or tuple of parts."""
    if isinstance(given, Mapping):
        return {name: change(part) for name, part in given.items()}
    return tuple(map(change, given)) if isinstance(given, tuple) else change(given)


def _examples(given: Any, inputs: Inputs) -> Images:
    try:
        examples = inputs.joined(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"what is given {error}") from error
    if len(examples) == 0:
        raise InputError(f"Found array with 0 sample(s) (shape={examples.shape}) while a minimum of 1 is required.")
    return Images(examples, int(np.prod(inputs.shape)), flat=False)


def _numbers(images: Any) -> np.ndarray:
    if hasattr(images, "toarray"):
        raise TypeError("images are a sparse matrix; give a dense array: images.toarray()")
    if isinstance(images, list | tuple) and len(shapes := sorted({np.shape(image) for image in images})) > 1:
        raise InputError(f"images have several shapes, such as {shapes[:3]}; bring them to one size first")
    array = as_array(images, "images hold", InputError)
    if np.iscomplexobj(array):
        raise InputError("Complex data not supported: images are real numbers")
    if array.ndim not in (2, 3, 4):
        advice = "Reshape your data to (1, C, H, W) if it is one image." if array.ndim < 2 else ""
        if array.dtype.kind == "U":
            advice = "Of paths open the files first: numpy.asarray(PIL.Image.open(path))."
        raise InputError(
            f"images have {array.ndim} axes; they must be (n, H, W), (n, H, W, C), (n, C, H, W) or flat (n, C*H*W); "
            f"for what is no image set input_shape. {advice}"
        )
    if array.dtype == bool:  # ink and paper, as a file of 1-bit pixels is read
        return array.astype(np.uint8) * 255
    if array.dtype.kind in "iu" and array.ndim > 2 and array.size:
        low, high = array.min(), array.max()
        if low < 0 or high > 255:
            raise InputError(
                f"images are {array.dtype} from {low} to {high}; whole numbers are pixels from 0 to 255: bring them "
                "there, or give floats from 0 to 1"
            )
        if high > 1:  # 0 and 1 alone are ink and paper, too
            return array.astype(np.uint8)
    return array if array.dtype == np.uint8 else array.astype(np.float64)


def _unflattened(array: np.ndarray, image_shape: Sequence[int] | None) -> np.ndarray:
    n, n_features = array.shape
    if n_features == 0:
        raise InputError(f"Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is required.")
    if image_shape is None:
        raise InputError(
            f"images are flat, {n_features} numbers each; say what they are: image_shape=(C, H, W), or "
            f"input_shape=({n_features},) if they are none; one grey image (H, W) alone is given as image[None]"
        )
    known = int(np.prod([side for side in image_shape if side != -1]))
    open_sides = sum(side == -1 for side in image_shape)
    if len(image_shape) != 3 or open_sides > 1 or n_features % known or (not open_sides and n_features != known):
        raise InputError(
            f"image_shape is {tuple(image_shape)}, but images are flat with {n_features} numbers each; C * H * W must "
            "be that"
        )
    return array.reshape(n, *image_shape)


def _channels_first(array: np.ndarray, channels: int | None, *, channels_last: bool) -> np.ndarray:
    """Bring (n, H, W), (n, H, W, C) or (n, C, H, W) to the last; where both could be meant, arrays are the former,
    tensors the latter.
    """
    if array.ndim == 3:
        return array[:, None]
    axes = array.shape[1], array.shape[3]
    allowed = (channels,) if channels in axes else CHANNELS
    first, last = (side in allowed for side in axes)
    if not (first or last):
        raise InputError(
            f"images have the shape {array.shape[1:]}, but neither the first nor the last of its axes is 1 or 3 "
            "channels; for what is no image set input_shape"
        )
    return array.transpose(0, 3, 1, 2) if last and (channels_last or not first) else array


def class_labels(labels: Any, n_images: int) -> np.ndarray:
    """Check labels, of any type that can be sorted, and bring them to (n,).

    Raises:
        InputError: not one per image, or not classes.
    """
    if labels is None:
        raise InputError("This estimator requires y to be passed, but the target y is None: give one label per image")
    array = as_array(labels, "labels hold", InputError)
    if array.ndim == 2 and array.shape[1] == 1:
        _warn_of_column()
        array = array.ravel()
    if array.ndim != 1:
        raise InputError(f"Unknown label type: labels have {array.ndim} axes; give one label per image, (n,)")
    if len(array) != n_images:
        raise InputError(f"{n_images} images, but {len(array)} labels; inconsistent numbers of samples")
    if array.dtype.kind == "c":
        raise InputError("Unknown label type: complex numbers")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("Input y contains NaN or infinity; labels name classes")
        if (array != np.round(array)).any():
            raise InputError(
                "Unknown label type: continuous; labels name classes, regression is for configs with mean_squared_error"
            )
    if array.dtype.hasobject:
        try:
            np.unique(array)
            is_sorted = not any(label is None for label in array)
        except TypeError:
            is_sorted = False
        if not is_sorted:
            kinds = ", ".join(sorted({type(label).__name__ for label in array}))
            raise InputError(
                f"labels are {kinds}, which cannot be sorted; give numbers or texts, one per image, no None"
            )
    return array


def _warn_of_column() -> None:
    try:
        from sklearn.exceptions import DataConversionWarning as Category
    except ModuleNotFoundError:
        Category = UserWarning
    warnings.warn(
        "A column-vector y was passed when a 1d array was expected: labels (n, 1) are taken as (n,)",
        Category,
        stacklevel=4,
    )


@lru_cache
def say_once(text: str) -> None:
    """Say it in the log of what is fitted, and not again of what is predicted."""
    log.warning("%s", text)


def resized(pixels: np.ndarray, pixel_format: PixelFormat, what: str = "images") -> np.ndarray:
    """Bring (n, C, h, w) to (n, C, H, W) as files are brought to it, with a line in the log where that changes
    anything; keeps the type.
    """
    h, w = pixels.shape[2:]
    height, width = pixel_format.height, pixel_format.width
    if (h, w) == (height, width):
        return pixels
    say_once(f"{what} of {h} x {w} pixels are resized to the network's {height} x {width}")
    if lost := thin_lines_text((h, w), pixel_format):
        say_once(f"{what}: {lost}")
    pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    out = resize_planes(pixels, height, width, pixel_format.resize_filter)
    # Bicubic and Lanczos overshoot at edges; of bytes Pillow itself keeps 0 to 255.
    return out.clip(0, 1) if pixels.dtype != np.uint8 and pixels.min() >= 0 and pixels.max() <= 1 else out


def as_input(
    pixels: np.ndarray,
    normalise: tuple[Sequence[float], Sequence[float]],
    *,
    reverse_channels: bool = False,
    of_images: bool = True,
) -> Tensor:
    """Pixels (n, C, H, W) as a network takes them: 0 to 1, minus the mean, over the deviation of each channel;
    float32. Of other examples (n, C, ...) bytes stay the numbers that they are.
    """
    images = torch.from_numpy(np.array(pixels, dtype=np.float32))
    if pixels.dtype == np.uint8 and of_images:
        images /= 255
    if reverse_channels:
        images = images.flip(1)
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32).reshape(-1, *[1] * (images.dim() - 2)) for values in normalise
    )
    return (images - mean) / deviation


def warn_of_light_lines(pixels: np.ndarray, trained_on: str) -> None:
    """Say once where images (n, C, h, w), bytes or floats from 0 to 1, are light on dark, and those of the dataset that
    the network was trained on dark on light.
    """
    if not known_by_folder(trained_on).dark_on_light:
        return
    brightness = float(pixels.mean()) / (255 if pixels.dtype == np.uint8 else 1)
    if 0 <= brightness < HALF_BRIGHT:  # below 0: normalised by whoever gives them
        say_once(
            f"images are dark (mean {brightness:.2f} of 0 to 1), and those of {trained_on}, on which the network was "
            "trained, are dark lines on a light ground: invert them (255 - image)"
        )


def network_input(pixels: np.ndarray, config: ExperimentConfig) -> Tensor:
    """Return pixels (n, C, h, w) as the network of a config takes them: of its size, normalised as it says."""
    of_images = config.inputs is None
    pixels = resized(pixels, pixel_format_of(config)) if of_images else pixels
    normalise = NORMALISATIONS[config.normalisation]
    return as_input(pixels, normalise, reverse_channels=config.reverse_channels, of_images=of_images)
