"""Functional meta-layers, and the networks built from them.

Each layer is the torch layer of its base class plus `params=None`: without it the layer uses its own parameters, with it the
ones passed in, which carry a leading task axis, so that the tasks of a meta-batch are computed together.

Letters: B tasks, n images per task, C channels, H x W pixels, F filters, N way, D features, R rows (one per inner step).
Inside the networks the task axis is folded into the channels, (n, B*C, H, W): a convolution over all tasks is then one
grouped convolution, and batch norm over a folded channel sees the images of one task alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.batch_norm import batch_norm
from utils.config_rules import feature_size
from utils.hashed_noise import hashed_uniform

Parameters = Mapping[str, Tensor]


@dataclass
class BatchStatistics:
    """Sums over passes of the batch mean and variance that each batch-norm row saw; tasks averaged within a pass."""

    sums: dict[str, list[Tensor | None]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, row: int, n_rows: int, value: Tensor) -> None:
        """Add one pass's statistic, (F,), to `row` of the running statistic called `name`."""
        sums = self.sums.setdefault(name, [None] * n_rows)
        counts = self.counts.setdefault(name, [0] * n_rows)
        sums[row] = value if sums[row] is None else sums[row] + value
        counts[row] += 1

    def means(self) -> dict[str, Tensor]:
        """Return name -> (R, F), or (F,) where R is 1: the mean over the passes of each row.

        Every row is fed: inner step s passes through row s.
        """
        means = {}
        for name, sums in self.sums.items():
            rows = torch.stack([total / count for total, count in zip(sums, self.counts[name], strict=True)])
            means[name] = rows.squeeze(0) if len(sums) == 1 else rows
        return means


@dataclass(frozen=True)
class Pass:
    """What a forward pass needs to know beside images and parameters."""

    step: int = 0
    """Inner step; norm layers with fewer rows use their last one."""
    running_statistics: bool = False
    """Normalise with the running statistics instead of those of the batch."""
    collected: BatchStatistics | None = None
    """Where batch-norm layers leave the statistics that they saw; None: nowhere."""
    dropout_seeds: Tensor | None = None
    """int64 (B,), one seed per episode; None: no dropout (evaluation)."""
    is_query: bool = False
    """Support and query passes of a step drop different activations."""


def below(params: Parameters | None, name: str) -> Parameters | None:
    """Return the parameters of the submodule called `name`, under their names inside it."""
    if params is None:
        return None
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in params.items() if key.startswith(prefix)}


def _given_or_own(layer: nn.Module, params: Parameters | None, name: str, n_tasks: int) -> Tensor:
    """Return the passed-in parameter (B, ...), or the layer's own one seen B times."""
    if params is not None and name in params:
        return params[name]
    own = getattr(layer, name)
    return own.expand(n_tasks, *own.shape)


class MetaConv2d(nn.Conv2d):
    """`nn.Conv2d` over B tasks at once, each with its own weights."""

    def forward(self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1) -> Tensor:
        """Convolve.

        Args:
            x: (n, B*C, H, W), tasks folded into the channels.
            params: "weight" (B, F, C, k, k) and "bias" (B, F); None: the layer's own.
        Returns:
            (n, B*F, H', W').
        """
        weight = _given_or_own(self, params, "weight", n_tasks).flatten(0, 1)
        bias = _given_or_own(self, params, "bias", n_tasks).flatten() if self.bias is not None else None
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups=n_tasks)


class MetaLinear(nn.Linear):
    """`nn.Linear` over B tasks at once, each with its own weights."""

    def forward(self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1) -> Tensor:
        """Return x w^T + b for x (B, n, D), "weight" (B, N, D) and "bias" (B, N): (B, n, N)."""
        weight = _given_or_own(self, params, "weight", n_tasks)
        bias = _given_or_own(self, params, "bias", n_tasks)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


