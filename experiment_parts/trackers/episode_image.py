"""The example episodes of the validation as one picture: support images, then query images framed by right and
wrong.
"""

from pathlib import Path

import numpy as np

from experiment_parts.runs.checkpoints import load_checkpoint
from utils.errors import StorageError

RIGHT, WRONG, NEUTRAL = (46, 160, 67), (218, 54, 51), (128, 128, 128)
FRAME, GAP = 2, 10
"""Pixels."""


def episode_image(path: Path, epoch: int) -> np.ndarray | None:
    """Draw the file that `experiment_parts.records.diagnostics.write_examples` leaves after an epoch.

    Episodes side by side, a row per class: support images with a grey frame, then query images, green where the
    prediction is right and red where it is wrong.

    Returns:
        uint8 (height, width, 3); None when the file is not of this epoch (counted from 1).
    """
    try:
        tensors, state = load_checkpoint(path)
    except StorageError:
        return None
    if state["epoch"] != epoch:
        return None
    support, query, predictions = (tensors[name].numpy() for name in ("support_images", "query_images", "predictions"))
    columns = []
    for episode in range(len(support)):
        rows = []
        for label, (shown, asked) in enumerate(zip(support[episode], query[episode], strict=True)):
            tiles = [_framed(image, NEUTRAL) for image in shown]
            tiles.append(np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8))
            answers = predictions[episode, label]
            tiles += [
                _framed(image, RIGHT if answer == label else WRONG)
                for image, answer in zip(asked, answers, strict=True)
            ]
            rows.append(np.concatenate(tiles, axis=1))
        columns += [np.concatenate(rows, axis=0), np.full((rows[0].shape[0] * len(rows), 3 * GAP, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)


def _framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8 (C, H, W), grey or colour, to (H + frame, W + frame, 3)."""
    picture = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
    height, width = image.shape[1:]
    framed = np.empty((height + 2 * FRAME, width + 2 * FRAME, 3), np.uint8)
    framed[:] = colour
    framed[FRAME:-FRAME, FRAME:-FRAME] = picture
    return framed
