"""Training metrics of the epoch that is under way: on the device until they are read, then in running sums."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
        self._interval = [_from_json(entry) for entry in state.get("interval", ())]
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
        """The applied iterations since the last `end_interval`. Here the host waits for the device."""
        self._read()
        return [entry.metrics for entry in self._interval if entry.applied]

    def refused(self) -> dict[int, Metrics]:
        """The other iterations since then, by number."""
        self._read()
        return {entry.iteration: entry.metrics for entry in self._interval if not entry.applied}

    def forget_from(self, iteration: int) -> None:
        """Drop that iteration and those after it, as if they had not been."""
        self._read()
        self._interval = [entry for entry in self._interval if entry.iteration < iteration]

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
            self._interval.append(_Entry(iteration, bool(next(entries)), metrics))
        self._unread = []

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        self._read()
        return {
            "first_iteration": self.first_iteration,
            "sums": self.sums.state(),
            "interval": [_to_json(entry) for entry in self._interval],
            "time_s": self.time_s,
            "data_time_s": self.data_time_s,
        }


@dataclass(frozen=True)
class _Entry:
    iteration: int
    applied: bool
    metrics: Metrics


def _to_json(entry: _Entry) -> dict[str, Any]:
    metrics = {name: [v if math.isfinite(v) else None for v in row] for name, row in entry.metrics.items()}
    return {"iteration": entry.iteration, "applied": entry.applied, "metrics": metrics}


def _from_json(entry: Mapping[str, Any]) -> _Entry:
    metrics = {name: [math.nan if v is None else v for v in row] for name, row in entry["metrics"].items()}
    return _Entry(entry["iteration"], entry["applied"], metrics)
