"""Charts as inline SVG: sizes in one place, colours as CSS variables of the page, every text escaped.

A chart is drawn for a width of 360 units, so that its text stays readable on a phone and two or three fit side by
side elsewhere.
"""

import html
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from utils.words import printable

WIDTH, HEIGHT = 360, 214
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 12, 34
MOST_TOOLTIPS = 160

STANDALONE = (
    "svg { --ink: #1b2330; --ramp-start: #5ec0c9; --ramp-end: #6d28a8; background: #fff; font-family: sans-serif } "
    "text { font-size: 10.5px; fill: #4b5565 } .heat text { font-size: 15px } .rule { stroke: #d5d9e0 } "
    ".line { fill: none; stroke-width: 2 }"
)

Point = tuple[float, float | None]


class Markup(str):
    """Text that is already HTML: what a template must not escape again."""

    def __html__(self) -> str:
        return self


def escaped(text: object) -> str:
    """Return a text as HTML that shows it: markup and control characters in it are only letters."""
    return html.escape(printable(text))


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """Return `<name attributes>content</name>`; attribute values are escaped, content is not.

    `class_` is class, `_` is `-`.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escaped(text)}"')
    return f"<{' '.join(words)}>{content}</{name}>"


@dataclass(frozen=True)
class Series:
    """A line: its points (None: a gap), how it looks and, where given, a band around it.

    Attributes:
        colour: a CSS colour, such as var(--val).
        look: "solid", "dashed", or "faint" for what stands behind the others; faint lines have no tooltips.
        dots: draw the points as well.
    """

    name: str
    points: Sequence[Point]
    colour: str
    look: str = "solid"
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word at it."""

    x: float
    text: str
    colour: str = "var(--ink)"


@dataclass(frozen=True)
class Axes:
    """How numbers become places and words.

    Attributes:
        y_text: of a value, in ticks and tooltips.
        y_range: fixed limits; None: those of the data.
        from_zero: begin at zero.
        whole_x: ticks at whole numbers only.
        x_title: what precedes a whole x in tooltips.
        shades: (from x, to x, CSS colour) of the background.
    """

    x_label: str
    y_text: Callable[[float], str]
    x_title: str = ""
    y_range: tuple[float | None, float | None] = (None, None)
    from_zero: bool = False
    log_y: bool = False
    whole_x: bool = True
    diagonal: bool = False
    shades: Sequence[tuple[float, float, str]] = field(default_factory=tuple)


def line_chart(series: Sequence[Series], axes: Axes, label: str, marks: Sequence[Mark] = ()) -> Markup | None:
    """Draw lines over a common x; None where there is no point at all.

    Args:
        label: what the chart shows, for those who cannot see it.
    """
    series = [line for line in series if any(_drawable(y, axes) for _, y in line.points)]
    if not series:
        return None
    xs = sorted({x for line in series for x, y in line.points if _drawable(y, axes)})
    ys = [y for line in series for _, y in line.points if _drawable(y, axes)]
    ys += [edge for line in series for _, low, high in line.band for edge in (low, high) if _drawable(edge, axes)]
    place_x = _scale(xs[0], xs[-1], LEFT + 4, WIDTH - RIGHT - 4)
    low, high = _limits(ys, axes)
    scaled = math.log10 if axes.log_y else float
    place_y = _scale(scaled(low), scaled(high), HEIGHT - BOTTOM, TOP)

    def at(x: float, y: float) -> str:
        return f"{place_x(x):.1f},{place_y(scaled(y)):.1f}"

    parts = [
        element("rect", x=place_x(max(a, xs[0])), y=TOP,
                width=max(0.0, place_x(min(b, xs[-1])) - place_x(max(a, xs[0]))), height=HEIGHT - TOP - BOTTOM,
                fill=colour, class_="shade")
        for a, b, colour in axes.shades
        if a < xs[-1] and b > xs[0]
    ]  # fmt: skip
    values = _log_ticks(low, high) if axes.log_y else ticks(low, high, 4)
    parts += _rules((place_y(scaled(value)), axes.y_text(value)) for value in values)
    x_ticks = ticks(xs[0], xs[-1], 5, whole=axes.whole_x)
    parts += _below(((place_x(value), _number(value)) for value in x_ticks), axes.x_label)
    if axes.diagonal:
        start, end = max(low, xs[0]), min(high, xs[-1])
        parts.append(element("path", d=f"M{at(start, start)} L{at(end, end)}", class_="diagonal"))
    for line in series:
        if line.band:
            band = [(x, max(a, low), min(b, high)) for x, a, b in line.band]
            outline = [at(x, b) for x, _, b in band] + [at(x, a) for x, a, _ in reversed(band)]
            parts.append(element("path", d="M" + " L".join(outline) + " Z", fill=line.colour, class_="band"))
    for line in series:
        for stretch in _stretches(line.points, axes):
            parts += _drawn(line, [at(x, min(max(y, low), high)) for x, y in stretch])
    for mark in marks:
        x = place_x(mark.x)
        parts += _marked(x, TOP, TOP + 9, mark, points_left=x > WIDTH / 2)
    return _svg(parts, label, _tooltips(series, axes, place_x))


