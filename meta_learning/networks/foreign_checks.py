"""Making a user's `torch.nn.Module` ready for the learner, with one clear error for each thing that cannot work.

A network for meta-learning is a function of its images and parameters: it shares no parameters, keeps nothing
between calls, draws no random numbers of its own, and ends with a linear layer.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from meta_learning.networks.foreign import (
    Arguments,
    CurrentPass,
    ForeignNetwork,
    TakeApart,
    as_map,
    as_they_are,
    replace_layers,
)
from meta_learning.networks.layers import EpisodeHead, MetaLinear
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from utils.errors import ConfigError
from utils.registry import user_code

log = logging.getLogger(__name__)

N_EXAMPLES = 3
TOLERANCE = 1e-3  # between two ways of computing the same in float32


def foreign_network(
    module: nn.Module,
    image_shape: tuple[int, ...],
    n_way: int | None,
    norm: NormChoice | None = None,
    *,
    examples: Tensor | None = None,
    take_apart: TakeApart = as_they_are,
    head_name: str = "",
    task_batching: str = "auto",
    second_order: bool = True,
    who: str = "the network",
) -> ForeignNetwork:
    """Turn a module into a network of the learner; the module itself is used up.

    Args:
        module: images (n, C, H, W) -> logits (n, N); its last operation is a linear layer.
        n_way: N; None: each episode brings its head, and the module's own is left out.
        examples: (N_EXAMPLES, ...) to try the module on, where normal numbers of that shape would not do.
        take_apart: examples -> what the module is called with.
        norm: what batch norms become; None: batch norm with one row.
        head_name: the name of that layer; empty: the last linear layer.
        task_batching: "batched": all tasks by one vmap; "loop": one after the other; "auto": the former where it works.
        second_order: whether the module must be differentiable twice.
        who: what errors call it.
    Raises:
        ConfigError: the module is no such function.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{who} is a {type(module).__name__}, but must be a torch.nn.Module")
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    images = torch.randn(N_EXAMPLES, *image_shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    images = images if examples is None else examples.to(dtype)
    module.eval()
    arguments = take_apart(images)
    logits, shapes = _shapes_of_batch_norms(module, arguments, who)  # first, since it also materialises lazy layers
    _refuse_shared_parameters(module, who)
    head_name, plain_head = _find_head(module, head_name, who)
    _set(module, head_name, nn.Identity())
    head = _our_head(plain_head, n_way, head_name, who)
    _refuse_other_last_operations(module, plain_head, arguments, logits, head_name, who)
    current = CurrentPass()
    replace_layers(module, shapes, norm or NormChoice(), dtype, current, who)
    module.train()
    _refuse_hidden_state(module, arguments, who)
    _refuse_hidden_randomness(module, arguments, who)
    network = ForeignNetwork(module, head, head_name, current, take_apart=take_apart)
    _choose_batching(network, torch.stack([images, images.flip(0)]), task_batching, second_order, who)
    return network


def _shapes_of_batch_norms(module: nn.Module, given: Arguments, who: str) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, arguments, name=name: shapes.update({name: tuple(as_map(arguments[0]).shape)})
        )
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
    ]
    logits = _call(module, given, who)
    for hook in hooks:
        hook.remove()
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != N_EXAMPLES:
        seen = (
            f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        )
        raise ConfigError(
            f"{who}: its forward pass returns {seen} for {N_EXAMPLES} images, but must return logits ({N_EXAMPLES}, "
            "ways)"
        )
    idle = [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm) and name not in shapes]
    if idle:
        raise ConfigError(f'{who}: its forward pass does not use its layer "{idle[0]}"; leave it out of the module')
    return logits, shapes


@torch.no_grad()
def _call(module: nn.Module, given: Arguments, who: str) -> Any:
    positional, by_name = given
    shapes = [f"{name}={tuple(value.shape)}" for name, value in by_name.items()]
    shapes = [str(tuple(value.shape)) for value in positional] + shapes
    keys = '"input_shape" or, of images, "image_channels", "image_height" and "image_width" say what it gets'
    with user_code(f"{who}: its forward pass for {', '.join(shapes)} ({keys})"):
        return module(*positional, **by_name)


def _refuse_shared_parameters(module: nn.Module, who: str) -> None:
    names: dict[Tensor, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise ConfigError(
                f'{who}: "{names[parameter]}" and "{name}" are one shared parameter, which the inner loop would adapt '
                "as two; "
                "give each layer its own"
            )
        names[parameter] = name


def _find_head(module: nn.Module, head_name: str, who: str) -> tuple[str, nn.Linear]:
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name]
    if head_name and head_name not in linear:
        raise ConfigError(
            f'"head_name" is "{head_name}", but {who} has the linear layers {", ".join(linear) or "(none)"}'
        )
    if not linear:
        raise ConfigError(f"{who} has no linear layer inside, and so no head; end it with a torch.nn.Linear")
    name = head_name or linear[-1]
    return name, module.get_submodule(name)


def _set(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)


