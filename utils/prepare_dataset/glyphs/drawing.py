"""Fonts and icon sets as ink: a character or an icon by its key, black on white, cropped to what is drawn."""

import hashlib
import importlib.metadata
import io
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from xml.etree.ElementTree import ParseError, iterparse

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from utils.episodes.randomness import random_words, uniform
from utils.errors import ConfigError, DataError
from utils.files.archives import DAMAGE
from utils.files.reading import parse_json
from utils.words import printable

SIDE = 64
"""Pixels of what is written."""
CANVAS, EM, LARGEST = 128, 112, 104
"""It is drawn twice as large: the size of a font, and the longest side that ink may have."""
THUMBNAIL, THUMBNAIL_INK = 28, 24
LARGEST_TURN, LARGEST_STRETCH, LARGEST_SHEAR, LARGEST_SHIFT = 0.14, 0.12, 0.12, 6.0
"""Radians; parts; parts; pixels of the canvas."""
LONGEST, DEEPEST = 16, 90
"""What is longer than so many sides, or ems of a font, takes gigabytes; elements in elements, beyond which the renderer
of icons ends with the process.
"""
COPY = 0.02
"""Squared distance of two thumbnails, in parts of their mean square, up to which one is a copy of the other."""

_WHITE = {"L": 255, "RGB": (255, 255, 255)}
_AFFINE = 1
"""Purpose of the random words; 0 is that of `limit_samples`."""
_RESTRICTED = 2
"""Bit of OS/2.fsType: the font may not be embedded without its maker's permission."""

Key = int | str


class FontFace:
    """One font file; its keys are code points."""

    def __init__(self, path: Path):
        from fontTools.ttLib import TTFont, TTLibError  # slow to import, and only needed here

        logging.getLogger("fontTools").setLevel(logging.ERROR)  # it tells of every oddity of a table
        try:
            self._content = path.read_bytes()
            self._font = ImageFont.truetype(io.BytesIO(self._content), EM, layout_engine=ImageFont.Layout.BASIC)
            tables = TTFont(io.BytesIO(self._content), lazy=True)
            names, glyphs = tables["name"], tables.getBestCmap() or {}
            self.may_be_drawn = not tables["OS/2"].fsType & _RESTRICTED if "OS/2" in tables else True
            self.family = names.getBestFamilyName() or path.stem
            first = tables.getGlyphOrder()[0]
        except (*DAMAGE, TTLibError, AssertionError, AttributeError, TypeError) as error:
            raise DataError(f"{printable(path)}: a font that cannot be read ({printable(error)[:200]}).") from error
        self.keys = frozenset(code for code, glyph in glyphs.items() if glyph != first and code < 0x110000)
        """What it has a glyph for; the first glyph, .notdef, is what it shows for all it lacks."""

    @cached_property
    def _signs(self) -> list[Image.Image]:
        """What it draws for what it lacks: the first glyph, or a dotted circle."""
        return [drawn for sign in ("\U0010ffff", "\u25cc") if (drawn := self._drawn(sign)) is not None]

    def ink(self, key: Key) -> Image.Image | None:
        """Return a character, mode L; None where nothing, or the sign for a missing one, is drawn."""
        drawn = self._drawn(chr(int(key)))
        return None if drawn is None or any(_alike(drawn, sign) for sign in self._signs) else drawn

    def _drawn(self, text: str) -> Image.Image | None:
        try:
            left, top, right, bottom = self._font.getbbox(text)
            size = (max(int(right - left), 1), max(int(bottom - top), 1))
            if max(size) > LONGEST * EM:
                return None
            image = Image.new("L", size, 255)
            ImageDraw.Draw(image).text((-left, -top), text, font=self._font, fill=0)
        except (OSError, ValueError):  # FreeType gives up on some glyphs of damaged fonts
            return None
        return _cropped(image)


_REFERS_ELSEWHERE = re.compile(r"href\s*=\s*[\"'](?!#)", re.IGNORECASE)


class IconSet:
    """One icons.json of Iconify; its keys are the names of icons and of their aliases."""

    def __init__(self, path: Path):
        try:
            content = parse_json(path.read_bytes())
            self._icons, self._aliases = content["icons"], content.get("aliases", {})
            self._size = content.get("width", 16), content.get("height", 16)
            self.family = str(content["prefix"])
            shown = {
                name for name, icon in self._icons.items() if isinstance(icon["body"], str) and not icon.get("hidden")
            }
            # Aliases that turn or mirror an icon have no body of their own, and are left out.
            self._parents = {name: alias["parent"] for name, alias in self._aliases.items() if set(alias) == {"parent"}}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"{printable(path)}: an icon set that cannot be read ({printable(error)[:200]})."
            ) from error
        self.may_be_drawn = True
        self.keys = frozenset(shown | {name for name, parent in self._parents.items() if parent in shown})

    def ink(self, key: Key) -> Image.Image | None:
        """Return an icon, mode L where it has no colours of its own, else RGB; None where nothing is drawn."""
        icon = self._icons[self._parents.get(key, key)]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = size = icon.get("width", self._size[0]), icon.get("height", self._size[1])
        if not all(isinstance(side, int | float) and side > 0 for side in size) or max(size) > LONGEST * min(size):
            return None
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black"'
            f' viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        if _REFERS_ELSEWHERE.search(svg):  # the renderer would read any file of this machine
            return None
        try:
            if _depth(svg) > DEEPEST:
                return None
            image = _render_svg()(svg, CANVAS)
        except (ValueError, ParseError):
            return None
        red, *others = image.split()
        if not any(ImageChops.difference(red, other).getbbox() for other in others):
            image = red
        cropped = _cropped(image)
        return None if cropped is None else _fitted(cropped, LARGEST)


