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
from utils.errors import ConfigError
from utils.machine.packages import extras_command
from utils.paths import PACKAGE

FILES = {"safetensors": "model.safetensors", "torch_export": "network.pt2", "onnx": "network.onnx"}
"""Format -> file in the exported folder."""
BATCHES = (6, 3, 11)
"""Images per batch of the check; the first is the one that programs are made with."""
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


def random_images(shape: tuple[int, int, int], n_images: int, dtype: torch.dtype) -> Tensor:
    """Draw images (n, C, H, W), the same every time."""
    return torch.randn((n_images, *shape), generator=torch.Generator().manual_seed(n_images), dtype=torch.float64).to(
        dtype
    )


def write_safetensors(plain: PlainNetwork, folder: Path, metadata: dict[str, Any]) -> Callable[[Tensor], Tensor]:
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


def write_torch_export(plain: PlainNetwork, folder: Path, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Write a torch.export program for any number of images; returns the program as it is read again."""
    with _one_error("torch_export"):
        program = torch.export.export(plain.module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
        torch.export.save(program, folder / FILES["torch_export"])
        return torch.export.load(folder / FILES["torch_export"]).module()


def write_onnx(plain: PlainNetwork, folder: Path, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Write an ONNX model for any number of images; returns what runs it: onnxruntime, or onnx's own reference where
    that is missing.
    """
    path = folder / FILES["onnx"]
    with _one_error("onnx"):
        torch.onnx.export(
            plain.module, (example,), path, dynamo=True, input_names=["images"], output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("n")},), external_data=False, verbose=False,
        )  # fmt: skip
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    run: Callable[..., Any]
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run
    else:
        from onnx.reference import ReferenceEvaluator

        run = ReferenceEvaluator(str(path)).run
    return lambda images: torch.from_numpy(np.asarray(run(None, {"images": images.numpy()})[0]))


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


def largest_difference(
    plain: PlainNetwork, exported: Callable[[Tensor], Tensor], shape: tuple[int, int, int], what: str
) -> float:
    """Return the largest difference of an output between exported and original, over random batches of several sizes.

    Raises:
        ConfigError: they do not agree.
    """
    dtype, largest, scale = next(plain.module.parameters()).dtype, 0.0, 0.0
    for n_images in BATCHES:
        images = random_images(shape, n_images, dtype)
        with torch.no_grad():
            expected, found = plain.original(images).cpu(), exported(images)
        largest, scale = max(largest, (expected - found).abs().max().item()), max(scale, expected.abs().max().item())
    if not largest <= TOLERANCE * max(scale, 1.0):
        raise ConfigError(
            f"{what}: the exported network differs from the original by {largest:.2g} on random input (largest output "
            f"{scale:.2g})"
        )
    return largest
