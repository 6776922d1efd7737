"""Show the data of a config: pictures of its episodes as the learner gets them, and a table of its classes.

    python -m experiment_tools.show_data CONFIG.json [--to FOLDER] [--episodes 2] [--key value ...]

Writes FOLDER/train.png, val.png and test.png, a row per class of each episode: its label, quarter turns and name,
its support images, a gap, and its query images; and FOLDER/classes.csv. Training episodes are turned and augmented
as in training.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from experiment_tools.parts.command import on_console
from utils.config import ExperimentConfig, load_config
from utils.config.command_line import options_of, read_command_line
from utils.config.messages import COMMAND_LINE
from utils.episodes.drawing import SPLITS, EpisodeShape
from utils.errors import ConfigError
from utils.files.atomic_files import storage_errors
from utils.files.tables import write_csv
from utils.known_datasets import SINUSOID
from utils.paths import command
from utils.words import printable

if TYPE_CHECKING:
    from data import FewShotData

log = logging.getLogger(__name__)

TABLE = "classes.csv"
SMALLEST_SIDE = 48
"""Pixels to which smaller images are enlarged, by a whole number."""
MOST_QUERY_IMAGES = 10
GAP, MARGIN, TEXT_WIDTH, HEADING = 4, 10, 220, 22
INK, PAPER, FRAME = (30, 30, 30), (255, 255, 255), (190, 190, 190)
USAGE = f"{command('show_data')} CONFIG.json [--to FOLDER] [--episodes 2] [--key value ...]"


def episode_picture(
    heading: str, texts: Sequence[str], support: np.ndarray, query: np.ndarray, factor: int
) -> Image.Image:
    """Draw one episode as a picture.

    Args:
        texts: N, before the rows.
        support, query: uint8 (N, K or Q, H, W, C).
        factor: of the enlargement.
    """
    side_y, side_x = (side * factor for side in support.shape[2:4])
    n_columns = support.shape[1] + query.shape[1]
    width = 2 * MARGIN + TEXT_WIDTH + n_columns * (side_x + GAP) + 3 * GAP
    height = 2 * MARGIN + HEADING + len(texts) * (max(side_y, HEADING) + GAP)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), heading, INK)
    for row, text in enumerate(texts):
        top = MARGIN + HEADING + row * (max(side_y, HEADING) + GAP)
        draw.text((MARGIN, top), text, INK)
        left = MARGIN + TEXT_WIDTH
        for images in (support[row], query[row]):
            for image in images:
                pixels = image.repeat(factor, axis=0).repeat(factor, axis=1)
                pasted = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
                draw.rectangle((left - 1, top - 1, left + side_x, top + side_y), outline=FRAME)
                picture.paste(pasted, (left, top))
                left += side_x + GAP
            left += 3 * GAP
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below each other."""
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def split_picture(data: "FewShotData", split: str, n_episodes: int, shape: EpisodeShape) -> Image.Image:
    """Draw the first episodes of a split, as the learner gets them."""
    batch = data.episodes(split, range(n_episodes), shape)
    turns = data.draw(split, range(n_episodes), shape).rotations
    names = data.class_names[split]
    factor = -(-SMALLEST_SIDE // min(data.example_shape()[1:]))
    query_shown = min(shape.n_query, MOST_QUERY_IMAGES)
    pictures = []
    for place in range(n_episodes):
        support, query = (
            data.as_pixels(images[place]).unflatten(0, (shape.n_way, -1)).movedim(2, -1).cpu().numpy()
            for images in (batch.support_images, batch.query_images)
        )
        texts = [
            _fitting(label, int(turned) * 90, names[rank])
            for label, (rank, turned) in enumerate(zip(batch.class_ids[place], turns[place], strict=True))
        ]
        more = f", {query_shown} of {shape.n_query} query images shown" if query_shown < shape.n_query else ""
        heading = f"{split} episode {place}: {shape} (support left, query right{more})"
        pictures.append(episode_picture(heading, texts, support, query[:, :query_shown], factor))
    return stacked(pictures)


def _fitting(label: int, degrees: int, name: str) -> str:
    """Return a text of at most 34 letters: label, turn, end of the class name."""
    turned = f" turned {degrees}" if degrees else ""
    room = 34 - len(f"{label}{turned} ")
    name = printable(name).encode("ascii", "replace").decode()
    return f"{label}{turned} {name if len(name) <= room else '..' + name[2 - room :]}"


def class_rows(data: "FewShotData") -> list[dict[str, Any]]:
    """Return the split, class and number of images of every class."""
    return [
        {"split": split, "class": printable(name), "images": count}
        for split in data.class_names
        for name, count in data.class_sizes(split).items()
    ]


def counts_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the classes and images per split, as text."""
    lines = [f"{'split':<6} {'classes':>8} {'images':>9} {'per class: fewest':>18} {'median':>7} {'most':>6}"]
    for split in SPLITS:
        counts = [row["images"] for row in rows if row["split"] == split]
        lines.append(
            f"{split:<6} {len(counts):>8} {sum(counts):>9} {min(counts):>18} {int(np.median(counts)):>7} "
            f"{max(counts):>6}"
        )
    return "\n".join(lines)


def show_data(config: ExperimentConfig, folder: Path, n_episodes: int) -> None:
    """Write the pictures and the table of a config into a folder.

    Raises:
        DataError, ConfigError, StorageError: as `data.build_data`.
    """
    import torch

    from data import build_data

    if config.dataset_name == SINUSOID:
        raise ConfigError(
            '"dataset_name" sinusoid: points of waves are no pictures; docs/regression.md has what they are'
        )
    _refuse_what_is_not_ours(folder)
    data = build_data(config, "cpu", getattr(torch, config.parameter_format))
    rows = class_rows(data)
    shapes = {"train": config.training_shapes[0], "val": config.validation_shape, "test": config.test_shapes[0]}
    shown = SPLITS if config.inputs is None else ()  # other examples have no pictures
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / TABLE, rows)
        for split in shown:
            split_picture(data, split, n_episodes, shapes[split]).save(folder / f"{split}.png")
    log.info(counts_table(rows))
    log.info("%s: %s", printable(folder), ", ".join([*(f"{split}.png" for split in shown), TABLE]))


def _refuse_what_is_not_ours(folder: Path) -> None:
    """Refuse to replace anything but pictures of an earlier call."""
    if folder.exists() and not (folder / TABLE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{printable(folder)}: has other content; give another folder with --to")


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Show the data of a config; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"}.intersection(arguments):
        print(__doc__)
        return 0 if arguments else 1
    path, overrides = read_command_line(options_of(arguments))
    folder, n_episodes = overrides.pop("to", None), overrides.pop("episodes", 2)
    if not isinstance(n_episodes, int) or not 1 <= n_episodes <= 100:
        raise ConfigError(f"command line: --episodes is {n_episodes}, but must be 1 to 100; {USAGE}")
    if not isinstance(folder, str | int | None) or folder is True:
        raise ConfigError(f"command line: --to needs one folder; {USAGE}")
    config = load_config(path, overrides, place=COMMAND_LINE)
    show_data(config, Path(str(folder or f"{config.experiment_name}_data")), n_episodes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
