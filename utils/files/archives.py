"""Unpack a dataset archive without trusting it: every member is checked here, nothing is written outside the target.

The checks do not rest on tarfile's own filter, which had holes in Python before 3.11.13 (CVE-2025-4517).
"""

import bz2
import contextlib
import errno
import glob
import gzip
import io
import logging
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import tqdm

from utils.errors import DataError
from utils.files.atomic_folders import make_folder
from utils.words import printable, size_text

logger = logging.getLogger(__name__)

ARCHIVE_EXTENSIONS = (".tar.bz2", ".tbz2", ".pbzip2", ".pbzip", ".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")
PACKAGE_EXTENSIONS = (*ARCHIVE_EXTENSIONS, ".deb", ".whl")
"""What `read_members` reads."""

MOST_MEMBERS = 20_000_000
MOST_FOLDERS = 100_000
"""Their names are kept in memory; ImageNet has 22,000 classes."""
DEEPEST_FOLDER = 50
MOST_HEADER_BYTES = 2**24
"""Of one member of a tar: it is read at once, and holds little more than a name."""
MOST_DIRECTORY_BYTES = 2**28
"""Of the list of names at the end of a zip, some 100 bytes for each."""
SMALLEST_SIZE_LIMIT = 2**30
"""Bytes an archive may always unpack to."""
LARGEST_RATIO = 200
"""Beyond SMALLEST_SIZE_LIMIT, bytes unpacked per byte of archive: images hardly shrink, a bomb does."""

_COPY_BYTES = 2**20
_ONLY_FILES = "only files and folders are unpacked."
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RuntimeError,
)
"""What the standard library raises for a damaged archive, depending on where the damage is."""
_SPLIT_FOLDERS = ("train", "val", "test")


def find_archive(dataset_name: str, folder: Path) -> Path | None:
    """Return the first `<dataset_name><one of ARCHIVE_EXTENSIONS, or that in capitals>` that is in a folder."""
    named = sorted(folder.glob(f"{glob.escape(dataset_name)}.*"))  # capitals first, so that of two the other is taken
    found = {path.name.removeprefix(dataset_name).lower(): path for path in named if path.is_file()}
    return next((found[extension] for extension in ARCHIVE_EXTENSIONS if extension in found), None)


def unpack_archive(archive: Path, destination: Path) -> None:
    """Unpack into a temporary folder beside `destination`, then rename it; a wrapping folder is left out.

    Files get the rights and the time of a new file. An existing `destination` with something in it stays as it is.

    Raises:
        DataError: damaged, encrypted, or a member that has no business in a dataset: outside the folder, a symbolic
            link, a device, twice the same name, too many, too deep or too large.
        StorageError: no space or no permission.
    """
    if not archive.is_file():  # a pipe would be waited for
        raise _error(archive, "no file")
    logger.info("unpacking %s", printable(archive))

    def fill(folder: Path) -> Path:
        with _damage_named(archive):
            _unpack_members(archive, folder)
        return _without_wrapper(folder)

    make_folder(destination, fill)


