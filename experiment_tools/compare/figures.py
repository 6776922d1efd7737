"""Learning curves of several runs: bands over seeds, and four panels per method and way; as matplotlib figures for
files, and as charts for the page.

Figures are made without pyplot: no window, no state, no backend of the user's.
"""

import itertools
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiment_tools.compare.comparison import Column, Comparison, training_column
from experiment_tools.parts.run_reading import Run
from experiment_tools.parts.svg import Axes, Markup, Series, line_chart

COLOURS = (
    "#2a78c2", "#d9622b", "#2a8f5c", "#8a4fb0", "#b8860b", "#c23b5a", "#4aa0a8", "#808080", "#9a6a3c", "#c46bc4",
)  # fmt: skip
"""Of the lines, on white and on a dark page."""
LOOKS = {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}
"""Of the lines when the colours are used up: in the page, in matplotlib."""
STYLES = [(colour, look) for look in LOOKS for colour in COLOURS]
LETTERS_PER_LINE = 100
"""That fit below a figure."""
PANELS = (("train", "loss"), ("val", "loss"), ("train", "accuracy"), ("val", "accuracy"))
SPLIT_NAMES = {"train": "Training", "val": "Validation"}


@dataclass(frozen=True)
class Curve:
    """Mean over runs of a column of summary_statistics, and its deviation over them where there are several."""

    epochs: list[int]
    mean: list[float]
    deviation: list[float]
    """Sample standard deviation; 0 where one run alone has the epoch."""
    n_runs: int


def mean_curve(runs: Sequence[Run], name: str) -> Curve:
    """Return the mean per epoch over the runs that have it; cells without a number are left out."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for row in run.rows:
            if row.get(name) is not None:
                values.setdefault(int(row["epoch"]), []).append(float(row[name]))
    epochs = sorted(values)
    deviation = [statistics.stdev(values[epoch]) if len(values[epoch]) > 1 else 0.0 for epoch in epochs]
    return Curve(epochs, [statistics.fmean(values[epoch]) for epoch in epochs], deviation, len(runs))


@dataclass(frozen=True)
class Panel:
    """One chart: a line per group of runs, and single points of the test.

    Attributes:
        groups: label -> runs of different seeds.
        points: label -> (epoch, value), where there is one.
    """

    title: str
    split: str
    metric: str
    groups: Mapping[str, Sequence[Run]]
    points: Mapping[str, tuple[float, float]]

    @property
    def y_label(self) -> str:
        """What the numbers are; rows of a run call both an accuracy and minus the mean squared error one."""
        return "Loss" if self.metric == "loss" else "Mean squared error" if self._is_regression else "Accuracy in %"

    @property
    def scale(self) -> float:
        """Factor of the rows' numbers."""
        return 1.0 if self.metric == "loss" else -1.0 if self._is_regression else 100.0

    @property
    def _is_regression(self) -> bool:
        return any(run.is_regression for runs in self.groups.values() for run in runs)

    def lines(self) -> list[Series]:
        """Return each group's mean, with a band of one deviation over its seeds, and the points."""
        lines = []
        for (label, runs), (colour, look) in zip(self.groups.items(), itertools.cycle(STYLES), strict=False):
            curve = mean_curve(runs, f"{self.split}_{self.metric}_mean")
            rows = zip(curve.epochs, curve.mean, curve.deviation, strict=True)
            scaled = [(x, self.scale * mean, abs(self.scale) * deviation) for x, mean, deviation in rows]
            band = [(x, y - width, y + width) for x, y, width in scaled] if any(curve.deviation) else ()
            name = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
            lines.append(Series(name, [(x, y) for x, y, _ in scaled], colour, look, len(scaled) < 30, band))
            if label in self.points:
                x, y = self.points[label]
                lines.append(Series(f"{label}, test", [(x, self.scale * y)], colour, "point"))
        return lines

    def chart(self) -> Markup | None:
        """Draw it for the page."""
        axes = Axes("epoch", "{:.4g}".format, "epoch")
        return line_chart(self.lines(), axes, f"{self.y_label} over epochs, {self.title}")


