"""What a config may say, and what the user reads when it cannot work."""

import json
import os
import re
import shlex
import threading

import pytest

from utils.config import OLD_KEYS, ExperimentConfig, check_config, load_config, meaning
from utils.config.changes import as_argument
from utils.config.command_line import parse_command_line
from utils.config.help import help_text
from utils.config.messages import COMMAND_LINE, PATTERNS, USUAL_NAMES
from utils.config.schema import fields, is_list_key, read_with
from utils.config.value_types import choices
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT
from utils.registry import BUILT_IN_BACKBONES
from utils.registry import choices as registered
from utils.registry.choices import KINDS

REFERENCE_KEYS = [
    "batch_size",
    "image_height",
    "image_width",
    "image_channels",
    "num_of_gpus",
    "samples_per_iter",
    "indexes_of_folders_indicating_class",
    "train_val_test_split",
    "labels_as_int",
    "seed",
    "train_seed",
    "val_seed",
    "gpu_to_use",
    "num_dataprovider_workers",
    "max_models_to_save",
    "dataset_name",
    "dataset_path",
    "reset_stored_filepaths",
    "reset_stored_paths",
    "reverse_channels",
    "experiment_name",
    "continue_from_epoch",
    "num_target_samples",
    "num_classes_per_set",
    "num_samples_per_class",
    "second_order",
    "first_order_to_second_order_epoch",
    "total_epochs",
    "total_iter_per_epoch",
    "total_epochs_before_pause",
    "min_learning_rate",
    "meta_learning_rate",
    "task_learning_rate",
    "init_inner_loop_learning_rate",
    "init_task_learning_rate",
    "use_gdrive",
    "number_of_training_steps_per_iter",
    "number_of_evaluation_steps_per_iter",
    "learnable_per_layer_per_step_inner_loop_learning_rate",
    "use_multi_step_loss_optimization",
    "multi_step_loss_num_epochs",
    "minimum_per_task_contribution",
    "enable_inner_loop_optimizable_bn_params",
    "per_step_bn_statistics",
    "learnable_bn_gamma",
    "learnable_bn_beta",
    "learnable_batch_norm_momentum",
    "meta_opt_bn",
    "norm_layer",
    "max_pooling",
    "conv_padding",
    "num_stages",
    "cnn_num_filters",
    "cnn_blocks_per_stage",
    "dropout_rate_value",
    "architecture_name",
    "weight_decay",
    "load_from_npz_files",
    "train_in_stages",
    "evalute_on_test_set_only",
    "evaluate_on_test_set_only",
    "num_evaluation_tasks",
    "sets_are_pre_split",
    "load_into_memory",
    "name_of_args_json_file",
    "cnn_num_blocks",
]


def check(**values):
    return check_config({"experiment_name": "test"} | values, "my.json")


def problems_of(**values) -> str:
    with pytest.raises(ConfigError) as error:
        check(**values)
    return str(error.value)


@pytest.mark.parametrize("key", REFERENCE_KEYS)
def test_every_key_of_the_reference_is_known(key):
    assert (key in ExperimentConfig.model_fields) != (key in OLD_KEYS)


@pytest.mark.parametrize("key", fields())
def test_every_key_has_its_meaning(key):
    assert len(fields()[key].description or "") > 10


@pytest.mark.parametrize("key", ExperimentConfig.model_fields)
def test_every_key_is_read_somewhere(key):
    """A key that nothing reads is a promise that nothing keeps."""
    rooms = ("*.py", "utils/**/*.py", "meta_learning/**/*.py", "experiment_parts/**/*.py", "experiment_tools/**/*.py")
    about_keys = REPOSITORY_ROOT / "utils" / "config"
    sources = [path for room in rooms for path in REPOSITORY_ROOT.glob(room) if path.parent != about_keys]
    derived = {
        "batch_size": "tasks_per_meta_batch",
        "samples_per_iter": "tasks_per_meta_batch",
        "seed": "initialisation_seed",
        "num_samples_per_class": "training_shapes",
        "val_num_classes_per_set": "validation_shape",
        "test_num_classes_per_set": "test_shapes",
        "test_num_samples_per_class": "test_shapes",
        "test_num_target_samples": "test_shapes",
    }
    assert any(re.search(rf"\b{derived.get(key, key)}\b", path.read_text(encoding="utf-8")) for path in sources)


