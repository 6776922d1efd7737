"""Decode image files to uint8 arrays of one size, here or in a process of its own.

The process reads one JSON job per line, writes the pixels straight into the packed file and answers with one JSON line.
It imports neither torch nor the program that started it, so it is up in a tenth of a second.
"""

import io
import json
import math
import os
import signal
import stat
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import PIL
from PIL import ExifTags, Image

Result = TypeVar("Result")

DECODERS = ("PNG", "JPEG", "BMP", "WEBP")
"""The only decoders of Pillow that are used, whatever a file is called."""

DECODER_VERSION = f"1, Pillow {PIL.__version__}"
"""Part of the packed file's fingerprint. The number counts changes of the rules in this file."""

LARGEST_PIXELS = 89_478_485
"""From which on Pillow warns of a decompression bomb. A file of some kilobytes may say that it has more."""

RESIZE_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

MOST_SKIPPED = 4.0
"""Pixels of a side for each that is taken, up to which lines keep together: Omniglot's 105 for 28 are 3.75."""

DECODING_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's error for a broken PNG chunk
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a damaged file, depending on the format and on where the damage is."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what sets an image upright (Exif 2.32, 4.6.4)."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE_CHUNKS = (b"tRNS", b"eXIf", b"acTL")
"""Of a PNG, beside those with a capital, which every PNG needs: transparency, orientation, animation."""


