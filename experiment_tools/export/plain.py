"""From a learner to a plain module that computes the same, without the axis of tasks.

Which statistics a batch norm of the plain module uses:

    transductive   those of the batch that it is given, as in the run
    running        the run's running statistics, the row of the last inner step
    support        the support set's, stored
    episodic       the moving average over the inner steps on the support set, stored

An adapter is merged into the weight and bias of the layer beside which it stands.

The initialisation has seen no support set: there, support and episodic use the batch, as the inner loop does with a
support set.
"""

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment_tools.export.network import Architecture, add_parameters, build_network
from few_shot_classifier.adapted_task import AdaptedLearner
from few_shot_learning_system import FewShotLearner
from meta_learning.networks.adapters.base import Adapter, adapters_of, is_norm
from meta_learning.networks.base import MetaNetwork, plain_names
from meta_learning.networks.foreign import BATCH_NORMS, ForeignNetwork
from meta_learning.networks.layers import below
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.norms.group_norm import MetaGroupNorm
from meta_learning.networks.norms.layer_norm import MetaLayerNorm
from meta_learning.networks.norms.task_norm import MetaTaskNorm2d
from meta_learning.networks.passes import Pass
from utils.config import ExperimentConfig
from utils.episodes.inputs import Inputs
from utils.errors import ConfigError
from utils.registry import BUILT_IN_BACKBONES, registered_backbone, user_code

Statistics = dict[str, dict[str, Tensor]]  # name of a norm layer -> buffer -> value


@dataclass(frozen=True)
class PlainNetwork:
    """A plain module in evaluation mode, what it was made from, and how to compare the two."""

    module: nn.Module
    architecture: Architecture | None
    """For `plain_networks.build_network`; None: the module is a plugin's."""
    original: Any
    """Function of examples (n, ...), as they go through episodes, that returns what the learner answers."""
    uses_batch: bool
    """Whether images are normalised together with the others of their batch."""
    has_head: bool
    inputs: Inputs
    """What the module is called with."""
    input_name: str
    """Of an input that has no name of its own, in files where it needs one."""


def plain_network(learner: FewShotLearner, adapted: AdaptedLearner | None, config: ExperimentConfig) -> PlainNetwork:
    """Return the network that classifies after the last inner step; without `adapted` the meta-learned initialisation.

    Raises:
        ConfigError: a backbone that has no plain form.
    """
    network: MetaNetwork = learner.network
    step = 0 if adapted is None else len(adapted.path) - 1
    of_episode = {} if adapted is None else adapted.path[step].params | adapted.path[step].fixed
    of_episode = {name: value.detach() for name, value in of_episode.items()}
    pass_ = Pass(max(step - 1, 0), learner.batch_norm_statistics)
    stored = _stored_statistics(network, adapted, of_episode, pass_)
    values, merged = _plain_values(learner, of_episode, pass_, stored, config)
    if adapted is not None:  # without outputs of no class
        values |= {name: values[name][: adapted.n_classes] for name in ("head.weight", "head.bias") if name in values}
    has_head = adapted is not None or not learner.head.is_made_per_episode
    if has_head and learner.head.temperature != 1:
        values |= {name: values[name] / learner.head.temperature for name in ("head.weight", "head.bias")}
    n_outputs = values["head.weight"].shape[0] if has_head else None
    module, architecture = _module_to_fill(network, config, stored, n_outputs)
    added = _fill(module, network, values, merged)
    if architecture is not None and added:
        architecture["added"] = added

    @torch.no_grad()
    def original(images: Tensor) -> Tensor:
        if adapted is not None:
            return adapted.logits(images, step)
        outputs = network if has_head else network.features
        return outputs(images[None], None, pass_)[0]

    batch_norms = {
        name for name, layer in network.norm_layers().items() if isinstance(layer, MetaBatchNorm2d | MetaTaskNorm2d)
    }
    uses_batch = bool(batch_norms - set(stored))
    inputs = (config.inputs, "examples") if config.inputs else (Inputs.of(config.example_shape), "images")
    return PlainNetwork(module.eval(), architecture, original, uses_batch, has_head, *inputs)


