"""A file given with --plugin brings a network and a dataset into a config run; its digest goes with the run."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

import train_maml_system
from utils import registry
from utils.config import check_config, load_config
from utils.data_sources.registered_datasets import make_registered_dataset
from utils.errors import ConfigError, DataError
from utils.paths import REPOSITORY_ROOT
from utils.registry import load_plugins

EXAMPLE = REPOSITORY_ROOT / "docs" / "plugin_example"
PLUGIN = """
import numpy as np
from torch import nn
from utils.registry import register_backbone, register_dataset

def build(config, image_shape, n_way):
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, n_way))

def draw(config):
    generator = np.random.default_rng(0)
    return {
        split: {f"{split}{c}": generator.integers(0, 256, (6, 10, 10), dtype=np.uint8) for c in range(4)}
        for split in ("train", "val", "test")
    }

register_backbone("mine", build)
register_dataset("noise", draw)
"""
CONFIG = {
    "experiment_name": "own",
    "backbone": "mine",
    "dataset_name": "noise",
    "image_height": 10,
    "image_width": 10,
    "num_classes_per_set": 3,
    "num_target_samples": 2,
    "batch_size": 2,
    "number_of_training_steps_per_iter": 2,
    "total_epochs": 1,
    "total_iter_per_epoch": 2,
    "num_evaluation_tasks": 2,
    "gpu_to_use": "cpu",
    "precision": "float32",
    "report_every_s": 0,
}


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """`fresh_process()` forgets what plugins have registered, as a new process has."""

    def forget():
        for table in ("_backbones", "_datasets", "_plugins"):
            monkeypatch.setattr(registry, table, {})
        monkeypatch.setattr(registry.choices, "_chosen", {})

    forget()
    return forget


@pytest.fixture
def main(tmp_path, monkeypatch, capsys, fresh_process):
    """`main("--key", "value")` -> (exit code, standard output, standard error) of a run of CONFIG in this process."""
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "own.py").write_text(PLUGIN)

    def run(*arguments, config="config.json"):
        fresh_process()
        code = train_maml_system.main(["--name_of_args_json_file", str(tmp_path / config), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_run_with_a_plugin_keeps_its_digest_and_goes_on_with_the_same_file_alone(main, tmp_path):
    plugin = tmp_path / "own.py"
    old = f"own.py:{hashlib.sha256(plugin.read_bytes()).hexdigest()}"
    code, out, _ = main("--plugin", plugin)
    assert code == 0 and "Test accuracy" in out
    stored = tmp_path / "experiments" / "own" / "config.json"
    assert json.loads(stored.read_text())["plugin_sha256"] == [old]
    (tmp_path / "stored.json").write_text(stored.read_text())
    assert main("--plugin", plugin, "--total_epochs", "2")[0] == 0
    assert main("--plugin", plugin, "--total_epochs", "3", config="stored.json")[0] == 0

    code, _, err = main()
    assert code == 1 and '"backbone" is "mine", but must be one of vgg,' in err and "--plugin FILE.py" in err
    code, _, err = main(config="stored.json")
    assert (
        code == 1
        and f'"plugin_sha256" names {old}, which no config can load; give that file on the command line' in err
    )

    plugin.write_text(PLUGIN + "\n# changed\n")
    new = f"own.py:{hashlib.sha256(plugin.read_bytes()).hexdigest()}"
    for config in ("config.json", "stored.json"):
        code, _, err = main("--plugin", plugin, "--total_epochs", "4", config=config)
        assert code == 1 and f"plugin_sha256: ['{old}'] before, ['{new}'] now" in err
        assert "To go on with the run, give --plugin own.py, unchanged." in err
        assert "To change it all the same: --allow_config_change plugin_sha256." in err
    assert main("--plugin", plugin, "--total_epochs", "4", "--allow_config_change", "plugin_sha256")[0] == 0


def test_the_weights_of_a_plugins_run_are_those_of_its_seed(main, tmp_path):
    from experiment_parts.runs.checkpoints import load_checkpoint

    plugin, tensors = tmp_path / "own.py", []
    for name in ("one", "two"):
        assert main("--plugin", plugin, "--experiment_name", name)[0] == 0
        tensors.append(
            load_checkpoint(tmp_path / "experiments" / name / "saved_models" / "train_model_1.safetensors")[0]
        )
    assert (
        tensors[0].keys() == tensors[1].keys()
        and {"network.0.weight", "network.1.weight", "network.4.weight"} <= tensors[0].keys()
    )
    assert all((tensors[0][name] == value).all() for name, value in tensors[1].items())


@pytest.mark.full
def test_the_example_of_the_docs_runs_and_learns(tmp_path):
    """The script itself, through the launcher; an accuracy of one third would be chance."""
    environment = {**os.environ, "EXPERIMENTS_DIR": str(tmp_path), "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    result = subprocess.run(
        [
            "bash",
            EXAMPLE / "small_network.sh",
            "--total_epochs",
            "1",
            "--total_iter_per_epoch",
            "20",
            "--num_evaluation_tasks",
            "20",
            "--gpu_to_use",
            "cpu",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "plugin_example" / "logs" / "test_summary.json").read_text())
    assert summary["test_accuracy_mean"] > 0.6 or summary["results"][0]["test_accuracy_mean"] > 0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--plugin .*own.py cannot be read in .* \(No such file or directory\); give the path of a file"),
        (
            "x = 1",
            r"own.py registers nothing; it must call register_backbone\(name, build\), register_inner_loop_optimizer\(",
        ),
        ("1 / 0", r"own.py fails: ZeroDivisionError: division by zero \(.*own.py, line 1\)"),
        ("def f(:", r"own.py fails: SyntaxError"),
        ("import sys\nsys.exit()", r"own.py ends the program, which it must not: SystemExit \(.*own.py, line 2\)"),
        (
            "import argparse\n\nargparse.ArgumentParser().parse_args(['--epochs', '3'])",
            r"own.py ends the program, which it must not: SystemExit: 2 \(.*own.py, line 3\)",
        ),
        (
            "from utils.registry import *\nregister_backbone('vgg', print)",
            'there is a backbone "vgg" already; give yours another name',
        ),
        (
            "from utils.registry import *\nregister_backbone('a b', print)",
            "the name is 'a b', but must be 1 to 80 letters, digits",
        ),
        (
            "from utils.registry import *\nregister_dataset('a', 3)",
            r'register_dataset\("a", ...\): the second argument must be a function',
        ),
    ],
)
def test_a_plugin_that_cannot_work_says_why(tmp_path, text, message):
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plugins({"plugin": str(path)})


def test_plugin_is_for_the_command_line_alone(tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('executed')")
    (tmp_path / "config.json").write_text(json.dumps({"experiment_name": "t", "plugin": str(tmp_path / "own.py")}))
    with pytest.raises(
        ConfigError, match=r'"plugin" is for the command line alone \(--plugin FILE.py\): a config executes no file'
    ):
        load_config(tmp_path / "config.json")
    for given in (True, "network"):
        with pytest.raises(ConfigError, match=f"--plugin is {given}, but must be the path of a Python file"):
            load_plugins({"plugin": given})


def test_a_build_that_fails_names_its_line(main, tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN.replace("    return nn", "    return no.nn"))
    code, _, err = main("--plugin", tmp_path / "own.py")
    assert (
        code == 1
        and "backbone \"mine\": building it fails: NameError: name 'no' is not defined" in err
        and "own.py, line 7" in err
    )


def test_what_a_plugin_raises_in_the_midst_of_training_is_its_own_fault_and_names_the_line(main, tmp_path):
    fails = """
