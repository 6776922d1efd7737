"""What install.sh does on machines of several kinds, without a network: uv and pip are stand-ins that record calls."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from utils.machine.packages import requirements
from utils.paths import REPOSITORY_ROOT

TO_TRAIN, TO_TEST = requirements(), requirements("requirements-dev.txt")
PACKAGES = [package.name for package in TO_TRAIN]
WANTED = [f"{name}>={least}" if least else name for name, least, _ in TO_TRAIN]


INSTALLER = '''
import os, re, sys
from pathlib import Path

def install(python, arguments):
    """Record a `pip install` and make the packages, as far as anyone looks."""
    if "--constraint" in arguments:
        place = arguments.index("--constraint") + 1
        arguments = [*arguments[:place], Path(arguments[place]).read_text().strip(), *arguments[place + 1 :]]
    with open(os.environ["RECORD"], "a") as record:
        print("install", *arguments, file=record)
    if os.environ.get("FAIL_ON", "nothing") in arguments:
        sys.exit("stand-in: refused")
    skip = False
    for word in arguments:
        if skip or word.startswith("-"):
            skip = not skip and word in ("--index-url", "--constraint", "--retries")
            continue
        name = re.split("[>=]", word)[0]
        site = next((Path(python).parent.parent / "lib").glob("python*/site-packages"))
        folder = site / f"{name.replace('-', '_')}-9.0.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 9.0\\n")
        (site / f"{name}.py").write_text("")
        if os.environ.get("KILL_AFTER") == name:
            os.killpg(os.getpgrp(), 9)
'''

UV = """
if sys.argv[1] == "venv":
    import venv
    with open(os.environ["RECORD"], "a") as record:
        print("venv", file=record)
    venv.create(sys.argv[-1], symlinks=True)
else:
    python = sys.argv[sys.argv.index("--python") + 1]
    install(python, [word for word in sys.argv[3:] if word not in ("--python", python)])
