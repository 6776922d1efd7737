"""The launcher of several processes: what it starts, how signals and exit codes pass through it, and that nothing
stays behind.

Most tests put a small program without torch in the place of the real one, under the real torchrun.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

import train_maml_system
from benchmarks.parts.interrupted_scripts import FLAGS, with_default_signals
from experiment_parts.runs.comparison import differences
from tests.tools.ranks import LIMIT_S, children_of, free_port, in_ranks, stat_of, wait_until
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT
from utils.ranks import launch as launch_ranks
from utils.ranks.launch import Launch, plan_launch, split_arguments
from utils.ranks.rank import Rank, check_task_count, departure

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from utils.machine import stop_signals
from utils.ranks import rank as ranks
alone = not ranks.begin_rank()
stop_signals.guard_process(alone=alone)
from utils.errors import DataError, Interrupted, NonFiniteError
rank = ranks.this_rank()
notes, what = Path(sys.argv[1]), sys.argv[2]
with open(notes / "starts", "a+") as file:
    file.seek(0)
    earlier = sum(line.startswith(f"{rank.index} ") for line in file)
    file.write(f"{rank.index} {os.getpid()} {earlier}\\n")
with stop_signals.StopSignals(rank.asked_to_stop) as stop, stop.deferred():
    error = None
    try:
        if what == "bad data":
            raise DataError("a folder is empty")
        if what == "rank 1" and rank.index == 1:
            raise NonFiniteError("the loss is nan")
        if what == "once killed" and rank.index == 1 and not earlier:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "always killed" and rank.index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + (0.5 if what == "once killed" and earlier else 60)
        (notes / f"ready {rank.index}").touch()
        while time.monotonic() < deadline:
            stop.check()
            time.sleep(0.02)
    except (Exception, Interrupted) as raised:
        error = raised
    if isinstance(error, Interrupted):
        (notes / f"saved {rank.index}").touch()
    stop_signals.end_process(rank.leave(error))
"""
LAUNCHER = """
import json, logging, sys
from pathlib import Path
from utils.ranks.launch import Launch, run_ranks
from utils.errors import Interrupted
from utils.machine.stop_signals import StopSignals, end_process, guard_process
guard_process()
logging.basicConfig(level=logging.ERROR, format="%(message)s")
options = json.loads(sys.argv[4])
launch = Launch(int(options.pop("nproc_per_node")), options)
with StopSignals() as stop:
    try:
        code = run_ranks([sys.executable, sys.argv[1]], sys.argv[2:4], launch, "test", stop)
    except Interrupted as error:
        code = error.exit_code
end_process(code)
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(what, restarts=1)`: the launcher as a process, whose ranks do `what`; options of torchrun may follow."""
    (tmp_path / "program.py").write_text(PROGRAM)
    started = []

    def start(what, restarts=1, **options):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT), "RUN_STOPPED_FILE": str(tmp_path / "stopped")}
        options = json.dumps({"nproc_per_node": "2", "max_restarts": str(restarts)} | options)
        command = [sys.executable, "-c", LAUNCHER, tmp_path / "program.py", tmp_path, what, options]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def starts(folder):
    """(rank, process, number of its starts before) of every start of a rank."""
    path = folder / "starts"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def is_gone(process_id):
    try:
        return stat_of(process_id)[0] == "Z"
    except OSError:
        return True


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_what_stands_before_two_dashes_is_for_torchrun():
    given = ["--nnodes", "2", "--rdzv-endpoint=host:29500", "--max-restarts", "5", "--", "--tag", "a b"]
    options, rest = split_arguments(given)
    assert options == {"nnodes": "2", "rdzv_endpoint": "host:29500", "max_restarts": "5"} and rest == ["--tag", "a b"]
    assert split_arguments(["--tag", "x"]) == ({}, ["--tag", "x"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            ["--batch_size", "2", "--"],
            '"--batch_size" before the -- is no option of the launcher; there are: --nproc_per_node',
        ),
        (["2", "--"], '"2" before the -- is no option of the launcher'),
        (["--nnodes", "--"], '--nnodes before the -- is "", but must be: a value'),
        (["--max_restarts", "many", "--"], '--max_restarts before the -- is "many", but must be: a whole number'),
        (["--nnodes", "2", "--"], "--nnodes needs a place where the machines meet: --rdzv_endpoint HOST:PORT"),
        (["--nnodes", "0", "--"], '--nnodes is "0", but must be: a number of machines, or LEAST:MOST'),
        (["--rdzv_backend", "static", "--"], '--rdzv_backend is "static", but must be: c10d; leave it out'),
        (
            ["--rdzv_conf", "join_timeout", "--"],
            '--rdzv_conf is "join_timeout", but must be: KEY=VALUE,KEY=VALUE, as in join_timeout=600',
        ),
        (["--rdzv_conf=join_timeout=1m", "--"], '--rdzv_conf is "join_timeout=1m", but must be: KEY=VALUE'),
        (
            ["--rdzv_conf=join_timeout=9,silence_timeout=60", "--"],
            "silence_timeout is no more; leave it out. A machine that says nothing is taken for lost when the others "
            "have waited 30 minutes for it",
        ),
        (["--nproc_per_node", "0", "--"], "--nproc_per_node is 0, but must be: at least 1"),
        (["--tag", "x", "--nnodes", "2"], "--nnodes is an option of the launcher and stands before a --, as in: bash"),
    ],
)
def test_options_that_cannot_be_are_refused(given, text):
    with pytest.raises(ConfigError) as refused:
        split_arguments(given)
    assert text in str(refused.value)


