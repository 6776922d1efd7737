"""All images of a dataset in one uint8 file, decoded once and memory-mapped afterwards.

Beside the dataset lies `.packed/<dataset>.<where>.<height>x<width>x<channels>.<filter>.json`, the index: a fingerprint
of the dataset's folders and files, a digest of the pixels, what was found in them, and a digest of all this. The data
file beside it holds the pixels as uint8 (images, C, H, W), in the order in which `scan` finds the files.
"""

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import logging
import math
import os
import queue
import subprocess
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import tqdm

from utils.errors import DataError, StorageError
from utils.files.atomic_files import storage_errors, write_bytes_atomically
from utils.files.atomic_folders import lock
from utils.files.reading import file_digest, read_object
from utils.images import decoding as image_decoding
from utils.images.decoding import DECODER_VERSION, PixelFormat
from utils.images.duplicates import identical_files, read_content
from utils.images.folders import ImageFolder, scan
from utils.paths import child_process
from utils.words import printable

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
FEWEST_IMAGES_PER_PROCESS = 500
"""Below this a further process costs more than it saves."""
IMAGES_MOVED_AT_ONCE = 4096
MOST_NAMED = 20
"""Lines about images that are left out."""
LARGEST_CHECKED_AT_ONCE = 2**28
"""Bytes. A larger file's digest is compared in the background, as it would hold up the start for seconds."""


@dataclass
class PackedImages:
    """A packed file and its index."""

    data_file: Path
    shape: tuple[int, int, int, int]
    """(images, C, H, W)."""
    folders: tuple[ImageFolder, ...]
    """In the order of the images."""
    content_sha256: str
    """Of all pixels in their order."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(path in the dataset folder, reason) of every file that cannot be decoded."""
    identical: tuple[tuple[int, ...], ...] = ()
    """Ranks of images whose files are equal byte by byte."""
    alike: tuple[tuple[int, ...], ...] = ()
    """Ranks of images with equal pixels whose files differ; none in an index of releases that did not look."""
    one_colour: tuple[int, ...] = ()
    """Ranks of images whose pixels are all equal."""
    checking: "Future[str] | None" = field(default=None, compare=False, repr=False)
    """Digest of the pixels that are in a large file, in the background; None: known already."""

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return math.prod(self.shape)

    def verify(self) -> None:
        """Wait until all pixels are known to be those that were packed; no result is worth anything before.

        Raises:
            DataError: they are others. StorageError: they cannot be read.
        """
        if self.checking is not None and self.checking.result() != self.content_sha256:
            raise DataError(
                f"{printable(self.data_file)}: changed since it was packed; it is made again with "
                "--reset_stored_filepaths true"
            )

    def read(self, into_memory: bool) -> np.ndarray:
        """Return uint8 (images, C, H, W): read into memory, or mapped and then read where it is touched."""
        if into_memory:
            return np.fromfile(self.data_file, dtype=np.uint8).reshape(self.shape)
        # "c": pages are private, so that torch gets an array it may call writable; nothing is ever written.
        return np.memmap(self.data_file, dtype=np.uint8, mode="c", shape=self.shape)

    def image_path(self, rank: int) -> str:
        """Return the path of the image with this rank, relative to the dataset folder."""
        folder_rank = bisect_right(self._starts, rank) - 1
        folder = self.folders[folder_rank]
        return folder.path_of(folder.files[rank - self._starts[folder_rank]])

    def image_paths(self) -> Iterator[str]:
        """Return the paths of all images, in their order."""
        return (folder.path_of(file) for folder in self.folders for file in folder.files)

    @functools.cached_property
    def _starts(self) -> list[int]:
        lengths = [len(folder.files) for folder in self.folders]
        return [0, *itertools.accumulate(lengths[:-1])]


def _checked_in_background(packed: PackedImages) -> PackedImages:
    """Read a large file in a thread for which nothing waits when the process ends, unlike those of an executor."""
    found: Future[str] = Future()

    def read() -> None:
        try:
            found.set_result(file_digest(packed.data_file))
        except OSError as error:
            found.set_exception(StorageError(f"{printable(packed.data_file)}: cannot be read: {error.strerror}."))
        except BaseException as error:  # noqa: BLE001 -- raised where the result is asked for
            found.set_exception(error)

    Thread(target=read, name="check of packed images", daemon=True).start()
    return replace(packed, checking=found)


