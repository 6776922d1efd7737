"""A learner adapted to one task, kept after every inner step to classify any images later.

Letters: n images of C x H x W pixels, N classes, S inner steps, step s from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from few_shot_learning_system import FewShotLearner
from meta_learning.adaptation import Adapted, PreparedEpisodes
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.norms.task_norm import MetaTaskNorm2d
from meta_learning.networks.passes import Pass, depends_on_other_queries
from utils.errors import ConfigError


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

    learner: FewShotLearner
    task: Task
    path: Sequence[Adapted]
    """The learners after 0, 1, ... S inner steps; a batch of one."""
    prepared: PreparedEpisodes
    n_classes: int
    """N of the support set."""

    @property
    def statistics(self) -> str:
        """Batch-norm statistics: a value of `batch_norm_statistics`, or "mixed"."""
        return self.learner.batch_norm_statistics

    @property
    def depends_on_other_images(self) -> bool:
        """Whether the images of one `logits` may be normalised together."""
        return depends_on_other_queries(self.statistics)

    @property
    def normalises_queries_together(self) -> bool:
        """Whether they are for certain: a norm layer of a plugin may or may not."""
        norms = (MetaBatchNorm2d, MetaTaskNorm2d)
        return self.depends_on_other_images and any(isinstance(m, norms) for m in self.learner.network.modules())

    @torch.no_grad()
    def logits(self, images: Tensor, step: int) -> Tensor:
        """Return logits (n, N) of images (n, C, H, W) after `step` inner steps, 0 to S.

        Outputs of a learned head that no class of the support set has are left out.
        """
        support = self.task.support_images
        prepared = self.prepared.with_query(images.to(support.device, support.dtype)[None])
        pass_ = Pass(step=max(step - 1, 0), statistics=self.statistics)  # norm rows as the query pass of that step
        return self.learner.adaptation.outputs("query", prepared, self.path[step], pass_)[0, :, : self.n_classes]


def adapt(learner: FewShotLearner, images: Tensor, labels: Tensor, n_way: int) -> AdaptedLearner:
    """Take a learner's inner steps of evaluation on one support set; the learner stays as it was.

        >>> import torch
        >>> from mamlkit import adapt, build_learner, load_config
        >>> keys = {"num_classes_per_set": 2, "image_height": 8, "image_width": 8, "image_channels": 1}
        >>> learner = build_learner(load_config(None, {"experiment_name": "mine", "backbone": "mlp", **keys}), "cpu")
        >>> adapted = adapt(learner, torch.randn(2, 1, 8, 8), torch.tensor([0, 1]), n_way=2)
        >>> adapted.logits(torch.randn(5, 1, 8, 8), step=1).shape
        torch.Size([5, 2])

    Args:
        images: tensor or array of floats (n, C, H, W), normalised.
        labels: int64 (n,), 0..N-1.
        n_way: N; a learned head may have more outputs, which are then outputs of no class.
    Raises:
        ConfigError: the learned head has fewer outputs, labels do not fit, or running statistics were never collected.
    """
    own = next(learner.network.parameters())
    images, labels = torch.as_tensor(images).to(own.device, own.dtype)[None], torch.as_tensor(labels)
    known = labels.unique().tolist()
    fits = labels.shape == images.shape[1:2] and not labels.is_floating_point() and set(known) <= set(range(n_way))
    if not (fits or learner.loss.is_regression):
        raise ConfigError(
            f"adapt: {images.shape[1]} images and labels of shape {tuple(labels.shape)} with the values {known[:9]}; "
            f"must be an integer for each image, from 0 to n_way - 1 = {n_way - 1}"
        )
    n_outputs = n_way if learner.adaptation.head.is_made_per_episode else max(n_way, learner.network.head.out_features)
    task = Task(images, labels.to(own.device)[None], images[:, :0], n_outputs)
    prepared, steps = learner.adaptation_path(task)
    return AdaptedLearner(learner, task, [adapted for adapted, _, _ in steps], prepared, n_way)
