"""Compare runs: python -m experiment_tools.compare RUN [RUN ...] [--output FOLDER] [--statistics KIND] [--four_panels]

A RUN is a run folder or the name of one below EXPERIMENTS_DIR. Runs that differ in their seeds alone count as one
method. Writes comparison.html, .md, .tex and .csv and the curves as PNG into a folder, and shows the tables.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiment_tools.compare.comparison import Comparison, compare_runs
from experiment_tools.compare.tables import csv_text, latex, markdown
from experiment_tools.parts.run_reading import Run, find_run, read_run
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import free_path, storage_errors, write_bytes_atomically
from utils.paths import command
from utils.words import say


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs of a command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("compare"), description="Compare runs: table, tests of differences, curves."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or its name below EXPERIMENTS_DIR")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the files (default: comparison, or comparison-2, ... in the current folder)",
    )
    parser.add_argument(
        "--statistics",
        help="kind of batch-norm statistics of the test; default: the first that each run was tested with",
    )
    parser.add_argument(
        "--four_panels", action="store_true", help="also losses and accuracies of each method and way, a line per shot"
    )
    options = parser.parse_args(arguments)
    comparison, runs = read_and_compare(options.runs, options.statistics)
    folder = options.output or free_path(Path("comparison"))
    say(write_comparison(comparison, runs, folder, with_panels=options.four_panels))
    say(f"Written to {folder}: comparison.html, .md, .tex, .csv and the curves as PNG")
    return 0


def read_and_compare(names: Sequence[str], statistics: str | None = None) -> tuple[Comparison, list[Run]]:
    """Read the runs, each once, and compare those that can be read.

    Raises:
        ConfigError: a run does not exist, or nothing is left to compare.
    """
    paths = dict.fromkeys(find_run(name).resolve() for name in names)
    runs = [read_run(path) for path in paths]
    broken = [f"{run.path}: {run.state}, left out ({run.problem})" for run in runs if run.state in ("damaged", "empty")]
    usable = [run for run in runs if run.state not in ("damaged", "empty")]
    if not any(run.rows for run in usable):
        lines = [*broken, *(f"{run.path}: {run.state}, {run.problem}" for run in usable)]
        raise ConfigError("nothing to compare: none of these runs has a finished epoch.\n" + "\n".join(lines))
    for line in broken:
        say(line, file=sys.stderr)
    return compare_runs(usable, statistics), usable


def write_comparison(comparison: Comparison, runs: Sequence[Run], folder: Path, *, with_panels: bool) -> str:
    """Write all files of a comparison into a folder; returns what the terminal shows of it.

    Raises:
        StorageError: no space or no permission.
    """
    from experiment_tools.compare.figures import figure_of, four_panel_pictures, validation_pictures
    from experiment_tools.compare.page import MOST_PAIRS, html_page
    from experiment_tools.parts.pages import write_png

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pictures = validation_pictures(comparison, runs)
    if with_panels:
        pictures += four_panel_pictures(comparison, runs)
    for picture in pictures:
        write_png(figure_of(picture.panels, picture.title), folder / f"{picture.stem}.png")
    pages = {
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
        "comparison.csv": csv_text(comparison),
        "comparison.html": html_page(comparison, pictures),
    }
    for name, text in pages.items():
        write_bytes_atomically(folder / name, text.encode())
    return markdown(comparison, MOST_PAIRS)


if __name__ == "__main__":
    sys.exit(main())
