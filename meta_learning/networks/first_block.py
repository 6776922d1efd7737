"""The first block of a network from patches of its images: convolution, batch norm, max-pooling and activation at once.

The images of an episode stay the same through all inner steps and nothing is differentiated with respect to them. So
their patches p, what the kernel sees at each pixel, are cut once per episode. Then batch norm needs no pass over the
feature map, the largest of the network, because the map's statistics follow from those of the patches,

    x = W p + b,   mean(x) = W mean(p) + b,   var(x) = diag(W cov(p) W^T)

and norm and convolution together are one linear map of patches, whose maxima over the pooling windows are all that
is kept:

    out = f(max over the pixels of a window of (A p + c)),   A = s W,  c = s b + t,   y = s x + t the norm

Given which pixel of a window wins and on which side of zero it lies, `out` is linear in (A, c): the backward and the
double backward are products of small matrices too.

Letters: B tasks, n images per task, C channels, k x k kernel, K = C k^2, F filters, L windows per image.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_learning.networks.layers import MetaConv2d, Parameters, fold_tasks, given_or_own, in_best_format
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d, Moments
from meta_learning.networks.passes import Pass
from meta_learning.operations.patch_norm import normalised_map
from meta_learning.operations.window_maxima import window_maxima

# Measured in turns with the general way: 20-way 1.95 -> 1.39, 5-way 0.54 -> 0.39 s per iteration (Omniglot, CPU).
MOST_CHANNELS = 3
"""Of images whose patches take less memory than the feature maps that they replace."""


@dataclass(frozen=True)
class PatchSet:
    """The patches of one set of images of each task."""

    windows: Tensor
    """(n*B, q, L, K + 1), for each of the q pixels of the pooling windows; the last column being ones."""
    moments: Tensor
    """(B, K, K + 1), covariance and, in the last column, mean of all patches of the set, also those that no window
    covers.
    """
    n_patches: int
    """Of each task."""


@dataclass(frozen=True)
class ImagePatches:
    """Images (B, n, C, H, W) as the first block of a network sees them; support before query images where both are
    there.
    """

    sets: tuple[PatchSet, ...]
    n_tasks: int
    sides: tuple[int, int]
    """H, W of the block's output."""

    def followed_by(self, other: "ImagePatches") -> "ImagePatches":
        """Return these images and then the others."""
        return replace(self, sets=self.sets + other.sets)


def cut_patches(images: Tensor, conv: MetaConv2d, window: tuple[int, int]) -> ImagePatches:
    """Cut the patches of images (B, n, C, H, W) for a convolution and the pooling windows (h, w) after it."""
    n_tasks, n_images = images.shape[:2]
    folded = images.transpose(0, 1).flatten(0, 1)  # (n*B, C, H, W)
    height, width = (
        (side + 2 * padding - kernel) // stride + 1
        for side, padding, kernel, stride in zip(
            images.shape[-2:], conv.padding, conv.kernel_size, conv.stride, strict=True
        )
    )
    patches = F.unfold(folded, conv.kernel_size, padding=conv.padding, stride=conv.stride)  # (n*B, K, H'*W')
    n_positions = patches.shape[2]
    of_tasks = patches.view(n_images, n_tasks, -1, n_positions)
    mean = of_tasks.mean(dim=(0, 3))  # (B, K)
    # Centred before the product: E[p p^T] - mean mean^T would cancel digits in float32.
    centred = (of_tasks - mean[None, :, :, None]).flatten(0, 1)
    products = torch.bmm(centred, centred.transpose(1, 2)).view(n_images, n_tasks, *[patches.shape[1]] * 2)
    covariance = products.mean(0) / n_positions
    with_ones = F.pad(patches.transpose(1, 2), (0, 1), value=1.0).unflatten(1, (height, width))
    rows, columns = height // window[0], width // window[1]
    pixels = [
        with_ones[:, top : rows * window[0] : window[0], left : columns * window[1] : window[1]]
        for top, left in product(range(window[0]), range(window[1]))
    ]
    moments = torch.cat([covariance, mean.unsqueeze(2)], dim=2)
    return ImagePatches(
        (PatchSet(torch.stack(pixels, dim=1).flatten(2, 3), moments, n_images * n_positions),), n_tasks, (rows, columns)
    )