def _plain_values(
    learner: FewShotLearner, of_episode: dict[str, Tensor], pass_: Pass, stored: Statistics, config: ExperimentConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all parameters and stored statistics without the task axis, by name, and those of them into which an
    adapter has been merged.

    Args:
        of_episode: name -> (1, ...), what was adapted or made for the episode.
    """
    network: MetaNetwork = learner.network
    values = {name: value.detach() for name, value in network.named_parameters()}
    values |= {name: value[0] for name, value in of_episode.items()}
    for name, layer in network.norm_layers().items():
        _plain_norm(values, name, layer, pass_.step)
        values |= {f"{name}.{buffer}": value for buffer, value in stored.get(name, {}).items()}
    merged = _with_adapters(network, values, config)
    return values | merged, merged


def _module_to_fill(
    network: MetaNetwork, config: ExperimentConfig, stored: Statistics, n_outputs: int | None
) -> tuple[nn.Module, Architecture | None]:
    """Return a plain module, whose weights are still its own, and what it is built of; None: it is a plugin's."""
    if isinstance(network, ForeignNetwork):
        module, architecture = _module_of_plugin(network, config, set(stored), n_outputs), None
    elif config.backbone not in BUILT_IN_BACKBONES:
        raise ConfigError(
            f'backbone "{config.backbone}" of a plugin is a MetaNetwork, which has no plain form; export needs a '
            "torch.nn.Module"
        )
    else:
        architecture = _architecture(network, config, stored, n_outputs)
        module = build_network(architecture)
    return module, architecture


def _fill(
    module: nn.Module, network: MetaNetwork, values: dict[str, Tensor], merged: dict[str, Tensor]
) -> dict[str, list[int]]:
    """Load values into a plain module; returns name -> shape of what it lacked: a bias that merging has made, say."""
    tensors, built = plain_names(network, values), module.state_dict()
    added = {name: list(value.shape) for name, value in plain_names(network, merged).items() if name not in built}
    add_parameters(module, added)
    module.to(next(network.parameters()).dtype)
    names = module.state_dict()
    counts = {name: torch.zeros((), dtype=torch.int64) for name in names if name.endswith("num_batches_tracked")}
    module.load_state_dict({name: (tensors | counts)[name].cpu() for name in names})
    return added


@torch.no_grad()
def _with_adapters(network: MetaNetwork, values: dict[str, Tensor], config: ExperimentConfig) -> dict[str, Tensor]:
    """Return the weights and biases with which layers alone answer as they do together with their adapters.

    Raises:
        ConfigError: an adapter cannot be merged.
    """
    merged = {}
    for name, adapter in adapters_of(network).items():
        of_task, weight, bias = copy.deepcopy(adapter), f"{name}.weight", f"{name}.bias"
        of_task.load_state_dict(below(values, f"{name}.adapter"), strict=False)  # it may have buffers
        of_outputs = values[weight] if is_norm(network.get_submodule(name)) else values[weight].flatten(1)[:, 0]
        try:
            merged[weight], merged[bias] = of_task.merged(
                values[weight], values.get(bias, torch.zeros_like(of_outputs))
            )
        except NotImplementedError as error:
            raise ConfigError(
                f'"adapter_kind" {config.adapter_kind}: {type(adapter).__name__} cannot be merged into the layer '
                f"{name} (`merged` of {Adapter.__module__}.Adapter); classify with FewShotClassifier.from_experiment "
                "instead"
            ) from error
        if bias not in values and not merged[bias].any():
            del merged[bias]
    return merged


def _stored_statistics(
    network: MetaNetwork, adapted: AdaptedLearner | None, params: dict[str, Tensor], pass_: Pass
) -> Statistics:
    """Return what each norm layer whose answer does not depend on the batch normalises with."""
    stored: Statistics = {}
    of_support = {} if adapted is None else _support_statistics(network, adapted, params, pass_)
    for name, layer in network.norm_layers().items():
        kind = layer.statistics_of(pass_)
        if isinstance(layer, MetaBatchNorm2d) and kind == "running":
            row = min(pass_.step, layer.n_rows - 1)
            stored[name] = {
                f"running_{what}": getattr(layer, f"running_{what}").view(layer.n_rows, -1)[row]
                for what in ("mean", "var")
            }
        elif isinstance(layer, MetaBatchNorm2d) and kind == "episodic" and adapted is not None:
            n_filters = layer.running_mean.shape[-1]
            mean, var = adapted.path[-1].moving.get(name, (torch.zeros(n_filters), torch.ones(n_filters)))
            stored[name] = {"running_mean": mean, "running_var": var}
        elif isinstance(layer, MetaBatchNorm2d | MetaTaskNorm2d) and kind == "support" and adapted is not None:
            mean, var = of_support[name]
            size = torch.tensor(float(adapted.task.support_images.shape[1]), dtype=mean.dtype)
            batch_norm = isinstance(layer, MetaBatchNorm2d)
            stored[name] = (
                {"running_mean": mean, "running_var": var}
                if batch_norm
                else {"context_mean": mean, "context_var": var, "context_size": size}
            )
    return {
        name: {buffer: value.detach().clone() for buffer, value in values.items()} for name, values in stored.items()
    }


@torch.no_grad()
def _support_statistics(
    network: MetaNetwork, adapted: AdaptedLearner, params: dict[str, Tensor], pass_: Pass
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and variance of the support set before each norm layer, at the adapted parameters."""
    seen = {}
    with ExitStack() as stack:
        for name, layer in network.norm_layers().items():

            def remember(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                x = arguments[0]
                if x.dim() == 4:
                    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
                    seen[name] = (mean, var)

            stack.callback(layer.register_forward_pre_hook(remember).remove)
        if isinstance(network, ForeignNetwork):
            stack.callback(setattr, network, "together", network.together)
            network.together = False  # values seen inside a vmap are gone after it
        network.features(adapted.task.support_images, params, pass_)
    return seen


def _plain_norm(values: dict[str, Tensor], name: str, layer: MetaNorm, step: int) -> None:
    """Leave the row of this step of a norm layer's weight and bias."""
    values.pop(f"{name}.momentum", None)
    if isinstance(layer, MetaLayerNorm):
        return
    for which in ("weight", "bias"):
        value = values.get(f"{name}.{which}")
        if value is not None and value.dim() == 2:
            values[f"{name}.{which}"] = value[min(step, len(value) - 1)]


def _module_of_plugin(
    network: ForeignNetwork, config: ExperimentConfig, stored: set[str], n_outputs: int | None
) -> nn.Module:
    """Return a fresh module of the plugin whose batch norms use what ours do."""
    build, who = registered_backbone(config.backbone), f'backbone "{config.backbone}"'
    if build is None:
        raise ConfigError(
            f"{who} is an object that a Python program gave; export works for the project's backbones and those of a "
            "plugin"
        )
    if n_outputs is None:
        raise ConfigError(
            f'{who}: with "head" {config.head} the network has a head only once it is adapted; give --support'
        )
    ours = network.norm_layers()
    with user_code(f"{who}: building it"):
        module = copy.deepcopy(build(config, config.network_shape, n_outputs))
    for name, layer in module.named_modules():
        if not isinstance(layer, BATCH_NORMS):
            continue
        inner = f"body.{name}"
        if not isinstance(ours[inner], MetaBatchNorm2d):
            raise ConfigError(
                f'{who}: its batch norms were trained as "norm_layer" {config.norm_layer}, which the plain module '
                "does not have; "
                "such a run cannot be exported"
            )
        layer.track_running_stats = inner in stored
        if inner in stored and layer.running_mean is None:
            raise ConfigError(
                f'{who}: "{name}" keeps no running statistics (track_running_stats=False) in which to store others; '
                "remove that argument"
            )
        if inner not in stored:
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module


def _architecture(
    network: MetaNetwork, config: ExperimentConfig, stored: Statistics, n_outputs: int | None
) -> Architecture:
    norms = {name: _norm_architecture(layer, name in stored) for name, layer in network.norm_layers().items()}
    common: Architecture = {
        "backbone": config.backbone,
        "n_features": network.head.in_features,
        "n_outputs": n_outputs,
        "norms": norms,
    }
    if config.backbone == "mlp":
        sizes = [math.prod(config.example_shape), *config.mlp_hidden_sizes]
        return {"kind": "perceptron"} | common | {"sizes": sizes}
    if config.backbone in ("vgg", "conv4"):
        names = [f"block{index}" for index in range(len(network.stage_names))]
        blocks = [_block_plan(network.get_submodule(name)) for name in names]
        slope, average = (0.01, network.global_average) if config.backbone == "vgg" else (0.0, False)
        return (
            {"kind": "convolutional"}
            | common
            | {"blocks": blocks, "negative_slope": slope}
            | {"global_average": average, "feature_scale": network.feature_scale}
        )
    stem = (
        None
        if network.stem == "none"
        else {"convolution": _convolution_plan(network.conv1), "pools": network.stem == "torchvision"}
    )
    stages = [[_residual_plan(block) for block in network.get_submodule(name)] for name in network.layer_names]
    return {"kind": "residual"} | common | {"stem": stem, "stages": stages, "negative_slope": network.negative_slope}


def _block_plan(block: nn.Module) -> dict[str, Any]:
    conv = block.conv
    return {
        "n_inputs": conv.in_channels,
        "n_filters": conv.out_channels,
        "stride": conv.stride[0],
        "padding": conv.padding[0],
        "pools": block.pool,
        "warp": 0 if block.warp is None else block.warp.kernel_size[0],
    }


def _convolution_plan(conv: nn.Conv2d) -> list[int]:
    return [conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]]


def _residual_plan(block: nn.Module) -> dict[str, Any]:
    convolutions = [
        _convolution_plan(block.get_submodule(f"conv{number}")) for number in range(1, block.n_convolutions + 1)
    ]
    downsample = None if block.downsample is None else _convolution_plan(block.downsample[0])
    return {"convolutions": convolutions, "downsample": downsample, "pools": block.pools}


def _norm_architecture(layer: MetaNorm, stored: bool) -> dict[str, Any]:
    if isinstance(layer, MetaLayerNorm):
        return {"kind": "layer_norm", "shape": list(layer.normalized_shape), "eps": layer.eps}
    if isinstance(layer, MetaGroupNorm):
        return {"kind": "group_norm", "n_groups": layer.n_groups, "n_filters": layer.weight.shape[-1], "eps": layer.eps}
    kind = "batch_norm" if isinstance(layer, MetaBatchNorm2d) else "task_norm"
    if not isinstance(layer, MetaBatchNorm2d | MetaTaskNorm2d):
        raise ConfigError(f"the norm layer {type(layer).__name__} of a plugin has no plain form to export")
    return {"kind": kind, "n_filters": layer.weight.shape[-1], "stored": stored, "eps": layer.eps}
