"""From a YAML config of PyTorch-MAML (fmu2) to one of this project that does what that code really did.

A training YAML gives the config; its test YAML, where given, the test's tasks and inner steps.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from script_generation_tools.reference_configs import COUNT, Conversion, check_kinds, kinds
from utils.errors import ConfigError

DATASETS: dict[str, tuple[str, str]] = {
    "meta-mini-imagenet": ("mini_imagenet_full_size", "mini_imagenet"),
    "meta-tiered-imagenet": ("tiered_imagenet", "tiered_imagenet"),
    "meta-cifar-fs": ("cifar_fs", "cifar100"),
    "meta-fc100": ("fc100", "cifar100"),
    "meta-cub200": ("cub", "imagenet"),
    "meta-inatural": ("inaturalist", "inaturalist"),
}
"""Its name -> folder of the dataset here, and its table of normalisation."""
IMPOSSIBLE_DATASETS = ("meta-cifar-fs", "meta-fc100")

ENCODERS: dict[str, dict[str, Any]] = {
    "convnet4": {"backbone": "conv4", "cnn_num_filters": 32},
    "wide-convnet4": {"backbone": "conv4", "cnn_num_filters": 64},
    "resnet12": {"backbone": "resnet12"},
    "wide-resnet12": {"backbone": "resnet12_wide"},
    "resnet18": {"backbone": "resnet10"},
    "wide-resnet18": {"backbone": "resnet10_wide"},
}
BLOCKS = {
    "convnet4": [f"conv{i}" for i in range(1, 5)],
    "resnet12": [f"layer{i}" for i in range(1, 5)],
    "resnet18": [f"layer{i}" for i in range(5)],
}
"""Blocks of an encoder (its name without `wide-`), in the order of this project's stages."""

INNER_DEFAULTS: dict[str, Any] = {
    "reset_classifier": False,
    "n_step": 5,
    "encoder_lr": 0.01,
    "classifier_lr": 0.01,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "first_order": False,
    "frozen": [],
}
SET_DEFAULTS = {
    "split": "train", "image_size": 84, "normalization": True, "transform": None, "val_transform": None, "n_batch": 200,
    "n_episode": 4, "n_way": 5, "n_shot": 1, "n_query": 15,
}  # fmt: skip
AUGMENTATIONS = ("resize", "crop", "color", "flip", "enlarge")

EPISODES = kinds(
    split=str, image_size=COUNT, normalization=bool, transform=str | None, val_transform=str | None,
    **dict.fromkeys(("n_batch", "n_episode", "n_way", "n_shot", "n_query"), COUNT),
)  # fmt: skip
INNER_ARGUMENTS = kinds(
    reset_classifier=bool | None, first_order=bool | None, n_step=int | None, frozen=list[str] | None,
    **dict.fromkeys(("encoder_lr", "classifier_lr", "momentum", "weight_decay"), float | None),
)  # fmt: skip
BATCH_NORM = kinds(momentum=float | None, episodic=list[str] | None, track_running_stats=bool, alpha=bool | None)
OPTIMIZER = kinds(
    lr=(float, ...), weight_decay=float, schedule=str, gamma=float,
    milestones=Annotated[list[int], Field(min_length=1)] | None,
)  # fmt: skip
TRAIN_FILE = kinds(
    dataset=(str, ...), train=EPISODES | None, val=EPISODES | None, encoder=(str, ...), classifier=Any,
    encoder_args=kinds(bn_args=BATCH_NORM | None) | None,
    classifier_args=kinds(temp=float | None, learn_temp=bool | None) | None,
    inner_args=INNER_ARGUMENTS | None, optimizer=(str, ...), optimizer_args=(OPTIMIZER, ...), epoch=(COUNT, ...),
)  # fmt: skip
TEST_FILE = kinds(test=EPISODES | None, inner_args=INNER_ARGUMENTS | None, epoch=int | None)
"""What is computed with below; other keys may be anything."""