def figure_of(panels: Sequence[Panel], title: str) -> Figure:
    """Draw one panel, or four, with one legend below them all."""
    side = 1 if len(panels) == 1 else 2
    names = [line.name for line in panels[0].lines()]
    n_columns = max(1, LETTERS_PER_LINE // (max(map(len, names), default=0) + 8))
    height = (4.2, 7.0)[side - 1] + 0.22 * -(-len(names) // n_columns)
    figure = Figure(figsize=((7.4, 10.0)[side - 1], height), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(side, side, squeeze=False).flat, strict=True):
        for line in panel.lines():
            _draw(axes, line)
        _dress(axes, panel.y_label, panel.title if len(panels) > 1 else "")
    if any(panel.points for panel in panels):
        axes.plot([], [], "o", color="white", markeredgecolor="black", label="test")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=n_columns, frameon=False,
                  fontsize=9)  # fmt: skip
    figure.suptitle(textwrap.fill(title, LETTERS_PER_LINE - 20), fontsize=11)
    return figure


def _draw(axes: Any, line: Series) -> None:
    x, y = zip(*line.points, strict=True) if line.points else ((), ())
    if line.look == "point":
        axes.plot(x, y, "o", color=line.colour, markeredgecolor="black", markersize=7, zorder=3)
        return
    marker = "." if line.dots else None
    axes.plot(x, y, LOOKS[line.look], color=line.colour, label=line.name, linewidth=1.8, marker=marker)
    if line.band:
        axes.fill_between(*zip(*line.band, strict=True), color=line.colour, alpha=0.18, linewidth=0)


def _dress(axes: Any, ylabel: str, title: str) -> None:
    axes.set_xlabel("Epoch")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# --- from a comparison to its figures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """Panels that stand together, under a name for their file."""

    stem: str
    title: str
    note: str
    panels: Sequence[Panel]


def validation_pictures(comparison: Comparison, runs: Sequence[Run]) -> list[Picture]:
    """Return the validation curves of each dataset, way and shot."""
    note = "Lines are means over seeds, bands one standard deviation over them."
    return [
        Picture(
            f"validation_{column.dataset}_{column.ways}way_{column.shots}shot_{column.queries}query",
            f"{column}: validation", note, [Panel("Validation", "val", "accuracy", groups, {})],
        )
        for column, groups in _by_training_column(comparison, runs).items()
    ]  # fmt: skip


def four_panel_pictures(comparison: Comparison, runs: Sequence[Run]) -> list[Picture]:
    """Return losses and accuracies of each method, dataset and way, a line per shot."""
    groups: dict[tuple[str, str, int], dict[str, list[Run]]] = {}
    points: dict[tuple[str, str, int], dict[str, dict[str, tuple[float, float]]]] = {}
    for column, by_label in sorted(_by_training_column(comparison, runs).items()):
        for label, members in by_label.items():
            key, shots = (label, column.dataset, column.ways), f"{column.shots} shot"
            groups.setdefault(key, {})[shots] = members
            cell = comparison.cells.get((label, column))
            if cell is not None:
                epoch = max(len(run.rows) for run in cell.runs)
                of_test = points.setdefault(key, {"accuracy": {}, "loss": {}})
                of_test["accuracy"][shots] = (epoch, cell.summary.mean)
                if losses := [result.loss for result in cell.results if result.loss is not None]:
                    of_test["loss"][shots] = (epoch, statistics.fmean(losses))
    pictures = []
    for key, by_shots in groups.items():
        label, dataset, ways = key
        safe = "".join(letter if letter.isalnum() or letter in "+-" else "_" for letter in label)
        panels = [
            Panel(f"{SPLIT_NAMES[split]} {metric}", split, metric, by_shots,
                  points[key][metric] if split == "val" and key in points else {})
            for split, metric in PANELS
        ]  # fmt: skip
        note = "A line for each number of shots; circles are the test of the best models."
        title = f"{label}, {dataset}, {ways}-way"
        pictures.append(Picture(f"four_panels_{safe}_{dataset}_{ways}way", title, note, panels))
    return pictures


def _by_training_column(comparison: Comparison, runs: Sequence[Run]) -> dict[Column, dict[str, list[Run]]]:
    groups: dict[Column, dict[str, list[Run]]] = {}
    for run in runs:
        if run.rows:
            label = comparison.labels[str(run.path)]
            groups.setdefault(training_column(run), {}).setdefault(label, []).append(run)
    return groups
