"""What a config is called: MAML, MAML++, ANIL, ... and by what else two configs of one name differ. Pure functions."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from utils.config.schema import fields, read_with
from utils.known_datasets import OMNIGLOT_SPLIT
from utils.registry.choices import GIVEN, KINDS, choices, fact
from utils.words import printable

Config = Mapping[str, Any]

METHOD = (
    "backbone", "head", "head_name", "initial_weights", "load_checkpoint", "mlp_hidden_sizes",
    "num_regression_outputs", "num_stages", "cnn_blocks_per_stage", "cnn_num_filters", "conv_padding", "max_pooling",
    "warp_kernel_size", "feature_scale", "input_shape",
    "norm_layer", "norm_groups", "dropout_rate_value", "per_step_bn_statistics", "learnable_bn_gamma",
    "learnable_bn_beta", "batch_norm_statistics", "batch_norm_momentum", "learnable_batch_norm_momentum",
    "adapted_parameters", "frozen_layers", "adapter_kind", "adapter_targets", "adapter_rank", "adapter_base",
    "number_of_training_steps_per_iter", "init_inner_loop_learning_rate",
    "init_head_inner_loop_learning_rate", "learnable_per_layer_per_step_inner_loop_learning_rate",
    "learnable_inner_loop_learning_rates", "inner_loop_optimizer", "inner_loop_momentum", "inner_loop_weight_decay",
    "inner_loop_betas", "inner_loop_smoothing", "inner_loop_epsilon", "inner_loop_gradient_clip_norm",
    "inner_loop_gradient_clamp", "enable_inner_loop_optimizable_bn_params", "second_order",
    "first_order_to_second_order_epoch",
    "outer_update", "implicit_gradient_iterations", "sharpness_radius",
    "loss", "outer_loss", "label_smoothing", "meta_optimizer", "meta_momentum", "meta_weight_decay",
    "meta_learning_rate", "meta_learning_rate_schedule", "min_learning_rate", "meta_learning_rate_milestones",
    "meta_learning_rate_gamma", "restart_schedule", "gradient_clamp", "gradient_clip_norm",
    "use_multi_step_loss_optimization", "multi_step_loss_num_epochs",
    "total_epochs", "pretraining_epochs", "total_iter_per_epoch", "early_stopping_patience", "validate_every_epochs",
    "batch_size", "samples_per_iter", "number_of_train_tasks", "support_augmentation", "query_augmentation",
    "skip_iterations", "allow_config_change", "plugin_sha256", "precision",
    "dataset_name", "num_classes_per_set", "val_num_classes_per_set", "num_samples_per_class", "num_target_samples",
    "image_height", "image_width", "image_channels", "resize_filter", "normalisation", "class_rotation",
    "sets_are_pre_split", "train_val_test_split", "class_split_seed", "indexes_of_folders_indicating_class",
    "labels_as_int", "reverse_channels", "on_bad_image",
)  # fmt: skip
"""Keys that change what is trained, on which images and tasks: where two runs differ in one, their rows say so."""

PROTOCOL = frozenset({
    "num_evaluation_tasks", "number_of_evaluation_steps_per_iter", "test_batch_norm_statistics",
    "test_num_classes_per_set", "test_num_samples_per_class", "test_num_target_samples", "test_dataset_name",
    "task_list", "number_of_ensemble_models", "max_models_to_save",
})  # fmt: skip
"""Keys of how it is tested. What a result says of its own test is compared, column by column and pair by pair."""

NEITHER = frozenset({
    "experiment_name", "run_id", "train_seed", "val_seed", "seed", "total_epochs_before_pause",
    "continue_from_epoch", "dry_run", "test_after_training", "evaluate_on_test_set_only", "test_curve",
    "test_baselines", "tag", "log_every_iterations", "diagnostics_every_epochs", "report_every_s",
    "checkpoint_every_s", "replay_iteration", "dataset_path", "num_dataprovider_workers", "load_into_memory",
    "reset_stored_filepaths", "trackers", "track_grad_norm", "wandb_project", "wandb_mode", "gpu_to_use",
    "precision_error_limit", "use_cuda_graphs", "task_batching", "task_chunk_size", "gradient_checkpointing",
    "deterministic",
})  # fmt: skip
"""Keys in which two runs of one method may differ: seeds, names, what is logged and kept, the machine."""

KNOWN = frozenset({*METHOD, *PROTOCOL, *NEITHER})
"""Other keys, such as those that choices bring, are of the method, too."""
DATA = "data"
"""Beside the keys: the first digits of the digest of a run's images, where it is known."""
OF_IMAGES = ("dataset_name", "image_height", "image_width", "image_channels", "resize_filter", "reverse_channels")
"""Keys that change that digest."""
LONGEST_LABEL = 60

