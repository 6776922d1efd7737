"""Unpack a dataset archive without trusting it: every member is checked here, nothing is written outside the target.

The checks do not rest on tarfile's own filter, which had holes in Python before 3.11.13 (CVE-2025-4517).
"""

import bz2
import contextlib
import gzip
import io
import logging
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import tqdm

from utils.errors import DataError
from utils.files.atomic_folders import make_folder
from utils.words import printable

logger = logging.getLogger(__name__)

ARCHIVE_EXTENSIONS = (".tar.bz2", ".tbz2", ".pbzip2", ".pbzip", ".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")

MOST_MEMBERS = 20_000_000
SMALLEST_SIZE_LIMIT = 2**30
"""Bytes an archive may always unpack to."""
LARGEST_RATIO = 200
"""Beyond SMALLEST_SIZE_LIMIT, bytes unpacked per byte of archive: images hardly shrink, a bomb does."""

_COPY_BYTES = 2**20
_ONLY_FILES = "only files and folders are unpacked."
_SPLIT_FOLDERS = ("train", "val", "test")


def find_archive(dataset_name: str, folder: Path) -> Path | None:
    """Return the first `<dataset_name><one of ARCHIVE_EXTENSIONS>` that is in a folder."""
    candidates = (folder / f"{dataset_name}{extension}" for extension in ARCHIVE_EXTENSIONS)
    return next((path for path in candidates if path.is_file()), None)


def unpack_archive(archive: Path, destination: Path) -> None:
    """Unpack into a temporary folder beside `destination`, then rename it; a wrapping folder is left out.

    Files get the rights and the time of a new file. An existing `destination` with something in it stays as it is.

    Raises:
        DataError: damaged, encrypted, or a member that has no business in a dataset: outside the folder, a link, a
            device, twice the same name, too many or too large.
        StorageError: no space or no permission.
    """
    logger.info("unpacking %s", printable(archive))

    def fill(folder: Path) -> Path:
        try:
            _unpack_members(archive, folder)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file system; those of bz2 and gzip about their data have no number
            raise _error(archive, f"damaged or not an archive of this kind: {error}. Fetch it again") from error
        return _without_wrapper(folder)

    make_folder(destination, fill)


def _error(archive: Path, text: str) -> DataError:
    return DataError(f"{printable(archive)}: {text}.")


def _unpack_members(archive: Path, folder: Path) -> None:
    seen: set[str] = set()
    size_limit = max(SMALLEST_SIZE_LIMIT, LARGEST_RATIO * archive.stat().st_size)
    members = _zip_members(archive, size_limit) if archive.suffix == ".zip" else _tar_members(archive, size_limit)
    progress = tqdm.tqdm(desc=f"unpacking {printable(archive.name)}", unit="file", disable=None)
    with progress as bar, contextlib.closing(members):
        for name, is_folder, content in members:
            path = folder.joinpath(*_checked_parts(archive, name))
            if not is_folder:
                if path == folder:
                    raise _error(archive, f'member "{printable(name)}" has no name')
                if str(path) in seen:
                    raise _error(archive, f'member "{printable(name)}" is in it twice')
                seen.add(str(path))
                if len(seen) > MOST_MEMBERS:
                    raise _error(archive, f"more than {MOST_MEMBERS} files")
            try:
                if is_folder:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    shutil.copyfileobj(content, file, _COPY_BYTES)
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                text = f'member "{printable(name)}" and another one are the same file on this file system'
                raise _error(archive, text) from error
            bar.update()
    if not seen:
        raise _error(archive, "no file in it")


def _checked_parts(archive: Path, name: str) -> list[str]:
    """Return the parts of a member's name; an error if it leads, or might lead anywhere, out of the folder."""
    slashed = name.replace("\\", "/")
    is_absolute = slashed.startswith("/") or slashed[1:2] == ":"
    if is_absolute or ".." in slashed.split("/") or "\0" in name:
        raise _error(archive, f'member "{printable(name)}" would be written outside the dataset folder')
    return [part for part in name.split("/") if part not in ("", ".")]


_Members = Iterator[tuple[str, bool, BinaryIO | None]]
"""(name, is a folder, content)."""


def _tar_members(archive: Path, size_limit: int) -> _Members:
    with _decompressed(archive) as stream:
        limited = _LimitedReader(stream, archive, size_limit)
        with tarfile.open(fileobj=limited, mode="r|") as tar:
            for member in tar:
                if not (member.isdir() or member.isreg()) or member.issparse():
                    text = f'member "{printable(member.name)}" is a link, a device or a sparse file'
                    raise _error(archive, f"{text}; {_ONLY_FILES} Pack the files themselves (tar --dereference)")
                yield member.name, member.isdir(), tar.extractfile(member)
        while limited.read(_COPY_BYTES):  # to the end, so that a damaged tail is noticed
            pass


def _zip_members(archive: Path, size_limit: int) -> _Members:
    with zipfile.ZipFile(archive) as opened:
        remaining = _Allowance(archive, size_limit)
        for member in opened.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                text = f'member "{printable(member.filename)}" is a link or a device'
                raise _error(archive, f"{text}; {_ONLY_FILES} Pack the files themselves")
            if member.flag_bits & 0x1:
                raise _error(archive, f'member "{printable(member.filename)}" is encrypted')
            try:
                with opened.open(member) as content:
                    yield member.filename, member.is_dir(), _LimitedReader(content, archive, remaining)
            except NotImplementedError as error:
                raise _error(archive, f'member "{printable(member.filename)}": {error}') from error


class _Allowance:
    """Bytes that may still be unpacked."""

    def __init__(self, archive: Path, limit: int):
        self._archive, self._limit, self._remaining = archive, limit, limit

    def use(self, count: int) -> None:
        self._remaining -= count
        if self._remaining < 0:
            text = f"unpacks to more than {self._limit / 2**30:.0f} GiB ({LARGEST_RATIO} times its size, at least 1)"
            raise _error(self._archive, f"{text}: a decompression bomb? Unpack it yourself if it is right")


class _LimitedReader(io.RawIOBase):
    """Counts what is read from a stream and stops at the allowance."""

    def __init__(self, stream: BinaryIO, archive: Path, allowance: _Allowance | int):
        super().__init__()
        self._stream = stream
        self._allowance = _Allowance(archive, allowance) if isinstance(allowance, int) else allowance

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size if size >= 0 else _COPY_BYTES)
        self._allowance.use(len(data))
        return data


def _decompressed(archive: Path) -> BinaryIO:
    """The tar inside, as a stream. bzip2 of many streams and gzip of many members are read to the end."""
    if archive.name.endswith((".tar.bz2", ".tbz2", ".pbzip2", ".pbzip")):
        return bz2.open(archive, "rb")
    return {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open}.get(archive.suffix, open)(archive, "rb")


def _without_wrapper(folder: Path) -> Path:
    """Return the folder inside when it is all there is (macOS extras aside) and not itself a split of the dataset."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in _SPLIT_FOLDERS:
        return entries[0]
    return folder
