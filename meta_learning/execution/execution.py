"""How a meta-step is carried out: in chunks of tasks, with bad updates taken back. The algorithm does not know."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from meta_learning.execution.chunk_size import TaskChunks
from meta_learning.execution.cuda_graphs import GraphedComputation
from meta_learning.execution.precision import ConvolutionPrecision
from meta_learning.meta_gradients import norm_of

Computation = Callable[[Any, Sequence[Tensor | None]], dict[str, dict[str, Tensor]]]


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


class Execution:
    """Carries out a computation over the tasks of a meta-batch, so that the algorithm need not know how.

    In chunks of tasks that fit into memory (`TaskChunks`), replayed where there is CUDA (`GraphedComputation`), and
    with convolutions in a narrow format that is checked once an epoch (`ConvolutionPrecision`).
    """

    def __init__(self, chunks: TaskChunks, replayed: GraphedComputation, precision: ConvolutionPrecision) -> None:
        self.chunks, self.replayed, self.precision = chunks, replayed, precision
        self._weights: tuple[int, Tensor] | None = None

    def mean_over_tasks(
        self,
        compute: Computation,
        episodes: Any,
        weights: Sequence[float],
        epoch: int,
        *more: Hashable,
        heaviest: Computation,
    ) -> dict[str, dict[str, Tensor]]:
        """Return the mean over tasks of what `compute(tasks, weights)` gives for some of them: groups of tensors,
        one of them "gradients".

        Args:
            weights: numbers of this epoch; a zero reaches `compute` as None, since it decides what is computed.
            more: whatever else the computation depends on beside tensors.
            heaviest: the computation of the run's heaviest epoch, by which memory is measured.
        """
        counts = tuple(weight != 0 for weight in weights)
        on_device = {"weights": self._on_device(weights, epoch, episodes.support_images)}

        def counted(values: Tensor) -> list[Tensor | None]:
            return [value if is_counted else None for value, is_counted in zip(values, counts, strict=True)]

        def of_chunks(inputs: Mapping[str, Tensor], size: int) -> dict[str, dict[str, Tensor]]:
            tensors, numbers = dict(inputs), counted(inputs["weights"])
            del tensors["weights"]
            results = mean_over_chunks(lambda tasks: compute(tasks, numbers), replace(episodes, **tensors), size)
            results["metrics"]["gradient_norm"] = norm_of(results["gradients"])
            return results

        def of_one_task() -> Any:
            return heaviest(next(task_chunks(episodes, 1)), counted(on_device["weights"]))

        def carry_out() -> dict[str, dict[str, Tensor]]:
            self.chunks.choose(len(episodes.support_labels), episodes.support_images.device, of_one_task)
            return self._carry_out(of_chunks, tensors_of(episodes) | on_device, episodes, (*more, counts), of_one_task)

        self.precision.check(lambda: carry_out()["gradients"], epoch)
        return carry_out()

    def over_tasks(
        self, compute: Callable[[Any], dict[str, Tensor]], episodes: Any, key: Hashable
    ) -> dict[str, Tensor]:
        """Return what `compute(tasks)` gives for all of them: tensors with a leading task axis."""

        def of_chunks(inputs: Mapping[str, Tensor], size: int) -> dict[str, dict[str, Tensor]]:
            parts = [compute(tasks) for tasks in task_chunks(replace(episodes, **inputs), size)]
            return {"": {name: torch.cat([part[name] for part in parts]) for name in parts[0]}}

        return self._carry_out(
            of_chunks, tensors_of(episodes), episodes, key, lambda: compute(next(task_chunks(episodes, 1)))
        )[""]

    def _carry_out(
        self,
        of_chunks: Callable[[Mapping[str, Tensor], int], dict[str, dict[str, Tensor]]],
        inputs: Mapping[str, Tensor],
        episodes: Any,
        key: Hashable,
        of_one_task: Callable[[], Any],
    ) -> dict[str, dict[str, Tensor]]:
        full_key = key, episodes.n_way, self.precision.current
        return self.chunks.run(
            lambda size: self.replayed(lambda values: of_chunks(values, size), inputs, (full_key, size)),
            len(episodes.support_labels), episodes.support_images.device, of_one_task,
        )  # fmt: skip

    def _on_device(self, weights: Sequence[float], epoch: int, like: Tensor) -> Tensor:
        """The weights on the device, copied there once an epoch."""
        if self._weights is None or self._weights[0] != epoch:
            self._weights = epoch, torch.tensor(weights, dtype=like.dtype, device=like.device)
        return self._weights[1]
