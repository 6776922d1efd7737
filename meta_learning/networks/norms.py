"""Norm layers over B tasks at once, and what their statistics are made from.

Letters: B tasks, n images per task, F filters, H x W pixels, R rows (one per inner step). The task axis is folded
into the channels, (n, B*F, H, W).

Which images the statistics of batch norm come from is a choice of the pass:

    transductive   the set that is classified: support images for support, query images for query
    running        while meta-training as above; at evaluation the per-step running statistics, for both sets
    support        query images go through one forward with the support images and are normalised with their statistics
    episodic       support as above; query with a moving average, from (0, 1), over the support passes of the episode
    mixed          each layer has a choice of its own among these
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.batch_norm import MetaBatchNorm2d, MetaNorm, _AffineNorm
from meta_learning.networks.layers import Parameters, given_or_own
from meta_learning.networks.passes import Pass
from utils.errors import ConfigError


class MetaTaskNorm2d(_AffineNorm):
    """TaskNorm-I: statistics between those of the context set and those of each image, the mix learned.

        alpha = sigmoid(a k + b),  k images in the context
        mean  = alpha mean_c + (1 - alpha) mean_i
        var   = alpha (var_c + (mean_c - mean)^2) + (1 - alpha) (var_i + (mean_i - mean)^2)

    The context is the support set ("support": a query's answer depends on no other query) or the set that is classified
    ("transductive").

    Source: Bronskill et al. 2020, section 4, with instance normalisation as the auxiliary.
    """

    sees_other_images = True

    def __init__(self, n_filters: int, **affine: Any) -> None:
        super().__init__(n_filters, **affine)
        self.alpha_scale = nn.Parameter(torch.tensor(0.0))
        self.alpha_offset = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*F, H, W); "weight" and "bias" are (B, F) where the inner loop adapts them."""
        pass_ = pass_ or Pass()
        weight, bias = self.affine(params, n_tasks, pass_, name)
        if not pass_.n_support:
            return self._mixed(x, x, weight, bias)
        if self.choice(pass_).query_needs_support:
            return self._mixed(x, x[: pass_.n_support], weight, bias)
        parts = x[: pass_.n_support], x[pass_.n_support :]
        return torch.cat([self._mixed(part, part, weight, bias) for part in parts])

    def _mixed(self, x: Tensor, context: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.alpha_scale * len(context) + self.alpha_offset)
        context_var, context_mean = torch.var_mean(context, dim=(0, 2, 3), correction=0)  # (B*F,)
        image_var, image_mean = torch.var_mean(x, dim=(2, 3), correction=0)  # (n, B*F)
        mean = alpha * context_mean + (1 - alpha) * image_mean
        var = alpha * (context_var + (context_mean - mean) ** 2) + (1 - alpha) * (image_var + (image_mean - mean) ** 2)
        scale = weight * torch.rsqrt(var + self.eps)  # (n, B*F)
        return x * scale[..., None, None] + (bias - mean * scale)[..., None, None]


class MetaGroupNorm(_AffineNorm):
    """`nn.GroupNorm` for B tasks at once: each image is normalised over groups of filters. Wu & He 2018."""

    def __init__(self, n_groups: int, n_filters: int, **affine: Any) -> None:
        super().__init__(n_filters, **affine)
        self.n_groups = n_groups

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*F, H, W); "weight" and "bias" are (B, F) where the inner loop adapts them."""
        weight, bias = self.affine(params, n_tasks, pass_ or Pass(), name)
        # B*F channels in B*G neighbouring groups: none reaches over two tasks.
        return F.group_norm(x, n_tasks * self.n_groups, weight, bias, self.eps)


class MetaLayerNorm(nn.LayerNorm, MetaNorm):
    """`nn.LayerNorm` over (C, H, W) of each image, for B tasks at once. Its weight stays 1, as in the reference."""

    def __init__(self, shape: tuple[int, int, int], *, learn_bias: bool = True) -> None:
        super().__init__(shape)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(learn_bias)

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*C, H, W) image by image; "bias" is (B, C, H, W) where it is adapted."""
        unfolded = x.unflatten(1, (n_tasks, -1))  # (n, B, C, H, W)
        # Without weight and bias, which differ from task to task; torch's function takes one for all.
        out = F.layer_norm(unfolded, self.normalized_shape, eps=self.eps)
        out = out * given_or_own(self, params, "weight", n_tasks) + given_or_own(self, params, "bias", n_tasks)
        return out.flatten(1, 2)


@dataclass(frozen=True)
class NormChoice:
    """Which norm a network is built with; the meanings are those of the config keys."""

    layer: str = "batch_norm"
    """batch_norm, layer_norm, group_norm or task_norm."""
    n_rows: int = 1
    """R, rows of batch norm's running statistics."""
    n_parameter_rows: int | None = None
    """Rows of weights and biases; None: R."""
    learn_weight: bool = True
    learn_bias: bool = True
    momentum: float = 0.1
    learnable_momentum: bool = False
    n_groups: int = 8

    def build(self, shape: tuple[int, int, int]) -> MetaNorm:
        """Build the norm layer of a feature map (F, H, W).

        Raises:
            ConfigError: the groups of a group norm do not divide the filters.
        """
        affine = {"learn_weight": self.learn_weight, "learn_bias": self.learn_bias}
        n_parameter_rows = self.n_rows if self.n_parameter_rows is None else self.n_parameter_rows
        if self.layer == "layer_norm":
            return MetaLayerNorm(shape, learn_bias=self.learn_bias)
        if self.layer == "group_norm":
            if shape[0] % self.n_groups:
                raise ConfigError(
                    f'"norm_groups" {self.n_groups} does not divide the {shape[0]} filters of a layer; choose a divisor'
                )
            return MetaGroupNorm(self.n_groups, shape[0], n_parameter_rows=n_parameter_rows, **affine)
        if self.layer == "task_norm":
            return MetaTaskNorm2d(shape[0], n_parameter_rows=n_parameter_rows, **affine)
        return MetaBatchNorm2d(
            shape[0], n_rows=self.n_rows, n_parameter_rows=n_parameter_rows, momentum=self.momentum,
            learnable_momentum=self.learnable_momentum, **affine,
        )  # fmt: skip
