"""Networks of convolutional blocks one after another, and conv4, the four-block network of the few-shot literature.

Letters: B tasks, n images per task, C channels, H x W pixels, F filters, N way, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.base import MetaNetwork, initialise_kaiming, make_head
from meta_learning.networks.dropout import drop
from meta_learning.networks.first_block import ImagePatches, can_use_patches, convolve_patches, cut_patches, fold_images
from meta_learning.networks.layers import MetaConv2d, Parameters, WarpLayer, below, unfold_features
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from meta_learning.operations.max_pooling import pool_and_activate

N_BLOCKS = 4


def pooling_window(height: int, width: int) -> tuple[int, int]:
    """Return 2 x 2 pixels; a side of one pixel stays as it is, so that no image is too small."""
    return min(2, height), min(2, width)


def pool(x: Tensor, negative_slope: float) -> Tensor:
    """Apply max-pooling over `pooling_window` and a leaky ReLU."""
    return pool_and_activate(x, pooling_window(*x.shape[2:]), negative_slope)


def pooled(side: int) -> int:
    """Return the pixels of a side after `pool`."""
    return max(side // 2, 1)


class ConvolutionalBlock(nn.Module):
    """Convolution, warp layer where there are any, norm, max-pooling where the stage ends, leaky ReLU; dropout while
    meta-training.

    The ReLU is increasing, so it commutes with the maximum and comes after it, for a quarter of the pixels.
    """

    def __init__(
        self, conv: MetaConv2d, norm: MetaNorm, *, pool: bool, negative_slope: float, dropout: float, index: int,
        warp: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv, self.norm = conv, norm
        self.warp = WarpLayer(conv.out_channels, warp) if warp else None
        self.pool, self.negative_slope, self.dropout, self.index = pool, negative_slope, dropout, index

    def forward(
        self, x: Tensor | ImagePatches, params: Parameters | None, n_tasks: int, pass_: Pass, name: str
    ) -> Tensor:
        """Return (n, B*F, H', W') for x (n, B*C, H, W), or for the patches of the first block's images."""
        of_conv, of_norm, norm_name = below(params, "conv"), below(params, "norm"), f"{name}.norm"
        if isinstance(x, ImagePatches):
            x = convolve_patches(x, self.conv, self.norm, (of_conv, of_norm), self.negative_slope, pass_, norm_name)
        else:
            x = self.conv(x, of_conv, n_tasks)
            x = x if self.warp is None else self.warp(x, n_tasks)
            x = self.norm(x, of_norm, n_tasks, pass_, norm_name)
            x = pool(x, self.negative_slope) if self.pool else F.leaky_relu(x, self.negative_slope)
        return drop(x, self.dropout, pass_, self.index, n_tasks)


class ConvolutionalNetwork(MetaNetwork):
    """What networks of such blocks have in common; `stage_names` are the blocks.

    Attributes:
        global_average: whether the features are the mean over the last map; else they are the map, flattened.
        feature_scale: above 0, the standard deviation of each image's features, whose mean is 0.
    """

    global_average: bool = False
    feature_scale: float = 0.0

    def prepare(self, images: Tensor) -> Tensor | ImagePatches:
        """Return the patches of the images, where the first block can take them."""
        block = getattr(self, self.stage_names[0])
        if block.warp is not None or not can_use_patches(block.conv, block.norm, images):
            return images
        return cut_patches(images, block.conv, pooling_window(*images.shape[3:]) if block.pool else (1, 1))

    def features(
        self, images: Tensor | ImagePatches, params: Parameters | None = None, pass_: Pass | None = None
    ) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W), or of what `prepare` made of them."""
        pass_ = pass_ or Pass()
        x, n_tasks = fold_images(images)
        for name in self.stage_names:
            x = getattr(self, name)(x, below(params, name), n_tasks, pass_, name)
        if self.global_average:
            x = x.mean(dim=(2, 3))
        x = unfold_features(x, n_tasks)
        # Of equal length, the nearest class mean is the one of the largest product: what a step from a head of zeros
        # finds, so that a body trained by distances serves gradient steps at once.
        return F.layer_norm(x, x.shape[-1:]) * self.feature_scale if self.feature_scale else x


class Conv4(ConvolutionalNetwork):
    """Four blocks of a padded 3x3 convolution with bias, norm, ReLU and 2x2 max-pooling; the map, flattened, is the
    features.

    Against the reference's network: ReLU instead of leaky ReLU, and Kaiming-normal instead of Xavier-uniform weights.

    Args:
        image_shape: C, H, W of an image; from 16 pixels on every block halves it.
        n_way: N, outputs of the head; None: each episode brings its head.
        n_filters: F; 32 in Ravi & Larochelle 2017 and in MAML on mini-ImageNet, 64 in Vinyals et al. 2016 and Snell
            et al. 2017.
        warp: side of the kernels of warp layers; 0: none.
        feature_scale: see `ConvolutionalNetwork`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_way: int | None,
        *,
        n_filters: int = 64,
        feature_scale: float = 0.0,
        norm: NormChoice | None = None,
        dropout: float = 0.0,
        warp: int = 0,
    ) -> None:
        super().__init__()
        norm, self.uses_dropout, self.feature_scale = norm or NormChoice(), dropout > 0, feature_scale
        self.stage_names = [f"block{i}" for i in range(N_BLOCKS)]
        channels, height, width = image_shape
        for index, name in enumerate(self.stage_names):
            conv, norm_layer = MetaConv2d(channels, n_filters, 3, padding=1), norm.build((n_filters, height, width))
            block = ConvolutionalBlock(
                conv, norm_layer, pool=True, negative_slope=0.0, dropout=dropout, index=index, warp=warp
            )
            self.add_module(name, block)
            channels, height, width = n_filters, pooled(height), pooled(width)
        self.head = make_head(n_filters * height * width, n_way)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        initialise_kaiming(self, generator)
