"""Training metrics of the epoch that is under way: on the device until they are read, then in running sums."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.metrics import MetricSums

Metrics = dict[str, list[float]]
"""Metric -> its entries, of one iteration."""


class EpochMetrics:
    """What `state` returns and the constructor takes is everything, so an epoch can be left and gone on with anywhere.

    Values come to the host in one transfer per reading. When that happens changes no number: an interval of the log is
    the iterations since the last `end_interval`, whether they were read at once or in pieces.
    """

    def __init__(self, first_iteration: int, state: Mapping[str, Any] | None = None):
        """Args:
        first_iteration: training iterations done before this epoch.
        state: of the same epoch, left by another process.
        """
        state = state or {}
        self.first_iteration: int = state.get("first_iteration", first_iteration)
        self.sums = MetricSums(state.get("sums"))
        self._interval: list[Metrics] = [_from_json(metrics) for metrics in state.get("interval", ())]
        self._earlier_s: float = state.get("time_s", 0.0)
        self._start = time.perf_counter()
        self._sizes: dict[str, int] = {}
        self._unread: list[Tensor] = []

    @property
    def time_s(self) -> float:
        """Seconds spent on the epoch, by all processes that worked on it."""
        return self._earlier_s + time.perf_counter() - self._start

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep an iteration's metrics, on the device."""
        self._sizes = {name: value.numel() for name, value in metrics.items()}
        self._unread.append(torch.cat([value.detach().reshape(-1) for value in metrics.values()]))

    def interval(self) -> list[Metrics]:
        """The iterations since the last `end_interval`. Here the host waits for the device."""
        if self._unread:
            for row in torch.stack(self._unread).tolist():
                entries = iter(row)
                self._interval.append({name: [next(entries) for _ in range(n)] for name, n in self._sizes.items()})
            self._unread = []
        return list(self._interval)

    def end_interval(self) -> None:
        """Put the interval's metrics into the sums of the epoch."""
        for metrics in self.interval():
            for name, values in metrics.items():
                self.sums.add(name, values)
        self._interval = []

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "first_iteration": self.first_iteration,
            "sums": self.sums.state(),
            "interval": [_to_json(metrics) for metrics in self.interval()],
            "time_s": self.time_s,
        }


def _to_json(metrics: Metrics) -> dict[str, Sequence[float | None]]:
    return {name: [value if math.isfinite(value) else None for value in row] for name, row in metrics.items()}


def _from_json(metrics: Mapping[str, Sequence[float | None]]) -> Metrics:
    return {name: [math.nan if value is None else value for value in row] for name, row in metrics.items()}
