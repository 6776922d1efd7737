"""A computation recorded once as a CUDA graph and replayed, because launching thousands of small kernels takes
longer than running them.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.machine.failures import is_out_of_memory

log = logging.getLogger(__name__)
WARM_UPS = 2
"""Runs before the recording, in which libraries choose algorithms and make their workspaces."""

Tensors = Mapping[str, Tensor]
Nested = dict[str, dict[str, Tensor]]


class Recording(Protocol):
    """What replays."""

    def replay(self) -> None:
        """Compute again from what the inputs hold now, into the same outputs."""


class CudaRecorder:
    """Records CUDA graphs that share their memory: they replay one after the other, and their results are copied
    before the next one does.

    Args:
        device: on which the function computes, whichever one is current.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None  # one for all, so that libraries need one workspace, and graphs can share their memory
        self._pool: Any = None

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        """Return a graph of a function and the tensor that each replay writes its result to.

        Warm-up and recording compute from the same inputs and keep nothing but the result: the function must change
        nothing.

        Raises:
            RuntimeError: what the function raised, also where that makes the end of the recording fail.
        """
        with torch.cuda.device(self._device):
            outside = torch.cuda.current_stream()
            self._stream = self._stream or torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            self._stream.wait_stream(outside)
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UPS):
                        function()
                outside.wait_stream(self._stream)
                # Another thread prepares the next episodes meanwhile; its allocations are none of this graph's
                # business.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    result = function()
            except RuntimeError as error:
                raise (error.__context__ if isinstance(error.__context__, RuntimeError) else error) from None
            finally:
                torch.cuda.set_stream(outside)  # torch stays on the stream of a recording that it cannot end
            return graph, result


class GraphedComputation:
    """Runs a pure function of tensors from recordings, one for each key and each set of shapes.

    Every result is that of a replay, also the first, so that a run that was resumed replays the same. What comes
    back is the caller's: the next replay does not touch it. Where recording fails, one line says so and the function
    runs as it is from then on.

    Args:
        record: None: nothing is recorded.
    """

    def __init__(self, record: Callable[[Callable[[], Tensor]], tuple[Recording, Tensor]] | None) -> None:
        self._record = record
        self._recordings: dict[
            Hashable, tuple[Recording, Tensor, dict[str, Tensor], list[tuple[str, str, torch.Size]]]
        ] = {}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run functions as they are inside, for those who watch them: a replay shows nothing of what it computes."""
        record, self._record = self._record, None
        try:
            yield
        finally:
            self._record = record

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedComputation":
        """Return one without recordings: a copy of the learner computes from other parameters."""
        return GraphedComputation(self._record)

    def __call__(self, function: Callable[[Tensors], Nested], inputs: Tensors, key: Hashable) -> Nested:
        """Return `function(inputs)`.

        Args:
            function: gives two levels of dicts of tensors of one dtype; must not wait for the device.
            inputs: may have other values at each call.
            key: of everything else that the result depends on, values on the device apart.
        """
        if self._record is None:
            return function(inputs)
        full_key = key, tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if full_key not in self._recordings:
            try:
                self._recordings[full_key] = self._recorded(function, inputs)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self._recordings.clear()  # their memory may be what is missing
                    raise
                log.warning(
                    "CUDA graphs are off: this computation cannot be recorded (%s).",
                    str(error).strip().partition("\n")[0],
                )
                self._record = None
                return function(inputs)
        recording, flat, places, layout = self._recordings[full_key]
        for name, value in inputs.items():
            places[name].copy_(value, non_blocking=True)
        recording.replay()
        return _unflatten(flat.clone(), layout)

    def _recorded(
        self, function: Callable[[Tensors], Nested], inputs: Tensors
    ) -> tuple[Recording, Tensor, dict[str, Tensor], list[tuple[str, str, torch.Size]]]:
        assert self._record is not None
        places = {name: value.clone() for name, value in inputs.items()}
        layout: list[tuple[str, str, torch.Size]] = []

        def flat_result() -> Tensor:
            results = function(places)
            layout[:] = [
                (group, name, value.shape) for group, values in results.items() for name, value in values.items()
            ]
            # One tensor for all results: what leaves the graph's memory is copied by one kernel, not by one for each.
            return torch.cat([value.detach().reshape(-1) for values in results.values() for value in values.values()])

        recording, flat = self._record(flat_result)
        return recording, flat, places, layout


def _unflatten(flat: Tensor, layout: list[tuple[str, str, torch.Size]]) -> Nested:
    results: Nested = {}
    for (group, name, shape), values in zip(layout, flat.split([shape.numel() for _, _, shape in layout]), strict=True):
        results.setdefault(group, {})[name] = values.view(shape)
    return results


def recorder_for(device: torch.device, wanted: bool) -> CudaRecorder | None:
    """Return a recorder where it can run and is wanted, else None."""
    return CudaRecorder(device) if wanted and device.type == "cuda" else None
