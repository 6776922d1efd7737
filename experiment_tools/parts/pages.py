"""The pages that tools write, of one style: sections of figures and tables in one file that loads nothing."""

import base64
import hashlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from experiment_tools.parts.svg import Markup, escaped
from utils.errors import ConfigError
from utils.files.atomic_files import write_bytes_atomically
from utils.machine.packages import set_up_command
from utils.words import printable_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WITHOUT = {"lead": "", "head": None, "as_of": "", "verdict": (), "command": "", "problems": (), "footer": ""}
"""What a page may have above and below its sections."""
FOLDER = Path(__file__).resolve().parent
OF_THE_PAGE = {"#000000": "var(--ink)", "#ffffff": "var(--card)", "#b0b0b0": "var(--line)"}
"""Colours of matplotlib -> those of the page, which turn with a dark screen."""


@dataclass(frozen=True)
class Legend:
    """A colour or line and what it stands for."""

    text: str
    colour: str
    look: str = "solid"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, if there is one; a cell may be a pair: text, and more in small letters.

    Attributes:
        code: for what is typed.
        numbers: cells stay in one line each, but for the small letters and the last one.
    """

    rows: Sequence[Sequence[str | tuple[str, str]]]
    head: Sequence[str] = ()
    code: bool = False
    numbers: bool = False


@dataclass(frozen=True)
class Figure:
    """One card of a section.

    Attributes:
        kind: which macro of the template draws `content`: "chart" (an SVG), "rates", "strips", "episodes",
            "confusion", "bars", "pairs", "models", "split", "table".
        note: how to read it, in a sentence.
        size: share of the page's width: "quarter", "third", "half", "two-thirds" or "wide"; more on narrow screens.
    """

    title: str
    content: Any
    kind: str = "chart"
    legend: Sequence[Legend] = ()
    note: str = ""
    size: str = "third"


@dataclass
class Section:
    """A part of the report. A figure that has nothing to show is left out, and `missing` says what it lacks."""

    id: str
    title: str
    lead: str
    short: str = ""
    """Of the title, for the bar at the top."""
    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, title: str, content: Any, missing: str = "", **more: Any) -> None:
        """Add a figure, or, where `content` is empty, the sentence about what is missing."""
        if content is None or (not isinstance(content, str) and hasattr(content, "__len__") and len(content) == 0):
            if missing:
                self.missing.append(f"{title}: {missing}")
        else:
            self.figures.append(Figure(title, content, **more))

    def lacking(self, what: str) -> "Section":
        """Return the same, with a sentence about what is missing."""
        self.missing.append(what)
        return self


def breakable(name: str) -> Markup:
    """Return a parameter's name, escaped, that may go on in the next line after a dot or underscore."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", escaped(name)))


def page_html(title: str, sections: Sequence[Section], **parts: Any) -> str:
    """Return a whole page.

    Args:
        parts: of `WITHOUT`, those that it has.
    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(f"pages need jinja2, which {sys.executable} lacks. Run: {set_up_command()}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else printable_text(value),
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    style, script = ((FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        WITHOUT | parts, title=title, sections=sections, style=Markup(style), script=Markup(script),
        script_digest=digest,
    ).lstrip()  # fmt: skip


def as_image(pixels: np.ndarray) -> Image.Image:
    """Pixels, uint8 (C, H, W), grey or colour, as a picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def data_address(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """Return a data: address of a picture, so that a page holds it itself; `options` are of the kind of file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def svg_text(figure: "Drawing") -> Markup:
    """Return the `<svg>` element alone, in the colours of the page; text stays text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fixed", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    content = text.getvalue()
    for colour, variable in OF_THE_PAGE.items():
        content = content.replace(colour, variable)
    return Markup(content[content.index("<svg") :].strip())


def write_png(figure: "Drawing", path: Path) -> None:
    """Write a PNG file; raise StorageError where there is no space or permission."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=140)
    write_bytes_atomically(path, data.getvalue())
