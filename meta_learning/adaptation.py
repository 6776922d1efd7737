"""Adaptation to the support sets of B tasks at once, for training and evaluation alike.

Letters: B tasks, N way, K shot, Q query images per class, D features, S inner steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from meta_learning.heads.base import Head
from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.losses.base import TaskLoss
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.passes import Pass
from utils.episodes.source import Tasks
from utils.errors import ConfigError


@dataclass(frozen=True)
class Adapted:
    """The learners of B tasks somewhere in their inner loops: all that a step hands on to the next one."""

    params: dict[str, Tensor]
    """What the inner loop adapts, name -> (B, ...)."""
    fixed: dict[str, Tensor] = field(default_factory=dict)
    """What was made for the episode and stays, name -> (B, ...)."""
    state: dict[str, Any] = field(default_factory=dict)
    """Of the inner-loop optimiser."""
    moving: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Moving batch-norm statistics of the episode, layer -> mean and variance (B*F,)."""

    def tensors(self) -> list[Tensor]:
        """Return everything that a step hands on and that can be differentiated."""
        # Without `moving`: its averages are detached where they are made (`leave_statistics`).
        state = (value for values in self.state.values() for value in values)
        return [*self.params.values(), *self.fixed.values(), *state]

    def detached(self) -> "Adapted":
        """Return the same learners with `tensors` that begin a graph of their own."""

        def leaf(value: Tensor) -> Tensor:
            return value.detach().requires_grad_()

        return replace(
            self,
            params={name: leaf(value) for name, value in self.params.items()},
            fixed={name: leaf(value) for name, value in self.fixed.items()},
            state={key: [leaf(value) for value in values] for key, values in self.state.items()},
        )


class PreparedEpisodes:
    """The episodes of one computation, with what its passes compute of their images once.

    Args:
        episodes: B tasks.
        network: whose passes they are for.
        features_stay: whether no inner step changes the features, so that one pass through the body serves them all.
    """

    def __init__(self, episodes: Tasks, network: MetaNetwork, *, features_stay: bool = False) -> None:
        self.episodes, self.features_stay = episodes, features_stay
        self._network = network
        self._images: dict[str, Any] = {}
        self._features: dict[str, Tensor] = {}
        self.first_features: dict[str, Tensor] = {}
        """Role -> (B, n, D) of its first pass, without a graph; along a path those at theta[0]."""

    def images(self, role: str) -> Any:
        """Return the "support" or "query" images, or "both" after one another, as the network takes them fastest."""
        if role == "both":
            support, query = self.images("support"), self.images("query")
            return torch.cat([support, query], dim=1) if isinstance(support, Tensor) else support.followed_by(query)
        if role not in self._images:
            with torch.no_grad():
                self._images[role] = self._network.prepare(getattr(self.episodes, f"{role}_images"))
        return self._images[role]

    def features(self, role: str, params: dict[str, Tensor], pass_: Pass) -> Tensor:
        """Return features (B, n, D) of the support or query images at some parameters, computed once if they stay."""
        if role in self._features:
            return self._features[role]
        n_support = 0
        if role == "query":
            pass_ = replace(pass_, is_query=True)
            if self._network.needs_support(pass_):
                n_support = self.episodes.support_images.shape[1]
        images = self.images("both" if n_support else role)
        features = self._network.features(images, params, replace(pass_, n_support=n_support))[:, n_support:]
        if self.features_stay:
            # With their graph: through it the outer gradient reaches a body that no step adapts (ANIL, ProtoNet).
            self._features[role] = features
        self.first_features.setdefault(role, features.detach())
        return features

    def with_query(self, images: Tensor) -> "PreparedEpisodes":
        """Return the same tasks with other query images (B, n, C, H, W); what is known of the support set is kept."""
        other = PreparedEpisodes(replace(self.episodes, query_images=images), self._network)
        other._images = {"support": self.images("support")}
        return other


