"""Check the meta-gradient of a config: python -m experiment_tools.check_gradients --name_of_args_json_file
CONFIG.json [--full_size] [--key value ...], or of a plugin: python -m experiment_tools.check_gradients --plugin FILE.py

Against finite differences and `torch.optim`, in float64 on the CPU, on random images.
Sizes shrink (2 tasks, 2 inner steps, few filters, small images) unless --full_size is given. Needs no dataset.
Without a config everything that the plugins register is checked in turn, in a small config that is MAML otherwise.
Exit code 0: every law holds; 1: one does not, or the config is wrong.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import ExperimentConfig, check_config, load_config
from utils.config.command_line import options_of, read_command_line
from utils.config.messages import COMMAND_LINE
from utils.errors import ConfigError, prints_user_errors
from utils.registry import loaded_plugins, plugin_backbones
from utils.registry.choices import fact, of_plugins
from utils.words import say

if TYPE_CHECKING:
    from experiment_tools.check_gradients.comparing import Check

SMALL = {
    "batch_size": 2,
    "samples_per_iter": 1,
    "number_of_training_steps_per_iter": 2,
    "number_of_evaluation_steps_per_iter": None,
    "cnn_num_filters": 4,
    "num_classes_per_set": 3,
    "num_samples_per_class": 2,
    "num_target_samples": 2,
    "val_num_classes_per_set": None,
    "test_num_classes_per_set": None,
    "norm_groups": 2,
}
SMALLEST_SIDE = 28


def small_values(config: ExperimentConfig) -> dict[str, Any]:
    """Return the values of SMALL that make a config smaller."""
    values = {
        key: value for key, value in SMALL.items()
        if value is None or not isinstance(getattr(config, key), int) or getattr(config, key) > value
    }  # fmt: skip
    # Where a gradient is far below epsilon, an adaptive rule is a sign function, which finite differences cannot
    # follow.
    values["inner_loop_epsilon"] = max(config.inner_loop_epsilon, 1e-3)
    if config.number_of_training_steps_per_iter == 0:
        values["number_of_evaluation_steps_per_iter"] = 0
    if config.norm_layer != "group_norm":
        values.pop("norm_groups", None)
    side = min(config.image_height, config.image_width, SMALLEST_SIDE)
    return values | {"image_height": side, "image_width": side}


def check_config_gradients(
    json_path: Path | str | None, overrides: dict[str, Any], *, full_size: bool = False
) -> "list[Check]":
    """Return the checks of a config.

    Raises:
        ConfigError: the config is wrong.
    """
    overrides = {"precision": "float64", "task_chunk_size": "auto", **overrides}
    config = load_config(json_path, overrides, place=COMMAND_LINE)
    if not full_size:
        small = config.to_json_dict() | small_values(config)
        try:
            config = check_config(small, str(json_path))
        except ConfigError:  # images that vanish when they are this small, say
            sides = {"image_height": config.image_height, "image_width": config.image_width}
            config = check_config(small | sides, str(json_path))

    import torch

    from experiment_tools.check_gradients.checks import check_learner
    from experiment_tools.check_gradients.comparing import random_episodes
    from few_shot_learning_system import build_learner

    learner = build_learner(config, "cpu")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the symmetric start, where some gradients are zero
        for parameter in learner.network.parameters():
            if parameter.requires_grad and parameter.dim() < 3:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for name, buffer in learner.network.named_buffers():  # running statistics as after some training
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))
    shape = config.training_shapes[0]
    episodes = random_episodes(
        learner, config.example_shape, config.tasks_per_meta_batch, shape.n_way, shape.n_shot, shape.n_query
    )
    if config.inputs is not None and not config.inputs.are_numbers:  # no random numbers are ids
        sides = [episodes.support_images.shape, episodes.query_images.shape]
        counts = [math.prod(side[:2]) for side in sides]
        parts = torch.from_numpy(config.inputs.made_up(sum(counts))).split(counts)
        support, query = (part.reshape(side) for part, side in zip(parts, sides, strict=True))
        episodes = replace(episodes, support_images=support, query_images=query)
    epochs = {0, config.first_order_to_second_order_epoch + 1} if config.second_order else {0}
    checks = []
    for epoch in sorted(epochs):
        checks += check_learner(learner, episodes, epoch)
    return checks


def settings_of_plugins() -> list[dict[str, Any]]:
    """Return for everything that plugins have registered a config that has it."""
    named = [(choice.kind, choice.name) for choice in of_plugins()] + [
        ("backbone", name) for name in plugin_backbones()
    ]
    return [
        {"experiment_name": "check", kind: name}
        | ({"image_height": 14, "image_width": 14, "num_stages": 2} if kind != "backbone" else {})
        | ({"backbone": "mlp"} if kind != "backbone" and fact(kind, name, "is_regression", False) else {})
        for kind, name in named
    ]


@prints_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Print a line per check and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"}.intersection(arguments):
        say(__doc__)
        return 0 if arguments else 1
    full_size = "--full_size" in arguments
    json_path, overrides = read_command_line(options_of([word for word in arguments if word != "--full_size"]))
    settings = [{}] if json_path is not None or "experiment_name" in overrides else settings_of_plugins()
    if not settings:
        problem = (
            "the --plugin registers no more than datasets, which have no gradient: give --name_of_args_json_file too, "
            "the path of a config"
            if loaded_plugins()
            else "--name_of_args_json_file is missing, the path of a config; or give --plugin FILE.py, a file that "
            "registers something"
        )
        raise ConfigError(f"{COMMAND_LINE}: {problem}")
    checks = []
    for setting in settings:
        if setting:
            say(", ".join(f"{key} {value}" for key, value in setting.items() if key != "experiment_name"))
        try:
            found = check_config_gradients(json_path, {**setting, **overrides}, full_size=full_size)
        except ConfigError as error:
            if "backbone" in setting:
                raise ConfigError(
                    f"{error}. It was given images of 1 x 28 x 28: if it takes other examples, give a config that has "
                    "them, by --name_of_args_json_file"
                ) from error
            raise
        for check in found:
            relation = "above" if check.at_least else "at most"
            say(
                f"{'ok    ' if check.passed else 'FAILED'}  {check.name:<15} {check.error:9.2e} ({relation} "
                f"{check.allowed:.0e})  against {check.against}"
                + (f"\n        {check.where}" if check.where and not check.passed else "")
            )
        checks += found
    failed = sum(not check.passed for check in checks)
    say(f"{len(checks)} checks, {failed} failed" if failed else f"{len(checks)} checks, all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
