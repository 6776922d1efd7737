"""What the processes of a run (ranks) exchange: means over their tasks, decisions, and what one of them has
read.

No pickle: numbers, JSON and safetensors. Ranks see each other in collectives alone, which all of them call in the
same order.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from utils.errors import PeerLostError
from utils.machine.devices import copy_to
from utils.ranks.command import follow_other_machines
from utils.ranks.rank import Rank, waits_for_others

LONGEST_SET_UP = timedelta(days=1)
"""Others wait so long while one unpacks and decodes a dataset."""
LONGEST_ITERATION = timedelta(minutes=30)
"""Others wait so long for everything else: a process that is silent for longer is taken for lost."""


class MeansOverTasks(Protocol):
    """What a rank has computed of its part of a meta-batch: the learner's meta-gradients."""

    def tensors(self) -> list[Tensor]:
        """Return all that is a mean over tasks, in a fixed order."""

    def with_tensors(self: "Means", tensors: Sequence[Tensor]) -> "Means":
        """Return the same with other means, in that order."""


Means = TypeVar("Means", bound=MeansOverTasks)


class RankGroup:
    """The processes of a run, each of which has a part of the tasks. This one is alone unless `join_group` has made
    the group.

    Parts are runs of neighbours that differ by one task at most, the first ones being the larger.
    """

    def __init__(
        self, index: int = 0, size: int = 1, local_index: int = 0,
        control: "dist.ProcessGroup | None" = None, set_up: "dist.ProcessGroup | None" = None,
    ) -> None:  # fmt: skip
        """`control`: a group of torch for what lies on the host, `set_up`: one that waits while data are decoded; None:
        the default group.
        """
        self.index, self.size, self.local_index = index, size, local_index
        self._control, self._set_up = control, set_up

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def part(self, n_tasks: int, index: int | None = None) -> range:
        """Return the places of the tasks 0..n-1 that a rank has; the ranks' parts together are all of them, once."""
        index = self.index if index is None else index
        return range(-(-index * n_tasks // self.size), -(-(index + 1) * n_tasks // self.size))

    # --- on the device ------------------------------------------------------------------------------------------------

    def mean(self, meta_gradients: Means, n_tasks: int, flags: Sequence[float] = ()) -> tuple[Means, Tensor | None]:
        """Compute the mean over all tasks of what each rank has computed of its part, by one all-reduce.

            mean = sum over ranks (tasks of the rank / B) * mean of the rank,    flags: sum over ranks

        Args:
            meta_gradients: the means over the tasks of this rank.
            n_tasks: B.
            flags: numbers of this rank that ride along.
        Returns:
            (the same on all ranks, bit for bit; sums of the flags, on the device; None where this process is alone).
        """
        if self.is_alone:
            return meta_gradients, None
        tensors = meta_gradients.tensors()
        share = len(self.part(n_tasks)) / n_tasks
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) * share
        flat = torch.cat([flat, copy_to(flat.device, torch.tensor(list(flags), dtype=flat.dtype))])
        with _contact():
            dist.all_reduce(flat)
        pieces = flat.split([*(tensor.numel() for tensor in tensors), len(flags)])
        means = [
            piece.reshape(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces[:-1], tensors, strict=True)
        ]
        return meta_gradients.with_tensors(means), pieces[-1]

    # --- on the host --------------------------------------------------------------------------------------------------

    def largest(self, number: int, group: "dist.ProcessGroup | None" = None) -> int:
        """Return the largest of the ranks' numbers; `group`: of torch, None: that of what lies on the host."""
        if self.is_alone:
            return number
        value = torch.tensor([number])
        with _contact():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control if group is None else group)
        return int(value)

    def wait_for_all(self) -> None:
        """Go on when all ranks are here."""
        self.largest(0)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let in rank 0 alone, then the first rank of each other machine, then the rest: what one makes, all use.

        An exception inside goes on at once: the others learn it from the end of this process.
        """
        turn = 0 if self.is_main else 1 if self.local_index == 0 else 2
        for _ in range(turn):
            self.largest(0, self._set_up)
        yield
        for _ in range(2 - turn):
            self.largest(0, self._set_up)

    def of_main(self, compute: Callable[[], Any]) -> Any:
        """Return what rank 0 computes, JSON-able; the others do not compute it."""
        if self.is_alone:
            return compute()
        return json.loads(self._bytes_of(0, json.dumps(compute()).encode() if self.is_main else b""))

    def state_of_main(self, compute: Callable[[], tuple[Mapping[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        """Return tensors, on the host, and JSON-able state that rank 0 has."""
        if self.is_alone:
            tensors, state = compute()
            return dict(tensors), state
        return _unpacked(self._bytes_of(0, _packed(*compute()) if self.is_main else b""))

    def items_of_main(
        self, items: Iterable[tuple[Any, Mapping[str, Tensor]]]
    ) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield (JSON-able, tensors) one after another as rank 0 has them; the others' `items` are not read."""
        own = iter(items)
        while True:
            item = next(own, None) if self.is_main else None
            if not self.of_main(lambda item=item: item is not None):
                return
            tensors, known = self.state_of_main(lambda item=item: (item[1], item[0]))
            yield known, tensors

    def of_all(self, own: Any) -> list[Any]:
        """Return what each rank has, JSON-able, in their order."""
        if self.is_alone:
            return [own]
        return [
            json.loads(self._bytes_of(index, json.dumps(own).encode() if index == self.index else b""))
            for index in range(self.size)
        ]

    def together(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join tensors with a leading axis of this rank's tasks, on the host, to those of all tasks; a rank without any
        gives none, and what is known of the first tasks alone comes from the first ranks.
        """
        if self.is_alone:
            return dict(own)
        parts = [
            _unpacked(self._bytes_of(index, _packed(own, None) if index == self.index else b""))[0]
            for index in range(self.size)
        ]
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in parts[0]}

    def _bytes_of(self, index: int, content: bytes) -> bytes:
        with _contact():
            length = torch.tensor([len(content)])
            dist.broadcast(length, index, group=self._control)
            data = torch.frombuffer(bytearray(content or bytes(int(length))), dtype=torch.uint8)
            dist.broadcast(data, index, group=self._control)
        return data.numpy().tobytes()


ALONE = RankGroup()


def _packed(tensors: Mapping[str, Tensor], known: Any) -> bytes:
    return save(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()},
        {"json": json.dumps(known)},
    )


def _unpacked(data: bytes) -> tuple[dict[str, Tensor], Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(header["__metadata__"]["json"])


@contextlib.contextmanager
def _contact() -> Iterator[None]:
    """Raise PeerLostError for what torch raises when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            f"contact with another process of this run was lost ({str(error).strip().splitlines()[0]})"
        ) from error


def join_group(rank: Rank | None, device: torch.device) -> RankGroup:
    """Wait for the other processes of the run, and make the group with them; alone where there are none.

    Raises:
        PeerLostError: they did not come.
    """
    if rank is None or rank.size == 1:
        return ALONE
    with _contact():
        if rank.folder is not None and rank.on_several_machines:  # first: another rank may leave before it comes here
            threading.Thread(target=follow_other_machines, args=(rank,), name="following", daemon=True).start()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        waits_for_others.set()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=rank.index, world_size=rank.size, timeout=LONGEST_ITERATION,
        )  # fmt: skip
        control = dist.new_group(backend="gloo", timeout=LONGEST_ITERATION)
        set_up = dist.new_group(backend="gloo", timeout=LONGEST_SET_UP)
        waits_for_others.clear()
    return RankGroup(rank.index, rank.size, rank.local_index, control, set_up)