def test_a_key_that_is_near_to_none_is_likened_to_none_and_a_choice_of_a_plugin_asks_for_its_file():
    for key in ("verbose", "damped_power"):
        said = problems_of(**{key: 1})
        assert "did you mean" not in said and "forgot --plugin FILE.py?" in said
    assert 'did you mean "early_stopping_patience"?' in problems_of(patience=3)
    for key in KINDS:
        said = problems_of(**{key: "damped"})
        assert "forgot --plugin FILE.py?" in said and len(said) < 500, said
    assert 'Did you mean "adam"?' in problems_of(inner_loop_optimizer="adamm")


def test_an_unknown_key_names_the_nearest_one():
    assert problems_of(init_inner_loop_learning_rat=0.1) == (
        'my.json: unknown key "init_inner_loop_learning_rat"; did you mean "init_inner_loop_learning_rate"?'
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batch_size": "8"}, '"batch_size" is "8", but must be: a valid integer'),
        ({"batch_size": 0}, '"batch_size" is 0, but must be: greater than or equal to 1'),
        ({"max_pooling": 1}, '"max_pooling" is 1, but must be: true or false. '),
        ({"num_classes_per_set": 1}, '"num_classes_per_set" is 1, but must be: greater than or equal to 2'),
        ({"num_samples_per_class": 0}, '"num_samples_per_class" is 0, but must be: greater than or equal to 1'),
        (
            {"norm_layer": "instance"},
            "\"norm_layer\" is \"instance\", but must be: 'batch_norm', 'group_norm', 'layer_norm' or 'task_norm'",
        ),
        ({"experiment_name": "../up"}, '"experiment_name" is "../up", but must be: 1 to 200 characters out of letters'),
        (
            {"tag": "a b"},
            '"tag" is "a b", but must be: at most 80 characters out of letters a-z and A-Z, digits and _ + = , . - (no',
        ),
        ({"dataset_name": "a/b"}, '"dataset_name" is "a/b", but must be: 1 to 200 characters'),
        ({"gpu_to_use": "gpu0"}, '"gpu_to_use" is "gpu0", but must be: GPU ids separated by commas'),
        ({"class_rotation": 1}, "\"class_rotation\" is 1, but must be: true or false or 'auto'"),
        (
            {"train_val_test_split": "0.5,0.5"},
            "must be: a list, written 0.5 0.5 on the command line and [0.5, 0.5] in a file",
        ),
        ({"num_stages": 6}, "images of 28 x 28 pixels vanish in 6 stages"),
        ({"min_learning_rate": 0.01}, '"min_learning_rate" 0.01 is above "meta_learning_rate" 0.001'),
        ({"number_of_ensemble_models": 9}, '"number_of_ensemble_models" 9 is more than "max_models_to_save" 5'),
        (
            {"second_order": False, "first_order_to_second_order_epoch": 3},
            '3 means nothing with "second_order" false; leave it out',
        ),
        ({"class_rotation": True, "image_width": 30}, '"class_rotation" needs square images, but they are 28 x 30'),
        ({"normalisation": "imagenet"}, '"normalisation" imagenet needs "image_channels" 3, not 1'),
        ({"learnable_batch_norm_momentum": True}, '"learnable_batch_norm_momentum" needs'),
        ({"norm_layer": "layer_norm", "per_step_bn_statistics": True}, 'needs "norm_layer" batch_norm, not layer_norm'),
        ({"train_val_test_split": [0.9, 0.3]}, '"train_val_test_split" is [0.9, 0.3]; the fractions for train and val'),
        ({"tag": "x"}, 'leave it out, or set "evaluate_on_test_set_only" to true'),
        (
            {"test_after_training": False, "test_curve": True},
            '"test_curve" is made after training, but "test_after_training" is false',
        ),
        (
            {"train_seed": 2**56},
            '"train_seed" is 72057594037927936, but must be: less than or equal to 72057594037927935',
        ),
        (
            {"class_split_seed": 2**32},
            '"class_split_seed" is 4294967296, but must be: less than or equal to 4294967295',
        ),
        ({"weight_decay": -0.1}, '"meta_weight_decay" is -0.1, but must be: greater than or equal to 0'),
        (
            {"dataset_name": "sinusoid"},
            '"dataset_name" sinusoid, points of a wave, needs "loss" "mean_squared_error", not "cross_entropy"; '
            '"image_height" 1, not 28',
        ),
        (
            {"loss": "mean_squared_error", "head": "prototypes"},
            '"head" prototypes is made of classes, which regression does not have; set "head" to "learned"',
        ),
        (
            {"backbone": "mlp", "dropout_rate_value": 0.5, "per_step_bn_statistics": True},
            'mlp has neither norm layers nor dropout; set "dropout_rate_value" to 0.0 and "per_step_bn_statistics" to '
            "false",
        ),
        (
            {"meta_momentum": 0.9},
            '"meta_momentum" 0.9 means nothing with "meta_optimizer" adam; leave it out, or set '
            '"meta_optimizer" to "sgd" or "rmsprop"',
        ),
        (
            {"meta_learning_rate_schedule": "step"},
            '"meta_learning_rate_schedule" step falls at milestones, and "meta_learning_rate_milestones" [] must be '
            "epochs from 1 on, each later than the one before: [50, 75], say",
        ),
        (
            {"meta_learning_rate_schedule": "step", "meta_learning_rate_milestones": [5, 2]},
            "each later than the one before",
        ),
        ({"meta_learning_rate_milestones": [5]}, '[5] means nothing with "meta_learning_rate_schedule" cosine; leave'),
        ({"task_learning_rate": 0.2, "init_inner_loop_learning_rate": 0.1}, "they mean the same, give one"),
        (
            {"enable_inner_loop_optimizable_bn_params": True, "learnable_bn_gamma": False, "learnable_bn_beta": False},
            "has nothing to adapt",
        ),
    ],
)
def test_a_wrong_value_says_what_is_allowed(values, text):
    assert text in problems_of(**values)


