"""Training metrics of the epoch that is under way: on the device until they are read, then in running sums."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.metrics import MetricSums, finite_or_none

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
        # Earlier releases could go on behind an update that was not applied, and kept its entry.
        entries = [entry for entry in state.get("interval", ()) if entry.get("applied", True)]
        self._interval: list[Metrics] = [
            {name: [math.nan if value is None else value for value in row] for name, row in entry["metrics"].items()}
            for entry in entries
        ]
        self._refused: tuple[int, Metrics] | None = None
        self._earlier_s: float = state.get("time_s", 0.0)
        self.data_time_s: float = state.get("data_time_s", 0.0)
        """Of `time_s`, spent waiting for episodes."""
        self._start = time.perf_counter()
        self._sizes: dict[str, int] = {}
        self._unread: list[tuple[int, Tensor]] = []

    @property
    def time_s(self) -> float:
        """Seconds spent on the epoch, by all processes that worked on it."""
        return self._earlier_s + time.perf_counter() - self._start

    def add(self, iteration: int, metrics: Mapping[str, Tensor], applied: Tensor) -> None:
        """Keep the metrics of an iteration (counted from 1) and whether its update was applied, on the device."""
        self._sizes = {name: value.numel() for name, value in metrics.items()}
        vector = torch.cat([value.detach().reshape(-1) for value in (*metrics.values(), applied)])
        self._unread.append((iteration, vector))

    def interval(self) -> list[Metrics]:
        """Return the iterations since the last `end_interval`. Here the host waits for the device."""
        self._read()
        return self._interval

    def refused(self) -> tuple[int, Metrics] | None:
        """Return the first iteration that was not applied; from it on none is in an interval, as if never trained."""
        self._read()
        return self._refused

    def end_interval(self) -> None:
        """Put the interval's metrics into the sums of the epoch."""
        for metrics in self.interval():
            for name, values in metrics.items():
                self.sums.add(name, values)
        self._interval = []

    def _read(self) -> None:
        if not self._unread:
            return
        rows = torch.stack([vector for _, vector in self._unread]).tolist()
        for (iteration, _), row in zip(self._unread, rows, strict=True):
            entries = iter(row)
            metrics = {name: [next(entries) for _ in range(size)] for name, size in self._sizes.items()}
            if not next(entries):
                self._refused = iteration, metrics
                break
            self._interval.append(metrics)
        self._unread = []

    def state(self) -> dict[str, Any]:
        """Return everything, JSON-able."""
        self._read()
        return {
            "first_iteration": self.first_iteration,
            "sums": self.sums.state(),
            "interval": [
                {"metrics": {name: [*map(finite_or_none, row)] for name, row in metrics.items()}}
                for metrics in self._interval
            ],
            "time_s": self.time_s,
            "data_time_s": self.data_time_s,
        }
