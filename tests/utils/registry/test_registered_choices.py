"""A method of one's own is one file that the project does not know; ours are registered by the same functions."""

import json
import shutil
from functools import partial

import pytest
import torch

import train_maml_system
from experiment_parts.runs.checkpoints import load_checkpoint
from experiment_tools.check_gradients.__main__ import main as check_gradients
from experiment_tools.new_method.__main__ import KINDS, write_skeleton
from few_shot_learning_system import build_learner
from meta_learning.inner_loop.adam import Adam
from meta_learning.inner_loop.base import InnerLoopOptimizer
from script_generation_tools.generate_configs import generate_configs, plugins_of_configs
from script_generation_tools.generate_scripts import generate_scripts
from tests.tools.learners import random_episodes, small_config
from utils import registry
from utils.config import check_config, load_config
from utils.config.command_line import read_command_line
from utils.config.help import help_text
from utils.config.schema import fields
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT
from utils.registry import choices, load_plugins

CONFIG = {
    "experiment_name": "own", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
    "cnn_num_filters": 4, "num_classes_per_set": 3, "num_target_samples": 2, "batch_size": 2,
    "number_of_training_steps_per_iter": 2, "total_epochs": 2, "total_iter_per_epoch": 2, "num_evaluation_tasks": 2,
    "gpu_to_use": "cpu", "class_rotation": False, "num_dataprovider_workers": 0, "inner_loop_optimizer": "mine",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """`fresh_process()` forgets what plugins have registered, as a new process has."""

    def forget():
        for table in ("_backbones", "_datasets", "_plugins"):
            monkeypatch.setattr(registry, table, {})
        monkeypatch.setattr(choices, "_chosen", {})

    forget()
    return forget


@pytest.fixture
def plugin(tmp_path):
    """Of each kind the file that `new_method` writes, in a folder outside the checkout: `plugin(kind)` -> its path."""

    def write(kind="inner_loop_optimizer", name="mine"):
        return str(write_skeleton(name, kind, tmp_path / "elsewhere")[0])

    return write


def test_a_rule_of_ones_own_trains_is_resumed_to_the_bit_and_stands_in_the_report_by_name(
    plugin, tmp_path, tiny_dataset, monkeypatch, capsys, fresh_process
):
    tiny_dataset("tiny", n_classes=12)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    path = plugin()

    def main(name, *arguments, epoch=2):
        fresh_process()
        words = ["--name_of_args_json_file", str(tmp_path / "config.json"), "--plugin", path, "--mine_floor", "0.01"]
        code = train_maml_system.main([*words, "--experiment_name", name, "--report_every_s", "1000", *arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return load_checkpoint(tmp_path / "experiments" / name / "saved_models" / f"train_model_{epoch}.safetensors")[0]

    at_once = main("at_once")
    shutil.copytree(tmp_path / "experiments" / "at_once", tmp_path / "seen")
    main_after_a_stop = partial(main, "stopped")
    main_after_a_stop("--total_epochs_before_pause", "1", epoch=1)
    resumed = main_after_a_stop()
    assert at_once.keys() == resumed.keys() and "inner_loop.power" in at_once and at_once["inner_loop.power"] != 0.5
    assert all(torch.equal(value, resumed[name]) for name, value in at_once.items() if not name.startswith("rng."))

    stored = json.loads((tmp_path / "seen" / "config.json").read_text())
    assert stored["mine_floor"] == 0.01 and stored["mine_power"] == 0.5 and "plugin" not in stored
    fresh_process()  # the report knows no plugin
    from experiment_tools.report.page import write_report

    page = write_report(tmp_path / "seen", tmp_path / "page.html").read_text()
    assert "inner_loop.power" in page and "mine_floor" in page


@pytest.mark.parametrize("kind", KINDS)
def test_every_skeleton_passes_check_gradients_unasked(kind, plugin, capsys):
    assert check_gradients(["--plugin", plugin(kind)]) == 0, capsys.readouterr().out
    assert f"{kind} mine" in capsys.readouterr().out


def test_own_keys_are_typed_documented_and_named_when_they_are_misspelled(plugin):
    path = plugin()
    _, overrides = read_command_line(["--plugin", path, "--inner_loop_optimizer", "mine", "--mine_floor", "0.25"])
    config = load_config(None, {"experiment_name": "x"} | overrides)
    assert config.mine_floor == 0.25 and check_config(config.to_json_dict(), "again").mine_floor == 0.25
    assert "--mine_floor  number > 0; default 0.001" in help_text() and "`mine`: gradient descent whose" in help_text()
    mine = {"experiment_name": "x", "inner_loop_optimizer": "mine"}
    for values, text in (
        ({"mine_flor": 1.0}, 'unknown key "mine_flor"; did you mean "mine_floor"?'),
        (
            {"mine_floor": 0.0},
            '"mine_floor" is 0.0, but must be: greater than 0. With `inner_loop_optimizer` mine: Least',
        ),
        ({"mine_floor": "a"}, '"mine_floor" is "a", but must be: a valid number'),
        ({"inner_loop_optimizer": "min"}, "'sharp' or 'mine'. Update rule of the inner loop"),
        (
            {"inner_loop_optimizer": "sgd", "mine_floor": 0.5},
            '"mine_floor" 0.5 means nothing with "inner_loop_optimizer" sgd; leave it out, or set '
            '"inner_loop_optimizer" to "mine"',
        ),
    ):
        with pytest.raises(ConfigError) as error:
            check_config(mine | values, "a.json")
        assert text in str(error.value)
    assert "mine_floor" not in check_config({"experiment_name": "x"}, "a.json").to_json_dict()


def test_a_key_of_every_config_means_something_to_a_choice_of_ones_own_that_reads_it(tmp_path):
    text = "from utils.registry import register_inner_loop_optimizer\n"
    for name, reads in (("reader", {"inertia": "inner_loop_momentum"}), ("other", {})):
        text += f"register_inner_loop_optimizer({name!r}, dict, reads={reads!r})\n"
    (tmp_path / "own.py").write_text(text)
    load_plugins({"plugin": str(tmp_path / "own.py")})
    values = {"experiment_name": "x", "inner_loop_momentum": 0.5}
    assert check_config(values | {"inner_loop_optimizer": "reader"}, "a.json").inner_loop_momentum == 0.5
    with pytest.raises(ConfigError, match=r'with "inner_loop_optimizer" other; .* to "sgd" or "reader"$'):
        check_config(values | {"inner_loop_optimizer": "other"}, "a.json")


REGISTER = "from utils.registry import *\nfrom utils.registry import Key\nfrom meta_learning.heads.base import Head\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("register_head('zero', Head)", r'register_head\("zero", ...\): there is a head "zero" already'),
        ("register_head('a b', Head)", "register_head: the name is 'a b', but must be of letters, digits and _"),
        ("register_head('given', Head)", "register_head: the name is 'given'"),
        (
            "register_loss('a', 3)",
            r'register_loss\("a", ...\): the second argument must be a class or a function, not',
        ),
        (
            "register_outer_loss('a', Head, keys={'b': 1})",
            r"keys must be a dict, name of an argument -> Key\(default, m",
        ),
        (
            "register_head('a', Head, keys={'b': Key(1, '')})",
            "Key: the meaning of 1 is ''; say in a line what",
        ),
        ("register_head('a', Head, keys={'b': Key(None, 'a b')})", "Key: the default None must be a number, true or"),
        ("register_head('a', Head, keys={'b': Key([1, 'x'], 'a b')})", r"Key: the default \[1, 'x'\] has no one type"),
        ("register_head('a', Head, keys={'b': Key(1, 'a b', one_of=(2, 3))})", "Key: the default 1 is not one of 2, 3"),
        (
            "register_head('a', Head, keys={'b': Key(1.0, 'a b', gt='0')})",
            "default 1.0 must be a number within .* gt = '0'",
        ),
        (
            "register_head('a', Head, keys={'b': Key(1, 'a b', gt=0.5)})",
            "default 1 must be a number within .* gt = 0.5",
        ),
        (
            "register_head('a', Head, keys={'b': Key(0.0, 'a b', gt=0)})",
            "default 0.0 must be a number within .* gt = 0",
        ),
        ("register_head('a', Head, keys={'b': Key('x', 'a b', ge=0)})", "the default 'x' must be a number within"),
        ("register_head('a', Head, keys={'b': Key(float('nan'), 'a b')})", "Key: the default is nan"),
        ("register_head('a', Head, keys={'b': Key('a', 'a b', one_of='abc')})", "one_of is 'abc', but must be a tuple"),
        (
            "register_head('a', Head, keys={'b': Key('a', 'a b', one_of=('a', 1))})",
            r"one_of is \('a', 1\), but must be",
        ),
        (
            "k = Key(1, 'a b')\nregister_head('a', Head, keys={'b': k}, reads={'b': 'seed'})",
            "b is in keys and in reads",
        ),
        (
            "register_head('a', Head, keys={'a_b': Key(1, 'a b')})",
            "a_b begins with the name; write b, which a config calls a_b",
        ),
        (
            "register_norm_layer('a', Head, statistics='support')",
            "statistics is 'support', but must be a tuple of some of",
        ),
        ("register_norm_layer('a', Head, statistics=('suport',))", r"statistics is \('suport',\), but must be a tuple"),
        ("\nregister_head('zero', Head)", r"own.py, line 5: register_head\(\"zero\""),
        ("register_head('a', Head, reads=['b'])", "reads must be a dict, name of an argument -> config key"),
        ("register_norm_layer('a', Head, meaning=3)", "the meaning is 3, but must be a line of text"),
        (
            "k = Key(1, 'a b')\nregister_head('a', Head, keys={'b_c': k})\nregister_loss('a_b', Head, keys={'c': k})",
            'the key "a_b_c" is of head a already; rename one',
        ),
        ("register_batch_norm_statistics('support', Head)", 'there is a batch_norm_statistics "support" already'),
    ],
)
def test_wrong_use_of_a_register_function_gives_one_clear_error(tmp_path, text, message):
    (tmp_path / "own.py").write_text(REGISTER + text)
    with pytest.raises(ConfigError, match=message):
        load_plugins({"plugin": str(tmp_path / "own.py")})


def test_a_key_that_every_config_has_is_refused(monkeypatch):
    registry.register_head("num", print, keys={"stages": choices.Key(1, "of mine")})
    with pytest.raises(ConfigError, match=r'register_head\("num", ...\): "num_stages" is a key of every'):
        fields()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": {"weight_decay": choices.Key(0.5, "of mine")}}, "weight_decay is an argument that all of its kind"),
        ({"reads": {"floor": "inner_loop_momentun"}}, "reads inner_loop_momentun, but there is no such config key"),
    ],
)
def test_an_argument_that_cannot_be_given_is_named(given, message):
    registry.register_inner_loop_optimizer("own", InnerLoopOptimizer, **given)
    with pytest.raises(ConfigError, match=f'inner_loop_optimizer "own":? {message}'):
        build_learner(small_config(inner_loop_optimizer="own"), "cpu")


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("inner_loop_optimizer", lambda *a, **k: 3, "must make a InnerLoopOptimizer of meta_learning.inner_loop.base"),
        ("head", lambda n: 1 / 0, 'head "own" fails: ZeroDivisionError'),
        ("loss", dict, 'loss "own" makes a dict, but must make a TaskLoss'),
        ("outer_loss", lambda a: a, 'outer_loss "own" fails: TypeError'),
        ("norm_layer", lambda shape, norm: None, 'norm_layer "own" makes a NoneType, but must make a MetaNorm'),
        ("batch_norm_statistics", dict, "makes a dict, but must make a StatisticsChoice"),
    ],
)
def test_what_is_made_wrongly_is_named(kind, make, message):
    getattr(registry, f"register_{kind}")("own", make)
    config = small_config(**{kind: "own"})
    with pytest.raises(ConfigError, match=message):
        build_learner(config, "cpu").meta_gradients(random_episodes(config), 0)


