"""Pre-training: the body learns to tell all training classes apart, with a head that is dropped before the episodes.

Letters: B tasks, n images of a task (support and query), N way, D features, C training classes.

Source: Ye & Chao 2022, section 3 (MAML from a pre-trained body); Chen et al. 2021 (Meta-Baseline).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.losses.base import TaskLoss
from meta_learning.meta_optimizer import MetaOptimizer, OuterUpdate
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.passes import Pass, PassRecord
from utils.episodes.source import Episodes
from utils.errors import ConfigError

HEAD, OPTIMIZER = "pretraining.head.", "pretraining.optimizer."
PREFIX = "pretraining."
"""What the names of all its tensors begin with in a checkpoint."""


class Pretraining:
    """Plain classification of the images of training episodes, by a linear head over all training classes.

        loss = mean over tasks and images of -log softmax(V f(x) + c)[class of x]

    Its batches are meta-batches: the same images, augmentation and backbone as the episodes have. Batch norm sees the
    images of a task together, so that chunks and ranks change nothing but rounding.

    Args:
        network: its head is left alone.
        meta_parameters: of the learner, by name; those of the network's body are learned.
        choices: of the optimiser, which has a state of its own.
        epochs: the run's first so many.
        n_classes: C.
        seed: of the head's initial weights.
        loss: cross-entropy, with the label smoothing of the config.
    """

    def __init__(
        self,
        network: MetaNetwork,
        meta_parameters: dict[str, nn.Parameter],
        choices: OuterUpdate,
        *,
        epochs: int,
        n_classes: int,
        seed: int,
        loss: TaskLoss,
    ) -> None:
        self.network, self.epochs, self._loss = network, epochs, loss
        own = next(network.parameters())
        weight = torch.empty(n_classes, network.head.in_features)
        nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(seed))
        head = {"weight": weight, "bias": torch.zeros(n_classes)}
        self._head = {HEAD + name: nn.Parameter(value.to(own)) for name, value in head.items()}
        body = {
            name: value
            for name, value in meta_parameters.items()
            if name.startswith("network.") and not name.startswith("network.head.")
        }
        self._parameters = body | self._head
        self.optimizer = MetaOptimizer(self._parameters, choices)

    def gradients(self, episodes: Episodes, pass_: Pass) -> dict[str, dict[str, Tensor]]:
        """Return means over some tasks of gradients, batch statistics and metrics, as the learner's meta-gradients.

        Raises:
            ConfigError: the episodes do not say of which training classes they are.
        """
        classes = getattr(episodes, "training_classes", None)
        if classes is None:
            raise ConfigError(
                '"pretraining_epochs" needs to know which of all training classes a task has, and this source of '
                'episodes does not say; set "pretraining_epochs" to 0'
            )
        images = torch.cat([episodes.support_images, episodes.query_images], dim=1)
        labels = classes.gather(1, torch.cat([episodes.support_labels, episodes.query_labels], dim=1))  # (B, n)
        features = self.network.features(self.network.prepare(images), {}, pass_)
        logits = F.linear(features, *self._head.values())  # (B, n, C)
        loss = self._loss.per_task_loss(logits, labels).mean()
        values = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True, materialize_grads=True)
        gradients = dict(zip(self._parameters, values, strict=True))
        self._share_rows(gradients, pass_.record)
        accuracy, nothing = (logits.argmax(-1) == labels).to(loss.dtype).mean(), loss.new_empty(0)
        loss = loss.detach()
        return {
            "gradients": gradients,
            "statistics": pass_.record.mean_statistics(),
            "metrics": {
                "loss": loss, "accuracy": accuracy, "support_loss": nothing, "support_accuracy": nothing,
                "query_loss": loss[None], "query_accuracy": accuracy[None],
            },
        }  # fmt: skip

    def _share_rows(self, gradients: dict[str, Tensor], record: PassRecord) -> None:
        """Let all rows of a norm layer, one per inner step, learn what the row of the only pass learns."""
        for name, layer in self.network.norm_layers().items():
            for key in ("weight", "bias") if isinstance(layer, MetaBatchNorm2d) else ():
                full_name = f"network.{name}.{key}"
                if full_name in gradients and gradients[full_name].dim() == 2:
                    gradients[full_name] = gradients[full_name][:1].expand_as(gradients[full_name]).contiguous()
        for rows in record.seen.values():
            rows[1:] = [rows[0]] * (len(rows) - 1)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the head, and the optimiser's moments and steps."""
        head = {name: value.detach() for name, value in self._head.items()}
        return head | {OPTIMIZER + name: value for name, value in self.optimizer.state_tensors().items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned.

        Raises:
            ConfigError: it is of other training classes.
        """
        for name, value in self._head.items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise ConfigError(
                    f"the checkpoint was pre-trained on other classes: tensor {name} does not have the shape "
                    f"{tuple(value.shape)}; go on with the dataset and split that it was trained with"
                )
            value.copy_(tensors[name])
        of_optimizer = {
            name.removeprefix(OPTIMIZER): value for name, value in tensors.items() if name.startswith(OPTIMIZER)
        }
        self.optimizer.load_state_tensors(of_optimizer)