MAML_PLUS_PLUS = {
    "use_multi_step_loss_optimization": "multi-step loss",
    "learnable_per_layer_per_step_inner_loop_learning_rate": "learned rates",
    "per_step_bn_statistics": "per-step batch norm",
}
"""The parts of MAML++ that make it that; each alone is a part on top of MAML."""


TITLES: Mapping[str, Mapping[Any, str]] = {
    "outer_update": {"implicit": "iMAML"},
    "warp_kernel_size": {1: "T-Net", 3: "Warp-MAML"},
}
"""Key -> value -> what it makes of MAML."""
PARTS: Mapping[str, Mapping[Any, str]] = {
    "inner_loop_optimizer": {"adam": "inner Adam", "rmsprop": "inner RMSprop"},
    "learnable_inner_loop_learning_rates": {
        "per_element": "learned rates per element",
        "per_layer": "learned rates per layer",
    },
}
"""Key -> value -> a part on top of any method."""


def method_name(config: Config) -> str:
    """Return the name of the field for a config's choices, e.g. 'MAML++', 'ANIL', 'FOMAML, running statistics'.

    A key that a config does not have (it is of an older release) stands for its default.
    """
    head, adapted = config.get("head", "learned"), config.get("adapted_parameters", "all")
    learned_rates = config.get("learnable_inner_loop_learning_rates", "none")
    parts = [text for key, text in MAML_PLUS_PLUS.items() if config.get(key)]
    name = "MAML"
    if head == "prototypes":
        name = "ProtoMAML" if config.get("number_of_training_steps_per_iter", 5) else "ProtoNet"
    elif config.get("outer_update", "gradient") == "displacement":
        name = "Reptile"
    elif adapted != "all" and config.get("adapter_kind", "none") == "none":
        name = {"head": "ANIL", "body": "BOIL"}.get(adapted, name)
    elif learned_rates != "none":
        name = "Meta-SGD" if learned_rates == "per_element" else name
    elif len(parts) == len(MAML_PLUS_PLUS):
        name, parts = "MAML++", []
    if head == "zero":
        parts.append("zero head")
    parts += [
        words[value] for key, words in PARTS.items() if (value := config.get(key)) in words
        and (key, name) != ("learnable_inner_loop_learning_rates", "Meta-SGD")
    ]  # fmt: skip
    parts += [config[kind] for kind in KINDS if kind != "batch_norm_statistics" and _is_foreign(kind, config.get(kind))]
    titles = [titles[value] for key, titles in TITLES.items() if (value := config.get(key)) in titles]
    titles += ["Sharp-MAML"] if config.get("sharpness_radius") else []
    titles += [title for kind in KINDS if (title := fact(kind, config.get(kind), "title", None))]
    if name == "MAML" and titles:
        name, titles = titles[0], titles[1:]
    parts += titles
    if config.get("pretraining_epochs"):
        only = config["pretraining_epochs"] >= config.get("total_epochs", math.inf)
        parts.append("only pre-trained" if only else "pre-trained")
    if name not in ("ProtoNet", "Reptile") and config.get("second_order") is False:
        name = "FOMAML" if name == "MAML" else f"first-order {name}"
    statistics = config.get("batch_norm_statistics", "transductive")
    if statistics != "transductive":
        parts.append(f"{statistics if isinstance(statistics, str) else '/'.join(statistics)} statistics")
    return ", ".join([name, *parts])


def _is_foreign(kind: str, name: Any) -> bool:
    """Whether a value is the name of a plugin's choice without a title, whose file need not be loaded here."""
    if not isinstance(name, str) or name in ("none", GIVEN):
        return False
    found = choices(kind).get(name)
    return found is None or not (found.module or found.facts.get("title"))


class Row(NamedTuple):
    """A method, and by which settings its row is told apart from the others."""

    method: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def settings_text(self) -> str:
        """'meta_learning_rate 0.01, batch_size 4'."""
        return ", ".join(f"{key} {value}" for key, value in self.settings)

    def __str__(self) -> str:
        return f"{self.method} ({self.settings_text})" if self.settings else self.method