"""

PIP = """
install(sys.executable, sys.argv[2:])
"""


class Machine:
    """A fresh checkout, spaces in its path, and a PATH with a stand-in for uv."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a check out"
        self.root.mkdir()
        for name in ("install.sh", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(REPOSITORY_ROOT / name, self.root)
        self.record = folder / "record"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.provide_uv()
        self.program("python3", f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def provide_uv(self) -> None:
        """Put the stand-in on the PATH; through bash, as a first line cannot name a Python with a space in its path."""
        (self.bin / "uv.py").write_text(INSTALLER + UV)
        self.program("uv", f'#!/usr/bin/env bash\nexec "{sys.executable}" "{self.bin / "uv.py"}" "$@"\n')

    def environment(self, **variables: str) -> dict[str, str]:
        cleared = {
            k: v
            for k, v in os.environ.items()
            if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "TORCH_VARIANT", "PYTHONPATH")
        }
        given = {"PATH": f"{self.bin}:/usr/bin:/bin", "RECORD": str(self.record), "PIP_NO_INDEX": "1"}
        return cleared | given | variables

    def install(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", self.root / "install.sh", *arguments], env=self.environment(**variables), cwd=self.root.parent,
            capture_output=True, text=True, check=False, start_new_session=True,
        )  # fmt: skip

    def calls(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []


@pytest.fixture
def machine(tmp_path):
    """A machine with Python and a stand-in for uv, no environment activated."""
    return Machine(tmp_path)


@pytest.fixture
def activated(machine):
    """A virtual environment to activate, with a stand-in for pip and without packages."""
    folder = machine.root.parent / "my env"
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text(INSTALLER + PIP)
    (machine.bin / "uv").unlink()
    return folder


def give(environment: Path, **versions: str) -> None:
    site = next((environment / "lib").glob("python*/site-packages"))
    for name, version in versions.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (site / f"{name}.py").write_text("")


def test_without_an_environment_one_is_made_and_the_second_time_nothing_happens(machine):
    result = machine.install("--print-python")
    assert (result.returncode, result.stdout) == (0, f"{machine.root}/.venv/bin/python\n")
    assert machine.calls() == [
        "venv",
        f"install {' '.join(WANTED)}",
    ]
    machine.record.unlink()
    again = machine.install("--print-python")
    assert (again.returncode, again.stdout, again.stderr) == (0, result.stdout, "")
    assert machine.calls() == []


def test_dev_adds_only_what_the_tests_need(machine):
    machine.install()
    machine.record.unlink()
    assert machine.install("--dev").returncode == 0
    assert machine.calls() == [f"install --constraint torch==9.0 {' '.join(package.name for package in TO_TEST)}"]


def test_an_activated_environment_with_everything_is_used_untouched(machine, activated):
    give(activated, **dict.fromkeys(PACKAGES, "9.0"))
    result = machine.install("--print-python", VIRTUAL_ENV=str(activated))
    assert (result.stdout, result.stderr) == (f"{activated}/bin/python\n", "")
    conda = machine.install("--print-python", CONDA_PREFIX=str(activated))
    assert conda.stdout == f"{activated}/bin/python\n"
    assert machine.calls() == []
    assert not (machine.root / ".venv").exists()


def test_an_activated_environment_gets_only_what_it_lacks_and_keeps_its_torch(machine, activated):
    give(activated, torch="2.11.0+cu130", numpy="2.0", tqdm="4.0", pillow="11.0", scipy="1.0", pydantic="2.1")
    result = machine.install("--print-python", VIRTUAL_ENV=str(activated))
    assert result.returncode == 0, result.stderr
    assert machine.calls() == [
        "install --retries 1 --index-url https://download.pytorch.org/whl/cu130"
        " --constraint torch==2.11.0+cu130 torchvision",
        "install --constraint torch==2.11.0+cu130 pydantic>=2.7 safetensors matplotlib fonttools jinja2",
    ]
    assert not (machine.root / ".venv").exists()


def test_a_plain_torch_takes_the_plain_torchvision(machine, activated):
    give(activated, torch="2.11.0", **dict.fromkeys(set(PACKAGES) - {"torch", "torchvision"}, "9.0"))
    assert machine.install(VIRTUAL_ENV=str(activated)).returncode == 0
    assert machine.calls() == ["install --constraint torch==2.11.0 torchvision"]


def test_an_activated_environment_with_an_old_torch_is_left_alone(machine, activated):
    give(activated, torch="2.10.1")
    machine.provide_uv()
    result = machine.install("--print-python", VIRTUAL_ENV=str(activated))
    assert result.stdout == f"{machine.root}/.venv/bin/python\n"
    assert f"{activated} has no Python >= 3.11 with torch >= 2.11: using .venv" in result.stderr
    assert machine.calls()[0] == "venv"


def test_a_variant_of_torch_comes_from_its_own_index(machine):
    assert machine.install(TORCH_VARIANT="cpu").returncode == 0
    assert machine.calls()[1:] == [
        "install --index-url https://download.pytorch.org/whl/cpu torch>=2.11 torchvision",
        f"install --constraint torch==9.0 {' '.join(WANTED[2:])}",
    ]


def test_a_variant_that_cannot_be_had_is_said_and_the_default_taken(machine):
    result = machine.install(TORCH_VARIANT="cu999", FAIL_ON="https://download.pytorch.org/whl/cu999")
    assert result.returncode == 0
    assert (
        "nothing fitting from https://download.pytorch.org/whl/cu999 (not reachable, or no such variant)"
        in result.stderr
    )
    assert machine.calls()[-1].startswith(f"install {' '.join(WANTED[:3])}")


def test_a_torch_that_is_there_is_not_replaced_by_a_variant(machine, activated):
    give(activated, **dict.fromkeys(PACKAGES, "9.0"))
    result = machine.install(VIRTUAL_ENV=str(activated), TORCH_VARIANT="cu130")
    assert "torch 9.0 is there and stays; TORCH_VARIANT=cu130 has no effect" in result.stderr
    assert (result.returncode, machine.calls()) == (0, [])
    assert 'TORCH_VARIANT is "../x"; it must be like cpu or cu130' in machine.install(TORCH_VARIANT="../x").stderr


def test_a_set_up_killed_half_way_is_mended_by_the_next(machine):
    assert machine.install(KILL_AFTER="numpy").returncode == -9
    result = machine.install()
    assert "an earlier set-up was interrupted: starting .venv again" in result.stderr
    assert result.returncode == 0
    assert machine.install().stderr == ""


@pytest.mark.full
def test_an_environment_whose_python_is_gone_is_made_again(machine):
    machine.install()
    (machine.root / ".venv" / "bin" / "python").unlink()
    result = machine.install()
    assert result.returncode == 0
    assert ".venv does not work any more" in result.stderr


def test_somebody_elses_broken_environment_is_never_deleted(machine):
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv" / "precious").write_text("")
    result = machine.install()
    assert result.returncode == 1
    assert (
        "is no working environment with Python >= 3.11, and this script did not make it: move it away" in result.stderr
    )
    assert (machine.root / ".venv" / "precious").exists()


@pytest.mark.full
def test_two_set_ups_at_once_are_one(machine):
    processes = [
        subprocess.Popen(["bash", machine.root / "install.sh"], env=machine.environment(), stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(machine.calls()) == 2


def test_no_network_is_one_clear_message(machine, activated):
    give(activated, torch="9.0")
    result = machine.install(VIRTUAL_ENV=str(activated), FAIL_ON="safetensors")
    assert result.returncode == 1
    assert (
        f"the packages above could not be added to {activated}/bin/python (a torch that was there was not touched)"
        in result.stderr
    )


def test_an_old_python_is_refused_with_its_version(machine):
    for name in ("bash", "dirname", "grep"):
        (machine.bin / name).symlink_to(shutil.which(name))
    machine.program("python3", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    result = machine.install(PATH=str(machine.bin))
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed, but Python 3.9.2 is what there is" in result.stderr
    assert not (machine.root / ".venv").exists()


def test_a_python_without_its_venv_package_is_explained(machine):
    (machine.bin / "uv").unlink()
    machine.program(
        "python3", f'#!/usr/bin/env bash\n[[ "$1 $2" != "-m venv" ]] || exit 1\nexec "{sys.executable}" "$@"\n'
    )
    result = machine.install()
    assert result.returncode == 1
    assert "apt install python3-venv. Then run it again." in result.stderr


def test_an_unknown_argument_is_refused(machine):
    result = machine.install("--devel")
    assert result.returncode == 1
    assert 'unknown argument "--devel"; known are --dev and --print-python' in result.stderr
