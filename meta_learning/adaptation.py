"""Adaptation to the support sets of B tasks at once, for training and evaluation alike.

Letters: B tasks, N way, K shot, Q query images per class, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.heads import prototype_head, zero_head
from meta_learning.inner_loop_optimizers import InnerLoopOptimizer
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.passes import Pass
from meta_learning.outer_losses import TaskLoss
from utils.errors import ConfigError


@dataclass(frozen=True)
class Adapted:
    """The learners of B tasks somewhere in their inner loops."""

    params: dict[str, Tensor]
    """What the inner loop adapts, name -> (B, ...)."""
    fixed: dict[str, Tensor] = field(default_factory=dict)
    """What was made for the episode and stays, name -> (B, ...)."""
    state: dict[str, Any] = field(default_factory=dict)
    """Of the inner-loop optimiser."""
    moving: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Moving batch-norm statistics of the episode."""
    images: dict[str, tuple[Tensor, Any]] = field(default_factory=dict)
    """Support and query images, and the same in the form in which the network takes them, which serves all steps."""
    features: dict[str, Tensor] | None = None
    """Features of support and query images where no step changes them; None: every step does."""

    def detached(self) -> "Adapted":
        """The same learners without a history."""
        params = {name: value.detach().requires_grad_() for name, value in self.params.items()}
        state = {key: [value.detach() for value in values] for key, values in self.state.items()}
        return replace(self, params=params, state=state)

    def tensors(self) -> list[Tensor]:
        """Everything that a step hands on to the next one and that can be differentiated."""
        return [
            *self.params.values(),
            *self.fixed.values(),
            *(value for values in self.state.values() for value in values),
        ]

    def as_leaves(self) -> "Adapted":
        """The same learners with `tensors` that begin a graph of their own."""

        def leaf(value: Tensor) -> Tensor:
            return value.detach().requires_grad_()

        return replace(
            self, params={name: leaf(value) for name, value in self.params.items()},
            fixed={name: leaf(value) for name, value in self.fixed.items()},
            state={key: [leaf(value) for value in values] for key, values in self.state.items()},
        )  # fmt: skip


