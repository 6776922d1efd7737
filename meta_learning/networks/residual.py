"""Residual networks as functional meta-networks: ResNet-10 and -12 of the few-shot literature, torchvision's
ResNet-18, -34 and -50.

Parameters have torchvision's names: conv1.weight, bn1.weight, layer1.0.conv1.weight, layer1.0.downsample.0.weight,
..., and saved the head is fc.weight and fc.bias, so that a state dict of torchvision loads.

Letters: B tasks, n images per task, C channels, H x W pixels, F filters, N way, D features.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.base import MetaNetwork, initialise_kaiming, make_head
from meta_learning.networks.convolutional import pool, pooled
from meta_learning.networks.dropout import drop
from meta_learning.networks.layers import MetaConv2d, Parameters, below, fold_tasks, unfold_features
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass

Shape = tuple[int, int, int]  # channels, height, width


class ConvolutionPlan(NamedTuple):
    """A convolution inside a block."""

    n_filters: int
    kernel: int
    stride: int = 1


def _convolution(shape: Shape, plan: ConvolutionPlan) -> tuple[MetaConv2d, Shape]:
    """Return a convolution without bias, padded so that stride 1 keeps the size, and the shape that it leaves."""
    padding = plan.kernel // 2
    height, width = ((side + 2 * padding - plan.kernel) // plan.stride + 1 for side in shape[1:])
    conv = MetaConv2d(shape[0], plan.n_filters, plan.kernel, stride=plan.stride, padding=padding, bias=False)
    return conv, (plan.n_filters, height, width)


class ResidualBlock(nn.Module):
    """Convolutions with norms, ReLU between them; plus the input, through a 1x1 convolution where the shape changes.

    Args:
        plans: the convolutions, conv1, conv2, ...
        projects: whether the input goes through a convolution in any case.
        pools: whether a 2x2 max-pooling ends the block.
        negative_slope: of the ReLUs; 0: the plain one.
    """

    def __init__(
        self,
        shape: Shape,
        plans: Sequence[ConvolutionPlan],
        norm: NormChoice,
        *,
        projects: bool,
        pools: bool,
        negative_slope: float,
    ) -> None:
        super().__init__()
        self.n_convolutions, self.pools, self.negative_slope = len(plans), pools, negative_slope
        out = shape
        for number, plan in enumerate(plans, 1):
            conv, out = _convolution(out, plan)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", norm.build(out))
        if projects or out != shape:
            stride = max(plan.stride for plan in plans)
            self.downsample = nn.Sequential(_convolution(shape, ConvolutionPlan(out[0], 1, stride))[0], norm.build(out))
        else:
            self.downsample = None
        self.out_shape = (out[0], pooled(out[1]), pooled(out[2])) if pools else out

    def forward(self, x: Tensor, params: Parameters | None, n_tasks: int, pass_: Pass, name: str) -> Tensor:
        """Return (n, B*F, H', W') for x (n, B*C, H, W)."""
        out = x
        for number in range(1, self.n_convolutions + 1):
            out = self._convolve(out, f"conv{number}", f"bn{number}", params, n_tasks, pass_, name)
            if number < self.n_convolutions:
                out = self._relu(out)
        if self.downsample is not None:
            x = self._convolve(x, "downsample.0", "downsample.1", params, n_tasks, pass_, name)
        out = out + x
        # ReLU is increasing, so it commutes with the maximum: the same result from a quarter of the pixels.
        return pool(out, self.negative_slope) if self.pools else self._relu(out)

    def _relu(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope) if self.negative_slope else F.relu(x)

    def _convolve(
        self, x: Tensor, conv: str, norm: str, params: Parameters | None, n_tasks: int, pass_: Pass, name: str
    ) -> Tensor:
        x = self.get_submodule(conv)(x, below(params, conv), n_tasks)
        return self.get_submodule(norm)(x, below(params, norm), n_tasks, pass_, f"{name}.{norm}")


class ResidualNetwork(MetaNetwork):
    """A stem, four stages of residual blocks, the mean over the map as features, a linear head.

    Args:
        image_shape: C, H, W of an image.
        n_way: N, outputs of the head; None: each episode brings its head.
        widths: filters of the stages.
        depths: blocks of the stages.
        block: "basic" (two 3x3 convolutions), "bottleneck" (1x1, 3x3, 1x1 with four times the filters) or "pooled"
            (three 3x3 convolutions, leaky ReLU of slope 0.1, max-pooling instead of strides).
        stem: "torchvision" (7x7 convolution of stride 2, 3x3 max-pooling of stride 2), "3x3" (a convolution of
            stride 1) or "none".
        dropout: probability of dropping an activation after each stage while meta-training.
    Source: He et al. 2016 and torchvision (basic, bottleneck); Oreshkin et al. 2018, Lee et al. 2019 (pooled:
    ResNet-12).
    """

    plain_prefixes = MappingProxyType({"head.": "fc."})

    def __init__(
        self,
        image_shape: Shape,
        n_way: int | None,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 1, 1, 1),
        block: str = "basic",
        stem: str = "torchvision",
        norm: NormChoice | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        norm = norm or NormChoice()
        self.dropout, self.uses_dropout = dropout, dropout > 0
        self.stem, self.negative_slope = stem, 0.1 if block == "pooled" else 0.0
        shape = image_shape
        if stem != "none":
            self.conv1, shape = _convolution(
                shape, ConvolutionPlan(widths[0], 7, 2) if stem == "torchvision" else ConvolutionPlan(64, 3)
            )
            self.bn1 = norm.build(shape)
        if stem == "torchvision":
            # What 3x3 max-pooling of stride 2 and padding 1 leaves of a side.
            shape = (shape[0], *((side - 1) // 2 + 1 for side in shape[1:]))
        self.layer_names = [f"layer{number}" for number in range(1, len(widths) + 1)]
        self.stage_names = [*(["bn1"] if stem != "none" else []), *self.layer_names]
        for number, (name, width, depth) in enumerate(zip(self.layer_names, widths, depths, strict=True)):
            stride, blocks = (2 if number and block != "pooled" else 1), []
            for index in range(depth):
                plans = _plans(block, width, stride if index == 0 else 1)
                projects = block == "pooled" or (index == 0 and stride > 1)
                blocks.append(
                    ResidualBlock(
                        shape,
                        plans,
                        norm,
                        projects=projects,
                        pools=block == "pooled",
                        negative_slope=self.negative_slope,
                    )
                )
                shape = blocks[-1].out_shape
            self.add_module(name, nn.Sequential(*blocks))
        self.head = make_head(shape[0], n_way)

    def features(self, images: Tensor, params: Parameters | None = None, pass_: Pass | None = None) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W)."""
        pass_, n_tasks, x = pass_ or Pass(), images.shape[0], fold_tasks(images)
        if self.stem != "none":
            x = self.conv1(x, below(params, "conv1"), n_tasks)
            x = F.relu(self.bn1(x, below(params, "bn1"), n_tasks, pass_, "bn1"))
        if self.stem == "torchvision":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for index, layer in enumerate(self.layer_names):
            of_layer = below(params, layer)
            for number, block in enumerate(getattr(self, layer)):
                x = block(x, below(of_layer, str(number)), n_tasks, pass_, f"{layer}.{number}")
            x = drop(x, self.dropout, pass_, index, n_tasks)
        return unfold_features(x.mean(dim=(2, 3)), n_tasks)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights, as torchvision does."""
        initialise_kaiming(self, generator, self.negative_slope)


def _plans(block: str, width: int, stride: int) -> list[ConvolutionPlan]:
    if block == "pooled":
        return [ConvolutionPlan(width, 3)] * 3
    if block == "bottleneck":
        return [ConvolutionPlan(width, 1), ConvolutionPlan(width, 3, stride), ConvolutionPlan(4 * width, 1)]
    return [ConvolutionPlan(width, 3, stride), ConvolutionPlan(width, 3)]


# The widths of ResNet-12 in Lee et al. 2019 (MetaOptNet).
WIDE = (64, 160, 320, 640)

RESIDUAL_NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10": {"stem": "3x3"},
    "resnet10_wide": {"stem": "3x3", "widths": WIDE},
    "resnet12": {"block": "pooled", "stem": "none"},
    "resnet12_wide": {"block": "pooled", "stem": "none", "widths": WIDE},
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet34": {"depths": (3, 4, 6, 3)},
    "resnet50": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
}
"""Name of a backbone -> arguments of `ResidualNetwork`."""
