"""Values that are valid alone and impossible together: one table, evaluated before any data is touched."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from utils.config.schema import ExperimentConfig, read_with
from utils.config.value_types import ReadWith, choices
from utils.registry import BUILT_IN_BACKBONES, GIVEN_NETWORK, loaded_plugins, unknown_backbone
from utils.registry.choices import GIVEN, fact


class Contradiction(NamedTuple):
    """A combination of values that cannot work: the keys it concerns, and what is wrong (None: nothing)."""

    keys: tuple[str, ...]
    problem: Callable[[ExperimentConfig], str | None]


def clash(
    *keys: str, when: Callable[[ExperimentConfig], Any], text: str | Callable[[ExperimentConfig], str]
) -> Contradiction:
    """Return the values of `keys` that do not go together.

    Args:
        when: of the resolved config `c`; true where they clash.
        text: what is wrong and what to do; a string may name values, as in "{c.head}".
    """

    def problem(config: ExperimentConfig) -> str | None:
        if when(config):
            return text(config) if callable(text) else text.format(c=config)
        return None

    return Contradiction(keys, problem)


# --- of images and classes --------------------------------------------------------------------------------------------


def feature_size(size: int, num_stages: int, blocks_per_stage: int, padding: bool, max_pooling: bool) -> int:
    """Return the height (or width) in pixels of the last feature map of an image side of `size` pixels, 0 if it
    vanishes.
    """
    for _ in range(num_stages):
        for block in range(blocks_per_stage):
            stride = 2 if not max_pooling and block == blocks_per_stage - 1 else 1
            size = (size + 2 * int(padding) - 3) // stride + 1
            if size < 1:
                return 0
        size = size // 2 if max_pooling else size
    return max(size, 0)


def _image_vanishes(c: ExperimentConfig) -> bool:
    arguments = (c.num_stages, c.cnn_blocks_per_stage, c.conv_padding, c.max_pooling)
    return min(feature_size(side, *arguments) for side in c.example_shape[1:]) == 0


NAMES_OF_FOLDERS = ("experiment_name", "tag", "dataset_name", "dataset_path", "test_dataset_name")


def _names_of_dots(names: str | tuple[str, ...]) -> list[str]:
    return [name for name in ([names] if isinstance(names, str) else names) if name and not name.strip(". ")]


def _leaves_no_fractions(split: tuple[float, ...]) -> bool:
    return min(split) < 0 or split[0] == 0 or split[0] + split[1] > 1.0 + 1e-9


def _training_ways(c: ExperimentConfig) -> list[int]:
    return sorted({shape.n_way for shape in c.training_shapes})


def _ways_only_tested(c: ExperimentConfig) -> list[int]:
    return sorted({shape.n_way for shape in c.test_shapes} - set(_training_ways(c)))


FOR_ANY_WAYS = 'set "head" to "zero" or "prototypes", which are made for each task,'

# --- keys that want a value together ----------------------------------------------------------------------------------

OF_WAVES = {
    "loss": "mean_squared_error", "num_regression_outputs": 1, "image_height": 1, "image_width": 1, "image_channels": 1,
    "support_augmentation": (), "query_augmentation": (), "test_dataset_name": (), "task_list": "", "input_shape": (),
}  # fmt: skip
"""Key -> the value that the points of a wave need."""
OF_IMAGES_ALONE = {
    "class_rotation": False, "reverse_channels": False, "support_augmentation": (), "query_augmentation": (),
    "task_list": "",
}  # fmt: skip
"""Key -> the value at which it asks for nothing, as it must where examples are no images."""
MLP_HAS_NONE = {
    "dropout_rate_value": 0.0, "per_step_bn_statistics": False, "batch_norm_statistics": "transductive",
    "learnable_batch_norm_momentum": False, "enable_inner_loop_optimizable_bn_params": False,
}  # fmt: skip
"""Key -> the value at which it asks for nothing."""


def _others(c: ExperimentConfig, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return key -> its value, where that is not the wanted one."""
    return {
        key: getattr(c, key) for key, value in wanted.items()
        if getattr(c, key) != value and not (key == "loss" and c.is_regression)
    }  # fmt: skip


