"""The few-shot learner: inner loop, outer loss, meta-gradient and meta-update over a batch of tasks at once.

MAML (Finn et al. 2017) and MAML++ (Antoniou et al. 2019) are choices, not subclasses: derivative order, inner-loop
optimiser, weights of the outer loss over steps, batch-norm statistics. How a computation is carried out, in chunks of
tasks, as recorded kernels, in which number format, is `Execution`'s affair. A `Pass` says how one forward pass treats
norm layers and dropout, its `PassRecord` what they leave behind for later passes and for the meta-update.

Letters: B tasks, N way, K shot, Q query images per class, S inner steps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.adaptation import Adaptation, Adapted, PreparedEpisodes
from meta_learning.evaluation.baselines import Baselines
from meta_learning.evaluation.evaluation import STEP_METRICS, Evaluation
from meta_learning.evaluation.reporting import learned_state, learner_description
from meta_learning.execution.execution import Computation, Execution, Groups, build_execution, first_tasks
from meta_learning.heads.base import Head
from meta_learning.heads.learned import LearnedHead
from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.inner_loop.building import adapted_shapes, build_inner_loop
from meta_learning.losses.base import TaskLoss
from meta_learning.losses.cross_entropy import CrossEntropy
from meta_learning.meta_gradients import MetaGradients, norm_of
from meta_learning.meta_optimizer import MetaOptimizer, OuterUpdate, build_outer_update
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.batch_norm import batch_norm_layers
from meta_learning.networks.norms.statistics import warn_of_unfit
from meta_learning.networks.passes import Pass, PassRecord, name_of_statistics
from meta_learning.outer_gradients.base import OuterGradient
from meta_learning.outer_gradients.building import build_outer_gradient
from meta_learning.outer_gradients.sharpness import gradients_uphill
from meta_learning.outer_gradients.training_steps import TrainingSteps
from meta_learning.outer_gradients.unrolled import Unrolled
from meta_learning.outer_losses.base import OuterLoss
from meta_learning.outer_losses.mean import MeanOverTasks
from meta_learning.outer_losses.step_weights import OuterLoop, multi_step_loss_weights
from meta_learning.outer_losses.task_weights import WeightedEpisodes, weighted
from meta_learning.pretraining import PREFIX as PRETRAINING_PREFIX
from meta_learning.pretraining import Pretraining
from meta_learning.promises import check_promises
from meta_neural_network_architectures import NetworkFunction, build_network
from utils.config import ExperimentConfig
from utils.episodes.source import Episodes, Tasks
from utils.errors import ConfigError
from utils.registry import make_chosen
from utils.registry.choices import fact

OPTIMIZER_PREFIX = "optimizer."
"""What the names of the outer optimiser's tensors begin with in a checkpoint."""
DEFAULT_UPDATE = OuterUpdate()


