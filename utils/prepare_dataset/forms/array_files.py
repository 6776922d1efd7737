"""Images that circulate as arrays: pickles of {data, labels}, mini-ImageNet's cache, tiered-ImageNet's .npz and png
pickles.
"""

import errno
import io
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.episodes.drawing import SPLITS
from utils.errors import DataError
from utils.files.archives import DAMAGE, FileOfZip, size_limited
from utils.files.atomic_files import storage_error
from utils.prepare_dataset.class_sources import FoundClasses, ImageContent, SourceClass, classes_by_label, safe_name
from utils.prepare_dataset.dataset_folders import png_bytes
from utils.prepare_dataset.forms.restricted_unpickler import load_restricted
from utils.prepare_dataset.workspace import find_split_files
from utils.words import printable

IMAGES_LOOKED_AT = 2000
"""How many, spread over the file, decide whether the channels are blue green red."""

PREFIXES = ("", "miniImageNet_category_split_", "CIFAR_FS_", "FC100_")
PICKLE_FILES = {
    "train": tuple(f"{prefix}{name}.pickle" for prefix in PREFIXES for name in ("train_phase_train", "train")),
    "val": tuple(f"{prefix}val.pickle" for prefix in PREFIXES for _ in range(2)),
    "test": tuple(f"{prefix}test.pickle" for prefix in PREFIXES for _ in range(2)),
}
CACHE_FILES = {split: (f"mini-imagenet-cache-{split}.pkl",) for split in SPLITS}
NPZ_FILES = {split: (f"{split}_images.npz",) for split in SPLITS}
PNG_FILES = {split: (f"{split}_images_png.pkl",) for split in SPLITS}


def _error(path: Path, text: str) -> DataError:
    return DataError(f"{printable(path)}: {text}. Is it the file that its name says? Fetch it again.")


def _checked_images(path: Path, images: Any) -> np.ndarray:
    """Return images as uint8 (images, H, W, 3) or (images, H, W), or refuse them."""
    if (
        isinstance(images, list)
        and images
        and all(isinstance(i, np.ndarray) and i.shape == images[0].shape for i in images)
    ):
        images = np.stack(images)
    is_array = isinstance(images, np.ndarray) and images.dtype == np.uint8 and len(images)
    if not is_array or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise _error(path, f"images must be uint8 (images, height, width, 3), but are {found}")
    return images


def whole_numbers(value: Any) -> np.ndarray:
    """Return an array, or whole numbers in a list, as an array; of other lists, whose texts could fill it, an empty
    one.
    """
    is_list = isinstance(value, list | tuple) and all(isinstance(item, int) for item in value)
    return np.asarray(value if is_list or isinstance(value, np.ndarray) else [])


def _checked_labels(path: Path, labels: Any, n_images: int) -> np.ndarray:
    labels = whole_numbers(labels)
    if labels.dtype.kind not in "iu" or labels.size != n_images:
        raise _error(path, f"there must be a whole number as label for each of its {n_images} images")
    return labels.reshape(-1)