def convert_fmu2_config(train: Mapping[str, Any], test: Mapping[str, Any] | None, experiment_name: str) -> Conversion:
    """Convert its training YAML, read as a dict, with its test YAML or without.

    Raises:
        ConfigError: this is no training YAML, or names what does not exist there or here.
    """
    if "train" not in train or "encoder" not in train:
        raise ConfigError(
            'this YAML has no "train" and "encoder"; give the training YAML first, and a test YAML, which starts from '
            "its weights, second"
        )
    # As JSON has it, which knows none of YAML's dates.
    train, test = (json.loads(json.dumps(file, default=str, skipkeys=True)) for file in (train, test))
    check_kinds(TRAIN_FILE, train)
    check_kinds(TEST_FILE, test or {}, "test: ")
    findings: list[str] = []
    values: dict[str, Any] = {"experiment_name": experiment_name}
    for key in train:
        if key in ("load", "_parallel", "_gpu"):
            findings.append(
                f'"{key}": {json.dumps(train[key])} is not part of a config here; --load_checkpoint and the ids after '
                "the script do that"
            )
        elif key not in TRAIN_FILE.model_fields:
            findings.append(f'"{key}": {json.dumps(train[key])} had no effect: the code has no such key')
    for part in (_data, _backbone, _inner_loop, _outer_loop):
        values |= part(train, findings)
    values |= _evaluation(train, test, values, findings)
    findings.append("every run there had seed 0; here train_seed is 0 too, but the tasks drawn from it are others")
    return Conversion(values | {"train_seed": 0, "number_of_ensemble_models": 1}, findings)


def _episodes(config: Mapping[str, Any], role: str) -> dict[str, Any]:
    return SET_DEFAULTS | dict(config.get(role) or {})


def _known(table: Mapping[str, Any], key: str, value: Any) -> Any:
    if value not in table:
        raise ConfigError(f'"{key}" is {json.dumps(value)}, but there is {", ".join(map(json.dumps, table))}')
    return table[value]


def _data(config: Mapping[str, Any], findings: list[str]) -> dict[str, Any]:
    name, episodes = config["dataset"], _episodes(config, "train")
    folder, normalisation = _known(DATASETS, "dataset", name)
    if name in IMPOSSIBLE_DATASETS:
        findings.append(f'"dataset": {json.dumps(name)} could not be built there: its constructor took no keywords')
    if episodes["split"] != "meta-train":
        findings.append(
            f'"train.split": {json.dumps(episodes["split"])} trained on other classes than meta-train; here training '
            "is on the train folder"
        )
    if episodes["normalization"] is False and _episodes(config, "val")["normalization"] is not False:
        findings.append("training images were not normalised there and validation images were; here neither are")
    augmentation = {}
    for key, name in (("transform", "support_augmentation"), ("val_transform", "query_augmentation")):
        for role in ("train", "val"):
            operation = _episodes(config, role)[key]
            if operation is None:
                continue
            _known(dict.fromkeys(AUGMENTATIONS), f"{role}.{key}", operation)
            if role == "train":
                augmentation[name] = [operation]
            else:
                findings.append(
                    f'"val.{key}": {json.dumps(operation)} changed images at validation (and test); here training '
                    "images alone"
                )
    size = episodes["image_size"]
    return augmentation | {
        "dataset_name": folder,
        "dataset_path": folder,
        "image_height": size,
        "image_width": size,
        "image_channels": 3,
        "sets_are_pre_split": True,
        "resize_filter": "bilinear",
        "class_rotation": False,
        "normalisation": "none" if episodes["normalization"] is False else normalisation,
        "num_classes_per_set": episodes["n_way"],
        "num_samples_per_class": episodes["n_shot"],
        "num_target_samples": episodes["n_query"],
        "batch_size": episodes["n_episode"],
        "total_iter_per_epoch": episodes["n_batch"],
    }


def _backbone(config: Mapping[str, Any], findings: list[str]) -> dict[str, Any]:
    encoder = config["encoder"]
    values = dict(_known(ENCODERS, "encoder", encoder))
    if "resnet18" in encoder:
        findings.append(
            f'"encoder": {json.dumps(encoder)} had one block per stage, which is a ResNet-10: written as '
            f"{values['backbone']}"
        )
    if "convnet4" in encoder and _episodes(config, "train")["image_size"] != 84:
        findings.append(f'"encoder": {json.dumps(encoder)} took images of 84 x 84 only; here it takes any size')
    if config.get("classifier") != "logistic":
        findings.append(
            f'"classifier": {json.dumps(config.get("classifier"))} is not one of its classifiers; it had logistic alone'
        )
    temperature = config.get("classifier_args") or {}
    for key, neutral in (("temp", 1.0), ("learn_temp", False)):
        if temperature.get(key, neutral) != neutral:
            findings.append(
                f'"classifier_args.{key}": {json.dumps(temperature[key])} scaled the logits; there is no such scale '
                "here"
            )
    return values | _batch_norm((config.get("encoder_args") or {}).get("bn_args") or {}, encoder, findings)


