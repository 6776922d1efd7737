"""The project under its one name: the face and its examples, the copies that are installed, what a plugin imports."""

import ast
import doctest
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mamlkit
from script_generation_tools import new
from tests.documents.test_architecture import MODULES, ROOMS
from utils import paths, registry
from utils.config.command_line import options_of
from utils.errors import ConfigError
from utils.paths import COMMANDS, PARTS, REPOSITORY_ROOT, module_of

FILE = REPOSITORY_ROOT / "mamlkit.py"
SETUP = importlib.util.spec_from_file_location("setup_of_mamlkit", REPOSITORY_ROOT / "setup.py")


@pytest.fixture(scope="module")
def build():
    """What setup.py defines."""
    module = importlib.util.module_from_spec(SETUP)
    SETUP.loader.exec_module(module)
    return module


def relative(module):
    return MODULES[module].relative_to(REPOSITORY_ROOT).as_posix()


# --- the face ---------------------------------------------------------------------------------------------------------


def handed_on():
    """Name -> (module, name there), of the imports that type checkers see."""
    imports = [node for node in ast.walk(ast.parse(FILE.read_text())) if isinstance(node, ast.ImportFrom)]
    found = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}
    return {name: place for name, place in found.items() if name in mamlkit.__all__}


def test_the_face_has_every_name_and_every_register_function_and_is_listed():
    assert sorted(mamlkit.__all__) == sorted(handed_on()) == sorted(dir(mamlkit))
    assert {name for name in dir(registry) if name.startswith("register_")} <= set(mamlkit.__all__)


@pytest.mark.parametrize("name", mamlkit.__all__)
def test_what_the_face_hands_on_is_the_thing_itself(name):
    module, name_there = handed_on()[name]
    assert getattr(mamlkit, name) is getattr(importlib.import_module(module), name_there)


def test_another_name_is_an_error_that_lists_the_face():
    with pytest.raises(AttributeError, match=r"has no attribute Episode; it has Adaptation, .*register_dataset"):
        mamlkit.Episode  # noqa: B018


@pytest.mark.parametrize("name", ["", *(n for n in mamlkit.__all__ if callable(getattr(mamlkit, n)))])
def test_the_examples_run(name, monkeypatch, tmp_path):
    for table in ("_backbones", "_datasets"):
        monkeypatch.setattr(registry, table, {})
    monkeypatch.setattr(registry.choices, "_chosen", {})
    monkeypatch.chdir(tmp_path)
    thing = getattr(mamlkit, name) if name else mamlkit
    for example in doctest.DocTestFinder(recurse=False).find(thing, name or "mamlkit", globs={}):
        results = doctest.DocTestRunner(verbose=False).run(example, out=print)
        assert not results.failed


def test_every_name_has_an_example_or_is_what_the_example_of_another_makes_or_takes():
    things = {name: getattr(mamlkit, name) for name in mamlkit.__all__ if name != "__version__"}
    texts = {name: thing.__doc__ for name, thing in things.items() if ">>> " in (thing.__doc__ or "")}
    made = {str(inspect.signature(things[name]).return_annotation) for name in texts if name[0].islower()}
    lines = [line for text in [*texts.values(), mamlkit.__doc__] for line in text.splitlines() if ">>> " in line]
    known = {name for name in things if name in texts or any(re.search(rf"\b{name}\b", line) for line in lines)}
    known |= {name for name in things if any(name in annotation for annotation in made)}
    assert set(things) - known == {"MetaNorm"} and issubclass(mamlkit.AffineNorm, mamlkit.MetaNorm)


@pytest.mark.parametrize("name", [n for n in mamlkit.__all__ if callable(getattr(mamlkit, n))])
def test_every_type_is_written_out(name):
    thing = getattr(mamlkit, name)
    public = [value for key, value in vars(thing).items() if not key.startswith("_")] if isinstance(thing, type) else []
    for function in filter(inspect.isfunction, [*public, thing]):
        parameters = list(inspect.signature(function).parameters.values())
        unwritten = [one.name for one in parameters if one.annotation is inspect.Parameter.empty]
        assert set(unwritten) <= {"self"}, function
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, function


