"""Jobs for SLURM, with stand-ins for `srun` and `scontrol`: what is started, and when the job goes back into the
queue.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.parts.interrupted_scripts import FLAGS, with_default_signals
from script_generation_tools.generate_scripts import generate_scripts
from utils.paths import REPOSITORY_ROOT

RECORD = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0") $*" >>"$RECORD"\n'
SRUN = RECORD + 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = RECORD + 'if [[ "$1" == show ]]; then printf "%s\\n" first-machine second-machine; fi\n'


@pytest.fixture
def job(tmp_path):
    """A checkout with spaces in its path, whose launcher is `launch.sh` of the test; `job(name, *arguments,
    launcher=..., **environment)`.
    """
    root = tmp_path / "a check out"
    (root / "script_generation_tools").mkdir(parents=True)
    (root / "experiment_config").mkdir()
    tools = REPOSITORY_ROOT / "script_generation_tools"
    shutil.copy(tools / "slurm_job.sh", root / "script_generation_tools")
    for name in ("small++_seed0", "small++_seed3", "alone"):
        (root / "experiment_config" / f"{name}.json").write_text("{}")
    generate_scripts(root / "experiment_config", root / "experiment_scripts", tools / "local_run_template_script.sh")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)

    def start(name, *arguments, launcher=RECORD, **environment):
        (root / "script_generation_tools" / "launch.sh").write_text(launcher)
        # As SLURM does it: from the folder of the submission, by a copy of the file that lies elsewhere.
        shutil.copy(root / "experiment_scripts" / name, tmp_path / "slurm_script")
        own = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "RECORD": str(tmp_path / "record"),
            "SLURM_SUBMIT_DIR": str(root),
            "SLURM_JOB_ID": "77",
        }
        return subprocess.Popen(
            ["bash", tmp_path / "slurm_script", *arguments],
            cwd=root,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
        )

    start.record = lambda: (tmp_path / "record").read_text().splitlines() if (tmp_path / "record").exists() else []
    return start


def end(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_a_job_of_an_array_runs_the_script_of_its_seed_on_all_gpus(job):
    code, _, errors = end(job("small++.sbatch", "--batch_size", "2", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_JOB_ID="70"))
    assert (code, errors) == (0, "")
    assert job.record() == ["launch.sh train_maml_system.py experiment_config/small++_seed3.json all --batch_size 2"]


def test_a_setting_without_seeds_is_one_job(job):
    assert end(job("alone.sbatch"))[0] == 0
    assert job.record() == ["launch.sh train_maml_system.py experiment_config/alone.json all"]


def test_a_seed_that_is_not_there_is_named(job):
    code, _, errors = end(job("small++.sbatch", SLURM_ARRAY_TASK_ID="5"))
    assert (
        code == 1
        and "small++_seed5.sh does not exist. The seeds that there are: the --array of the .sbatch file" in errors
    )


@pytest.mark.parametrize("options", [[], ["--max_restarts", "5", "--"]])
def test_several_machines_meet_at_the_first(job, options):
    several = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "m[1-2]", "SLURM_CPUS_PER_TASK": "4"}
    assert end(job("alone.sbatch", *options, "--tag", "x", **several))[0] == 0
    show, srun, launch = job.record()
    assert show == "scontrol show hostnames m[1-2]" and srun.startswith(
        "srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=4 bash "
    )
    given = " ".join([*options, "--tag x"] if options else ["--", "--tag x"])
    assert launch.endswith(f"alone.json all --nnodes 2 --rdzv_endpoint first-machine:20077 {given}")


WAITS = """#!/usr/bin/env bash
trap 'echo "SIGUSR1: saved at iteration 5" >"$RUN_STOPPED_FILE"; exit 0' USR1
trap 'echo "SIGTERM: saved at iteration 5" >"$RUN_STOPPED_FILE"; exit 143' TERM
echo ready
while :; do sleep 0.02; done
"""
FINISHES = WAITS.replace(
    """'echo "SIGUSR1: saved at iteration 5" >"$RUN_STOPPED_FILE"; exit 0' USR1""", "'exit 0' USR1"
)


@pytest.mark.parametrize(
    ("launcher", "number", "environment", "code", "requeued"),
    [
        (WAITS, signal.SIGUSR1, {}, 0, ["scontrol requeue 77"]),
        (WAITS, signal.SIGUSR1, {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, 0, ["scontrol requeue 70_3"]),
        (FINISHES, signal.SIGUSR1, {}, 0, []),
        (WAITS, signal.SIGTERM, {}, 143, []),
        (WAITS, signal.SIGUSR1, {"SLURM_RESTART_COUNT": "100"}, 1, []),
    ],
)
def test_only_a_run_that_sigusr1_has_stopped_unfinished_is_requeued(job, launcher, number, environment, code, requeued):
    process = job(
        "small++.sbatch" if environment.get("SLURM_ARRAY_TASK_ID") else "alone.sbatch", launcher=launcher, **environment
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    ended, output, errors = end(process)
    assert (ended, job.record()) == (code, requeued), errors
    assert ("Not finished: requeueing job" in output) == bool(requeued)


def test_a_run_that_fails_is_not_requeued(job):
    code, _, _ = end(job("alone.sbatch", launcher="exit 3\n"))
    assert (code, job.record()) == (3, [])


@pytest.mark.full
def test_a_real_job_stops_in_time_and_goes_on_when_it_is_started_again(job, tmp_path):
    """experiment_scripts/quickstart.sbatch of this checkout: SIGUSR1 while it trains, requeue, and again to the end."""
    keys = FLAGS | {"num_evaluation_tasks": 12, "total_iter_per_epoch": 40, "checkpoint_every_s": 600}
    arguments = [text for key, value in keys.items() for text in (f"--{key}", str(value))]
    environment = {
        "SLURM_SUBMIT_DIR": str(REPOSITORY_ROOT),
        "DATASET_DIR": str(tmp_path / "datasets"),
        "EXPERIMENTS_DIR": str(tmp_path / "experiments"),
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }
    own = (
        os.environ
        | environment
        | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record"), "SLURM_JOB_ID": "77"}
    )
    command = ["bash", REPOSITORY_ROOT / "experiment_scripts" / "quickstart.sbatch", *arguments]

    def start(**more):
        return subprocess.Popen(
            command, env=own | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=with_default_signals,  # noqa: PLW1509 -- no threads here
        )  # fmt: skip

    process, metrics = start(), tmp_path / "experiments" / "quickstart" / "logs" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "SIGUSR1: saved at iteration" in output, output
    assert job.record() == ["scontrol requeue 77"]
    again = start(SLURM_RESTART_COUNT="1")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0 and "Resuming at iteration" in output and "Test accuracy" in output, output
    assert job.record() == ["scontrol requeue 77"]
