"""Configs of the reference and of PyTorch-MAML (fmu2): what they become, and what is said about them."""

import json
import sys

import pytest

from script_generation_tools.convert_config import convert_files, main
from script_generation_tools.reference_configs import READ_NOWHERE, convert_reference_config
from utils.config import check_config, load_config
from utils.errors import ConfigError

REFERENCE = {
    "batch_size": 2,
    "image_height": 84,
    "image_width": 84,
    "image_channels": 3,
    "gpu_to_use": 0,
    "num_dataprovider_workers": 4,
    "max_models_to_save": 5,
    "dataset_name": "mini_imagenet_full_size",
    "dataset_path": "mini_imagenet_full_size",
    "reset_stored_paths": False,
    "experiment_name": "mini-imagenet_1_2_0.01_48_5_0",
    "train_seed": 0,
    "val_seed": 0,
    "indexes_of_folders_indicating_class": [-3, -2],
    "sets_are_pre_split": True,
    "train_val_test_split": [0.64, 0.16, 0.2],
    "evaluate_on_test_set_only": False,
    "total_epochs": 100,
    "total_iter_per_epoch": 500,
    "continue_from_epoch": -2,
    "num_evaluation_tasks": 600,
    "multi_step_loss_num_epochs": 15,
    "minimum_per_task_contribution": 0.01,
    "learnable_per_layer_per_step_inner_loop_learning_rate": "true",
    "enable_inner_loop_optimizable_bn_params": False,
    "evalute_on_test_set_only": False,
    "max_pooling": True,
    "per_step_bn_statistics": True,
    "learnable_batch_norm_momentum": False,
    "load_into_memory": True,
    "init_inner_loop_learning_rate": 0.01,
    "learnable_bn_gamma": True,
    "learnable_bn_beta": True,
    "dropout_rate_value": 0.3,
    "min_learning_rate": 0.001,
    "meta_learning_rate": 0.001,
    "total_epochs_before_pause": 101,
    "first_order_to_second_order_epoch": -1,
    "weight_decay": 0.0,
    "norm_layer": "batch_norm",
    "cnn_num_filters": 48,
    "num_stages": 4,
    "conv_padding": True,
    "number_of_training_steps_per_iter": 5,
    "number_of_evaluation_steps_per_iter": 5,
    "cnn_blocks_per_stage": 1,
    "num_classes_per_set": 5,
    "num_samples_per_class": 1,
    "num_target_samples": 15,
    "second_order": True,
    "use_multi_step_loss_optimization": True,
}
"""A config as its generator writes it, one value changed: a dropout that never happened."""


def said(findings, *parts):
    """Whether one line says all of these."""
    return any(all(part in line for part in parts) for line in findings)


def converted(tmp_path, **changes):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({key: value for key, value in (REFERENCE | changes).items() if value is not None}))
    return convert_files([path])


def test_the_converted_config_does_what_the_code_really_did(tmp_path):
    values, findings = converted(tmp_path)
    assert values["init_inner_loop_learning_rate"] == 0.1  # not the 0.01 of the file and of the experiment's name
    assert said(
        findings,
        '"init_inner_loop_learning_rate": 0.01 had no effect',
        "task_learning_rate = 0.1 (its default)",
        "set it to 0.01",
    )
    assert values["dropout_rate_value"] == 0.0
    assert said(findings, '"dropout_rate_value": 0.3 had no effect', "nothing was dropped")
    assert (values["normalisation"], values["gradient_clamp"], values["class_rotation"]) == ("imagenet", 10.0, False)
    assert values["learnable_per_layer_per_step_inner_loop_learning_rate"] is True  # "true" was a boolean there
    assert values["batch_norm_statistics"] == "transductive"
    assert said(findings, "running statistics of per_step_bn_statistics never normalised anything")
    assert values["seed"] == 104
    assert (values["num_evaluation_tasks"], values["num_target_samples"], values["total_epochs"]) == (600, 15, 100)


def test_every_key_that_nothing_read_is_named(tmp_path):
    _, findings = converted(tmp_path, my_own_key=3, **dict.fromkeys(READ_NOWHERE, 7))
    for key in (*READ_NOWHERE, "my_own_key"):
        assert said(findings, f'"{key}": ', "had no effect"), key


def test_a_task_learning_rate_that_is_given_is_the_rate(tmp_path):
    values, findings = converted(tmp_path, task_learning_rate=0.4, init_inner_loop_learning_rate=0.4)
    assert values["init_inner_loop_learning_rate"] == 0.4
    assert not said(findings, "init_inner_loop_learning_rate")