def _drawn(line: Series, places: Sequence[str]) -> list[str]:
    """Draw a stretch of a line without gaps, given as "x,y" of its points."""
    parts = []
    if len(places) > 1:
        parts.append(element("path", d="M" + " L".join(places), stroke=line.colour, class_=f"line {line.look}"))
    if line.dots or len(places) == 1:
        dots = (place.split(",") for place in places)
        parts += [element("circle", cx=x, cy=y, r=2.6, fill=line.colour, class_="dot") for x, y in dots]
    return parts


def area_chart(names: Sequence[str], rows: Sequence[tuple[float, Sequence[float]]], colours: Sequence[str], axes: Axes,
               label: str) -> Markup | None:  # fmt: skip
    """Draw shares stacked from 0 to 1 over x.

    Args:
        rows: (x, the share of each name).
    """
    if not rows:
        return None
    if len(rows) == 1:  # a stripe as wide as the chart
        rows = [(rows[0][0] - 0.5, rows[0][1]), (rows[0][0] + 0.5, rows[0][1])]
    place_x = _scale(rows[0][0], rows[-1][0], LEFT + 4, WIDTH - RIGHT - 4)
    place_y = _scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts, below = [], [0.0] * len(rows)
    for index, colour in enumerate(colours):
        above = [low + row[1][index] for low, row in zip(below, rows, strict=True)]
        upper = [f"{place_x(x):.1f},{place_y(y):.1f}" for (x, _), y in zip(rows, above, strict=True)]
        lower = [f"{place_x(x):.1f},{place_y(y):.1f}" for (x, _), y in zip(rows, below, strict=True)]
        parts.append(element("path", d="M" + " L".join(upper + lower[::-1]) + " Z", fill=colour, class_="area"))
        below = above
    parts += [_beside(place_y(value), axes.y_text(value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    x_ticks = ticks(rows[0][0], rows[-1][0], 5, whole=True)
    parts += _below(((place_x(value), _number(value)) for value in x_ticks), axes.x_label)
    series = [
        Series(name, [(x, shares[index]) for x, shares in rows], colours[index]) for index, name in enumerate(names)
    ]
    return _svg(parts, label, _tooltips(series, axes, place_x))


def picture_chart(
    address: str, xs: Sequence[float], y_ticks: Sequence[tuple[float, str]], x_label: str, label: str
) -> Markup:
    """Draw a picture of one column of pixels per x between axes.

    Args:
        address: of the picture, with its data.
        y_ticks: (share of the height from below, text).
    """
    half = (xs[-1] - xs[0]) / (2 * max(len(xs) - 1, 1)) or 0.5  # of a column
    place_x = _scale(xs[0] - half, xs[-1] + half, LEFT, WIDTH - RIGHT)
    place_y = _scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    size = {"x": LEFT, "y": TOP, "width": WIDTH - LEFT - RIGHT, "height": HEIGHT - TOP - BOTTOM}
    image = element("image", href=address, preserveAspectRatio="none", class_="heat", **size)
    x_ticks = [(place_x(value), _number(value)) for value in ticks(xs[0], xs[-1], 5, whole=True)]
    return _svg([*_rules((place_y(y), text) for y, text in y_ticks), image, *_below(x_ticks, x_label)], label, None)


def bar_chart(
    bars: Sequence[tuple[str, float, str]],
    x_label: str,
    label: str,
    colour: str,
    mark: tuple[float, str] | None = None,
    *,
    centred: bool = False,
) -> Markup:
    """Draw upright bars over an axis from 0 to 1.

    Args:
        bars: (text of the tooltip, height, tick below or ""), equally wide.
        mark: (share of the width, word) of a vertical line.
        centred: a tick stands for its bar, not for where that begins.
    """
    most = max((height for _, height, _ in bars), default=0) or 1
    place_y = _scale(0.0, float(most), HEIGHT - BOTTOM, TOP + 6)
    place_x = _scale(0.0, float(len(bars)), LEFT, WIDTH - RIGHT)
    parts = _rules((place_y(value), _number(value)) for value in ticks(0.0, float(most), 4, whole=True))
    width = place_x(1.0) - place_x(0.0) - 1.5
    for index, (text, height, _) in enumerate(bars):
        y, tip = place_y(float(height)), element("title", escaped(text))
        size = {"width": width, "height": HEIGHT - BOTTOM - y, "rx": 1.5}
        parts.append(element("rect", tip, x=place_x(float(index)) + 0.75, y=y, **size, fill=colour, class_="bar"))
    if mark is not None:
        line = Mark(place_x(mark[0] * len(bars)), mark[1])
        parts += _marked(line.x, TOP - 4, TOP + 3, line, points_left=mark[0] > 0.5)
    shift = 0.5 if centred else 0.0
    words = ((place_x(index + shift), tick) for index, (_, _, tick) in enumerate(bars) if tick)
    return _svg([*parts, *_below(words, x_label)], label, None)


def _text(content: str, x: float, y: float, kind: str, anchor: str, style: str | None = None) -> str:
    return element("text", escaped(content), x=x, y=y, style=style, class_=kind, text_anchor=anchor)


def _beside(y: float, text: str) -> str:
    """Draw a tick of the upright axis."""
    return _text(text, LEFT - 6, y + 3.5, "tick", "end")


def _rules(values: Iterable[tuple[float, str]]) -> list[str]:
    """Lines across the chart with their ticks: (y, text)."""
    return [
        part
        for y, text in values
        for part in (element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"), _beside(y, text))
    ]


def _below(values: Iterable[tuple[float, str]], label: str) -> list[str]:
    """Draw the ticks of the lower axis, (x, text), and its label."""
    words = [_text(text, x, HEIGHT - BOTTOM + 14, "tick", "middle") for x, text in values]
    return [*words, _text(label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "axis", "middle")]


def _marked(x: float, top: float, word_y: float, mark: Mark, *, points_left: bool) -> list[str]:
    """Draw a vertical line from `top` down, and its word beside it."""
    anchor, shift = ("end", -5) if points_left else ("start", 5)
    return [
        element("line", x1=x, x2=x, y1=top, y2=HEIGHT - BOTTOM, stroke=mark.colour, class_="mark"),
        _text(mark.text, x + shift, word_y, "marktext", anchor, f"fill:{mark.colour}"),
    ]


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """Draw a line without axes, as wide as its place; it begins and ends at its own lowest and highest value."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(value for _, value in known), max(value for _, value in known)
    if high - low < 1e-3 * max(abs(low), abs(high)):  # rounding and the like
        low, high = low - 1.0, high + 1.0
    place_x, place_y = _scale(0.0, float(len(values) - 1), 1.0, 59.0), _scale(low, high, 15.0, 2.0)
    points = " ".join(f"{place_x(index):.1f},{place_y(value):.1f}" for index, value in known)
    line = element("polyline", points=points, class_="spark")
    return Markup(
        element(
            "svg",
            line,
            viewBox="0 0 60 17",
            preserveAspectRatio="none",
            class_="sparkline",
            role="img",
            aria_label=label,
        )
    )


def strip(cells: Sequence[tuple[str, str]], label: str) -> Markup:
    """Draw cells in a row, as wide as their place: (CSS colour, text of the tooltip)."""
    rects = [
        element("rect", element("title", escaped(text)), x=index, y=0, width=1.02, height=1, fill=colour)
        for index, (colour, text) in enumerate(cells)
    ]
    box = f"0 0 {len(cells)} 1"
    return Markup(
        element(
            "svg", "".join(rects), viewBox=box, preserveAspectRatio="none", class_="strip", role="img", aria_label=label
        )
    )


def ramp(index: int, count: int) -> str:
    """Return the CSS colour of the index-th of `count` ordered things."""
    share = 100 * index / max(count - 1, 1)
    return f"color-mix(in oklch, var(--ramp-end) {share:.0f}%, var(--ramp-start))"


def standalone(content: str, width: float, height: float) -> str:
    """Return a file of its own that shows parts of a page, as a page of the project would in the light."""
    style = element("style", STANDALONE)
    return element("svg", style + content, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}") + "\n"


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return about `count` round numbers from low to high."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    decades = [10.0**power for power in powers][:: max(1, len(powers) // 4)]
    if len(decades) > 2:
        return decades
    between = [factor * 10.0**power for power in range(powers.start - 1, powers.stop) for factor in (1, 2, 5)]
    between = [value for value in between if low <= value <= high]
    return between if len(between) > 1 else [value for value in ticks(low, high, 3) if value > 0]


def _limits(ys: Sequence[float], axes: Axes) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if axes.log_y:
        low, high = low / 1.15, high * 1.15
    else:
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    if axes.from_zero:
        low = 0.0
    wanted_low, wanted_high = axes.y_range
    low = low if wanted_low is None else max(low, wanted_low)
    high = high if wanted_high is None else min(high, wanted_high)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _drawable(y: float | None, axes: Axes) -> bool:
    return y is not None and math.isfinite(y) and (y > 0 or not axes.log_y)


def _stretches(points: Iterable[Point], axes: Axes) -> list[list[tuple[float, float]]]:
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _drawable(y, axes):
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:g}"


def _tooltips(series: Sequence[Series], axes: Axes, place_x: Callable[[float], float]) -> str | None:
    named = [line for line in series if line.look != "faint"]
    at = {line.name: dict(line.points) for line in named}
    xs = sorted({x for line in named for x, _ in line.points})
    if not xs or len(xs) > MOST_TOOLTIPS:
        return None
    rows = [
        [round(place_x(x), 1), f"{axes.x_title} {_number(x)}".strip(),
         [[line.name, line.colour, axes.y_text(y)] for line in named if _drawable(y := at[line.name].get(x), axes)]]
        for x in xs
    ]  # fmt: skip
    return json.dumps(rows, separators=(",", ":"))


def _svg(parts: Sequence[str], label: str, tooltips: str | None) -> Markup:
    box = f"0 0 {WIDTH} {HEIGHT}"
    return Markup(
        element("svg", "".join(parts), viewBox=box, class_="chart", role="img", aria_label=label, data_tips=tooltips)
    )
