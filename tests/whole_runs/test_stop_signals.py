"""Signals stop a run, save it, and leave with the right exit code; wherever they come."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from benchmarks.parts.interrupted_scripts import ScriptRun
from experiment_parts.runs.comparison import differences
from tests.conftest import draw_dataset
from utils.errors import Interrupted
from utils.machine.stop_signals import HANDLED, StopSignals
from utils.paths import REPOSITORY_ROOT

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 0}
CONFIG = {
    "experiment_name": "stopped", "dataset_name": "tiny", "image_height": 14, "image_width": 14,
    "train_val_test_split": [0.34, 0.33], "total_epochs": 2, "total_iter_per_epoch": 60, "batch_size": 2,
    "num_classes_per_set": 3, "num_target_samples": 2, "num_stages": 2, "cnn_num_filters": 4,
    "number_of_training_steps_per_iter": 2, "num_evaluation_tasks": 200, "log_every_iterations": 1000,
    "num_dataprovider_workers": 2, "gpu_to_use": "cpu",
}  # fmt: skip


def default_signals():
    """In a child: a test run in the background may have been started with SIGINT ignored."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def nothing_is_left_installed():
    ignored = [number for number in HANDLED if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:  # SIGINT is, where the tests run in the background
        signal.signal(number, signal.default_int_handler)
    before = [signal.getsignal(number) for number in HANDLED]
    yield
    assert [signal.getsignal(number) for number in HANDLED] == before
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


# --- the handler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", HANDLED)
def test_a_deferred_signal_is_noted_and_raised_where_it_is_asked_for(number):
    with StopSignals() as stop:
        with stop.deferred():
            os.kill(os.getpid(), number)
            assert stop.received == number
            with pytest.raises(Interrupted, match=f"{number.name}: nothing is lost") as stopped:
                stop.check()
        assert stopped.value.exit_code == EXIT_CODES[number]


@pytest.mark.parametrize("number", HANDLED)
def test_during_set_up_a_signal_is_raised_at_once(number):
    with StopSignals(), pytest.raises(Interrupted, match=number.name):
        os.kill(os.getpid(), number)


def test_what_was_ignored_from_the_start_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGINT, before)


SECOND_CTRL_C = """
import os, signal, time
from utils.machine.stop_signals import StopSignals
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals() as stop, stop.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
"""


def test_a_second_ctrl_c_leaves_at_once():
    done = subprocess.run(
        [sys.executable, "-c", SECOND_CTRL_C],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "still here\n")
    assert "Stopped at once." in done.stderr


# --- the whole life of a process
# ---------------------------------------------------------------------------------------

SCRIPT = REPOSITORY_ROOT / "train_maml_system.py"
SIGNAL_ITSELF = "import os, sys\nos.kill(os.getpid(), {number:d})\n"
CAN_BLOCK = subprocess.run(["env", "--block-signal=TERM", "true"], capture_output=True, check=False).returncode == 0


def run_command(command, folder=None, **more):
    """A finished process that looks for modules in `folder` first."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(folder or "")}
    return subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=default_signals, **more,
    )  # fmt: skip


@pytest.mark.skipif(not CAN_BLOCK, reason="this env has no --block-signal")
@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_while_the_interpreter_starts_waits_for_the_program(tmp_path, number):
    text = "import sys\nif any('train_maml_system' in word for word in sys.orig_argv): import signal_itself\n"
    (tmp_path / "sitecustomize.py").write_text(text)
    (tmp_path / "signal_itself.py").write_text(SIGNAL_ITSELF.format(number=number))
    done = run_command(["bash", "experiment_scripts/quickstart.sh"], tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_CODES[number], "")
    assert done.stderr == f"{number.name}: nothing is lost, run the same command to go on\n"


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_during_the_imports(tmp_path, number):
    (tmp_path / "pydantic.py").write_text(SIGNAL_ITSELF.format(number=number) + "sys.exit(99)\n")
    done = run_command([sys.executable, SCRIPT, "--name_of_args_json_file", "x.json"], tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_CODES[number], "")
    assert done.stderr == f"{number.name}: nothing is lost, run the same command to go on\n"


SHUT_DOWN = """
import atexit, os, sys, threading
from utils.machine.stop_signals import end_process, guard_process
guard_process()
signal_itself = lambda: os.kill(os.getpid(), {number:d})
class Late:
    def __del__(self):
        signal_itself()