@pytest.mark.parametrize(
    ("rates", "rate", "words"),
    [
        ({"task_learning_rate": -1}, 0.01, "until May 2019, whose code adapted with init_inner_loop_learning_rate"),
        ({"task_learning_rate": -1, "init_inner_loop_learning_rate": 0.4}, 0.4, "learning_rate = 0.4 is written"),
        (
            {"task_learning_rate": -1, "init_task_learning_rate": 0.4, "init_inner_loop_learning_rate": None},
            0.4,
            "init_task_learning_rate = 0.4 is written, as it is read when the config is run",
        ),
        ({"task_learning_rate": -1, "init_inner_loop_learning_rate": None}, 0.1, "the default = 0.1 is written"),
        (
            {"init_task_learning_rate": 0.4, "init_inner_loop_learning_rate": None},
            0.4,
            '"init_task_learning_rate": 0.4 is the inner learning rate here, as when the config is run',
        ),
        ({"init_task_learning_rate": 0.4, "init_inner_loop_learning_rate": -1}, 0.4, "to repeat a run of it"),
        ({"task_learning_rate": 0.2, "init_inner_loop_learning_rate": 0.2, "init_task_learning_rate": -1}, 0.2, ""),
    ],
)
def test_the_inner_rate_is_the_one_that_the_config_is_run_with(tmp_path, rates, rate, words):
    """By whichever of its three names. What the code since May 2019 did with a name that it did not read: see above."""
    values, findings = converted(tmp_path, **rates)
    assert values["init_inner_loop_learning_rate"] == rate and said(findings, words)
    assert (
        load_config(
            tmp_path / "old.json", {"tag": "x", "evaluate_on_test_set_only": True, "dropout_rate_value": 0.0}
        ).init_inner_loop_learning_rate
        == rate
    )