class Adaptation:
    """The inner loop: where each task starts, what a step does, and what the learners of the tasks answer.

        >>> from mamlkit import build_learner, load_config
        >>> config = load_config(None, {"experiment_name": "mine", "image_channels": 1, "adapted_parameters": "head"})
        >>> build_learner(config, "cpu").adaptation.optimizer.names
        ('head.weight', 'head.bias')

    Args:
        network: body and head.
        optimizer: rates and update rule; its `names` are the adapted parameters.
        head: where the last layer's weights come from.
        loss: of the images of a task.
    """

    def __init__(self, network: MetaNetwork, optimizer: InnerLoopOptimizer, head: Head, loss: TaskLoss) -> None:
        self.network, self.optimizer, self.head, self.loss = network, optimizer, head, loss

    def prepare(self, episodes: Tasks, pass_: Pass) -> PreparedEpisodes:
        """Return the episodes as the passes of one computation share them."""
        return PreparedEpisodes(episodes, self.network, features_stay=self.features_stay(pass_))

    def features_stay(self, pass_: Pass) -> bool:
        """Return whether no inner step changes the features (ANIL, ProtoNet)."""
        body_stays = all(name.startswith("head.") for name in self.optimizer.names)
        return body_stays and self.network.is_alike_at_every_step(pass_)

    def start(self, prepared: PreparedEpisodes, pass_: Pass, *, create_graph: bool = False) -> Adapted:
        """Start every task from the meta-parameters, with the head that its episode brings where none is learned.

        Args:
            create_graph: make gradients that the optimiser begins with differentiable, for second order.
        Raises:
            ConfigError: a learned head and episodes of another number of ways.
        """
        episodes, names = prepared.episodes, self.optimizer.names
        n_tasks = len(episodes.support_labels)
        own = dict(self.network.named_parameters())
        # expand, not repeat: B learners share the memory of one until the first step gives each its own.
        values = {name: own[name].expand(n_tasks, *own[name].shape) for name in names if name in own}
        moving: dict[str, tuple[Tensor, Tensor]] = {}
        if not self.head.is_made_per_episode:
            self._check_ways(episodes)
        else:
            features = episodes.support_images.new_empty(n_tasks, 0, self.network.head.in_features)
            if self.head.uses_features:
                # With the network's own parameters, not the expanded ones: to the inner gradients the head is a
                # parameter, not a function of the body; the meta-gradient does see it as one.
                features = prepared.features("support", {}, pass_.recording(moving=moving))
            values |= self.head.make(features, episodes.support_labels, episodes.n_way)
        # A head that nothing has a gradient through, such as one of zeros, is a beginning all the same.
        taken = {name: values.pop(name) for name in names}
        params = {name: value if value.requires_grad else value.requires_grad_() for name, value in taken.items()}
        adapted = Adapted(params, fixed=values, state=self.optimizer.init(params), moving=moving)
        return self._begun(prepared, adapted, pass_, create_graph) if self.optimizer.begins else adapted

    def _begun(self, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass, create_graph: bool) -> Adapted:
        """Let the optimiser make the start, of the gradient of the support loss there."""
        at = adapted if torch.is_grad_enabled() else adapted.detached()
        with torch.enable_grad():
            # What this pass sees goes into no statistics: it is none of the S steps, unless its features are theirs.
            seen = pass_.record.seen if prepared.features_stay else {}
            logits = self._logits("support", prepared, at, pass_.recording(seen=seen, moving=dict(adapted.moving)))
            loss = self.loss.per_task_loss(logits, prepared.episodes.support_labels).sum()
            # Kept, since theta[0] and, of a head per episode, its features go on into the first step.
            gradients = torch.autograd.grad(
                loss, list(at.params.values()), create_graph=create_graph, retain_graph=True
            )
        return replace(at, params=self.optimizer.begin(at.params, gradients))

    def step(
        self, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass, *, create_graph: bool
    ) -> tuple[Adapted, Tensor, Tensor]:
        """Take one step on the support set. Returns the learners after it, and logits and loss (B,) before it.

            theta[s+1] = theta[s] - alpha[s] * direction of grad L(theta[s], support)

        L is the optimiser's `objective`, in most cases the loss itself.

        Args:
            create_graph: make the inner gradients differentiable, for second order.
        """
        # A copy: the learners before this step keep their own averages and may classify later (`AdaptedLearner.path`).
        moving = dict(adapted.moving)
        logits, loss, gradients = self._support(prepared, adapted, pass_.recording(moving=moving), create_graph)
        if self.optimizer.looks_ahead:
            ahead = replace(adapted, params=self.optimizer.ahead(adapted.params, gradients))
            # As of the pass of `begin`, nothing of what this one sees goes into statistics.
            again = pass_.recording(seen={}, moving=dict(adapted.moving))
            _, _, gradients = self._support(prepared, ahead, again, create_graph)
        # Learned rates get a gradient through the update even where, in first order, the inner gradients have none.
        with torch.set_grad_enabled(torch.is_grad_enabled() and pass_.is_training):
            params, state = self.optimizer.update(adapted.params, gradients, adapted.state, pass_.step)
        return replace(adapted, params=params, state=state, moving=moving), logits, loss

    def _support(
        self, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass, create_graph: bool
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Return logits (B, n, N) and loss (B,) of the support images, and the gradients of the objective."""
        logits = self._logits("support", prepared, adapted, pass_)
        loss = self.loss.per_task_loss(logits, prepared.episodes.support_labels)
        objective = self.objective(prepared, adapted, pass_, logits, loss)
        # The sum over tasks, not the mean: no task's gradient depends on how many others are computed beside it.
        # Only nodes between the loss and the parameters are freed: features that stay keep theirs for the next step.
        gradients = torch.autograd.grad(objective.sum(), list(adapted.params.values()), create_graph=create_graph)
        return logits, loss, gradients

    def direction(self, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass) -> Sequence[Tensor]:
        """Return what the update rule would subtract at some learners, before the rate, with its whole history."""
        _, _, gradients = self._support(prepared, adapted, pass_.recording(moving=dict(adapted.moving)), True)
        prepared_gradients = self.optimizer.prepared(adapted.params, gradients)
        return self.optimizer.direction(adapted.params, prepared_gradients, adapted.state, pass_.step)[0]

    def objective(
        self, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass, logits: Tensor, loss: Tensor
    ) -> Tensor:
        """Return what the optimiser descends on (B,), from logits and loss of the support images."""
        # Where a task is adapted before its images to classify are known, it has none.
        sees_queries = self.optimizer.sees_queries and prepared.episodes.query_images.shape[1]
        queries = self.outputs("query", prepared, adapted, pass_) if sees_queries else None
        labels = prepared.episodes.support_labels
        return self.optimizer.objective(loss, logits, labels, queries, adapted.params, pass_.step)

    def path(
        self,
        prepared: PreparedEpisodes,
        pass_: Pass,
        n_steps: int,
        *,
        start: Adapted | None = None,
        classify_support_at_end: bool = False,
    ) -> Iterator[tuple[Adapted, Tensor | None, Tensor | None]]:
        """Take the inner loop where nothing is learned from it: no graph is kept from one step to the next.

        Args:
            start: theta[0]; None: the meta-parameters.
        Yields:
            for theta[0], theta[1], ..., theta[S]: the learners, and their logits and loss (B,) of the support images,
            of the last ones only with `classify_support_at_end`.
        """
        if start is None:
            with torch.no_grad():
                start = self.start(prepared, pass_)
        adapted = start
        for step in range(n_steps):
            before = adapted.detached()
            adapted, logits, loss = self.step(prepared, before, replace(pass_, step=step), create_graph=False)
            yield before, logits.detach(), loss.detach()
        adapted, logits, loss = adapted.detached(), None, None
        if classify_support_at_end:
            with torch.no_grad():
                logits = self.outputs("support", prepared, adapted, replace(pass_, step=n_steps))
                loss = self.loss.per_task_loss(logits, prepared.episodes.support_labels)
        yield adapted, logits, loss

    def outputs(self, role: str, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass) -> Tensor:
        """Return logits (B, n, N) of the support or query images at the adapted parameters, which stay as they are."""
        return self._logits(role, prepared, adapted, pass_.recording(moving=dict(adapted.moving)))

    def _logits(self, role: str, prepared: PreparedEpisodes, adapted: Adapted, pass_: Pass) -> Tensor:
        features = prepared.features(role, adapted.params, pass_)
        logits = self.network.classify(features, adapted.params | adapted.fixed)
        return logits if role == "support" or self.head.temperature == 1 else logits / self.head.temperature

    def _check_ways(self, episodes: Tasks) -> None:
        n_outputs = self.network.head.out_features
        if not self.loss.is_regression and episodes.n_way != n_outputs:
            raise ConfigError(
                f"the learned head has {n_outputs} outputs, but the episodes have {episodes.n_way} ways; "
                'use weights that were trained with "head" "zero" or "prototypes", which take any number of ways (a '
                f'model\'s card says so), or train with one of these, or with "num_classes_per_set" {episodes.n_way}'
            )