LIST_KEYS = [name for name, field in ExperimentConfig.model_fields.items() if "tuple[" in str(field.annotation)]


@pytest.mark.parametrize("key", LIST_KEYS)
def test_a_list_that_is_suggested_works(key):
    """In the file and on the command line; 5.5 for a number of classes, say, would be no better in a list."""
    others = {
        "head": "zero",
        "num_stages": 99,
    }  # a head for any number of classes; and a mistake, so that there is a message in any case
    for value in (5.5, 5, -2, 0.5, True, {}, "a", "0.5,0.5", "5, 10", "a,b", "[x, 'y']"):
        try:
            check(**{key: value})
            continue
        except ConfigError as error:
            text = str(error)
        for written in re.findall(
            r"a list, written (?:.* on the command line and )?(\[.*?\])(?: in a file)?(?: or |\. )", text
        ):
            assert f'"{key}" is ' not in problems_of(**{key: json.loads(written)}, **others)
        for written in re.findall(r"a list, written (.*) on the command line", text):
            _, overrides = parse_command_line([f"--{key}", *shlex.split(written)])
            assert f'"{key}" is ' not in problems_of(**overrides, **others)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("num_classes_per_set", 5.5, "5.5, but must be: a valid integer or a list. "),
        ("train_val_test_split", 0.5, "0.5, but must be: a list or 'auto'. "),
        ("inner_loop_betas", 0.5, "0.5, but must be: a list. "),
        (
            "frozen_layers",
            "block0, *.bias",
            'but must be: a list, written block0 \'*.bias\' on the command line and ["block0", "*.bias"] in a file. ',
        ),
    ],
)
def test_a_list_is_suggested_only_where_it_works(key, value, text):
    assert text in problems_of(**{key: value})


