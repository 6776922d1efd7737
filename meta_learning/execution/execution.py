"""How a computation over the tasks of a meta-batch is carried out. The algorithm does not know."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.execution.chunk_size import TaskChunks, choose_task_chunk_size
from meta_learning.execution.cuda_graphs import GraphedComputation, recorder_for
from meta_learning.execution.precision import ConvolutionPrecision
from meta_learning.meta_gradients import norm_of
from utils.config import ExperimentConfig
from utils.episodes.source import Episodes

Groups = dict[str, dict[str, Tensor]]
"""Group ("gradients", "statistics", "metrics") -> name -> tensor."""
Computation = Callable[[Episodes, Sequence[Tensor | None], bool], Groups]


def tensors_of(episodes: Episodes) -> dict[str, Tensor]:
    """Return the fields of a dataclass that are tensors, by name."""
    return {item.name: value for item in fields(episodes) if isinstance(value := getattr(episodes, item.name), Tensor)}


def task_chunks(episodes: Episodes, chunk_size: int) -> Iterator[Episodes]:
    """Cut a dataclass of tensors with a leading task axis into pieces of at most `chunk_size` tasks."""
    n_tasks = len(episodes.support_labels)
    if n_tasks <= chunk_size:
        yield episodes
        return
    tensors = tensors_of(episodes)
    for start in range(0, n_tasks, chunk_size):
        yield replace(episodes, **{name: value[start : start + chunk_size] for name, value in tensors.items()})


def first_tasks(episodes: Episodes, n: int) -> Episodes:
    """Return the first n of the tasks."""
    return next(task_chunks(episodes, n))


def mean_over_chunks(compute: Callable[[Episodes], Groups], episodes: Episodes, chunk_size: int) -> Groups:
    """Return the mean over tasks of nested dicts of tensors, of which `compute` gives each chunk's mean.

    mean = sum over chunks (tasks in the chunk / B) * chunk mean, which equals the whole batch's up to rounding.
    """
    n_tasks = len(episodes.support_labels)
    total: Groups = {}
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

    @classmethod
    def of(cls, network: nn.Module) -> "Execution":
        """Build one that computes all tasks at once, in the number format of the parameters, and records nothing."""
        return cls(TaskChunks(None, automatic=False), GraphedComputation(None), ConvolutionPrecision(network))

    def measure_with(self, parameters: Iterable[Tensor]) -> None:
        """Count the gradients of these parameters, too, when the memory of a task is measured."""
        self.chunks.parameter_bytes = sum(value.numel() * value.element_size() for value in parameters)

    def mean_over_tasks(
        self,
        compute: Computation,
        episodes: Episodes,
        weights: Sequence[float],
        epoch: int,
        *,
        second_order: bool,
        heaviest: Callable[[Episodes, Sequence[Tensor | None]], Any],
    ) -> Groups:
        """Return the mean over tasks of what `compute(tasks, weights, second_order)` gives for some of them.

        Args:
            compute: one of its groups is "gradients", one "metrics", which gets their norm as "gradient_norm".
            weights: numbers of this epoch; a zero reaches `compute` as None, since it decides what is computed.
            second_order: of this epoch.
            heaviest: what needs the most memory of all that the run computes, by which memory is measured.
        """
        counts = tuple(weight != 0 for weight in weights)
        # An input of the recording, not a constant of it: the weights of an epoch change, its kernels do not.
        on_device = {"weights": self.weights_on_device(weights, epoch, episodes.support_images)}

        def counted(values: Tensor) -> list[Tensor | None]:
            return [value if is_counted else None for value, is_counted in zip(values, counts, strict=True)]

        def of_chunks(inputs: Mapping[str, Tensor], size: int) -> Groups:
            tensors, numbers = dict(inputs), counted(inputs["weights"])
            del tensors["weights"]
            whole = replace(episodes, **tensors)
            results = mean_over_chunks(lambda tasks: compute(tasks, numbers, second_order), whole, size)
            results["metrics"]["gradient_norm"] = norm_of(results["gradients"])
            return results

        def of_one_task() -> Groups:
            return heaviest(first_tasks(episodes, 1), counted(on_device["weights"]))

        def carry_out() -> Groups:
            self.chunks.choose(len(episodes.support_labels), episodes.support_images.device, of_one_task)
            inputs, key = tensors_of(episodes) | on_device, (compute.__name__, second_order, counts)
            return self._carry_out(of_chunks, inputs, episodes, key, of_one_task)

        self.precision.check(lambda: carry_out()["gradients"], epoch)
        return carry_out()

    def over_tasks(
        self, compute: Callable[[Episodes], dict[str, Tensor]], episodes: Episodes, key: Hashable
    ) -> dict[str, Tensor]:
        """Return what `compute(tasks)` gives for all of them: tensors with a leading task axis.

        Args:
            key: all that the computation depends on beside the tensors of the episodes.
        """

        def of_chunks(inputs: Mapping[str, Tensor], size: int) -> Groups:
            parts = [compute(tasks) for tasks in task_chunks(replace(episodes, **inputs), size)]
            return {"": {name: torch.cat([part[name] for part in parts]) for name in parts[0]}}

        def of_one_task() -> dict[str, Tensor]:
            return compute(first_tasks(episodes, 1))

        return self._carry_out(of_chunks, tensors_of(episodes), episodes, key, of_one_task)[""]

    def _carry_out(
        self,
        of_chunks: Callable[[Mapping[str, Tensor], int], Groups],
        inputs: Mapping[str, Tensor],
        episodes: Episodes,
        key: Hashable,
        of_one_task: Callable[[], Any],
    ) -> Groups:
        # A recording serves only what is the same but for its tensors: ways and number format are no tensors.
        full_key = key, episodes.n_way, self.precision.current

        def at_once(size: int) -> Groups:
            return self.replayed(lambda values: of_chunks(values, size), inputs, (full_key, size))

        n_tasks, device = len(episodes.support_labels), episodes.support_images.device
        return self.chunks.run(at_once, n_tasks, device, of_one_task)

    def weights_on_device(self, weights: Sequence[float], epoch: int, like: Tensor) -> Tensor:
        """Return the weights on the device, copied there once an epoch: a copy from the host waits for it."""
        if self._weights is None or self._weights[0] != epoch:
            self._weights = epoch, torch.tensor(weights, dtype=like.dtype, device=like.device)
        return self._weights[1]


def build_execution(config: ExperimentConfig, network: nn.Module) -> Execution:
    """Build what carries out the computations of a config's network, on the network's device."""
    device = next(network.parameters()).device
    automatic = config.task_chunk_size == "auto"
    chosen = choose_task_chunk_size(device, config.example_shape, config.tasks_per_meta_batch)
    narrow = torch.bfloat16 if config.precision == "bfloat16" else None
    return Execution(
        TaskChunks(chosen if automatic else config.task_chunk_size, automatic=automatic),
        # A MAML++ 5-way meta-gradient is some 2,400 operators, which would be launched one by one otherwise.
        GraphedComputation(recorder_for(device, config.use_cuda_graphs)),
        ConvolutionPrecision(network, narrow, config.precision_error_limit),
    )
