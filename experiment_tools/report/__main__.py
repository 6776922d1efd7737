"""Write `visual_outputs/report.html`, one file that shows what a run did: python -m experiment_tools.report
RUN_FOLDER
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiment_tools.parts.run_reading import find_run
from experiment_tools.report.page import write_report
from utils.errors import ConfigError, StorageError, prints_user_errors
from utils.machine.host import die_with_parent
from utils.paths import command
from utils.words import say


def watch(run_folder: Path, *, orders: int, answers: int) -> None:
    """Write the report whenever a line comes in, and leave when nothing can come any more: the training process has
    ended.

    Each order is answered by a line: "ok", or one that says what went wrong. Orders that came in meanwhile are one.

    Args:
        orders, answers: file descriptors.
    """
    os.nice(19)
    die_with_parent()  # elsewhere than on Linux the end of the orders does it
    while os.read(orders, 4096):  # waits for an order
        try:
            write_report(run_folder)
            answer = "ok"
        except Exception as error:  # noqa: BLE001 -- whatever it is, training goes on and says it once
            answer = " ".join(f"{type(error).__name__}: {error}".split()) or "unknown error"
        os.write(answers, f"{answer}\n".encode("utf-8", "replace")[:2000])


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog=command("report"), description=__doc__.partition(":")[0])
    parser.add_argument("run_folder", help="experiments/<experiment_name>, or the name alone")
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, help="file; default: visual_outputs/report.html of the run. One that exists stays"
    )
    options = parser.parse_args(arguments)
    if options.watch:
        watch(Path(options.run_folder), orders=sys.stdin.fileno(), answers=sys.stdout.fileno())
        return 0
    if options.output is not None and options.output.exists():
        raise ConfigError(f"{options.output}: exists already and stays as it is; give another --output")
    try:
        path = write_report(find_run(options.run_folder), options.output)
    except StorageError as error:
        advice = "" if options.output else " Or write the report elsewhere: --output FILE"
        raise StorageError(f"{error}{advice}") from error
    say(f"{path} ({path.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
