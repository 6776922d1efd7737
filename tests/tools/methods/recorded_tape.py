"""A stand-in for a CUDA graph: every operator that a function calls, with the memory that it reads and writes, to be
run again without Python.

As in a graph, numbers of Python are those of the recording, tensors are places in memory, and nobody asks the
function again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def _place(value: Any) -> Any:
    """The memory of a tensor, whatever becomes of the tensor: `.data = ` and the like leave it."""
    return value.detach() if isinstance(value, Tensor) else value


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Inside, operators are written down; `replay` runs them again from the same places into the same places."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any, list[bool]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        is_new = [_address(tensor) not in given for tensor in _tensors(out)]
        if operator._schema.is_mutable or any(is_new):
            places = tree_map(_place, (args, kwargs or {}, out))
            self._operations.append((operator, *places, is_new))
        return out

    @torch.no_grad()
    def forget_results(self) -> None:
        """Fill all that the function has made: a graph that was recorded has computed nothing yet."""
        for *_, out, is_new in self._operations:
            for tensor, new in zip(_tensors(out), is_new, strict=True):
                if new:
                    _spoil(tensor)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operators."""
        for operator, args, kwargs, out, is_new in self._operations:
            if operator.overloadpacket.__name__ in UNWRITTEN:
                for tensor in _tensors(out):
                    _spoil(tensor)
                continue
            result = operator(*args, **kwargs)
            for place, value, new in zip(_tensors(out), _tensors(result), is_new, strict=True):
                if new:
                    place.copy_(value)


def _spoil(tensor: Tensor) -> None:
    tensor.fill_(float("nan") if tensor.is_floating_point() else 1)


class TapeRecorder:
    """Records as `meta_learning.execution.cuda_graphs.CudaRecorder` does: a run to warm up, one that is written
    down.
    """

    def __init__(self) -> None:
        self.n_recordings = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
        self.n_recordings += 1
        function()
        with Tape() as tape:
            result = function()
        tape.forget_results()
        return tape, result