@dataclass(frozen=True)
class PixelFormat:
    """How an image is stored: C x H x W and the filter that brings it to that size."""

    height: int
    width: int
    channels: int
    """1 grey, 3 red green blue."""
    resize_filter: str
    """A name in RESIZE_FILTERS."""

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "PixelFormat":
        """Return how a config, written down, stores images."""
        return cls(keys["image_height"], keys["image_width"], keys["image_channels"], keys["resize_filter"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of a grey image of 16: Pillow's own conversion has changed between versions."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"grey values {values.min()}..{values.max()} do not fit into 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _read(source: Path | BinaryIO, read: Callable[[Image.Image], Result]) -> Result:
    """Return what `read` makes of an image; a PNG is read without what is no part of its picture, if need be."""
    try:
        with Image.open(source, formats=DECODERS) as opened:
            return read(opened)
    except DECODING_ERRORS as error:
        is_of_the_system = isinstance(error, OSError) and error.errno is not None  # no permission, a broken disk
        if is_of_the_system or isinstance(error, Image.DecompressionBombError):
            raise
        if (picture := _png_picture(source)) is None:
            raise
    with Image.open(picture, formats=DECODERS) as opened:
        return read(opened)


def _png_picture(source: Path | BinaryIO) -> BinaryIO | None:
    """Return a PNG file without texts, profiles and the like: Pillow unpacks them, and stops at a bad one.

    None for another file, and for one that was cut off.
    """
    if isinstance(source, Path):
        data = source.read_bytes()
    else:
        source.seek(0)
        data = source.read()
    place = len(_PNG_SIGNATURE)
    if data[:place] != _PNG_SIGNATURE:
        return None
    parts = [_PNG_SIGNATURE]
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind[:1].isupper() or kind in _PICTURE_CHUNKS:
            parts.append(data[place:end])
        place = end
    return io.BytesIO(b"".join(parts)) if parts[-1][4:8] == b"IEND" else None


def _orientation(image: Image.Image) -> int:
    """Return how an image is to be turned, as EXIF numbers it; 1, not at all, where that cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODING_ERRORS:
        return 1


def decode_image(path: Path | BinaryIO, pixel_format: PixelFormat) -> np.ndarray:
    """Decode one file completely and bring it to the wanted size.

    In this order: EXIF orientation; grey or RGB (transparent parts become white, 1-bit images 0 and 255); resize.
    Nothing else of what a file tells beside its picture is read, so none of it can be wrong.

    Returns:
        uint8 (C, H, W).
    Raises:
        One of DECODING_ERRORS: not an image, damaged, animated, too large, or a kind of pixel that has no rule.
    """
    if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError("no regular file")
    try:
        image = _read(path, _upright)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"more than {LARGEST_PIXELS / 1e6:.0f} million pixels, as of a decompression bomb. If it is a photograph, "
            f"make it smaller: {pixel_format.width} x {pixel_format.height} pixels of it are used"
        ) from error
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("image of floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Before the resize: Pillow takes the nearest pixel for 1-bit and palette images, whatever filter is given.
    image = image.convert("L" if pixel_format.channels == 1 else "RGB")
    if image.size != (pixel_format.width, pixel_format.height):
        image = image.resize((pixel_format.width, pixel_format.height), RESIZE_FILTERS[pixel_format.resize_filter])
    pixels = np.asarray(image)
    return pixels[None] if pixel_format.channels == 1 else pixels.transpose(2, 0, 1)


def resize_planes(pixels: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
    """Bring (n, C, h, w), uint8 or float32, to (n, C, H, W) as `decode_image` brings a file to its size."""
    planes = pixels.reshape(-1, *pixels.shape[2:])
    resized = [Image.fromarray(plane).resize((width, height), RESIZE_FILTERS[resize_filter]) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized]).reshape(*pixels.shape[:2], height, width)


def thin_lines_text(sides: tuple[int, int], pixel_format: PixelFormat) -> str:
    """Return what becomes of thin lines where images of (h, w) pixels are resized to a format by taking the nearest
    pixel; empty where they are no more than about as large as Omniglot's, which are made for it.
    """
    wanted = pixel_format.height, pixel_format.width
    skipped = max(side / goal for side, goal in zip(sides, wanted, strict=True))
    if pixel_format.resize_filter != "nearest" or skipped <= MOST_SKIPPED:
        return ""
    return (
        f"{sides[0]} x {sides[1]} pixels become {wanted[0]} x {wanted[1]} by taking the nearest one, as in training "
        f'("resize_filter"): lines thinner than {math.ceil(skipped)} pixels break or vanish. Make the images smaller '
        f"first, to about {4 * wanted[0]} x {4 * wanted[1]}, by a filter that averages"
    )


def _upright(opened: Image.Image) -> Image.Image:
    if opened.width * opened.height > LARGEST_PIXELS:  # of which Pillow only warns
        raise Image.DecompressionBombError
    if opened.format in ("PNG", "WEBP") and getattr(opened, "is_animated", False):
        raise ValueError("animated image")
    # All of it, so that a truncated file is an error; the reference accepted it silently.
    opened.load()
    # Not Pillow's exif_transpose, which writes all EXIF anew and fails at what it cannot write.
    method = _TURNS.get(_orientation(opened))
    return opened.copy() if method is None else opened.transpose(method)


def original_form(path: Path | BinaryIO) -> tuple[int, int, str]:
    """Return width, height, and grey or colour of an image by its file's head, turned by its EXIF orientation.

    Raises:
        One of DECODING_ERRORS.
    """

    def form(opened: Image.Image) -> tuple[int, int, str]:
        grey = opened.mode in ("1", "L", "LA", "I", "I;16", "F")
        width, height = reversed(opened.size) if _orientation(opened) in (5, 6, 7, 8) else opened.size
        return width, height, "grey" if grey else "colour"

    return _read(path, form)


def one_colour_reason(path: Path) -> str:
    """Return why a file may have become an image of one colour."""

    def reason(opened: Image.Image) -> str:
        if opened.mode.startswith("I"):
            return "16-bit grey below 256" if np.asarray(opened).max() < 256 else "16-bit grey"
        if opened.has_transparency_data:
            return "transparent"
        ranges = opened.convert("RGB").getextrema()
        return "so is the file" if all(low == high for low, high in ranges) else "lost at this size"

    try:
        return _read(path, reason)
    except DECODING_ERRORS:  # gone since it was packed
        return "cannot be read now"


def decode_into_file(
    folder: Path, files: Iterable[str], pixel_format: PixelFormat, descriptor: int, first_rank: int
) -> list[tuple[str, str]]:
    """Decode files in their order and write them, one after the other, from place `first_rank` of the packed file on.

    Args:
        files: paths relative to `folder`.
        descriptor: of the packed file, open for writing.
    Returns:
        (file, reason) of every file that could not be decoded; its place stays black.
    Raises:
        OSError: the packed file cannot be written.
    """
    files = list(files)
    pixels = np.zeros((len(files), *pixel_format.shape), dtype=np.uint8)
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, file in enumerate(files):
            try:
                pixels[i] = decode_image(folder / file, pixel_format)
            except DECODING_ERRORS as error:
                problems.append((file, _reason(error)))
    image_bytes = pixels[0].nbytes if files else 0
    view, place = memoryview(pixels).cast("B"), first_rank * image_bytes
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written
    return problems


def _reason(error: BaseException) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return f"not a readable image ({', '.join(DECODERS)} are)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def job(folder: Path, files: list[str], pixel_format: PixelFormat, packed_file: Path, first_rank: int) -> str:
    """Return one line for a decoding process: the arguments of `decode_into_file` as JSON."""
    return json.dumps([str(folder), files, asdict(pixel_format), str(packed_file), first_rank])


def main() -> None:
    """Answer one job per line with {"problems": [...]} or {"error": [errno, text]} until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; when the parent ends, so does our input
    for line in sys.stdin:
        folder, files, pixel_format, packed_file, first_rank = json.loads(line)
        try:
            with open(packed_file, "r+b") as packed:
                form, descriptor = PixelFormat(**pixel_format), packed.fileno()
                answer = {"problems": decode_into_file(Path(folder), files, form, descriptor, first_rank)}
        except OSError as error:
            answer = {"error": [error.errno, error.strerror]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
