"""Random changes to the images of training episodes, on the device, for all images of a meta-batch at once.

An operation turns random words into its parameters on the host, a row per image, and applies the rows on the device; it
knows neither seeds nor episodes. Images are float, 0 to 1, not normalised yet. Each does what the function of the
same name in torchvision.transforms.functional does with the same parameters; images keep their size.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from utils.episodes.randomness import below, random_words, sample_without_replacement, uniform

AUGMENTATIONS = {
    "random_resized_crop": ("random_resized_crop",),
    "pad_and_crop": ("pad_and_crop",),
    "color_jitter": ("color_jitter",),
    "flip": ("flip",),
    "enlarge": ("enlarge",),
    "resize": ("random_resized_crop", "flip"),
    "crop": ("pad_and_crop", "flip"),
    "color": ("pad_and_crop", "color_jitter", "flip"),
}
"""Name -> the operations that it stands for, in their order; the names are those of the config's schema. The last
three are those of fmu2/PyTorch-MAML, as are flip and enlarge."""

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER."""
# Shares, ratios and attempts are the defaults of torchvision's RandomResizedCrop.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
PADDING = 8 / 84
"""Of the image's side: 8 pixels of 84."""
# The usual resize to 256 and crop of 224, as fmu2 does it at any size.
ENLARGEMENT = 256 / 224
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601)."""


class Operation(Protocol):
    """One kind of change. M images."""

    n_words: int
    """Random words that an image needs."""
    n_parameters: int
    """P."""

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Turn uint64 (M, n_words) into numbers (M, P)."""

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Change float (M, C, H, W) as numbers (M, P) say: float (M, C, H, W)."""


def _gather(images: Tensor, axis: int, places: Tensor) -> Tensor:
    """Gather each image's own lines along an axis: (M, C, H, W), int64 (M, n) -> as the images, n along the axis."""
    shape = list(images.shape)
    shape[axis] = places.shape[1]
    places = places[:, None, :, None] if axis == 2 else places[:, None, None, :]
    return images.gather(axis, places.expand(shape))


def _stretch(images: Tensor, axis: int, start: Tensor, length: Tensor) -> Tensor:
    """Bring a part of each image to the whole length of an axis: bilinear, pixels are areas, the part's edges continue.

    Args:
        start, length: (M,), whole pixels.
    """
    n = images.shape[axis]
    start, length = start.to(images.dtype)[:, None], length.to(images.dtype)[:, None]
    centres = torch.arange(n, device=images.device, dtype=images.dtype) + 0.5
    last = start + length - 1
    places = torch.clamp(start + centres * (length / n) - 0.5, start, last)
    low = places.floor()
    share = places - low
    share = share[:, None, :, None] if axis == 2 else share[:, None, None, :]
    high = torch.minimum(low + 1, last)
    return torch.lerp(_gather(images, axis, low.long()), _gather(images, axis, high.long()), share)


class RandomResizedCrop:
    """A part of 8 to 100 % of the area and 3:4 to 4:3 of the ratio, at a random place, brought to the full size."""

    n_words, n_parameters = 2 * CROP_ATTEMPTS + 2, 4

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return rows of top, left, height, width.

        Of ten drawn shapes the first that fits; the largest in the middle if none does.
        """
        # All ten are drawn even where the first fits: a fixed number of words makes a crop a function of its image's
        # number.
        numbers = uniform(words[:, : 2 * CROP_ATTEMPTS]).reshape(-1, CROP_ATTEMPTS, 2)
        area = self.height * self.width * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * numbers[:, :, 0])
        low, high = np.log(CROP_RATIO)
        ratio = np.exp(low + (high - low) * numbers[:, :, 1])
        widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (widths >= 1) & (widths <= self.width) & (heights >= 1) & (heights <= self.height)
        first = np.arange(len(words)), fits.argmax(axis=1)
        fallback_width = min(self.width, round(self.height * CROP_RATIO[1]))
        fallback_height = min(self.height, round(self.width / CROP_RATIO[0]))
        none = ~fits.any(axis=1)
        width = np.where(none, fallback_width, widths[first]).astype(np.int64)
        height = np.where(none, fallback_height, heights[first]).astype(np.int64)
        top, left = below(words[:, -2], self.height - height + 1), below(words[:, -1], self.width - width + 1)
        top = np.where(none, (self.height - height) // 2, top)
        left = np.where(none, (self.width - width) // 2, left)
        return np.stack([top, left, height, width], axis=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Crop and stretch."""
        top, left, height, width = parameters.unbind(1)
        return _stretch(_stretch(images, 2, top, height), 3, left, width)