def test_what_is_read_of_our_files_is_what_they_register():
    for kind in choices.KINDS:
        for one in choices.choices(kind).values():
            attributes = choices._attributes(one.make)
            assert {name: attributes[name] for name in one.facts if name in attributes} == {
                name: value for name, value in one.facts.items() if name in attributes
            }


def test_a_name_of_ours_cannot_be_taken_by_a_class_of_ours():
    with pytest.raises(ConfigError, match='there is a inner_loop_optimizer "adam" already'):
        registry.register_inner_loop_optimizer("adam", Adam)


def test_the_same_classes_go_into_python_without_a_name(plugin):
    load_plugins({"plugin": plugin()})
    rule = choices.choice("inner_loop_optimizer", "mine").make
    config = small_config(inner_loop_optimizer="mine", mine_floor=0.1)
    episodes = random_episodes(config)
    named = build_learner(config, "cpu")
    given = build_learner(small_config(), "cpu", inner_loop_optimizer=partial(rule, floor=0.1, power=0.5))
    one, other = (learner.meta_gradients(episodes, 0).gradients for learner in (named, given))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match='"head" given stands for an object that a Python program hands over'):
        load_config(None, {"experiment_name": "x", "head": "given"})


def test_a_classifier_takes_a_class_and_the_keys_of_a_plugin(plugin):
    from few_shot_classifier import FewShotClassifier

    load_plugins({"plugin": plugin()})
    rule = choices.choice("inner_loop_optimizer", "mine").make
    images, labels = torch.rand(4, 14, 14, generator=torch.Generator().manual_seed(0)).numpy(), ["a", "b", "a", "b"]
    small = {"num_stages": 2, "cnn_num_filters": 4, "gpu_to_use": "cpu"}
    named = FewShotClassifier(inner_loop_optimizer="mine", mine_floor=0.1, **small).fit(images, labels)
    given = FewShotClassifier(inner_loop_optimizer=partial(rule, floor=0.1, power=0.5), **small).fit(images, labels)
    assert (named.predict_proba(images) == given.predict_proba(images)).all()