def read_members(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of those files of an archive or package whose names match; links are left out.

    Raises:
        DataError: damaged, encrypted, or larger inside than such an archive may be.
    """
    with _damage_named(archive), contextlib.closing(_members(archive, _Allowance(archive), links=False)) as members:
        for member in members:
            if member.content is not None and wanted.search(member.name):
                content = io.BytesIO()
                shutil.copyfileobj(member.content, content, _COPY_BYTES)
                yield member.name, content.getvalue()


@contextlib.contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        # Of the file system; those of bz2 and gzip about their data have no number, EINVAL is a place before 0.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = printable(error)[:300]
        raise _error(archive, f"damaged or not an archive of this kind: {reason}. Fetch it again") from error


def _error(archive: Path, text: str) -> DataError:
    return DataError(f"{printable(archive)}: {text}.")


class _Member(NamedTuple):
    name: str
    is_folder: bool = False
    content: BinaryIO | None = None
    same_as: str | None = None
    """Name of a member before it, of which it is another name."""


_Members = Iterator[_Member]


def _unpack_members(archive: Path, folder: Path) -> None:
    seen: set[str] = set()
    folders: set[str] = {""}
    allowance = _Allowance(archive)
    members = _members(archive, allowance)
    progress = tqdm.tqdm(desc=f"unpacking {printable(archive.name)}", unit="file", disable=None)
    with progress as bar, contextlib.closing(members):
        for member in members:
            parts = _checked_parts(archive, member.name)
            path = "/".join(parts)
            try:
                _make_folders(archive, folder, parts if member.is_folder else parts[:-1], folders)
                if member.is_folder:
                    continue
                if not path:
                    raise _error(archive, f'member "{printable(member.name)}" has no name')
                if path in seen:
                    raise _error(archive, f'member "{printable(member.name)}" is in it twice')
                if len(seen) >= MOST_MEMBERS:
                    raise _error(archive, f"more than {MOST_MEMBERS} files")
                content = member.content
                if member.same_as is not None:
                    content = _opened_again(archive, folder, member, seen, allowance)
                with content, open(folder / path, "xb") as file:
                    shutil.copyfileobj(content, file, _COPY_BYTES)
                seen.add(path)
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                text = f'member "{printable(member.name)}" and another one are the same file on this file system'
                raise _error(archive, text) from error
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                text = f'member "{printable(member.name)[:100]}..." has a name that is too long for this file system'
                raise _error(archive, text) from error
            bar.update()
    if not seen:
        raise _error(archive, "no file in it")


def _make_folders(archive: Path, folder: Path, parts: list[str], made: set[str]) -> None:
    if len(parts) > DEEPEST_FOLDER:
        raise _error(archive, f"more than {DEEPEST_FOLDER} folders in each other")
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        if path not in made:
            if len(made) > MOST_FOLDERS:
                raise _error(archive, f"more than {MOST_FOLDERS} folders")
            os.mkdir(folder / path)
            made.add(path)


def _opened_again(archive: Path, folder: Path, member: _Member, seen: set[str], allowance: "_Allowance") -> BinaryIO:
    """Return the file that a hard link is another name of: it becomes a copy."""
    path = "/".join(_checked_parts(archive, member.same_as))
    if path not in seen:
        text = f'member "{printable(member.name)}" is a hard link to "{printable(member.same_as)}"'
        raise _error(archive, f"{text}, which is no file before it in the archive. Pack it with --hard-dereference")
    return _LimitedReader(open(folder / path, "rb"), allowance)


def _checked_parts(archive: Path, name: str) -> list[str]:
    """Return the parts of a member's name; an error if it leads, or might lead anywhere, out of the folder."""
    slashed = name.replace("\\", "/")
    is_absolute = slashed.startswith("/") or slashed[1:2] == ":"
    if is_absolute or ".." in slashed.split("/") or "\0" in name:
        raise _error(archive, f'member "{printable(name)}" would be written outside the dataset folder')
    return [part for part in name.split("/") if part not in ("", ".")]


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a header that is damaged or cut off for the end of the archive; here the rest would be missed."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} after {tar.offset} bytes") from error


def _members(archive: Path, allowance: "_Allowance", *, links: bool = True) -> _Members:
    if archive.suffix.lower() in (".zip", ".whl"):
        return _zip_members(archive, allowance)
    return _tar_members(archive, allowance, links=links)


def _tar_members(archive: Path, allowance: "_Allowance", *, links: bool) -> _Members:
    with _decompressed(archive) as stream:
        limited = _LimitedReader(stream, allowance)
        with limited.in_header():
            tar = tarfile.open(fileobj=limited, mode="r|", tarinfo=_StrictHeader)  # noqa: SIM115 -- reads a header
        with tar:
            while True:
                with limited.in_header():
                    member = tar.next()
                if member is None:
                    break
                tar.members.clear()  # which would hold them all
                if not links and not (member.isdir() or member.isreg()):
                    continue
                if member.islnk():
                    yield _Member(member.name, same_as=member.linkname)
                    continue
                if not (member.isdir() or member.isreg()) or member.issparse():
                    text = f'member "{printable(member.name)}" is a link, a device or a sparse file'
                    raise _error(archive, f"{text}; {_ONLY_FILES} Pack the files themselves (tar --dereference)")
                yield _Member(member.name, member.isdir(), tar.extractfile(member))
        while limited.read(_COPY_BYTES):  # to the end, so that a damaged tail is noticed
            pass