@torch.no_grad()
def _our_head(plain: nn.Linear, n_way: int | None, name: str, who: str) -> MetaLinear | EpisodeHead:
    if n_way is None:
        return EpisodeHead(plain.in_features)
    if plain.out_features != n_way:
        raise ConfigError(
            f'{who}: its head "{name}" has {plain.out_features} outputs, but "num_classes_per_set" is {n_way}; build '
            "it for the "
            'number of ways that it is given, or name the right layer with "head_name"'
        )
    head = MetaLinear(plain.in_features, n_way, bias=plain.bias is not None).to(plain.weight.dtype)
    head.load_state_dict(plain.state_dict())
    return head


def _refuse_other_last_operations(
    body: nn.Module, head: nn.Linear, given: Arguments, logits: Tensor, name: str, who: str
) -> None:
    features = _call(body, given, f'{who} without its head "{name}"')
    fits = isinstance(features, Tensor) and features.dim() == 2 and features.shape[1] == head.in_features
    with torch.no_grad():
        if not fits or not torch.allclose(head(features), logits, rtol=TOLERANCE, atol=TOLERANCE):
            raise ConfigError(
                f'{who}: the linear layer "{name}" is not the last operation of its forward pass; name the head with '
                '"head_name", '
                "and leave what follows it (a softmax, say) to the loss"
            )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module and its parts hold: the objects themselves, and how often a tensor was written or how long a
    list is.
    """
    of_torch = vars(nn.Module()).keys()
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        held = {key: value for key, value in vars(part).items() if key not in of_torch}
        for key, value in (
            held | dict(part.named_buffers(recurse=False)) | dict(part.named_parameters(recurse=False))
        ).items():
            size = (
                value._version
                if isinstance(value, Tensor)
                else len(value)
                if isinstance(value, list | dict | set)
                else 0
            )
            found[f"{name}.{key}".lstrip(".")] = (value, size)
    return found


def _refuse_hidden_state(module: nn.Module, given: Arguments, who: str) -> None:
    before = _attributes(module)
    _call(module, given, who)
    for name, (value, size) in _attributes(module).items():
        old, old_size = before.get(name, (None, -1))
        unchanged = value is old or (isinstance(value, int | float | str) and value == old)
        if not unchanged or size != old_size:
            raise ConfigError(
                f'{who} keeps hidden state: its forward pass writes to "{name}", so that tasks would reach each '
                "other; compute it "
                "anew in each pass"
            )


def _refuse_hidden_randomness(module: nn.Module, given: Arguments, who: str) -> None:
    with torch.random.fork_rng(devices=[]):
        first, second = (_call(module, given, who) for _ in range(2))
    if not torch.equal(first, second):
        raise ConfigError(
            f"{who}: its forward pass draws random numbers of its own in training mode (F.dropout, say, or dropout "
            "inside attention or "
            "recurrent layers), which no seed of an episode decides; use torch.nn.Dropout layers"
        )


def _derivatives(
    network: ForeignNetwork, images: Tensor, second_order: bool, who: str
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Compute features of two tasks with parameters of their own and, through them, first (and second) derivatives."""
    norms = network.norm_layers()
    params = {
        name: torch.stack([value.detach(), 1.01 * value.detach()]).requires_grad_()
        for name, value in network.named_parameters()
        if name.startswith("body.") and value.requires_grad and name.rpartition(".")[0] not in norms
    }
    features = network.features(images, params, Pass(is_training=True))
    if not features.requires_grad:
        return features, dict.fromkeys(params)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features).to(features)
    gradients = torch.autograd.grad(
        (features.sin() * weights).sum(), list(params.values()), create_graph=second_order, allow_unused=True
    )
    if second_order and any(gradient is not None and gradient.requires_grad for gradient in gradients):
        squares = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
        torch.autograd.grad(squares, list(params.values()), allow_unused=True)
    return features.detach(), dict(zip(params, gradients, strict=True))


def _choose_batching(network: ForeignNetwork, images: Tensor, task_batching: str, second_order: bool, who: str) -> None:
    """Try the network on two tasks, in a loop and together, and settle for what works.

    Raises:
        ConfigError: it has parameters without effect, cannot be differentiated, or cannot be batched although it shall.
    """
    network.together = False
    try:
        one_by_one, gradients = _derivatives(network, images, second_order, who)
    except RuntimeError as error:
        twice = " twice" if second_order else ""
        raise ConfigError(
            f"{who} cannot be differentiated{twice}: {_first_line(error)}"
            + ('; "second_order" false needs one derivative' if twice else "")
        ) from error
    idle = [name for name, gradient in gradients.items() if gradient is None]
    if idle:
        raise ConfigError(
            f'{who}: its forward pass does not use its parameter "{idle[0].removeprefix("body.")}", which the inner '
            "loop could not adapt; "
            "leave it out of the module"
        )
    if task_batching == "loop":
        return
    network.together = True
    try:
        together, _ = _derivatives(network, images, second_order, who)
        same = (
            torch.linalg.vector_norm(together - one_by_one) <= TOLERANCE * torch.linalg.vector_norm(one_by_one) + 1e-6
        )
        problem = None if same else "the result differs from that of a loop"
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
    ) as error:  # what vmap raises, and what modules raise inside it
        problem = _first_line(error)
    if problem is None:
        return
    if task_batching == "batched":
        raise ConfigError(
            f'"task_batching" is "batched", but {who} cannot compute several tasks together: {problem}; set it to '
            '"auto" or "loop"'
        )
    log.info("%s computes its tasks one after the other, since they cannot be batched: %s", who, problem)
    network.together = False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
