"""List runs: python -m experiment_tools.runs [FOLDER] [--sort name|state|val|test|disk|changed]

State, progress, best validation accuracy, test accuracy and disk use of every run below a folder (default
EXPERIMENTS_DIR).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiment_tools.parts.run_reading import Run, list_runs, read_run
from utils.metrics import ACCURACY, score_of
from utils.paths import command, expanded, experiments_root
from utils.words import guarded_output, say, size_text

HEADING = ("run", "state", "epochs", "best val", "test", "disk", "changed")


@guarded_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """List the runs of a command line; return the exit code."""
    parser = argparse.ArgumentParser(prog=command("runs"), description="List runs and what they have reached.")
    parser.add_argument(
        "folder", nargs="?", type=Path, help="folder of run folders (default: EXPERIMENTS_DIR, else experiments/)"
    )
    parser.add_argument("--sort", choices=["name", "state", "val", "test", "disk", "changed"], default="name")
    options = parser.parse_args(arguments)
    folder = expanded(options.folder or experiments_root())
    if not folder.is_dir():
        say(f"{folder}: no such folder. Give the folder of the runs, or set EXPERIMENTS_DIR.", file=sys.stderr)
        return 1
    runs = [read_run(path) for path in list_runs(folder)]
    if not runs:
        say(f"{folder}: no runs yet")
        return 0
    say(table(runs, folder, options.sort))
    return 0


def table(runs: Sequence[Run], folder: Path, sort: str = "name") -> str:
    """Return one line per run under a heading, and what is damaged below."""
    sizes = {run.path: run.disk_use_bytes() for run in runs}
    changed = {
        run.path: max((path.lstat().st_mtime for path in run.path.rglob("*")), default=run.path.stat().st_mtime)
        for run in runs
    }
    keys = {
        "name": lambda run: str(run.path),
        "state": lambda run: (run.state, str(run.path)),
        "val": lambda run: -(run.best_val or 0.0),
        "test": lambda run: -run.test.get("test_accuracy_mean", 0.0),
        "disk": lambda run: -sizes[run.path],
        "changed": lambda run: -changed[run.path],
    }
    ordered = sorted(runs, key=keys[sort])
    rows = [HEADING, *(_row(run, folder, sizes[run.path], changed[run.path]) for run in ordered)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADING))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {size_text(sum(sizes.values()))}")
    lines += [f"{run.path}: {run.problem}" for run in ordered if run.state in ("damaged", "empty")]
    return "\n".join(lines)


def _row(run: Run, folder: Path, n_bytes: int, changed: float) -> tuple[str, ...]:
    best, test = run.best_val, run.test
    score = score_of(run.is_regression)
    unit = "" if score is ACCURACY else " mse"
    validated, tested = _tasks(run)
    return (
        str(run.path.relative_to(folder)) if run.path != folder else run.name,
        run.state,
        run.epochs_text,
        "" if best is None else score.text(best) + unit + validated,
        score.text(test["test_accuracy_mean"], test["test_accuracy_ci95"]) + unit + tested if test else "",
        size_text(n_bytes),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)),
    )


def _tasks(run: Run) -> tuple[str, str]:
    """Return what was validated and what tested, where these are other tasks: " (5-way 1-shot)", " (3-way 1-shot)"."""
    protocol = run.test["results"][0]["protocol"] if run.test else {}
    keys = {} if run.is_regression else {"ways": "num_classes_per_set"}
    keys["shots"] = "num_samples_per_class"
    given = {name: run.config.get(key) for name, key in keys.items()}
    validated = {name: value[0] if isinstance(value, list) else value for name, value in given.items()}
    tested = {name: protocol.get(name, validated[name]) for name in keys}
    if validated == tested:
        return "", ""
    form = " ({shots} points)" if run.is_regression else " ({ways}-way {shots}-shot)"
    return form.format(**validated), form.format(**tested)


if __name__ == "__main__":
    sys.exit(main())
