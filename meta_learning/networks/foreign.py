"""Any `torch.nn.Module` as a network of the learner: split into body and head, its norms and dropouts replaced by ours.

The body is called for one task at a time, by `torch.vmap` for all tasks together or, where it cannot be batched, in
a loop. What the norm layers see is carried out of the call as values, since nothing can be written in place inside a
vmap.

Letters: B tasks, n images per task, C channels, H x W pixels, F filters, N way, D features.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.dropout import drop
from meta_learning.networks.layers import EpisodeHead, MetaLinear, Parameters
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass, PassRecord
from utils.errors import ConfigError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""By position and by name, with which a module is called."""
TakeApart = Callable[[Tensor], Arguments]
"""Of examples (n, ...) as they are in an episode: makes the arguments of a module."""


def as_they_are(images: Tensor) -> Arguments:
    """Call a module with its images alone."""
    return (images,), {}


Output = dict[str, Any]
"""Of one task or, stacked, of B: "features"; "statistics", name -> row -> values; "moving", name -> pair."""


class CurrentPass:
    """What the replaced layers read while the module around them, which does not know of it, runs."""

    def __init__(self) -> None:
        self.begin(Pass())

    def begin(self, pass_: Pass) -> None:
        """Start a pass of one task."""
        self.pass_, self.n_dropouts = pass_, 0


class KeyedDropout(nn.Module):
    """Dropout whose mask follows from seed, episode, inner step and the place of the call in the pass."""

    def __init__(self, rate: float, whole_channels: bool, current: CurrentPass) -> None:
        super().__init__()
        self.rate, self.whole_channels, self.current = rate, whole_channels, current

    def forward(self, x: Tensor) -> Tensor:
        """Drop activations of x (n, F, ...) while meta-training."""
        index = self.current.n_dropouts
        # By the place of the call, not of the layer: a layer that is called twice drops differently each time.
        self.current.n_dropouts += 1
        return drop(x, self.rate, self.current.pass_, index, whole_channels=self.whole_channels)


class _NormCall:
    """Lets a norm layer of ours stand where a plain one stood: it gets the pass, and maps of any number of
    dimensions.
    """

    def __init__(self, name: str, current: CurrentPass) -> None:
        self.name, self.current = name, current
        self.shape: tuple[int, ...] = ()

    def before(self, layer: nn.Module, arguments: tuple[Any, ...], _: Any) -> tuple[tuple[Tensor], dict[str, Any]]:
        x = arguments[0]
        self.shape = x.shape
        return (as_map(x),), {"pass_": self.current.pass_, "name": self.name}

    def after(self, layer: nn.Module, arguments: Any, _: Any, out: Tensor) -> Tensor:
        return out.reshape(self.shape)


class KeptLayerNorm(nn.LayerNorm, MetaNorm):
    """A layer norm of the user's; it has no statistics of a batch."""


class KeptGroupNorm(nn.GroupNorm, MetaNorm):
    """A group norm of the user's; it has no statistics of a batch."""


KEPT_NORMS: dict[type[nn.Module], type[nn.Module]] = {nn.LayerNorm: KeptLayerNorm, nn.GroupNorm: KeptGroupNorm}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}
"""Class -> whether it drops whole channels."""


def as_map(x: Tensor) -> Tensor:
    """Return (n, F), (n, F, L) or (n, F, ...) as (n, F, H, W)."""
    if x.dim() == 4:
        return x
    return x[..., None, None] if x.dim() == 2 else x.flatten(2).unsqueeze(-1)