class FewShotLearner(nn.Module):
    """MAML and its relatives.

    Args:
        network: body and head, see `meta_learning.networks`.
        inner_loop: an optimiser of `meta_learning.inner_loop`; its `names` are the adapted parameters.
        outer_loop: derivative order and weights of the outer loss.
        head: where the last layer's weights come from; None: the network's own.
        outer_update: optimiser and schedule of the meta-update.
        loss: of a task, in inner and outer loop; None: cross-entropy.
        outer_loss: of the losses of all tasks; None: their mean.
        n_evaluation_steps: inner steps of `evaluate`, unless it is given others.
        batch_norm_statistics: a value of the key of this name, or "mixed".
        outer_gradient: what the meta-update follows; None: the gradient through all inner steps.
        execution: how computations are carried out; None: all tasks at once.
        untrained: makes the network as it was before any training, anywhere; None: nobody knows it.
        pretraining_epochs: what counts from the first epoch of the episodes counts from this one.
    """

    def __init__(
        self,
        network: MetaNetwork,
        inner_loop: InnerLoopOptimizer,
        outer_loop: OuterLoop,
        *,
        head: Head | None = None,
        outer_update: OuterUpdate = DEFAULT_UPDATE,
        loss: TaskLoss | None = None,
        outer_loss: OuterLoss | None = None,
        n_evaluation_steps: int | None = None,
        batch_norm_statistics: str = "transductive",
        outer_gradient: OuterGradient | None = None,
        execution: Execution | None = None,
        untrained: Callable[[], MetaNetwork] | None = None,
        pretraining_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.inner_loop, self.outer_loop = network, inner_loop, outer_loop
        self.head = head or LearnedHead(0)
        self.loss, self.outer_loss = loss or CrossEntropy(), outer_loss or MeanOverTasks()
        self.adaptation = Adaptation(network, inner_loop, self.head, self.loss)
        self.n_steps = inner_loop.n_steps
        self.n_evaluation_steps = self.n_steps if n_evaluation_steps is None else n_evaluation_steps
        self.batch_norm_statistics = batch_norm_statistics
        self.outer_gradient = outer_gradient or Unrolled()
        refused = {name: found for name in self.meta_parameters() if (found := self.outer_gradient.refusal_of(name))}
        if refused:
            raise ConfigError(
                f'"outer_update" {next(iter(refused.values()))} has no gradient for {", ".join(refused)}, which the '
                'method learns; set it to "gradient"'
            )
        self.meta_optimizer = MetaOptimizer(self.meta_parameters(), outer_update)
        self.execution = execution or Execution.of(network)
        self.execution.measure_with(self.meta_parameters().values())
        self._untrained = untrained
        self.pretraining_epochs = pretraining_epochs
        self.pretraining: Pretraining | None = None

    def begin_pretraining(self, n_classes: int, seed: int) -> None:
        """Let the first `pretraining_epochs` be plain classification over all training classes."""
        self.pretraining = Pretraining(
            self.network, self.meta_parameters(), self.meta_optimizer.choices, epochs=self.pretraining_epochs,
            n_classes=n_classes, seed=seed, loss=self.loss if isinstance(self.loss, CrossEntropy) else CrossEntropy(),
        )  # fmt: skip

    # What it computes: meta-gradients.

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the outer loop learns, by name: network weights and, where learned, inner learning rates and what
        head, losses and update rule learn of their own.
        """
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def meta_gradients(self, episodes: Episodes, epoch: int, *, second_order: bool | None = None) -> MetaGradients:
        """Compute the gradient of the outer loss with respect to the meta-parameters. Changes nothing.

            outer loss = mean over tasks of sum over s of v[s] * L(theta[s+1], query)

        with another outer loss in the place of the mean, or, where the outer update is the displacement (Reptile),
        theta[0] - mean over tasks of theta[S].

        Args:
            episodes: support_images (B, N*K, C, H, W), support_labels (B, N*K), query_images, query_labels, seeds
                (B,), n_way.
            epoch: from 0; decides derivative order and the weights v, and whether the body is only pre-trained.
            second_order: whether to differentiate through the inner gradients; None: as the epoch does.
        """
        if self._pretrains(epoch):
            return self._mean_over_tasks(self._pretraining_gradients, episodes, epoch, second_order=False)
        compute = partial(self._gradients_here, episodes, epoch, second_order)
        radius = self.outer_loop.sharpness_radius
        return gradients_uphill(compute, self.meta_parameters(), radius) if radius else compute()

    def _gradients_here(self, episodes: Episodes, epoch: int, second_order: bool | None) -> MetaGradients:
        second_order = self.is_second_order(epoch) if second_order is None else second_order
        if self.outer_loss.is_mean:
            return self._mean_over_tasks(self._meta_gradients, episodes, epoch, second_order=second_order)
        tasks, outer_loss, own = weighted(episodes, self._query_losses(episodes, epoch), self.outer_loss)
        found = self._mean_over_tasks(self._weighted_gradients, tasks, epoch, second_order=second_order)
        gradients = found.gradients | {f"outer_loss.{name}": gradient for name, gradient in own.items()}
        metrics = found.metrics | {"loss": outer_loss, "gradient_norm": norm_of(gradients)}
        return replace(found, gradients=gradients, metrics=metrics)

    def _mean_over_tasks(
        self, compute: Computation, episodes: Episodes, epoch: int, *, second_order: bool
    ) -> MetaGradients:
        def heaviest(tasks: Episodes, weights: Sequence[Tensor | None]) -> Groups:
            return self._meta_gradients(tasks, weights, self.outer_loop.second_order)

        # The number of tasks at once is chosen for the whole run, so by the heaviest epoch, which may be a later one.
        means = self.execution.mean_over_tasks(
            compute, episodes, self.multi_step_loss_weights(epoch), epoch, second_order=second_order, heaviest=heaviest
        )
        # A replayed recording hands back tensors alone, so a network without batch norm has no group of statistics.
        return MetaGradients(means["gradients"], means.get("statistics", {}), means["metrics"])

    def _pretrains(self, epoch: int) -> bool:
        return self.pretraining is not None and epoch < self.pretraining.epochs

    def _pretraining_gradients(self, episodes: Episodes, *_: Any) -> Groups:
        return self.pretraining.gradients(episodes, self._training_pass(episodes))

    def _query_losses(self, episodes: Episodes, epoch: int) -> Tensor:
        """Return the sum over s of v[s] * L(theta[s+1], query) of each task, (B,), of which nothing is learned."""
        weights = self.multi_step_loss_weights(epoch)
        counts = tuple(weight != 0 for weight in weights)

        def of_tasks(tasks: Episodes) -> dict[str, Tensor]:
            pass_ = self._training_pass(tasks)
            prepared = self.adaptation.prepare(tasks, pass_)
            losses = [tasks.support_images.new_zeros(len(tasks.support_labels))] * len(weights)
            for place, (adapted, _, _) in enumerate(self.adaptation.path(prepared, pass_, self.n_steps)):
                step = place - 1 if self.n_steps else place  # the one that has made these learners
                if step >= 0 and counts[step]:
                    with torch.no_grad():
                        logits = self.adaptation.outputs("query", prepared, adapted, replace(pass_, step=step))
                        losses[step] = self.loss.per_task_loss(logits, tasks.query_labels)
            return {"losses": torch.stack(losses, dim=1)}

        losses = self.execution.over_tasks(of_tasks, episodes, ("query losses", counts))["losses"]
        return losses @ self.execution.weights_on_device(weights, epoch, losses)

    def _training_pass(self, episodes: Episodes) -> Pass:
        return Pass(
            statistics=self.batch_norm_statistics,
            is_training=True,
            dropout_seeds=episodes.seeds if self.network.uses_dropout else None,
            record=PassRecord(affine_rows={}),
        )

    def _weighted_gradients(
        self, tasks: WeightedEpisodes, weights: Sequence[Tensor | None], second_order: bool
    ) -> Groups:
        return self._meta_gradients(tasks, weights, second_order, tasks.task_weights)

    def _meta_gradients(
        self, episodes: Episodes, weights: Sequence[Tensor | None], second_order: bool,
        task_weights: Tensor | None = None,
    ) -> Groups:  # fmt: skip
        """Return the means over some tasks of meta-gradient, batch statistics and metrics."""
        pass_ = self._training_pass(episodes)
        prepared = self.adaptation.prepare(episodes, pass_)
        steps = TrainingSteps(self.adaptation, prepared, pass_, weights, task_weights)
        gradients, losses, metrics = self.outer_gradient.compute(
            steps, self.meta_parameters(), second_order=second_order
        )
        # The sum stands before the detach: it is the outer loss itself, of which the gradient was taken.
        outer_loss = torch.stack(losses).sum().detach()
        per_step = {name: torch.stack([step[name] for step in metrics]) for name in metrics[0]}
        # Without inner steps (ProtoNet) nothing was computed of the support set but its prototypes.
        empty = {name: outer_loss.new_empty(0) for name in STEP_METRICS if name not in per_step}
        accuracy = per_step["query_accuracy"][-1]
        return {
            "gradients": gradients,
            "statistics": pass_.record.mean_statistics(),
            "metrics": {"loss": outer_loss, "accuracy": accuracy, **empty, **per_step},
        }

    # Meta-update.

    @torch.no_grad()
    def meta_update(self, meta_gradients: MetaGradients, epoch: int) -> Tensor:
        """Apply a meta-batch: a step of the outer optimiser at the epoch's learning rate, and one moving-average
        step of the statistics.

        Returns:
            bool of shape (), on the device: false where loss, gradients or statistics are not finite; see
            `MetaOptimizer.update`.
        """
        if not self._pretrains(epoch):
            self.pretraining = None  # its head has served
        optimizer = self.meta_optimizer if self.pretraining is None else self.pretraining.optimizer
        optimizer.schedule = self.meta_optimizer.schedule  # one for the whole run, however it was continued
        metrics, statistics = meta_gradients.metrics, meta_gradients.statistics
        # One norm stands for all gradients: it is not finite where any of them is not.
        evidence = [metrics["loss"], metrics["gradient_norm"], *statistics.values()]
        layers = batch_norm_layers(self.network)
        buffers = [buffer for layer in layers.values() for buffer in layer.buffers()]
        with optimizer.update(meta_gradients.gradients, epoch, evidence, buffers) as applied:
            for name, layer in layers.items():
                if f"{name}.running_mean" in statistics:
                    layer.update_running_statistics(
                        statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
                    )
        return applied

    # Adaptation without learning.

    def adapt(self, episodes: Tasks, n_steps: int | None = None, statistics: str | None = None) -> Adapted:
        """Adapt to the support set of each task; the learner stays exactly as it was, and nothing keeps a graph.

            theta[s+1] = theta[s] - alpha[s] * direction of grad L(theta[s], support)

        Args:
            n_steps, statistics: as for `evaluate`.
        Source: Finn et al. 2017, Algorithm 1, lines 5-6.
        """
        _, path = self.adaptation_path(episodes, n_steps, statistics)
        *_, (adapted, _, _) = path
        return adapted

    def adaptation_path(
        self, episodes: Tasks, n_steps: int | None = None, statistics: str | None = None
    ) -> tuple[PreparedEpisodes, Iterator[tuple[Adapted, Tensor | None, Tensor | None]]]:
        """Return the prepared episodes, and what `Adaptation.path` yields: learners, logits (B, n, N), loss (B,).

        Args:
            n_steps, statistics: as for `evaluate`.
        """
        pass_ = Pass(statistics=statistics or self.batch_norm_statistics)
        self._check_statistics(pass_)
        prepared = self.adaptation.prepare(episodes, pass_)
        steps = self.n_evaluation_steps if n_steps is None else n_steps
        return prepared, self.adaptation.path(prepared, pass_, steps)

    def evaluate(
        self,
        episodes: Episodes,
        n_steps: int | None = None,
        statistics: str | None = None,
        *,
        keep_features: bool = False,
    ) -> Evaluation:
        """Adapt to each task and classify its query images; the learner stays exactly as it was.

        Args:
            episodes: B of them, as for `meta_gradients`.
            n_steps: inner steps; those beyond S reuse the last step's rates and norm rows.
            statistics: a value of the key `batch_norm_statistics`; None: as in training.
            keep_features: return those before adaptation, too, which are computed on the way.
        Raises:
            ConfigError: "running", but no training has ever collected running statistics.
        """
        n_steps = self.n_evaluation_steps if n_steps is None else n_steps
        pass_ = Pass(statistics=statistics or self.batch_norm_statistics)
        self._check_statistics(pass_)
        results = self.execution.over_tasks(
            lambda tasks: self._evaluate(tasks, n_steps, pass_, keep_features=keep_features),
            episodes,
            ("evaluation", n_steps, pass_.statistics, keep_features),
        )
        return Evaluation(**{name: value.T if name in STEP_METRICS else value for name, value in results.items()})

    def _evaluate(self, episodes: Episodes, n_steps: int, pass_: Pass, *, keep_features: bool) -> dict[str, Tensor]:
        """Return the fields of `Evaluation` for some tasks, the task axis first."""
        pass_ = replace(pass_, record=PassRecord(affine_rows={}))
        prepared = self.adaptation.prepare(episodes, pass_)
        rows: dict[str, list[Tensor]] = {name: [] for name in STEP_METRICS}
        path = self.adaptation.path(prepared, pass_, n_steps, classify_support_at_end=True)
        for step, (adapted, support_logits, support_loss) in enumerate(path):
            with torch.no_grad():
                # theta[s] was made by step s - 1, whose norm rows its queries are classified with.
                at_step = replace(pass_, step=max(step - 1, 0))
                logits = self.adaptation.outputs("query", prepared, adapted, at_step)
                rows["query_loss"].append(self.loss.per_task_loss(logits, episodes.query_labels))
                rows["query_accuracy"].append(self.loss.per_task_score(logits, episodes.query_labels))
            rows["support_loss"].append(support_loss)
            rows["support_accuracy"].append(self.loss.per_task_score(support_logits, episodes.support_labels))
        first = {f"{role}_features": value for role, value in prepared.first_features.items() if keep_features}
        return {"query_logits": logits, **first} | {name: torch.stack(values, dim=1) for name, values in rows.items()}

    # What stands beside a result, on the same tasks.

    def baselines(
        self,
        episodes: Episodes,
        evaluation: Evaluation,
        statistics: str | None = None,
        *,
        n_untrained: int = 0,
        n_reordered: int = 0,
    ) -> dict[str, Tensor]:
        """Score each task without an inner step, and with its labels in other orders: `Baselines.of_tasks`.

        Args:
            evaluation: of these episodes, with features.
            statistics: as for `evaluate`.
            n_untrained, n_reordered: of the first tasks, so many get the entries that need passes of their own.
        Returns:
            name -> accuracies (B,) or (B, orders).
        """
        untrained, reordered = (first_tasks(episodes, n) if n else None for n in (n_untrained, n_reordered))
        network = self.untrained_network if n_untrained else None
        return self._baselines(statistics, network).of_tasks(episodes, evaluation, untrained, reordered)

    def centroid_accuracies(self, episodes: Episodes) -> Tensor:
        """Return the accuracies (B,) in float64 of the nearest class centroid on features without adaptation."""
        return self._baselines().of_centroids(self.network, episodes, "centroids")

    def images_per_task(self, n_support: int, n_query: int, statistics: str | None = None) -> dict[str, int]:
        """Return what an evaluation, and each entry of `baselines` with passes of its own, costs of a task."""
        return self._baselines(statistics).images_per_task(n_support, n_query)

    def _baselines(self, statistics: str | None = None, untrained: MetaNetwork | None = None) -> Baselines:
        pass_ = Pass(statistics=statistics or self.batch_norm_statistics)
        return Baselines(self.adaptation, self.execution, untrained, self.n_evaluation_steps, pass_)

    @cached_property
    def untrained_network(self) -> MetaNetwork | None:
        """The network as it was before any training; None: nobody knows it."""
        own = next(self.network.parameters())
        return None if self._untrained is None else self._untrained().to(device=own.device, dtype=own.dtype)

    def _check_statistics(self, pass_: Pass) -> None:
        trained, body_adapts = Pass(statistics=self.batch_norm_statistics), not self.adaptation.features_stay(pass_)
        for name, layer in batch_norm_layers(self.network).items():
            if body_adapts:
                warn_of_unfit(layer.statistics_of(pass_), layer.statistics_of(trained))
            if layer.choice(pass_).evaluates_with_running and not layer.has_running_statistics():
                raise ConfigError(
                    f'batch-norm statistics "running" were never collected (layer "{name}" has mean 0 and variance 1 '
                    "as at its start); train first, or test with transductive or support statistics"
                )

    # Schedules: everything that changes with the epoch.

    def meta_learning_rate(self, epoch: int) -> float:
        """Return the outer optimiser's learning rate in `epoch`, counted from 0."""
        return self.meta_optimizer.schedule.at(epoch)

    @property
    def annealing_epochs(self) -> int:
        """Period of the meta learning rate's schedule; 0: it has none."""
        return self.meta_optimizer.schedule.period

    def anneal_over(self, epochs: int) -> None:
        """Anneal over this many epochs, counted from the first of the run."""
        self.meta_optimizer.anneal_over(epochs)

    def multi_step_loss_weights(self, epoch: int) -> list[float]:
        """Return the weights of the query losses after each of the S steps in `epoch`; they sum to one, unless the
        outer loss has its own.
        """
        epoch = max(epoch - self.pretraining_epochs, 0)
        own = self.outer_loss.step_weights(epoch, self.n_steps)
        if own is not None:
            return list(own)
        return multi_step_loss_weights(epoch, self.n_steps, self.outer_loop.multi_step_loss_epochs)

    def is_second_order(self, epoch: int) -> bool:
        """Return whether `epoch` differentiates through the inner gradients."""
        # Not >=: in the reference, too, k means k + 1 first-order epochs, and -1 none.
        epoch -= self.pretraining_epochs
        return self.outer_loop.second_order and epoch > self.outer_loop.first_order_to_second_order_epoch

    # State.

    def state_tensors(self) -> dict[str, Tensor]:
        """Return name -> tensor, of any shape, of all that training changes: network, inner learning rates, the
        optimiser's moments and steps.
        """
        tensors = {name: value.detach() for name, value in self.state_dict().items()}
        tensors |= {OPTIMIZER_PREFIX + name: value for name, value in self.meta_optimizer.state_tensors().items()}
        return tensors | ({} if self.pretraining is None else self.pretraining.state_tensors())

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor], *, optimizer: bool = True) -> None:
        """Take over what `state_tensors` returned; with `optimizer` false, weights and statistics alone.

        Raises:
            ConfigError: a tensor is missing, unknown or of another shape: the checkpoint is of another network.
        """
        of_pretraining = {name: value for name, value in tensors.items() if name.startswith(PRETRAINING_PREFIX)}
        tensors = {name: value for name, value in tensors.items() if name not in of_pretraining}
        given = {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
        # All shapes before the first copy: torch's load_state_dict has changed what fits by the time it raises.
        own = self.state_dict()
        for name in sorted(own.keys() | given.keys()):
            own_shape = tuple(own[name].shape) if name in own else None
            given_shape = tuple(given[name].shape) if name in given else None
            if own_shape != given_shape:
                there, here = ("is missing" if s is None else f"has shape {s}" for s in (given_shape, own_shape))
                raise ConfigError(
                    f'the checkpoint is of another network: tensor "{name}" {there} there and {here} here; use the '
                    "config that it was trained with: what gives the network its shape, such as the ways of a learned "
                    "head, stays"
                )
        self.load_state_dict(given)
        if not optimizer:
            return
        self.pretraining = self.pretraining if of_pretraining else None
        if self.pretraining is not None:
            self.pretraining.load_state_tensors(of_pretraining)
        of_optimizer = [name for name in tensors if name not in given]
        self.meta_optimizer.load_state_tensors(
            {name.removeprefix(OPTIMIZER_PREFIX): tensors[name] for name in of_optimizer}
        )

    @property
    def automatic_choices(self) -> dict[str, Any]:
        """Choices made by the machine at the start; a resumed run reuses them, so that it computes in the same
        order.
        """
        return {"task_chunk_size": self.execution.chunks.size} if self.execution.chunks.automatic else {}

    def reuse_choices(self, choices: dict[str, Any]) -> None:
        """Take over the `automatic_choices` of the run that is resumed, where the config leaves the choice open."""
        self.execution.chunks.reuse(choices.get("task_chunk_size"))

    # What is reported.

    def description(self) -> dict[str, Any]:
        """Return the parameter table and the choices, JSON-able."""
        return learner_description(self.meta_parameters(), self.inner_loop) | self.automatic_choices

    def snapshot(self) -> dict[str, Any]:
        """Return inner learning rates and summaries of norm layers and of what the method learns: `learned_state`."""
        return learned_state(self.meta_parameters(), self.inner_loop, self.network)

    @property
    def ever_second_order(self) -> bool:
        """Whether any epoch differentiates through the inner gradients."""
        return self.outer_loop.second_order

    def step_by_step(self) -> AbstractContextManager[None]:
        """Within it no recording is replayed: what watches single operations sees them."""
        return self.execution.replayed.off()

    def memory_per_task(self) -> dict[str, float]:
        """Return the MiB that a task needs, where this process has measured it."""
        return self.execution.chunks.snapshot()


def build_learner(
    config: ExperimentConfig,
    device: torch.device | str,
    *,
    network: nn.Module | NetworkFunction | None = None,
    inner_loop_optimizer: Callable[..., InnerLoopOptimizer] | None = None,
    head: Callable[..., Head] | None = None,
    loss: TaskLoss | Callable[..., TaskLoss] | None = None,
    outer_loss: OuterLoss | Callable[..., OuterLoss] | None = None,
    norm_layer: Callable[..., MetaNorm] | None = None,
) -> FewShotLearner:
    """Build the learner of a config on `device`.

        >>> import torch
        >>> from mamlkit import build_learner, episodes_from_arrays, load_config
        >>> keys = {"num_classes_per_set": 2, "image_height": 8, "image_width": 8, "image_channels": 1}
        >>> config = load_config(None, {"experiment_name": "own_loop", "backbone": "mlp", **keys})
        >>> learner = build_learner(config, "cpu")
        >>> images, labels = torch.randn(4, 2, 1, 8, 8), torch.tensor([[0, 1]]).expand(4, 2)
        >>> episodes = episodes_from_arrays(images, labels, images, labels)  # 4 tasks, 2-way 1-shot
        >>> found = learner.meta_gradients(episodes, epoch=0)
        >>> learner.meta_update(found, epoch=0).shape
        torch.Size([])

    Args:
        network: a module, which is copied, or a function of (config, (C, H, W), N) that makes one; None: the config's.
        inner_loop_optimizer, head, loss, outer_loss, norm_layer: a class, or a function that makes one, in the place of
            the config's, as the functions of `utils.registry` take them.
    """
    device, dtype = torch.device(device), getattr(torch, config.parameter_format)
    made_per_episode = fact("head", config.head, "is_made_per_episode", getattr(head, "is_made_per_episode", True))
    # Without a file of weights, which need not be there any more when a finished run is tested.
    untrained = partial(
        build_network,
        config.model_copy(update={"initial_weights": ""}),
        network,
        norm_layer=norm_layer,
        with_head=not made_per_episode,
    )
    network = build_network(config, network, norm_layer=norm_layer, with_head=not made_per_episode)
    outer_loop = OuterLoop(
        sharpness_radius=config.sharpness_radius,
        second_order=config.second_order,
        first_order_to_second_order_epoch=config.first_order_to_second_order_epoch,
        multi_step_loss_epochs=config.multi_step_loss_num_epochs if config.use_multi_step_loss_optimization else 0,
    )
    # To the device before anything is built around it: `build_execution` chooses by where the parameters are.
    network = network.to(device=device, dtype=dtype)
    with torch.random.fork_rng(devices=[]):  # what they draw, the config's seed decides, and nothing else draws others
        torch.manual_seed(config.initialisation_seed)
        shapes = adapted_shapes(network, config)
        inner_loop = build_inner_loop(config, shapes, inner_loop_optimizer).to(dtype=dtype)
        parts = {
            "head": make_chosen(config, "head", head, Head, network.head.in_features).to(dtype=dtype),
            "loss": make_chosen(config, "loss", loss, TaskLoss).to(dtype=dtype),
            "outer_loss": make_chosen(config, "outer_loss", outer_loss, OuterLoss).to(dtype=dtype),
        }
    n_outputs = config.num_regression_outputs if config.is_regression else config.training_shapes[0].n_way
    check_promises({"inner_loop_optimizer": inner_loop} | parts, shapes, n_outputs, inner_loop.n_steps, dtype)
    return FewShotLearner(
        network,
        inner_loop.to(device=device),
        outer_loop,
        outer_update=build_outer_update(config),
        n_evaluation_steps=config.number_of_evaluation_steps_per_iter,
        batch_norm_statistics=name_of_statistics(config.batch_norm_statistics),
        outer_gradient=build_outer_gradient(config),
        execution=build_execution(config, network),
        untrained=untrained,
        pretraining_epochs=config.pretraining_epochs,
        **{name: part.to(device=device) for name, part in parts.items()},
    )


def meta_gradients(learner: FewShotLearner, episodes: Episodes, epoch: int = 0) -> MetaGradients:
    """Compute the meta-gradient and put it into `.grad` of the meta-parameters, for an optimiser of one's own.

        >>> import torch
        >>> from mamlkit import build_learner, episodes_from_arrays, load_config, meta_gradients
        >>> keys = {"num_classes_per_set": 2, "image_height": 8, "image_width": 8, "image_channels": 1}
        >>> config = load_config(None, {"experiment_name": "own_loop", "backbone": "mlp", **keys})
        >>> learner = build_learner(config, "cpu")
        >>> optimizer = torch.optim.SGD(learner.meta_parameters().values(), lr=0.1)
        >>> images, labels = torch.randn(4, 2, 1, 8, 8), torch.tensor([[0, 1]]).expand(4, 2)
        >>> loss = meta_gradients(learner, episodes_from_arrays(images, labels, images, labels)).metrics["loss"]
        >>> optimizer.step()

    Args:
        episodes: see `FewShotLearner.meta_gradients`.
        epoch: from 0; decides derivative order and the weights of a multi-step loss.
    """
    found = learner.meta_gradients(episodes, epoch)
    for name, parameter in learner.meta_parameters().items():
        parameter.grad = found.gradients[name].clone()
    return found