def _depth(svg: str) -> int:
    """How many elements are in each other."""
    events = iterparse(io.BytesIO(svg.encode()), ("start", "end"))
    return max(itertools.accumulate(1 if event == "start" else -1 for event, _ in events))


@lru_cache(1)
def _render_svg() -> Callable[[str, int], Image.Image]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ConfigError("icons and emoji are drawn with resvg_py: python -m pip install resvg_py") from error
    return lambda svg, side: Image.open(
        io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=side, background="white", skip_system_fonts=True)))
    ).convert("RGB")


def renderers(*, svg: bool) -> dict[str, str]:
    """Return name -> version of what draws icons, or fonts; other versions may draw other pixels."""
    by = (
        {"resvg_py": importlib.metadata.version("resvg_py")}
        if svg
        else {"freetype": str(features.version("freetype2"))}
    )
    return {"pillow": Image.__version__} | by


def _alike(first: Image.Image, second: Image.Image) -> bool:
    """Whether two drawings are one glyph; FreeType hints the same outline otherwise for another script."""
    sizes = np.abs(np.subtract(first.size, second.size))
    return sizes.max() <= 2 and bool(are_copies(np.stack([thumbnail(first), thumbnail(second)]))[0, 1])


def are_copies(images: np.ndarray) -> np.ndarray:
    """Which of some thumbnails (n, 28, 28) are copies of each other: bool (n, n)."""
    flat = images.reshape(len(images), -1).astype(np.float64)  # whole numbers: exact, in whatever order they are added
    squares = (flat**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * flat @ flat.T
    return distances <= COPY * (squares[:, None] + squares) / 2


def _cropped(image: Image.Image) -> Image.Image | None:
    box = ImageChops.invert(image).getbbox()
    return None if box is None else image.crop(box)


def _fitted(ink: Image.Image, side: int) -> Image.Image:
    scale = side / max(ink.size)
    return ink.resize([max(1, round(scale * length)) for length in ink.size], Image.Resampling.LANCZOS)


def _centred(ink: Image.Image, side: int) -> Image.Image:
    canvas = Image.new(ink.mode, (side, side), _WHITE[ink.mode])
    canvas.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return canvas


def thumbnail(ink: Image.Image | None) -> np.ndarray:
    """Return ink as uint8 (28, 28), 255 where it is black, as large as fits; zeros for none."""
    if ink is None:
        return np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    return 255 - np.asarray(_centred(_fitted(ink, THUMBNAIL_INK).convert("L"), THUMBNAIL))


def picture(ink: Image.Image, changes: np.ndarray | None = None) -> np.ndarray:
    """Return ink as it is written: uint8 (64, 64) or (64, 64, 3), in the middle, never larger than fits.

    Args:
        changes: (6,) in -1..1, from `affine_changes`; None: as it is.
    """
    canvas = _centred(_fitted(ink, LARGEST) if max(ink.size) > LARGEST else ink, CANVAS)
    if changes is not None:
        turn, shift = LARGEST_TURN * changes[0], LARGEST_SHIFT * changes[4:]
        stretch = (
            np.eye(2) + np.diag(LARGEST_STRETCH * changes[1:3]) + np.array([[0, LARGEST_SHEAR * changes[3]], [0, 0]])
        )
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ stretch
        offset = CANVAS / 2 - matrix @ (np.array([CANVAS / 2, CANVAS / 2]) + shift)
        data = [*matrix[0], offset[0], *matrix[1], offset[1]]
        canvas = canvas.transform(
            canvas.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=_WHITE[canvas.mode]
        )
    return np.asarray(canvas.reduce(CANVAS // SIDE))


def affine_changes(seed: int, names: Sequence[str]) -> np.ndarray:
    """Draw, for the image of each name, numbers in -1..1: turn, two stretches, shear, two shifts: (names, 6)."""
    indices = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2 for name in names]
    return 2 * uniform(random_words(seed, "prepared_samples", indices, _AFFINE, 6)) - 1


@lru_cache(400)
def opened(path: Path) -> FontFace | IconSet:
    """Open a font or an icon set, once."""
    return (IconSet if path.suffix == ".json" else FontFace)(path)


def thumbnails(path: Path, keys: Sequence[Key]) -> np.ndarray:
    """Return uint8 (keys, 28, 28); zeros where nothing is drawn."""
    face = opened(path)
    return np.stack([thumbnail(face.ink(key)) for key in keys])