def _batch_norm(given: Mapping[str, Any], encoder: str, findings: list[str]) -> dict[str, Any]:
    momentum = {"batch_norm_momentum": given["momentum"]} if given.get("momentum") is not None else {}
    blocks, episodic = BLOCKS[encoder.removeprefix("wide-")], given.get("episodic") or []
    unknown = [block for block in episodic if block not in blocks]
    if unknown:
        findings.append(f'"bn_args.episodic": {unknown} had no effect: the blocks of {encoder} are {", ".join(blocks)}')
    if given.get("alpha"):
        findings.append('"bn_args.alpha": true made it stop; norm_layer task_norm is what was meant')
    if not given.get("track_running_stats", True):
        if episodic:
            findings.append(f'"bn_args.episodic": {episodic} had no effect without track_running_stats')
        return momentum | {"batch_norm_statistics": "transductive"}
    per_block = ["episodic" if block in episodic else "running" for block in blocks]
    if "running" in per_block:
        findings.append(
            "with running statistics it scored training queries by them; here they count at evaluation, and training "
            "uses those of the images"
        )
    return momentum | {"batch_norm_statistics": per_block[0] if len(set(per_block)) == 1 else per_block}


def _inner_loop(config: Mapping[str, Any], findings: list[str]) -> dict[str, Any]:
    inner = _inner_arguments(config, "inner_args", findings)
    values: dict[str, Any] = {
        "head": "zero" if inner["reset_classifier"] else "learned",
        "number_of_training_steps_per_iter": inner["n_step"],
        "init_inner_loop_learning_rate": inner["encoder_lr"],
        "inner_loop_momentum": inner["momentum"],
        "inner_loop_weight_decay": inner["weight_decay"],
        "second_order": not inner["first_order"],
    }
    if inner["classifier_lr"] != inner["encoder_lr"]:
        values["init_head_inner_loop_learning_rate"] = inner["classifier_lr"]
    return values | _frozen(inner["frozen"], config["encoder"], findings)


def _inner_arguments(config: Mapping[str, Any], name: str, findings: list[str]) -> dict[str, Any]:
    """Return what `value or default` made of them: an explicit 0 counted as not given."""
    given = dict(config.get("inner_args") or {})
    used = {key: given.get(key) or default for key, default in INNER_DEFAULTS.items()}
    for key, value in given.items():
        if key not in used:
            findings.append(f'"{name}.{key}": {json.dumps(value)} had no effect: the code has no such key')
        elif value is not None and used[key] != value:
            findings.append(
                f'"{name}.{key}": {json.dumps(value)} had no effect: the code replaced 0 by its default, {used[key]}'
            )
    return used


def _frozen(frozen: list[str], encoder: str, findings: list[str]) -> dict[str, Any]:
    """Translate texts, one of which froze each parameter whose name contains it; norm weights and biases adapt, too."""
    names = _parameter_names(encoder)
    for text in frozen:
        if not any(text in name for name in names):
            findings.append(
                f'"inner_args.frozen": {json.dumps(text)} had no effect: no parameter of {encoder} has that in its name'
            )

    def is_frozen(belongs: Callable[[str], bool]) -> list[bool]:
        return [any(text in name for text in frozen) for name in names if belongs(name)]

    norms, head = is_frozen(_is_norm), is_frozen(lambda name: name.startswith("classifier."))
    body = is_frozen(lambda name: name.startswith("encoder.") and not _is_norm(name))
    values: dict[str, Any] = {"enable_inner_loop_optimizable_bn_params": not all(norms)}
    if all(body) and all(norms):
        return values | {"adapted_parameters": "head"}
    if all(head):
        values["adapted_parameters"] = "body"
    rest = [
        text
        for text in frozen
        if text != "bn" and text not in "classifier.linear." and any(text in name for name in names)
    ]
    if rest:
        values["frozen_layers"] = [_pattern(text, encoder) for text in rest]
        findings.append(f'"inner_args.frozen": {rest} is written as "frozen_layers" {values["frozen_layers"]}')
    return values


def _parameter_names(encoder: str) -> list[str]:
    parts = ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    if "resnet" in encoder:
        parts = [
            f"{kind}{i}.{key}"
            for i in (1, 2, 3)
            for kind, keys in (("conv", ["weight"]), ("bn", ["weight", "bias"]))
            for key in keys
        ]
        parts += ["res_conv.conv.weight", "res_conv.bn.weight", "res_conv.bn.bias"]
    prefix = "encoder.encoder." if "convnet4" in encoder else "encoder."
    names = [f"{prefix}{block}.{part}" for block in BLOCKS[encoder.removeprefix("wide-")] for part in parts]
    return [*names, "classifier.linear.weight", "classifier.linear.bias"]


def _is_norm(name: str) -> bool:
    return ".bn" in name


