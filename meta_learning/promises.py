"""Whether what a plugin brings keeps the promises of its kind, tried once on a few small random tensors before any data
are read: wrong arguments, shapes and states are told by name then, and not in the midst of an epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from meta_learning.heads.base import Head
from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.losses.base import TaskLoss
from meta_learning.outer_losses.base import OuterLoss
from utils.errors import ConfigError
from utils.registry import user_code

OURS = InnerLoopOptimizer.__module__.removesuffix("inner_loop.base")
N_TASKS, N_SHOT = 2, 2


def check_promises(
    parts: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]], n_outputs: int, n_steps: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Try the parts of a learner that are not this project's own.

    Args:
        parts: config key -> what was made for it: update rule, head, loss, outer loss.
        shapes: of the adapted parameters, as of `adapted_shapes`.
        n_outputs: N classes, or D numbers of a regression.
        n_steps: S.
        dtype: of the parts, and of what they are tried on.
    Raises:
        ConfigError: one fails, or returns something else than its base class says.
    """
    with torch.random.fork_rng(devices=[]):
        for key, part in parts.items():
            if type(part).__module__.startswith(OURS):
                continue
            what = f'{key} "{type(part).__name__}"'
            # Where its parameters are: those of an object that was given may be elsewhere than here.
            device = next((parameter.device for parameter in part.parameters()), None)
            draw = partial(torch.rand, dtype=dtype, device=device)
            if isinstance(part, InnerLoopOptimizer):
                of_all = {name: _stacked(name, shape, n_outputs, shapes) for name, shape in shapes.items()}
                _try_rule(what, part, {name: draw(shape) for name, shape in of_all.items()})
            elif isinstance(part, Head) and part.is_made_per_episode:
                _try_head(what, part, n_outputs, draw)
            elif isinstance(part, TaskLoss):
                _try_loss(what, part, n_outputs, draw)
            elif isinstance(part, OuterLoss):
                _try_outer_loss(what, part, n_steps, draw)


def _stacked(name: str, shape: Sequence[int], n_way: int, shapes: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the shape of a parameter for all tasks; a head of each episode has a row per class."""
    is_row = name.startswith("head.") and len(shapes["head.weight"]) == 1
    return [N_TASKS, *([n_way] if is_row else []), *shape]


def _try_rule(what: str, rule: InnerLoopOptimizer, params: Mapping[str, Tensor]) -> None:
    first = [_two_steps(what, rule, params) for _ in range(2)]
    for name in params:
        if not torch.allclose(*(updated[name] for updated in first), rtol=0, atol=0, equal_nan=True):
            raise ConfigError(
                f"{what}: the same first steps move {name} otherwise the second time; what it remembers from step to "
                "step belongs in its state, which `init` begins anew in each episode"
            )


def _two_steps(what: str, rule: InnerLoopOptimizer, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters after two steps on the sum of their squares, cut from each other as in evaluation."""
    torch.manual_seed(0)
    values = dict(params)
    with user_code(what):
        state = rule.init(values)
        for step in range(2):
            values = {name: value.detach().requires_grad_() for name, value in values.items()}
            gradients = [2 * value for value in values.values()]
            if type(rule).direction is not InnerLoopOptimizer.direction:
                found = rule.direction(values, rule.prepared(values, gradients), state, step)
                _check_pair(what, "direction", found)
                if not isinstance(found[0], list | tuple) or len(found[0]) != len(params):
                    raise ConfigError(
                        f"{what}: `direction` returns {_said(found[0])}, but must return a list of {len(params)} "
                        "tensors, one for each gradient"
                    )
                _check_shapes(what, "direction", dict(zip(params, found[0], strict=True)), params)
            found = rule.update(values, gradients, state, step)
            _check_pair(what, "update", found)
            values, state = found
            _check_shapes(what, "update", values, params)
            _check_state(what, state)
    return values


def _check_pair(what: str, method: str, found: object) -> None:
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ConfigError(
            f"{what}: `{method}` returns {_said(found)}, but must return a pair, of which the second is the state"
        )


def _check_shapes(what: str, method: str, found: object, wanted: Mapping[object, Tensor]) -> None:
    if not isinstance(found, Mapping) or list(found) != list(wanted):
        names = _said(found) if not isinstance(found, Mapping) else ", ".join(map(str, found)) or "nothing"
        raise ConfigError(f"{what}: `{method}` returns {names}, but must return {', '.join(map(str, wanted))}")
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != wanted[name].shape:
            raise ConfigError(
                f"{what}: `{method}` returns for {name} {_said(value)}, but must return a tensor of "
                f"{tuple(wanted[name].shape)}, the first axis being that of the tasks"
            )


def _check_state(what: str, state: object) -> None:
    lists = list(state.values()) if isinstance(state, Mapping) else [None]
    if not all(isinstance(values, list | tuple) and all(isinstance(v, Tensor) for v in values) for values in lists):
        texts = (
            ", ".join(f"{key}: {_said(value)}" for key, value in state.items()) if isinstance(state, Mapping) else ""
        )
        raise ConfigError(
            f"{what}: its state is {texts or _said(state)}, but must be a dict of name -> list of tensors (a count "
            "of steps is a tensor of no axes)"
        )


def _try_head(what: str, head: Head, n_way: int, draw: Callable[..., Tensor]) -> None:
    features = draw(N_TASKS, n_way * N_SHOT if head.uses_features else 0, head.n_features).requires_grad_()
    labels = torch.arange(n_way, device=features.device).repeat(N_TASKS, N_SHOT)
    with user_code(what):
        made = head.make(features, labels, n_way)
        _check_shapes(what, "make", made, {
            "head.weight": torch.empty(N_TASKS, n_way, head.n_features), "head.bias": torch.empty(N_TASKS, n_way),
        })  # fmt: skip


def _try_loss(what: str, loss: TaskLoss, n_outputs: int, draw: Callable[..., Tensor]) -> None:
    n_images = n_outputs * N_SHOT
    outputs = draw(N_TASKS, n_images, n_outputs).requires_grad_()
    labels = (
        torch.rand_like(outputs)
        if loss.is_regression
        else torch.arange(n_outputs, device=outputs.device).repeat(N_TASKS, N_SHOT)
    )
    _check_numbers(what, "losses", lambda: loss.per_task_loss(outputs, labels), (N_TASKS,))


def _try_outer_loss(what: str, loss: OuterLoss, n_steps: int, draw: Callable[..., Tensor]) -> None:
    _check_numbers(what, "forward", lambda: loss(draw(N_TASKS).requires_grad_()), ())
    with user_code(what):
        weights = loss.step_weights(0, n_steps)
        if weights is not None and len(weights) != max(n_steps, 1):
            raise ConfigError(
                f"{what}: `step_weights` returns {len(weights)} weights for {n_steps} inner steps, but must return as "
                "many as there are steps (1 for none), or None"
            )


def _check_numbers(what: str, method: str, call: Callable[[], object], shape: tuple[int, ...]) -> None:
    with user_code(what):
        try:
            found = call()
        except NotImplementedError as error:
            raise ConfigError(f"{what}: has no method `{method}`, which its base class asks for") from error
        if not isinstance(found, Tensor) or found.shape != shape:
            raise ConfigError(
                f"{what}: `{method}` returns {_said(found)}, but must return a tensor of {shape}: "
                + ("one number" if not shape else "one loss per task")
            )


def _said(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)}"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.60}"
