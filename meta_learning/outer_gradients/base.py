"""What every way to the outer gradient provides."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from meta_learning.outer_gradients.training_steps import Metrics, TrainingSteps

OuterResult = tuple[dict[str, Tensor], list[Tensor], list[Metrics]]


class OuterGradient(ABC):
    """A way from the inner steps of some tasks to the gradient that the meta-update follows."""

    @abstractmethod
    def compute(
        self, steps: TrainingSteps, parameters: Mapping[str, nn.Parameter], *, second_order: bool
    ) -> OuterResult:
        """Take the inner steps and return the mean over tasks of the gradient of each meta-parameter, of the same shape
        and name; and of each step weight * query loss and the metrics, each of shape ().
        """

    def refusal_of(self, name: str) -> str | None:
        """Return what this way is called in an error, if it has no gradient for a meta-parameter."""
        return None
