"""Images and files that the tests of dataset preparation write and look for."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from utils.known_datasets import Counts

SMALL_COUNTS = Counts({"train": 3, "val": 2, "test": 2}, 4)
"""What the small test data have in place of 64, 16 and 20 classes of 600."""


def pixels(number, side=84, channels=3):
    """An image that tells its number: photographs' colours, red above blue."""
    generator = np.random.default_rng(number)
    shape = (side, side, channels) if channels > 1 else (side, side)
    image = generator.integers(0, 100, shape, dtype=np.uint8)
    image[..., 0] += 60
    return image


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def content_of(dataset):
    """class folder -> set of the images' bytes (first row, which tells them apart)."""
    return {
        str(folder.relative_to(dataset)): sorted(read(file)[0].tobytes() for file in folder.iterdir())
        for folder in dataset.rglob("*")
        if folder.is_dir() and any(p.is_file() for p in folder.iterdir())
    }


def expected_content(numbers):
    """The same from class folder -> numbers of its images."""
    return {folder: sorted(pixels(n)[0].tobytes() for n in group) for folder, group in numbers.items()}


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG")  # lossless, whatever it is called: decoders look at the content


def labelled_pickle(path, numbers, labels, side=84):
    with open(path, "wb") as file:
        pickle.dump({"data": np.stack([pixels(n, side) for n in numbers]), "labels": labels}, file, protocol=2)


def write_csvs(folder, rows, header=True):
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        text = ("filename,label\n" if header else "") + "".join(f"{file},{label}\n" for file, label in lines)
        (folder / f"{split}.csv").write_text(text)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of the tests' own."""
    with tarfile.open(archive) as opened:
        # Python has the filter since 3.11.4, and warns without one from 3.12 on.
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(folder)
