"""Pretrained weights for the body of a network, from a safetensors file."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from meta_learning.networks.base import MetaNetwork
from utils.errors import ConfigError

log = logging.getLogger(__name__)

OF_OUR_NORMS_ALONE = ("momentum", "alpha_scale", "alpha_offset")
"""Parameters of norm layers that no plain module has; where a file lacks them, they start as ever."""
MOST_DIFFERENCES_SHOWN = 12


@torch.no_grad()
def load_initial_weights(network: MetaNetwork, path: Path) -> None:
    """Start the body of a network from the tensors of a file; the head stays as it is.

    The names are those that the network is saved with, for ResNets torchvision's; a checkpoint of this project will
    do, too. Where norms have a row per inner step, one row in the file serves all.

    Raises:
        ConfigError: the file cannot be read, or a name or shape of the body differs; all differences are listed.
    """
    try:
        if path.is_fifo():  # it would be waited for
            raise OSError("no regular file")
        given = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f'"initial_weights" {path} cannot be read ({error}); give a safetensors file, which torch tensors become '
            "by safetensors.torch.save_file(model.state_dict(), path), by a path from here or from the folder of the "
            "runs, or a name that pretrained/index.json has"
        ) from error
    if any(name.startswith("network.") for name in given):
        given = {name.removeprefix("network."): value for name, value in given.items() if name.startswith("network.")}
    head = network.plain_prefixes.get("head.", "head.")
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(head)}
    given = {
        name: value
        for name, value in given.items()
        if not name.startswith(head) and not name.endswith(".num_batches_tracked")
    }
    differences = [
        text for name in own.keys() | given.keys() if (text := _difference(name, own.get(name), given.get(name)))
    ]
    if differences:
        shown = "".join(f"\n  {text}" for text in sorted(differences)[:MOST_DIFFERENCES_SHOWN])
        more = len(differences) - MOST_DIFFERENCES_SHOWN
        raise ConfigError(
            f'"initial_weights" {path} does not fit the network that this config builds:{shown}'
            + (f"\n  and {more} more" if more > 0 else "")
            + f'\nGive the file of the same network, or the "backbone" that it is of, its "cnn_num_filters", and '
            'where norms have other rows its "number_of_training_steps_per_iter" and "per_step_bn_statistics"; the '
            f"head ({head}*) is left out"
        )
    for name, value in given.items():
        own[name].copy_(value.expand(own[name].shape))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()  # a name of the index may have had another file once
    log.info("initial_weights %s: %d tensors of the body; the head starts as ever; sha256 %s", path, len(given), digest)


def _difference(name: str, own: Tensor | None, given: Tensor | None) -> str | None:
    if own is None:
        return f"{name}: in the file alone"
    if given is None:
        return None if name.rpartition(".")[2] in OF_OUR_NORMS_ALONE else f"{name}: missing in the file"
    a_row_for_all = own.dim() == 2 and given.shape == own.shape[1:]
    if given.shape != own.shape and not a_row_for_all:
        return f"{name}: {tuple(given.shape)} in the file, {tuple(own.shape)} here"
    return None
