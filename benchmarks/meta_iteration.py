"""Time meta-iterations of the standard settings in one table, or of any config, on random data.

    .venv/bin/python benchmarks/meta_iteration.py [--settings NAME ...] [--iterations N] [--key value ...]
    .venv/bin/python benchmarks/meta_iteration.py --name_of_args_json_file CFG [--key value ...] \
        --iterations N [--epoch E]

An iteration is meta-gradient plus meta-update, as in training, without data and logging. Another environment works
too. The last line is one JSON object.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.measuring import names_among, time_iterations, whole_number
from benchmarks.parts.standard_settings import SETTINGS, print_table
from utils.config import load_config
from utils.config.command_line import read_command_line
from utils.config.messages import COMMAND_LINE
from utils.errors import prints_user_errors


@prints_user_errors
def main(arguments: list[str]) -> int:
    """Run the benchmark; returns the exit code."""
    if {"-h", "--help"}.intersection(arguments):
        print(__doc__)
        return 0
    path, overrides = read_command_line(arguments)
    if path is None and "experiment_name" not in overrides:
        iterations = whole_number(overrides, "iterations", 0, 1) if "iterations" in overrides else None
        names = names_among(SETTINGS, overrides, "settings")
        # What is wrong with them is said once.
        load_config(None, {"experiment_name": "benchmark", **overrides}, place=COMMAND_LINE)
        print_table(names, iterations, overrides)
        return 0
    iterations, epoch = whole_number(overrides, "iterations", 20, 1), whole_number(overrides, "epoch", 0, 0)
    result = time_iterations(load_config(path, overrides, place=COMMAND_LINE), iterations, epoch)
    for key, value in result.items():
        print(f"{key:28} {value:.4g}" if isinstance(value, float) else f"{key:28} {value}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
