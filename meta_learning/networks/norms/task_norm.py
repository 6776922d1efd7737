"""TaskNorm: statistics between those of the context set and those of each image."""

from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.networks.layers import Parameters
from meta_learning.networks.norms.base import AffineNorm
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from utils.registry import register_norm_layer


class MetaTaskNorm2d(AffineNorm):
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


def build_task_norm(shape: tuple[int, int, int], norm: NormChoice) -> MetaTaskNorm2d:
    """Build the layer of a feature map (F, H, W)."""
    return MetaTaskNorm2d(shape[0], **norm.affine)


register_norm_layer("task_norm", build_task_norm, meaning="TaskNorm-I", statistics=("support", "transductive"))
