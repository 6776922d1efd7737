"""What every adapter is: a small module beside one layer of a network, which changes what the layer answers.

    y = a(x, layer(x))

Its parameters become the network's own, called <layer>.adapter.<name>, so that all that the learner does with
parameters, it does with them: a network whose layers have adapters adapts those, and its head, and leaves the other
weights of the body to the outer loop. The layers' weights are then the same for all tasks, and no inner gradient is
computed for them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.layers import below, fold_tasks, matches
from meta_learning.networks.norms.base import MetaNorm
from utils.errors import ConfigError
from utils.registry import made
from utils.words import some_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Adapter(nn.Module):
    """Changes the outputs of one layer. A plain module of one task, which knows of no others.

    Args:
        layer: which stays as it is.
    """

    adapts: tuple[str, ...] = ()
    """Its parameters that the inner loop adapts. One without `requires_grad` begins as it is made in every episode; all
    others are meta-learned, adapted or not."""

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Return whether it can stand beside a layer."""
        return isinstance(layer, nn.Linear) or is_plain_convolution(layer)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return what the layer is to answer.

        Args:
            x: (n, ...), what it was given.
            out: (n, ...), what it answers.
        Returns:
            The shape of `out`.
        """
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and bias with which the layer alone answers as the two together; for export.

        Args:
            weight, bias: of the layer; a bias of zeros where it has none.
        Raises:
            NotImplementedError: no layer of its kind does.
        """
        raise NotImplementedError


def is_plain_convolution(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution of all channels with zeros around the image."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and layer.padding_mode == "zeros"


def convolution_like(layer: nn.Module, *arguments: Any, **named: Any) -> nn.Module:
    """Return a plain convolution without bias, of as many dimensions as the layer has."""
    kind = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    return kind(*arguments, bias=False, **named)


def adapters_of(network: nn.Module) -> dict[str, Adapter]:
    """Return name of the layer -> its adapter."""
    named = network.named_modules()
    return {name.removesuffix(".adapter"): module for name, module in named if isinstance(module, Adapter)}


def add_adapters(
    network: MetaNetwork, kind: str, make: Callable[..., Adapter], targets: tuple[str, ...],
    examples: Tensor, **own: Any,
) -> None:  # fmt: skip
    """Put adapters beside the layers of a body that `targets` name.

    Args:
        kind: the value of `adapter_kind`.
        make: a subclass of `Adapter`, called as make(layer, **own).
        targets: patterns, as of `frozen_layers`.
        examples: (n, ...), on which to see whether the layers are called.
    Raises:
        ConfigError: a pattern matches no layer that the adapter fits, or the network computes one without calling it.
    """
    if not (isinstance(make, type) and issubclass(make, Adapter)):
        raise ConfigError(f'adapter_kind "{kind}" is {make!r}, but must be a subclass of {__name__}.Adapter')
    layers = {
        name: layer for name, layer in network.named_modules() if name.split(".")[0] != "head" and make.fits(layer)
    }
    own_parameter = next(network.parameters())
    called = _called(layers, partial(network.features, examples[None].to(own_parameter)))
    for pattern in targets:
        if not any(matches(pattern, name) for name in layers):
            raise ConfigError(
                f'"adapter_targets": "{pattern}" matches no layer of the body that "adapter_kind" {kind} fits; those '
                f"are {some_of(called, 12) or '(none)'}"
            )
    chosen = {name: layer for name, layer in layers.items() if any(matches(pattern, name) for pattern in targets)}
    if idle := [name for name in chosen if name not in called]:
        raise ConfigError(
            f'"adapter_targets": the network takes the weights of {some_of(idle, 12)} without calling the layer, as '
            "torch's attention does with its projections, so that no adapter can stand beside it; name some of those "
            f"that it calls: {some_of(called, 12) or '(none)'}"
        )
    for name, layer in chosen.items():
        if hasattr(layer, "adapter"):
            raise ConfigError(f'"adapter_targets": the layer {name} has an "adapter" of its own; rename that')
        layer.adapter = made("adapter_kind", kind, Adapter, make, layer, **own).to(own_parameter)
        layer.register_forward_hook(_adapt)
        _check_adapted_names(kind, layer.adapter)


def _called(layers: Mapping[str, nn.Module], forward: Callable[[], object]) -> list[str]:
    """Return the names of the layers that a forward calls."""
    called: set[str] = set()
    watches = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    with torch.no_grad():
        forward()
    for watch in watches:
        watch.remove()
    return [name for name in layers if name in called]


def _check_adapted_names(kind: str, adapter: Adapter) -> None:
    names = [name for name, _ in adapter.named_parameters()]
    if not adapter.adapts or not set(adapter.adapts) <= set(names):
        raise ConfigError(
            f'adapter_kind "{kind}": `adapts` of {type(adapter).__name__} is {adapter.adapts!r}, but must name some of '
            f"its parameters: {', '.join(names) or '(none)'}"
        )


def _adapt(layer: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor:
    """Let a layer's adapter change what it answers; a forward hook."""
    if len(arguments) < 3:  # a module of a user's, which sees one task
        return layer.adapter(arguments[0], out)
    x, params, n_tasks = arguments[:3]
    given = below(params, "adapter") or {}
    of_task = torch.vmap(lambda given, x, out: functional_call(layer.adapter, given, (x, out)))
    if isinstance(layer, nn.Linear):
        return of_task(given, x, out)
    x, out = (value.unflatten(1, (n_tasks, -1)).transpose(0, 1) for value in (x, out))  # (B, n, C, H, W)
    return fold_tasks(of_task(given, x, out))


def output_channels(layer: nn.Module) -> tuple[int, int]:
    """Return how many channels the outputs of a layer have, and in which dimension."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, -1
    if isinstance(layer, CONVOLUTIONS):
        return layer.out_channels, 1
    if isinstance(layer, nn.LayerNorm):  # over (C, H, W) in our networks, over (D,) in a transformer
        return layer.normalized_shape[0], 1 if len(layer.normalized_shape) > 1 else -1
    return layer.weight.shape[-1], 1


def is_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a norm with a weight per channel."""
    return isinstance(layer, MetaNorm) and getattr(layer, "weight", None) is not None