late = sys.modules["late"] = Late()
if {in_callback}:
    atexit.register(signal_itself)
atexit.register(print, "callbacks run")
threading.Thread(target=lambda: print("threads end")).start()
end_process(3)
"""


@pytest.mark.parametrize("number", HANDLED)
@pytest.mark.parametrize("in_callback", [True, False])
def test_a_signal_during_the_shut_down_does_not_change_the_exit_code(number, in_callback):
    done = run_command([sys.executable, "-c", SHUT_DOWN.format(number=number, in_callback=in_callback)])
    assert (done.returncode, done.stderr) == (3, "")
    assert in_callback or done.stdout == "threads end\ncallbacks run\n"


def test_the_program_leaves_by_that_way(tmp_path):
    """A callback registered before the program began would run last; that late the interpreter has no handlers any
    more.
    """
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.kill, os.getpid(), 15)\n")
    done = run_command([sys.executable, SCRIPT, "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


WHILE_IT_IS_TOLD = """
import os, sys, train_maml_system
from utils.errors import ConfigError
def run(*_):
    raise ConfigError("wrong key")
def report_failure(error):
    os.kill(os.getpid(), 15)
    return error.exit_code
train_maml_system.run, train_maml_system.report_failure = run, report_failure
sys.exit(train_maml_system.main([]))
"""


def test_a_signal_while_an_error_is_told_does_not_hide_it():
    done = run_command([sys.executable, "-c", WHILE_IT_IS_TOLD])
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("number", HANDLED)
def test_at_once_raises_nothing_through_foreign_code(number):
    text = (
        "import os\nfrom utils.machine.stop_signals import StopSignals\nwith StopSignals() as stop, stop.at_once():\n"
        f"    try:\n        os.kill(os.getpid(), {number:d})\n    except BaseException:\n        os._exit(99)\n"
    )
    done = run_command([sys.executable, "-c", text])
    assert (done.returncode, done.stderr) == (
        EXIT_CODES[number], f"{number.name}: nothing is lost, run the same command to go on\n",
    )  # fmt: skip


# --- real runs --------------------------------------------------------------------------------------------------------


class Run:
    """Real processes of CONFIG in a folder of their own."""

    def __init__(self, folder, datasets, **changes):
        self.folder = folder
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "EXPERIMENTS_DIR": str(folder / "experiments"),
            "DATASET_DIR": str(datasets),
        }
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        self.run_folder = folder / "experiments" / "stopped"

    def start(self, *arguments):
        script = REPOSITORY_ROOT / "train_maml_system.py"
        return subprocess.Popen(
            [sys.executable, script, "--name_of_args_json_file", self.folder / "config.json", *arguments],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=default_signals,  # noqa: PLW1509 -- no threads are running here
        )  # fmt: skip

    def stop_when(self, condition, number):
        """(exit code, standard error, seconds from signal to end) of a run that gets a signal once a condition
        holds.
        """
        process = self.start()
        deadline = time.monotonic() + 60
        while not condition():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        begin = time.monotonic()
        _, error = process.communicate(timeout=60)
        return process.returncode, error, time.monotonic() - begin

    def finish(self):
        process = self.start()
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return out

    def log(self):
        path = self.run_folder / "logs" / "run.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a dataset, and an uninterrupted run that others are compared with."""
    folder = tmp_path_factory.mktemp("signals")
    draw_dataset(folder / "datasets" / "tiny", [f"alphabet_{c % 3}/character_{c:02}" for c in range(12)])
    whole = Run(folder / "whole", folder / "datasets")
    whole.finish()
    return folder, whole