@pytest.mark.full
def test_a_type_checker_finds_what_is_wrong_in_a_program_and_nothing_else(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--no-incremental", "program.py"]
    environment = os.environ | {"MYPYPATH": str(REPOSITORY_ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    wrong = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert found == wrong, done.stdout


PROGRAM = """\
from collections.abc import Mapping, Sequence
from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor, nn

import mamlkit as m


class Signs(m.InnerLoopOptimizer):
    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: dict[str, Any], step: int
    ) -> tuple[Sequence[Tensor], dict[str, Any]]:
        return [gradient.sign() for gradient in gradients], state


class Worst(m.OuterLoss):
    def forward(self, losses: Tensor) -> Tensor:
        return losses.max()


class Undecided(m.Head):
    def make(self, features: Tensor, labels: Tensor, n_way: int) -> dict[str, Tensor]:
        return {}


class Late(m.Head):
    def make(self, features: Tensor) -> Tensor:  # wrong
        return features


class Mine(m.TaskLoss):
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum((1, 2))


m.register_inner_loop_optimizer("signs", Signs, keys={"floor": m.Key(1e-8, "Added to all.", gt=0.0)})
m.register_outer_loss("worst_of_all", Worst, meaning="the worst")
m.register_head("undecided", Undecided)
m.register_head(1, Undecided)  # wrong
m.register_loss("mine", Mine)
m.register_backbone("flat", lambda config, shape, n_way: nn.Flatten())
config = m.load_config(None, {"experiment_name": "typed"})
assert_type(config, m.ExperimentConfig)
assert_type(config.batch_size, int)
m.load_config(None, ["--batch_size", "4"])  # wrong
learner = m.build_learner(config, "cpu", network=nn.Flatten())
assert_type(learner, m.FewShotLearner)
assert_type(learner.adaptation, m.Adaptation)
labels = torch.zeros(2, 5)
episodes = m.episodes_from_arrays(np.zeros((2, 5, 1, 8, 8)), labels, torch.zeros(2, 5, 1, 8, 8), labels)
assert_type(episodes, m.EpisodeBatch)
found = m.meta_gradients(learner, episodes, epoch=1)
assert_type(found, m.MetaGradients)
assert_type(found.metrics["loss"], Tensor)
assert_type(learner.meta_update(found, epoch=1), Tensor)
m.meta_gradients(learner, labels)  # wrong
m.meta_gradients(config, episodes)  # wrong
assert_type(m.adapt(learner, labels, labels, n_way=5), m.AdaptedLearner)
m.adapt(learner, labels, labels, 5).logits(labels)  # wrong
data = m.build_data(config, "cpu")
assert_type(learner.evaluate(data.episodes("val", range(4))).query_accuracy, Tensor)
one = m.FewShotClassifier(num_classes_per_set=5).meta_fit((labels, labels))
assert_type(one, m.FewShotClassifier)
prediction: np.ndarray[Any, Any] = one.fit(labels, ["a", "b"]).predict(labels)
one.predict(labels, every_steps=True)  # wrong
assert_type(m.train(["typed"]), int)
try:
    m.train("typed", 4)  # wrong
except m.UserError as error:
    assert_type(error.exit_code, int)
"""
"""Typed throughout; what ends with `# wrong` is wrong."""


def test_importing_it_imports_nothing_heavy():
    code = "import sys, mamlkit; mamlkit.load_config; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout


# --- the copies that are installed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_an_installed_copy_imports_ours_under_the_packages_name_alone(build, module):
    source = MODULES[module].read_text(encoding="utf-8")
    copy = build.renamed(relative(module), source)
    names = []
    for node in ast.walk(ast.parse(copy)):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
    assert [name for name in names if name.split(".")[0] in build.OURS] == []
    assert {name.removeprefix("mamlkit.") for name in names if name.startswith("mamlkit.")} <= set(MODULES)
    assert copy.count("\n") == source.count("\n")
    assert all((REPOSITORY_ROOT / page).is_file() for page in re.findall(r"\bdocs/\w+\.md\b", source))
    started = re.search(rf"python (?:-m )?(?:{'|'.join(build.OURS)})[./]", " ".join(copy.split()))
    assert not started or module in ("utils.paths", *build.OF_THE_CHECKOUT)


def test_what_is_built_is_what_the_plan_has(build):
    assert ROOMS - {"mamlkit"} == build.OURS


@pytest.mark.parametrize(
    ("source", "copy"),
    [
        ("from utils.paths import command", "from mamlkit.utils.paths import command"),
        (
            "if x: from  utils import paths; import data as d",
            "if x: from  mamlkit.utils import paths; import mamlkit.data as d",
        ),
        ("é = 'ü'; from data import a", "é = 'ü'; from mamlkit.data import a"),
        ("from database import data", "from database import data"),
        ("data = x.utils.data; 'data'", "data = x.utils.data; 'data'"),
        ("from torch.utils import data", "from torch.utils import data"),
        ('"""See: python -m experiment_tools.runs."""', '"""See: mamlkit runs."""'),
        ('a: int\n"""By `python train_maml_system.py`."""', 'a: int\n"""By `mamlkit train`."""'),
        ("f('see docs/train.md')", "f('see mamlkit docs train')"),
        ("from utils.paths import (\n    command,\n)", "from mamlkit.utils.paths import (\n    command,\n)"),
        ("f('torch.nn.utils.x', 'data.index', 'data')", "f('torch.nn.utils.x', 'data.index', 'data')"),
    ],
)
def test_imports_and_docstrings_are_renamed_and_nothing_else(build, source, copy):
    assert build.renamed("a.py", source) == copy


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("x = 1\nimport utils.paths", "a.py, line 2: import utils.paths gives another name"),
        ("def f():\n    import os, data", "a.py, line 2: import data gives another name"),
        ("f('utils.paths')", 'line 1: "utils.paths" is another name'),
        ("f(f'see utils.config.schema {x}')", '"utils.config.schema" is another name'),
        ("f('run train_maml_system.py')", '"train_maml_system.py" is another name'),
        ("f('utils/ranks/agent.py')", '"utils/ranks/agent.py" is another name'),
        ("f('python -m experiment_tools')", '"-m experiment_tools" is another name'),
        ("run([python, '-m', 'data', x])", "line 1: -m data is another name"),
    ],
)
def test_what_cannot_be_renamed_ends_the_build(build, source, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        build.renamed("a.py", source)


def test_every_command_and_part_is_a_program_of_ours():
    for name in COMMANDS | PARTS:
        path = REPOSITORY_ROOT / module_of(name).replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"), name


# --- plugins ----------------------------------------------------------------------------------------------------------

PLUGIN = """
from mamlkit import register_backbone
from utils import registry
from torch import nn
assert register_backbone is registry.register_backbone
register_backbone("of_the_plugin", lambda config, image_shape, n_way: nn.Flatten())
"""


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry, "_backbones", {})


def test_a_plugin_meets_this_checkout_also_where_another_copy_was_imported(tmp_path, monkeypatch, tables):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.setitem(sys.modules, "mamlkit", SimpleNamespace(__file__="site-packages/mamlkit/__init__.py"))
    registry.load_plugins({"plugin": str(tmp_path / "plugin.py")})
    assert registry.registered_backbone("of_the_plugin")
    assert sys.modules["mamlkit"].__file__ == str(FILE)


# --- what a user types, and where things are --------------------------------------------------------------------------

QUICKSTART = str(REPOSITORY_ROOT / "experiment_config" / "quickstart.json")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("quickstart", ["--name_of_args_json_file", QUICKSTART]),
        ("quickstart.json", ["--name_of_args_json_file", QUICKSTART]),
        ("mine.json 0", ["--name_of_args_json_file", "mine.json", "--gpu_to_use", "0"]),
        ("not_there.json", ["--name_of_args_json_file", "not_there.json"]),
        ("quickstart 0, 1 --seed 4", ["--name_of_args_json_file", QUICKSTART, "--gpu_to_use", "0,1", "--seed", "4"]),
        ("quickstart all", ["--name_of_args_json_file", QUICKSTART, "--gpu_to_use", "all"]),
        ("quickstart 1 --nnodes 2 -- --seed -1",
         ["--nnodes", "2", "--", "--name_of_args_json_file", QUICKSTART, "--gpu_to_use", "1", "--seed", "-1"]),
        ("--batch_size 4", ["--batch_size", "4"]),
        ("", []),
    ],
)  # fmt: skip
def test_a_config_and_gpu_ids_come_first_as_in_a_script(words, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").touch()
    assert options_of(words.split()) == options


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("quikstart 0", 'there is no config "quikstart", neither as a file nor as a name; did you mean quickstart'),
        ("quickstart first", '"first" is neither a GPU id nor an override; as in: python train_maml_system.py'),
        ("quickstart -1", '"-1" is neither a GPU id nor an override'),
    ],
)  # fmt: skip
def test_what_is_no_config_and_no_id_is_named(words, error):
    with pytest.raises(ConfigError, match=re.escape(error)):
        options_of(words.split())