def rows_of(configs: Sequence[Config], columns: Sequence[Iterable[Any]], names: Sequence[str]) -> list[Row]:
    """Return the row of each run: runs with results in one column share it only when they are seeds of one method.

    Rows name the keys in which any two runs of a column differ although the names of their methods do not tell, each
    row those that mean something in its config. A seed that is run again, say on another machine or with other
    validation tasks, is no second run of the method: its row names the run.

    Args:
        configs, names: of the runs.
        columns: per run, the columns of the table in which it has results.
    """
    rivals: dict[Any, list[Config]] = {}
    for config, own in zip(configs, columns, strict=True):
        for column in set(own):
            rivals.setdefault(column, []).append(config)
    pairs = (pair for together in rivals.values() for pair in itertools.combinations(together, 2))
    found = {key for one, other in pairs for key in unnamed_differences(one, other)}
    keys = [*(key for key in METHOD if key in found), *sorted(found.difference(METHOD))]
    plugins = {entry for config in configs for entry in config.get("plugin_sha256") or ()}
    shown = [
        config | {"plugin_sha256": _short_names(config.get("plugin_sha256") or (), plugins)}
        for config in map(dict, configs)
    ]
    rows = [
        Row(
            method_name(c),
            tuple((key, text) for key in keys if _has_meaning(c, key) and (text := _text(_value(c, key)))),
        )
        for c in shown
    ]
    n_runs: Counter[Any] = Counter()
    for row, config, own in zip(rows, configs, columns, strict=True):
        train_seed, seed = config.get("train_seed"), config.get("seed")
        n_runs.update((row, column, train_seed, train_seed if seed is None else seed) for column in set(own))
    repeated = {row for (row, *_), n in n_runs.items() if n > 1}
    return [
        row._replace(settings=(*row.settings, ("run", printable(name)))) if row in repeated else row
        for row, name in zip(rows, names, strict=True)
    ]


def labels_of(rows: Iterable[Row]) -> dict[Row, str]:
    """Return each row's name in tables and curves: with its settings, or with a number where these are long."""
    distinct = dict.fromkeys(rows)
    full = {row: str(row) for row in distinct}
    if max(map(len, full.values()), default=0) <= LONGEST_LABEL:
        return full
    return {row: f"{row.method} [{n}]" if row.settings else row.method for n, row in enumerate(distinct, start=1)}


def unnamed_differences(one: Config, other: Config) -> list[str]:
    """Return what differs between two configs, is part of the method, and is not told by the names of both."""
    extra = [key for key in {**one, **other} if key not in KNOWN]
    differing = [
        key for key in (*METHOD, *extra)
        if _differ(one, other, key) and (_has_meaning(one, key) or _has_meaning(other, key))
    ]  # fmt: skip
    if any(key in OF_IMAGES for key in differing):
        differing = [key for key in differing if key != DATA]
    if method_name(one) == method_name(other):
        return differing
    return [key for key in differing if not (_names_tell(one, other, key) and _names_tell(other, one, key))]


def _differ(one: Config, other: Config, key: str) -> bool:
    """Whether two configs have two values; one that lacks the key may have any where its default is worked out."""
    field = fields().get(key)
    may_be_any = key == DATA or (field is not None and field.default in (None, "auto"))
    if may_be_any and not (key in one and key in other):
        return False
    return _value(one, key) != _value(other, key)


def _has_meaning(config: Config, key: str) -> bool:
    """Whether a key does something with the other values of a config; where it is not known, it may."""
    mark = read_with().get(key)
    return (key in config or key in fields()) and (mark is None or mark.holds(key, _value(config, mark.other)))


def _short_names(plugins: Iterable[str], among: Collection[str]) -> str:
    """Return the names of plugin files, with the first digits of their digests where another file has the same name."""
    names = Counter(entry.partition(":")[0] for entry in among)
    parts = [entry.partition(":") for entry in plugins]
    return " ".join(name if names[name] == 1 else f"{name}:{digest[:8]}" for name, _, digest in parts)


def _names_tell(config: Config, other: Config, key: str) -> bool:
    """Whether the method would have another name with the other's value of a key."""
    return method_name({**config, key: _value(other, key)}) != method_name(config)


def _value(config: Config, key: str) -> Any:
    """Of a key; a config of an older release that lacks it has the default."""
    field = fields().get(key)
    value = config.get(key, None if field is None else field.default)
    value = list(value) if isinstance(value, tuple) else value
    # Omniglot's own fractions are what configs had before there was `auto`, which stands for the same there.
    return "auto" if key == "train_val_test_split" and value == list(OMNIGLOT_SPLIT) else value


def _text(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))