class FileOfZip(io.FileIO):
    """zipfile reads the whole list of names at once, as long as it says it is."""

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a list of names of more than {size_text(MOST_DIRECTORY_BYTES)}")
        return super().read(size)


def _zip_members(archive: Path, allowance: "_Allowance") -> _Members:
    with FileOfZip(archive) as file, zipfile.ZipFile(file) as opened:
        if len({name.rpartition("/")[0] for name in opened.namelist()}) > MOST_FOLDERS:  # before they are made
            raise _error(archive, f"more than {MOST_FOLDERS} folders")
        for member in opened.infolist():
            name = member.filename.replace("\\", "/")  # of programs for Windows that do not know better
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                text = f'member "{printable(name)}" is a link or a device'
                raise _error(archive, f"{text}; {_ONLY_FILES} Pack the files themselves")
            if member.flag_bits & 0x1:
                raise _error(archive, f'member "{printable(name)}" is encrypted')
            if name.endswith("/"):
                yield _Member(name, is_folder=True)
                continue
            try:
                content = opened.open(member)
            except NotImplementedError as error:
                raise _error(archive, f'member "{printable(name)}": {error}') from error
            yield _Member(name, content=_LimitedReader(content, allowance))


class _Allowance:
    """Bytes that may still be unpacked."""

    def __init__(self, archive: Path):
        self._archive = archive
        self._limit = self._remaining = max(SMALLEST_SIZE_LIMIT, LARGEST_RATIO * archive.stat().st_size)

    def use(self, count: int) -> None:
        self._remaining -= count
        if self._remaining < 0:
            text = f"unpacks to more than {self._limit / 2**30:.0f} GiB ({LARGEST_RATIO} times its size, at least 1)"
            raise _error(self._archive, f"{text}: a decompression bomb? Unpack it yourself if it is right")


class _LimitedReader(io.RawIOBase):
    """Counts what is read from a stream and stops at the allowance."""

    def __init__(self, stream: BinaryIO, allowance: _Allowance):
        super().__init__()
        self._stream, self._allowance = stream, allowance
        self._header_bytes: int | None = None

    @contextlib.contextmanager
    def in_header(self) -> Iterator[None]:
        """Inside, a member's header is read, and what it says about its own size is not believed."""
        self._header_bytes = 0
        yield
        self._header_bytes = None

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size if size >= 0 else _COPY_BYTES)
        self._allowance.use(len(data))
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES:
                raise tarfile.ReadError(f"the header of a member has more than {size_text(MOST_HEADER_BYTES)}")
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


def size_limited(archive: Path, stream: BinaryIO) -> BinaryIO:
    """Return a stream that raises a DataError where it holds more than an archive of this size may unpack to."""
    return _LimitedReader(stream, _Allowance(archive))


def _decompressed(archive: Path) -> BinaryIO:
    """Return the tar inside, as a stream. bzip2 of many streams and gzip of many members are read to the end."""
    name = archive.name.lower()
    if name.endswith((".tar.bz2", ".tbz2", ".pbzip2", ".pbzip")):
        return bz2.open(archive, "rb")
    if name.endswith(".deb"):
        return lzma.open(_data_of_deb(archive), "rb")
    return {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open}.get(archive.suffix.lower(), open)(archive, "rb")


def _data_of_deb(archive: Path) -> BinaryIO:
    """Return the last of the three members of a Debian package, which is an ar: a header of 60 bytes before each."""
    file = open(archive, "rb")  # noqa: SIM115 -- handed on
    if file.read(8) == b"!<arch>\n":
        while len(header := file.read(60)) == 60:
            if header.startswith(b"data.tar.xz"):
                return file
            size = int(header[48:58])
            if size < 0:  # it would be the same header again
                break
            file.seek(size + size % 2, io.SEEK_CUR)
    file.close()
    raise tarfile.ReadError("no data.tar.xz in it")


def _without_wrapper(folder: Path) -> Path:
    """Return the folder inside when it is all there is (macOS extras aside) and not itself a split of the dataset."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in _SPLIT_FOLDERS:
        return entries[0]
    return folder