def test_installed_the_marked_folder_at_or_above_is_worked_in_else_the_current_one(tmp_path, monkeypatch):
    for name in ("DATASET_DIR", "EXPERIMENTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work" / "within").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "within")
    assert paths.experiments_root() == REPOSITORY_ROOT / "experiments"
    monkeypatch.setattr(paths, "PACKAGE", "mamlkit.")
    assert paths.dataset_root() == tmp_path / "work" / "within" / "datasets"
    (tmp_path / "work" / paths.MARK).touch()
    assert paths.dataset_root() == tmp_path / "work" / "datasets"
    assert paths.experiments_root() == tmp_path / "work" / "experiments"
    monkeypatch.setenv("EXPERIMENTS_DIR", "/elsewhere")
    assert paths.experiments_root() == Path("/elsewhere")
    assert paths.configs()["quickstart"] == Path(QUICKSTART)
    (tmp_path / "work" / "experiment_config").mkdir()
    (tmp_path / "work" / "experiment_config" / "quickstart.json").touch()
    assert paths.configs()["quickstart"] == tmp_path / "work" / "experiment_config" / "quickstart.json"


def test_installed_a_text_names_the_command(monkeypatch):
    assert paths.command("adapt") == "python -m experiment_tools.adapt"
    monkeypatch.setattr(paths, "PACKAGE", "mamlkit.")
    assert paths.command("adapt") == "mamlkit adapt" and paths.command("train") == "mamlkit train"
    assert paths.module_of("train") == "mamlkit.train_maml_system"
    assert paths.child_process("decoding") == [sys.executable, "-P", "-m", "mamlkit", "decoding"]


