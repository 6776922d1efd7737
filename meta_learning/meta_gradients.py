"""Meta-gradients as a value: what the learner computes of a meta-batch, and the outer optimiser applies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MetaGradients:
    """What a meta-batch says about the meta-parameters; applying it is `FewShotLearner.meta_update`.

    Attributes:
        gradients: meta-parameter name -> the shape of the parameter; mean over tasks.
        statistics: running-statistic name -> this meta-batch's batch statistics.
        metrics: loss (), accuracy (), gradient_norm (); support_loss, support_accuracy (S,) before the update of each
            step; query_loss, query_accuracy (S,) after it, nan where the step's query images were not needed.
    """

    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]
    metrics: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """Return everything that is a mean over tasks, in a fixed order."""
        return [*self.gradients.values(), *self.statistics.values(), *self._means_of_metrics().values()]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "MetaGradients":
        """Return the same with other means over tasks, in the order of `tensors`."""
        values = iter(tensors)
        gradients, statistics, metrics = (
            {name: next(values) for name in group}
            for group in (self.gradients, self.statistics, self._means_of_metrics())
        )
        return MetaGradients(gradients, statistics, metrics | {"gradient_norm": norm_of(gradients)})

    def _means_of_metrics(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.metrics.items() if name != "gradient_norm"}


def norm_of(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, of shape ()."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
    )
