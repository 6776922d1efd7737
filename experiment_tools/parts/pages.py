"""Pages, tables and pictures that tools write."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from utils.files.atomic_files import write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = list[list[str]]
"""Rows of text, the heading first."""


TEXT_COLUMNS = ("method", "tasks", "pair", "test", "note")


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.35rem 0.8rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #8886;
  vertical-align: top; }
td.text { white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
th { border-bottom: 2px solid #888a; vertical-align: bottom; }
.note { font-size: 0.88rem; opacity: 0.8; max-width: 48rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; max-width: 46rem; height: auto; background: #fff;
  border-radius: 6px; }
"""


def page(title: str, body: str) -> str:
    """Return a whole HTML document; `body` is HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def html_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    kinds = ["<td class=text>" if name in TEXT_COLUMNS else "<td>" for name in heading]
    body = "".join(
        "<tr>" + "".join(f"{kind}{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def as_image(pixels: np.ndarray) -> Image.Image:
    """Pixels, uint8 (C, H, W), grey or colour, as a picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def data_address(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A data: address of a picture, so that a page holds it itself; `options` are of the kind of file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def svg_text(figure: "Figure") -> str:
    """Return the `<svg>` element alone, to stand in a page; text stays text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fixed", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :].strip()


def write_png(figure: "Figure", path: Path) -> None:
    """Write a PNG file; raise StorageError where there is no space or permission."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=140)
    write_bytes_atomically(path, data.getvalue())
