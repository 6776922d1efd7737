"""Two launchers on the loopback interface in the place of two machines: one run, stopped, killed, and never begun.

Each is the real script with one process on the CPU. They meet at the first, and share the folder of experiments.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.parts.interrupted_scripts import FLAGS, with_default_signals
from experiment_parts.runs.comparison import differences
from tests.tools.ranks import LIMIT_S, children_of, free_port, stat_of, wait_until
from utils.paths import REPOSITORY_ROOT

KEYS = FLAGS | {"num_evaluation_tasks": 31, "batch_size": 3, "precision": "float64"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")


class Machines:
    """Launchers of one run, each with an address as on a machine of its own.

    `main`: the one that gets process 0, whose address sorts first; unless it is said, not the one at which they meet.
    """

    def __init__(self, folder, datasets, keys=KEYS, main=1):
        self.folder, self.datasets, self.keys, self.main = folder, datasets, keys, main
        self.run_folder = folder / "experiments" / "quickstart"
        folder.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.processes = []

    def start(self, index, *options, waits=(), keys=None, datasets=None, experiments=None):
        """The launcher of one machine, in a session of its own."""
        environment = os.environ | {
            "DATASET_DIR": str(datasets or self.datasets),
            "EXPERIMENTS_DIR": str(experiments or self.folder / "experiments"),
            "VIRTUAL_ENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "RUN_STOPPED_FILE": str(self.folder / f"stopped_{index}"),
        }
        given = ["--nnodes=2", f"--rdzv_endpoint={self.endpoint}", f"--local_addr=127.0.0.{1 + (index != self.main)}"]
        conf = ",".join([f"is_host={int(index == 0)}", *waits])  # else both could be
        given += [f"--rdzv_conf={conf}", *options, "--"]
        given += [text for key, value in (self.keys | (keys or {})).items() for text in (f"--{key}", str(value))]
        with open(self.folder / f"output_{index}.txt", "ab") as output:
            process = subprocess.Popen(
                ["bash", REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sh", *given],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
            )
        self.processes.append(process)
        return process

    def both(self, *options, waits=()):
        return [self.start(index, *options, waits=waits) for index in range(2)]

    def output(self, index):
        return (self.folder / f"output_{index}.txt").read_text(errors="replace")

    def outputs(self):
        return "\n--- the second ---\n".join(
            self.output(index) for index in range(2) if (self.folder / f"output_{index}.txt").exists()
        )

    def end(self, processes, limit_s=LIMIT_S):
        """Exit codes, in this order."""
        deadline = time.monotonic() + limit_s
        try:
            return [process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"not at an end after {limit_s} s; exit codes: "
                f"{[process.poll() for process in processes]}\n{self.outputs()}"
            )

    def trains(self):
        """It has written down iterations."""
        metrics = self.run_folder / "logs" / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_size > 0

    def wait_until_it_trains(self, processes):
        wait_until(lambda: self.trains() or any(process.poll() is not None for process in processes))
        assert self.trains() and all(process.poll() is None for process in processes), self.outputs()

    def kill_process_of(self, launcher):
        """Kill the rank of a machine."""
        (victim,) = children_of(launcher.pid).values()
        os.kill(victim, signal.SIGKILL)

    def clean_up(self):
        for process in self.processes:
            for victim in (*family_of(process.pid), process.pid):
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()


def family_of(process_id):
    """All processes below one."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and int(stat_of(entry)[1]) == process_id:
                found += [int(entry), *family_of(int(entry))]
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder for all tests here: its datasets."""
    return tmp_path_factory.mktemp("two_machines")


@pytest.fixture
def machines(tmp_path, shared):
    made = []

    def make(name="run", **options):
        made.append(Machines(tmp_path / name, shared / "datasets", **options))
        return made[-1]

    yield make
    for one in made:
        one.clean_up()


@pytest.fixture(scope="module")
def one_launcher(shared):
    """The folder of the same run by one launcher with two processes."""
    folder, datasets = shared / "one", shared / "datasets"
    environment = os.environ | {
        "DATASET_DIR": str(datasets),
        "EXPERIMENTS_DIR": str(folder / "experiments"),
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }
    arguments = [
        "--nproc_per_node",
        "2",
        "--",
        *(text for key, value in KEYS.items() for text in (f"--{key}", str(value))),
    ]
    done = subprocess.run(
        ["bash", REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sh", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "experiments" / "quickstart"


@pytest.mark.full
@pytest.mark.parametrize("main", [0, 1])
def test_two_launchers_end_with_the_bits_of_one_with_two_processes(machines, one_launcher, main):
    two = machines(main=main)
    started = two.both()
    assert two.end(started) == [0, 0], two.outputs()
    assert "Test accuracy" in two.output(main) and two.output(1 - main).strip() == ""
    assert differences(two.run_folder, one_launcher) == []
    assert '"processes": 2' in (two.run_folder / "environment.json").read_text()
    again = two.both()  # finished: said again
    assert two.end(again) == [0, 0] and two.output(main).count("Test accuracy") > 1
    assert not list(two.run_folder.glob(".*.partial"))


@pytest.mark.full
@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_a_signal_to_either_launcher_stops_both_and_both_go_on(machines, one_launcher, told, number, code):
    two = machines()
    started = two.both()
    two.wait_until_it_trains(started)
    started[told].send_signal(number)
    assert two.end(started) == [code, code], two.outputs()
    saved = f"{number.name}: saved at iteration"
    assert saved in two.output(two.main)
    assert all((two.folder / f"stopped_{index}").read_text().startswith(saved) for index in range(2))
    assert two.end(two.both()) == [0, 0] and "Resuming" in two.output(two.main)
    assert differences(two.run_folder, one_launcher) == []


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_on_either_machine_has_all_started_again(machines, one_launcher, victim):
    """And a start that is repeated begins nothing anew, although torchrun's count may be 0 on rank 0's machine."""
    two = machines(keys=KEYS | {"continue_from_epoch": "from_scratch"})
    started = two.both()
    two.wait_until_it_trains(started)
    two.kill_process_of(started[victim])
    assert two.end(started) == [0, 0], two.outputs()
    assert "Resuming" in two.output(two.main)
    assert [path.name for path in two.run_folder.parent.iterdir()] == ["quickstart"]
    assert differences(two.run_folder, one_launcher) == []


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_without_restarts_both_end_and_go_on_with_the_same_command(machines, victim):
    two = machines()
    started = [two.start(index, f"--max_restarts={0 if index == victim else 3}") for index in range(2)]
    two.wait_until_it_trains(started)
    two.kill_process_of(started[victim])
    codes = two.end(started)
    assert codes[victim] == 137 and codes[1 - victim], two.outputs()
    assert "was killed by SIGKILL" in two.output(victim)
    reason = "Another machine has ended this run." if victim else f"Nothing answers at {two.endpoint}, where"
    assert reason in two.output(1 - victim)
    assert "Run the same command on all machines to go on from the last save." in two.output(1 - victim)
    assert "Traceback" not in two.outputs()
    assert two.end(two.both()) == [0, 0] and "Resuming" in two.output(two.main)


@pytest.mark.full
def test_a_machine_that_comes_in_the_place_of_a_lost_one_begins_nothing_anew(machines, one_launcher):
    """It gets process 0, and the command that it is given says from_scratch."""
    two = machines(keys=KEYS | {"continue_from_epoch": "from_scratch"})
    started = two.both()
    two.wait_until_it_trains(started)
    started[1].kill()
    back = two.start(1)
    assert two.end([started[0], back]) == [0, 0], two.outputs()
    assert "Resuming" in two.output(1)
    assert [path.name for path in two.run_folder.parent.iterdir()] == ["quickstart"]
    assert differences(two.run_folder, one_launcher) == []


@pytest.mark.full
@pytest.mark.parametrize("lost", [0, 1])
def test_who_waits_in_vain_for_a_lost_machine_says_so(machines, lost):
    two = machines()
    started = two.both(waits=["join_timeout=25"])
    two.wait_until_it_trains(started)
    started[lost].kill()
    assert two.end([started[1 - lost]]) == [137], two.outputs()
    output = two.output(1 - lost)
    text = (
        f"Nothing answers at {two.endpoint}"
        if lost == 0
        else f"Waited 25 s for 2 machines at {two.endpoint}, but not all came."
    )
    assert text in output and "Run the same command on all machines to go on from the last save." in output
    assert "Traceback" not in output
    assert two.end(two.both()) == [0, 0] and "Resuming" in two.output(two.main)


@pytest.mark.full
@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "Waited 3 s for 2 machines at {endpoint}, but not all came."),
        (1, "Nothing answers at {endpoint}, where the machines of this run meet."),
    ],
)
def test_a_machine_that_never_comes_is_one_message(machines, index, text):
    two = machines()
    if index:
        two.endpoint = two.endpoint.replace("127.0.0.1", "127.0.0.1.nowhere.invalid")
    alone = two.start(index, waits=["join_timeout=3"])
    assert two.end([alone]) == [1]
    expected = text.format(endpoint=two.endpoint) + (
        "\nStart the same command on all machines within 3 s, with the same --nnodes, --rdzv_endpoint and "
        "experiment_name. --rdzv_conf join_timeout=SECONDS waits longer.\n"
    )
    notice = f"Waiting for 2 machines at {two.endpoint}, at most 3 s.\n"  # where importing torch takes 20 s
    assert two.output(index).removeprefix(notice) == expected
    assert not two.run_folder.exists()


@pytest.mark.full
def test_a_signal_while_a_machine_is_missing_ends_the_waiting(machines):
    two = machines()
    alone = two.start(0)
    wait_until(lambda: "Waiting for 2 machines at" in two.output(0), alone)
    alone.send_signal(signal.SIGTERM)
    assert two.end([alone]) == [143]


@pytest.mark.full
def test_another_config_on_the_second_machine_is_refused(machines):
    two = machines(main=0)
    started = [two.start(0), two.start(1, keys={"meta_learning_rate": 0.002})]
    assert two.end(started) == [1, 1], two.outputs()
    assert "meta_learning_rate is 0.001 in process 0" in two.output(0) and "0.002 in process 1" in two.output(0)
    assert "A process on another machine of this run: the processes of this run were not started alike" in two.output(1)
    assert "Traceback" not in two.outputs() and not two.run_folder.exists()


@pytest.mark.full
def test_other_images_on_the_second_machine_are_refused(machines, shared, one_launcher, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shared / "datasets", other, ignore=shutil.ignore_patterns(".packed"))
    one, another = sorted((other / "synthetic_strokes").rglob("*.png"))[:2]
    content = one.read_bytes()
    shutil.copy(another, one)
    another.write_bytes(content)  # none is there twice
    two = machines("other images")
    started = [two.start(0), two.start(1, datasets=other)]
    assert two.end(started) == [2, 2], two.outputs()
    text = "the images differ between the machines of this run: content_sha256 of synthetic_strokes is"
    assert text in two.output(two.main)


@pytest.mark.full
def test_a_machine_with_an_experiments_folder_of_its_own_is_refused(machines, one_launcher, tmp_path):
    """Process 0 is on the one that has not seen the run: nothing is begun there, and nothing changes on the other."""
    two, own = machines(), tmp_path / "own"
    shutil.copytree(one_launcher, two.run_folder)
    (two.run_folder / "logs" / "test_summary.json").unlink()
    started = [two.start(0), two.start(1, experiments=own)]
    assert two.end(started) == [1, 1], two.outputs()
    assert "EXPERIMENTS_DIR must be one folder that all machines of a run share" in two.output(1)
    assert "A process on another machine of this run: EXPERIMENTS_DIR must be one folder" in two.output(0)
    assert "Traceback" not in two.outputs() and list(own.iterdir()) == []
    assert {*names_in(one_launcher)} - {*names_in(two.run_folder)} == {"test_summary.json"}


def names_in(folder):
    return (path.name for path in folder.rglob("*"))


@pytest.mark.full
def test_what_one_machine_cannot_do_ends_both(machines):
    """Before they have joined, too: the first one waits for a second that has no such folder."""
    two = machines(keys=KEYS | {"sets_are_pre_split": "true"})
    started = two.both()
    assert two.end(started) == [2, 2], two.outputs()
    assert all("synthetic_strokes" in two.output(index) and "Traceback" not in two.output(index) for index in range(2))