def _as_json(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _to_set(c: ExperimentConfig, wanted: Mapping[str, Any]) -> str:
    return " and ".join(f'"{key}" to {_as_json(wanted[key])}' for key in _others(c, wanted))


def _takes_images(c: ExperimentConfig) -> bool:
    return c.backbone in BUILT_IN_BACKBONES and c.backbone != "mlp"


def _does_not_fit_the_backbone(c: ExperimentConfig) -> bool:
    if c.inputs is None or c.backbone not in BUILT_IN_BACKBONES:
        return False
    return not c.inputs.are_numbers or (_takes_images(c) and len(c.example_shape) != 3)


# --- of the network and the inner loop --------------------------------------------------------------------------------


def _statistics_of(norm_layer: str) -> set[str] | None:
    """Return the kinds of `batch_norm_statistics` that mean something for a norm layer; None: all."""
    kinds = fact("norm_layer", norm_layer, "statistics", None)
    return None if kinds is None else set(kinds)


def _statistics_of_batch_norm_alone(c: ExperimentConfig) -> list[str]:
    """Return the kinds that the config asks for and its norm layer does not have."""
    used: set[str] = set()
    for kinds in (c.batch_norm_statistics, c.test_batch_norm_statistics or ()):
        used |= {kinds} if isinstance(kinds, str) else set(kinds)
    return sorted(used - {"mixed"} - (_statistics_of(c.norm_layer) or used))


def _has_uneven_groups(c: ExperimentConfig) -> bool:
    # Of networks that have filters of their own, NormChoice asks.
    reads_filters = "cnn_num_filters" in BUILT_IN_BACKBONES.get(c.backbone, ())
    return c.norm_layer == "group_norm" and reads_filters and c.cnn_num_filters % c.norm_groups > 0


def _asks_for_inner_steps(c: ExperimentConfig) -> list[str]:
    """Return what keys whose values mean nothing without inner steps have to be instead."""
    asks = {
        '"head" prototypes, or another that is made of the support features': not fact(
            "head", c.head, "uses_features", False
        ),
        '"inner_loop_optimizer" sgd': fact("inner_loop_optimizer", c.inner_loop_optimizer, "learns_of_steps", False),
        '"outer_update" gradient': c.outer_update != "gradient",
        '"use_multi_step_loss_optimization" false': c.use_multi_step_loss_optimization,
        '"learnable_per_layer_per_step_inner_loop_learning_rate" false': (
            c.learnable_per_layer_per_step_inner_loop_learning_rate
        ),
        '"learnable_inner_loop_learning_rates" none': c.learnable_inner_loop_learning_rates != "none",
        '"adapter_kind" none': c.adapter_kind != "none",
    }
    return [wanted for wanted, does in asks.items() if does]


def _idle_with_adapters(c: ExperimentConfig) -> list[str]:
    """Return what leaves adapters, or the body beside them, with nothing to do."""
    asks = {
        '"adapted_parameters" head (ANIL), which leaves them alone; set it to "all" or "body"': (
            c.adapted_parameters == "head"
        ),
        '"outer_update" displacement (Reptile), which moves what is adapted alone; set it to "gradient"': (
            c.outer_update == "displacement"
        ),
        '"adapter_base" frozen and "pretraining_epochs", which learn the body; give one by "initial_weights"': (
            c.adapter_base == "frozen" and c.pretraining_epochs > 0
        ),
    }
    return [text for text, does in asks.items() if does] if c.adapter_kind != "none" else []


def _is_out_of_order(milestones: tuple[int, ...]) -> bool:
    return not milestones or milestones[0] < 1 or list(milestones) != sorted(set(milestones))


def _missing_plugins(c: ExperimentConfig) -> list[str]:
    return [entry for entry in c.plugin_sha256 if entry not in loaded_plugins()]


def unsolved_inner_problem(c: ExperimentConfig) -> str | None:
    """Return the note that the steps of iMAML end far from the solution at which its gradient is taken; None: near it.

    Where the loss is flat, each step leaves 1 - rate * strength of the way; all, at a product of 3, exp(-3) = 5 %.
    """
    if c.outer_update != "implicit" or c.inner_loop_optimizer != "proximal":
        return None
    factors = ("init_inner_loop_learning_rate", "proximal_strength", "number_of_training_steps_per_iter")
    product = math.prod(getattr(c, key) for key in factors)
    if product > 3:
        return None
    written = " times ".join(f'"{key}" {getattr(c, key):g}' for key in factors)
    return (
        f"{written} is {product:.2g}: the inner steps end far from the solution at which iMAML takes its gradient; "
        "raise the steps or the strength until this is well above 3 (docs/methods.md)"
    )


CONTRADICTIONS = (
    *(
        clash(
            key,
            when=lambda c, key=key: _names_of_dots(getattr(c, key)),
            text=f'"{key}" is {{c.{key}!r}}: dots alone name the folder itself or the one above it, and spaces alone '
            "nothing; use a name",
        )
        for key in NAMES_OF_FOLDERS
    ),
    clash(
        "plugin_sha256",
        when=_missing_plugins,
        text=lambda c: (
            f'"plugin_sha256" names {", ".join(_missing_plugins(c))}, which no config can load; give that file on the '
            "command line: --plugin FILE.py"
        ),
    ),
    Contradiction(("backbone",), lambda c: unknown_backbone(c.backbone)),
    clash(
        "train_val_test_split",
        when=lambda c: c.train_val_test_split != "auto" and _leaves_no_fractions(c.train_val_test_split),
        text=lambda c: (
            f'"train_val_test_split" is {list(c.train_val_test_split)}; the fractions for train and val must be '
            "positive and sum to at most 1"
        ),
    ),
    clash(
        "backbone", "image_height", "image_width", "num_stages", "cnn_blocks_per_stage", "conv_padding", "max_pooling",
        "input_shape",
        when=lambda c: c.backbone == "vgg" and len(c.example_shape) == 3 and _image_vanishes(c),
        text="images of {c.example_shape[1]} x {c.example_shape[2]} pixels vanish in {c.num_stages} stages; "
        'lower "num_stages" or enlarge "image_height" and "image_width"',
    ),
    clash(
        "input_shape", "backbone",
        when=_does_not_fit_the_backbone,
        text=lambda c: (
            f'"backbone" {c.backbone} takes one array of numbers{", (C, H, W)" if _takes_images(c) else ""}, not '
            f'"input_shape" {_as_json(c.input_shape)}; for one array of any shape there is mlp, for all else a network '
            f'of your own by --plugin, or in Python "backbone": "{GIVEN_NETWORK}" and build_learner(..., network=...) '
            "(docs/any_modality.md)"
        ),
    ),
    clash(
        "input_shape", *OF_IMAGES_ALONE,
        when=lambda c: c.inputs is not None and _others(c, OF_IMAGES_ALONE),
        text=lambda c: (
            f'"input_shape" {_as_json(c.input_shape)} is of what is no image; set {_to_set(c, OF_IMAGES_ALONE)}'
        ),
    ),
    clash(
        "min_learning_rate", "meta_learning_rate",
        when=lambda c: c.min_learning_rate > c.meta_learning_rate,
        text='"min_learning_rate" {c.min_learning_rate} is above "meta_learning_rate" {c.meta_learning_rate}; '
        "annealing goes down",
    ),
    clash(
        "num_classes_per_set", "test_num_classes_per_set", "head",
        when=lambda c: c.head == "learned" and len(_training_ways(c)) > 1,
        text=lambda c: (
            f'"num_classes_per_set" is {_training_ways(c)}, but a learned head has one number of classes; '
            f"{FOR_ANY_WAYS} or give one number"
        ),
    ),
    clash(
        "num_classes_per_set", "val_num_classes_per_set", "head",
        when=lambda c: c.head == "learned" and c.validation_shape.n_way not in _training_ways(c),
        text=lambda c: (
            f'"val_num_classes_per_set" is {c.validation_shape.n_way}, but the learned head has '
            f"{_training_ways(c)[0]} classes; {FOR_ANY_WAYS} or validate with {_training_ways(c)[0]}"
        ),
    ),
    clash(
        "num_classes_per_set", "test_num_classes_per_set", "head",
        when=lambda c: c.head == "learned" and len(_training_ways(c)) == 1 and _ways_only_tested(c),
        text=lambda c: (
            f'"test_num_classes_per_set" has {_ways_only_tested(c)}, but the learned head has {_training_ways(c)[0]} '
            f"classes; {FOR_ANY_WAYS} or test with {_training_ways(c)[0]}"
        ),
    ),
    clash(
        "precision", "backbone",
        when=lambda c: c.precision == "bfloat16" and (c.backbone == "mlp" or c.backbone not in BUILT_IN_BACKBONES),
        text='"precision" bfloat16 concerns the convolutions of the built-in networks, and "backbone" {c.backbone} has '
        'none of those; set "precision" to float32',
    ),
    clash(
        "dataset_name", *OF_WAVES,
        when=lambda c: c.dataset_name == "sinusoid" and _others(c, OF_WAVES),
        text=lambda c: '"dataset_name" sinusoid, points of a wave, needs ' + "; ".join(
            f'"{key}" {_as_json(OF_WAVES[key])}, not {_as_json(value)}' for key, value in _others(c, OF_WAVES).items()
        ),
    ),
    clash(
        "backbone", *MLP_HAS_NONE,
        when=lambda c: c.backbone == "mlp" and _others(c, MLP_HAS_NONE),
        text=lambda c: f'"backbone" mlp has neither norm layers nor dropout; set {_to_set(c, MLP_HAS_NONE)}',
    ),
    clash(
        "meta_learning_rate_milestones", "meta_learning_rate_schedule",
        when=lambda c: (
            c.meta_learning_rate_schedule == "step" and _is_out_of_order(c.meta_learning_rate_milestones)
        ),
        text=lambda c: (
            f'"meta_learning_rate_schedule" step falls at milestones, and "meta_learning_rate_milestones" '
            f"{list(c.meta_learning_rate_milestones)} must be epochs from 1 on, each later than the one before: "
            f"{sorted({max(1, c.total_epochs // 2), max(1, c.total_epochs * 3 // 4)})}, say"
        ),
    ),
    clash(
        "number_of_ensemble_models", "max_models_to_save",
        when=lambda c: c.number_of_ensemble_models > c.models_kept,
        text='"number_of_ensemble_models" {c.number_of_ensemble_models} is more than "max_models_to_save" '
        "{c.max_models_to_save}; raise the latter",
    ),
    clash(
        "pretraining_epochs", "total_epochs",
        when=lambda c: (
            c.pretraining_epochs >= c.total_epochs and not fact("head", c.head, "is_made_per_episode", True)
        ),
        text='"pretraining_epochs" {c.pretraining_epochs} are of "total_epochs" {c.total_epochs} and leave none for '
        'the episodes, which train the head; raise the latter, or set "head" to "prototypes", class means',
    ),
    clash(
        "pretraining_epochs", "loss",
        when=lambda c: c.pretraining_epochs and c.is_regression,
        text='"pretraining_epochs" {c.pretraining_epochs} classify, but "loss" mean_squared_error has no classes; set '
        "it to 0",
    ),
    clash(
        "class_rotation", "image_height", "image_width",
        when=lambda c: c.class_rotation is True and c.inputs is None and c.image_height != c.image_width,
        text='"class_rotation" needs square images, but they are {c.image_height} x {c.image_width}; set it to false',
    ),
    clash(
        "normalisation", "image_channels", "input_shape",
        when=lambda c: c.normalisation != "none" and c.example_shape[0] != 3,
        text='"normalisation" {c.normalisation} needs "image_channels" 3, not {c.example_shape[0]}; set "normalisation"'
        ' to "none"',
    ),
    clash(
        "enable_inner_loop_optimizable_bn_params", "learnable_bn_gamma", "learnable_bn_beta",
        when=lambda c: c.enable_inner_loop_optimizable_bn_params and not (c.learnable_bn_gamma or c.learnable_bn_beta),
        text='"enable_inner_loop_optimizable_bn_params" has nothing to adapt when "learnable_bn_gamma" and '
        '"learnable_bn_beta" are both false; set one to true',
    ),
    clash(
        "norm_layer", "per_step_bn_statistics",
        when=lambda c: c.per_step_bn_statistics and c.norm_layer != "batch_norm",
        text='"per_step_bn_statistics" needs "norm_layer" batch_norm, not {c.norm_layer}',
    ),
    clash(
        "norm_layer", "batch_norm_statistics",
        when=_statistics_of_batch_norm_alone,
        text=lambda c: (
            f'"batch_norm_statistics" {", ".join(_statistics_of_batch_norm_alone(c))} needs "norm_layer" batch_norm; '
            f"{c.norm_layer} works with {' and '.join(sorted(_statistics_of(c.norm_layer) or ()))}"
        ),
    ),
    clash(
        "backbone", "norm_layer", "norm_groups", "cnn_num_filters",
        when=_has_uneven_groups,
        text='"norm_groups" {c.norm_groups} does not divide "cnn_num_filters" {c.cnn_num_filters}; choose a divisor',
    ),
    clash(
        "batch_norm_statistics", "test_batch_norm_statistics",
        when=lambda c: "mixed" in (c.test_batch_norm_statistics or ()) and isinstance(c.batch_norm_statistics, str),
        text='"test_batch_norm_statistics" mixed needs "batch_norm_statistics" as a list with one value per block, not '
        "{c.batch_norm_statistics}",
    ),
    clash(
        "head", "adapted_parameters",
        when=lambda c: fact("head", c.head, "classes_begin_alike", False) and c.adapted_parameters == "body",
        text='"adapted_parameters" body (BOIL) has no gradient that tells classes apart through "head" {c.head}, which '
        'is the same for all of them; set "head" to "learned" or "prototypes"',
    ),
    clash(
        "head", "loss",
        when=lambda c: c.head != "learned" and c.is_regression,
        text='"head" {c.head} is made of classes, which regression does not have; set "head" to "learned"',
    ),
    clash(
        "number_of_training_steps_per_iter", "head", "outer_update", "use_multi_step_loss_optimization",
        when=lambda c: c.number_of_training_steps_per_iter == 0 and _asks_for_inner_steps(c),
        text=lambda c: (
            f'"number_of_training_steps_per_iter" 0 (ProtoNet, R2D2) takes {", ".join(_asks_for_inner_steps(c))}'
        ),
    ),
    clash(
        "number_of_training_steps_per_iter", "number_of_evaluation_steps_per_iter",
        when=lambda c: c.number_of_training_steps_per_iter == 0 and c.number_of_evaluation_steps_per_iter > 0,
        text='"number_of_evaluation_steps_per_iter" {c.number_of_evaluation_steps_per_iter} with zero training steps: '
        "nothing is adapted; set it to 0",
    ),
    clash(
        "learnable_inner_loop_learning_rates", "learnable_per_layer_per_step_inner_loop_learning_rate",
        when=lambda c: (
            c.learnable_inner_loop_learning_rates != "none" and c.learnable_per_layer_per_step_inner_loop_learning_rate
        ),
        text='"learnable_inner_loop_learning_rates" {c.learnable_inner_loop_learning_rates} and '
        '"learnable_per_layer_per_step_inner_loop_learning_rate" true are two ways to learn the rates; keep one',
    ),
    clash(
        "adapter_kind", "adapted_parameters", "outer_update", "adapter_base", "pretraining_epochs",
        when=_idle_with_adapters,
        text=lambda c: (
            f'"adapter_kind" {c.adapter_kind} does not go with {"; nor with ".join(_idle_with_adapters(c))}'
        ),
    ),
    clash(
        "inner_loop_optimizer", "second_order",
        when=lambda c: (
            not c.second_order and fact("inner_loop_optimizer", c.inner_loop_optimizer, "needs_second_order", False)
        ),
        text='"inner_loop_optimizer" {c.inner_loop_optimizer} learns what it descends on, which has no gradient in '
        'first order; set "second_order" to true',
    ),
    clash(
        "inner_loop_betas",
        when=lambda c: any(beta < 0 or beta >= 1 for beta in c.inner_loop_betas),
        text='"inner_loop_betas" {c.inner_loop_betas} must both be at least 0 and below 1',
    ),
    clash(
        "outer_update", "inner_loop_optimizer",
        when=lambda c: (
            c.outer_update == "implicit"
            and c.inner_loop_optimizer != GIVEN
            and not fact("inner_loop_optimizer", c.inner_loop_optimizer, "comes_to_rest", False)
        ),
        text='"outer_update" implicit (iMAML) needs an inner problem that is solved where its rule comes to rest; set '
        '"inner_loop_optimizer" to "proximal", not {c.inner_loop_optimizer}',
    ),
    clash(
        "outer_update", "second_order", "first_order_to_second_order_epoch", "use_multi_step_loss_optimization",
        when=lambda c: (
            c.outer_update == "implicit"
            and (not c.second_order or c.first_order_to_second_order_epoch >= 0 or c.use_multi_step_loss_optimization)
        ),
        text='"outer_update" implicit (iMAML) uses second derivatives in every epoch, and the query loss after the '
        'last inner step alone; set "second_order" to true, "first_order_to_second_order_epoch" to -1 and '
        '"use_multi_step_loss_optimization" to false',
    ),
    clash(
        "outer_update", "per_step_bn_statistics", "dropout_rate_value", "batch_norm_statistics",
        when=lambda c: (
            c.outer_update == "implicit"
            and (c.per_step_bn_statistics or c.dropout_rate_value > 0 or "episodic" in c.batch_norm_statistics)
        ),
        text='"outer_update" implicit (iMAML) needs one inner problem, the same at every step; set '
        '"per_step_bn_statistics" to false, "dropout_rate_value" to 0 and "batch_norm_statistics" to any value but '
        "episodic",
    ),
    clash(
        "outer_update", "sharpness_radius",
        when=lambda c: c.outer_update == "displacement" and c.sharpness_radius > 0,
        text='"outer_update" displacement (Reptile) has no outer loss to be sharp; set "sharpness_radius" to 0',
    ),
    clash(
        "outer_update", "second_order", "use_multi_step_loss_optimization",
        when=lambda c: c.outer_update == "displacement" and (c.second_order or c.use_multi_step_loss_optimization),
        text='"outer_update" displacement (Reptile) has no second order and no outer loss; set "second_order" and '
        '"use_multi_step_loss_optimization" to false',
    ),
    clash(
        "outer_update", "outer_loss",
        when=lambda c: c.outer_update == "displacement" and c.outer_loss != "mean",
        text='"outer_update" displacement (Reptile) has no outer loss; set "outer_loss" to "mean"',
    ),
    clash(
        "outer_update", "learnable_inner_loop_learning_rates", "learnable_per_layer_per_step_inner_loop_learning_rate",
        when=lambda c: c.outer_update != "gradient" and (
            c.learnable_per_layer_per_step_inner_loop_learning_rate or c.learnable_inner_loop_learning_rates != "none"
        ),
        text='"outer_update" {c.outer_update} has no gradient for inner learning rates; set '
        '"learnable_per_layer_per_step_inner_loop_learning_rate" to false and '
        '"learnable_inner_loop_learning_rates" to "none"',
    ),
    clash(
        "learnable_batch_norm_momentum", "norm_layer", "batch_norm_statistics",
        when=lambda c: (
            c.learnable_batch_norm_momentum and (c.norm_layer != "batch_norm" or c.batch_norm_statistics != "running")
        ),
        text='"learnable_batch_norm_momentum" needs "norm_layer" batch_norm and "batch_norm_statistics" running: '
        "a momentum without running statistics has no effect to learn from",
    ),
    clash(
        "test_dataset_name", "task_list",
        when=lambda c: c.test_dataset_name and c.task_list,
        text='"test_dataset_name" and "task_list" {c.task_list!r} are two tests; a task list names its dataset itself. '
        "Give one of them",
    ),
    clash(
        "dry_run", "evaluate_on_test_set_only", "replay_iteration", "continue_from_epoch",
        when=lambda c: (
            c.dry_run and (c.evaluate_on_test_set_only or c.replay_iteration or c.continue_from_epoch != "latest")
        ),
        text='"dry_run" starts a run of its own and touches no other; leave out "evaluate_on_test_set_only", '
        '"replay_iteration" and "continue_from_epoch"',
    ),
    clash(
        "test_after_training", "test_curve", "evaluate_on_test_set_only",
        when=lambda c: c.test_curve and not (c.test_after_training or c.evaluate_on_test_set_only),
        text='"test_curve" is made after training, but "test_after_training" is false; leave out one of them',
    ),
)  # fmt: skip
"""The table of combinations that cannot work. Each is evaluated when its keys are valid by themselves."""


def contradictions() -> tuple[Contradiction, ...]:
    """Return the table, and that no key is set beside values of another one with which it means nothing."""
    marks = ((key, mark) for key, mark in read_with().items() if mark.refused)
    return (*CONTRADICTIONS, *(Contradiction((key, mark.other), partial(_in_vain, key, mark)) for key, mark in marks))


def keys_without_effect(c: ExperimentConfig) -> list[str]:
    """Return the keys of networks that are not at their defaults and that the config's backbone does not read."""
    return [key for key, mark in sorted(read_with().items()) if mark.other == "backbone" and _in_vain(key, mark, c)]


def _in_vain(key: str, mark: ReadWith, c: ExperimentConfig) -> str | None:
    value, other, fields = getattr(c, key), getattr(c, mark.other), type(c).model_fields
    if value == fields[key].default or mark.holds(key, other):
        return None
    named = (True, False) if (kind := fields[mark.other].annotation) is bool else choices(kind)
    right = " or ".join(_as_json(name) for name in named if mark.holds(key, name))
    advice = f', or set "{mark.other}" to {right}' if right else ""
    other = other if isinstance(other, str) else _as_json(other)
    return f'"{key}" {_as_json(value)} means nothing with "{mark.other}" {other}; leave it out{advice}'
