"""Values that are valid alone and impossible together: one table, looked at before any data is touched.

`config` is a `utils.config.ExperimentConfig`; this file does not know its class, so that the schema can import the
table.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from utils.registry import BUILT_IN_BACKBONES, VGG_KEYS, loaded_plugins, unknown_backbone


class Contradiction(NamedTuple):
    """A combination of values that cannot work: the keys it looks at, and what is wrong (None: nothing)."""

    keys: tuple[str, ...]
    problem: Callable[[Any], str | None]


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


def _image_vanishes(config: Any) -> str | None:
    if config.backbone != "vgg":
        return None
    sides = (config.image_height, config.image_width)
    arguments = (config.num_stages, config.cnn_blocks_per_stage, config.conv_padding, config.max_pooling)
    if min(feature_size(side, *arguments) for side in sides) > 0:
        return None
    return (
        f"images of {sides[0]} x {sides[1]} pixels vanish in {config.num_stages} stages; "
        'lower "num_stages" or enlarge "image_height" and "image_width"'
    )


def _split_fractions(config: Any) -> str | None:
    split = config.train_val_test_split
    if min(split) >= 0 and split[0] > 0 and split[0] + split[1] <= 1.0 + 1e-9:
        return None
    return (
        f'"train_val_test_split" is {list(split)}; the fractions for train and val must be positive and sum to at '
        "most 1"
    )


def _ways_of_a_learned_head(config: Any) -> str | None:
    if config.head != "learned":
        return None
    ways = {shape.n_way for shape in config.training_shapes}
    others = sorted({shape.n_way for shape in config.test_shapes} - ways)
    fix = 'set "head" to "zero" or "prototypes", which are made for each task,'
    if len(ways) > 1:
        return (
            f'"num_classes_per_set" is {sorted(ways)}, but a learned head has one number of classes; {fix} or give '
            "one number"
        )
    if others:
        return (
            f'"test_num_classes_per_set" has {others}, but the learned head has {min(ways)} classes; {fix} or test '
            f"with {min(ways)}"
        )
    return None


OF_WAVES = {
    "loss": "mean_squared_error", "num_regression_outputs": 1, "image_height": 1, "image_width": 1, "image_channels": 1,
    "support_augmentation": (), "query_augmentation": (), "test_dataset_name": (), "task_list": "",
}  # fmt: skip
"""Key -> the value that the points of a wave need."""


def _as_json(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _sinusoid(config: Any) -> str | None:
    if config.dataset_name == "sinusoid":
        wrong = [
            f'"{key}" {_as_json(value)}, not {_as_json(getattr(config, key))}'
            for key, value in OF_WAVES.items()
            if getattr(config, key) != value
        ]
        if wrong:
            return f'"dataset_name" sinusoid, points of a wave, needs {"; ".join(wrong)}'
    return None


MLP_HAS_NONE = {
    "dropout_rate_value": 0.0, "per_step_bn_statistics": False, "batch_norm_statistics": "transductive",
    "learnable_batch_norm_momentum": False, "enable_inner_loop_optimizable_bn_params": False,
}  # fmt: skip
"""Key -> the value at which it asks for nothing."""


def _mlp(config: Any) -> str | None:
    if config.backbone != "mlp":
        return None
    wrong = [f'"{key}" to {_as_json(value)}' for key, value in MLP_HAS_NONE.items() if getattr(config, key) != value]
    return f'"backbone" mlp has neither norm layers nor dropout; set {" and ".join(wrong)}' if wrong else None


def _milestones(config: Any) -> str | None:
    milestones = config.meta_learning_rate_milestones
    text = f'"meta_learning_rate_milestones" {list(milestones)}'
    if config.meta_learning_rate_schedule != "step":
        return f'{text} have no effect without "meta_learning_rate_schedule" step' if milestones else None
    if not milestones or list(milestones) != sorted(set(milestones)) or milestones[0] < 1:
        return (
            f'{text} must be epochs from 1 on, each later than the one before, for "meta_learning_rate_schedule" step'
        )
    return None


def _unless(condition: Callable[[Any], bool], text: str) -> Callable[[Any], str | None]:
    return lambda config: None if condition(config) else text.format(c=config)


def _statistics_of_norm_layer(config: Any) -> str | None:
    allowed = {"batch_norm": None, "task_norm": {"transductive", "support"}}.get(config.norm_layer, {"transductive"})
    tested, trained = config.test_batch_norm_statistics or (), config.batch_norm_statistics
    values = {
        *((tested,) if isinstance(tested, str) else tested),
        *((trained,) if isinstance(trained, str) else trained),
    } - {"mixed"}
    if allowed is None or values <= allowed:
        return None
    return (
        f'"batch_norm_statistics" {", ".join(sorted(values - allowed))} needs "norm_layer" batch_norm; '
        f"{config.norm_layer} works with "
        f"{' and '.join(sorted(allowed))}"
    )


def _groups(config: Any) -> str | None:
    reads_filters = "cnn_num_filters" in BUILT_IN_BACKBONES.get(
        config.backbone, ()
    )  # of other networks, NormChoice asks
    if config.norm_layer != "group_norm" or not reads_filters or config.cnn_num_filters % config.norm_groups == 0:
        return None
    return (
        f'"norm_groups" {config.norm_groups} does not divide "cnn_num_filters" {config.cnn_num_filters}; choose a '
        "divisor"
    )


PER_LAYER_PER_STEP = "learnable_per_layer_per_step_inner_loop_learning_rate"


def _zero_steps(config: Any) -> str | None:
    if config.number_of_training_steps_per_iter > 0:
        return None
    given = {
        '"head"': config.head != "prototypes",
        '"outer_update"': config.outer_update != "gradient",
        '"use_multi_step_loss_optimization"': config.use_multi_step_loss_optimization,
        f'"{PER_LAYER_PER_STEP}"': getattr(config, PER_LAYER_PER_STEP),
        '"learnable_inner_loop_learning_rates"': config.learnable_inner_loop_learning_rates != "none",
    }
    if not any(given.values()):
        return None
    return (
        '"number_of_training_steps_per_iter" 0 (ProtoNet) does not go with '
        f"{', '.join(key for key, wrong in given.items() if wrong)}; "
        'it needs "head" prototypes, the gradient of the query loss and nothing that is learned about inner steps'
    )


def _plugins_that_are_missing(config: Any) -> str | None:
    missing = [entry for entry in config.plugin_sha256 if entry not in loaded_plugins()]
    if not missing:
        return None
    return (
        f'"plugin_sha256" names {", ".join(missing)}, which no config can load; give that file on the command line: '
        "--plugin FILE.py"
    )


def keys_without_effect(config: Any) -> list[str]:
    """Return the keys of the reference's network that are not at their defaults and that the config's backbone does
    not read.
    """
    reads = BUILT_IN_BACKBONES.get(config.backbone, VGG_KEYS)  # a plugin's network may read any
    defaults = type(config).model_fields
    return [key for key in sorted(VGG_KEYS - reads) if getattr(config, key) != defaults[key].default]


CONTRADICTIONS = (
    Contradiction(("plugin_sha256",), _plugins_that_are_missing),
    Contradiction(("backbone",), lambda config: unknown_backbone(config.backbone)),
    Contradiction(
        ("backbone", "head_name", "task_batching"),
        _unless(
            lambda c: c.backbone not in BUILT_IN_BACKBONES or (not c.head_name and c.task_batching == "auto"),
            '"head_name" and "task_batching" are of networks that a plugin brings, not of "backbone" {c.backbone}; '
            "leave them out",
        ),
    ),
    Contradiction(("train_val_test_split",), _split_fractions),
    Contradiction(
        (
            "backbone",
            "image_height",
            "image_width",
            "num_stages",
            "cnn_blocks_per_stage",
            "conv_padding",
            "max_pooling",
        ),
        _image_vanishes,
    ),
    Contradiction(
        ("min_learning_rate", "meta_learning_rate"),
        _unless(
            lambda c: c.min_learning_rate <= c.meta_learning_rate,
            '"min_learning_rate" {c.min_learning_rate} is above "meta_learning_rate" {c.meta_learning_rate}; '
            "annealing goes down",
        ),
    ),
    Contradiction(("num_classes_per_set", "test_num_classes_per_set", "head"), _ways_of_a_learned_head),
    Contradiction(
        ("meta_momentum", "meta_optimizer"),
        _unless(
            lambda c: not c.meta_momentum or c.meta_optimizer in ("sgd", "rmsprop"),
            '"meta_momentum" {c.meta_momentum} is of "meta_optimizer" sgd and rmsprop, not of {c.meta_optimizer}; set '
            "it to 0",
        ),
    ),
    Contradiction(
        ("precision", "backbone"),
        _unless(
            lambda c: c.precision != "bfloat16" or (c.backbone in BUILT_IN_BACKBONES and c.backbone != "mlp"),
            '"precision" bfloat16 concerns the convolutions of the built-in networks, and "backbone" {c.backbone} has '
            "none of those; "
            'set "precision" to float32',
        ),
    ),
    Contradiction(("dataset_name", *OF_WAVES), _sinusoid),
    Contradiction(("backbone", *MLP_HAS_NONE), _mlp),
    Contradiction(("meta_learning_rate_milestones", "meta_learning_rate_schedule"), _milestones),
    Contradiction(
        ("label_smoothing", "loss"),
        _unless(
            lambda c: not c.label_smoothing or c.loss == "cross_entropy",
            '"label_smoothing" {c.label_smoothing} is of "loss" cross_entropy alone, not of {c.loss}; set it to 0',
        ),
    ),
    Contradiction(
        ("number_of_ensemble_models", "max_models_to_save"),
        _unless(
            lambda c: c.number_of_ensemble_models is None or c.number_of_ensemble_models <= c.max_models_to_save,
            '"number_of_ensemble_models" {c.number_of_ensemble_models} is more than "max_models_to_save" '
            "{c.max_models_to_save}; raise the latter",
        ),
    ),
    Contradiction(
        ("second_order", "first_order_to_second_order_epoch"),
        _unless(
            lambda c: c.second_order or c.first_order_to_second_order_epoch == -1,
            '"first_order_to_second_order_epoch" {c.first_order_to_second_order_epoch} needs "second_order" true; '
            "set it to -1 for first order throughout",
        ),
    ),
    Contradiction(
        ("class_rotation", "image_height", "image_width"),
        _unless(
            lambda c: c.class_rotation is not True or c.image_height == c.image_width,
            '"class_rotation" needs square images, but they are {c.image_height} x {c.image_width}; set it to false',
        ),
    ),
    Contradiction(
        ("normalisation", "image_channels"),
        _unless(
            lambda c: c.normalisation == "none" or c.image_channels == 3,
            '"normalisation" {c.normalisation} needs "image_channels" 3, not {c.image_channels}; set "normalisation" '
            'to "none"',
        ),
    ),
    Contradiction(
        ("enable_inner_loop_optimizable_bn_params", "learnable_bn_gamma", "learnable_bn_beta"),
        _unless(
            lambda c: not c.enable_inner_loop_optimizable_bn_params or c.learnable_bn_gamma or c.learnable_bn_beta,
            '"enable_inner_loop_optimizable_bn_params" has nothing to adapt when "learnable_bn_gamma" and '
            '"learnable_bn_beta" are both false; set one to true',
        ),
    ),
    Contradiction(
        ("norm_layer", "per_step_bn_statistics"),
        _unless(
            lambda c: c.norm_layer == "batch_norm" or not c.per_step_bn_statistics,
            '"per_step_bn_statistics" needs "norm_layer" batch_norm, not {c.norm_layer}',
        ),
    ),
    Contradiction(("norm_layer", "batch_norm_statistics"), _statistics_of_norm_layer),
    Contradiction(("backbone", "norm_layer", "norm_groups", "cnn_num_filters"), _groups),
    Contradiction(
        ("batch_norm_statistics", "test_batch_norm_statistics"),
        _unless(
            lambda c: (
                "mixed" not in (c.test_batch_norm_statistics or ()) or not isinstance(c.batch_norm_statistics, str)
            ),
            '"test_batch_norm_statistics" mixed needs "batch_norm_statistics" as a list with one value per block, not '
            "{c.batch_norm_statistics}",
        ),
    ),
    Contradiction(
        ("head", "adapted_parameters"),
        _unless(
            lambda c: not (c.head == "zero" and c.adapted_parameters == "body"),
            '"adapted_parameters" body (BOIL) has no gradient through a head of zeros; set "head" to "learned" or '
            '"prototypes"',
        ),
    ),
    Contradiction(
        ("head", "loss"),
        _unless(
            lambda c: c.head == "learned" or c.loss != "mean_squared_error",
            '"head" {c.head} is made of classes, which regression does not have; set "head" to "learned"',
        ),
    ),
    Contradiction(
        ("number_of_training_steps_per_iter", "head", "outer_update", "use_multi_step_loss_optimization"), _zero_steps
    ),
    Contradiction(
        ("number_of_training_steps_per_iter", "number_of_evaluation_steps_per_iter"),
        _unless(
            lambda c: c.number_of_training_steps_per_iter > 0 or not c.number_of_evaluation_steps_per_iter,
            '"number_of_evaluation_steps_per_iter" {c.number_of_evaluation_steps_per_iter} with zero training steps: '
            "ProtoNet adapts "
            "nothing; set it to 0",
        ),
    ),
    Contradiction(
        ("learnable_inner_loop_learning_rates", "learnable_per_layer_per_step_inner_loop_learning_rate"),
        _unless(
            lambda c: (
                c.learnable_inner_loop_learning_rates == "none"
                or not c.learnable_per_layer_per_step_inner_loop_learning_rate
            ),
            '"learnable_inner_loop_learning_rates" {c.learnable_inner_loop_learning_rates} and '
            '"learnable_per_layer_per_step_inner_loop_learning_rate" true are two ways to learn the rates; keep one',
        ),
    ),
    Contradiction(
        ("inner_loop_momentum", "inner_loop_optimizer"),
        _unless(
            lambda c: c.inner_loop_momentum == 0 or c.inner_loop_optimizer == "sgd",
            '"inner_loop_momentum" {c.inner_loop_momentum} needs "inner_loop_optimizer" sgd, not '
            "{c.inner_loop_optimizer}",
        ),
    ),
    Contradiction(
        ("inner_loop_betas",),
        _unless(
            lambda c: all(0 <= beta < 1 for beta in c.inner_loop_betas),
            '"inner_loop_betas" {c.inner_loop_betas} must both be at least 0 and below 1',
        ),
    ),
    Contradiction(
        ("outer_update", "second_order", "use_multi_step_loss_optimization"),
        _unless(
            lambda c: c.outer_update == "gradient" or not (c.second_order or c.use_multi_step_loss_optimization),
            '"outer_update" displacement (Reptile) has no second order and no outer loss; set "second_order" and '
            '"use_multi_step_loss_optimization" to false',
        ),
    ),
    Contradiction(
        (
            "outer_update",
            "learnable_inner_loop_learning_rates",
            "learnable_per_layer_per_step_inner_loop_learning_rate",
        ),
        _unless(
            lambda c: (
                c.outer_update == "gradient"
                or not (
                    c.learnable_per_layer_per_step_inner_loop_learning_rate
                    or c.learnable_inner_loop_learning_rates != "none"
                )
            ),
            '"outer_update" displacement (Reptile) has no gradient for inner learning rates; set '
            '"learnable_per_layer_per_step_inner_loop_learning_rate" to false and '
            '"learnable_inner_loop_learning_rates" to "none"',
        ),
    ),
    Contradiction(
        ("learnable_batch_norm_momentum", "norm_layer", "batch_norm_statistics"),
        _unless(
            lambda c: (
                not c.learnable_batch_norm_momentum
                or (c.norm_layer == "batch_norm" and c.batch_norm_statistics == "running")
            ),
            '"learnable_batch_norm_momentum" needs "norm_layer" batch_norm and "batch_norm_statistics" running: '
            "a momentum without running statistics has no effect to learn from",
        ),
    ),
    Contradiction(
        ("test_dataset_name", "task_list"),
        _unless(
            lambda c: not (c.test_dataset_name and c.task_list),
            '"test_dataset_name" and "task_list" {c.task_list!r} are two tests; a task list names its dataset itself. '
            "Give one of them",
        ),
    ),
    Contradiction(
        ("dry_run", "evaluate_on_test_set_only", "replay_iteration", "continue_from_epoch"),
        _unless(
            lambda c: (
                not c.dry_run
                or not (c.evaluate_on_test_set_only or c.replay_iteration or c.continue_from_epoch != "latest")
            ),
            '"dry_run" starts a run of its own and touches no other; leave out "evaluate_on_test_set_only", '
            '"replay_iteration" and "continue_from_epoch"',
        ),
    ),
    Contradiction(
        ("test_after_training", "test_curve", "evaluate_on_test_set_only"),
        _unless(
            lambda c: c.test_after_training or not c.test_curve or c.evaluate_on_test_set_only,
            '"test_curve" is made after training, but "test_after_training" is false; leave out one of them',
        ),
    ),
    Contradiction(
        ("tag", "evaluate_on_test_set_only"),
        _unless(
            lambda c: not c.tag or c.evaluate_on_test_set_only,
            '"tag" {c.tag!r} names the files of a test alone; add --evaluate_on_test_set_only true',
        ),
    ),
)
"""The table of combinations that cannot work. Each is looked at when its keys are valid by themselves."""
