"""The benchmark of scaling, on tiny sizes, and its fit on made numbers."""

import json
import subprocess
import sys

import pytest

from benchmarks.scaling import AXES, QUICK_VALUES, fitted_exponent, main
from utils.paths import REPOSITORY_ROOT


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 1.05, 2.0])
def test_the_fit_gives_the_exponent_of_a_power(exponent):
    values = (2, 4, 8, 16)
    assert fitted_exponent(values, [3.0 * value**exponent for value in values]) == pytest.approx(exponent)


def test_a_constant_part_lowers_the_exponent_and_noise_is_averaged():
    values = (1, 2, 4, 8)
    assert 0 < fitted_exponent(values, [10 + value for value in values]) < 1
    assert fitted_exponent(values, [1.1, 1.9, 4.2, 7.8]) == pytest.approx(1.0, abs=0.06)


def test_an_exponent_needs_two_values():
    with pytest.raises(ValueError, match=r"two different values, not \[4, 4\]"):
        fitted_exponent([4, 4], [1.0, 2.0])


def run_benchmark(*arguments):
    command = [sys.executable, "benchmarks/scaling.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.full
def test_the_command_prints_a_table_and_one_json_object():
    assert QUICK_VALUES.keys() == AXES.keys()
    done = run_benchmark("--quick", "--iterations", "1", "--what", "tasks", "steps", "ways", "image_size", "filters")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "| what | values | ms per iteration | exponent | by products alone |" and lines[2].startswith(
        "| tasks | 1 2 | "
    )
    rows = json.loads(lines[-1])["rows"]
    assert [row["what"] for row in rows] == ["tasks", "steps", "ways", "image_size", "filters"]
    assert all(
        len(row["ms_per_iteration"]) == 2 and min(row["ms_per_iteration"]) > 0 and row["exponent"] is not None
        for row in rows
    )


@pytest.mark.full
def test_ranks_are_measured_in_processes():
    done = run_benchmark("--quick", "--iterations", "1", "--what", "ranks")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])["rows"][0]
    assert row["values"] == [1, 2] and min(row["ms_per_iteration"]) > 0


def test_an_unknown_axis_is_refused_with_those_that_there_are(capsys):
    assert main(["--what", "depth"]) == 1
    message = 'command line: --what: there is no "depth"; there are: "tasks", "steps", "ways", "image_size", '
    assert capsys.readouterr() == ("", f'{message}"filters", "ranks"\n')


def test_a_wrong_key_is_blamed_on_the_command_line(capsys):
    assert main(["--what", "tasks", "--batch_sise", "3"]) == 1
    assert capsys.readouterr().err == 'command line: unknown key "batch_sise"; did you mean "batch_size"?\n'
