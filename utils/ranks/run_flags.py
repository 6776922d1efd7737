"""When a run stops or saves: all of its processes at the same iteration."""

import signal
import time
from collections import deque

import torch
from torch import Tensor

from utils.machine.stop_signals import HANDLED, StopSignals
from utils.ranks.group import RankGroup


class RunFlags:
    """Signals and the time since the last save, agreed upon by the ranks: their flags ride in the all-reduce of each
    iteration.

    What one rank is asked, all know after the next iteration; on a GPU after the one behind it, so that the host need
    not wait for the device. Rank 0's clock decides when it is time to save. A process alone decides at once.
    """

    def __init__(self, stop: StopSignals, group: RankGroup, save_every_s: float, device: torch.device):
        """`save_every_s`: 0: never by the clock."""
        self._stop, self._group, self._save_every_s = stop, group, save_every_s
        self._behind = 1 if device.type == "cuda" else 0
        self._sums: deque[Tensor] = deque()
        self._last_save = time.monotonic()

    def to_ride(self) -> list[float]:
        """Return this rank's flags: one per signal, and whether it is time to save; none where nobody else is there to
        learn them.
        """
        if self._group.is_alone:
            return []
        return [
            *(float(self._stop.received == number) for number in HANDLED),
            float(self._group.is_main and self._is_time_to_save()),
        ]

    def learn(self, sums: Tensor | None) -> None:
        """Take the sums over the ranks of an iteration's flags."""
        if sums is not None:
            self._sums.append(sums)

    def take(self) -> tuple[signal.Signals | None, bool]:
        """Return (signal by which to stop now, whether to save now): the same on all ranks."""
        if self._group.is_alone:
            return self._stop.received, self._is_time_to_save()
        if len(self._sums) <= self._behind:
            return None, False
        *signals, save = self._sums.popleft().tolist()
        number = next((number for number, count in zip(HANDLED, signals, strict=True) if count), None)
        self._stop.received = number or self._stop.received
        return number, save > 0

    def saved(self) -> None:
        """Count the time anew: a checkpoint was written."""
        self._last_save = time.monotonic()
        self._sums.clear()  # who wants to stop still does, and says so again

    def check(self) -> None:
        """Stop here if any rank was asked to; all ranks call it, between two batches of evaluation tasks.

        Raises:
            Interrupted: on all of them.
        """
        number = self._group.largest(int(self._stop.received or 0))
        if number:
            self._stop.received = signal.Signals(number)
        self._stop.check()

    def _is_time_to_save(self) -> bool:
        return 0 < self._save_every_s <= time.monotonic() - self._last_save
