"""What every backbone is to the learner."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.networks.layers import EpisodeHead, MetaConv2d, MetaLinear, Parameters, below
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.passes import Pass


class MetaNetwork(nn.Module):
    """A body that turns images into features and a linear head on top of them, for B tasks at once.

    A backbone sets `head` and defines `features`; its parameters have the names of a plain `nn.Module`.

    Attributes:
        head: `MetaLinear`, or `EpisodeHead` where each episode brings its head.
        stage_names: submodules in the order of the forward pass, for choices that are made per block.
        uses_dropout: whether training passes need the seeds of the episodes.
        compared_as: what the numbers are of which nearest neighbours can be asked; empty where a distance means
            nothing, as of ids.
        plain_prefixes: what parameter names begin with here -> in the plain module of another library or a user,
            whose names the saved tensors then have.
    """

    head: MetaLinear | EpisodeHead
    stage_names: Sequence[str] = ()
    uses_dropout: bool = False
    compared_as: str = "pixels"
    plain_prefixes: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_to_plain_names)
        self.register_load_state_dict_pre_hook(_from_plain_names)

    def prepare(self, images: Tensor) -> Any:
        """Return the images (B, n, C, H, W) in the form in which `features` takes them fastest, for many passes over
        the same ones.
        """
        return images

    def features(self, images: Any, params: Parameters | None = None, pass_: Pass | None = None) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W), or of what `prepare` made of them."""
        raise NotImplementedError

    def classify(self, features: Tensor, params: Parameters | None = None) -> Tensor:
        """Return logits (B, n, N) of features (B, n, D)."""
        return self.head(features, below(params, "head"), features.shape[0])

    def forward(self, images: Tensor, params: Parameters | None = None, pass_: Pass | None = None) -> Tensor:
        """Classify.

        Args:
            images: (B, n, C, H, W).
            params: name -> (B, ...); names that are missing, or None, mean the network's own parameters.
        Returns:
            logits (B, n, N).
        """
        return self.classify(self.features(images, params, pass_), params)

    def norm_layers(self) -> dict[str, MetaNorm]:
        """Return name -> norm layer, in the order of the forward pass."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MetaNorm)}

    def needs_support(self, pass_: Pass) -> bool:
        """Return whether a pass of query images must bring the support images along."""
        return any(layer.needs_support(pass_) for layer in self.norm_layers().values())

    def is_alike_at_every_step(self, pass_: Pass) -> bool:
        """Return whether passes of the same images at the same parameters give the same features in each inner step."""
        if pass_.dropout_seeds is not None:
            return False  # every step drops other activations
        layers = self.norm_layers().values()
        if any(layer.choice(pass_).moves_within_episode for layer in layers):
            return False  # every support pass moves the average that the query is normalised with
        # A norm with a row per step uses another one in the next step. Layer norm's weights are (C, H, W), no rows.
        rows = (value for layer in layers if not isinstance(layer, nn.LayerNorm)
                for value in (*layer.parameters(), *layer.buffers()))  # fmt: skip
        return all(value.dim() < 2 for value in rows)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights: Xavier-uniform convolutions and head, zero biases."""
        for module in self.modules():
            if isinstance(module, (MetaConv2d, MetaLinear)):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def make_head(n_features: int, n_way: int | None) -> MetaLinear | EpisodeHead:
    """Return the head of a network with D features; without N, one whose weights each episode brings."""
    return EpisodeHead(n_features) if n_way is None else MetaLinear(n_features, n_way)


def initialise_kaiming(network: MetaNetwork, generator: torch.Generator, negative_slope: float = 0.0) -> None:
    """Draw the initial weights: Kaiming-normal convolutions (fan out), zero biases; the head uniform in +-1/sqrt(D),
    as torch's.

    Source: He et al. 2015, equation 14; torchvision's ResNet.
    """
    for module in network.modules():
        if isinstance(module, MetaConv2d):
            # fan_out: the backward pass keeps its scale; torchvision's choice, beside torch's default fan_in.
            nn.init.kaiming_normal_(module.weight, negative_slope, mode="fan_out", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, MetaLinear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def plain_names(network: MetaNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors called as in the network, under the names that saved ones have."""
    state = dict(tensors)
    _rename(state, "", network.plain_prefixes)
    return state


def _to_plain_names(network: MetaNetwork, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    _rename(state, prefix, network.plain_prefixes)


def _from_plain_names(network: MetaNetwork, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let the state dict of a plain module load: its names become ours, and its counts of batches, which nothing
    reads, go.
    """
    for name in [name for name in state if name.startswith(prefix) and name.endswith(".num_batches_tracked")]:
        del state[name]
    _rename(state, prefix, {plain: own for own, plain in network.plain_prefixes.items()})


def _rename(state: dict[str, Tensor], prefix: str, new_start: Mapping[str, str]) -> None:
    """Replace the longest start of a name that is in the table, below `prefix`; the order stays."""
    for name in [name for name in state if name.startswith(prefix)]:
        value, inside = state.pop(name), name[len(prefix) :]
        start = max((start for start in new_start if inside.startswith(start)), key=len, default="")
        state[prefix + new_start.get(start, "") + inside[len(start) :]] = value
