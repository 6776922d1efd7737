"""Starting a generated script: which arguments reach Python, from where, and what is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from script_generation_tools.generate_scripts import generate_scripts
from utils.paths import REPOSITORY_ROOT

STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$RECORD"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout, spaces in its path, whose install.sh hands out a stub that records what Python is called with."""
    root = tmp_path / "a check out"
    tools = root / "script_generation_tools"
    tools.mkdir(parents=True)
    for name in ("launch.sh", "local_run_template_script.sh"):
        shutil.copy(REPOSITORY_ROOT / "script_generation_tools" / name, tools)
    (root / "experiment_config").mkdir()
    (root / "experiment_config" / "small++.json").write_text("{}")
    generate_scripts(root / "experiment_config", root / "experiment_scripts", tools / "local_run_template_script.sh")
    (root / "python stub").write_text(STUB)
    (root / "python stub").chmod(0o755)
    (root / "install.sh").write_text('[[ "$*" == --print-python ]] && printf "%s\\n" "$(dirname "$0")/python stub"\n')
    return root


def start(checkout, *arguments, cwd=None, script="small++.sh", **environment):
    """Run a script of the checkout; return the finished process and the arguments that Python got."""
    record = checkout / "record"
    command = ["bash", checkout / "experiment_scripts" / script, *arguments]
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "RECORD": str(record), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result, record.read_text().splitlines() if record.exists() else []


def config_arguments(checkout):
    return [
        str(checkout / "train_maml_system.py"),
        "--name_of_args_json_file",
        str(checkout / "experiment_config" / "small++.json"),
    ]


def test_a_script_may_be_started_through_links_elsewhere(checkout, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "one").symlink_to(checkout / "experiment_scripts" / "small++.sh")
    (folder / "two").symlink_to("one")
    result, arguments = start(checkout, "0", cwd=tmp_path, script=folder / "two")
    assert (result.returncode, result.stderr) == (0, "")
    assert arguments == [*config_arguments(checkout), "--gpu_to_use", "0"]


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ([], []),
        (["0"], ["--gpu_to_use", "0"]),
        (["0", "1"], ["--gpu_to_use", "0,1"]),
        (["0,1"], ["--gpu_to_use", "0,1"]),
        (["0,", "1"], ["--gpu_to_use", "0,1"]),
        (["0", "1,", "12"], ["--gpu_to_use", "0,1,12"]),
        (["all"], ["--gpu_to_use", "all"]),
        (["--total_epochs", "3"], ["--total_epochs", "3"]),
        (
            ["1", "--tag", "two words", "--total_epochs", "3"],
            ["--gpu_to_use", "1", "--tag", "two words", "--total_epochs", "3"],
        ),
    ],
)
def test_ids_come_first_and_everything_after_them_overrides_the_config(checkout, given, passed_on):
    result, arguments = start(checkout, *given)
    assert (result.returncode, result.stderr) == (0, "")
    assert arguments == config_arguments(checkout) + passed_on


def test_what_stands_before_two_dashes_comes_first(checkout):
    given = ["0", "1", "--nnodes", "2", "--rdzv_endpoint=host:29500", "--", "--tag", "two words"]
    result, arguments = start(checkout, *given)
    assert (result.returncode, result.stderr) == (0, "")
    program, *config = config_arguments(checkout)
    launch = ["--nnodes", "2", "--rdzv_endpoint=host:29500", "--"]
    assert arguments == [program, *launch, *config, "--gpu_to_use", "0,1", "--tag", "two words"]


def test_it_starts_from_any_folder(checkout, tmp_path):
    for folder in (tmp_path, checkout, checkout / "experiment_scripts"):
        assert start(checkout, "0", cwd=folder)[1] == [*config_arguments(checkout), "--gpu_to_use", "0"]
    record = checkout / "record"
    record.unlink()
    environment = {**os.environ, "RECORD": str(record), "CDPATH": str(tmp_path)}
    for relative, folder in (
        ("small++.sh", checkout / "experiment_scripts"),
        ("a check out/experiment_scripts/small++.sh", tmp_path),
    ):
        subprocess.run(["bash", relative, "0"], cwd=folder, env=environment, check=True)
        assert record.read_text().splitlines() == [*config_arguments(checkout), "--gpu_to_use", "0"]


def test_the_users_folders_reach_the_program(checkout, tmp_path):
    (checkout / "python stub").write_text('#!/usr/bin/env bash\necho "$DATASET_DIR $EXPERIMENTS_DIR $PWD"\n')
    result, _ = start(checkout, cwd=tmp_path, DATASET_DIR="/data/sets", EXPERIMENTS_DIR="runs")
    assert result.stdout == f"/data/sets runs {tmp_path}\n"


@pytest.mark.parametrize("word", ["cpu", "gpu0", "-1", "0;1", "total_epochs=3", ""])
def test_a_word_that_is_no_id_is_refused(checkout, word):
    result, arguments = start(checkout, "0", word)
    assert (result.returncode, arguments) == (1, [])
    assert (
        f'"{word}" is neither a GPU id nor an override. Usage: bash experiment_scripts/small++.sh [GPU ids'
        in result.stderr
    )
    assert "For the CPU: --gpu_to_use cpu." in result.stderr


def test_a_failed_set_up_ends_the_script_with_its_exit_code(checkout):
    (checkout / "install.sh").write_text("echo no network >&2; exit 1\n")
    result, arguments = start(checkout)
    assert (result.returncode, result.stderr, arguments) == (1, "no network\n", [])


def test_the_programs_exit_code_is_the_scripts(checkout):
    (checkout / "python stub").write_text("#!/usr/bin/env bash\nexit 5\n")
    assert start(checkout)[0].returncode == 5


def test_signals_reach_the_program(checkout):
    """The script becomes the program: same process, so SIGTERM meets no shell in between."""
    # Not named by the stub's first line: the interpreter's path may hold a space.
    (checkout / "python stub").write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "{checkout}/program.py"\n')
    (checkout / "program.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\nprint('ready', flush=True)\ntime.sleep(30)\n"
    )
    process = subprocess.Popen(
        ["bash", checkout / "experiment_scripts" / "small++.sh"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(timeout=10) == 143
    assert time.monotonic() - begin < 5
    process.stdout.close()
