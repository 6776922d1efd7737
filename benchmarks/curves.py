"""The curves of long runs, kept after their folders are gone: a table of points, and two pictures of it.

    python benchmarks/curves.py FOLDER [CURVE=RUN ...]

Puts the validations of each run under the name of its curve into FOLDER/points.csv (what stood there under that name
is replaced, by no fewer points; CURVE=RUN,RUN are stages one after another, of which the last is drawn), then draws
accuracy over tasks and over hours of one core as FOLDER/tasks.svg and FOLDER/hours.svg. Lines that somebody else has
measured are written into the table by hand; without hours they are in the first picture alone.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment_tools.parts.run_reading import find_run, read_run, read_starts
from experiment_tools.parts.svg import BOTTOM, HEIGHT, WIDTH, Axes, Series, element, escaped, line_chart, standalone
from utils.errors import ConfigError, DataError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.files.reading import read_text, why_unreadable

COLUMNS = ("curve", "tasks", "hours", "accuracy", "ci95")
COLOURS = ("#2563eb", "#d9730d", "#0d8a7a", "#8b46d1", "#c02626", "#8590a2", "#b7791f", "#d53f8c")
LOWEST = 0.84
"""Accuracy at the foot of the pictures: what is learned in the first minutes is cut off."""
Point = dict[str, float | str | None]


def points_of(curve: str, runs: list[str]) -> list[Point]:
    """Return the validations of a run's epochs; of runs that began with one another's weights, those of the last.

    Raises:
        ConfigError: a run that is not there, or has no validation. DataError: one that is damaged.
    """
    tasks, hours = 0, 0.0
    points: list[Point] = []
    for name in runs:
        if not name:
            raise ConfigError(f'"{curve}={",".join(runs)}" names no run; give the name of one after the "="')
        run, points = read_run(find_run(name)), []
        starts = read_starts(run)
        if run.problems or not run.config:
            raise DataError(f"{run.path}: {'; '.join(run.problems) or 'no config.json'}; repair it or leave it out")
        per_epoch = run.config["total_iter_per_epoch"] * run.config["batch_size"] * run.config["samples_per_iter"]
        start = starts[-1] if starts else {}
        cores = start.get("threads", 1) * start.get("processes", 1)
        for row in run.rows:
            tasks, hours = tasks + per_epoch, hours + cores * float(row["epoch_run_time"]) / 3600
            if row.get("val_accuracy_mean") is not None:
                values = (curve, tasks, *map(_rounded, (hours, row["val_accuracy_mean"], row.get("val_accuracy_ci95"))))
                points.append(dict(zip(COLUMNS, values, strict=True)))
        if not points:
            raise ConfigError(f"{run.path}: no epoch was validated; give a run that has been")
    return points


def _rounded(value: float | None) -> float | None:
    """As the table keeps it, so that its pictures can be drawn again to the byte."""
    return None if value is None else float(f"{value:.5g}")


def read_points(path: Path) -> list[Point]:
    """Return the rows of a table, empty cells as None.

    Raises:
        DataError: naming line, column and value.
    """
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    points = []
    for line, row in enumerate(rows, start=2):
        place = f"{path}, line {line}"
        if tuple(row) != COLUMNS or None in row.values():
            raise DataError(f"{place}: a row has the columns {','.join(COLUMNS)}, which the first line names")
        point: Point = {"curve": row["curve"]}
        for name in COLUMNS[1:]:
            try:
                point[name] = float(row[name]) if row[name] else None
            except ValueError as error:
                raise DataError(f'{place}: {name} is "{row[name]}", no number') from error
        if not 0 <= (point["accuracy"] or 0.0) <= 1:
            raise DataError(f"{place}: accuracy is {point['accuracy']:g}; it is a number from 0 to 1")
        points.append(point)
    return points


def picture(points: list[Point], x: str, x_label: str) -> str:
    """Return an SVG that stands alone: accuracy over the column x, a line for each curve, named in its legend."""
    names = list(dict.fromkeys(str(point["curve"]) for point in points))
    if len(names) > len(COLOURS):
        raise ConfigError(
            f"points.csv: {len(names)} curves, and a picture has colours for {len(COLOURS)}: {', '.join(names)}; take "
            "rows of one out of the table, or give another FOLDER"
        )
    colours = dict(zip(names, COLOURS, strict=False))  # by the table, so that both pictures agree
    lines = {
        name: [
            (point[x], point["accuracy"] if (point["accuracy"] or 0.0) >= LOWEST else None)
            for point in points
            if point["curve"] == name and point[x] is not None
        ]
        for name in names
    }
    series = [Series(name, line, colours[name], dots=True) for name, line in lines.items() if line]
    axes = Axes(x_label, lambda value: f"{100 * value:.4g} %", y_range=(LOWEST, 1.0), whole_x=False)
    chart = line_chart(series, axes, f"validation accuracy over {x}")
    if chart is None:
        raise ConfigError(f"no point has {x} and an accuracy from {LOWEST}; give CURVE=RUN")
    lowest_line = HEIGHT - BOTTOM - 8
    legend = "".join(
        element(
            "text",
            escaped(line.name),
            x=150,
            y=lowest_line - 13 * place,
            style=f"fill: {line.colour}; font-weight: 600",
        )
        for place, line in enumerate(reversed(series))
    )
    return standalone(chart + legend, WIDTH, HEIGHT)


@prints_user_errors
def main(arguments: list[str]) -> int:
    """Add the runs and draw; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("curves", nargs="*", metavar="CURVE=RUN")
    options = parser.parse_args(arguments)
    table = options.folder / "points.csv"
    points = read_points(table)
    for word in options.curves:
        curve, found, runs = word.partition("=")
        if not found or not curve:
            raise ConfigError(f'"{word}" is no CURVE=RUN, such as "MAML++=omniglot_maml++_5way_1shot_seed0"')
        new = points_of(curve, runs.split(","))
        before = sum(point["curve"] == curve for point in points)
        if len(new) < before:  # the table is what is left of runs whose folders are gone
            raise ConfigError(
                f'{table}: "{curve}" has {before} points, {runs} only {len(new)}; give the curve another name, or take '
                "its rows out of the table first"
            )
        points = [point for point in points if point["curve"] != curve] + new
    pictures = {
        "tasks.svg": picture(points, "tasks", "tasks"),
        "hours.svg": picture(points, "hours", "hours of a core"),
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = io.StringIO()
    writer = csv.DictWriter(rows, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(point | {"tasks": None if point["tasks"] is None else f"{point['tasks']:.0f}"} for point in points)
    write_bytes_atomically(table, rows.getvalue().encode())
    for name, svg in pictures.items():
        write_bytes_atomically(options.folder / name, svg.encode())
        print(options.folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