def test_a_script_carries_the_plugin_that_values_toml_names_and_the_config_does_not(tmp_path, plugin):
    path = plugin()
    templates, configs, scripts = (tmp_path / name for name in ("templates", "configs", "scripts"))
    for folder in (templates, configs, scripts):
        folder.mkdir()
    values = {key: value for key, value in CONFIG.items() if key != "experiment_name"}
    (templates / "own.json").write_text(json.dumps({"experiment_name": "$experiment_name$"} | values))
    (templates / "values.toml").write_text('["own"]\nexperiment_name = "own"\nplugin = "../elsewhere/mine.py"\n')
    generate_configs(templates, configs)
    assert "plugin" not in (configs / "own.json").read_text()
    template = REPOSITORY_ROOT / "script_generation_tools" / "local_run_template_script.sh"
    generate_scripts(configs, scripts, template, plugins=plugins_of_configs(templates))
    script = (scripts / "own.sh").read_text()
    assert '"$@" --plugin "$(dirname -- "$(readlink -f -- "$0")")"/../elsewhere/mine.py' in script
    assert path.endswith("elsewhere/mine.py")


def test_an_outer_loss_over_tasks_is_refused_where_processes_share_them(plugin):
    load_plugins({"plugin": plugin("outer_loss")})
    with pytest.raises(ConfigError, match='"outer_loss" mine looks at all tasks of a meta-batch together, which 2'):
        train_maml_system._check_ranks(small_config(outer_loss="mine"), 2)


