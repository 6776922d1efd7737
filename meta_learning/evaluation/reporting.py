"""What is reported of a learner: its parameters, and what they have become. JSON-able."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.norms.batch_norm import batch_norm_layers


def learner_description(meta_parameters: Mapping[str, Tensor], inner_loop: InnerLoopOptimizer) -> dict[str, Any]:
    """Return shapes and number of the meta-parameters, and the names of those that are adapted."""
    return {
        "meta_parameters": {name: list(value.shape) for name, value in meta_parameters.items()},
        "n_meta_parameters": sum(value.numel() for value in meta_parameters.values()),
        "adapted_parameters": list(inner_loop.names),
    }


def learned_state(
    meta_parameters: Mapping[str, Tensor], inner_loop: InnerLoopOptimizer, network: MetaNetwork
) -> dict[str, Any]:
    """Return inner learning rates, name -> [S], of Meta-SGD also their quantiles; per layer and norm row the mean of
    weights, biases and statistics; of what the method learns of its own, least value, mean and largest.
    """
    layers = {}
    for name, layer in batch_norm_layers(network).items():
        values = {key: getattr(layer, key).detach() for key in ("weight", "bias", "running_mean", "running_var")}
        summary = {key: torch.atleast_2d(value).mean(dim=1).cpu().tolist() for key, value in values.items()}
        layers[name] = summary | {"momentum": float(layer.momentum.detach())}
    learned = {
        name: [float(pick(value.detach())) for pick in (torch.min, torch.mean, torch.max)]
        for name, value in of_the_method(meta_parameters, network).items()
    }
    return inner_loop.snapshot() | {"batch_norm": layers} | ({"learned": learned} if learned else {})


def of_the_method(meta_parameters: Mapping[str, Tensor], network: MetaNetwork) -> dict[str, Tensor]:
    """Return meta-parameters that are no weights, inner rates, or norms' usual ones."""
    usual = ("network.", "inner_loop.learning_rates", "inner_loop.element_rates")
    found = {name: value for name, value in meta_parameters.items() if not name.startswith(usual)}
    for layer, norm in network.norm_layers().items():
        own = {key: value for key, value in norm.named_parameters() if key not in ("weight", "bias", "momentum")}
        found |= {f"network.{layer}.{key}": value for key, value in own.items() if value.requires_grad}
    return found
