"""What the parts of a report are made of, and words for numbers. The template `report.html.jinja` lays them out."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiment_tools.parts.run_reading import Run
from experiment_tools.report.svg import Markup

MOST_TRACE_POINTS = 400
TRAIN, VAL, TEST = "var(--train)", "var(--val)", "var(--test)"


@dataclass(frozen=True)
class Legend:
    """A colour or line and what it stands for."""

    text: str
    colour: str
    look: str = "solid"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, if there is one; `code` for what is typed."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    code: bool = False


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
        """The same, with a sentence about what is missing."""
        self.missing.append(what)
        return self


def breakable(name: str) -> Markup:
    """Return a parameter's name, escaped, that may go on in the next line after a dot or underscore."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", html.escape(name)))


def percent(share: float | None, digits: int = 1) -> str:
    """Return '78.3 %' of 0.783."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def percent_tick(share: float) -> str:
    """Return '80 %', '82.5 %': no more digits than a tick needs."""
    return f"{100 * share:.4g} %"


def short(value: float) -> str:
    """Return four significant digits, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """'4.6 s', '3 min 20 s', '1 h 04 min', '2 d 03 h'."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24:02} h"


def duration_tick(seconds: float) -> str:
    """Return '40 s', '1.5 min', '2 h': short enough for an axis."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def queries_per_class(count: int | str) -> str:
    """Return '1 query per class', '15 queries per class'."""
    return f"{count} {'query' if count == 1 else 'queries'} per class"


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """Return every k-th of the values and the last, so that at most about `most` are left."""
    if len(values) <= most:
        return list(values)
    step = -(-len(values) // most)
    kept = list(values[::step])
    return kept if kept[-1] is values[-1] else [*kept, values[-1]]


def series_of(
    entries: Sequence[Mapping[str, Any]], name: str, shown: Callable[[float | None], float | None] = lambda value: value
) -> list[tuple[float, float | None]]:
    """(epoch, value of a column as it is shown)."""
    return [(entry["epoch"], shown(entry.get(name))) for entry in entries]


def trace(run: Run, name: str) -> list[tuple[float, float | None]]:
    """(place in epochs, value) of a metric in the lines of metrics.jsonl, thinned."""
    per_epoch = run.config.get("total_iter_per_epoch")
    lines = thinned([line for line in run.iterations if name in line], MOST_TRACE_POINTS)
    return [(line["iteration"] / per_epoch, line[name]) for line in lines] if per_epoch else []
