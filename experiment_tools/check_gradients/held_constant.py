"""What is moved, recorded or held constant while an outer loss is differenced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from few_shot_learning_system import FewShotLearner
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.passes import Pass

Passing = Callable[[Any], Any]


@contextmanager
def moved(parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], width: float) -> Iterator[None]:
    """Move the parameters by `width` along `direction` inside."""
    before = {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in parameters.items():
            value.add_(direction[name], alpha=width)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(before[name])


def recorder(values: list[Any]) -> Passing:
    """Return what lets each value through and keeps a copy of it."""

    def record(value: Sequence[Tensor]) -> Sequence[Tensor]:
        values.append([tensor.detach().clone() for tensor in value])
        return value

    return record


def replayer(values: Sequence[Any]) -> Passing:
    """Return what lets the kept values through in place of those that are given."""
    waiting = iter(values)
    return lambda _: next(waiting)


@contextmanager
def inner_gradients(learner: FewShotLearner, through: Passing) -> Iterator[None]:
    """Inside, the gradients that the inner-loop optimiser is given pass `through`."""
    original = learner.inner_loop.update

    def update(params: Any, gradients: Any, state: Any, step: int) -> Any:
        return original(params, through(gradients), state, step)

    original_begin = learner.inner_loop.begin

    def begin(params: Any, gradients: Any) -> Any:
        return original_begin(params, through(gradients))

    with patch.object(learner.inner_loop, "update", update), patch.object(learner.inner_loop, "begin", begin):
        yield


@contextmanager
def moving_statistics(learner: FewShotLearner, through: Passing) -> Iterator[None]:
    """Inside, the moving averages that support passes leave in the episode pass `through`."""

    def watched(original: Any) -> Any:
        def leave_statistics(mean: Tensor, var: Tensor, n_tasks: int, pass_: Pass, name: str) -> None:
            original(mean, var, n_tasks, pass_, name)
            moving = pass_.record.moving
            if moving is not None and not pass_.is_query and name in moving:
                moving[name] = through(moving[name])

        return leave_statistics

    with ExitStack() as stack:
        for layer in learner.network.norm_layers().values():
            if isinstance(layer, MetaBatchNorm2d):
                stack.enter_context(patch.object(layer, "leave_statistics", watched(layer.leave_statistics)))
        yield