class ForeignNetwork(MetaNetwork):
    """A module of a user's, made ready by `meta_learning.networks.foreign_checks.foreign_network`.

    Parameters are called body.<name in the module> and head.weight, head.bias; saved, they have the module's own names.

    Args:
        body: the module with the identity in place of its head, and with layers of ours that read `current`.
        head_name: what the head was called in the module.
        together: whether the tasks are computed by one vmap, not one after the other.
        take_apart: what the module is called with.
    """

    def __init__(
        self,
        body: nn.Module,
        head: MetaLinear | EpisodeHead,
        head_name: str,
        current: CurrentPass,
        *,
        together: bool = True,
        take_apart: TakeApart = as_they_are,
    ) -> None:
        super().__init__()
        self.take_apart = take_apart
        self.body, self.head, self.together = body, head, together
        self.plain_prefixes = {"body.": "", "head.": f"{head_name}."}
        self._current = current
        self.stage_names = stages(body, "body")
        self.uses_dropout = any(isinstance(module, KeyedDropout) and module.rate for module in body.modules())
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in body.modules())
        self._attends = any(
            isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in body.modules()
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Keep the weights that the module came with."""

    def features(self, images: Tensor, params: Parameters | None = None, pass_: Pass | None = None) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W)."""
        pass_, n_tasks = pass_ or Pass(), images.shape[0]
        if self.body.training != pass_.is_training:
            self.body.train(pass_.is_training)
        of_body = {
            name.removeprefix("body."): value for name, value in (params or {}).items() if name.startswith("body.")
        }
        # vmap maps tensors alone: zeros stand for seeds that no layer is going to use.
        seeds = (
            torch.zeros(n_tasks, dtype=torch.int64, device=images.device)
            if pass_.dropout_seeds is None
            else pass_.dropout_seeds
        )
        before = pass_.record.moving or {}
        moving = {name: tuple(value.view(n_tasks, -1) for value in pair) for name, pair in before.items()}

        def of_one_task(
            params: dict[str, Tensor], images: Tensor, seed: Tensor, moving: dict[str, tuple[Tensor, Tensor]]
        ) -> Output:
            # A record of its own: values of a vmap may not outlive it but as its results.
            own_seed = None if pass_.dropout_seeds is None else seed[None]
            record = PassRecord(moving=dict(moving))
            of_task = replace(pass_, record=record, dropout_seeds=own_seed)
            self._current.begin(of_task)
            features = functional_call(self.body, params, *self.take_apart(images))
            return {"features": features, "statistics": record.seen, "moving": record.moving}

        with self._twice_differentiable():
            if self.together:
                out = torch.vmap(of_one_task)(of_body, images, seeds, moving)
            else:
                parts = [
                    of_one_task(_task(of_body, task), images[task], seeds[task], _task(moving, task))
                    for task in range(n_tasks)
                ]
                out = _stacked(parts)
        self._current.begin(Pass())  # keeps no tensors alive
        for name, rows in out["statistics"].items():
            for row, passes in enumerate(rows):
                for value in passes:  # (B, 1, F)
                    pass_.record.see(name, row, len(rows), value.squeeze(1))
        if pass_.record.moving is not None:
            after = out["moving"].items()
            pass_.record.moving.update({name: tuple(value.flatten() for value in pair) for name, pair in after})
        return out["features"]

    def _twice_differentiable(self) -> ExitStack:
        """Leave out the fused kernels of attention and recurrence that cannot be differentiated twice."""
        stack = ExitStack()
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if self._is_recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if self._attends:
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
        return stack


def _task(tree: Any, task: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[task]
    if isinstance(tree, dict):
        return {name: _task(value, task) for name, value in tree.items()}
    return tuple(_task(value, task) for value in tree)


def _stacked(trees: list[Any]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.stack(trees)
    if isinstance(first, dict):
        return {name: _stacked([tree[name] for tree in trees]) for name in first}
    return tuple(_stacked(list(values)) for values in zip(*trees, strict=True))


def stages(module: nn.Module, prefix: str) -> list[str]:
    """Return the names of the outermost submodules that norm layers are in, where there are several."""
    inside = {
        name: child
        for name, child in module.named_children()
        if any(isinstance(part, MetaNorm) for part in child.modules())
    }
    if len(inside) == 1:
        ((name, child),) = inside.items()
        if not isinstance(child, MetaNorm):
            return stages(child, f"{prefix}.{name}")
    return [f"{prefix}.{name}" for name in inside]


def replace_layers(
    body: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    norm: NormChoice,
    dtype: torch.dtype,
    current: CurrentPass,
    who: str,
) -> None:
    """Put our norms and dropouts in the places of torch's.

    Args:
        shapes: name of a batch norm -> shape of the map (n, F, H, W) that it normalises.
    Raises:
        ConfigError: a norm layer that writes statistics in place and is none of torch's.
    """
    for name, layer in list(body.named_modules()):
        if isinstance(layer, _BatchNorm):
            if type(layer) not in BATCH_NORMS:
                raise ConfigError(
                    f'{who}: norm layer "{name}" is a {type(layer).__name__}; use torch\'s own batch norms'
                )
            new = _our_norm(layer, shapes[name], norm, dtype)
            call = _NormCall(f"body.{name}", current)
            new.register_forward_pre_hook(call.before, with_kwargs=True)
            new.register_forward_hook(call.after, with_kwargs=True)
        elif type(layer) in KEPT_NORMS:
            kind = KEPT_NORMS[type(layer)]
            # The very parameters of the user's layer under a class of ours, which the learner recognises.
            new = kind.__new__(kind)
            new.__dict__.update(vars(layer))
        elif type(layer) in DROPOUTS:
            new = KeyedDropout(layer.p, DROPOUTS[type(layer)], current)
        else:
            continue
        for parent in body.modules():
            for child_name, child in list(parent.named_children()):
                if child is layer:
                    setattr(parent, child_name, new)


@torch.no_grad()
def _our_norm(plain: nn.Module, shape: tuple[int, ...], norm: NormChoice, dtype: torch.dtype) -> MetaNorm:
    if not plain.affine:
        norm = replace(norm, learn_weight=False, learn_bias=False)
    ours = norm.build(tuple(shape[1:])).to(dtype)
    ours.eps = plain.eps
    # A layer norm of ours has the shape (C, H, W), into which weights per channel do not fit.
    if plain.affine and norm.layer != "layer_norm":
        ours.weight.copy_(plain.weight)  # every row
        ours.bias.copy_(plain.bias)
    if isinstance(ours, MetaBatchNorm2d) and plain.track_running_stats:
        ours.running_mean.copy_(plain.running_mean)
        ours.running_var.copy_(plain.running_var)
    return ours