@pytest.fixture
def gpus(monkeypatch):
    return lambda *names: monkeypatch.setattr(launch_ranks, "_gpu_names", lambda: list(names))


def test_one_id_and_one_machine_need_no_launcher(gpus):
    gpus("Card 0")
    assert [plan_launch(value, {}) for value in ("auto", "cpu", "3", "1,1", "all")] == [None] * 5


def test_every_gpu_gets_a_process(gpus):
    gpus("Card 0", "Card 1", "Card 2")
    assert plan_launch("0,2", {}).n_here == 2 and plan_launch("all", {}).n_here == 3
    with pytest.raises(
        ConfigError, match=r"there is no GPU 7 on this machine; there are: 0 \(Card 0\), 1 \(Card 1\), 2 \(Card 2\)\."
    ):
        plan_launch("0,7", {})


def test_without_a_gpu_ids_are_one_process_but_processes_may_be_asked_for(gpus):
    gpus()
    assert plan_launch("0,1", {}) is None and plan_launch("all", {}) is None
    assert plan_launch("cpu", {"nproc_per_node": "2"}).n_ranks == 2
    assert plan_launch("0,1", {"nproc_per_node": "2"}).n_here == 2
    with pytest.raises(ConfigError, match="--nproc_per_node is 3, but gpu_to_use names 2 GPUs; leave one of them out"):
        plan_launch("0,1", {"nproc_per_node": "3"})


def test_a_machine_alone_uses_the_loopback_interface_and_several_meet_where_they_are_told():
    alone = Launch(2, {}).torchrun_arguments("run")
    assert {
        "--nnodes=1",
        "--rdzv_endpoint=127.0.0.1:0",
        "--local_addr=127.0.0.1",
        "--max_restarts=3",
        "--nproc_per_node=2",
    } <= {*alone}
    several = Launch(4, {"nnodes": "2", "rdzv_endpoint": "host:29500", "max_restarts": "0"})
    assert several.n_ranks == 8 and not several.on_one_machine
    assert sorted(several.torchrun_arguments("run")) == sorted(
        [
            "--rdzv_backend=c10d",
            "--rdzv_id=run",
            "--rdzv_conf=read_timeout=600",
            "--max_restarts=0",
            "--nnodes=2",
            "--rdzv_endpoint=host:29500",
            "--nproc_per_node=4",
        ]
    )


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (
            {"master_addr": "host", "node_rank": "0"},
            ["--rdzv_endpoint=host:29500", "--rdzv_conf=is_host=1,read_timeout=600"],
        ),
        (
            {"master_addr": "host", "master_port": "7", "node_rank": "3"},
            ["--rdzv_endpoint=host:7", "--rdzv_conf=is_host=0,read_timeout=600"],
        ),
        (
            {"rdzv_endpoint": "host:7", "node_rank": "1", "rdzv_conf": "join_timeout=5"},
            ["--rdzv_endpoint=host:7", "--rdzv_conf=read_timeout=5,join_timeout=5"],
        ),
    ],
)
def test_the_older_way_to_name_the_place_is_the_same_place(options, arguments):
    given = Launch(1, {"nnodes": "2"} | options).torchrun_arguments("run")
    assert {*arguments} <= {*given} and not any(word.startswith(("--node_rank", "--master")) for word in given)