@pytest.mark.full
def test_each_signal_in_training_validation_and_test(workplace):
    folder, whole = workplace
    run = Run(folder / "stopped", folder / "datasets")
    saved = run.run_folder / "saved_models"
    situations = [
        (signal.SIGTERM, (run.run_folder / "logs" / "metrics.jsonl").exists, "saved at iteration "),
        (signal.SIGUSR1, (saved / "train_model_1.safetensors").exists, "saved at iteration "),
        (signal.SIGINT, lambda: "Testing train_model_" in run.log(), "nothing is lost"),
    ]
    for number, condition, text in situations:
        code, error, latency_s = run.stop_when(condition, number)
        assert code == EXIT_CODES[number], error
        assert f"{number.name}: {text}" in error
        assert "run the same command to go on" in error
        assert "Traceback" not in error
        assert latency_s < 3.0
    assert "Test accuracy" in run.finish()
    assert differences(run.run_folder, whole.run_folder) == []


SAYS_WHAT_TO_DO = "{}: nothing is lost, run the same command to go on"


@pytest.mark.full
def test_signals_while_an_archive_is_unpacked_and_while_its_images_are_decoded(tmp_path):
    datasets = tmp_path / "datasets"
    names = [f"alphabet_{c % 3}/character_{c:02}" for c in range(12)]
    drawn = draw_dataset(tmp_path / "drawn", names, images_per_class=100)
    datasets.mkdir()
    with tarfile.open(datasets / "tiny.tar.gz", "w:gz") as tar:
        tar.add(drawn, "tiny")
    archive = (datasets / "tiny.tar.gz").read_bytes()
    run = Run(tmp_path / "run", datasets)

    code, error, latency_s = run.stop_when((datasets / ".tiny.unfinished").exists, signal.SIGINT)
    assert (code, SAYS_WHAT_TO_DO.format("SIGINT") in error, "Traceback" in error) == (130, True, False)
    assert latency_s < 3.0
    assert os.listdir(datasets) == ["tiny.tar.gz"] and (datasets / "tiny.tar.gz").read_bytes() == archive
    assert os.listdir(run.run_folder.parent) == []  # nothing had begun

    packed = datasets / ".packed"
    code, error, latency_s = run.stop_when(lambda: list(packed.glob("*.unfinished")), signal.SIGTERM)
    assert (code, SAYS_WHAT_TO_DO.format("SIGTERM") in error, "Traceback" in error) == (143, True, False)
    assert latency_s < 3.0
    assert all(path.suffix == ".lock" for path in packed.iterdir())

    assert "Test accuracy" in run.finish()
    unpacked = {path.relative_to(datasets / "tiny"): path.read_bytes() for path in (datasets / "tiny").rglob("*.png")}
    assert unpacked == {path.relative_to(drawn): path.read_bytes() for path in drawn.rglob("*.png")}


@pytest.mark.full
def test_a_signal_while_a_dataset_is_drawn(tmp_path):
    datasets = tmp_path / "datasets"
    run = Run(tmp_path / "run", datasets, dataset_name="synthetic_strokes")
    being_drawn = datasets / ".synthetic_strokes.unfinished"
    code, error, latency_s = run.stop_when(lambda: list(being_drawn.rglob("*.png")), signal.SIGUSR1)
    assert (code, SAYS_WHAT_TO_DO.format("SIGUSR1") in error, "Traceback" in error) == (0, True, False)
    assert latency_s < 3.0
    assert os.listdir(datasets) == []
    prepare = [sys.executable, "-m", "utils.prepare_dataset", "synthetic_strokes", "--to", datasets]
    again = subprocess.run(prepare, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert f"{datasets / 'synthetic_strokes'}: 4800 images in 240 folders" in again.stdout


@pytest.mark.full
@pytest.mark.parametrize("number", HANDLED)
def test_signals_at_random_moments_of_a_real_script(tmp_path, number):
    """From the first instruction of bash on: 130 and 143 are then its own end by the signal, as a shell shows it."""
    run = ScriptRun(tmp_path)
    seconds = sum(run.finish().values())
    shutil.rmtree(run.run_folder)
    generator = random.Random(number)
    for _ in range(8):
        answer = run.interrupt(number, "start", 0.05 + generator.uniform(0, seconds))
        assert answer is None or answer.code_is_right, (answer, run.output())
        assert "Traceback" not in run.output()
    run.finish()