class PadAndCrop:
    """A margin of black, 8 pixels for 84, and a part of the old size at a random place."""

    n_words, n_parameters = 2, 2

    def __init__(self, height: int, width: int):
        self.padding = max(1, round(PADDING * height)), max(1, round(PADDING * width))

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return rows of top, left in the padded image."""
        return below(words, np.array([2 * padding + 1 for padding in self.padding]))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Move; what comes from outside is black."""
        for axis, padding, start in zip((2, 3), self.padding, parameters.long().unbind(1), strict=True):
            n = images.shape[axis]
            places = start[:, None] - padding + torch.arange(n, device=images.device)
            inside = (places >= 0) & (places < n)
            inside = inside[:, None, :, None] if axis == 2 else inside[:, None, None, :]
            images = _gather(images, axis, places.clamp(0, n - 1)) * inside
        return images


class Flip:
    """Left and right exchanged, for every second image."""

    n_words, n_parameters = 1, 1

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return rows of 1 (exchanged) or 0."""
        return below(words, 2)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Exchange where it says so."""
        return torch.where(parameters.reshape(-1, 1, 1, 1) > 0, images.flip(-1), images)


class ColorJitter:
    """Brightness, contrast and saturation times 0.6 to 1.4 each, in random order."""

    n_words, n_parameters = 6, 6

    def __init__(self):
        self._shares: Tensor | None = (
            None  # on the device: made there anew, they would make the host wait for it each time
        )

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return rows of the order (three of 0 brightness, 1 contrast, 2 saturation) and of the factor at each place of
        it.
        """
        order = sample_without_replacement(words[:, :3], np.full(len(words), 3))
        return np.concatenate([order, 1 - JITTER + 2 * JITTER * uniform(words[:, 3:])], axis=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Compute clamp(factor * image + (1 - factor) * other); other is black, the mean grey, or the grey image."""
        if self._shares is None or (self._shares.device, self._shares.dtype) != (images.device, images.dtype):
            self._shares = torch.tensor(GREY, device=images.device, dtype=images.dtype).reshape(3, 1, 1)
        for place in range(3):
            kind, factor = (parameters[:, i].reshape(-1, 1, 1, 1) for i in (place, place + 3))
            grey = (images * self._shares).sum(1, keepdim=True) if images.shape[1] == 3 else images
            other = torch.where(kind == 1, grey.mean((1, 2, 3), keepdim=True), torch.where(kind == 2, grey, 0.0))
            factor = factor.to(images.dtype)
            images = (factor * images + (1 - factor) * other).clamp_(0, 1)
        return images


class Enlarge:
    """The middle of the image made 256/224 times as large. Not random."""

    n_words, n_parameters = 0, 0

    def __init__(self, height: int, width: int):
        self.sides = height, width

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return rows of nothing."""
        return np.zeros((len(words), 0))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Resize to int(side * 256/224), then cut the middle out."""
        for axis, side in zip((2, 3), self.sides, strict=True):
            large = int(side * ENLARGEMENT)
            cut = round((large - side) / 2)
            centres = torch.arange(cut, cut + side, device=images.device, dtype=images.dtype) + 0.5
            places = torch.clamp(centres * (side / large) - 0.5, 0, side - 1)
            low = places.floor()
            share = (places - low).reshape(-1, 1) if axis == 2 else places - low
            low = low.long()
            images = torch.lerp(
                images.index_select(axis, low), images.index_select(axis, (low + 1).clamp(max=side - 1)), share
            )
        return images


OPERATIONS: dict[str, Callable[[int, int], Operation]] = {
    "random_resized_crop": RandomResizedCrop,
    "pad_and_crop": PadAndCrop,
    "enlarge": Enlarge,
    "flip": lambda height, width: Flip(),
    "color_jitter": lambda height, width: ColorJitter(),
}
"""Name -> what makes it for images of this height and width."""


class Augmentation:
    """Operations in their order. B episodes of n images each."""

    def __init__(self, names: Sequence[str], height: int, width: int):
        """Args:
        names: of AUGMENTATIONS.
        """
        self.operations = [OPERATIONS[part](height, width) for name in names for part in AUGMENTATIONS[name]]
        self.n_words = sum(operation.n_words for operation in self.operations)

    def draw(self, seed: int, split: str, indices: Sequence[int], purpose: int, n_images: int) -> np.ndarray:
        """Draw the parameters of all images of these episodes: float32 (B * n, P), a pure function of the arguments.

        Args:
            purpose: distinguishes support and query.
            n_images: n, of each episode.
        """
        words = random_words(seed, split, indices, purpose, n_images * self.n_words)
        words = words.reshape(len(indices) * n_images, self.n_words)
        ends = np.cumsum([operation.n_words for operation in self.operations])[:-1]
        parts = np.split(words, ends, axis=1)
        rows = [operation.parameters(part) for operation, part in zip(self.operations, parts, strict=True)]
        return np.concatenate(rows, axis=1).astype(np.float32)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Change float (M, C, H, W) by the rows of `draw`, on the same device: float (M, C, H, W)."""
        parts = parameters.split([operation.n_parameters for operation in self.operations], dim=1)
        for operation, part in zip(self.operations, parts, strict=True):
            images = operation.apply(images, part)
        return images
