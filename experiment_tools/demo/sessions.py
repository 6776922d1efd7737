"""What each visitor of the demo page has given, kept apart, bounded and forgotten after a while. Nothing touches the
disk.

A session's name is its secret: 128 random bits and a signature, so that only pages of this server's own making have
one and none is kept before it is used.
"""

import hashlib
import hmac
import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from experiment_tools.demo.drawn_images import draw_strokes
from utils.images.decoding import DECODING_ERRORS, PixelFormat, decode_image, original_form

MOST_SESSIONS = 16
MOST_IMAGES = 256
"""Of a session; the oldest go."""
IDLE_S = 3600.0
LARGEST_UPLOAD = 12_000_000
"""Bytes."""
LARGEST_DRAWING = 1_000_000
"""Bytes."""
LARGEST_PIXELS = 50_000_000
"""Of a photograph, read from its head before it is decoded."""
MOST_POINTS = 20_000
"""Of a drawing."""


class RefusedError(Exception):
    """A request that is not answered as asked: HTTP status and the text for the visitor."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Session:
    """One visitor's images, uint8 (C, H, W), by number."""

    images: "OrderedDict[int, np.ndarray]" = field(default_factory=OrderedDict)
    last_use_s: float = 0.0
    next_number: int = 1

    def add(self, image: np.ndarray) -> int:
        """Keep an image; returns its number."""
        number, self.next_number = self.next_number, self.next_number + 1
        self.images[number] = image
        while len(self.images) > MOST_IMAGES:
            self.images.popitem(last=False)
        return number

    def image(self, number: Any) -> np.ndarray:
        """Return an image of this visitor's.

        Raises:
            RefusedError: there is none (any more).
        """
        if not isinstance(number, int) or isinstance(number, bool):
            raise RefusedError(400, "images are called by their numbers")
        if number not in self.images:
            raise RefusedError(410, "these images are not kept any more; they are sent again")
        return self.images[number]


class Sessions:
    """Sessions by name; the one that was used least recently goes when there are too many.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._clock, self._lock = secrets.token_bytes(32), clock, threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def new_name(self) -> str:
        """Return a name for a page that is about to be shown."""
        name = secrets.token_urlsafe(16)
        return f"{name}.{self._signature(name)}"

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()[:32]

    def get(self, name: str) -> Session:
        """Return the session of a name.

        Raises:
            RefusedError: the name is not of this server's making.
        """
        first, _, signature = name.partition(".")
        if not first.isascii() or not hmac.compare_digest(signature.encode(), self._signature(first).encode()):
            raise RefusedError(403, "this page is from an earlier start of the demo; reload it")
        now = self._clock()
        with self._lock:
            for idle in [key for key, session in self._sessions.items() if now - session.last_use_s > IDLE_S]:
                del self._sessions[idle]
            session = self._sessions.setdefault(name, Session())
            session.last_use_s = now
            self._sessions.move_to_end(name)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return session


def photograph(data: bytes, config: Mapping[str, Any]) -> np.ndarray:
    """Decode an uploaded file to uint8 (C, H, W), by the rules of the run's own images.

    Raises:
        RefusedError: no image of a known kind, damaged, or too many pixels.
    """
    pixel_format = PixelFormat.of(config)
    try:
        width, height, _ = original_form(io.BytesIO(data))
        if width * height > LARGEST_PIXELS:
            raise RefusedError(
                413,
                f"the image has {width} x {height} pixels; at most {LARGEST_PIXELS // 10**6} million are taken. Make "
                "it smaller",
            )
        return decode_image(io.BytesIO(data), pixel_format)
    except Image.DecompressionBombError as error:
        raise RefusedError(
            413, f"the image has too many pixels; at most {LARGEST_PIXELS // 10**6} million are taken. Make it smaller"
        ) from error
    except DECODING_ERRORS as error:
        raise RefusedError(415, "this is no image that can be read; PNG, JPEG, BMP and WebP are") from error


def drawing(strokes: Any, config: Mapping[str, Any]) -> np.ndarray:
    """Draw strokes, lists of numbers x, y, x, y, ... from 0 to 1, as uint8 (C, H, W).

    Raises:
        RefusedError: they are something else, empty, or too many.
    """
    if (
        not isinstance(strokes, list)
        or not strokes
        or not all(isinstance(stroke, list) and stroke and len(stroke) % 2 == 0 for stroke in strokes)
    ):
        raise RefusedError(400, "a drawing is a list of strokes, each a list of numbers x, y, x, y, ...")
    if sum(map(len, strokes)) > 2 * MOST_POINTS:
        raise RefusedError(413, f"the drawing has more than {MOST_POINTS} points; draw it simpler")
    for value in (value for stroke in strokes for value in stroke):
        # Compared, not converted: an integer may have thousands of digits, more than any float.
        if not isinstance(value, int | float) or isinstance(value, bool) or not -1 <= value <= 2:
            raise RefusedError(400, "a drawing's numbers lie between 0 and 1")
    return draw_strokes([list(zip(stroke[::2], stroke[1::2], strict=True)) for stroke in strokes], config)
