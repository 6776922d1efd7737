"""What a forward pass hands to the layers, what they record, and the choices of batch-norm statistics.

Letters: B tasks, F filters, R rows (one per inner step).
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from utils.registry import made
from utils.registry.choices import Choice, choice


@dataclass
class PassRecord:
    """What the layers leave behind in a forward pass, for the passes after it and for the meta-update."""

    seen: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    """Running statistic -> for each row the batch means or variances of its training passes, (B, F) each."""
    moving: dict[str, tuple[Tensor, Tensor]] | None = field(default_factory=dict)
    """Layer -> moving mean and variance (B*F,) of this episode's support passes, for `episodic`; None: none is kept."""
    affine_rows: dict[tuple[str, bool], tuple[Tensor, ...]] | None = None
    """Weights and biases of norm layers as all inner steps of one computation use them; None: nothing is kept.

    One gather then serves all steps instead of one each. It holds only as long as the parameters stay, so it
    is begun where a whole computation begins, and nowhere else.
    """

    def see(self, name: str, row: int, n_rows: int, value: Tensor) -> None:
        """Record a batch statistic, (B, F), for `row` of the running statistic called `name`."""
        self.seen.setdefault(name, [[] for _ in range(n_rows)])[row].append(value)

    def mean_statistics(self) -> dict[str, Tensor]:
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
    """What a forward pass is told beside images and parameters. Nothing of it is written to but `record`'s content."""

    step: int = 0
    """Inner step; norm layers with fewer rows use their last one."""
    statistics: str = "transductive"
    """Where batch-norm statistics come from: a value of `batch_norm_statistics`, or "mixed", each layer's own."""
    is_training: bool = False
    """Whether meta-training passes through: batch norms record what they see, and take no running statistics."""
    is_query: bool = False
    """Query images, not support images. The two drop different activations."""
    n_support: int = 0
    """How many of the n images, the first ones, are support images that came along with query images; 0: all are of
    one set.
    """
    dropout_seeds: Tensor | None = None
    """int64 (B,), one seed per episode; None: no dropout (evaluation)."""
    record: PassRecord = field(default_factory=PassRecord)
    """Where the layers record; passes of one computation share it."""

    def recording(self, **changes: Any) -> "Pass":
        """Return the same pass with these entries of its record replaced."""
        return replace(self, record=replace(self.record, **changes))


class StatisticsChoice:
    """Which images the batch-norm statistics of a pass come from: what is asked of each value, in one place.

    A value is a subclass (`meta_learning.networks.norms.statistics`).
    """

    query_needs_support: bool = False
    """Query images go through one forward with the support images and are normalised with their moments."""
    evaluates_with_running: bool = False
    """Evaluation normalises both sets with the running statistics of the step."""
    moves_within_episode: bool = False
    """Support passes move an average that begins at (0, 1) in each episode, and query passes are normalised with it."""

    @property
    def depends_on_other_queries(self) -> bool:
        """Whether a query's answer depends on the queries beside it."""
        return not (self.query_needs_support or self.evaluates_with_running or self.moves_within_episode)


MIXED = "mixed"
"""The name of the statistics where each layer has a choice of its own."""


def name_of_statistics(choice: str | Any) -> str:
    """Return the name of a config's choice: one value for all layers, or "mixed" for one per stage."""
    return choice if isinstance(choice, str) else MIXED


def depends_on_other_queries(statistics: str) -> bool:
    """Return whether queries that are classified together may change each other's answers."""
    return statistics == MIXED or statistics_named(statistics).depends_on_other_queries


def statistics_named(name: str) -> StatisticsChoice:
    """Return the meaning of a value of `batch_norm_statistics`."""
    return _made(choice("batch_norm_statistics", name))


@cache
def _made(chosen: Choice) -> StatisticsChoice:
    return made(chosen.kind, chosen.name, StatisticsChoice, chosen.make)
