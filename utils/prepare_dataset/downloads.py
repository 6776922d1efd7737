"""Fetch a file over HTTP so that a broken connection costs nothing: resumed where it stopped, checked, then renamed."""

import http.client
import json
import logging
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import tqdm

from utils.errors import DataError
from utils.files.atomic_files import storage_errors
from utils.files.atomic_folders import lock
from utils.files.reading import file_digest, object_or_nothing
from utils.words import printable

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
ATTEMPTS = 3
"""Connections in one run; each goes on where the one before broke off."""
PAUSE_S = 2.0
"""Between two attempts."""
_CHUNK_BYTES = 2**20
_TRY_AGAIN_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
"""Every other OSError is about the file that is written."""


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def is_url(text: str) -> bool:
    """Return whether a text is an address rather than a path."""
    return "://" in text


def fetch(url: str, destination: Path, *, digest: str | None = None, algorithm: str = "sha256") -> Path:
    """Make sure that a file is there: fetched from `url`, or fetched before.

    What a connection brought stays in `<destination>.partial` and is gone on with by HTTP range requests, in this
    run and in the next, as long as the server says that the file is the same. `destination` exists whole or not at all.

    Args:
        digest: hexadecimal digest that the file must have; None: length alone is checked.
        algorithm: "sha256" or "md5".
    Raises:
        DataError: no such address, no network, other bytes than expected; the text says how to go on.
        StorageError: no space or no permission.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(
            f"{printable(url)}: only http and https addresses can be fetched. For a file on disk give its path."
        )
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with lock(destination.with_name(f".{destination.name}.lock")):
            if destination.is_file() and (digest is None or file_digest(destination, algorithm) == digest.lower()):
                logger.info("%s was fetched before", printable(destination))
                return destination
            partial = destination.with_name(f"{destination.name}.partial")
            _fetch_all(url, partial)
            _check(url, partial, digest, algorithm)
            partial.replace(destination)
            _notes_of(partial).unlink(missing_ok=True)
            return destination


def _notes_of(partial: Path) -> Path:
    """Return the file that says of what a partial file is a part."""
    return partial.with_name(f"{partial.name}.json")


def _check(url: str, partial: Path, digest: str | None, algorithm: str) -> None:
    found = file_digest(partial, algorithm)
    if digest is None:
        logger.info("%s of what was fetched: %s (give it as --%s to have it checked)", algorithm, found, algorithm)
    elif found != digest.lower():
        partial.unlink()
        _notes_of(partial).unlink(missing_ok=True)
        raise DataError(
            f"{printable(url)}: wrong bytes: {algorithm} is {found}, expected {digest.lower()}. What came was "
            "removed. Check the"
            f" address and --{algorithm}, then run the same command again: it fetches anew."
        )


def _fetch_all(url: str, partial: Path) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * attempt)
        try:
            _fetch_once(url, partial)
            return
        except (*_NETWORK_ERRORS, _BrokenOff) as error:
            reason = _reason(error)
            if isinstance(error, urllib.error.HTTPError) and error.code not in _TRY_AGAIN_STATUSES:
                break
            logger.info("%s: %s", url, reason)
    here = partial.stat().st_size if partial.exists() else 0
    rerun = f"{here} bytes are in {partial}; the same command goes on there" if here else "Run the same command again"
    raise DataError(
        f"{printable(url)}: cannot be fetched ({reason}). {rerun}, or fetch it by other means and give the path of "
        "the file to --from."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    inner = getattr(error, "reason", error)
    return " ".join(str(getattr(inner, "strerror", None) or inner).split()) or type(error).__name__


def _fetch_once(url: str, partial: Path) -> None:
    """Fetch over one connection; append to the partial file when it is a part of what the server has."""
    notes = object_or_nothing(_notes_of(partial))
    start = partial.stat().st_size if partial.exists() and notes.get("url") == url and notes.get("validator") else 0
    headers = {"User-Agent": "few-shot-dataset-preparation", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": notes["validator"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # all bytes are here, or the file has shrunk: the length decides
            error.close()
            if notes.get("length") == start:
                return
            partial.unlink()
            raise _BrokenOff("the file on the server has another length now") from error
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        remaining = response.headers.get("Content-Length")
        length = None if remaining is None else start + int(remaining)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if validator.startswith("W/"):
            validator = ""  # a weak one does not promise the same bytes
        if not resumed:
            _notes_of(partial).write_text(json.dumps({"url": url, "validator": validator, "length": length}))
        _copy(response, partial, start, length)


def _copy(response: http.client.HTTPResponse, partial: Path, start: int, length: int | None) -> None:
    with open(partial, "ab" if start else "wb") as file:
        name = partial.name.removesuffix(".partial")
        with tqdm.tqdm(
            total=length, initial=start, desc=f"fetching {name}", unit="B", unit_scale=True, disable=None
        ) as bar:
            while block := response.read1(_CHUNK_BYTES):  # raises IncompleteRead only where no length was announced
                file.write(block)
                bar.update(len(block))
        end = file.tell()
    if length is not None and end != length:
        raise _BrokenOff(f"the connection broke off after {end} of {length} bytes")
