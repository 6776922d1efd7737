"""What the sections of a report share: colours, words for numbers, and series of numbers over epochs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiment_tools.parts.pages import Legend
from experiment_tools.parts.run_reading import Run

MOST_TRACE_POINTS = 400
MOST_LEGENDS = 6
TRAIN, VAL, TEST = "var(--train)", "var(--val)", "var(--test)"


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


def ends(legends: list[Legend]) -> list[Legend]:
    """Return first, middle and last where there are too many: the ramp says the rest."""
    return legends if len(legends) <= MOST_LEGENDS else [legends[0], legends[len(legends) // 2], legends[-1]]


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
