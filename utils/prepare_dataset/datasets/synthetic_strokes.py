"""Draw a dataset of handwriting-like characters from a seed: no download, seconds, a real few-shot problem.

A class is a few curved pen strokes. A sample of it is the same strokes by another hand: bent, turned, stretched,
moved and drawn with another pen. Images look like Omniglot's: dark ink on white.
"""

import logging
from pathlib import Path

import numpy as np
import tqdm
from PIL import Image

from utils.episodes.randomness import below, random_words, uniform
from utils.files.atomic_folders import make_folder

logger = logging.getLogger(__name__)

SEED = 0
N_SCRIPTS = 12
CHARACTERS_PER_SCRIPT = 20
IMAGES_PER_CHARACTER = 20
IMAGE_SIDE = 28

MOST_STROKES = 4
POINTS_PER_STROKE = 4
"""Control points of a cubic Bezier curve."""
DOTS_PER_STROKE = 40
"""Places along the curve at which the pen is put down."""

SHAKE = 0.05
"""Standard deviation of a control point between samples, in units of the half image side, as are the next ones."""
SHIFT = 0.12
LARGEST_TURN = 0.22
"""Radians."""
LARGEST_STRETCH = 0.15
LARGEST_SHEAR = 0.15
PEN_RADIUS = (0.055, 0.095)

_CHARACTER, _SAMPLE = range(2)
"""Purposes of the random words: one index per class, and one per sample of it."""


def draw_synthetic_strokes(dataset_folder: Path, seed: int = SEED) -> None:
    """Make `<dataset_folder>/script_<nn>/character_<nn>/<nn>.png`: 240 classes of 20 grey 28x28 images.

    Raises:
        StorageError: no space or no permission.
    """
    logger.info("drawing the dataset synthetic_strokes into %s", dataset_folder)

    def fill(folder: Path) -> None:
        for class_rank in tqdm.tqdm(range(N_SCRIPTS * CHARACTERS_PER_SCRIPT), desc="drawing", disable=None):
            script, character = divmod(class_rank, CHARACTERS_PER_SCRIPT)
            class_folder = folder / f"script_{script:02}" / f"character_{character:02}"
            class_folder.mkdir(parents=True)
            for i, pixels in enumerate(draw_samples(seed, class_rank, IMAGES_PER_CHARACTER)):
                Image.fromarray(pixels).save(class_folder / f"{i:02}.png")

    make_folder(dataset_folder, fill)


def draw_samples(seed: int, class_rank: int, n_samples: int) -> np.ndarray:
    """Draw samples 0..n-1 of a class: uint8 (n, 28, 28), paper 255, ink 0. A pure function of (seed, class, sample)."""
    strokes = _draw_character(seed, class_rank)  # (strokes, 4, 2)
    samples = class_rank * 10_000 + np.arange(n_samples)
    n_shakes = strokes.size
    numbers = uniform(random_words(seed, "synthetic_strokes", samples, _SAMPLE, 3 * n_shakes + 7))  # (n, ...)
    # The sum of three uniforms is bell-shaped (variance 1/4), and the same on every machine, unlike log and cos.
    bells = 2 * (numbers[:, : 3 * n_shakes].reshape(n_samples, n_shakes, 3).sum(axis=2) - 1.5)
    points = strokes + SHAKE * bells.reshape(n_samples, *strokes.shape)
    pen, turn, stretch_x, stretch_y, shear, shift_x, shift_y = 2 * numbers[:, 3 * n_shakes :].T - 1  # -1..1 each
    turn = LARGEST_TURN * turn
    turned = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], axis=1).reshape(-1, 2, 2)
    stretched = np.zeros((n_samples, 2, 2))
    stretched[:, 0, 0] = 1 + LARGEST_STRETCH * stretch_x
    stretched[:, 1, 1] = 1 + LARGEST_STRETCH * stretch_y
    stretched[:, 0, 1] = LARGEST_SHEAR * shear
    shift = SHIFT * np.stack([shift_x, shift_y], axis=1)
    points = np.einsum("nij,njk,nspk->nspi", turned, stretched, points) + shift[:, None, None, :]
    radius = PEN_RADIUS[0] + (pen + 1) / 2 * (PEN_RADIUS[1] - PEN_RADIUS[0])
    return _render(points, radius)


def _draw_character(seed: int, class_rank: int) -> np.ndarray:
    """Control points of a class's strokes: float64 (strokes, 4, 2), within -0.75..0.75."""
    n_numbers = 1 + MOST_STROKES * POINTS_PER_STROKE * 2
    words = random_words(seed, "synthetic_strokes", [class_rank], _CHARACTER, n_numbers)[0]
    n_strokes = 2 + int(below(words[0], MOST_STROKES - 1))
    points = 1.5 * uniform(words[1:]).reshape(MOST_STROKES, POINTS_PER_STROKE, 2)[:n_strokes] - 0.75
    for stroke in range(1, n_strokes, 2):  # every second stroke starts where the one before has its middle
        points[stroke, 0] = points[stroke - 1, 1:3].mean(axis=0)
    return points


def _render(points: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Render pen strokes with soft edges of one pixel.

    Args:
        points: float (n, strokes, 4, 2), Bezier control points; the image spans -1..1.
        radius: float (n,), of the pen.
    Returns:
        uint8 (n, 28, 28).
    """
    t = np.linspace(0, 1, DOTS_PER_STROKE)
    bezier = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # (4, dots)
    dots = np.einsum("pd,nspk->nsdk", bezier, points).reshape(len(points), -1, 2).astype(np.float32)  # (n, dots, 2)
    centres = ((np.arange(IMAGE_SIDE, dtype=np.float32) + 0.5) * 2 / IMAGE_SIDE) - 1
    along_x = (centres[None, :, None] - dots[:, None, :, 0]) ** 2  # (n, 28, dots)
    along_y = (centres[None, :, None] - dots[:, None, :, 1]) ** 2
    squared = np.empty((len(points), IMAGE_SIDE, IMAGE_SIDE), dtype=np.float32)
    for row in range(IMAGE_SIDE):
        squared[:, row] = (along_x + along_y[:, row, None, :]).min(axis=2)
    pixel = np.float32(2 / IMAGE_SIDE)
    ink = np.clip((radius.astype(np.float32)[:, None, None] - np.sqrt(squared)) / pixel + 0.5, 0, 1)
    return np.round(255 * (1 - ink)).astype(np.uint8)
