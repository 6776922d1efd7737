"""What all tools have in common: that they are listed, and that a reader may go away."""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from experiment_tools.__main__ import tools
from utils.paths import REPOSITORY_ROOT, command, module_of


def test_the_tools_for_users_are_listed_and_no_others():
    folder = REPOSITORY_ROOT / "experiment_tools"
    paths = [*folder.glob("[a-z]*.py"), *folder.glob("*/__main__.py")]
    can_be_run = {path for path in paths if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    named = {path.parent.name if path.stem == "__main__" else path.stem for path in can_be_run}
    listed = {typed.removeprefix("python -m experiment_tools.") for typed in tools()}
    assert {name for name in listed if " " not in name} == named
    assert all(re.fullmatch(r"[A-Z].{7,}[^.:]", text) for text in tools().values())


def without_reader(arguments, *, errors_too=False, cwd=REPOSITORY_ROOT, **environment):
    """Start a module whose standard output is a pipe that nobody reads; returns its exit code and what it says on
    the standard error.
    """
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=os.environ | environment,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


TOOLS = [
    ["experiment_tools"],
    ["experiment_tools.runs", "."],
    ["experiment_tools.report", "--help"],
    ["experiment_tools.check_gradients", "--help"],
]


@pytest.mark.parametrize("arguments", TOOLS, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(arguments):
    """As in `... | head -1`; what is printed is flushed only at the end, after the work."""
    assert without_reader(arguments, PYTHONUNBUFFERED="") == (0, "")


@pytest.mark.parametrize("errors_too", [False, True])
def test_a_reader_that_goes_away_while_a_tool_prints_is_no_error(errors_too):
    assert without_reader(["experiment_tools"], errors_too=errors_too, PYTHONUNBUFFERED="1") == (0, "")


def test_a_reader_may_go_away_while_a_tool_waits_to_print_its_last_lines():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))  # until the pipe is full
    os.set_blocking(writer, True)
    command, environment = [sys.executable, "-m", "experiment_tools"], os.environ | {"PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, cwd=REPOSITORY_ROOT, env=environment)
    time.sleep(1.0)  # the tool has done its work meanwhile; where it is slower, this is the test above
    os.close(reader)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0


def test_the_other_lines_of_a_tool_are_read_as_ever():
    command = f"set -o pipefail; '{sys.executable}' -m experiment_tools | cat | tail -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(f"{list(tools())[-1]} ") and done.stderr == ""


@pytest.mark.parametrize("name", ["adapt", "compare", "demo", "export", "new_method", "report", "runs", "sweep"])
def test_help_begins_with_the_command_that_was_typed(name, capsys):
    module = importlib.import_module(module_of(name))
    module = importlib.import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {command(name)} [-h]")


@pytest.mark.parametrize("code", [0, 1])
def test_a_new_method_is_trained_and_compared_once_its_gradient_is_right(code, tmp_path, capsys, monkeypatch):
    program = importlib.import_module("experiment_tools.new_method.__main__")
    monkeypatch.setattr(program, "check_gradients", lambda arguments: code)
    assert program.main(["mine", "--kind", "loss", "--folder", str(tmp_path)]) == code
    shown = capsys.readouterr().out
    assert f"quickstart --experiment_name mine --loss mine --plugin {tmp_path / 'mine.py'}\n" in shown or code
    assert (f"{command('compare')} quickstart mine" in shown) == (code == 0)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("torch", "loss", "torch: there is a module of this name already, which torch.py would hide"),
        ("prototypes", "head", 'there is a head "prototypes" already; give another NAME'),
    ],
)
def test_a_new_method_with_a_name_that_is_taken_writes_nothing(name, kind, message, tmp_path, capsys):
    program = importlib.import_module("experiment_tools.new_method.__main__")
    assert program.main([name, "--kind", kind, "--folder", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_pipe_that_breaks_elsewhere_is_an_error_with_its_traceback(tmp_path):
    shutil.copytree(
        REPOSITORY_ROOT / "experiment_tools",
        tmp_path / "experiment_tools",
        ignore=lambda _, names: set(names) - {"__init__.py"},
    )
    (tmp_path / "experiment_tools" / "tool.py").write_text(
        "import os\nreader, writer = os.pipe()\nos.close(reader)\nos.write(writer, b'x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "experiment_tools.tool"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (
        done.returncode == 1
        and done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
        and "Traceback" in done.stderr
    )
