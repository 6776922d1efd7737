"""From any `torchvision.datasets` class, or anything that gives (image, label), to a dataset folder.

For use from Python.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from utils.episodes.inputs import as_array
from utils.errors import DataError
from utils.files.atomic_folders import is_filled
from utils.paths import dataset_root
from utils.prepare_dataset.catalogue import MostSamples, check_name, folder_name
from utils.prepare_dataset.class_sources import (
    SourceClass,
    check_classes,
    classes_by_label,
    limit_samples,
    with_own_names,
)
from utils.prepare_dataset.dataset_folders import check_same_images, verify_dataset, write_dataset
from utils.words import printable, some_of


class LabelledImages(Protocol):
    """What is asked of a dataset."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return (image, label): a PIL image, an array or a tensor; a whole number."""


def prepare_from_dataset(
    dataset: LabelledImages | Mapping[str, LabelledImages] | None,
    name: str,
    *,
    class_names: Sequence[str] | None = None,
    to: Path | str | None = None,
    max_samples_per_class: int | MostSamples | None = None,
    seed: int = 0,
) -> Path:
    """Write a dataset's images as PNG files in class folders; done before: compared with what is there, image by image.
    A killed call is gone on with.

        >>> import numpy as np
        >>> from mamlkit import prepare_from_dataset
        >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
        >>> folder = prepare_from_dataset(list(zip(images, [0, 0, 0, 1, 1, 1])), "mine", to="datasets")
        >>> sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
        ['000', '001']

    Args:
        dataset: images as PIL images, uint8 arrays (H, W), (H, W, 3) or (3, H, W), or floats 0..1 of these shapes
            (`ToTensor`); or {"train": ..., "val": ..., "test": ...} of such, whose classes must differ. None where it
            was prepared before: names and sizes of its files are verified, and no image is read.
        name: of the folder, no path, and the `dataset_name` for configs. A limit and its seed are added to it.
        class_names: label -> name; None: `dataset.classes` where there is one, else the label.
        to: where the folder is to be; None: DATASET_DIR.
        max_samples_per_class: draw at most so many images of each class, by `seed`.
    Returns:
        The dataset's folder.
    Raises:
        ConfigError: a name that cannot be one.
        DataError: labels that are no whole numbers, images of another kind, a folder that is no longer what was
            written, was made of other images or holds something else.
        StorageError: no space or no permission.
    """
    most = (
        {None: max_samples_per_class} if isinstance(max_samples_per_class, int) else dict(max_samples_per_class or {})
    )
    check_name(name)
    destination = Path(to or dataset_root()) / folder_name(name, most, seed, names_seed=False)
    record = verify_dataset(destination) if is_filled(destination) else None
    if record is None and is_filled(destination):
        raise DataError(
            f"{printable(destination)}: holds {some_of(sorted(path.name for path in destination.iterdir()))}, but no "
            "dataset that was prepared here. Nothing was written. Give this dataset another name, or move that folder "
            "away."
        )
    if dataset is None:
        if record is None:
            raise DataError(f"{printable(destination)}: not prepared yet; give the dataset instead of None.")
        return destination
    parts = dataset if isinstance(dataset, Mapping) else {None: dataset}
    classes = [c for split, part in parts.items() for c in _classes(part, split, class_names)]
    classes = limit_samples(with_own_names(classes, destination.parent), most, seed)
    check_classes(name, classes)
    if record is not None:
        check_same_images(destination, record, classes)
        return destination
    facts: dict[str, Any] = {
        "dataset": name,
        "form": " and ".join(sorted({type(part).__name__ for part in parts.values()})),
    }
    if most:
        facts |= {
            "max_samples_per_class": {split or "each split": count for split, count in most.items()},
            "seed": seed,
        }
    write_dataset(destination, classes, facts)
    return destination


def _classes(dataset: LabelledImages, split: str | None, class_names: Sequence[str] | None) -> list[SourceClass]:
    labels = _labels_of(dataset)
    given = class_names if class_names is not None else getattr(dataset, "classes", None) or ()
    names = {label: given[label] if 0 <= label < len(given) else f"{label:03}" for label in labels}
    return classes_by_label(split, labels, lambda rank: to_pixels(dataset[rank][0], f"image {rank}"), names)


def _labels_of(dataset: LabelledImages) -> list[int]:
    """Return the labels without the images, where a dataset (most of torchvision's) has them so, else item by item."""
    labels = next(
        (found for key in ("targets", "labels", "_labels") if (found := getattr(dataset, key, None)) is not None), None
    )
    if labels is None or len(labels) != len(dataset):
        labels = [dataset[i][1] for i in range(len(dataset))]
    labels = as_array(labels, f"{type(dataset).__name__}: labels hold", DataError)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{type(dataset).__name__}: each label must be one whole number, but they are {labels.dtype} "
            f"{labels.shape[1:]}."
        )
    return labels.tolist()


def to_pixels(image: Any, name: str) -> np.ndarray:
    """Convert an image of any usual kind to uint8 (H, W) or (H, W, 3).

    Raises:
        DataError: another shape, masked values, or numbers outside 0..1.
    """
    if isinstance(image, Image.Image):
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = as_array(image, f"{printable(name)}: holds", DataError)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(f"{printable(name)}: its shape {pixels.shape} is neither (H, W) nor (H, W, 3) nor (3, H, W).")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(
                f"{printable(name)}: values {pixels.min():.3g} to {pixels.max():.3g}, but floats must be 0 to 1. "
                "Leave Normalize out of the"
                " transform; the config's normalisation does that later."
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype != np.uint8:
        raise DataError(f"{printable(name)}: pixels are {pixels.dtype}; uint8, or floats 0 to 1, are read.")
    return np.ascontiguousarray(pixels)
