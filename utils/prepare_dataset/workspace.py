"""Where preparation keeps what it fetched and unpacked: `.sources` in the dataset folder.

And how files are found in a source.
"""

import contextlib
import hashlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import DataError
from utils.files.archives import ARCHIVE_EXTENSIONS, unpack_archive
from utils.files.reading import file_digest
from utils.paths import expanded
from utils.prepare_dataset.downloads import fetch, is_url
from utils.words import printable

DEEPEST_LOOK = 4
_NOT_LOOKED_INTO = re.compile(r"\.|n\d{8}$|images$|__MACOSX")
"""Folders that may hold a million images and no list of them."""
_ENDINGS_OF_PARTS = (".csv", ".pkl", ".pickle", ".npz", ".npy", ".txt", ".json", "")
"""Of files that are named in place of the folder that they are in."""


@dataclass
class Workspace:
    """Files of ours beside the datasets.

    Downloads stay for the next time; what was unpacked goes once it has been used.
    """

    dataset_root: Path
    facts: dict[str, str] = field(default_factory=dict)
    """Where the dataset came from, for its record."""

    _used: list[Path] = field(default_factory=list)

    @property
    def unpacked(self) -> Path:
        """Where unpacked archives are."""
        return self.dataset_root / ".sources" / "unpacked"

    def folder_for(self, name: str) -> Path:
        """Return a folder of ours of this name, which `clean` removes; it may hold what a killed run left."""
        self._used.append(self.unpacked / name)
        return self._used[-1]

    def download(self, url: str, digest: str | None = None, algorithm: str = "sha256") -> Path:
        """Fetch a file, unless that was done before; return its path."""
        name = (
            re.sub(r"[^\w.+()\- ]", "_", urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]))
            or "file"
        )
        folder = hashlib.sha256(url.encode()).hexdigest()[:8]
        path = self.dataset_root / ".sources" / "downloads" / folder / name.lstrip(".")
        return fetch(url, path, digest=digest, algorithm=algorithm)

    def unpack(self, archive: Path) -> Path:
        """Unpack an archive once, also over several runs; return the folder with its content."""
        status = archive.stat()
        text = f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        folder = self.folder_for(hashlib.sha256(os.fsencode(text)).hexdigest()[:12])
        unpack_archive(archive, folder)
        return folder

    def open(self, location: str, sha256: str | None, *, is_tree: bool = False) -> Path:
        """Return the folder of what --from gives, a path or an address; of a file that is no archive, the one it is in.

        Args:
            is_tree: any folder would do, so that of a file may be any: an archive of a kind that is not known, a
                picture.
        Raises:
            DataError: not there, not fetched, not of that digest, or no file that a dataset is made from.
        """
        self.facts["source"] = location
        path = Path(urllib.parse.urlsplit(location).path) if is_url(location) else expanded(location)
        is_archive = path.name.lower().endswith(ARCHIVE_EXTENSIONS)
        is_part = not is_tree and path.suffix.lower() in _ENDINGS_OF_PARTS
        if not is_archive and not is_part and (is_url(location) or path.is_file()):
            raise DataError(
                f"{printable(location)}: no archive that can be unpacked here ({', '.join(ARCHIVE_EXTENSIONS)}): "
                "unpack it and give the folder."
            )
        if is_url(location):
            path = self.download(location, sha256)
        else:
            if not path.is_dir() and not path.is_file():
                raise DataError(
                    f"{printable(path)}: not found. --from is a folder, an archive, a file in it, or an http address."
                )
            if sha256 and path.is_dir():
                raise DataError(f"{printable(path)}: --sha256 is of a file, but this is a folder. Leave it out.")
            if sha256 and (found := file_digest(path)) != sha256.lower():
                raise DataError(
                    f"{printable(path)}: wrong bytes: sha256 is {found}, expected {sha256.lower()}. Fetch it again."
                )
        if sha256:
            self.facts["source_sha256"] = sha256.lower()
        if path.is_dir():
            return path
        return self.unpack(path) if is_archive else path.parent

    def clean(self) -> None:
        """Remove what was unpacked for this dataset; other processes may be at others."""
        for folder in self._used:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or another process has something in it
            self.unpacked.rmdir()


def folders_below(root: Path, skip: re.Pattern[str] = _NOT_LOOKED_INTO) -> Iterator[Path]:
    """Yield a folder and those below it, the upper ones first, without those that hold nothing but images."""
    level = [root]
    for _ in range(DEEPEST_LOOK + 1):
        yield from level
        try:
            level = [
                Path(entry.path)
                for folder in level
                for entry in sorted(os.scandir(folder), key=lambda e: e.name)
                if entry.is_dir() and not skip.match(entry.name)
            ]
        except OSError as error:
            raise DataError(f"{printable(error.filename)}: this folder cannot be read ({error.strerror}).") from error


def find_folder(root: Path, is_it: Callable[[Path], bool]) -> Path | None:
    """Find the uppermost folder for which `is_it` holds."""
    return next((folder for folder in folders_below(root) if is_it(folder)), None)


def find_split_files(root: Path, patterns: dict[str, tuple[str, ...]]) -> dict[str, Path] | None:
    """Find the files of all splits in the uppermost folder that has them.

    Args:
        patterns: split -> names that its file may have; the n-th names of all splits belong together.
    """
    for folder in folders_below(root):
        for names in zip(*patterns.values(), strict=True):
            files = dict(zip(patterns, (folder / name for name in names), strict=True))
            if all(path.is_file() for path in files.values()):
                return files
    return None
