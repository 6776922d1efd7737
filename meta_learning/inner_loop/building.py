"""From a config to the parameters that the inner loop adapts, and to the rule that adapts them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.networks.adapters.base import adapters_of
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.layers import EpisodeHead, matches
from utils.config import ExperimentConfig
from utils.errors import ConfigError
from utils.registry import make_chosen


def adapted_shapes(network: MetaNetwork, config: ExperimentConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what the inner loop adapts; the rates of a head made per episode are shared over classes.

    Raises:
        ConfigError: a pattern of `frozen_layers` matches nothing, or nothing is left to adapt.
    """
    shapes = _adaptable_shapes(network, with_norms=config.enable_inner_loop_optimizable_bn_params)
    every_name = [*dict(network.named_parameters()), *shapes]
    for pattern in config.frozen_layers:
        if not any(matches(pattern, name) for name in every_name):
            raise ConfigError(
                f'"frozen_layers": "{pattern}" matches no parameter; layers and parameters are, for example, '
                f"{', '.join(dict.fromkeys(part for name in every_name for part in (name.split('.')[0], name)))}"
            )
    kept = {
        name: shape
        for name, shape in shapes.items()
        if config.adapted_parameters in ("all", "head" if name.startswith("head.") else "body")
        and not any(matches(pattern, name) for pattern in config.frozen_layers)
    }
    if config.number_of_training_steps_per_iter == 0:
        return {}
    if not kept:
        raise ConfigError(
            '"frozen_layers" and "adapted_parameters" leave nothing for the inner loop to adapt; free some layers'
        )
    return kept


def _adaptable_shapes(network: MetaNetwork, *, with_norms: bool) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what an inner loop may adapt, if a config leaves it to it.

    Args:
        with_norms: weights and biases of norm layers, too.
    """
    # As in the reference the outer loop alone learns norm layers, unless the key frees weight and bias. What else they
    # learn (TaskNorm's mix, a momentum) is never adapted.
    adapted_in_norms = ("weight", "bias") if with_norms else ()
    norm_names = {
        f"{layer}.{name}" for layer, norm in network.norm_layers().items() for name, _ in norm.named_parameters()
    }
    never = {
        f"{name}.{key}"
        for name, module in network.named_modules()
        if getattr(module, "is_never_adapted", False)
        for key, _ in module.named_parameters()
    }
    adapters = adapters_of(network)
    of_adapters = {
        f"{layer}.adapter.{name}": name in adapter.adapts
        for layer, adapter in adapters.items()
        for name, _ in adapter.named_parameters()
    }

    def may_adapt(name: str, parameter: Tensor) -> bool:
        if name in never:
            return False
        if name in of_adapters:  # also one that is not learned: it begins alike in every episode
            return of_adapters[name]
        if name in norm_names:
            return parameter.requires_grad and name.rsplit(".", 1)[1] in adapted_in_norms
        return parameter.requires_grad and (not adapters or name.startswith("head."))

    named = network.named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in named if may_adapt(name, parameter)}
    if isinstance(network.head, EpisodeHead):
        shapes |= {"head.weight": (network.head.in_features,), "head.bias": ()}
    return shapes


def build_inner_loop(
    config: ExperimentConfig, shapes: Mapping[str, Sequence[int]], given: Callable[..., Any] | None = None
) -> InnerLoopOptimizer:
    """Build the inner-loop optimiser of a config, or what `given` makes, for parameters of these shapes.

    Raises:
        ConfigError: it cannot be made, or is none.
    """
    return make_chosen(
        config, "inner_loop_optimizer", given, InnerLoopOptimizer, shapes, config.init_inner_loop_learning_rate,
        config.number_of_training_steps_per_iter,
        learning_rates=_form_of_rates(config), head_learning_rate=config.init_head_inner_loop_learning_rate,
        weight_decay=config.inner_loop_weight_decay, clip_norm=config.inner_loop_gradient_clip_norm,
        clamp=config.inner_loop_gradient_clamp, dtype=getattr(torch, config.parameter_format),
    )  # fmt: skip


def _form_of_rates(config: ExperimentConfig) -> str:
    if config.learnable_per_layer_per_step_inner_loop_learning_rate:
        return "per_layer_per_step"
    return (
        "fixed" if config.learnable_inner_loop_learning_rates == "none" else config.learnable_inner_loop_learning_rates
    )