SINGLE_VALUES = {
    "allow_config_change": "batch_size", "plugin_sha256": "net.py:00", "skip_iterations": 7, "trackers": "tensorboard",
    "indexes_of_folders_indicating_class": -2, "support_augmentation": "flip", "query_augmentation": "crop",
    "mlp_hidden_sizes": 16, "frozen_layers": "block0", "meta_learning_rate_milestones": 5, "test_dataset_name": "2024",
    "adapter_targets": "block0",
    "input_shape": 16,
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(key for key in ExperimentConfig.model_fields if is_list_key(key)))
def test_one_value_is_a_list_of_one(key, monkeypatch):
    """On the command line and in a file, for every key that is a list of any length."""
    monkeypatch.setattr("utils.config.rules.loaded_plugins", lambda: ("net.py:00",))
    value = SINGLE_VALUES[key]
    _, overrides = parse_command_line([f"--{key}", str(value)])
    for given in (value, [value], overrides[key]):
        beside = {"meta_learning_rate_schedule": "step"} if "milestones" in key else {}
        beside |= {"adapter_kind": "lora"} if "adapter" in key else {}
        beside |= {"backbone": "mlp", "dataset_name": "mine"} if key == "input_shape" else {}
        assert getattr(check(**{key: given}, **beside), key) == (value,)


WITH_NONE = [name for name, field in ExperimentConfig.model_fields.items() if "none" in choices(field.annotation)]


@pytest.mark.parametrize("key", WITH_NONE)
def test_none_is_a_word_on_the_command_line_where_it_is_a_value(key):
    """The very words that the advice about a changed config gives back are among them."""
    assert {"normalisation", "learnable_inner_loop_learning_rates", "adapter_kind"} <= set(WITH_NONE)
    for words in ([f"--{key}", "none"], [f"--{key}=None"], shlex.split(f"--{key} {as_argument('none')}")):
        assert getattr(check(**parse_command_line(words)[1]), key) == "none"
    assert parse_command_line(["--seed", "none", "--task_learning_rate", "none"])[1] == {
        "seed": None,
        "task_learning_rate": None,
    }


def test_what_is_text_stays_text_alone_and_among_others():
    words = [
        "--test_dataset_name",
        "2024",
        "omniglot",
        "--frozen_layers",
        "1",
        "--tag",
        "5",
        "--experiment_name",
        "null",
    ]
    _, overrides = parse_command_line(words)
    config = check(**overrides, evaluate_on_test_set_only=True)
    assert config.test_dataset_name == ("2024", "omniglot_dataset")
    assert (config.frozen_layers, config.tag, config.experiment_name) == (("1",), "5", "null")
    assert parse_command_line(["--frozen_layers", '["a", "b"]'])[1] == {"frozen_layers": ["a", "b"]}


@pytest.mark.parametrize("word", ["-total_epochs", "-batch_size=3", "-x"])
def test_one_dash_is_told_as_what_was_typed(word):
    """Behind what a script puts before it, which the user has not typed."""
    for before in ([], ["--name_of_args_json_file", "a.json"], ["--gpu_to_use", "0"]):
        with pytest.raises(ConfigError) as error:
            parse_command_line([*before, word, "3"])
        assert str(error.value) == (
            f'command line: "{word}": a key is written with two dashes, as in -{word}, and a value that begins with a '
            "dash as in --key=-value"
        )
    assert parse_command_line(["--tag=-x", "--continue_from_epoch", "-2"])[1] == {
        "tag": "-x",
        "continue_from_epoch": -2,
    }


def test_padding_in_pixels_is_padding_or_none_and_said():
    """The reference's configs until May 2019 give the number of pixels."""
    for pixels in (0, 1):
        config = check(conv_padding=pixels, num_stages=3)
        assert config.conv_padding is bool(pixels)
        assert f'"conv_padding" {pixels} is read as {str(bool(pixels)).lower()}' in config.notes
    assert '"conv_padding" is 2, but must be: true or false' in problems_of(conv_padding=2)


def test_a_config_that_can_be_read_once_is_read_once(tmp_path):
    """As /dev/stdin and <(...) can, the name that it gives its experiment among the rest."""
    pipe = tmp_path / "config"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"experiment_name": "a", "batch_size": 2}',))
    writer.start()
    config = load_config(pipe, {"experiment_name": "b"})
    writer.join()
    assert (config.experiment_name, config.experiment_of_file, config.batch_size) == ("b", "a", 2)
    assert check().experiment_of_file is None