def fold_images(images: Tensor | ImagePatches) -> tuple[Tensor | ImagePatches, int]:
    """Return what the first block takes, patches or (n, B*C, H, W), and the number of tasks."""
    if isinstance(images, ImagePatches):
        return images, images.n_tasks
    return fold_tasks(images), images.shape[0]


def can_use_patches(conv: MetaConv2d, norm: Any, images: Tensor) -> bool:
    """Return whether `convolve_patches` can take the place of a first block."""
    plain = (
        conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
    watched = conv._forward_hooks or norm._forward_hooks  # an adapter's, say: neither of the two is called here
    few = images.shape[2] <= MOST_CHANNELS and not images.requires_grad
    return plain and type(norm) is MetaBatchNorm2d and few and not watched


def convolve_patches(
    patches: ImagePatches, conv: MetaConv2d, norm: MetaBatchNorm2d, params: tuple[Parameters | None, Parameters | None],
    negative_slope: float, pass_: Pass, name: str,
) -> Tensor:  # fmt: skip
    """Return f(max over windows of norm(conv(images))), f a leaky ReLU, (n, B*F, H', W').

    Args:
        params: of the convolution and of the norm.
        name: of the norm layer, under which it leaves its statistics.
    """
    n_tasks = patches.n_tasks
    weight = given_or_own(conv, params[0], "weight", n_tasks).flatten(2)  # (B, F, K)
    bias = (
        given_or_own(conv, params[0], "bias", n_tasks) if conv.bias is not None else weight.new_zeros(weight.shape[:2])
    )
    maps = _linear_maps(patches, weight, bias, norm, params[1], pass_, name)
    outputs = [
        window_maxima(linear, images.windows, negative_slope) for images, linear in zip(patches.sets, maps, strict=True)
    ]
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (n, B, L, F)
    pixels_first = out.transpose(1, 2).flatten(2)  # (n, L, B*F)
    return in_best_format(pixels_first.unflatten(1, patches.sides).permute(0, 3, 1, 2))


def _linear_maps(
    patches: ImagePatches,
    weight: Tensor,
    bias: Tensor,
    norm: MetaBatchNorm2d,
    params: Parameters | None,
    pass_: Pass,
    name: str,
) -> list[Tensor]:
    """Return A and, in the last column, c, (B, F, K + 1), for each set of images: convolution and norm together."""
    n_tasks, passes = patches.n_tasks, norm.passes_of_own_moments(pass_, len(patches.sets))
    if passes is not None:
        gamma, beta = (values.view(n_tasks, -1) for values in norm.affine(params, n_tasks, pass_, name))
        maps = []
        for images, its_pass in zip(patches.sets, passes, strict=True):
            linear, mean, var = normalised_map(weight, bias, gamma, beta, images.moments, norm.eps)
            moments = Moments(mean.flatten(), var.flatten(), images.n_patches)
            norm.leave_statistics(moments.mean, moments.unbiased_var, n_tasks, its_pass, name)
            maps.append(linear)
        return maps
    moments = []
    for images in patches.sets:
        products = torch.bmm(weight, images.moments)
        mean = products[..., -1] + bias  # (B, F)
        var = (products[..., :-1] * weight).sum(2).clamp(min=0)  # rounding may leave less of what is zero
        moments.append(Moments(mean.flatten(), var.flatten(), images.n_patches))
    affine = norm.scales_and_shifts(moments, params, n_tasks, pass_, name)
    return [
        torch.cat([scale.view(n_tasks, -1, 1) * weight, (scale * bias.flatten() + shift).view(n_tasks, -1, 1)], dim=2)
        for scale, shift in affine
    ]
