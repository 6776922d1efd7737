"""Batch norm over B tasks at once, with one row per inner step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.layers import Parameters
from meta_learning.networks.norms.base import AffineNorm, per_row
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from meta_learning.operations.batch_norm import batch_norm
from utils.registry import register_norm_layer


@dataclass(frozen=True)
class Moments:
    """Of the values that a norm layer sees in one set of images, per channel."""

    mean: Tensor
    """(B*F,)."""
    var: Tensor
    """(B*F,), biased."""
    count: int
    """Values of a channel."""

    @property
    def unbiased_var(self) -> Tensor:
        """(B*F,)."""
        # Batches are normalised with the biased variance, and running statistics take this one, as in `nn.BatchNorm2d`.
        return self.var * (self.count / max(self.count - 1, 1))


class MetaBatchNorm2d(AffineNorm):
    """Batch norm with one row of weight, bias and running statistics per inner step (BNWB and BNRS of MAML++).

        y = weight[r] * (x - mean) / sqrt(var + eps) + bias[r],   r = min(step, R - 1)

    mean and var are per task, from where the pass says. With one row the parameters have the shapes, and the names, of
    `nn.BatchNorm2d`.

    With `learnable_momentum`, a training pass normalises with the moving average that includes it,
    (1 - m) running + m batch, so that m, one number per layer, has a gradient.

    Source: Antoniou et al. 2019, section 4 (per-step batch normalisation).
    """

    sees_other_images = True

    def __init__(
        self, n_filters: int, *, n_rows: int = 1, n_parameter_rows: int | None = None, learn_weight: bool = True,
        learn_bias: bool = True, momentum: float = 0.1, learnable_momentum: bool = False, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(
            n_filters, n_parameter_rows=n_rows if n_parameter_rows is None else n_parameter_rows,
            learn_weight=learn_weight, learn_bias=learn_bias, eps=eps,
        )  # fmt: skip
        self.n_rows = n_rows
        self.register_buffer("running_mean", torch.zeros(per_row(n_filters, n_rows)))
        self.register_buffer("running_var", torch.ones(per_row(n_filters, n_rows)))
        self.learnable_momentum = learnable_momentum
        if learnable_momentum:
            self.momentum = nn.Parameter(torch.tensor(momentum))
        else:
            # A tensor as well, so that both kinds are used alike; checkpoints leave it to the config.
            self.register_buffer("momentum", torch.tensor(momentum), persistent=False)

    def forward(
        self, x: Tensor, params: Parameters | None = None, n_tasks: int = 1, pass_: Pass | None = None, name: str = ""
    ) -> Tensor:
        """Normalise.

        Args:
            x: (n, B*F, H, W), tasks folded into the channels.
            params: "weight" and "bias", each (B, F), where the inner loop adapts them.
            name: the layer's name in the network, under which it leaves its statistics.
        Returns:
            The shape of x.
        """
        pass_ = pass_ or Pass()
        weight, bias = self.affine(params, n_tasks, pass_, name)
        if not pass_.n_support:
            return self._normalise_one_set(x, weight, bias, n_tasks, pass_, name)
        support, query = x[: pass_.n_support], x[pass_.n_support :]
        if not self.choice(pass_).query_needs_support:
            parts = zip((support, query), _passes_of_parts(pass_), strict=True)
            return torch.cat(
                [self._normalise_one_set(part, weight, bias, n_tasks, its_pass, name) for part, its_pass in parts]
            )
        moments = _moments(support)
        self.leave_statistics(moments.mean, moments.unbiased_var, n_tasks, pass_, name)
        return _normalise(x, *_scale_and_shift(moments.mean, moments.var, weight, bias, self.eps))

    def passes_of_own_moments(self, pass_: Pass, n_sets: int) -> tuple[Pass, ...] | None:
        """Return the pass of each set of images, where each is normalised by its own moments and by nothing else; else
        None.
        """
        passes = _passes_of_parts(pass_) if n_sets > 1 else (pass_,)
        shares = n_sets > 1 and self.choice(pass_).query_needs_support
        is_own = (
            not shares
            and not self._mixes_with_running(pass_)
            and not any(self._has_fixed_statistics(its_pass) for its_pass in passes)
        )
        return passes if is_own else None

    def scales_and_shifts(
        self, sets: Sequence[Moments], params: Parameters | None, n_tasks: int, pass_: Pass, name: str
    ) -> list[tuple[Tensor, Tensor]]:
        """Return s and t (B*F,) for each set of images, of y = s x + t, the norm of x, whose moments are given
        instead of x.

        Args:
            sets: of the images of the pass; of support and query images where both are there.
        """
        weight, bias = self.affine(params, n_tasks, pass_, name)
        if len(sets) > 1 and self.choice(pass_).query_needs_support:
            self.leave_statistics(sets[0].mean, sets[0].unbiased_var, n_tasks, pass_, name)
            return [_scale_and_shift(sets[0].mean, sets[0].var, weight, bias, self.eps)] * len(sets)
        passes = _passes_of_parts(pass_) if len(sets) > 1 else (pass_,)
        results = []
        for moments, its_pass in zip(sets, passes, strict=True):
            fixed = self._fixed_statistics(n_tasks, its_pass, name)
            if fixed is None:
                mean, var = self._of_batch(moments, n_tasks, its_pass)
                self.leave_statistics(moments.mean, moments.unbiased_var, n_tasks, its_pass, name)
            else:
                mean, var = fixed
            results.append(_scale_and_shift(mean, var, weight, bias, self.eps))
        return results

    def _normalise_one_set(
        self, x: Tensor, weight: Tensor, bias: Tensor, n_tasks: int, pass_: Pass, name: str
    ) -> Tensor:
        fixed = self._fixed_statistics(n_tasks, pass_, name)
        if fixed is not None:
            return F.batch_norm(x, *fixed, weight, bias, training=False, eps=self.eps)
        if self._mixes_with_running(pass_):
            # The fused operation differentiates a batch's own moments alone: here they are mixed, so autograd does it.
            moments = _moments(x)
            mean, var = moments.mean, moments.unbiased_var
            out = _normalise(x, *_scale_and_shift(*self._of_batch(moments, n_tasks, pass_), weight, bias, self.eps))
        else:
            out, mean, var = batch_norm(x, weight, bias, self.eps)
        self.leave_statistics(mean, var, n_tasks, pass_, name)
        return out

    def _fixed_statistics(self, n_tasks: int, pass_: Pass, name: str) -> tuple[Tensor, Tensor] | None:
        """Return the mean and variance (B*F,) of a pass that is not normalised by its own images; None: it is."""
        assert not (pass_.is_query and self.choice(pass_).query_needs_support), (
            "query images must come together with the support images"
        )
        if not self._has_fixed_statistics(pass_):
            return None
        if self.choice(pass_).evaluates_with_running:
            mean, var = (_row(values, pass_.step) for values in (self.running_mean, self.running_var))
            return mean.repeat(n_tasks), var.repeat(n_tasks)
        return (pass_.record.moving or {}).get(name) or self._before_any_pass(n_tasks)

    def _has_fixed_statistics(self, pass_: Pass) -> bool:
        choice = self.choice(pass_)
        # "running" trains transductively, as the reference does: only then do the weights get gradients through the
        # moments, and the running statistics describe what evaluation will meet.
        trained = choice.evaluates_with_running and not pass_.is_training
        return trained or (choice.moves_within_episode and pass_.is_query)

    def _mixes_with_running(self, pass_: Pass) -> bool:
        return self.learnable_momentum and pass_.is_training

    def _before_any_pass(self, n_tasks: int) -> tuple[Tensor, Tensor]:
        """Return where the moving averages of an episode start, (B*F,) each."""
        mean = self.running_mean.new_zeros(n_tasks * self.running_mean.shape[-1])
        return mean, torch.ones_like(mean)

    def _of_batch(self, moments: Moments, n_tasks: int, pass_: Pass) -> tuple[Tensor, Tensor]:
        """Return the mean and variance (B*F,) of a pass that is normalised by its own images."""
        if not self._mixes_with_running(pass_):
            return moments.mean, moments.var
        # A learned momentum beyond 0 to 1 would weigh a variance negatively.
        momentum = self.momentum.clamp(0.0, 1.0)
        mean, var = (_row(values, pass_.step).repeat(n_tasks) for values in (self.running_mean, self.running_var))
        return (1 - momentum) * mean + momentum * moments.mean, (1 - momentum) * var + momentum * moments.var

    def leave_statistics(self, mean: Tensor, var: Tensor, n_tasks: int, pass_: Pass, name: str) -> None:
        """Leave a pass's mean and unbiased variance, (B*F,), where the pass wants them."""
        # Constants to the gradient: a running average is a record, not a way back to the images that it is made of.
        mean, var = mean.detach(), var.detach()
        moving = pass_.record.moving
        if moving is not None and self.choice(pass_).moves_within_episode and not pass_.is_query:
            before = moving.get(name) or self._before_any_pass(n_tasks)
            momentum = self.momentum.detach().to(mean.dtype)
            moving[name] = (torch.lerp(before[0], mean, momentum), torch.lerp(before[1], var, momentum))
        if pass_.is_training:
            row = min(pass_.step, self.n_rows - 1)
            for statistic, value in (("running_mean", mean), ("running_var", var)):
                pass_.record.see(f"{name}.{statistic}", row, self.n_rows, value.view(n_tasks, -1))

    @torch.no_grad()
    def update_running_statistics(self, batch_mean: Tensor, batch_var: Tensor) -> None:
        """Move each row towards this iteration's statistics: running <- (1 - m) running + m batch."""
        momentum = self.momentum.clamp(0.0, 1.0)
        # Once per meta-batch, towards its mean over tasks: one move per task, as in a loop over tasks, would depend on
        # their order, on chunks and on ranks.
        self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(batch_var.to(self.running_var.dtype), momentum)

    def has_running_statistics(self) -> bool:
        """Return whether any training pass has ever moved them; waits for the device."""
        return bool((self.running_mean != 0).any() or (self.running_var != 1).any())


