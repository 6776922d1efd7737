"""Write a plain network as safetensors, torch.export program or ONNX, and measure how far each is from the original."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment_tools.export.network import load_network
from experiment_tools.export.plain import PlainNetwork
from utils.episodes.inputs import Arguments
from utils.errors import ConfigError
from utils.machine.packages import extras_command
from utils.paths import PACKAGE

FILES = {"safetensors": "model.safetensors", "torch_export": "network.pt2", "onnx": "network.onnx"}
"""Format -> file in the exported folder."""
BATCHES = (6, 3, 11)
"""Examples per batch of the check; the first is the one that programs are made with."""
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit, that other kernels and another order of sums explain
in float32.
"""


def check_formats(formats: list[str]) -> None:
    """Raise ConfigError where the library of a format is not installed."""
    if "onnx" not in formats:
        return
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--formats onnx needs {' and '.join(missing)}: pip install {' '.join(missing)} onnxruntime "
            f"({extras_command('onnx') if PACKAGE else 'requirements-extras.txt'})"
        )


def made_up_examples(plain: PlainNetwork, n_examples: int) -> Tensor:
    """Draw examples (n, ...) as they go through episodes, the same every time."""
    return torch.from_numpy(plain.inputs.made_up(n_examples)).to(next(plain.module.parameters()).dtype)


def write_safetensors(plain: PlainNetwork, folder: Path, metadata: dict[str, Any]) -> Callable[..., Tensor]:
    """Write the weights and config.json; returns the network as it is read again."""
    from safetensors.torch import load_file, save_file

    save_file(
        {name: value.detach().clone().contiguous() for name, value in plain.module.state_dict().items()},
        folder / FILES["safetensors"],
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plain.architecture is None:
        plain.module.load_state_dict(load_file(folder / FILES["safetensors"]))
        return plain.module
    return load_network(folder)


def write_torch_export(plain: PlainNetwork, folder: Path) -> Callable[..., Tensor]:
    """Write a torch.export program for any number of examples; returns the program as it is read again."""
    arguments, sizes = _traced_with(plain)
    with _one_error("torch_export"):
        program = torch.export.export(plain.module, *arguments, dynamic_shapes=sizes)
        torch.export.save(program, folder / FILES["torch_export"])
        return torch.export.load(folder / FILES["torch_export"]).module()


def write_onnx(plain: PlainNetwork, folder: Path) -> Callable[..., Tensor]:
    """Write an ONNX model for any number of examples; returns what runs it: onnxruntime, or onnx's own reference where
    that is missing.
    """
    path = folder / FILES["onnx"]
    (by_position, by_name), sizes = _traced_with(plain)
    names = list(by_name) or [f"{plain.input_name}{place or ''}" for place in range(len(by_position))]
    with _one_error("onnx"):
        torch.onnx.export(
            plain.module, by_position, path, kwargs=by_name, dynamo=True, dynamic_shapes=sizes,
            input_names=names, output_names=["outputs"], external_data=False, verbose=False,
        )  # fmt: skip
    return _onnx_runner(path)


def _traced_with(plain: PlainNetwork) -> tuple[Arguments, tuple[dict[int, Any], ...]]:
    """Return the arguments with which a program is made, and for each that its first side is any n."""
    n, arguments = torch.export.Dim("n"), plain.inputs.arguments(made_up_examples(plain, BATCHES[0]))
    return arguments, ({0: n},) * (len(arguments[0]) + len(arguments[1]))


def _onnx_runner(path: Path) -> Callable[..., Tensor]:
    run: Callable[..., Any]
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run, names = session.run, [given.name for given in session.get_inputs()]
    else:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(path))
        run, names = evaluator.run, evaluator.input_names

    def outputs(*by_position: Tensor, **by_name: Tensor) -> Tensor:
        given = dict(zip(names, by_position, strict=False)) | by_name
        return torch.from_numpy(np.asarray(run(None, {name: value.numpy() for name, value in given.items()})[0]))

    return outputs


@contextlib.contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Keep torch's chatter down and turn what it cannot trace into one error.

    Raises:
        ConfigError: any exception inside: a network may do whatever Python can.
    """
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._dynamo")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"the network cannot be exported as {what}: {type(error).__name__}: {reason[:300]}\n"
            "A forward that loops or branches on values cannot be traced; --formats safetensors keeps its weights"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def largest_difference(plain: PlainNetwork, exported: Callable[..., Tensor], what: str) -> float:
    """Return the largest difference of an output between exported and original, over random batches of several sizes.

    Raises:
        ConfigError: they do not agree.
    """
    largest, scale = 0.0, 0.0
    for n_examples in BATCHES:
        examples = made_up_examples(plain, n_examples)
        by_position, by_name = plain.inputs.arguments(examples)
        with torch.no_grad():
            expected, found = plain.original(examples).cpu(), exported(*by_position, **by_name)
        largest, scale = max(largest, (expected - found).abs().max().item()), max(scale, expected.abs().max().item())
    if not largest <= TOLERANCE * max(scale, 1.0):
        raise ConfigError(
            f"{what}: the exported network differs from the original by {largest:.2g} on random input (largest output "
            f"{scale:.2g})"
        )
    return largest
