"""What every backbone is to the learner."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meta_learning.layers import EpisodeHead, MetaConv2d, MetaLinear, Parameters, below
from meta_learning.norm_layers import MetaNorm, Pass


class MetaNetwork(nn.Module):
    """A body that turns images into features and a linear head on top of them, for B tasks at once.

    A backbone sets `head` and defines `features`; its parameters have the names of a plain `nn.Module`.

    Attributes:
        head: `MetaLinear`, or `EpisodeHead` where each episode brings its head.
        stage_names: submodules in the order of the forward pass, for choices that are made per block.
        uses_dropout: whether training passes need the seeds of the episodes.
    """

    head: MetaLinear | EpisodeHead
    stage_names: Sequence[str] = ()
    uses_dropout: bool = False

    def features(self, images: Tensor, params: Parameters | None = None, mode: Pass | None = None) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W)."""
        raise NotImplementedError

    def classify(self, features: Tensor, params: Parameters | None = None) -> Tensor:
        """Return logits (B, n, N) of features (B, n, D)."""
        return self.head(features, below(params, "head"), features.shape[0])

    def forward(self, images: Tensor, params: Parameters | None = None, mode: Pass | None = None) -> Tensor:
        """Classify.

        Args:
            images: (B, n, C, H, W).
            params: name -> (B, ...); names that are missing, or None, mean the network's own parameters.
        Returns:
            logits (B, n, N).
        """
        return self.classify(self.features(images, params, mode), params)

    def norm_layers(self) -> dict[str, MetaNorm]:
        """Name -> norm layer, in the order of the forward pass."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MetaNorm)}

    def needs_support(self, mode: Pass) -> bool:
        """Tell whether a pass of query images must bring the support images along."""
        return any(layer.needs_support(mode) for layer in self.norm_layers().values())

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights: Xavier-uniform convolutions and head, zero biases."""
        for module in self.modules():
            if isinstance(module, (MetaConv2d, MetaLinear)):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