def test_fewer_tasks_than_processes_are_refused():
    check_task_count(2, 2)
    with pytest.raises(ConfigError, match="is 2, but 3 processes share these tasks, each at least one"):
        check_task_count(2, 3)


def test_what_the_lowest_rank_says_counts(tmp_path):
    assert departure(tmp_path) is None
    for index, code in ((10, 2), (9, 130)):
        (tmp_path / f"left_{index}.json").write_text(json.dumps({"code": code}))
    assert departure(tmp_path) == {"code": 130}


def test_who_hears_of_its_own_leaving_from_elsewhere_still_speaks_for_itself(tmp_path, capfd):
    """What it tells the other machines comes back to it, on a thread of its own: before its own words, or after."""
    rank = Rank(0, 2, 0, 1, tmp_path)

    def hear(text):
        rank.write_departure(json.loads(text), elsewhere=True)
        assert departure(tmp_path)["elsewhere"]

    assert rank.leave(ConfigError("no such key"), hear) == 0
    own = {"code": 1, "signal": None, "text": "no such key", "elsewhere": False}
    assert departure(tmp_path) == own
    rank.write_departure(own, elsewhere=True)
    assert departure(tmp_path) == own
    # No two of the four writers of two ranks have a file in common, which one could move away from the other.
    rank.write_departure(own)
    for elsewhere in (False, True):
        Rank(1, 2, 1, 2, tmp_path).write_departure(own, elsewhere=elsewhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"left_{index}.json" for index in range(4)]


# --- life and death ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.full),
        pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.full),
    ],
)
def test_a_signal_reaches_all_ranks_and_gives_its_exit_code(launch, tmp_path, number, code):
    process = launch("wait")
    wait_until(lambda: all((tmp_path / f"ready {index}").exists() for index in range(2)), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, errors
    assert (tmp_path / "saved 0").exists() and (tmp_path / "saved 1").exists()
    assert [restarts for _, _, restarts in starts(tmp_path)] == [0, 0]
    assert all(is_gone(process_id) for _, process_id, _ in starts(tmp_path))
    assert (tmp_path / "stopped").read_text().startswith(f"{number.name}: ")
    assert "Traceback" not in errors


def test_when_the_launcher_is_killed_its_processes_are_gone(launch, tmp_path):
    process = launch("wait")
    wait_until(lambda: all((tmp_path / f"ready {index}").exists() for index in range(2)), process)
    process.kill()
    begin = time.monotonic()
    wait_until(lambda: all(is_gone(process_id) for _, process_id, _ in starts(tmp_path)))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("bad data", 2, "a folder is empty"),
        pytest.param("rank 1", 3, "the loss is nan", marks=pytest.mark.full),
    ],
)
def test_who_leaves_on_purpose_is_not_started_again_and_speaks_once(launch, tmp_path, what, code, text):
    process = launch(what)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, errors
    assert errors.count(text) == 1
    once = sorted((index, restarts) for index, _, restarts in starts(tmp_path))
    assert once in ([(0, 0), (1, 0)], [(0, 0)])  # the second one may come so late that it has nothing to begin