def _fingerprint(files_digest: str, pixel_format: PixelFormat) -> str:
    """Return the sha256 of what the packed file depends on.

    Args:
        files_digest: of the dataset's folders and files, as `scan` returns it.
    """
    parts = [FORMAT_VERSION, DECODER_VERSION, asdict(pixel_format), files_digest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest_of_index(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_index(
    index_file: Path,
    folders: list[ImageFolder],
    fingerprint: str,
    pixel_format: PixelFormat,
    *,
    skip_bad: bool,
    is_logged: bool = True,
) -> PackedImages | None:
    """Return the packed images, if there are any, which are still those of the dataset folder and as they were written.

    Args:
        folders: those of the dataset, and the fingerprint of all that is in them.
        is_logged: log why there are none.
    """
    reason, level = "", logging.INFO
    try:
        index = read_object(index_file)
        if index.pop("sha256") != _digest_of_index(index):
            raise ValueError("changed since it was written")
        packed = PackedImages(
            data_file=_data_file(index_file, index["content_sha256"]),
            shape=tuple(index["shape"]),
            folders=tuple(_without(folders, {file for file, _ in index["left_out"]})),
            content_sha256=index["content_sha256"],
            left_out=tuple((file, reason) for file, reason in index["left_out"]),
            identical=tuple(map(tuple, index["identical"])),
            alike=tuple(map(tuple, index.get("alike", ()))),
            one_colour=tuple(index["one_colour"]),
        )
        if index["fingerprint"] != fingerprint:
            reason = "the dataset or the decoder has changed"
        elif packed.left_out and not skip_bad:
            reason = f"{len(packed.left_out)} images are left out"
        elif not _is_whole(packed, pixel_format):
            raise ValueError(f"{packed.data_file.name} is not what was packed")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason, level = f"not readable, or changed ({error})", logging.WARNING
    if reason and is_logged:
        logger.log(level, "%s: %s, decoding again", printable(index_file), reason)
    if reason:
        return None
    return packed if packed.n_bytes <= LARGEST_CHECKED_AT_ONCE else _checked_in_background(packed)


def _is_whole(packed: PackedImages, pixel_format: PixelFormat) -> bool:
    """Return whether index and data file fit each other; of a large file the pixels are not looked at yet."""
    n_images = sum(len(folder.files) for folder in packed.folders)
    ranks = itertools.chain(packed.one_colour, *packed.identical, *packed.alike)
    return (
        packed.shape == (n_images, *pixel_format.shape)
        and all(0 <= rank < n_images for rank in ranks)
        and packed.data_file.stat().st_size == packed.n_bytes
        and (packed.n_bytes > LARGEST_CHECKED_AT_ONCE or file_digest(packed.data_file) == packed.content_sha256)
    )


def _data_file(index_file: Path, content_sha256: str) -> Path:
    return index_file.with_suffix(f".{content_sha256[:12]}.uint8")


def _possible_folders(dataset_folder: Path) -> list[Path]:
    """Return where packed files of a dataset may be: `.packed` beside it, or the user's cache folder, if any."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # as it is where nobody's home is known
    path_digest = hashlib.sha256(os.fsencode(dataset_folder.resolve())).hexdigest()[:12]
    folders = [dataset_folder.absolute().parent / ".packed"]
    return folders if cache.startswith("~") else [*folders, Path(cache) / "few_shot_packed_images" / path_digest]


def writable_folder(dataset_folder: Path) -> Path:
    """Return the first of `_possible_folders` that can be written.

    Raises:
        StorageError: none.
    """
    candidates = _possible_folders(dataset_folder)
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.info("%s: %s", printable(folder), error.strerror)
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise StorageError(
        f"no place for the packed images of {printable(dataset_folder)}: {' and '.join(map(printable, candidates))}"
        " cannot be written. Set XDG_CACHE_HOME to a folder that can."
    )


def load_or_pack(
    dataset_folder: Path,
    pixel_format: PixelFormat,
    *,
    num_workers: int = 4,
    rebuild: bool = False,
    skip_bad: bool = False,
) -> tuple[PackedImages | None, list[ImageFolder], list[str]]:
    """Open the packed images of a dataset; decode and pack them first where that was not done or no longer fits.

    Args:
        num_workers: most processes to decode in; 0 or 1 decodes here.
        rebuild: pack again in any case.
        skip_bad: leave out images that cannot be decoded, instead of making them problems.
    Returns:
        (packed images, or None where an image cannot be decoded; folders with images; problems as lines of text).
    Raises:
        DataError: no image at all.
        StorageError: no space or no permission.
    """
    folders, files_digest = scan(dataset_folder)
    fingerprint = _fingerprint(files_digest, pixel_format)
    real_path = dataset_folder.resolve()
    where = hashlib.sha256(os.fsencode(real_path)).hexdigest()[:8]  # links to folders of one name, one disk's mounts
    size = f"{pixel_format.height}x{pixel_format.width}x{pixel_format.channels}.{pixel_format.resize_filter}"
    stem = f"{real_path.name}.{where}.{size}"
    opened = functools.partial(
        _read_index, folders=folders, fingerprint=fingerprint, pixel_format=pixel_format, skip_bad=skip_bad
    )
    # Also one that somebody else made and we may only read.
    there = [] if rebuild else [folder / f"{stem}.json" for folder in _possible_folders(dataset_folder)]
    packed = next(filter(None, map(opened, there)), None)
    if packed is None:
        index_file = writable_folder(dataset_folder) / f"{stem}.json"
        with storage_errors(index_file), lock(index_file.with_suffix(".lock")):
            packed = None if rebuild else opened(index_file, is_logged=False)
            if packed is None:  # else another process was faster
                _remove_old_format(index_file.parent, f"{real_path.name}.{size}")
                return _pack(dataset_folder, folders, fingerprint, pixel_format, num_workers, index_file, skip_bad)
    return _tell_what_is_left_out(packed, dataset_folder), list(packed.folders), []


def _remove_old_format(folder: Path, stem: str) -> None:
    """Remove what earlier versions packed of a dataset: it cannot be trusted, and nobody else would."""
    found = list(folder.glob(f"{glob.escape(stem)}.*"))
    if found:
        logger.info("%s: packed by an earlier version, decoding again, once", printable(folder / stem))
    with contextlib.suppress(PermissionError):  # somebody else's
        for path in found:
            path.unlink(missing_ok=True)


def _tell_what_is_left_out(packed: PackedImages, dataset_folder: Path) -> PackedImages:
    if packed.left_out:
        logger.warning("on_bad_image skip: %d images cannot be decoded and are left out:", len(packed.left_out))
        for file, reason in packed.left_out[:MOST_NAMED]:
            logger.warning("  %s: %s", printable(dataset_folder / file), reason)
        if len(packed.left_out) > MOST_NAMED:
            logger.warning("  and %d more", len(packed.left_out) - MOST_NAMED)
    return packed


def _without(folders: list[ImageFolder], bad: set[str]) -> list[ImageFolder]:
    """Return the folders with the good files alone; a folder of which none is left is left out."""
    if not bad:
        return folders
    kept = [
        ImageFolder(folder.path, tuple(file for file in folder.files if folder.path_of(file) not in bad))
        for folder in folders
    ]
    return [folder for folder in kept if folder.files]


def _close_gaps(packed_file: Path, shape: tuple[int, int, int, int], bad_ranks: Sequence[int]) -> None:
    """Move the good images together and cut the file after them."""
    images = np.memmap(packed_file, dtype=np.uint8, mode="r+", shape=shape)
    gaps = [*bad_ranks, len(images)]
    place = gaps[0]
    for gap, next_gap in itertools.pairwise(gaps):
        for first in range(gap + 1, next_gap, IMAGES_MOVED_AT_ONCE):
            end = min(first + IMAGES_MOVED_AT_ONCE, next_gap)
            images[place : place + end - first] = images[first:end].copy()
            place += end - first
    images.flush()
    del images
    os.truncate(packed_file, place * int(np.prod(shape[1:])))


def _pack(
    dataset_folder: Path,
    folders: list[ImageFolder],
    fingerprint: str,
    pixel_format: PixelFormat,
    num_workers: int,
    index_file: Path,
    skip_bad: bool,
) -> tuple[PackedImages | None, list[ImageFolder], list[str]]:
    files = [folder.path_of(file) for folder in folders for file in folder.files]
    shape = (len(files), *pixel_format.shape)
    started = time.perf_counter()
    logger.info("decoding %d images of %s, once", len(files), printable(dataset_folder))
    temporary = index_file.with_suffix(".unfinished")
    temporary.unlink(missing_ok=True)  # a killed run's last decoding process may still be writing into that file
    try:
        with open(temporary, "wb") as data:
            os.posix_fallocate(data.fileno(), 0, int(np.prod(shape)))  # a full disk is noticed here
            broken = _decode_all(dataset_folder, files, pixel_format, num_workers, temporary)
            os.fsync(data.fileno())
        if broken and (not skip_bad or len(broken) == len(files)):
            return None, folders, [f"{printable(dataset_folder / file)}: {reason}" for file, reason in broken]
        if broken:
            bad = {file for file, _ in broken}
            _close_gaps(temporary, shape, [rank for rank, file in enumerate(files) if file in bad])
            folders, shape = _without(folders, bad), (len(files) - len(bad), *shape[1:])
            files = [file for file in files if file not in bad]
        content = read_content(temporary, shape)
        packed = PackedImages(
            _data_file(index_file, content.sha256),
            shape,
            tuple(folders),
            content.sha256,
            tuple(broken),
            *(tuple(map(tuple, groups)) for groups in identical_files(dataset_folder, files, content.same_pixels)),
            tuple(content.one_colour),
        )
        temporary.rename(packed.data_file)
        _write_index(index_file, fingerprint, packed)
    finally:
        temporary.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    logger.info("packed %d images into %s in %.1f s", shape[0], printable(packed.data_file), seconds)
    return _tell_what_is_left_out(packed, dataset_folder), folders, []


def _write_index(index_file: Path, fingerprint: str, packed: PackedImages) -> None:
    """Put the new index in place, then remove the data files that no index names any more."""
    index = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "shape": packed.shape,
        "content_sha256": packed.content_sha256,
        "left_out": packed.left_out,
        "identical": packed.identical,
        "alike": packed.alike,
        "one_colour": packed.one_colour,
    }
    write_bytes_atomically(index_file, json.dumps(index | {"sha256": _digest_of_index(index)}).encode())
    for data_file in index_file.parent.glob(f"{glob.escape(index_file.stem)}.*.uint8"):
        if data_file != packed.data_file:
            data_file.unlink(missing_ok=True)


def available_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_all(
    dataset_folder: Path, files: list[str], pixel_format: PixelFormat, num_workers: int, packed_file: Path
) -> list[tuple[str, str]]:
    """Decode files into the packed file with a progress bar; returns (file, reason) of the broken ones, in order."""
    n_processes = min(num_workers, available_cores(), len(files) // FEWEST_IMAGES_PER_PROCESS)
    chunk = max(16, min(256, len(files) // (8 * max(n_processes, 1)) + 1))
    starts = range(0, len(files), chunk)
    broken: dict[int, list[tuple[str, str]]] = {}
    with tqdm.tqdm(
        total=len(files), desc="decoding", unit="image", disable=None if logger.isEnabledFor(logging.INFO) else True
    ) as bar:
        if n_processes <= 1:
            answers = _decode_here(dataset_folder, files, pixel_format, packed_file, starts, chunk)
        else:
            answers = _decode_in_processes(dataset_folder, files, pixel_format, packed_file, starts, chunk, n_processes)
        for start, problems in answers:
            broken[start] = problems
            bar.update(min(chunk, len(files) - start))
    return [problem for start in sorted(broken) for problem in broken[start]]


_Answers = Iterator[tuple[int, list[tuple[str, str]]]]


def _decode_here(
    folder: Path, files: list[str], pixel_format: PixelFormat, packed_file: Path, starts: range, chunk: int
) -> _Answers:
    with open(packed_file, "r+b") as packed:
        for start in starts:
            part = files[start : start + chunk]
            yield start, image_decoding.decode_into_file(folder, part, pixel_format, packed.fileno(), start)


def _decode_in_processes(
    folder: Path, files: list[str], pixel_format: PixelFormat, packed_file: Path, starts: range, chunk: int, count: int
) -> _Answers:
    """Give each process a part whenever it is done with one; a thread per process waits for its answers."""
    processes = [
        subprocess.Popen(
            child_process("decoding"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def answer(start: int) -> tuple[int, list[tuple[str, str]]]:
        part, process = files[start : start + chunk], idle.get()
        try:
            print(
                image_decoding.job(folder.absolute(), part, pixel_format, packed_file.absolute(), start),
                file=process.stdin,
                flush=True,
            )
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            idle.put(process)
        if not line:
            text = f"a decoding process ended (exit code {process.wait()}) in {part[0]} .. {part[-1]}"
            raise OSError(printable(text))
        content = json.loads(line)
        if "error" in content:
            raise OSError(*content["error"])
        return start, [tuple(problem) for problem in content["problems"]]

    with ThreadPoolExecutor(count) as threads:
        try:
            for done in as_completed([threads.submit(answer, start) for start in starts]):
                yield done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
                process.communicate()
