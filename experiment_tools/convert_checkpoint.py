"""Turn a checkpoint of "How to train your MAML in PyTorch" (`train_model_<epoch>`) into one of this project.

    python -m experiment_tools.convert_checkpoint --config NEW.json --checkpoint OLD/saved_models/train_model_40

NEW.json is the config that it was trained with, converted by script_generation_tools/convert_config.py. The result lies
beside the checkpoint, as OLD/saved_models/train_model_40.safetensors, and is tested or trained on by

    python train_maml_system.py --name_of_args_json_file NEW.json --load_checkpoint ...safetensors \
        [--evaluate_on_test_set_only true]

Weights, norm statistics and inner learning rates are carried over; Adam's moments are not.
"""

import argparse
import codecs
import io
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment_parts.runs.checkpoints import save_checkpoint
from experiment_tools.parts.command import on_console
from utils.config import ExperimentConfig, load_config
from utils.errors import ConfigError, StorageError
from utils.files.atomic_files import read_regular
from utils.paths import command

if TYPE_CHECKING:
    from meta_learning.inner_loop.base import InnerLoopOptimizer

log = logging.getLogger(__name__)

NAMES = (
    (re.compile(r"classifier\.(?:module\.)?layer_dict\.conv(\d+)\.conv\.(weight|bias)"), r"network.block\1.conv.\2"),
    (re.compile(r"classifier\.(?:module\.)?layer_dict\.conv(\d+)\.norm_layer\.(\w+)"), r"network.block\1.norm.\2"),
    (re.compile(r"classifier\.(?:module\.)?layer_dict\.linear\.weights"), "network.head.weight"),
    (re.compile(r"classifier\.(?:module\.)?layer_dict\.linear\.bias"), "network.head.bias"),
)
"""Names of its tensors, and theirs here."""
RATES = "inner_loop_optimizer.names_learning_rates_dict."


def convert_checkpoint(config: ExperimentConfig, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint of the reference.

    Args:
        config: of the network.
    Returns:
        tensors and state, for `experiment_parts.runs.checkpoints.save_checkpoint`.
    Raises:
        StorageError: it cannot be read, or holds more than tensors and numbers.
        ConfigError: it is no checkpoint of the reference, or one of another network than the config's.
    """
    import torch

    from few_shot_learning_system import build_learner

    content = read_tensors_and_numbers(path)
    if not isinstance(content, dict) or not isinstance(content.get("network"), dict):
        raise ConfigError(f'{path}: not a checkpoint of "How to train your MAML in PyTorch": it has no "network"')
    for name, value in content["network"].items():
        is_tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_floating_point()
        if not isinstance(name, str) or not is_tensor:
            raise ConfigError(f'{path}: "{name}" of its network is {type(value).__name__}, but must be a named tensor')
    numbers = {key: content.get(key, 0) for key in ("current_iter", "best_val_acc")}
    for key, value in numbers.items():
        if not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
            raise ConfigError(f'{path}: "{key}" is {value!r}, but must be a number from 0 on')
    learner = build_learner(config, "cpu")
    tensors = _translated(content["network"], learner.inner_loop, config, path)
    try:
        learner.load_state_tensors(tensors, optimizer=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    iteration = int(numbers["current_iter"])
    state = {
        "epoch": iteration // config.total_iter_per_epoch,
        "iteration": iteration,
        "rows": [],
        "config": config.to_json_dict(),
        "converted_from": {"file": path.name, "best_val_accuracy": float(numbers["best_val_acc"])},
    }
    return tensors, state


def read_tensors_and_numbers(path: Path) -> Any:
    """Read a file of `torch.save` by torch's restricted reader, with numpy's numbers allowed beside tensors.

    Nothing else is looked up by name, so the file cannot run anything.

    Raises:
        StorageError: unreadable, or it names anything else.
    """
    import torch

    scalar = np.float64(0).__reduce__()[0]
    allowed = [
        np.dtype,
        codecs.encode,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *(getattr(np.dtypes, f"{kind}DType") for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
    ]
    try:
        data = read_regular(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"{path}: refused; it is damaged or holds more than tensors and numbers ({reason})"
        ) from error


def _translated(
    network: Mapping[str, Any], inner_loop: "InnerLoopOptimizer", config: ExperimentConfig, path: Path
) -> dict[str, Any]:
    import torch

    tensors = {}
    for name, value in network.items():
        if name.startswith(RATES):
            continue
        matches = [(pattern.fullmatch(name), new_name) for pattern, new_name in NAMES]
        found = [match.expand(new_name) for match, new_name in matches if match]
        if not found:
            raise ConfigError(f'{path}: tensor "{name}" is of no network of "How to train your MAML in PyTorch"')
        tensors[found[0]] = value
    rates = {
        name.removeprefix(RATES).removeprefix("module-"): value
        for name, value in network.items()
        if name.startswith(RATES)
    }
    wanted = [_reference_name(name) for name in inner_loop.names]
    if rates.keys() != set(wanted):
        differing = sorted(rates.keys() ^ set(wanted))
        raise ConfigError(
            f'{path}: adapts other parameters than the config says: "{differing[0]}"; give the config that it was '
            "trained with"
        )
    for name in wanted:
        if rates[name].dim() != 1 or len(rates[name]) < max(1, inner_loop.n_steps):
            raise ConfigError(
                f'{path}: "{RATES}{name}" has the shape {tuple(rates[name].shape)}, but must be a rate for each of '
                f"{inner_loop.n_steps} steps"
            )
    # The reference keeps one rate more than there are steps.
    tensors["inner_loop.learning_rates"] = torch.stack([rates[name][: inner_loop.n_steps] for name in wanted])
    if not config.learnable_per_layer_per_step_inner_loop_learning_rate:
        used = float(rates[wanted[0]][0])
        if abs(used - config.init_inner_loop_learning_rate) > 1e-6 * used:
            raise ConfigError(
                f'{path}: adapts with the rate {used:.6g}, but "init_inner_loop_learning_rate" is '
                f"{config.init_inner_loop_learning_rate}; set it to {used:.6g} in the config"
            )
    return tensors


def _reference_name(name: str) -> str:
    name = name.replace("head.weight", "linear.weights").replace("head.", "linear.")
    return f"layer_dict.{re.sub(r'^block', 'conv', name).replace('.norm.', '.norm_layer.')}".replace(".", "-")


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("convert_checkpoint"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="its config, converted")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="its file train_model_<epoch> or train_model_latest"
    )
    parser.add_argument("--output", type=Path, help="where the new one goes; never over a file that exists")
    options = parser.parse_args(arguments)
    config = load_config(options.config)
    output = options.output or options.checkpoint.with_name(options.checkpoint.name + ".safetensors")
    if output.exists():
        raise ConfigError(f"{output}: exists already and stays as it is; give another --output")
    tensors, state = convert_checkpoint(config, options.checkpoint)
    save_checkpoint(output, tensors, state)
    log.info("%s: iteration %d, %d tensors", output, state["iteration"], len(tensors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