def test_all_problems_come_in_one_message():
    text = problems_of(batch_sise=3, num_stages=9, max_pooling="maybe", min_learning_rate=1.0)
    assert [line.split('"')[1] for line in text.splitlines() if '"' in line][:2] == ["batch_sise", "max_pooling"]
    assert '"min_learning_rate" 1.0' in text and len(text.splitlines()) == 3  # num_stages' rule waits for max_pooling


def test_the_inner_learning_rate_has_three_names_and_minus_one_means_unset():
    assert check(task_learning_rate=-1, init_task_learning_rate=0.4).init_inner_loop_learning_rate == 0.4
    assert check(task_learning_rate=0.4, init_inner_loop_learning_rate=-1).init_inner_loop_learning_rate == 0.4
    assert check(task_learning_rate=0.4, init_inner_loop_learning_rate=0.4).init_inner_loop_learning_rate == 0.4
    assert check(init_inner_loop_learning_rate=-1).init_inner_loop_learning_rate == 0.1


def test_dead_keys_at_their_neutral_value_are_a_note():
    config = check(meta_opt_bn=False, use_gdrive="false", num_of_gpus=4, minimum_per_task_contribution=0.01)
    assert sum("has no effect here" in note for note in config.notes) == 4


def test_the_key_that_counted_skipped_iterations_has_gone_to_one_that_lists_them():
    notes = {*check(skip_non_finite_iterations=0).notes} - {*check().notes}
    assert notes == {'"skip_non_finite_iterations" has no effect here'}
    assert problems_of(skip_non_finite_iterations=2) == (
        'my.json: "skip_non_finite_iterations" is 2, but has no effect here: list the iterations to leave out in '
        '"skip_iterations"; the run that stops at one names it'
    )
    assert check(skip_iterations=7).skip_iterations == check(skip_iterations=[7]).skip_iterations == (7,)
    assert '"skip_iterations" is [0], but must be' in problems_of(skip_iterations=0)


def test_weight_decay_has_a_name_that_says_of_which_loop():
    config = check(weight_decay=0.25)
    assert config.meta_weight_decay == 0.25 and '"weight_decay" is read as "meta_weight_decay"' in config.notes


def test_auto_is_looked_up_by_the_exact_name_and_said():
    omniglot, mini, other = (
        check(dataset_name=name, image_channels=3) for name in ("omniglot", "mini_imagenet", "my_omniglot")
    )
    assert omniglot.dataset_name == omniglot.dataset_path == "omniglot_dataset"
    assert (omniglot.class_rotation, omniglot.resize_filter, omniglot.gradient_clamp) == (True, "nearest", 0.0)
    assert (mini.class_rotation, mini.normalisation, mini.gradient_clamp) == (False, "imagenet", 10.0)
    assert (other.class_rotation, other.normalisation, other.gradient_clamp) == (False, "none", 0.0)
    assert any("class_rotation = true" in note for note in omniglot.notes)
    assert check(class_rotation=False).class_rotation is False


def test_another_dataset_on_the_command_line_is_read_from_its_own_folder(tmp_path):
    file = tmp_path / "a.json"
    for name, path, overrides, folder in (
        ("old", "old", {"dataset_name": "new"}, "new"),
        ("omniglot", "omniglot_dataset", {"dataset_name": "new"}, "new"),
        ("old", "elsewhere", {"dataset_name": "new"}, "elsewhere"),
        ("old", "old", {"dataset_name": "new", "dataset_path": "old"}, "old"),
        ("old", "old", {}, "old"),
    ):
        file.write_text(json.dumps({"experiment_name": "a", "dataset_name": name, "dataset_path": path}))
        config = load_config(file, overrides)
        assert config.dataset_path == folder
        note = f'dataset {config.dataset_name} is read from the folder {folder} ("dataset_path")'
        assert (note in config.notes) == (folder != config.dataset_name)


def test_null_is_resolved():
    config = check(number_of_training_steps_per_iter=3, batch_norm_statistics="running", max_models_to_save=2)
    assert config.number_of_evaluation_steps_per_iter == 3
    assert config.test_batch_norm_statistics == ("running",)
    assert config.number_of_ensemble_models == 2
    assert check(number_of_evaluation_steps_per_iter=0).number_of_evaluation_steps_per_iter == 0


