"""What the builder knows of a learner: that it gives meta-gradients, applies them, and can be evaluated, saved and set
back. It never asks which algorithm does so; diagnostics alone compare derivative orders.

Letters: B tasks, N way, Q query images per class, S inner steps. Epochs are counted from 0. No torch at run time.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from utils.episodes.source import Episodes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from meta_learning.evaluation.evaluation import Evaluation
    from meta_learning.meta_gradients import MetaGradients


class Learner(Protocol):
    """`few_shot_learning_system.FewShotLearner`, or what stands in for it in a test."""

    # Training: between two epochs only `meta_update` changes anything.

    def begin_pretraining(self, n_classes: int, seed: int) -> None:
        """Let the first epochs, as many as its config says, be plain classification over all training classes."""

    def centroid_accuracies(self, episodes: Episodes) -> "Tensor":
        """Return the accuracies (B,) of the nearest class centroid, without adaptation."""

    def meta_gradients(self, episodes: Episodes, epoch: int, *, second_order: bool | None = None) -> "MetaGradients":
        """Return gradients, batch statistics and metrics of B tasks, on the device; changes nothing.

        Args:
            second_order: derivative order; None: that of the epoch.
        """

    def meta_update(self, meta_gradients: "MetaGradients", epoch: int) -> "Tensor":
        """Apply a meta-batch. Returns bool of shape (), on the device: false from the first that was not finite on."""

    def meta_parameters(self) -> "Mapping[str, nn.Parameter]":
        """Return what the outer loop learns, by name, each of its own shape."""

    # Schedules.

    def meta_learning_rate(self, epoch: int) -> float:
        """Return the outer optimiser's learning rate in an epoch."""

    def multi_step_loss_weights(self, epoch: int) -> Sequence[float]:
        """Return the S weights of the query losses after each inner step in an epoch."""

    @property
    def annealing_epochs(self) -> int:
        """Period of the meta learning rate's schedule; 0: it has none."""

    def anneal_over(self, epochs: int) -> None:
        """Anneal over this many epochs, counted from the first of the run."""

    # Evaluation.

    def evaluate(
        self,
        episodes: Episodes,
        n_steps: int | None = None,
        statistics: str | None = None,
        *,
        keep_features: bool = False,
    ) -> "Evaluation":
        """Adapt to B tasks and classify their query images; changes nothing.

        Args:
            n_steps: inner steps; None: the learner's own.
            statistics: of batch norm; None: as in training.
            keep_features: return those before adaptation, too, which `baselines` reads.
        """

    def baselines(
        self,
        episodes: Episodes,
        evaluation: "Evaluation",
        statistics: str | None = None,
        *,
        n_untrained: int = 0,
        n_reordered: int = 0,
    ) -> "dict[str, Tensor]":
        """Return accuracies (B, ...) of what needs no inner step, and with labels in other orders; what has no
        meaning for the learner is left out, and nan stands for tasks that were not asked for.

        Args:
            evaluation: of these episodes, with features.
            n_untrained, n_reordered: so many of the first tasks get the entries "untrained" and "label_orders".
        """

    def images_per_task(self, n_support: int, n_query: int, statistics: str | None = None) -> dict[str, int]:
        """Return how many images pass through a network for a task, of an "evaluation" and of these two entries."""

    # State, as checkpoints hold it.

    def state_tensors(self) -> "dict[str, Tensor]":
        """Return name -> tensor, of any shape, of all that training changes."""

    def load_state_tensors(self, tensors: "dict[str, Tensor]", *, optimizer: bool = True) -> None:
        """Take over what `state_tensors` has returned, shape by shape; without `optimizer`, weights and statistics
        alone.

        Raises:
            ConfigError: they are of another network.
        """

    @property
    def automatic_choices(self) -> Mapping[str, Any]:
        """What the machine chose at the start, JSON-able: a run that resumes computes in the same order only with the
        same choices.
        """

    def reuse_choices(self, choices: dict[str, Any]) -> None:
        """Take over the `automatic_choices` of the run that is resumed."""

    # What people read: curves.json and diagnostics.

    ever_second_order: bool
    """Whether any epoch differentiates through the inner gradients."""

    def is_second_order(self, epoch: int) -> bool:
        """Return whether an epoch differentiates through the inner gradients."""

    def step_by_step(self) -> AbstractContextManager[None]:
        """Within it no recorded kernels are replayed: what watches single operations sees them."""

    def snapshot(self) -> dict[str, Any]:
        """Return inner learning rates and summaries of norm layers, JSON-able."""

    def memory_per_task(self) -> dict[str, float]:
        """Return the MiB that a task needs, where this process has measured it."""