def test_reptile_is_refused_where_the_method_learns_something_of_its_own(plugin):
    load_plugins({"plugin": plugin()})
    config = small_config(inner_loop_optimizer="mine", outer_update="displacement", second_order=False)
    with pytest.raises(ConfigError, match=r"has no gradient for inner_loop\.power, which the method learns"):
        build_learner(config, "cpu")


def test_a_scripts_plugin_and_ones_own_are_both_read(tmp_path):
    for name in ("of_script", "mine"):
        text = "from utils.registry import register_loss\nregister_loss({!r}, dict)\n"
        (tmp_path / f"{name}.py").write_text(text.format(name))
    arguments = [f"--plugin={tmp_path / 'mine.py'}", "--seed", "1", "--plugin", str(tmp_path / "of_script.py")]
    _, overrides = read_command_line(arguments)
    assert [entry.partition(":")[0] for entry in overrides["plugin_sha256"]] == ["mine.py", "of_script.py"]
    assert {"mine", "of_script"} <= set(choices.choices("loss"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "shared", "adapted_parameters": "body"}, '"head" shared, which is the same for all of them'),
        ({"head": "zero", "adapted_parameters": "body"}, '"head" zero, which is the same for all of them'),
        *(
            (
                {"head": "prototypes", "inner_loop_optimizer": rule, "number_of_training_steps_per_iter": 0},
                r'0 \(ProtoNet, R2D2\) takes "inner_loop_optimizer" sgd$',
            )
            for rule in ("l2f", "metal", "metal_alfa", "alfa", "gap", "meta_curvature")
        ),
    ],
)
def test_what_could_never_learn_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**values)
