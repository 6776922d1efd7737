"""JSON, TOML and text files, read with bounds: whatever a file holds that is damaged, hostile or not the one that was
meant, it ends in an error of one line.
"""

import hashlib
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

from utils.files.atomic_files import read_regular
from utils.words import printable

MOST_BYTES = 2**30
"""Of what programs write: the index of a dataset of millions of images has some hundred MB."""
MOST_WRITTEN_BYTES = 2**24
"""Of what people write, such as a config."""
DEEPEST_NESTING = 100
"""Lists in lists. Ours are a dozen deep, and Python's own functions give up at about a thousand."""

_CONTAINERS = dict, list
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file of any size.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def read_text(path: Path, *, may_be_pipe: bool = False) -> str:
    """Return the text of a file that people write: UTF-8, with or without a mark in front that says so.

    Args:
        may_be_pipe: for a file that is named on the command line, such as <(a command) of the shell.
    Raises:
        OSError: it cannot be read, is no regular file, or larger than MOST_WRITTEN_BYTES.
        ValueError: it is not UTF-8.
    """
    return _decoded(read_regular(path, MOST_WRITTEN_BYTES, may_be_pipe=may_be_pipe))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that a program has written.

    Raises:
        OSError: it cannot be read, is no regular file, or larger than MOST_BYTES.
        ValueError: as `parse_json`.
    """
    return parse_json(read_regular(path, MOST_BYTES))


def read_object(path: Path) -> dict[str, Any]:
    """Return the one object of a JSON file that a program has written.

    Raises:
        OSError, ValueError: as `read_json`; ValueError for another kind of content.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"not a JSON object, but a {type(content).__name__}")
    return content


def object_or_nothing(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one where the file is missing, unreadable or holds something else."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: no JSON in UTF-8, nested more than DEEPEST_NESTING deep, a key that is given twice, a number that
            is not finite, or half a character. (One half stands for a byte, in names of files that are no text; such
            a half is left.)
    """
    text = _decoded(text) if isinstance(text, bytes) else text
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    except RecursionError:
        raise _too_deep() from None  # its traceback is as long as the nesting is deep
    _check_depth([content])
    if _LONE_SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"not valid JSON (half a character: {error})") from error
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML text.

    Raises:
        ValueError: no TOML, a date or time, or nested more than DEEPEST_NESTING deep.
    """
    try:
        content = tomllib.loads(text)
        json.dumps(content)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML ({error})") from error
    except TypeError as error:
        raise ValueError("a date or time, which nothing here has; write it in quotes if it is a text") from error
    except RecursionError:
        raise _too_deep() from None
    _check_depth(content)
    return content


def why_unreadable(error: OSError | ValueError) -> str:
    """Return in words what one of these functions has raised."""
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # the first value would be lost without a word
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'key "{printable(repeated)[:80]}" is given {keys.count(repeated)} times')
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999 and Infinity; whoever writes them again writes no JSON
        raise ValueError(f"not valid JSON (the number {text[:40]})")
    return number


def _check_depth(content: dict[str, Any] | list[Any], depth: int = 0) -> None:
    if depth > DEEPEST_NESTING:
        raise _too_deep()
    for item in content.values() if isinstance(content, dict) else content:
        if isinstance(item, _CONTAINERS):
            _check_depth(item, depth + 1)


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST_NESTING} deep")
