"""What a forward pass tells the layers, and what they leave."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class BatchStatistics:
    """Batch mean and variance that each batch-norm row saw, pass by pass."""

    seen: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    """Running statistic -> for each row what its passes saw, (B, F) each."""

    def add(self, name: str, row: int, n_rows: int, value: Tensor) -> None:
        """Add statistics, (B, F), of a pass to `row` of the running statistic called `name`."""
        self.seen.setdefault(name, [[] for _ in range(n_rows)])[row].append(value)

    def means(self) -> dict[str, Tensor]:
        """Return name -> (R, F), or (F,) where R is 1: the mean over tasks and over the passes of each row.

        Every row is fed: inner step s passes through row s.
        """
        alike: dict[tuple[Any, ...], list[str]] = {}
        for name, rows in self.seen.items():
            alike.setdefault((rows[0][0].shape, *map(len, rows)), []).append(name)
        means = {}
        for (_, *counts), names in alike.items():  # few large operations instead of many small ones
            values = torch.stack([value for name in names for passes in self.seen[name] for value in passes]).mean(1)
            of_passes = values.unflatten(0, (len(names), -1)).split(counts, dim=1)
            rows = torch.stack([passes.mean(1) for passes in of_passes], dim=1)  # (names, R, F)
            means |= dict(zip(names, rows.squeeze(1) if len(counts) == 1 else rows, strict=True))
        return {name: means[name] for name in self.seen}


@dataclass(frozen=True)
class Pass:
    """What a forward pass needs to know beside images and parameters."""

    step: int = 0
    """Inner step; norm layers with fewer rows use their last one."""
    statistics: str = "transductive"
    """Where batch-norm statistics come from; the head of this module lists the values."""
    is_query: bool = False
    """Query images, not support images. The two drop different activations."""
    n_support: int = 0
    """How many of the n images, the first ones, are support images that came along with query images; 0: all are of
    one set.
    """
    collected: BatchStatistics | None = None
    """Where batch-norm layers leave the statistics that they saw; None: nowhere, this is evaluation."""
    episode: dict[str, tuple[Tensor, Tensor]] | None = None
    """Moving mean and variance (B*F,) per layer of this episode, written by support passes; for `episodic`."""
    dropout_seeds: Tensor | None = None
    """int64 (B,), one seed per episode; None: no dropout (evaluation)."""
    rows: dict[tuple[str, bool], tuple[Tensor, ...]] | None = None
    """Weights and biases of norm layers as all steps of one computation use them, kept by the first step; None:
    nothing is kept.
    """