class Adaptation:
    """The inner loop: where each task starts, what a step does, and what the learners of the tasks answer.

    Args:
        network: body and head.
        optimizer: rates and update rule; its `names` are the adapted parameters.
        head: "learned", "zero" or "prototypes", see `meta_learning.heads`.
        loss: of the support images.
    """

    def __init__(self, network: MetaNetwork, optimizer: InnerLoopOptimizer, head: str, loss: TaskLoss) -> None:
        self.network, self.optimizer, self.head, self.loss = network, optimizer, head, loss

    def start(self, episodes: Any, mode: Pass) -> Adapted:
        """Every task starts from the meta-parameters, with the head that its episode brings where none is learned.

        Raises:
            ConfigError: a learned head and episodes of another number of ways.
        """
        n_tasks, names = len(episodes.support_labels), self.optimizer.names
        own = dict(self.network.named_parameters())
        params = {name: own[name].expand(n_tasks, *own[name].shape) for name in names if name in own}
        adapted = Adapted(params, moving={}, features={} if self._body_stays(mode) else None)
        if self.head == "learned":
            self._check_ways(episodes)
        elif self.head == "zero":
            features = episodes.support_images.new_empty(n_tasks, 0, self.network.head.in_features)
            adapted.fixed.update(zero_head(features, episodes.n_way))
        else:
            # With the network's own parameters: to the inner gradients the head is a parameter, not a function of the
            # body.
            mode = replace(mode, episode=adapted.moving)
            features = self._features("support", episodes, replace(adapted, params={}), mode)
            adapted.fixed.update(prototype_head(features, episodes.support_labels, episodes.n_way))
        everything = adapted.params | adapted.fixed
        adapted = replace(
            adapted, params={name: everything[name] for name in names},
            fixed={name: value for name, value in adapted.fixed.items() if name not in names},
        )  # fmt: skip
        return replace(adapted, state=self.optimizer.init(adapted.params))

    def path(
        self, episodes: Any, mode: Pass, n_steps: int, *, look_at_last: bool = False
    ) -> Iterator[tuple[Adapted, Tensor | None, Tensor | None]]:
        """The inner loop where nothing is learned from it: no graph is kept from one step to the next.

        Yields:
            for theta[0], theta[1], ..., theta[S]: the learners, and their logits and loss (B,) of the support
            images, of the last ones only with `look_at_last`.
        """
        with torch.no_grad():
            adapted = self.start(episodes, mode)
        for step in range(n_steps):
            before = adapted.detached()
            adapted, logits, loss = self.step(episodes, before, replace(mode, step=step), create_graph=False)
            yield before, logits.detach(), loss.detach()
        adapted, logits, loss = adapted.detached(), None, None
        if look_at_last:
            with torch.no_grad():
                logits = self.outputs("support", episodes, adapted, replace(mode, step=n_steps))
                loss = self.loss.per_task_loss(logits, episodes.support_labels)
        yield adapted, logits, loss

    def _check_ways(self, episodes: Any) -> None:
        n_outputs = self.network.head.out_features
        if not self.loss.is_regression and episodes.n_way != n_outputs:
            raise ConfigError(
                f'the learned head has {n_outputs} outputs, but the episodes have {episodes.n_way} ways; set "head" '
                'to "zero" or '
                f'"prototypes" for any number of ways, or "num_classes_per_set" to {episodes.n_way}'
            )

    def _body_stays(self, mode: Pass) -> bool:
        """Tell whether adaptation leaves all features as they are, so that one pass through the body serves all
        steps.
        """
        layers = self.network.norm_layers().values()
        return (
            all(name.startswith("head.") for name in self.optimizer.names)
            and all(
                value.dim() < 2
                for layer in layers
                for value in (*layer.parameters(), *layer.buffers())
                if not isinstance(layer, nn.LayerNorm)
            )
            and not any(layer.statistics_of(mode) == "episodic" for layer in layers)
            and mode.dropout_seeds is None
        )

    def _features(self, role: str, episodes: Any, adapted: Adapted, mode: Pass) -> Tensor:
        """Features (B, n, D) of the support or query images at the adapted parameters."""
        if adapted.features is not None and role in adapted.features:
            return adapted.features[role]
        n_support, images = 0, self._prepared(role, episodes, adapted)
        if role == "query":
            mode = replace(mode, is_query=True)
            if self.network.needs_support(mode):
                n_support = episodes.support_images.shape[1]
                mode, images = replace(mode, n_support=n_support), self._prepared("both", episodes, adapted)
        features = self.network.features(images, adapted.params, mode)[:, n_support:]
        if adapted.features is not None:
            adapted.features[role] = features
        return features

    def _prepared(self, role: str, episodes: Any, adapted: Adapted) -> Any:
        """Support, query or both images in the form in which the network takes them."""
        if role == "both":
            support, query = (self._prepared(one, episodes, adapted) for one in ("support", "query"))
            return torch.cat([support, query], dim=1) if isinstance(support, Tensor) else support.followed_by(query)
        images = getattr(episodes, f"{role}_images")
        of_images, prepared = adapted.images.get(role, (None, None))
        if of_images is not images:  # learners that stay may be asked about other images later
            with torch.no_grad():
                prepared = self.network.prepare(images)
            adapted.images[role] = images, prepared
        return prepared

    def outputs(self, role: str, episodes: Any, adapted: Adapted, mode: Pass) -> Tensor:
        """Logits (B, n, N) of the support or query images at the adapted parameters."""
        return self.network.classify(self._features(role, episodes, adapted, mode), adapted.params | adapted.fixed)

    def step(
        self, episodes: Any, adapted: Adapted, mode: Pass, *, create_graph: bool
    ) -> tuple[Adapted, Tensor, Tensor]:
        """Return the learners after one step on the support set, and logits and loss (B,) before it.

            theta[s+1] = theta[s] - alpha[s] * direction of grad L(theta[s], support)

        Args:
            create_graph: make the inner gradients differentiable, for second order.
        """
        moving = dict(adapted.moving)
        logits = self.outputs("support", episodes, adapted, replace(mode, episode=moving))
        loss = self.loss.per_task_loss(logits, episodes.support_labels)
        # Features that serve all steps keep their graph for the next one.
        gradients = torch.autograd.grad(loss.sum(), list(adapted.params.values()), create_graph=create_graph)
        with torch.set_grad_enabled(torch.is_grad_enabled() and mode.collected is not None):
            params, state = self.optimizer.update(adapted.params, gradients, adapted.state, mode.step)
        return replace(adapted, params=params, state=state, moving=moving), logits, loss
