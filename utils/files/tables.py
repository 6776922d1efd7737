"""JSON, CSV and JSON-lines files."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files.atomic_files import open_regular, storage_errors, write_bytes_atomically
from utils.words import printable

FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically; non-finite numbers are a bug (ValueError).

    Raises:
        StorageError: no space or no permission.
    """
    write_bytes_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows under the union of their columns in order of appearance, atomically; None is an empty cell.

    Raises:
        StorageError: no space or no permission.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_bytes_atomically(path, as_csv([columns, *([row.get(name) for name in columns] for row in rows)]).encode())


def as_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as the text of a CSV file; None is an empty cell.

    Names are printable, and one that a spreadsheet would take for a formula has an apostrophe before it (OWASP, CSV
    injection).
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    is_formula = cell.startswith(FORMULA_BEGINS) and not NUMBER.fullmatch(cell)
    return "'" * is_formula + printable(cell)


class JsonLines:
    """A file of one JSON object per line that is appended to and can be cut back to a remembered length."""

    def __init__(self, path: Path):
        self.path = path
        self._file: io.FileIO | None = None

    def open(self, keep_bytes: int) -> int:
        """Keep the first `keep_bytes` bytes, whole lines only, and append after them.

        Returns:
            how many of these bytes are not there any more.
        Raises:
            StorageError: it cannot be opened or cut, or is no regular file.
        """
        with storage_errors(self.path):
            # Unbuffered: what a full disk did not take must not be written again when the file is closed.
            descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 -- stays open for the run
            content = self._file.read(keep_bytes)
            kept = content.rfind(b"\n") + 1
            self._file.truncate(kept)
            self._file.seek(0, os.SEEK_END)
        return keep_bytes - kept

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append; raise StorageError where there is no space."""
        assert self._file is not None, "open() comes first"
        with storage_errors(self.path):
            lines = memoryview("".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode())
            while lines:
                lines = lines[self._file.write(lines) :]

    def commit(self) -> int:
        """Force all lines to disk and return the file's length in bytes, to be remembered in a checkpoint."""
        assert self._file is not None, "open() comes first"
        with storage_errors(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