@pytest.mark.parametrize(
    ("keys", "written", "words"),
    [
        (
            {"alfa": True, "attenuate": False, "init_inner_loop_weight_decay": 0.001, "backbone": "ResNet12"},
            {"inner_loop_optimizer": "alfa", "alfa_weight_decay_start": 0.001, "backbone": "resnet12"},
            ["keys of a fork (L2F, ALFA, MeTAL)", 'inner_loop_optimizer = "alfa"'],
        ),
        ({"attenuate": "true", "task_learning_rate": -1}, {"inner_loop_optimizer": "l2f", "backbone": "vgg"}, []),
        ({"meta_loss": True, "alfa": "False"}, {"inner_loop_optimizer": "metal"}, []),
        ({"meta_loss": True, "alfa": True}, {"inner_loop_optimizer": "metal_alfa"}, []),
        ({"attenuate": False, "backbone": "4-CONV"}, {"inner_loop_optimizer": "sgd", "backbone": "vgg"}, []),
        ({"attenuate": True, "alfa": True}, {"inner_loop_optimizer": "alfa"}, ["alfa is written", "alfa_l2f.py"]),
        ({"alfa": True, "random_init": True}, {}, ['"random_init": true', "is not carried over"]),
        ({"alfa": True, "backbone": "WRN"}, {"backbone": "vgg"}, ['"WRN"', "vgg is written"]),
    ],
)
def test_a_config_of_a_well_known_fork_becomes_its_method_here(tmp_path, keys, written, words):
    """Their code adapted with init_inner_loop_learning_rate, whatever task_learning_rate says (read in all three)."""
    values, findings = converted(tmp_path, **keys)
    assert {key: values[key] for key in written} == written and said(findings, *words)
    assert values["init_inner_loop_learning_rate"] == 0.01
    assert not said(findings, "no such key") and not said(findings, "task_learning_rate")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "8"}, '"batch_size" is "8", but must be: a valid integer'),
        ({"num_of_gpus": 0}, '"num_of_gpus" is 0, but must be: greater than or equal to 1'),
        ({"samples_per_iter": 0, "seed": 0.5}, '"samples_per_iter" is 0, but must be: greater than or equal to 1'),
        ({"task_learning_rate": [0.1]}, '"task_learning_rate" is [0.1], but must be: a valid number'),
        ({"val_seed": {}}, '"val_seed" is {}, but must be: a valid integer'),
        ({"image_height": True}, '"image_height" is true, but must be: a valid integer'),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_key(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        converted(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path}/old.json: ") and message in str(error.value)


@pytest.mark.parametrize("key", sorted(REFERENCE))
@pytest.mark.parametrize("value", [None, "x", [], {}, -3, 0, 1.5, True, [None], "8"])
def test_no_value_of_any_key_is_more_than_an_error_with_its_name(key, value):
    """Or converts. The readers of old configs trust no shape."""
    try:
        check_config(convert_reference_config(REFERENCE | {key: value}).values, "old.json")
    except ConfigError as error:
        assert f'"{key}"' in str(error) or key in str(error)


@pytest.mark.parametrize(
    ("changes", "key", "value", "words"),
    [
        ({"num_evaluation_tasks": 601}, "num_evaluation_tasks", 600, "601 were 600 in fact"),
        ({"max_models_to_save": 2}, "max_models_to_save", 5, "every model was kept"),
        ({"num_of_gpus": 2}, "batch_size", 4, "multiplied the tasks of a meta-batch"),
        ({"batch_size": None}, "batch_size", 32, "batch_size = 32"),
        ({"num_stages": None}, "num_stages", 4, "without num_stages it stopped"),
        ({"val_seed": 3}, "class_split_seed", 3, "also drew the split of the classes"),
        ({"total_epochs_before_pause": 100}, "total_epochs_before_pause", 100, "a second start"),
        (
            {"number_of_evaluation_steps_per_iter": 10},
            "number_of_evaluation_steps_per_iter",
            10,
            "made it stop; here it works",
        ),
        ({"multi_step_loss_num_epochs": 0}, "use_multi_step_loss_optimization", False, "a division by zero"),
        ({"norm_layer": "layer_norm"}, "per_step_bn_statistics", False, "no effect with layer_norm"),
        (
            {"norm_layer": "layer_norm", "learnable_bn_beta": False},
            "learnable_bn_beta",
            True,
            '"learnable_bn_beta": false had no effect',
        ),
        ({"dataset_name": "my_photos"}, "normalisation", "none", '"my_photos" made it stop'),
        ({"image_height": 60}, "image_width", 60, "swapped when images were resized"),
        ({"conv_padding": 1}, "conv_padding", True, '"conv_padding" 1 is read as true'),
        ({"conv_padding": 0, "num_stages": 3}, "conv_padding", False, '"conv_padding" 0 is read as false'),
        ({"num_dataprovider_workers": 0}, "num_dataprovider_workers", 0, "train on validation episodes"),
    ],
)
def test_other_values_that_differed_are_named(tmp_path, changes, key, value, words):
    values, findings = converted(tmp_path, **changes)
    assert values[key] == value
    assert said(findings, words), findings


def test_one_channel_is_only_possible_with_omniglot():
    assert said(convert_reference_config(REFERENCE | {"image_channels": 1}).findings, "always became RGB")
    assert not said(
        convert_reference_config(REFERENCE | {"image_channels": 1, "dataset_name": "omniglot_dataset"}).findings, "RGB"
    )


def test_the_command_prints_the_findings_and_replaces_nothing(tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps(REFERENCE))
    arguments = [str(tmp_path / "old.json"), "--output", str(tmp_path / "new.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert '- "gpu_to_use": 0 had no effect' in printed
    assert f"{tmp_path / 'new.json'}: written, 14 findings above" in printed
    assert load_config(tmp_path / "new.json").experiment_name == "mini-imagenet_1_2_0.01_48_5_0"
    assert main(arguments) == 1
    assert "exists already and stays as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "a config is a table of keys and values, not a list"),
        ("a.yaml", "a: [", "not a plain YAML"),
        ("a.yaml", "a: !!python/object/apply:os.system ['true']", "not a plain YAML"),
        ("a.yaml", "epoch: 3", 'has no "train" and "encoder"'),
    ],
)
def test_what_cannot_be_converted_is_an_error_that_names_the_file(tmp_path, name, text, message):
    pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        convert_files([tmp_path / name])
    assert name in str(error.value)


def test_a_missing_pyyaml_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text("epoch: 3")
    with pytest.raises(ConfigError, match=r"needs the package pyyaml. Run: .* -m pip install pyyaml"):
        convert_files([tmp_path / "a.yaml"])


def test_an_old_config_that_is_not_utf_8_is_one_line(tmp_path, capsys):
    (tmp_path / "old.json").write_bytes('{"experiment_name": "café"}'.encode("latin-1"))
    assert main([str(tmp_path / "old.json"), "--output", str(tmp_path / "new.json")]) == 1
    assert "old.json: not UTF-8 text ('utf-8' codec can't decode byte 0xe9 in position 24" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