def batch_norm_layers(network: nn.Module) -> dict[str, MetaBatchNorm2d]:
    """Return name -> layer."""
    return {name: module for name, module in network.named_modules() if isinstance(module, MetaBatchNorm2d)}


def _row(values: Tensor, step: int, dimensions: int = 1) -> Tensor:
    return values if values.dim() == dimensions else values[min(step, values.shape[0] - 1)]


def _passes_of_parts(pass_: Pass) -> tuple[Pass, Pass]:
    """Return the passes of support and of query images for a layer that normalises each by its own statistics."""
    # The support images are here for another layer's sake: they must not move this layer's average a second time.
    support = replace(pass_, n_support=0, is_query=False).recording(moving=None)
    return support, replace(pass_, n_support=0, is_query=True)


def _moments(x: Tensor) -> Moments:
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return Moments(mean, var, x.numel() // x.shape[1])


def _scale_and_shift(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = weight * torch.rsqrt(var + eps)
    return scale, bias - mean * scale


def _normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


def build_batch_norm(shape: tuple[int, int, int], norm: NormChoice) -> MetaBatchNorm2d:
    """Build the layer of a feature map (F, H, W)."""
    return MetaBatchNorm2d(
        shape[0], n_rows=norm.n_rows, momentum=norm.momentum, learnable_momentum=norm.learnable_momentum, **norm.affine
    )


register_norm_layer("batch_norm", build_batch_norm)