def test_a_negative_number_in_continue_from_epoch_means_latest():
    assert check(continue_from_epoch=-2).continue_from_epoch == "latest"
    assert check(continue_from_epoch=3).continue_from_epoch == 3


def test_the_resolved_config_is_a_valid_config_of_the_same_meaning():
    config = check(dataset_name="omniglot", test_batch_norm_statistics=["running", "transductive"], gpu_to_use=0)
    again = check_config(json.loads(json.dumps(config.to_json_dict())), "again")
    assert again.to_json_dict() == config.to_json_dict()


def test_from_scratch_belongs_on_the_command_line(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"experiment_name": "a", "continue_from_epoch": "from_scratch"}')
    with pytest.raises(ConfigError, match="start anew at every rerun; give it on the command line"):
        load_config(path)
    assert check(continue_from_epoch="from_scratch").continue_from_epoch == "from_scratch"


def test_the_command_line_overrides_the_file_under_any_of_a_keys_names(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"experiment_name": "a", "batch_size": 2, "init_inner_loop_learning_rate": 0.1}')
    config = load_config(path, {"batch_size": 4, "task_learning_rate": 0.5})
    assert (config.batch_size, config.init_inner_loop_learning_rate) == (4, 0.5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a config is one JSON object, not a list"),
        (None, "cannot be read"),
        ('{"batch_size": 2, "batch_size": 4}', 'key "batch_size" is given 2 times'),
        ("[" * 10**5, "nested more than 100 deep"),
        ('{"tag": "\\ud800"}', "half a character"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, text):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=text) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_arguments_are_read_as_json_where_they_are_json():
    path, overrides = parse_command_line(
        [
            "--name_of_args_json_file",
            "a.json",
            "--gpu_to_use",
            "0",
            "1",
            "--batch_size",
            "8",
            "--tag",
            "5",
            "--max_pooling",
            "False",
            "--test_curve",
            "--train_val_test_split",
            ".5",
            ".2",
            "--min_learning_rate=1e-5",
            "--continue_from_epoch",
            "-2",
            "--dataset_name",
            "2024",
        ]
    )
    assert str(path) == "a.json"
    assert overrides == {
        "gpu_to_use": [0, 1],
        "batch_size": 8,
        "tag": "5",
        "max_pooling": False,
        "test_curve": True,
        "dataset_name": "2024",
        "train_val_test_split": [0.5, 0.2],
        "min_learning_rate": 1e-5,
        "continue_from_epoch": -2,
    }
    assert check(**overrides | {"evaluate_on_test_set_only": True}).gpu_to_use == "0,1"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"batchsize": 3}, 'command line: unknown key "batchsize"; did you mean "batch_size"?'),
        ({"batch_size": 0}, 'command line: "batch_size" is 0, but must be'),
        ({"task_learning_rate": 0.0}, 'command line: "init_inner_loop_learning_rate" is 0.0, but must be'),
        ({"num_of_gpus": 1, "meta_opt_bn": True}, 'command line: "meta_opt_bn" is true, but has no effect'),
        ({"min_learning_rate": 1.0}, 'FILE and command line: "min_learning_rate" 1.0 is above'),
        (
            {"loss": "mean_squared_error", "label_smoothing": 0.1},
            'command line: "label_smoothing" 0.1 means nothing with "loss" mean_squared_error; leave it out, or set '
            '"loss" to "cross_entropy"',
        ),
        ({"num_stages": 9}, "command line: images of 28 x 28 pixels vanish"),
    ],
)
def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path, overrides, line):
    path = tmp_path / "c.json"
    path.write_text('{"experiment_name": "a", "meta_learning_rate": 0.01, "total_epochs": 0}')
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, place=COMMAND_LINE)
    with pytest.raises(ConfigError) as of_program:
        load_config(path, overrides)
    assert str(of_program.value) == str(error.value).replace(COMMAND_LINE, "overrides")
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert any(found.startswith(line.replace("FILE", str(path))) for found in lines)
    assert any(found.startswith(f'{path}: "total_epochs" is 0') for found in lines)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "meta_learning_rate"),
        ("epochs", "total_epochs"),
        ("shots", "num_samples_per_class"),
        ("batchsize", "batch_size"),
        ("meta_lr", "meta_learning_rate"),
        ("num-steps", "number_of_training_steps_per_iter"),
    ],
)
def test_what_others_call_a_key_is_understood(key, meant):
    assert f'did you mean "{meant}"?' in problems_of(**{key: 1})