def test_a_process_that_dies_has_the_group_started_again(launch, tmp_path):
    process = launch("once killed")
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert sorted((index, restarts) for index, _, restarts in starts(tmp_path)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.full
def test_where_a_process_dies_on_one_machine_those_of_both_are_started_again(launch, tmp_path):
    several = {
        "nnodes": "2",
        "nproc_per_node": "1",
        "rdzv_endpoint": f"127.0.0.1:{free_port()}",
        "local_addr": "127.0.0.1",
    }
    processes = [launch("once killed", **several) for _ in range(2)]
    errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sorted((index, earlier) for index, _, earlier in starts(tmp_path)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.full
def test_when_restarts_are_used_up_the_code_is_that_of_the_kill(launch, tmp_path):
    process = launch("always killed", restarts=0)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 137
    assert (
        "A process of this run was killed by SIGKILL" in errors
        and "Run the same command to go on from the last save." in errors
    )


# --- real runs --------------------------------------------------------------------------------------------------------


KEYS = [
    text
    for key, value in (FLAGS | {"num_evaluation_tasks": 31, "batch_size": 3}).items()
    for text in (f"--{key}", str(value))
]


class TwoRanks:
    """experiment_scripts/quickstart.sh in two processes on the CPU, shortened by flags, below one folder."""

    def __init__(self, folder):
        self.folder, self.run_folder = folder, folder / "experiments" / "quickstart"
        folder.mkdir(parents=True, exist_ok=True)

    def environment(self, datasets):
        return {
            "DATASET_DIR": str(datasets),
            "EXPERIMENTS_DIR": str(self.folder / "experiments"),
            "VIRTUAL_ENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
        }

    def undisturbed(self, datasets):
        """The same run in forks of this process."""
        config = ["--name_of_args_json_file", str(REPOSITORY_ROOT / "experiment_config" / "quickstart.json")]
        with mock.patch.dict(os.environ, self.environment(datasets)):
            codes = in_ranks(
                2, lambda group, rank: train_maml_system.main([*config, *KEYS]), joined=False, limit_s=LIMIT_S
            )
        assert codes == [0, 0]
        return self.run_folder

    def start(self, datasets):
        environment = os.environ | self.environment(datasets)
        script = REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sh"
        with open(self.folder / "output.txt", "wb") as output:
            return subprocess.Popen(
                ["bash", script, "--nproc_per_node", "2", "--max_restarts", "12", "--", *KEYS],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
            )

    def output(self):
        return (self.folder / "output.txt").read_text(errors="replace")

    def finish(self, process):
        assert process.wait(timeout=2 * LIMIT_S) == 0, self.output()
        return self.run_folder


def kill_rank(process, rank, when):
    """Kill it once `when()` is true; returns whether it was there to be killed."""
    wait_until(lambda: when() or process.poll() is not None)
    victim = children_of(process.pid).get(rank)
    if victim is None or process.poll() is not None:
        return False
    os.kill(victim, signal.SIGKILL)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
@pytest.mark.full
@pytest.mark.parametrize("kills", [2, 10])
def test_a_run_whose_ranks_are_killed_ends_with_the_same_bits(tmp_path, kills):
    datasets = tmp_path / "datasets"
    whole, killed = TwoRanks(tmp_path / "whole"), TwoRanks(tmp_path / "killed")
    whole.undisturbed(datasets)
    process = killed.start(datasets)
    if kills == 2:
        metrics = killed.run_folder / "logs" / "metrics.jsonl"
        assert kill_rank(process, 0, lambda: metrics.exists() and metrics.stat().st_size > 0)
        assert kill_rank(process, 1, lambda: "Testing" in killed.output())
    else:
        generator = random.Random(0)
        for number in range(kills):  # wherever they are: importing, training, testing
            wait_until(lambda: len(children_of(process.pid)) == 2 or process.poll() is not None)
            time.sleep(generator.uniform(0, 6))
            kill_rank(process, number % 2, lambda: True)
    killed.finish(process)
    assert differences(killed.run_folder, whole.run_folder) == []
    assert "This is a bug" not in killed.output()
    second = subprocess.Popen([sys.executable, "-c", HOLD, killed.run_folder], stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline() == "held\n"
    refused = killed.start(datasets)
    assert refused.wait(timeout=LIMIT_S) == 5
    assert killed.output().count("in use by process") == 1
    second.kill()
    second.communicate()


HOLD = """
import sys, time
from pathlib import Path
from experiment_parts.runs.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("held", flush=True)
time.sleep(600)
"""
