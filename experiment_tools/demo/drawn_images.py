"""Strokes of a mouse or finger as images like those of a dataset: same size, same pen, dark ink on white."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from utils.images.decoding import PixelFormat, decode_image

Strokes = Sequence[Sequence[tuple[float, float]]]
"""Points (x, y) of each stroke, from 0 to 1, y downwards."""


@dataclass(frozen=True)
class Pen:
    """How a dataset's pictures were drawn."""

    side: int | None
    """Pixels of the original pictures; None: those of the network's images."""
    width: float
    """Of a stroke, as a share of the side."""
    one_bit: bool
    """Ink or paper, nothing between."""


PENS = {"omniglot_dataset": Pen(side=105, width=5 / 105, one_bit=True)}
"""Dataset -> its pen. Omniglot's strokes are 5 of 105 pixels wide, measured on its pictures."""
OTHER_PEN = Pen(side=None, width=0.065, one_bit=False)
"""The embedded dataset's, measured likewise."""
SCALE = 4
"""Pixels per pixel and side while drawing; their mean is the grey of the edge."""


def pen_of(config: Mapping[str, Any]) -> Pen:
    """Return the pen of the dataset that a run was trained on."""
    return PENS.get(config["dataset_name"], OTHER_PEN)


def draw_strokes(strokes: Strokes, config: Mapping[str, Any]) -> np.ndarray:
    """Draw with the pen of the run's dataset and bring the picture to the run's size as its own pictures were.

    Returns:
        uint8 (C, H, W).
    """
    pen, height, width = pen_of(config), config["image_height"], config["image_width"]
    size = (width, height) if pen.side is None else (pen.side, pen.side)
    picture = Image.new("L", (size[0] * SCALE, size[1] * SCALE), 255)
    draw, radius = ImageDraw.Draw(picture), pen.width * min(size) * SCALE / 2
    for stroke in strokes:
        points = [(x * picture.width, y * picture.height) for x, y in stroke]
        draw.line(points, fill=0, width=round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    picture = picture.resize(size, Image.Resampling.BOX)
    if pen.one_bit:
        picture = picture.point(lambda value: 255 * (value >= 128)).convert("1")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return decode_image(file, PixelFormat.of(config))
