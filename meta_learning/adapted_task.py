"""A learner adapted to one task, kept after every inner step to classify any images later.

Letters: n images of C x H x W pixels, N classes, S inner steps, step s from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meta_learning.networks.passes import Pass


@dataclass(frozen=True)
class Task:
    """One task as the learner reads it: a batch of one."""

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    n_way: int


@dataclass(frozen=True)
class AdaptedLearner:
    """What `adapt` returns."""

    learner: Any
    task: Task
    path: Sequence[Any]
    """The learner's state after 0, 1, ... S inner steps."""

    @property
    def statistics(self) -> str:
        """Batch-norm statistics: a value of `meta_learning.networks.norms`."""
        return _pass(self.learner).statistics

    @property
    def depends_on_other_images(self) -> bool:
        """Whether the images of one `logits` are normalised together."""
        return self.statistics in ("transductive", "mixed")

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """Return logits (n, N) of images (n, C, H, W) after `step` inner steps, 0 to S."""
        state, support = self.path[step], self.task.support_images
        mode = replace(_pass(self.learner), step=max(step - 1, 0), episode=state.moving)
        task = replace(self.task, query_images=images.to(support.device, support.dtype)[None])
        return self.learner.adaptation.outputs("query", task, replace(state, features=None), mode)[0]


def adapt(learner: Any, images: Tensor, labels: Tensor, n_way: int) -> AdaptedLearner:
    """Take a learner's inner steps of evaluation on one support set; the learner stays as it was.

    Args:
        learner: `few_shot_learning_system.FewShotLearner`.
        images: float (n, C, H, W), normalised.
        labels: int64 (n,), 0..N-1.
    Raises:
        ConfigError: the learned head has another number of outputs, or running statistics were never collected.
    """
    own = next(learner.network.parameters())
    images = images.to(own.device, own.dtype)[None]
    task = Task(images, labels.to(own.device)[None], images[:, :0], n_way)
    path = [adapted for adapted, _, _ in learner.adaptation.path(task, _pass(learner), learner.n_evaluation_steps)]
    return AdaptedLearner(learner, task, path)


def _pass(learner: Any) -> Pass:
    statistics = learner.batch_norm_statistics
    return Pass(statistics=statistics if isinstance(statistics, str) else "mixed")