def _pattern(text: str, encoder: str) -> str:
    """Return a pattern of `frozen_layers` for what a text froze there."""
    blocks = BLOCKS[encoder.removeprefix("wide-")]
    if "convnet4" in encoder and text in blocks:
        return f"block{blocks.index(text)}.*"
    if text == "layer0":
        return "conv1.*"  # the stem
    return f"*{text.replace('linear', 'head')}*"


def _outer_loop(config: Mapping[str, Any], findings: list[str]) -> dict[str, Any]:
    name, given, epochs = config["optimizer"], dict(config["optimizer_args"]), config["epoch"]
    _known(dict.fromkeys(("sgd", "rmsprop", "adam")), "optimizer", name)
    values = {
        "meta_optimizer": name, "meta_learning_rate": given["lr"], "meta_weight_decay": given.get("weight_decay", 0.0),
        "meta_momentum": 0.9 if name == "sgd" else 0.0, "gradient_clamp": 10.0, "total_epochs": epochs,
    }  # fmt: skip
    milestones, schedule = given.get("milestones"), given.get("schedule", "step")
    if milestones is None:
        for key in ("schedule", "gamma"):
            if key in given:
                findings.append(f'"optimizer_args.{key}": {json.dumps(given[key])} had no effect without milestones')
        return values | {"meta_learning_rate_schedule": "constant"}
    if schedule == "cosine":
        if milestones[-1] != epochs:
            findings.append(
                f"its cosine schedule ended at the last milestone, {milestones[-1]}; here it ends at total_epochs, "
                f"{epochs}"
            )
        return values | {"meta_learning_rate_schedule": "cosine", "min_learning_rate": 0.0}
    if schedule != "step":
        findings.append(f'"optimizer_args.schedule": {json.dumps(schedule)} had no effect: it knew step and cosine')
        return values | {"meta_learning_rate_schedule": "constant"}
    return values | {
        "meta_learning_rate_schedule": "step", "meta_learning_rate_milestones": milestones,
        "meta_learning_rate_gamma": given.get("gamma", 0.1), "min_learning_rate": 0.0,
    }  # fmt: skip


def _evaluation(
    config: Mapping[str, Any], test: Mapping[str, Any] | None, converted: Mapping[str, Any], findings: list[str]
) -> dict[str, Any]:
    validation = _episodes(config, "val")
    n_tasks = validation["n_batch"] * validation["n_episode"]
    if not config.get("val"):
        findings.append('without "val" it neither validated nor kept a best model; here every epoch is validated')
    for key in ("n_way", "n_shot", "n_query"):
        if config.get("val") and validation[key] != _episodes(config, "train")[key]:
            findings.append(
                f'"val.{key}": {validation[key]} is not carried over: validation has the tasks of training here'
            )
    if test is None:
        return {"num_evaluation_tasks": n_tasks}
    if not test.get("test"):
        raise ConfigError('the second YAML has no "test"; give the test YAML that belongs to the first')
    tasks, inner = SET_DEFAULTS | dict(test["test"]), _inner_arguments(test, "test: inner_args", findings)
    n_test_tasks = tasks["n_batch"] * tasks["n_episode"] * (test.get("epoch") or 1)
    if n_test_tasks != n_tasks:
        findings.append(
            f"validation had {n_tasks} tasks and the test {n_test_tasks}; num_evaluation_tasks, the test's, is for "
            "both here"
        )
    if inner["n_step"] != converted["number_of_training_steps_per_iter"]:
        findings.append(f"only the test took {inner['n_step']} inner steps; here validation does so too")
    for key, name in (
        ("encoder_lr", "init_inner_loop_learning_rate"),
        ("momentum", "inner_loop_momentum"),
        ("weight_decay", "inner_loop_weight_decay"),
    ):
        if inner[key] != converted[name]:
            findings.append(
                f'"test: inner_args.{key}": {inner[key]} is not carried over: here the test adapts as training does, '
                f"{converted[name]}"
            )
    if tasks["n_way"] != converted["num_classes_per_set"] and converted["head"] == "learned":
        findings.append(
            f'"test: n_way": {tasks["n_way"]} had no effect: the head kept the {converted["num_classes_per_set"]} '
            "ways of training"
        )
        tasks["n_way"] = converted["num_classes_per_set"]
    return {
        "num_evaluation_tasks": n_test_tasks, "number_of_evaluation_steps_per_iter": inner["n_step"],
        "test_num_classes_per_set": tasks["n_way"], "test_num_samples_per_class": tasks["n_shot"],
        "test_num_target_samples": tasks["n_query"],
    }  # fmt: skip
