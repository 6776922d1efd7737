"""From a config of "How to train your MAML in PyTorch" to one of this project that does what that code really did.

Its configs name keys that nothing reads, and its code replaces, ignores or hard-codes values that they give. Every such
difference becomes a finding: a line for the user.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError, create_model

from utils.errors import ConfigError
from utils.known_datasets import folder_named


class Conversion(NamedTuple):
    """A config of this project as a dict, and a line for each key that had no effect there or worked otherwise."""

    values: dict[str, Any]
    findings: list[str]


PARSER_DEFAULTS: dict[str, Any] = {
    "batch_size": 32,
    "image_height": 28,
    "image_width": 28,
    "image_channels": 1,
    "reset_stored_filepaths": False,
    "reverse_channels": False,
    "num_of_gpus": 1,
    "indexes_of_folders_indicating_class": [-2, -3],
    "train_val_test_split": [0.73982737361, 0.26, 0.13008631319],
    "samples_per_iter": 1,
    "labels_as_int": False,
    "seed": 104,
    "num_dataprovider_workers": 4,
    "max_models_to_save": 5,
    "dataset_name": "omniglot_dataset",
    "dataset_path": "datasets/omniglot_dataset",
    "num_target_samples": 15,
    "second_order": False,
    "total_epochs": 200,
    "total_iter_per_epoch": 500,
    "min_learning_rate": 0.00001,
    "meta_learning_rate": 0.001,
    "task_learning_rate": 0.1,
    "norm_layer": "batch_norm",
    "max_pooling": False,
    "per_step_bn_statistics": False,
    "num_classes_per_set": 20,
    "number_of_training_steps_per_iter": 1,
    "number_of_evaluation_steps_per_iter": 1,
    "cnn_num_filters": 64,
    "num_samples_per_class": 1,
}
"""What its command line gives a key that the JSON lacks."""

REQUIRED = (
    "experiment_name",
    "train_seed",
    "val_seed",
    "total_epochs_before_pause",
    "num_evaluation_tasks",
    "sets_are_pre_split",
    "load_into_memory",
    "evaluate_on_test_set_only",
    "num_stages",
    "conv_padding",
    "learnable_bn_gamma",
    "learnable_bn_beta",
    "enable_inner_loop_optimizable_bn_params",
    "learnable_per_layer_per_step_inner_loop_learning_rate",
    "first_order_to_second_order_epoch",
    "use_multi_step_loss_optimization",
    "multi_step_loss_num_epochs",
)
"""Keys that its code reads and its command line does not know: without them in the JSON it stopped."""

READ_NOWHERE: dict[str, str] = {
    "minimum_per_task_contribution": "the floor of the multi-step weights was 0.03 / steps",
    "dropout_rate_value": "nothing was dropped",
    "cnn_blocks_per_stage": "a stage was one block",
    "cnn_num_blocks": "num_stages was the number of blocks",
    "weight_decay": "the meta-optimiser had none",
    "learnable_batch_norm_momentum": "the momentum was 0.1",
    "meta_opt_bn": "enable_inner_loop_optimizable_bn_params decided",
    "architecture_name": "the network was always the same",
    "load_from_npz_files": "images were read from folders",
    "train_in_stages": "first_order_to_second_order_epoch decided",
    "reset_stored_paths": "the key that was read is reset_stored_filepaths",
    "evalute_on_test_set_only": "the key that was read is evaluate_on_test_set_only",
    "use_gdrive": "nothing was downloaded",
    "gpu_to_use": "only the command line's counted, and the script's CUDA_VISIBLE_DEVICES before that",
    "continue_from_epoch": "only the command line's counted: latest",
    "name_of_args_json_file": "only the command line's counted",
}
"""Keys of its configs that changed nothing, and what happened instead."""

OF_FORKS = ("attenuate", "alfa", "meta_loss")
"""Keys of well-known forks (L2F, ALFA, MeTAL), of which each has one; their code adapted with
init_inner_loop_learning_rate."""
BESIDE_THEM = ("random_init", "init_inner_loop_weight_decay", "backbone", "architecture")
FORKS_BACKBONES = {"4-conv": "vgg", "resnet12": "resnet12"}
"""What they call a network, in small letters -> `backbone`."""

INNER_RATES = ("init_inner_loop_learning_rate", "init_task_learning_rate")
"""Other names of task_learning_rate, the later ones of less weight."""


def kinds(**fields: Any) -> type[BaseModel]:
    """Return the kinds of a part of an old config: key -> type, or (type, ...) for a key that must be there."""
    given = {key: kind if isinstance(kind, tuple) else (kind, None) for key, kind in fields.items()}
    return create_model("Part", **given)


def check_kinds(wanted: type[BaseModel], given: Mapping[str, Any], place: str = "") -> None:
    """Refuse values of an old config that are not of the kind of their key, before anything is computed with them.

    Raises:
        ConfigError: all of them, in one line.
    """
    try:
        wanted.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        texts = []
        for item in error.errors():
            key, allowed = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Input should be ")
            is_missing = item["type"] == "missing"
            value = "is missing" if is_missing else f"is {json.dumps(item['input'])}, but must be: {allowed}"
            texts.append(f'"{place}{key}" {value}')
        raise ConfigError("; ".join(texts)) from error


COUNT = Annotated[int, Field(ge=1)]
KINDS = kinds(
    **{key: type(value) for key, value in PARSER_DEFAULTS.items()}
    | dict.fromkeys(("val_seed", "total_epochs_before_pause", "multi_step_loss_num_epochs"), int)
    | dict.fromkeys(("batch_size", "samples_per_iter", "num_of_gpus", "num_evaluation_tasks"), COUNT)
    | dict.fromkeys(("image_height", "image_width"), COUNT)
    | dict.fromkeys(INNER_RATES, float)
)
"""What is computed with below."""


def convert_reference_config(given: Mapping[str, Any]) -> Conversion:
    """Convert a JSON config of the reference, read as a dict.

    Raises:
        ConfigError: values that are not of the kind of their key.
    """
    findings: list[str] = []
    values = {key: _boolean(value) for key, value in given.items()}
    of_fork = _taken_from_fork(values, findings)
    if of_fork:
        values["task_learning_rate"] = values.get("init_inner_loop_learning_rate", -1)
    _drop_what_nothing_read(values, findings)
    check_kinds(KINDS, values)
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        findings.append(f"without {', '.join(missing)} it stopped with an AttributeError; here the defaults count")
    defaults = {key: value for key, value in PARSER_DEFAULTS.items() if key not in values}
    if defaults:
        findings.append(
            "not given, so its command line's defaults counted: "
            + ", ".join(f"{k} = {json.dumps(v)}" for k, v in defaults.items())
        )
    values = PARSER_DEFAULTS | values
    _inner_learning_rate(values, given, findings)
    _dataset(values, findings)
    _meta_batch_and_tasks(values, findings)
    _norm_layer(values, findings)
    _checkpoints(values, findings)
    _crashes(values, findings)
    return Conversion(values | of_fork | {"batch_norm_statistics": "transductive"}, findings)


def _boolean(value: Any) -> Any:
    """Convert as its code does, which took every value that spells true or false for a boolean."""
    return str(value).lower() == "true" if str(value).lower() in ("true", "false") else value


def _drop_what_nothing_read(values: dict[str, Any], findings: list[str]) -> None:
    known = {*PARSER_DEFAULTS, *REQUIRED, *READ_NOWHERE, *INNER_RATES}
    for key in list(values):
        if key in READ_NOWHERE:
            findings.append(f'"{key}": {json.dumps(values.pop(key))} had no effect: {READ_NOWHERE[key]}')
        elif key not in known:
            findings.append(
                f'"{key}": {json.dumps(values.pop(key))} had no effect in the original, whose code has no such key; '
                "what a fork does with it is not carried over"
            )


def _taken_from_fork(values: dict[str, Any], findings: list[str]) -> dict[str, Any]:
    """Take the keys of well-known forks out; returns what they mean in this project's: nothing, if there are none."""
    if not set(OF_FORKS) & set(values):
        return {}
    found = {key: values.pop(key) for key in (*OF_FORKS, *BESIDE_THEM) if key in values}
    l2f, alfa, metal = (found.get(key) is True for key in OF_FORKS)
    method = "metal_alfa" if metal and alfa else "metal" if metal else "alfa" if alfa else "l2f" if l2f else "sgd"
    network = str(found.get("backbone", found.get("architecture", "4-CONV")))
    written = {"inner_loop_optimizer": method, "backbone": FORKS_BACKBONES.get(network.lower(), "vgg")}
    if method == "alfa" and "init_inner_loop_weight_decay" in found:
        written["alfa_weight_decay_start"] = found["init_inner_loop_weight_decay"]
    texts = [", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) for keys in (found, written)]
    findings.append(f"{texts[0]}: keys of a fork (L2F, ALFA, MeTAL), written as {texts[1]}")
    if network.lower() not in FORKS_BACKBONES:
        findings.append(f"{json.dumps(network)} is no network of theirs and is not carried over: vgg is written")
    if l2f and (alfa or metal):
        findings.append(
            f'"attenuate" is true beside another method, and not carried over: {method} is written. L2F\'s start with '
            "ALFA's steps is the plugin alfa_l2f.py of docs/move_over.md"
        )
    if found.get("random_init") is True:
        findings.append('"random_init": true, a start that is not learned, is not carried over: here it is learned')
    return written


def _inner_learning_rate(values: dict[str, Any], given: Mapping[str, Any], findings: list[str]) -> None:
    """Return the rate that its code adapted with; where none could, or none read the name given, that of a run here."""
    read = values.pop("task_learning_rate")
    named = {key: rate for key in INNER_RATES if (rate := values.pop(key, -1)) > 0}
    key, meant = next(iter(named.items()), ("the default", PARSER_DEFAULTS["task_learning_rate"]))
    values["init_inner_loop_learning_rate"] = meant
    if not read > 0:
        findings.append(
            f'"task_learning_rate": {json.dumps(read)} stands for no value in configs until May 2019, whose code '
            f"adapted with init_inner_loop_learning_rate (later code stops at it): {key} = {meant} is written, as it "
            "is read when the config is run"
        )
    elif "task_learning_rate" not in given and key == "init_task_learning_rate":
        findings.append(
            f'"{key}": {meant} is the inner learning rate here, as when the config is run; the code read '
            f"task_learning_rate = {read} (its default) instead: to repeat a run of it, set it to {read}"
        )
    else:
        values["init_inner_loop_learning_rate"] = read
        source = "given" if "task_learning_rate" in given else "its default"
        findings += [
            f'"{name}": {json.dumps(rate)} had no effect: it really adapted with task_learning_rate = {read} '
            f"({source}), so that is what the converted config says; for the intended rate set it to {rate}"
            for name, rate in named.items()
            if rate != read
        ]


def _dataset(values: dict[str, Any], findings: list[str]) -> None:
    name = str(values["dataset_name"])
    is_omniglot, is_imagenet = "omniglot" in name.lower(), "imagenet" in name
    values |= {
        "dataset_name": folder_named(name),
        "class_rotation": is_omniglot,
        "normalisation": "imagenet" if is_imagenet and not is_omniglot else "none",
        "gradient_clamp": 10.0 if is_imagenet else 0.0,
        "resize_filter": "nearest" if is_omniglot else "bicubic",
    }
    if not (is_omniglot or is_imagenet):
        findings.append(
            f'"dataset_name": {json.dumps(name)} made it stop: only names with omniglot or imagenet in them had '
            "transforms"
        )
    if not is_omniglot and values["image_channels"] == 1:
        findings.append('"image_channels": 1 made it stop with this dataset: its images always became RGB')
    if values["image_height"] != values["image_width"]:
        height, width = values["image_height"], values["image_width"]
        values |= {"image_height": width, "image_width": height}
        findings.append(
            f"image_height {height} and image_width {width} were swapped when images were resized: written as they "
            "were used"
        )
    if values.get("sets_are_pre_split"):
        findings.append(
            f'"train_val_test_split": {json.dumps(values.pop("train_val_test_split"))} had no effect: the sets are '
            "pre-split"
        )
    if values.get("val_seed"):
        values["class_split_seed"] = values["val_seed"]
        findings.append(
            f'"val_seed": {values["val_seed"]} also drew the split of the classes: written as class_split_seed'
        )
    if values["seed"] == PARSER_DEFAULTS["seed"]:
        findings.append(
            "seed 104 drew the initial weights of every run, whatever its train_seed: kept; set it to null for "
            "independent runs"
        )


def _meta_batch_and_tasks(values: dict[str, Any], findings: list[str]) -> None:
    n_gpus = values.pop("num_of_gpus")
    if n_gpus != 1:
        values["batch_size"] *= n_gpus
        findings.append(
            f'"num_of_gpus": {n_gpus} multiplied the tasks of a meta-batch: batch_size is {values["batch_size"]} here'
        )
    n_tasks = values["batch_size"] * values["samples_per_iter"]
    wanted = values.get("num_evaluation_tasks")
    if wanted and wanted % n_tasks:
        used = max(wanted // n_tasks, 1) * n_tasks
        values["num_evaluation_tasks"] = used
        findings.append(f'"num_evaluation_tasks": {wanted} were {used} in fact, whole meta-batches of {n_tasks}')


def _norm_layer(values: dict[str, Any], findings: list[str]) -> None:
    if values["norm_layer"] != "layer_norm":
        if values["per_step_bn_statistics"]:
            findings.append(
                "the running statistics of per_step_bn_statistics never normalised anything, only its weights and "
                "biases per step had "
                "an effect: batch_norm_statistics is transductive here"
            )
        return
    for key, value in (("per_step_bn_statistics", False), ("learnable_bn_beta", True)):
        if values.get(key, value) != value:
            values[key] = value
            findings.append(
                f'"{key}": {json.dumps(not value)} had no effect with layer_norm, whose biases were always learned, '
                "one row for all steps"
            )


def _checkpoints(values: dict[str, Any], findings: list[str]) -> None:
    kept = values["max_models_to_save"]
    values |= {"number_of_ensemble_models": 5}
    if kept < 5:
        values["max_models_to_save"] = 5
        findings.append(
            f'"max_models_to_save": {kept} had no effect: every model was kept and the best five were tested; 5 here'
        )
    pause, epochs = values.get("total_epochs_before_pause", 0), values["total_epochs"]
    if pause == epochs:
        findings.append(
            f"total_epochs_before_pause {pause} = total_epochs left before the test, which took a second start; here "
            "the test follows"
        )


def _crashes(values: dict[str, Any], findings: list[str]) -> None:
    steps, evaluation_steps = (values[f"number_of_{phase}_steps_per_iter"] for phase in ("training", "evaluation"))
    if steps != evaluation_steps:
        findings.append(
            f"number_of_evaluation_steps_per_iter {evaluation_steps} besides {steps} training steps made it stop; "
            "here it works"
        )
    if values.get("multi_step_loss_num_epochs") == 0:
        values |= {"multi_step_loss_num_epochs": 1, "use_multi_step_loss_optimization": False}
        findings.append(
            '"multi_step_loss_num_epochs": 0 made it stop (a division by zero); here the multi-step loss is off'
        )
    if values["num_dataprovider_workers"] == 0:
        findings.append(
            '"num_dataprovider_workers": 0 made it train on validation episodes after the first validation; not '
            "repeated here"
        )
    if values.get("enable_inner_loop_optimizable_bn_params") and not (
        values.get("learnable_bn_gamma", True) and values.get("learnable_bn_beta", True)
    ):
        findings.append(
            "enable_inner_loop_optimizable_bn_params with a norm parameter that is not learned made it stop; here it "
            "works"
        )
