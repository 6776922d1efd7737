"""The command that a report shows makes the run again: what a shell reads in it gives the run's very config."""

import json
import subprocess

import pytest

from experiment_tools.parts.run_reading import Run
from experiment_tools.parts.settings import command_of, config_of, given_files, nearest_config
from experiment_tools.parts.terminal_texts import start_banner
from experiment_tools.report.machine import settings
from few_shot_learning_system import build_learner
from utils import registry
from utils.config import load_config
from utils.config.command_line import options_of, read_command_line
from utils.paths import REPOSITORY_ROOT, configs

RULE = """
from mamlkit import InnerLoopOptimizer, Key, register_inner_loop_optimizer

class Damped(InnerLoopOptimizer):
    def __init__(self, shapes, learning_rate, n_steps, *, power, **shared):
        super().__init__(shapes, learning_rate, n_steps, **shared)

register_inner_loop_optimizer("damped", Damped, keys={"power": Key(0.5, "Of the step.")}, meaning="damped steps")
"""


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry.choices, "_chosen", {})
    monkeypatch.chdir(REPOSITORY_ROOT)


def read_again(command):
    """What the command gives the program, as a shell splits it."""
    words = subprocess.run(
        ["bash", "-c", f'python() {{ printf "%s\\0" "$@"; }}; bash() {{ python "$@"; }}\n{command}'],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")[:-1]  # fmt: skip
    name = words[0].removeprefix("experiment_scripts/").removesuffix(".sh")
    words = options_of([name, *words[1:]]) if name in configs() else words[1:]
    return load_config(*read_command_line(words)).to_json_dict()


def run_of(path, *words):
    """A run as its files hold it after a start with these words."""
    config = load_config(*read_command_line(options_of(words)))
    path.mkdir(parents=True)
    values = config.to_json_dict()
    (path / "config.json").write_text(json.dumps({"run_id": "0" * 32, **values}))
    return config, Run(path, config=values, starts=[json.loads(json.dumps(given_files(config)))])


def test_the_command_of_a_report_gives_the_config_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "my runs"))
    rule = tmp_path / "my rules" / "damped.py"
    rule.parent.mkdir()
    rule.write_text(RULE)
    own = tmp_path / "own.json"
    own.write_text((REPOSITORY_ROOT / "experiment_config" / "quickstart.json").read_text())
    overrides = ("--batch_size", "2", "--cnn_num_filters", "8", "--seed", "none")
    plugin = ("--plugin", str(rule), "--inner_loop_optimizer", "damped", "--damped_power", "0.25")
    for name, words in {
        "script": ("quickstart", *overrides), "file": (str(own), *overrides),
        "script and plugin": ("quickstart", *plugin), "file and plugin": (str(own), *plugin),
    }.items():  # fmt: skip
        for home in (tmp_path, tmp_path / "elsewhere"):
            monkeypatch.setenv("HOME", str(home))
            _, run = run_of(tmp_path / "my runs" / f"{name} {home.name}", *words, "--experiment_name", name)
            command = command_of(run)
            assert str(tmp_path) not in command
            assert command.startswith("bash experiment_scripts/quickstart.sh") == (words[0] == "quickstart")
            # A plugin that is neither at home nor in the checkout is named alone: to be typed in its folder.
            monkeypatch.chdir(rule.parent if command.endswith(" damped.py") else REPOSITORY_ROOT)
            assert read_again(command) == run.config, command


def test_terminal_and_report_compare_with_the_config_that_was_started_whatever_is_nearer(tmp_path):
    quickstart, nearer = (configs()[name] for name in ("quickstart", "omniglot_anil_5way_1shot_seed0"))
    there, here = (json.loads(path.read_text()) for path in (quickstart, nearer))
    words = [
        f"--{key}={here[key] if isinstance(here[key], str) else json.dumps(here[key])}"
        for key in here
        if here[key] != there.get(key)
    ]
    config, run = run_of(tmp_path / "m", "quickstart", *words, "--experiment_name=m")
    assert nearest_config(run.config)[0] == nearer
    before = load_config(quickstart).to_json_dict()
    differs = {key: (before[key], value) for key, value in run.config.items() if before[key] != value}
    assert nearest_config(run.config, config_of(run)) == (quickstart, differs)
    banner = start_banner(config, build_learner(config, "cpu").description(), width=2000)
    assert "differs from experiment_config/quickstart.json: " in banner
    assert settings(run).figures[0].title == "Differs from experiment_config/quickstart.json"
