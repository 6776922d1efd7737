"""A comparison as one page that loads nothing: results, differences, curves."""

from collections.abc import Sequence

from experiment_tools.compare.comparison import Comparison, Difference
from experiment_tools.compare.figures import Picture
from experiment_tools.compare.tables import (
    BASELINE_CAPTION,
    DIFFERENCE_CAPTION,
    NOTHING_TESTED,
    VALIDATION_CAPTION,
    Rows,
    accuracy_table,
    baseline_table,
    caption,
    difference_table,
    notes,
    validation_table,
)
from experiment_tools.parts.pages import Legend, Section, Table, page_html

MOST_PAIRS = 30
"""Shown at once; more are folded away."""
MOST_LINES = 12
"""Of a chart of half the width."""


def html_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Return the page."""
    results = Section("results", "Results", caption(comparison) if comparison.cells else NOTHING_TESTED)
    if comparison.cells:
        _add_table(results, comparison, accuracy_table(comparison))
    sections = [results]
    if validated := validation_table(comparison):
        sections.append(Section("validation", "Not tested", VALIDATION_CAPTION))
        _add_table(sections[-1], comparison, validated)
    if comparison.differences:
        differences = Section("differences", "Differences", DIFFERENCE_CAPTION)
        head, *rows = difference_table(comparison)
        rows = [
            [row[0], (row[1], _between(comparison, difference)), *row[2:]]
            for row, difference in zip(rows, comparison.differences, strict=True)
        ]
        kind = "table" if len(rows) <= MOST_PAIRS else "folded"
        differences.add(
            f"{len(rows)} pairs" if len(rows) > 1 else "", Table(rows, head, numbers=True), kind=kind, size="wide"
        )
        sections.append(differences)
    if beside := baseline_table(comparison):
        baselines = Section("baselines", "The same tasks, otherwise", BASELINE_CAPTION)
        head, *rows = beside
        baselines.add("", Table(rows, head, numbers=True), kind="table", size="wide")
        sections.append(baselines)
    curves = Section("curves", "Curves", "")
    for picture in pictures:
        for panel in picture.panels:
            legend = [Legend(line.name, line.colour, line.look) for line in panel.lines() if line.look != "point"]
            title = picture.title if len(picture.panels) == 1 else f"{picture.title}: {panel.title}"
            size = "half" if len(legend) <= MOST_LINES else "wide"
            curves.add(title, panel.chart(), legend=legend, note=f"{panel.y_label}. {picture.note}", size=size)
    known = Section("notes", "Notes", "")
    known.add("", notes(comparison), kind="lines", size="wide")
    return page_html("Comparison of runs", [*sections, curves, known])


def _add_table(section: Section, comparison: Comparison, table: Rows) -> None:
    """Add a table, with what its numbered methods stand for."""
    head, *rows = table
    place = head.index("method")
    rows = [[*row[:place], (row[place], _settings(comparison, row[place])), *row[place + 1 :]] for row in rows]
    section.add("", Table(rows, head, numbers=True), kind="table", size="wide")


def _settings(comparison: Comparison, label: str) -> str:
    """Return what a row's number stands for; nothing where its label says it."""
    text = comparison.rows[label].settings_text
    return "" if text in label else text


def _between(comparison: Comparison, difference: Difference) -> str:
    """Return what differs between the rows of a pair."""
    one, other = (dict(comparison.rows[label].settings) for label in (difference.first, difference.second))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {one.get(key, '–')} / {other.get(key, '–')}" for key in keys)
