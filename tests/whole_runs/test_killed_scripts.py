"""Real scripts, killed and started again: `bash experiment_scripts/quickstart.sh`, shortened by flags."""

import random
import signal
import time

import pytest

from benchmarks.parts.interrupted_scripts import ScriptRun
from experiment_parts.runs.comparison import differences


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    run = ScriptRun(tmp_path_factory.mktemp("scripts") / "whole", num_evaluation_tasks=12)
    run.finish()
    return run


def lines_of(run, name):
    path = run.run_folder / "logs" / name
    return path.read_text().splitlines() if path.exists() else []


MOMENTS = {
    "in the first epoch": lambda run: len(lines_of(run, "metrics.jsonl")) >= 2,
    "around the end of an epoch": lambda run: len(lines_of(run, "metrics.jsonl")) >= 4,
    "in the test": lambda run: any("Testing" in line for line in lines_of(run, "run.log")),
}


@pytest.mark.full
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_script_that_is_killed_and_run_again_leaves_the_same_folder(whole, moment):
    run = ScriptRun(whole.folder.parent / moment, num_evaluation_tasks=12)
    run.use_dataset_of(whole)
    process = run.start()
    deadline = time.monotonic() + 120
    while not MOMENTS[moment](run):
        assert process.poll() is None and time.monotonic() < deadline, run.output()
        time.sleep(0.002)
    time.sleep(0.1 * random.Random(moment).random())
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    run.finish()
    assert differences(run.run_folder, whole.run_folder) == []
    assert "Test accuracy of the ensemble of 2 models" in run.output()
