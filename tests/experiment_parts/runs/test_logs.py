import csv
import json
import logging

import pytest

from experiment_parts.runs.console import Console, EpochProgress
from utils.errors import StorageError
from utils.files.tables import JsonLines, write_csv, write_json
from utils.metrics import MINUS_SQUARED_ERROR


@pytest.fixture
def lines(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    yield file
    file.close()


def test_csv_has_the_union_of_columns_and_empty_cells(tmp_path):
    write_csv(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": 0.1 + 0.2, "c": "x,y"}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1,,\n0.30000000000000004,,"x,y"\n'
    assert list(csv.DictReader((tmp_path / "a.csv").open()))[1] == {"a": "0.30000000000000004", "b": "", "c": "x,y"}


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_json_lines_are_cut_to_the_committed_length(lines):
    lines.open(0)
    lines.append([{"iteration": 1}, {"iteration": 2}])
    committed = lines.commit()
    lines.append([{"iteration": 3}])
    lines.close()
    lines.open(committed)
    lines.append([{"iteration": 3, "again": True}])
    assert [json.loads(line)["iteration"] for line in lines.path.read_text().splitlines()] == [1, 2, 3]
    assert lines.commit() == lines.path.stat().st_size


def test_json_lines_start_empty_for_a_new_run(lines):
    lines.path.write_text('{"old": 1}\n')
    lines.open(0)
    assert lines.path.read_text() == ""


def test_json_lines_keep_whole_lines_only(lines):
    lines.path.write_text('{"a": 1}\n{"b": ')
    lines.open(1000)
    lines.append([{"c": 3}])
    assert lines.path.read_text() == '{"a": 1}\n{"c": 3}\n'


def test_json_lines_that_cannot_be_opened_name_the_path(tmp_path):
    with pytest.raises(StorageError, match=r"missing/metrics\.jsonl: cannot be written"):
        JsonLines(tmp_path / "missing" / "metrics.jsonl").open(0)


def test_run_log_has_what_the_terminal_showed_and_is_appended_to(tmp_path, capsys):
    for start in ("first", "second"):
        with Console() as console:
            logging.getLogger("a").info("%s start", start)
            console.open_run_log(tmp_path / "run.log")
            logging.getLogger("b").warning("careful")
    printed = capsys.readouterr()
    assert printed.out == "first start\nsecond start\n"
    assert printed.err == "careful\ncareful\n"
    written = [line.split(" ", 2)[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert written == ["first start", "careful", "second start", "careful"]


def test_console_leaves_logging_as_it_was(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with Console() as console:
        console.open_run_log(tmp_path / "run.log")
    assert (root.level, list(root.handlers)) == before


def test_run_log_that_cannot_be_opened_names_the_path(tmp_path):
    with Console() as console, pytest.raises(StorageError, match=r"run\.log: cannot be written"):
        console.open_run_log(tmp_path / "missing" / "run.log")


def test_plain_progress_lines_without_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr("experiment_parts.runs.console.SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    with caplog.at_level(logging.INFO), EpochProgress(2, 10, n_iterations=4, tasks_per_iteration=8) as progress:
        progress.advance(2, 1.5, 0.25)
        progress.advance(2, 1.0, 0.5)  # the last one: the epoch's own line follows
    (line,) = caplog.messages
    assert line.startswith("epoch 2/10, iteration 2/4: loss 1.5000, accuracy 25.0 %, ")
    assert line.endswith(" s left")


def test_progress_of_a_regression_shows_its_error(monkeypatch, caplog):
    monkeypatch.setattr("experiment_parts.runs.console.SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    progress = EpochProgress(2, 10, n_iterations=4, tasks_per_iteration=8, score=MINUS_SQUARED_ERROR)
    with caplog.at_level(logging.INFO), progress:
        progress.advance(2, 1.5, -1.5)
    assert "loss 1.5000, mean squared error 1.5000, " in caplog.text


def test_a_bar_for_the_run_and_one_for_the_epoch_on_a_terminal(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with EpochProgress(2, 3, n_iterations=4, tasks_per_iteration=8, done=1) as progress:
        progress.advance(3, 1.25, 0.5)
        progress.phase("validation on 600 tasks")
    shown = capsys.readouterr().err
    assert "run      :  42%" in shown and "5/12" in shown
    assert "epoch 2/3:  25%" in shown and "4/4" in shown
    assert "validation on 600 tasks" in shown
