"""How a meta-step is carried out: in chunks of tasks, with bad updates taken back. The algorithm does not know."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor


def choose_task_chunk_size(device: torch.device, image_shape: tuple[int, int, int], n_tasks: int) -> int:
    """Choose how many tasks are computed at once.

    Everywhere all of them, except large images on a CPU: there plain convolutions task by task beat one grouped
    convolution (84 x 84, 48 filters: 110 against 62 GFLOP/s forward) and the work of one task fills the cores.
    """
    _, height, width = image_shape
    return 1 if device.type == "cpu" and height * width > 42 * 42 else n_tasks


def tensors_of(episodes: Any) -> dict[str, Tensor]:
    """The fields of a dataclass that are tensors, by name."""
    return {item.name: value for item in fields(episodes) if isinstance(value := getattr(episodes, item.name), Tensor)}


def task_chunks(episodes: Any, chunk_size: int) -> Iterator[Any]:
    """Cut a dataclass of tensors with a leading task axis into pieces of at most `chunk_size` tasks."""
    n_tasks = len(episodes.support_labels)
    if n_tasks <= chunk_size:
        yield episodes
        return
    tensors = tensors_of(episodes)
    for start in range(0, n_tasks, chunk_size):
        yield replace(episodes, **{name: value[start : start + chunk_size] for name, value in tensors.items()})


def mean_over_chunks(
    compute: Callable[[Any], dict[str, dict[str, Tensor]]], episodes: Any, chunk_size: int
) -> dict[str, dict[str, Tensor]]:
    """Return the mean over tasks of nested dicts of tensors, of which `compute` gives each chunk's mean.

    mean = sum over chunks (tasks in the chunk / B) * chunk mean, which equals the whole batch's up to rounding.
    """
    n_tasks = len(episodes.support_labels)
    total: dict[str, dict[str, Tensor]] = {}
    for chunk in task_chunks(episodes, chunk_size):
        share = len(chunk.support_labels) / n_tasks
        result = compute(chunk)
        if share == 1.0:
            return result
        for group, tensors in result.items():
            sums = total.setdefault(group, {})
            for name, tensor in tensors.items():
                sums[name] = tensor * share if name not in sums else sums[name] + tensor * share
    return total


def gradients_of(outputs: list[Tensor], weights: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradient of sum(weights * outputs), zero where nothing leads to an input; missing weights are zero."""
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=False) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(value) for value in inputs]
    outputs, weights = map(list, zip(*pairs, strict=True))
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True))


class UpdateGuard:
    """Takes back, on the device and without waiting for it, updates that came of numbers that are not finite.

    A few may be skipped; after those the guard lets no update through any more, so that the state stays what it was at
    the iteration that failed until somebody looks.
    """

    def __init__(self) -> None:
        self._skips_left: Tensor | None = None
        self.allow_skips(0)

    def allow_skips(self, count: int) -> None:
        """Let `count` failing updates be skipped from now on, each alone."""
        self._skips_left, self._allowed = None, count

    @contextmanager
    def update(self, evidence: Iterable[Tensor], changed: Sequence[Tensor]) -> Iterator[Tensor]:
        """Run an update inside; afterwards `changed` are as before unless all evidence is finite.

        Args:
            evidence: tensors of any shapes, of one dtype.
            changed: everything that the update writes to.
        Yields:
            bool (), whether the update stays.
        """
        finite = torch.isfinite(torch.cat([tensor.detach().reshape(-1) for tensor in evidence])).all()
        if self._skips_left is None:
            self._skips_left = torch.full((), self._allowed, dtype=torch.int64, device=finite.device)
        self._skips_left -= torch.logical_not(finite).long()
        stays = finite & (self._skips_left >= 0)
        before = [tensor.detach().clone() for tensor in changed]
        yield stays
        for tensor, old in zip(changed, before, strict=True):
            torch.where(stays, tensor.detach(), old, out=tensor.detach())
