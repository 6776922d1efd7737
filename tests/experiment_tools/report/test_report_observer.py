"""Training never waits for a report: a process of its own makes it, leaves with the training, and fails in one line."""

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from benchmarks.observation_cost import table
from experiment_tools.report.observer import ReportObserver, build_report_observer
from experiment_tools.report.page import REPORT
from utils.config import check_config, load_config
from utils.paths import REPOSITORY_ROOT


@pytest.fixture
def folder(tmp_path):
    """A run folder in which nothing has happened yet."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"experiment_name": "new", "total_epochs": 7}))
    return tmp_path / "run"


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def python(code):
    return (sys.executable, "-c", code)


ANSWERS = "import os\nwhile os.read(0, 4096): os.write(1, b'ok\\n')"
FAILS = "import os\nwhile os.read(0, 4096): os.write(1, b'ValueError: no\\n')"


def test_a_run_gets_its_report_when_it_ends(folder, caplog):
    caplog.set_level(logging.INFO)
    observer = ReportObserver(every_s=1e9)
    observer.on_start(folder, {}, [])
    process = observer._process
    observer.on_end()
    assert "epoch 0 of 7" in (folder / REPORT).read_text()
    assert process.returncode == 0
    assert [record.message for record in caplog.records] == [f"Report: {folder / REPORT}"]


def test_a_dry_run_does_not_say_where_its_report_is(folder, caplog):
    caplog.set_level(logging.INFO)
    (observer,) = build_report_observer(check_config({"experiment_name": "x", "dry_run": True}, "test"))
    observer.on_start(folder, {}, [])
    observer.on_end()
    assert (folder / REPORT).exists() and caplog.records == []


def test_a_report_is_made_while_the_run_goes_on_with_the_lowest_priority(folder):
    observer = ReportObserver(every_s=1e9)
    observer.on_start(folder, {}, [])
    observer.on_epoch({}, {})
    wait_until((folder / REPORT).exists)
    assert os.getpriority(os.PRIO_PROCESS, observer._process.pid) == 19
    first = (folder / REPORT).stat().st_mtime_ns
    for _ in range(50):
        observer.on_iteration_metrics({})  # too early for another one
    time.sleep(0.3)
    assert (folder / REPORT).stat().st_mtime_ns == first
    observer.on_end()
    assert (folder / REPORT).stat().st_mtime_ns > first


@pytest.mark.parametrize(
    "code", [ANSWERS, "import time; time.sleep(600)", "pass"], ids=["answers", "never reads", "is gone"]
)
def test_an_order_takes_less_than_a_millisecond(folder, code):
    """Also when nobody takes the orders: the pipe is full after 65,536."""
    observer = ReportObserver(every_s=0.0, command=python(code))
    observer.on_start(folder, {}, [])
    if code == "pass":
        observer._process.wait(30)
    times = []
    for _ in range(70_000 if "sleep" in code else 2_000):
        start = time.perf_counter()
        observer.on_iteration_metrics({})
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 1e-3 and statistics.quantiles(times, n=100)[-1] < 1e-3
    observer._process.kill()
    observer.on_end()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (python(FAILS), "ValueError: no"),
        (python("raise SystemExit(3)"), "its process ended with code 3"),
        (("/nowhere/python",), "No such file"),
    ],
)
def test_whatever_goes_wrong_is_one_warning(folder, caplog, command, reason):
    observer = ReportObserver(every_s=0.0, command=command)
    observer.on_start(folder, {}, [])
    for _ in range(20):
        observer.on_epoch({}, {})
        time.sleep(0.01)
    observer.on_end()
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "The report could not be made: " in warnings[0] and reason in warnings[0]
    assert "--report_every_s 0 turns it off" in warnings[0]


def test_an_error_while_drawing_is_that_warning(folder, caplog):
    (folder / "visual_outputs").write_text("a file where the folder should be")
    observer = ReportObserver(every_s=0.0)
    observer.on_start(folder, {}, [])
    observer.on_end()
    assert len(caplog.records) == 1
    assert f"{folder}/visual_outputs/report.html: cannot be written (File exists)" in caplog.text


def test_a_process_that_hangs_is_ended(folder, caplog, monkeypatch):
    monkeypatch.setattr("experiment_tools.report.observer.LAST_REPORT_S", 0.2)
    observer = ReportObserver(every_s=0.0, command=python("import time; time.sleep(600)"))
    observer.on_start(folder, {}, [])
    process = observer._process
    observer.on_end()
    assert process.returncode == -signal.SIGKILL
    assert "it was not ready after 0 s" in caplog.text and len(caplog.records) == 1


def test_it_leaves_when_the_training_is_killed(folder):
    code = (
        "import time; from pathlib import Path; from experiment_tools.report.observer import ReportObserver\n"
        f"observer = ReportObserver(0.0); observer.on_start(Path({str(folder)!r}), {{}}, []); "
        "print(observer._process.pid, flush=True); time.sleep(600)"
    )
    training = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        helper = int(training.stdout.readline())
        os.kill(helper, 0)  # it is there
    finally:
        training.kill()
        training.wait()
        training.stdout.close()
    wait_until(lambda: not is_alive(helper))


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # a dead one that nobody has asked about yet
    except FileNotFoundError:
        return False


def test_the_key_turns_it_off():
    config = check_config({"experiment_name": "x"}, "test")
    assert [type(observer) for observer in build_report_observer(config)] == [ReportObserver]
    assert build_report_observer(check_config({"experiment_name": "x", "report_every_s": 0}, "test")) == []


def test_the_measurement_of_the_cost_says_whether_training_is_blocked_too_long():
    """An epoch of the quickstart: 60 iterations of 0.1 s and ceil(300 / 8) = 38 validations of 0.05 s are 7.9 s."""
    config = load_config(REPOSITORY_ROOT / "experiment_config" / "quickstart.json")
    measured = {
        "order a report": [1e-4, 2e-4],
        "a look": [0.158],
        "a training iteration": [0.1],
        "a meta-batch of validation": [0.05],
    }
    text = table(config, measured)
    assert "Training is blocked for 0.200 ms per report at most (less than 1 ms)." in text
    assert "takes about 7.90 s; a look after each adds 2.00 %, after every fifth 0.40 %." in text
    assert "(not less than 1 ms)" in table(config, measured | {"order a report": [2e-3]})