def test_the_options_of_other_projects_lead_to_the_keys_that_the_page_gives_them():
    """Every row of docs/move_over.md with as many options on its left as keys on its right."""
    found = 0
    for line in (REPOSITORY_ROOT / "docs" / "move_over.md").read_text(encoding="utf-8").splitlines():
        cells = [re.findall(r"`([^`]*)`", cell) for cell in line.strip("|").split(" | ")]
        if len(cells) != 2 or not all(re.fullmatch(r"--[a-z_-]+", option) for option in cells[0]):
            continue
        keys = [text.split(":")[0] for text in cells[1]]
        if len(keys) == len(cells[0]) and set(keys) <= ExperimentConfig.model_fields.keys():
            for option, key in zip(cells[0], keys, strict=True):
                name = option.removeprefix("--")
                assert name.replace("-", "_") == key or f'did you mean "{key}"?' in problems_of(**{name: 1}), option
                found += 1
    assert found > 14


@pytest.mark.parametrize("key", USUAL_NAMES)
def test_a_usual_name_leads_to_a_key_and_is_none(key):
    assert key not in ExperimentConfig.model_fields
    assert USUAL_NAMES[key] in {*ExperimentConfig.model_fields, *OLD_KEYS}


def test_every_pattern_is_in_words():
    properties = ExperimentConfig.model_json_schema()["properties"]
    patterned = {key for key, schema in properties.items() if '"pattern"' in json.dumps(schema)}
    assert patterned == set(PATTERNS)


def test_a_path_that_is_right_from_another_folder_is_found_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = next((REPOSITORY_ROOT / "experiment_config").glob("*.json")).relative_to(REPOSITORY_ROOT)
    with pytest.raises(ConfigError) as error:
        load_config(here)
    assert f"not found in the current folder {tmp_path}" in str(error.value)
    assert f"give --name_of_args_json_file {REPOSITORY_ROOT / here}" in str(error.value)


def test_a_name_is_a_config_of_ours_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = load_config("quickstart", {"batch_size": 3})
    assert ours == load_config(REPOSITORY_ROOT / "experiment_config" / "quickstart.json", {"batch_size": 3})
    with pytest.raises(ConfigError, match=r'there is no config "quikstart", .* did you mean quickstart'):
        load_config("quikstart")
    (tmp_path / "quickstart").write_text('{"experiment_name": "mine"}')
    assert load_config("quickstart").experiment_name == "mine"


def test_a_key_without_the_value_that_it_needs():
    with pytest.raises(ConfigError) as error:
        parse_command_line(
            [
                "--batch_size",
                "--max_pooling",
                "--class_rotation",
                "--evalute_on_test_set_only",
                "--unknown",
                "--task_learning_rate",
            ]
        )
    assert str(error.value).splitlines() == [
        f"command line: --{key} needs a value, as in --{key} VALUE" for key in ("batch_size", "task_learning_rate")
    ]


def test_help_shows_every_key_with_its_meaning():
    text = help_text()
    for key in fields():
        assert f"\n  --{key}  " in text
        assert meaning(key) in " ".join(text.split())
    assert "--batch_size  integer >= 1; default 8" in text
    assert text.startswith("usage: bash experiment_scripts/NAME.sh [GPU ids")


def test_a_stray_argument_is_refused():
    with pytest.raises(ConfigError, match='command line: argument "stray" stands before any --key'):
        parse_command_line(["stray"])