def _entry(path: Path, content: Any, key: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        keys = ", ".join(map(printable, content)) if isinstance(content, dict) else type(content).__name__
        raise _error(path, f'has no entry "{key}" (found: {keys[:200]})')
    return content[key]


# Pickles of {data, labels}


def find_labelled_pickles(root: Path) -> FoundClasses | None:
    """`train_phase_train.pickle` (or `train.pickle`), `val.pickle`, `test.pickle`, each {data, labels}; None: not
    there.
    """
    return _find_pickles(root, PICKLE_FILES, _labelled_classes, "pickles of data and labels")


def find_cache_pickles(root: Path) -> FoundClasses | None:
    """`mini-imagenet-cache-{train,val,test}.pkl`, each {image_data, class_dict: name -> places}; None: not there."""
    return _find_pickles(root, CACHE_FILES, _cached_classes, "the three cache pickles")


def _find_pickles(
    root: Path,
    names: Mapping[str, Sequence[str]],
    read: Callable[[str, Path, Any], list[SourceClass]],
    form: str,
) -> FoundClasses | None:
    files = find_split_files(root, names)
    if files is None:
        return None
    return FoundClasses(form, [c for split, path in files.items() for c in read(split, path, load_restricted(path))])


def _labelled_classes(split: str, path: Path, content: Any) -> list[SourceClass]:
    images = _checked_images(path, _entry(path, content, "data"))
    labels = _checked_labels(path, _entry(path, content, "labels"), len(images))
    return classes_by_label(split, labels, images.__getitem__)


def _cached_classes(split: str, path: Path, content: Any) -> list[SourceClass]:
    images = _checked_images(path, _entry(path, content, "image_data"))
    places = _entry(path, content, "class_dict")
    if not isinstance(places, dict):
        raise _error(path, "class_dict is no dict")
    names = sorted(places, key=str)
    labels = np.full(len(images), -1)
    for label, name in enumerate(names):
        ranks = whole_numbers(places[name])
        if ranks.dtype.kind not in "iu" or not ranks.size or ranks.min() < 0 or ranks.max() >= len(images):
            raise _error(path, f"class {printable(name)} names images that are not there")
        labels[ranks] = label
    if (labels < 0).any():
        raise _error(path, f"{(labels < 0).sum()} images belong to no class")
    names = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    return classes_by_label(split, labels, images.__getitem__, names)


# tiered-ImageNet


def find_tiered(root: Path, channels: str, unpacked: Path) -> FoundClasses | None:
    """Find `{split}_images.npz` or `{split}_images_png.pkl` with `{split}_labels.pkl`; None where there are none.

    Args:
        channels: "rgb", "bgr", or "auto": what the images' own colours say.
        unpacked: where an array that is compressed inside its .npz may be unpacked to.
    """
    files, form = find_split_files(root, NPZ_FILES), ".npz files"
    if files is None:
        files, form = find_split_files(root, PNG_FILES), "png pickles"
    if files is None:
        return None
    classes: list[SourceClass] = []
    order = channels
    for split, path in files.items():
        if path.suffix == ".npz":
            images = _checked_images(path, open_npz(path, "images", unpacked))
            n_images, read, pixels = len(images), images.__getitem__, images.__getitem__
        else:
            encoded = _checked_pngs(path)
            n_images, read, pixels = len(encoded), encoded.__getitem__, _decoder(path, encoded)
        if order == "auto":  # the splits were made by one program
            order = channel_order(n_images, pixels)
        labels, names = _tiered_labels(path.with_name(f"{split}_labels.pkl"), split, n_images)
        classes += classes_by_label(split, labels, _flipped(pixels, path.suffix) if order == "bgr" else read, names)
    noticed = ", channels in the order blue green red, which is mended" if order == "bgr" else ""
    return FoundClasses(form + noticed, classes)


def _flipped(pixels: Callable[[int], np.ndarray], suffix: str) -> Callable[[int], ImageContent]:
    written = np.ascontiguousarray if suffix == ".npz" else lambda flipped: png_bytes(np.ascontiguousarray(flipped))
    return lambda rank: written(pixels(rank)[:, :, ::-1])


def channel_order(n_images: int, pixels: Callable[[int], np.ndarray]) -> str:
    """Return "bgr" where the first channel is darker than the last: photographs hold more red, .478, than blue, .41."""
    chosen = np.unique(np.linspace(0, n_images - 1, min(n_images, IMAGES_LOOKED_AT)).astype(int))
    means = np.mean([pixels(int(rank)).reshape(-1, 3).mean(axis=0) for rank in chosen], axis=0)
    return "bgr" if means[0] < means[2] else "rgb"


def _tiered_labels(path: Path, split: str, n_images: int) -> tuple[np.ndarray, list[str] | None]:
    if not path.is_file():
        raise DataError(f"{printable(path)}: not there, but it holds the labels of the images beside it.")
    content = load_restricted(path)
    if isinstance(content, dict) and "label_specific" not in content:
        return _checked_labels(path, _entry(path, content, "labels"), n_images), None
    labels = _checked_labels(path, _entry(path, content, "label_specific"), n_images)
    texts = content.get("label_specific_str")
    if not isinstance(texts, list | np.ndarray) or not 0 <= labels.min() <= labels.max() < len(texts):
        return labels, None
    words = [text.decode("latin1") if isinstance(text, bytes) else str(text) for text in texts]
    # Words are not unique (there are two cranes), and numbers begin anew in each split.
    return labels, [f"{split}_{label:03}_{safe_name(word.split(',')[0])}" for label, word in enumerate(words)]


def _checked_pngs(path: Path) -> Sequence[bytes]:
    encoded = load_restricted(path)
    if not isinstance(encoded, list) or not encoded:
        raise _error(path, "must be a list of encoded images")
    blocks = [item.tobytes() if isinstance(item, np.ndarray) and item.dtype == np.uint8 else item for item in encoded]
    wrong = next((i for i, block in enumerate(blocks) if not isinstance(block, bytes) or block[:4] != b"\x89PNG"), None)
    if wrong is not None:
        raise _error(path, f"item {wrong} is no PNG image")
    return blocks


def _decoder(path: Path, encoded: Sequence[bytes]) -> Callable[[int], np.ndarray]:
    def pixels(rank: int) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(encoded[rank]), formats=("PNG",)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _error(path, f"image {rank} is damaged: {error}") from error

    return pixels


def open_npz(path: Path, name: str, unpacked: Path) -> np.ndarray:
    """Open one array of an .npz file, mapped into memory where it lies; unpacked to a file first where compressed."""
    try:
        with FileOfZip(path) as whole, zipfile.ZipFile(whole) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                with open(path, "rb") as file:
                    file.seek(member.header_offset)
                    header = file.read(30)
                    start = 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                return open_npy(path, member.header_offset + start)
            copy = unpacked / f"{path.stem}-{member.CRC:08x}-{member.file_size}.npy"
            if not copy.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                partial = copy.with_suffix(".partial")
                with size_limited(path, archive.open(member)) as source, open(partial, "wb") as target:
                    shutil.copyfileobj(source, target, 2**22)
                partial.rename(copy)
            return open_npy(copy)
    except KeyError as error:
        raise _error(path, f'has no array "{name}"') from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise storage_error(unpacked, error) from error
        raise _error(path, f"damaged: {printable(error)[:300]}") from error


def open_npy(path: Path, start: int = 0) -> np.ndarray:
    """Open the array of an .npy file, or of the part of a file from `start` on, mapped and read-only.

    Arrays of objects are refused.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"format version {version}")
            shape, is_fortran, dtype = read_header[version](file)
            if dtype.hasobject:
                raise ValueError("an array of objects, which would have to be unpickled")
            order = "F" if is_fortran else "C"
            if 0 in shape:
                return np.zeros(shape, dtype)
            return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise _error(path, f"no array that can be read: {' '.join(printable(error).split())[:300]}") from error