class Table(nn.Module):
    def forward(self, x):
        return [][len(x)] if self.training_has_begun else x

    training_has_begun = False

def build_and_fail(config, image_shape, n_way):
    network = build(config, image_shape, n_way)
    Table.training_has_begun = False
    return nn.Sequential(Table(), *network)

register_backbone("fails", build_and_fail)
"""
    (tmp_path / "own.py").write_text(PLUGIN + fails)
    import few_shot_learning_system

    original = few_shot_learning_system.FewShotLearner.meta_gradients

    def meta_gradients(learner, *arguments, **named):
        next(module for module in learner.modules() if type(module).__name__ == "Table").training_has_begun = True
        return original(learner, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_shot_learning_system.FewShotLearner, "meta_gradients", meta_gradients)
        code, _, err = main("--plugin", tmp_path / "own.py", "--backbone", "fails")
    assert code == 1 and re.search(r"a plugin fails in forward: IndexError: list index .*own\.py, line 21\)", err), err
    assert "bug in the program" not in err


def plugin_config(**changes):
    sizes = {"image_height": 4, "image_width": 4, "num_stages": 1}
    return check_config({"experiment_name": "t", "dataset_name": "noise"} | sizes | changes, "test")


def problems_of(made, **changes) -> str:
    registry.register_dataset("noise", made)
    config = plugin_config(**changes)
    with pytest.raises((DataError, ConfigError)) as error:
        make_registered_dataset(config, "noise", {"train": config.training_shapes, "test": config.test_shapes})
    return str(error.value)


def test_everything_wrong_with_a_plugins_dataset_is_listed():
    import numpy as np

    image = np.zeros((16, 4, 4), np.uint8)
    good = {str(number): image for number in range(5)}
    text = problems_of(
        lambda config: {
            "train": good
            | {"float": image / 2, "large": np.zeros((16, 8, 8), np.uint8), "list": [1], 3: image}
            | {"masked": np.ma.masked_equal(image, image.max())},
            "readme": {"a": "b"},
            "val": 7,
        }
    )
    for part in (
        'dataset "noise", made by a plugin: 8 problems in this dataset:',
        "'readme' is no split; give train, val, test",
        'class "a" (readme) is str, but must be a uint8 array',
        'split "val" is int, but must be a dict, class name -> images',
        'split "train" has 2 classes whose names read "3"; rename one',
        'class "float" (train) is float64 (16, 4, 4), but must be a uint8 array (n, H, W) or (n, H, W, C)',
        'class "list" (train) is list',
        'class "masked" (train) holds masked values; fill them, array.filled(value), or drop these examples',
        'class "large" (train) has images of (C, H, W) (1, 8, 8), but image_channels, image_height and image_width '
        "say (1, 4, 4)",
    ):
        assert part in text


def noise(first, n_classes=5):
    """Classes c0, c1, ... of 16 images, unlike those of another `first`."""
    import numpy as np

    return {f"c{c}": np.random.default_rng([first, c]).integers(0, 256, (16, 4, 4), np.uint8) for c in range(n_classes)}


def test_a_plugins_images_in_two_splits_are_refused_and_left_in_the_last_when_asked(caplog):
    one, other = noise(0), noise(1)
    other["c1"][:2] = one["c4"][5:7]
    made = {"train": one, "test": other}
    text = problems_of(lambda config: made, num_target_samples=13)
    assert text.count("the same image in two splits") == 2
    assert "the same image in two splits: noise/train/c4/5 (train), noise/test/c1/0 (test). Take it out of one" in text
    assert "5 class names are in train and in test, such as c0" in caplog.text
    config = plugin_config(on_bad_image="skip", num_target_samples=13)
    dataset = make_registered_dataset(config, "noise", {"train": config.training_shapes, "test": config.test_shapes})
    assert len(dataset.classes["train"]["c4"]) == 14 and len(dataset.classes["test"]["c1"]) == 16
    registry._datasets.clear()
    text = problems_of(lambda config: made, num_target_samples=14, on_bad_image="skip")
    assert 'class "c4" (train) has 14 images, but shots and queries need 15' in text


def test_a_plugins_image_that_is_in_its_class_twice_stays_once_unless_a_run_has_started_with_it(caplog):
    made = {"train": noise(0)}
    made["train"]["c2"][3] = made["train"]["c2"][9]
    made["train"]["c0"][0] = made["train"]["c1"][0]
    registry.register_dataset("noise", lambda config: made)
    config = plugin_config(num_target_samples=14)
    dataset = make_registered_dataset(config, "noise", {"train": config.training_shapes})
    assert len(dataset.classes["train"]["c2"]) == 15 and "keeps_copies" not in dataset.source
    assert "as the same file: 1: train/c2/3 = train/c2/9" in caplog.text
    assert "images that are in two classes, of which one must be wrong: 1: train/c0/0 = train/c1/0" in caplog.text
    started = make_registered_dataset(config, "noise", {"train": config.training_shapes}, keep_copies=True)
    assert len(started.classes["train"]["c2"]) == 16 and started.source["keeps_copies"]


def test_a_plugins_dataset_is_known_by_its_pixels_and_names():
    from data import build_data

    def made(first):
        splits = {split: noise(number) for number, split in enumerate(("train", "val", "test"))}
        return {
            split: {first if name == "c0" else name: images for name, images in classes.items()}
            for split, classes in splits.items()
        }

    identities = []
    for place, first in enumerate(("c0", "c0", "first")):
        registry.register_dataset(f"noise{place}", lambda config, first=first: made(first))
        data = build_data(plugin_config(dataset_name=f"noise{place}"), "cpu")
        data.check_content()
        identities.append(data.identity())
    assert identities[0] == identities[1] and identities[0]["splits"]["val"]["images"] == 80
    assert identities[2]["splits"] != identities[0]["splits"]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda config: [1], "it must be a dict, split -> class name -> images"),
        (lambda config: {"train": {}, "test": {}}, 'split "train" has 0 classes, but episodes need 5'),
        (lambda config: {"train": noise(0)}, 'split "test" is missing'),
        (lambda config: {"train": noise(0) | {"few": noise(1)["c0"][:3]}}, 'class "few" (train) has 3 images'),
        (lambda config: config.nonsense, 'dataset "noise" fails: AttributeError'),
    ],
)
def test_a_dataset_that_is_none_says_so(made, text):
    assert text in problems_of(made)


def test_another_run_is_tested_on_a_plugins_dataset(main, tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN + 'register_dataset("other_noise", draw)\n')
    code, out, _ = main("--plugin", tmp_path / "own.py")
    assert code == 0
    arguments = ["--evaluate_on_test_set_only", "true", "--tag", "elsewhere", "--test_dataset_name", "other_noise"]
    code, out, err = main("--plugin", tmp_path / "own.py", *arguments)
    assert code == 0 and "other_noise" in out, err
