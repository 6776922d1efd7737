"""What the pages said to import before the modules moved goes on working, first thing in a script and in a plugin."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

from tests.tools.gate import few_of
from utils import MOVED
from utils.paths import REPOSITORY_ROOT

DOCUMENTED = """\
from python_datasets import evaluation_data, first_image_shape, training_data
from utils.observers import Observer
from utils.config_schema import ExperimentConfig
from utils.config import experiments_root, load_config
from utils.prepare_dataset.from_dataset import prepare_from_dataset
from utils.registry import register_backbone, register_dataset
from meta_learning.norm_layers import MetaGroupNorm, MetaLayerNorm, NormChoice, Pass
from meta_learning.networks import MetaNetwork
from meta_learning.inner_loop_optimizers import InnerLoopOptimizer
from few_shot_classifier import FewShotClassifier
from few_shot_learning_system import build_learner
from data import FewShotData, build_data
import train_maml_system
"""
"""Every import of this project, and every module or class named by its place in it, in README.md and docs/, notebooks
and the example plugin among them, as they were before the moves (commit 3502d6b).
"""
TOOLS = [
    "adapt",
    "check_gradients",
    "compare",
    "convert_checkpoint",
    "demo",
    "doctor",
    "export",
    "report",
    "runs",
    "show_data",
    "sweep",
]
COMMANDS = ["utils.prepare_dataset", "experiment_tools", *(f"experiment_tools.{name}" for name in TOOLS)]
"""What the same pages start with `python -m`."""


def run(script, *lines):
    script.write_text("".join(lines))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT)}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)


def test_a_script_with_every_documented_import_runs(tmp_path):
    (tmp_path / "plugin.py").write_text(f"{DOCUMENTED}\nregister_backbone('mine', print)\n")
    done = run(
        tmp_path / "script.py",
        DOCUMENTED,
        "import utils.observers\n",
        "from experiment_parts.records import observers\n",
        "assert utils.observers is observers and observers.__spec__.name == 'experiment_parts.records.observers'\n",
        "from few_shot_classifier import datasets\n",
        "assert datasets.training_data is training_data\n",
        "from utils.registry import load_plugins\n",
        f"load_plugins({{'plugin': {str(tmp_path / 'plugin.py')!r}}})\n",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    few_of(
        [line for line in DOCUMENTED.splitlines() if "utils" in line or line.split()[1] in MOVED],
        "from utils.observers import Observer",
    ),
)
def test_it_may_be_the_first_import_of_a_script(tmp_path, line):
    assert run(tmp_path / "script.py", line).stderr == ""


def test_the_table_has_old_names_of_modules_that_are_there():
    for old, new in MOVED.items():
        parent, _, _ = old.rpartition(".")
        assert PathFinder.find_spec(old, importlib.util.find_spec(parent).submodule_search_locations) is None
        place = REPOSITORY_ROOT / new.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'utils\.never_there'"):
        importlib.import_module("utils.never_there")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_is_still_one(command):
    found = importlib.util.find_spec(command)
    assert found is not None
    if found.submodule_search_locations:
        assert importlib.util.find_spec(f"{command}.__main__") is not None