def test_ways_and_shots_may_be_lists_and_the_test_has_its_own():
    config = check(num_samples_per_class=[1, 5, 1], test_num_samples_per_class=[1, 10], test_num_target_samples=3)
    assert [str(shape) for shape in config.training_shapes] == ["5 way 1 shot 15 query", "5 way 5 shot 15 query"]
    assert str(config.validation_shape) == "5 way 1 shot 15 query"
    assert [str(shape) for shape in config.test_shapes] == ["5 way 1 shot 3 query", "5 way 10 shot 3 query"]
    assert check(num_samples_per_class=[3]).num_samples_per_class == 3
    assert check(num_samples_per_class=[1, 5]).test_shapes == check(num_samples_per_class=[1, 5]).training_shapes


def test_validation_may_have_ways_of_its_own():
    config = check(num_classes_per_set=[50, 20], val_num_classes_per_set=5, head="prototypes")
    assert str(config.validation_shape) == "5 way 1 shot 15 query"
    assert [shape.n_way for shape in (*config.training_shapes, *config.test_shapes)] == [50, 20, 50, 20]
    assert problems_of(num_classes_per_set=20, val_num_classes_per_set=5) == (
        'my.json: "val_num_classes_per_set" is 5, but the learned head has 20 classes; set "head" to "zero" or '
        '"prototypes", which are made for each task, or validate with 20'
    )


def test_a_learned_head_has_one_number_of_classes():
    assert problems_of(num_classes_per_set=[5, 20]) == (
        'my.json: "num_classes_per_set" is [5, 20], but a learned head has one number of classes; set "head" to '
        '"zero" or '
        '"prototypes", which are made for each task, or give one number'
    )
    assert '"test_num_classes_per_set" has [10], but the learned head has 5 classes' in problems_of(
        test_num_classes_per_set=[5, 10]
    )
    assert '"num_classes_per_set" is [5, 1], but must be: greater than or equal to 2. ' in problems_of(
        num_classes_per_set=[5, 1]
    )


@pytest.mark.parametrize("name", [".", "..", "...", " ", " . "])
@pytest.mark.parametrize("key", ["experiment_name", "dataset_name", "dataset_path", "test_dataset_name", "tag"])
def test_dots_and_spaces_alone_are_no_name(key, name):
    value = [name] if key == "test_dataset_name" else name
    with pytest.raises(
        ConfigError,
        match=f'"{key}" is .*(: dots alone name the folder itself or the one above it, and spaces|must be.* letters)',
    ):
        check_config({"experiment_name": "x", "evaluate_on_test_set_only": True} | {key: value}, "a.json")
    check_config({"experiment_name": "..x"}, "a.json")


def test_the_number_of_a_run_in_its_config_json_is_no_key():
    values = {"experiment_name": "x", "run_id": "0" * 32}
    assert check_config(values, "a.json") == check_config({"experiment_name": "x"}, "a.json")


def test_a_network_that_only_a_program_can_hand_over_is_refused_before_any_data(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment_name": "x", "backbone": "given_network"}')
    overrides = {"experiment_name": "x", "backbone": "given_network"}
    for place, arguments in (
        (COMMAND_LINE, (None, overrides)),
        (tmp_path / "config.json", (tmp_path / "config.json",)),
    ):
        with pytest.raises(ConfigError) as raised:
            load_config(*arguments, place=COMMAND_LINE)
        assert str(raised.value).startswith(f'{place}: "backbone" given_network stands for a network that a Python ')
    assert load_config(None, overrides).backbone == "given_network"  # of the program itself


def test_what_choices_alone_read_is_marked_so_and_every_mark_makes_a_difference():
    """A key that a choice of ours reads is marked, unless every method reads it, too; no mark says always or never."""
    of_choices = {
        key: kind for kind in KINDS for each in registered.choices(kind).values() for key in each.reads.values()
    }
    assert of_choices.pop("num_classes_per_set") == "inner_loop_optimizer"
    marks = read_with()
    assert of_choices == {
        key: mark.other for key, mark in marks.items() if mark.is_read is None and mark.other != "backbone"
    }
    for key, mark in marks.items():
        values = ["none", "a plugin's", *BUILT_IN_BACKBONES] if mark.other == "backbone" else [True, False]
        values = choices(fields()[mark.other].annotation) or values
        assert {mark.holds(key, value) for value in values} == {True, False}, key
