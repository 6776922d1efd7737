"""How many tasks are computed at once: what one of them needs, what is free, and half as many where that was too
much.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.machine.failures import is_out_of_memory
from utils.words import counted, mib_text

log = logging.getLogger(__name__)
SAFE_SHARE = 0.8
"""Of the free memory, so much is filled: what is measured errs, and other programs need some too."""
IN_FLIGHT, COPIES_IN_FLIGHT = 1.1, 2
"""Memory in use: so many times what autograd holds, and so many gradients of all parameters."""


class _Held:
    """A tensor that autograd holds; its storage counts until the last one of it is let go."""

    def __init__(self, tensor: Tensor, storages: dict[int, list[int]]) -> None:
        self.tensor, self._storages, self._key = tensor, storages, tensor.untyped_storage().data_ptr()
        storages.setdefault(self._key, [tensor.untyped_storage().nbytes(), 0])[1] += 1

    def __del__(self) -> None:
        entry = self._storages[self._key]
        entry[1] -= 1
        if not entry[1]:
            del self._storages[self._key]


@contextmanager
def held_by_autograd() -> Iterator[Callable[[], int]]:
    """Watch what autograd keeps for backward passes inside; yield a function of the most bytes it held at one time."""
    storages: dict[int, list[int]] = {}
    peak = 0

    def pack(tensor: Tensor) -> _Held:
        nonlocal peak
        held = _Held(tensor, storages)
        peak = max(peak, sum(n_bytes for n_bytes, _ in storages.values()))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield lambda: peak


def peak_bytes(compute: Callable[[], Any], device: torch.device, parameter_bytes: int) -> int:
    """Return the memory that `compute()` needs: on a GPU the peak of torch's allocator, else from what autograd
    held.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # A CPU has no allocator that counts, and the peak of a process never falls. The two factors make it 0.75 to 1.35
    # times what torch's profiler sees, for ten kinds of learner (tests/meta_learning/execution/test_task_chunks.py).
    with held_by_autograd() as most:
        compute()
    return round(IN_FLIGHT * most() + COPIES_IN_FLIGHT * parameter_bytes)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be had on a GPU, or in the machine (within its container's limit); None:
    unknown.
    """
    if device.type == "cuda":
        # What torch has reserved from the driver and does not use is free, too.
        held_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held_back
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no limit
        return available


class TaskChunks:
    """The number of tasks that are computed at once.

    Args:
        size: tasks at once; None: all of the meta-batch.
        automatic: the size is the machine's choice, and at most `size`: made at the first meta-gradient, kept in
            checkpoints, and halved where memory runs out.
        parameter_bytes: of everything that has a meta-gradient.
    """

    def __init__(self, size: int | None, *, automatic: bool, parameter_bytes: int = 0) -> None:
        self.size, self.automatic, self.parameter_bytes = size, automatic, parameter_bytes
        self.bytes_per_task: int | None = None
        self._is_open = automatic

    def of(self, n_tasks: int) -> int:
        """Return the tasks at once, of this many."""
        return min(self.size or n_tasks, n_tasks)

    def reuse(self, size: int | None) -> None:
        """Take over the choice of the run that is resumed."""
        if self.automatic and size is not None:
            self.size, self._is_open = size, False

    def snapshot(self) -> dict[str, float]:
        """Return the memory of a task in MiB, where it was measured."""
        return (
            {} if self.bytes_per_task is None else {"peak_memory_per_task_mib": round(self.bytes_per_task / 2**20, 2)}
        )

    def choose(self, n_tasks: int, device: torch.device, compute_one: Callable[[], Any]) -> None:
        """Measure one task and choose the largest number of tasks that fits, once, where there is something to
        choose.
        """
        if not self._is_open or self.of(n_tasks) == 1:
            return
        self._is_open = False
        try:
            self.bytes_per_task = max(peak_bytes(compute_one, device, self.parameter_bytes), 1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.size = 1  # and the first chunk says what is wrong, if anything is
            return
        free = free_bytes(device)
        if free is not None:
            self.size = max(1, min(self.of(n_tasks), int(SAFE_SHARE * free) // self.bytes_per_task))
        log.info(
            "Memory: about %s per task%s; %d of %s at once.",
            mib_text(self.bytes_per_task),
            "" if free is None else f", {mib_text(free)} free",
            self.of(n_tasks),
            counted(n_tasks, "task"),
        )

    def run(
        self, compute: Callable[[int], Any], n_tasks: int, device: torch.device, compute_one: Callable[[], Any]
    ) -> Any:
        """Return `compute(tasks at once)`; where memory runs out and the size is the machine's choice, with half as
        many from now on.

        Raises:
            RuntimeError, MemoryError: out of memory; its notes say how much is needed.
        """
        while True:
            size = self.of(n_tasks)
            try:
                return compute(size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1 or not self.automatic:
                    error.add_note(self._need(size, n_tasks, device, compute_one))
                    raise
            self.size = (size + 1) // 2
            log.warning(
                "Out of memory with %d tasks at once; going on with %d, which changes no result.", size, self.size
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _need(self, size: int, n_tasks: int, device: torch.device, compute_one: Callable[[], Any]) -> str:
        """Return what the error reports: the memory of the chunk, by that of one task where it can be computed."""
        if self.bytes_per_task is None and size > 1:
            try:
                self.bytes_per_task = peak_bytes(compute_one, device, self.parameter_bytes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        if self.bytes_per_task is None:
            free = free_bytes(device)
            return "One task alone needs more than is free" + ("." if free is None else f" ({mib_text(free)}).")
        return (
            f"{size} of {counted(n_tasks, 'task')} at once need about {mib_text(size * self.bytes_per_task)}, "
            f"{mib_text(self.bytes_per_task)} each."
        )


def choose_task_chunk_size(device: torch.device, image_shape: tuple[int, ...], n_tasks: int) -> int:
    """Choose how many tasks are computed at once.

    Everywhere all of them, except large images on a CPU: there plain convolutions task by task beat one grouped
    convolution (84 x 84, 48 filters: 110 against 62 GFLOP/s forward) and the work of one task fills the cores.
    """
    return 1 if device.type == "cpu" and math.prod(image_shape[1:]) > 42 * 42 else n_tasks
