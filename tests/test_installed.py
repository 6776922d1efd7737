"""The project as it is installed: one name, in a folder where a user has a `data.py`, a `utils` and datasets.

The wheel is built and put into an environment that sees the packages of this one, then used as a user would.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.documents.test_architecture import ROOMS
from tests.tools.datasets import unpack
from utils.paths import REPOSITORY_ROOT, __version__

pytestmark = pytest.mark.full
SHORT = "--total_epochs 2 --total_iter_per_epoch 2 --num_evaluation_tasks 2 --batch_size 2 --cnn_num_filters 4"
PROBE = """
import os, sys
OURS, KEPT = set(%r), os.environ.get("PROBE")

def note(event, arguments):
    name = arguments[0] if event == "import" else ""
    if name.partition(".")[0] in OURS or name.startswith("mamlkit."):
        inside = [path for path in sys.path if "mamlkit" in path.split(os.sep)]
        with open(os.path.join(KEPT, str(os.getpid())), "a") as file:
            print(" ".join(sys.orig_argv), name, inside, sep="\\t", file=file)

if KEPT:
    sys.addaudithook(note)
"""
"""Executed as every Python of the environment starts: writes down under which names our modules are imported, and which
folders inside the package are on sys.path.
"""


class Installed:
    """An environment with the package, and a user's folder to work in."""

    def __init__(self, folder, wheel):
        self.folder, self.environment = folder / "my work", folder / "environment"
        self.python = self.environment / "bin" / "python"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.environment)}))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        (self.packages / "outer.pth").write_text(
            "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        )
        (self.packages / "probe_of_imports.py").write_text(PROBE % sorted(ROOMS - {"mamlkit"}))
        (self.packages / "probe.pth").write_text("import probe_of_imports\n")
        self.probe = folder / "probe"
        self.before = self.listing()
        self.pip("install", "--no-deps", "--no-index", wheel)
        for made in (self.probe, self.folder / "utils", self.folder / "datasets" / "mine"):
            made.mkdir(parents=True)
        (self.folder / "data.py").write_text("MINE = 1\n")
        (self.folder / "utils" / "__init__.py").write_text("MINE = 2\n")

    def listing(self):
        return {path.relative_to(self.environment) for path in self.environment.glob("**/*")
                if "__pycache__" not in path.parts}  # fmt: skip

    def pip(self, *words):
        command = [sys.executable, "-m", "pip", "--python", self.python, *words]
        subprocess.run(command, check=True, capture_output=True)

    def start(self, command, cwd=None, **variables):
        names = {"DATASET_DIR", "EXPERIMENTS_DIR", "PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in names} | {
            "PATH": f"{self.environment / 'bin'}:/usr/bin:/bin", "PROBE": str(self.probe), **variables
        }  # fmt: skip
        return subprocess.Popen(
            shlex.split(command) if isinstance(command, str) else command, cwd=cwd or self.folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, command, cwd=None, code=0, limit_s=300, **variables):
        process = self.start(command, cwd, **variables)
        text = process.communicate(timeout=limit_s)[0]
        assert process.returncode == code, text
        return text

    def imports(self):
        """(command line, name, folders of the package on sys.path) of every import that the probe has seen."""
        return [line.split("\t") for path in self.probe.iterdir() for line in path.read_text().splitlines()]


def wheel_of(source, folder):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder]
    subprocess.run([*command, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheel_of(REPOSITORY_ROOT, tmp_path_factory.mktemp("wheel"))


def contents(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_has_one_name_and_every_file_that_the_modules_read(wheel):
    names = set(contents(wheel))
    assert {name.split("/")[0] for name in names} == {"mamlkit", f"mamlkit-{__version__}.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True
    ).stdout
    left_out = {"script_generation_tools/write_config_table.py"}
    for name in set(tracked.splitlines()) - left_out:
        room = name.split("/")[0].removesuffix(".py")
        if room in ROOMS - {"mamlkit"} or room in ("experiment_template_config", "experiment_config", "pretrained"):
            assert f"mamlkit/{name}" in names or Path(name).name == ".generated.json", name


def test_the_source_distribution_makes_the_same_wheel(tmp_path, wheel):
    code = f"import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    unpack(archive, tmp_path)
    again = wheel_of(tmp_path / f"mamlkit-{__version__}", tmp_path)
    assert contents(again) == contents(wheel)
    assert not (REPOSITORY_ROOT / "build").exists() and not list(REPOSITORY_ROOT.glob("*.egg-info"))


def a_run_lies_in_the_current_folder_and_goes_on_where_it_was_killed(installed):
    process = installed.start(f"mamlkit train quickstart {SHORT}")
    run_folder = installed.folder / "experiments" / "quickstart"
    while not (run_folder / "saved_models" / "train_model_1.safetensors").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    installed.run(f"mamlkit train quickstart {SHORT}")
    starts = json.loads((run_folder / "environment.json").read_text())["starts"]
    assert [(start["mamlkit"], start["commit"]) for start in starts] == [(__version__, None)] * 2
    assert (run_folder / "logs" / "test_summary.json").exists() and (run_folder / "visual_outputs/report.html").exists()
    assert (installed.folder / "datasets" / "synthetic_strokes").is_dir()
    text = installed.run(f"mamlkit train quickstart {SHORT}")
    assert "Next: mamlkit adapt --experiment quickstart" in text and "python -m" not in text


def the_tools_answer_by_their_names(installed):
    assert installed.run("mamlkit --version").strip() == __version__
    listed = installed.run("mamlkit").splitlines()
    assert len(listed) < 24 and all(line.startswith("mamlkit ") for line in listed)
    assert "quickstart" in installed.run("mamlkit runs")
    assert "report.html" in installed.run("mamlkit report quickstart")
    assert "0 errors" in (text := installed.run("mamlkit doctor")) or "everything is in order" in text
    address = installed.run("mamlkit docs api", BROWSER="true").strip()
    assert "register_backbone" in Path(unquote(urlsplit(address).path)).read_text()
    text = installed.run("mamlkit train quickstart --sprinkles 4", code=1)
    assert "mamlkit docs config_keys and --help have all keys" in text
    completion = (REPOSITORY_ROOT / "docs" / "install.md").read_text().partition("\ncomplete ")[2].partition("\n")[0]
    said = installed.run(["bash", "-c", f"complete {completion}; complete -p mamlkit"])
    (words,) = [word for word in shlex.split(said) if "train" in word]
    assert {"train", "doctor"} <= set(words.split())
    assert "no such command" in installed.run("mamlkit reports", code=1)
    assert "did you mean quickstart" in installed.run("mamlkit train quickstrt", code=1)


def ours_and_theirs_live_in_one_program(installed):
    (installed.folder / "program.py").write_text(
        "import data, utils\n"
        "assert (data.MINE, utils.MINE) == (1, 2)\n"
        "import numpy as np\n"
        "from mamlkit import FewShotClassifier\n"
        "images = np.random.default_rng(0).integers(0, 256, (40, 14, 14), dtype=np.uint8)\n"
        "one = FewShotClassifier(num_classes_per_set=2, num_target_samples=1, backbone='mlp', total_epochs=1,\n"
        "    batch_size=2, total_iter_per_epoch=2, num_evaluation_tasks=2, gpu_to_use='cpu',\n"
        "    number_of_training_steps_per_iter=1)\n"
        "one.meta_fit((images, np.repeat(np.arange(8), 5)))\n"
        "print(one.fit(images[:2], ['a', 'b']).predict(images[2:4]))\n"
        "FewShotClassifier.from_experiment('quickstart')\n"
    )
    installed.run(f"{shlex.quote(str(installed.python))} program.py")


PLUGIN = """
from torch import nn
{imports}
register_backbone("of_the_plugin", lambda config, shape, n_way: nn.Sequential(nn.Flatten(), nn.Linear(784, n_way)))
"""


def a_plugin_takes_the_face_and_where_nothing_is_in_the_way_the_names_of_a_checkout(installed):
    (installed.folder / "plugin.py").write_text(PLUGIN.format(imports="from mamlkit import register_backbone"))
    (installed.folder / "older.py").write_text(
        PLUGIN.format(imports="from utils.registry import register_backbone\nimport mamlkit\nfrom utils import paths\n"
                              "assert register_backbone is mamlkit.register_backbone and paths.PACKAGE == 'mamlkit.'")
    )  # fmt: skip
    keys = f"{SHORT} --total_epochs 1 --backbone of_the_plugin --per_step_bn_statistics false --dry_run true"
    installed.run(f"mamlkit train quickstart {keys} --plugin plugin.py")
    installed.run(f"mamlkit train quickstart {keys} --plugin older.py", PROBE="")
    text = installed.run(f"mamlkit train quickstart {keys} --plugin older.py", code=1, PYTHONPATH=".", PROBE="")
    assert (
        "older.py imports utils.registry, but `utils` is a module of your own here. Write: from mamlkit import" in text
    )


def a_checkout_beside_it_has_its_own_registry(installed):
    """The checkout's program in the environment that also has the package, whose name the plugin says."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from utils import registry\n"
        "registry.load_plugins({'plugin': sys.argv[2]})\n"
        "import mamlkit\n"
        "assert registry.registered_backbone('of_the_plugin') and mamlkit.__file__.startswith(sys.argv[1])\n"
    )
    (installed.folder / "beside.py").write_text(PLUGIN.format(imports="from mamlkit import register_backbone"))
    elsewhere = installed.folder.parent
    installed.run([installed.python, "-c", code, REPOSITORY_ROOT, installed.folder / "beside.py"], elsewhere, PROBE="")


def several_processes_share_a_run(installed):
    installed.run(f"mamlkit train quickstart --nproc_per_node 2 -- --experiment_name two --gpu_to_use cpu {SHORT}")
    assert (installed.folder / "experiments" / "two" / "logs" / "test_summary.json").exists()


def a_new_folder_has_the_three_habits_from_anywhere_and_overwrites_nothing(installed):
    elsewhere = installed.folder.parent
    folder = elsewhere / "its own"
    assert "quickstart.sh" in installed.run(["mamlkit", "new", str(folder)])
    scripts = sorted(path.name for path in (REPOSITORY_ROOT / "experiment_scripts").glob("[!.]*.*"))
    assert sorted(path.name for path in (folder / "experiment_scripts").glob("[!.]*.*")) == scripts
    assert not (folder / ".venv").exists()
    keys = f"{SHORT} --total_epochs 1"
    installed.run(f"bash {shlex.quote(str(folder))}/experiment_scripts/quickstart.sh 0 {keys}", elsewhere)
    assert (folder / "experiments" / "quickstart" / "logs" / "test_summary.json").exists()
    (folder / "within").mkdir()
    assert "quickstart" in installed.run("mamlkit runs", folder / "within")

    template = folder / "experiment_template_config" / "quickstart.json"
    template.write_text(template.read_text().replace('"total_epochs": 5', '"total_epochs": 6'))
    for name in ("configs", "scripts"):
        installed.run([sys.executable, f"generate_{name}.py"], folder / "script_generation_tools")
    assert json.loads((folder / "experiment_config" / "quickstart.json").read_text())["total_epochs"] == 6
    installed.run(["mamlkit", "new", str(folder)])
    assert '"total_epochs": 6' in template.read_text()

    words = SHORT.replace("--", "").split()
    fixed = "".join(f"{key} = {value}\n" for key, value in zip(words[::2], words[1::2], strict=True))
    (folder / "experiment_template_config" / "mine.sweep.toml").write_text(
        f'template = "quickstart.json"\nmethod = "grid"\n[fixed]\n{fixed}[parameters]\nmeta_learning_rate = [0.01]\n'
    )
    installed.run("mamlkit sweep experiment_template_config/mine.sweep.toml", folder)
    assert "complete" in (folder / "experiments" / "sweep_mine" / "trials.csv").read_text()

    launcher = folder / "script_generation_tools" / "launch.sh"
    launcher.write_text(launcher.read_text().replace(str(installed.python), "/gone/python"))
    script = f"bash {shlex.quote(str(folder))}/experiment_scripts/quickstart.sh"
    assert "usage" in installed.run(f"{script} --help")
    text = installed.run(f"{script} --help", code=1, PATH="/usr/bin:/bin")
    assert text.startswith("/gone/python, which made") and "Run: python -m pip install mamlkit" in text


def no_process_of_ours_has_met_our_modules_under_another_name(installed):
    """After all of the above. The user's own program imports its own `data` and `utils`."""
    seen = installed.imports()
    kinds = ["mamlkit train", "mamlkit torchrun", "mamlkit report", "-u -P -m mamlkit train"]
    kinds += ["mamlkit decoding"] if len(os.sched_getaffinity(0)) > 1 else []
    for kind in kinds:
        assert [command for command, *_ in seen if kind in command], kind
    others = [line for line in seen if not line[1].startswith("mamlkit.") and "program.py" not in line[0]]
    assert others == []
    assert {folders for _, _, folders in seen} == {"[]"}


def uninstalling_leaves_nothing(installed):
    installed.pip("uninstall", "--yes", "mamlkit")
    assert installed.listing() == installed.before


def test_an_installed_copy_does_all_that_a_checkout_does_and_leaves_nothing(tmp_path, wheel):
    installed = Installed(tmp_path, wheel)
    for step in (
        a_run_lies_in_the_current_folder_and_goes_on_where_it_was_killed,
        the_tools_answer_by_their_names,
        ours_and_theirs_live_in_one_program,
        a_plugin_takes_the_face_and_where_nothing_is_in_the_way_the_names_of_a_checkout,
        a_checkout_beside_it_has_its_own_registry,
        several_processes_share_a_run,
        a_new_folder_has_the_three_habits_from_anywhere_and_overwrites_nothing,
        no_process_of_ours_has_met_our_modules_under_another_name,
        uninstalling_leaves_nothing,
    ):
        step(installed)


OF_THE_LIBRARY = ("conftest.py", "tools", "few_shot_classifier", "test_data.py", "test_few_shot_learning_system.py")
SERVED = """
from importlib.machinery import PathFinder
from mamlkit.utils.paths import PACKAGE
from mamlkit.utils.registry import names_of_a_checkout

assert PACKAGE == "mamlkit." and not PathFinder.find_spec("utils") and not PathFinder.find_spec("data")
served = names_of_a_checkout()
served.__enter__()
"""
"""In front of the tests' conftest.py: their `from utils.config import ...` finds the installed module of this name."""


def test_the_tests_of_the_library_pass_with_the_installed_copy(tmp_path, wheel):
    installed = Installed(tmp_path, wheel)
    folder = tmp_path / "copy"
    for name in OF_THE_LIBRARY:
        source, target = REPOSITORY_ROOT / "tests" / name, folder / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    conftest = folder / "tests" / "conftest.py"
    conftest.write_text(SERVED + conftest.read_text(encoding="utf-8"), encoding="utf-8")
    words = "-P -m pytest -q -p no:cacheprovider -p no:warnings --import-mode=importlib tests"
    text = installed.run([installed.python, *words.split()], folder, limit_s=1500, PYTHONPATH=str(folder), PROBE="")
    assert " passed" in text
