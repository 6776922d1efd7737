"""The curves of long runs, kept after their folders are gone: a table of points, and two pictures of it.

    python benchmarks/curves.py FOLDER [CURVE=RUN ...]

Puts the validations of each run under the name of its curve into FOLDER/points.csv (what stood there under that name
is replaced; CURVE=RUN,RUN are stages one after another, of which the last is drawn), then draws accuracy over tasks
and over hours as FOLDER/tasks.svg and FOLDER/hours.svg. Lines that somebody else has measured are written into the
table by hand; without hours they are in the first picture alone.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment_tools.parts.run_reading import find_run, read_run
from experiment_tools.parts.svg import HEIGHT, WIDTH, Axes, Series, element, escaped, line_chart, standalone
from utils.errors import ConfigError, prints_user_errors

COLUMNS = ("curve", "tasks", "hours", "accuracy", "ci95")
COLOURS = ("#2563eb", "#d9730d", "#0d8a7a", "#8b46d1", "#c02626", "#8590a2", "#b7791f", "#d53f8c")
LOWEST = 0.84
"""Accuracy at the foot of the pictures: what is learned in the first minutes is cut off."""
Point = dict[str, float | str | None]


def points_of(curve: str, runs: list[str]) -> list[Point]:
    """Return the validations of a run's epochs; of runs that began with one another's weights, those of the last.

    Raises:
        ConfigError: a run has no validation.
    """
    tasks = hours = 0.0
    points: list[Point] = []
    for name in runs:
        run, points = read_run(find_run(name)), []
        per_epoch = run.config["total_iter_per_epoch"] * run.config["batch_size"]
        for row in run.rows:
            tasks, hours = tasks + per_epoch, hours + float(row["epoch_run_time"]) / 3600
            if row.get("val_accuracy_mean") is not None:
                values = (curve, tasks, hours, row["val_accuracy_mean"], row.get("val_accuracy_ci95"))
                points.append(dict(zip(COLUMNS, values, strict=True)))
        if not points:
            raise ConfigError(f"{run.path}: no epoch was validated; give a run that has been")
    return points


def read_points(path: Path) -> list[Point]:
    """Return the rows of a table, empty cells as None."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: row[name] if name == "curve" else float(row[name]) if row[name] else None for name in COLUMNS}
            for row in csv.DictReader(file)
        ]


def picture(points: list[Point], x: str, x_label: str) -> str:
    """Return an SVG that stands alone: accuracy over the column x, a line for each curve, named in its legend."""
    names = list(dict.fromkeys(str(point["curve"]) for point in points if point[x] is not None))
    if len(names) > len(COLOURS):
        raise ConfigError(
            f"points.csv: {len(names)} curves, and a picture has colours for {len(COLOURS)}: {', '.join(names)}; take "
            "rows of one out of the table, or give another FOLDER"
        )
    series = [
        Series(name, [(point[x], point["accuracy"]) for point in points if point["curve"] == name], colour, dots=True)
        for name, colour in zip(names, COLOURS, strict=False)
    ]
    axes = Axes(x_label, lambda value: f"{100 * value:.1f} %", y_range=(LOWEST, 1.0), whole_x=False)
    chart = line_chart(series, axes, f"validation accuracy over {x}")
    if chart is None:
        raise ConfigError(f"no point has {x} and an accuracy; give CURVE=RUN")
    legend = "".join(
        element("text", escaped(name), x=150, y=120 + 13 * place, style=f"fill: {colour}; font-weight: 600")
        for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False))
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
    for text in options.curves:
        curve, found, runs = text.partition("=")
        if not found:
            raise ConfigError(f'"{text}" is no CURVE=RUN, such as "MAML++=omniglot_maml++_5way_1shot_seed0"')
        points = [point for point in points if point["curve"] != curve] + points_of(curve, runs.split(","))
    pictures = {"tasks.svg": picture(points, "tasks", "tasks"), "hours.svg": picture(points, "hours", "hours")}
    options.folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for point in points:
            writer.writerow(
                {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in point.items()}
            )
    for name, text in pictures.items():
        (options.folder / name).write_text(text, encoding="utf-8")
        print(options.folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