def test_a_new_folder_is_filled_once_and_what_is_there_stays(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "of mine"
    (folder / "experiment_template_config").mkdir(parents=True)
    (folder / "experiment_template_config" / "values.toml").write_text("# mine\n")
    (folder / "experiment_config").mkdir()  # else everything is generated: tests/test_installed.py
    assert new.main([str(folder)]) == 1 and not (folder / paths.MARK).exists()
    assert "new is for an installed mamlkit" in capsys.readouterr().err
    monkeypatch.setattr(new, "PACKAGE", "mamlkit.")
    assert new.main([str(folder)]) == 0
    n_written = int(re.search(r": (\d+) files written, 1 were there and stay", capsys.readouterr().out)[1])
    assert (folder / "experiment_template_config" / "values.toml").read_text() == "# mine\n"
    for name in ("generate_configs", "generate_scripts"):
        text = (folder / "script_generation_tools" / f"{name}.py").read_text()
        assert f'"{name}"' in text and text.count("\n") <= 10
    launcher = (folder / "script_generation_tools" / "launch.sh").read_text()
    assert f"\npython={shlex.quote(sys.executable)}\n" in launcher
    assert new.main([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: 0 files written, {n_written + 1} were")
    assert new.main([str(folder / paths.MARK)]) == 1
    assert "is a file; give the folder another name" in capsys.readouterr().err