class MetaBatchNorm2d(nn.Module):
    """Batch norm with one row of weight, bias and running statistics per inner step (BNWB and BNRS of MAML++).

        y = weight[r] * (x - mean) / sqrt(var + eps) + bias[r],   r = min(step, R - 1)

    mean and var are those of the task's images in this pass or, where the pass says so, the running ones of row r.
    With one row the parameters have the shapes, and the names, of `nn.BatchNorm2d`.

    With `learnable_momentum`, a training pass normalises with the moving average that includes it,
    (1 - m) running + m batch, so that m, one number per layer, has a gradient.

    Source: Antoniou et al. 2019, section 4 (per-step batch normalisation).
    """

    def __init__(
        self, n_filters: int, *, n_rows: int = 1, n_parameter_rows: int | None = None, learn_weight: bool = True,
        learn_bias: bool = True, momentum: float = 0.1, learnable_momentum: bool = False, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_rows, self.eps = n_rows, eps
        n_parameter_rows = n_rows if n_parameter_rows is None else n_parameter_rows

        def shape(rows: int) -> tuple[int, ...]:
            return (n_filters,) if rows == 1 else (rows, n_filters)

        self.weight = nn.Parameter(torch.ones(shape(n_parameter_rows)), requires_grad=learn_weight)
        self.bias = nn.Parameter(torch.zeros(shape(n_parameter_rows)), requires_grad=learn_bias)
        self.register_buffer("running_mean", torch.zeros(shape(n_rows)))
        self.register_buffer("running_var", torch.ones(shape(n_rows)))
        self.learnable_momentum = learnable_momentum
        if learnable_momentum:
            self.momentum = nn.Parameter(torch.tensor(momentum))
        else:
            self.register_buffer("momentum", torch.tensor(momentum), persistent=False)

    def _row(self, values: Tensor, step: int) -> Tensor:
        return values if values.dim() == 1 else values[min(step, values.shape[0] - 1)]

    def _affine(self, params: Parameters | None, name: str, step: int, n_tasks: int) -> Tensor:
        if params is not None and name in params:
            return params[name].flatten()
        return self._row(getattr(self, name), step).repeat(n_tasks)

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, mode: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise.

        Args:
            x: (n, B*F, H, W), tasks folded into the channels.
            params: "weight" and "bias", each (B, F), where the inner loop adapts them.
            name: the layer's name in the network, under which it leaves its statistics.
        Returns:
            The shape of x.
        """
        mode = mode or Pass()
        weight = self._affine(params, "weight", mode.step, n_tasks)
        bias = self._affine(params, "bias", mode.step, n_tasks)
        running_mean = self._row(self.running_mean, mode.step).repeat(n_tasks)
        running_var = self._row(self.running_var, mode.step).repeat(n_tasks)
        if mode.running_statistics:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=self.eps)
        if self.learnable_momentum and mode.collected is not None:
            out, mean, var = self._normalise_with_moving_average(x, running_mean, running_var, weight, bias)
        else:
            mean, var = running_mean, running_var  # copies, which take the statistics of this very batch
            out = batch_norm(x, weight, bias, self.eps, mean, var)
        if mode.collected is not None:
            row = min(mode.step, self.n_rows - 1)
            for statistic, value in (("running_mean", mean), ("running_var", var)):
                mode.collected.add(f"{name}.{statistic}", row, self.n_rows, value.detach().view(n_tasks, -1).mean(0))
        return out

    def _normalise_with_moving_average(
        self, x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        momentum = self.momentum.clamp(0.0, 1.0)
        blended_mean = (1 - momentum) * running_mean + momentum * mean
        blended_var = (1 - momentum) * running_var + momentum * var
        scale = weight * torch.rsqrt(blended_var + self.eps)
        out = x * scale[:, None, None] + (bias - blended_mean * scale)[:, None, None]
        return out, mean, var * (count / max(count - 1, 1))

    @torch.no_grad()
    def update_running_statistics(self, batch_mean: Tensor, batch_var: Tensor) -> None:
        """Move each row towards this iteration's statistics: running <- (1 - m) running + m batch."""
        momentum = self.momentum.clamp(0.0, 1.0)
        self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(batch_var.to(self.running_var.dtype), momentum)


class MetaLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over (C, H, W) of each image, for B tasks at once. Its weight stays 1, as in the reference."""

    def __init__(self, shape: tuple[int, int, int], *, learn_bias: bool = True) -> None:
        super().__init__(shape)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(learn_bias)

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, mode: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise x (n, B*C, H, W) image by image; "bias" is (B, C, H, W) where it is adapted."""
        unfolded = x.unflatten(1, (n_tasks, -1))  # (n, B, C, H, W)
        out = F.layer_norm(unfolded, self.normalized_shape, eps=self.eps)
        out = out * _given_or_own(self, params, "weight", n_tasks) + _given_or_own(self, params, "bias", n_tasks)
        return out.flatten(1, 2)


class MetaConvBlock(nn.Module):
    """Convolution, norm, leaky ReLU, and max-pooling or a stride where the stage ends; dropout while meta-training."""

    def __init__(self, conv: MetaConv2d, norm: nn.Module, *, pool: bool, dropout: float, index: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.pool, self.dropout, self.index = pool, dropout, index

    def forward(self, x: Tensor, params: Parameters | None, n_tasks: int, mode: Pass, name: str) -> Tensor:
        """Return (n, B*F, H', W') for x (n, B*C, H, W)."""
        x = self.conv(x, below(params, "conv"), n_tasks)
        x = self.norm(x, below(params, "norm"), n_tasks, mode, f"{name}.norm")
        if self.pool:
            # Leaky ReLU is increasing, so it commutes with the maximum: the same result from a quarter of the pixels.
            x = F.max_pool2d(x, 2)
        x = F.leaky_relu(x)
        if self.dropout and mode.dropout_seeds is not None:
            x = self._drop(x, n_tasks, mode)
        return x

    def _drop(self, x: Tensor, n_tasks: int, mode: Pass) -> Tensor:
        stream = (mode.step * 2 + int(mode.is_query)) * 1024 + self.index
        per_task = x.unflatten(1, (n_tasks, -1))  # (n, B, F, H, W)
        uniform = hashed_uniform(mode.dropout_seeds, stream, (x.shape[0], *per_task.shape[2:]))  # (B, n, F, H, W)
        keep = (uniform >= self.dropout).transpose(0, 1).to(x.dtype) / (1 - self.dropout)
        return (per_task * keep).flatten(1, 2)


class VGGReLUNormNetwork(nn.Module):
    """The reference's network: stages of 3x3 convolutions with norm, leaky ReLU and max-pooling or strides; a linear head.

    Parameter names are those of a plain `nn.Module`: block<i>.conv.weight, block<i>.norm.weight, head.weight, ...
    Convolutions and head start Xavier-uniform with zero biases.

    Args:
        image_shape: C, H, W of an image.
        n_rows: R, rows of the norm's running statistics; 1 without per-step statistics.
        n_norm_parameter_rows: rows of the norm's weights and biases; 1 where the inner loop adapts them.
    Source: Antoniou et al. 2019; released code, VGGReLUNormNetwork.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], n_way: int, *, n_filters: int = 64, n_stages: int = 4, blocks_per_stage: int = 1,
        padding: bool = True, max_pooling: bool = True, norm_layer: str = "batch_norm", n_rows: int = 1,
        n_norm_parameter_rows: int | None = None, learn_norm_weight: bool = True, learn_norm_bias: bool = True,
        norm_momentum: float = 0.1, learnable_norm_momentum: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, width = image_shape
        self.global_average = not max_pooling
        self.block_names = [f"block{i}" for i in range(n_stages * blocks_per_stage)]
        for index, name in enumerate(self.block_names):
            ends_stage = (index + 1) % blocks_per_stage == 0
            stride = 2 if ends_stage and not max_pooling else 1
            conv = MetaConv2d(channels, n_filters, 3, stride=stride, padding=int(padding))
            height, width = (feature_size(side, 1, 1, padding, False) if stride == 2 else side + 2 * int(padding) - 2 for side in (height, width))
            if norm_layer == "layer_norm":
                norm: nn.Module = MetaLayerNorm((n_filters, height, width), learn_bias=learn_norm_bias)
            else:
                norm = MetaBatchNorm2d(
                    n_filters, n_rows=n_rows, n_parameter_rows=n_norm_parameter_rows, learn_weight=learn_norm_weight,
                    learn_bias=learn_norm_bias, momentum=norm_momentum, learnable_momentum=learnable_norm_momentum,
                )  # fmt: skip
            if ends_stage and max_pooling:
                height, width = height // 2, width // 2
            block = MetaConvBlock(conv, norm, pool=ends_stage and max_pooling, dropout=dropout, index=index)
            self.add_module(name, block)
            channels = n_filters
        self.head = MetaLinear(n_filters * (1 if self.global_average else height * width), n_way)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights: Xavier-uniform convolutions and head, zero biases."""
        for module in self.modules():
            if isinstance(module, (MetaConv2d, MetaLinear)):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, params: Parameters | None = None, mode: Pass | None = None) -> Tensor:
        """Classify.

        Args:
            images: (B, n, C, H, W).
            params: name -> (B, ...); names that are missing, or None, mean the network's own parameters.
        Returns:
            logits (B, n, N).
        """
        mode = mode or Pass()
        n_tasks = images.shape[0]
        x = images.transpose(0, 1).flatten(1, 2)  # (n, B*C, H, W)
        for name in self.block_names:
            x = getattr(self, name)(x, below(params, name), n_tasks, mode, name)
        if self.global_average:
            x = x.mean(dim=(2, 3))
        features = x.reshape(x.shape[0], n_tasks, -1).transpose(0, 1)  # (B, n, D)
        return self.head(features, below(params, "head"), n_tasks)
