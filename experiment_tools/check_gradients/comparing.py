"""What checks compare, how far apart it is, and how far it may be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data import EpisodeBatch
from few_shot_learning_system import FewShotLearner
from meta_learning.inner_loop.adam import Adam
from meta_learning.inner_loop.rmsprop import RMSprop

TOLERANCE = 1e-9
"""Of quantities that are equal but for rounding, in float64."""


@dataclass(frozen=True)
class Check:
    """One line of the result: what was compared, how far apart it was, and how far it may be."""

    name: str
    against: str
    error: float
    allowed: float
    at_least: bool = False
    """The error must exceed what is allowed: the two must differ."""
    where: str = ""
    """What differs most, or what is wrong."""

    @property
    def passed(self) -> bool:
        """Whether the law holds."""
        return self.error > self.allowed if self.at_least else self.error <= self.allowed


def relative_differences(
    ours: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float = 1e-6
) -> dict[str, float]:
    """Return norm(a - b) / max(norm(b), share * norm(all b)) of each tensor."""
    norms = {name: float(torch.linalg.vector_norm(value.detach())) for name, value in other.items()}
    floor = max(share * sum(norm**2 for norm in norms.values()) ** 0.5, 1e-300)
    return {
        name: float(torch.linalg.vector_norm((ours[name] - other[name]).detach())) / max(norm, floor)
        for name, norm in norms.items()
    }


def compared(
    name: str, against: str, ours: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float = 1e-6,
    allowed: float = TOLERANCE,
) -> Check:  # fmt: skip
    """Return the check of tensors against others, which are equal but for rounding."""
    differences = relative_differences(ours, other, share)
    worst = max(differences, key=differences.__getitem__)
    return Check(name, against, differences[worst], allowed, where=f"most: {worst}")


def share_of(learner: FewShotLearner) -> float:
    """Return the share of the norm of all below which a tensor counts as zero: Adam and RMSprop divide by epsilon the
    rounding in gradients that are zero, such as that of a bias before a norm.
    """
    return 1.0 if isinstance(learner.inner_loop, Adam | RMSprop) else 1e-6


def random_episodes(
    learner: FewShotLearner, shape: tuple[int, ...], n_tasks: int, n_way: int, n_shot: int, n_query: int
) -> EpisodeBatch:
    """Draw tasks of random images (or inputs) of this shape, in float64; the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def half(per_class: int) -> tuple[Tensor, Tensor]:
        images = torch.randn((n_tasks, n_way * per_class, *shape), generator=generator, dtype=torch.float64)
        if learner.loss.is_regression:
            return images, torch.randn(
                (n_tasks, n_way * per_class, learner.network.head.out_features),
                generator=generator,
                dtype=torch.float64,
            )
        return images, torch.arange(n_way).repeat_interleave(per_class).repeat(n_tasks, 1)

    return EpisodeBatch(
        *half(n_shot),
        *half(n_query),
        seeds=torch.arange(n_tasks) + 1,
        n_way=n_way,
        n_shot=n_shot,
        n_query=n_query,
        split="train",
        indices=tuple(range(n_tasks)),
        class_ids=torch.zeros(n_tasks, n_way, dtype=torch.int64).numpy(),
    )
