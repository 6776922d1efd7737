"""The list of runs: state, progress, best score and disk use."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from experiment_parts.runs.folder_lock import is_in_use
from experiment_tools import runs
from experiment_tools.parts.run_reading import list_runs, read_run
from tests.tools.finished_runs import change_json, finished_run
from utils.paths import REPOSITORY_ROOT
from utils.words import size_text

RIGHT = np.array([[1, 1, 0, 1], [1, 0, 1, 1]])


def columns(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_each_run_has_a_line_with_what_it_has_reached(tmp_path, capsys):
    finished_run(tmp_path, "done", RIGHT)
    finished_run(tmp_path, "half", RIGHT, tested=False, total_epochs=9)
    finished_run(tmp_path, "untested", RIGHT, tested=False)
    finished_run(tmp_path / "sweep", "trial_000", RIGHT)
    (finished_run(tmp_path, "broken", RIGHT) / "config.json").write_text("{")
    (tmp_path / "not a run").mkdir()
    assert runs.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {columns(line)[0]: columns(line)[1:5] for line in lines[1:6]}
    assert found["done"][:4] == ["finished", "2/2", "75.00 %", "75.00 % +- 0.00"]
    assert found["half"][:3] == ["unfinished", "2/9", "75.00 %"]
    assert found["untested"][:3] == ["trained", "2/2", "75.00 %"]
    assert found["sweep/trial_000"][0] == "finished"
    assert found["broken"][0] == "damaged"
    assert lines[6].startswith("5 runs, ")
    assert "broken: " in lines[7] and "not valid JSON" in lines[7]


def test_a_test_on_other_tasks_than_the_validation_says_so_of_both(tmp_path):
    right = [[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]]
    folder = finished_run(tmp_path, "a", right, num_classes_per_set=5, test_num_classes_per_set=2, head="zero")
    change_json(folder / "config.json", num_classes_per_set=[3, 2])
    finished_run(tmp_path, "b", right, num_classes_per_set=3, test_num_classes_per_set=3)
    found = [columns(line) for line in runs.table([read_run(folder), read_run(tmp_path / "b")], tmp_path).splitlines()]
    assert found[1][3:5] == ["75.00 % (3-way 1-shot)", "83.33 % +- 0.00 (2-way 1-shot)"]
    assert found[2][3:5] == ["75.00 %", "83.33 % +- 0.00"]


def test_disk_use_counts_every_file(tmp_path):
    run = read_run(finished_run(tmp_path, "a", RIGHT))
    before = run.disk_use_bytes()
    (run.path / "saved_models" / "x").write_bytes(bytes(1000))
    assert run.disk_use_bytes() == before + 1000
    assert [size_text(n) for n in (0, 999, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "999 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
    ]


HOLDS_A_LOCK = """
import fcntl, sys
with open(sys.argv[1], "w") as file:  # as a training process does
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_whose_lock_another_process_holds_is_running(tmp_path):
    path = finished_run(tmp_path, "a", RIGHT, tested=False, total_epochs=9)
    (path / ".lock").write_text("process 1 on host, which has ended")
    assert not is_in_use(path)
    command = [sys.executable, "-c", HOLDS_A_LOCK, path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            assert is_in_use(path)
            assert (read_run(path).state, read_run(path).epochs_text) == ("running", "epoch 3 of 9")
            change_json(path / "config.json", total_iter_per_epoch=500)
            logged = [{"iteration": 1000, "epoch": 2}, {"iteration": 1030, "epoch": 3}]
            for n_lines, place in ((1, "epoch 3 of 9"), (2, "epoch 3 of 9, iteration 30 of 500")):
                lines = "".join(json.dumps(line) + "\n" for line in logged[:n_lines])
                (path / "logs" / "metrics.jsonl").write_text(lines + '{"iterat')
                assert columns(runs.table([read_run(path)], tmp_path).splitlines()[1])[1:3] == ["running", place]
            change_json(path / "config.json", total_epochs=2)
            assert read_run(path).epochs_text == "2/2"  # it is being tested
        finally:
            process.communicate()
    assert not is_in_use(path)


@pytest.mark.parametrize("content", ["[]", '{"experiment_name": "a"}', "nonsense", '{"epoch": 3}'])
def test_whatever_lies_in_a_folder_is_said_and_never_raised(tmp_path, content):
    path = finished_run(tmp_path, "a", RIGHT)
    for name in ("config.json", "logs/summary_statistics.json", "logs/test_summary.json"):
        good = (path / name).read_bytes()
        (path / name).write_text(content)
        run = read_run(path)
        assert run.state in ("damaged", "trained", "unfinished") and run.problem
        assert list_runs(tmp_path) == [path]
        (path / name).write_bytes(good)
    assert read_run(path).state == "finished"


def test_runs_are_sorted_as_asked(tmp_path):
    (
        finished_run(tmp_path, "a", RIGHT, val_accuracies=(0.4, 0.5)),
        finished_run(tmp_path, "b", RIGHT, val_accuracies=(0.9, 0.8)),
    )
    found = [read_run(path) for path in list_runs(tmp_path)]
    for sort, order in (("name", "ab"), ("val", "ba")):
        lines = runs.table(found, tmp_path, sort).splitlines()
        assert [line[0] for line in lines[1:3]] == list(order)


def test_a_folder_that_is_not_there_and_an_empty_one(tmp_path, capsys):
    assert runs.main([str(tmp_path / "x")]) == 1
    assert "no such folder. Give the folder of the runs, or set EXPERIMENTS_DIR." in capsys.readouterr().err
    assert runs.main([str(tmp_path)]) == 0
    assert "no runs yet" in capsys.readouterr().out


def test_the_reader_reads_what_json_says(tmp_path):
    path = finished_run(tmp_path, "a", RIGHT)
    rows = json.loads((path / "logs" / "summary_statistics.json").read_text())
    assert [row["val_accuracy_mean"] for row in read_run(path).rows] == rows["val_accuracy_mean"]


def test_the_tools_are_listed_with_what_they_do():
    command = [sys.executable, "-m", "experiment_tools"]
    shown = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    typed, meant = zip(*(re.split(r"  +", line, maxsplit=1) for line in shown), strict=True)
    folder = REPOSITORY_ROOT / "experiment_tools"
    programs = {path.stem for path in folder.glob("[a-z]*.py")} | {
        path.parent.name for path in folder.glob("*/__main__.py")
    }
    assert {f"python -m experiment_tools.{name}" for name in programs} < set(typed)
    assert {"python train_maml_system.py", "python -m utils.prepare_dataset"} < set(typed)
    assert all(len(text) > 8 and "python" not in text for text in meant)
