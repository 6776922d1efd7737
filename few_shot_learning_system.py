"""The few-shot learner: inner loop, outer loss, meta-gradient and meta-update over a batch of tasks at once.

MAML (Finn et al. 2017) and MAML++ (Antoniou et al. 2019) are choices, not subclasses: derivative order, inner-loop
optimiser, weights of the outer loss over steps, batch-norm statistics.

Letters: B tasks, N way, K shot, Q query images per class, S inner steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meta_learning.execution import choose_task_chunk_size, mean_over_chunks, task_chunks
from meta_learning.inner_loop_optimizers import GradientDescent
from meta_learning.meta_optimizer import MetaOptimizer, OuterUpdate, build_outer_update
from meta_learning.outer_losses import (
    CROSS_ENTROPY,
    TaskLoss,
    last_step_weights,
    multi_step_loss_weights,
)
from meta_neural_network_architectures import BatchStatistics, MetaBatchNorm2d, Pass, VGGReLUNormNetwork
from utils.errors import ConfigError

OPTIMIZER_PREFIX = "optimizer."
"""What the names of the outer optimiser's tensors begin with in a checkpoint."""
DEFAULT_UPDATE = OuterUpdate()


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


@dataclass(frozen=True)
class Evaluation:
    """Adaptation without learning. Row s of the metrics: after s inner steps, row 0 before adaptation.

    Attributes:
        query_logits: (B, N*Q, N) after the last step.
        support_loss, support_accuracy, query_loss, query_accuracy: (steps + 1, B).
    """

    query_logits: Tensor
    support_loss: Tensor
    support_accuracy: Tensor
    query_loss: Tensor
    query_accuracy: Tensor


@dataclass(frozen=True)
class OuterLoop:
    """Choices of the outer loss; the meanings are those of the config keys."""

    second_order: bool = True
    first_order_to_second_order_epoch: int = -1
    multi_step_loss: bool = False
    multi_step_loss_epochs: int = 10


class FewShotLearner(nn.Module):
    """MAML and its relatives.

    Args:
        network: forward(images (B, n, C, H, W), params, mode) -> logits (B, n, N); see `VGGReLUNormNetwork`.
        inner_loop: an optimiser of `meta_learning.inner_loop_optimizers`; its `names` are the adapted parameters.
        outer_loop: derivative order and weights of the outer loss.
        outer_update: optimiser and schedule of the meta-update.
        loss: of inner and outer loop.
        n_evaluation_steps: inner steps of `evaluate`, unless it is told otherwise.
        batch_norm_statistics: "transductive" or "running", for `evaluate`.
        task_chunk_size: tasks computed at once; None: all.
        chosen_automatically: whether the chunk size was chosen by the machine, so that a resumed run reuses it.
    """

    def __init__(
        self, network: nn.Module, inner_loop: GradientDescent, outer_loop: OuterLoop, *,
        outer_update: OuterUpdate = DEFAULT_UPDATE, loss: TaskLoss = CROSS_ENTROPY,
        n_evaluation_steps: int | None = None,
        batch_norm_statistics: str = "transductive", task_chunk_size: int | None = None,
        chosen_automatically: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.inner_loop, self.outer_loop, self.loss = network, inner_loop, outer_loop, loss
        self.n_steps = inner_loop.n_steps
        self.n_evaluation_steps = self.n_steps if n_evaluation_steps is None else n_evaluation_steps
        self.batch_norm_statistics = batch_norm_statistics
        self.task_chunk_size = task_chunk_size
        self.chosen_automatically = chosen_automatically
        self.meta_optimizer = MetaOptimizer(self.meta_parameters(), outer_update)

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
        """Return the weights of the query losses after each of the S steps in `epoch`; they sum to one."""
        if not self.outer_loop.multi_step_loss:
            return last_step_weights(self.n_steps)
        return multi_step_loss_weights(epoch, self.n_steps, self.outer_loop.multi_step_loss_epochs)

    def is_second_order(self, epoch: int) -> bool:
        """Tell whether `epoch` differentiates through the inner gradients."""
        return self.outer_loop.second_order and epoch > self.outer_loop.first_order_to_second_order_epoch

    # Training.

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the outer loop learns, by name: network weights and, where learned, inner learning rates."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def meta_gradients(self, episodes: Any, epoch: int) -> MetaGradients:
        """Compute the gradient of the outer loss with respect to the meta-parameters. Changes nothing.

            outer loss = mean over tasks of sum over s of v[s] * L(theta[s+1], query)

        Args:
            episodes: support_images (B, N*K, C, H, W), support_labels (B, N*K), query_images, query_labels, seeds (B,).
            epoch: from 0; decides derivative order and the weights v.
        """
        chunk_size = self.task_chunk_size or len(episodes.support_labels)
        means = mean_over_chunks(lambda chunk: self._chunk_meta_gradients(chunk, epoch), episodes, chunk_size)
        gradients, metrics = means["gradients"], means["metrics"]
        metrics["gradient_norm"] = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
        )
        return MetaGradients(gradients, means["statistics"], metrics)

    def _chunk_meta_gradients(self, episodes: Any, epoch: int) -> dict[str, dict[str, Tensor]]:
        weights = self.multi_step_loss_weights(epoch)
        second_order = self.is_second_order(epoch)
        meta_parameters = self.meta_parameters()
        collected = BatchStatistics()
        losses, accuracies = {"support": [], "query": []}, {"support": [], "query": []}
        outer_loss = torch.zeros((), device=episodes.support_images.device, dtype=episodes.support_images.dtype)
        not_computed = torch.full_like(outer_loss, float("nan"))

        params = self._adapted_parameters(len(episodes.support_labels))
        state = self.inner_loop.init(params)
        for step, weight in enumerate(weights):
            mode = Pass(step, collected=collected, dropout_seeds=episodes.seeds)
            logits = self.network(episodes.support_images, params, mode)
            support_loss = self.loss.per_task_loss(logits, episodes.support_labels)
            gradients = torch.autograd.grad(support_loss.sum(), list(params.values()), create_graph=second_order)
            params, state = self.inner_loop.update(params, gradients, state, step)
            losses["support"].append(support_loss.detach().mean())
            accuracies["support"].append(self.loss.per_task_score(logits, episodes.support_labels).mean())
            if weight == 0.0:
                losses["query"].append(not_computed)
                accuracies["query"].append(not_computed)
                continue
            mode = Pass(step, collected=collected, dropout_seeds=episodes.seeds, is_query=True)
            logits = self.network(episodes.query_images, params, mode)
            query_loss = self.loss.per_task_loss(logits, episodes.query_labels).mean()
            outer_loss = outer_loss + weight * query_loss
            losses["query"].append(query_loss.detach())
            accuracies["query"].append(self.loss.per_task_score(logits, episodes.query_labels).mean())

        gradients = torch.autograd.grad(outer_loss, list(meta_parameters.values()), allow_unused=True, materialize_grads=True)
        metrics = {"loss": outer_loss.detach(), "accuracy": accuracies["query"][-1]}
        for role in ("support", "query"):
            metrics[f"{role}_loss"] = torch.stack(losses[role])
            metrics[f"{role}_accuracy"] = torch.stack(accuracies[role])
        return {
            "gradients": dict(zip(meta_parameters, gradients, strict=True)),
            "statistics": collected.means(),
            "metrics": metrics,
        }

    def _adapted_parameters(self, n_tasks: int) -> dict[str, Tensor]:
        """Return name -> (B, ...): each task starts from the meta-parameters."""
        own = dict(self.network.named_parameters())
        return {name: own[name].expand(n_tasks, *own[name].shape) for name in self.inner_loop.names}

    @torch.no_grad()
    def meta_update(self, meta_gradients: MetaGradients, epoch: int) -> Tensor:
        """Apply a meta-batch: a step of the outer optimiser at the epoch's learning rate, and one moving-average step of the statistics.

        Returns:
            bool (), on the device: false where loss, gradients or statistics are not finite; see `MetaOptimizer.update`.
        """
        metrics, statistics = meta_gradients.metrics, meta_gradients.statistics
        evidence = [metrics["loss"], metrics["gradient_norm"], *statistics.values()]
        layers = self._batch_norm_layers()
        buffers = [buffer for layer in layers.values() for buffer in layer.buffers()]
        with self.meta_optimizer.update(meta_gradients.gradients, epoch, evidence, buffers) as applied:
            for name, layer in layers.items():
                if f"{name}.running_mean" in statistics:
                    layer.update_running_statistics(statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"])
        return applied

    def allow_skips(self, count: int) -> None:
        """Let `count` updates that are not finite be skipped; at the next one the state stays as it is."""
        self.meta_optimizer.allow_skips(count)

    def take_back_steps(self, count: int) -> None:
        """Lower the outer optimiser's count of steps by that of updates after which the state stayed as it was."""
        self.meta_optimizer.take_back_steps(count)

    def _batch_norm_layers(self) -> dict[str, MetaBatchNorm2d]:
        return {name: module for name, module in self.network.named_modules() if isinstance(module, MetaBatchNorm2d)}

    # Evaluation.

    def evaluate(self, episodes: Any, n_steps: int | None = None, statistics: str | None = None) -> Evaluation:
        """Adapt to each task and classify its query images; the learner stays exactly as it was.

        Args:
            n_steps: inner steps; those beyond S reuse the last step's rates and norm rows.
            statistics: "transductive" or "running".
        """
        n_steps = self.n_evaluation_steps if n_steps is None else n_steps
        running = (statistics or self.batch_norm_statistics) == "running"
        chunk_size = self.task_chunk_size or len(episodes.support_labels)
        parts = [self._evaluate_chunk(chunk, n_steps, running) for chunk in task_chunks(episodes, chunk_size)]
        logits = torch.cat([part[0] for part in parts])
        return Evaluation(logits, *(torch.cat(rows, dim=1) for rows in zip(*(part[1:] for part in parts), strict=True)))

    def _evaluate_chunk(self, episodes: Any, n_steps: int, running: bool) -> tuple[Tensor, ...]:
        params = self._adapted_parameters(len(episodes.support_labels))
        state = self.inner_loop.init(params)
        rows: dict[str, list[Tensor]] = {name: [] for name in ("support_loss", "support_accuracy", "query_loss", "query_accuracy")}
        logits = torch.empty(0)
        for step in range(n_steps + 1):
            # Nothing is differentiated across steps, so no graph is kept between them.
            params = {name: value.detach().requires_grad_(step < n_steps) for name, value in params.items()}
            with torch.no_grad():
                mode = Pass(max(step - 1, 0), running_statistics=running)
                logits = self.network(episodes.query_images, params, mode)
                rows["query_loss"].append(self.loss.per_task_loss(logits, episodes.query_labels))
                rows["query_accuracy"].append(self.loss.per_task_score(logits, episodes.query_labels))
            with torch.set_grad_enabled(step < n_steps):
                support_logits = self.network(episodes.support_images, params, Pass(step, running_statistics=running))
                support_loss = self.loss.per_task_loss(support_logits, episodes.support_labels)
                rows["support_loss"].append(support_loss.detach())
                rows["support_accuracy"].append(self.loss.per_task_score(support_logits, episodes.support_labels))
                if step < n_steps:
                    gradients = torch.autograd.grad(support_loss.sum(), list(params.values()))
            if step < n_steps:
                with torch.no_grad():
                    params, state = self.inner_loop.update(params, gradients, state, step)
        return (logits, *(torch.stack(values) for values in rows.values()))

    # State.

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that training changes, by name: network, inner learning rates, the optimiser's moments and steps."""
        tensors = {name: value.detach() for name, value in self.state_dict().items()}
        return tensors | {OPTIMIZER_PREFIX + name: value for name, value in self.meta_optimizer.state_tensors().items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor], *, optimizer: bool = True) -> None:
        """Take over what `state_tensors` returned; with `optimizer` false, weights and statistics alone.

        Raises:
            ConfigError: a tensor is missing, unknown or of another shape: the checkpoint is of another network.
        """
        given = {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
        own = self.state_dict()
        for name in sorted(own.keys() | given.keys()):
            own_shape = tuple(own[name].shape) if name in own else None
            given_shape = tuple(given[name].shape) if name in given else None
            if own_shape != given_shape:
                raise ConfigError(
                    f'the checkpoint is of another network: tensor "{name}" has shape {given_shape} there and {own_shape} here; '
                    "use the config that it was trained with"
                )
        self.load_state_dict(given)
        if optimizer:
            self.meta_optimizer.load_state_tensors(
                {name.removeprefix(OPTIMIZER_PREFIX): value for name, value in tensors.items() if name.startswith(OPTIMIZER_PREFIX)}
            )

    @property
    def automatic_choices(self) -> dict[str, Any]:
        """Choices made by the machine at the start; a resumed run reuses them, so that it computes in the same order."""
        return {"task_chunk_size": self.task_chunk_size} if self.chosen_automatically else {}

    def reuse_choices(self, choices: dict[str, Any]) -> None:
        """Take over the `automatic_choices` of the run that is resumed, where the config leaves the choice open."""
        if self.chosen_automatically:
            self.task_chunk_size = choices.get("task_chunk_size", self.task_chunk_size)

    # What people look at.

    def description(self) -> dict[str, Any]:
        """Return the parameter table and the choices, JSON-able."""
        return {
            "meta_parameters": {name: list(value.shape) for name, value in self.meta_parameters().items()},
            "n_meta_parameters": sum(value.numel() for value in self.meta_parameters().values()),
            "adapted_parameters": list(self.inner_loop.names),
            **self.automatic_choices,
        }

    def snapshot(self) -> dict[str, Any]:
        """Return inner learning rates, name -> [S], and per layer and norm row the mean of weights, biases and statistics."""
        rates = self.inner_loop.learning_rates.detach().cpu().tolist()
        layers = {}
        for name, layer in self._batch_norm_layers().items():
            values = {key: getattr(layer, key).detach() for key in ("weight", "bias", "running_mean", "running_var")}
            summary = {key: torch.atleast_2d(value).mean(dim=1).cpu().tolist() for key, value in values.items()}
            layers[name] = summary | {"momentum": float(layer.momentum)}
        return {"learned_rates": dict(zip(self.inner_loop.names, rates, strict=True)), "batch_norm": layers}


def build_network(config: Any) -> VGGReLUNormNetwork:
    """Build and initialise the backbone of a config (`utils.config.ExperimentConfig`), on the CPU in float32."""
    n_rows = config.number_of_training_steps_per_iter if config.per_step_bn_statistics else 1
    network = VGGReLUNormNetwork(
        (config.image_channels, config.image_height, config.image_width),
        config.num_classes_per_set,
        n_filters=config.cnn_num_filters,
        n_stages=config.num_stages,
        blocks_per_stage=config.cnn_blocks_per_stage,
        padding=config.conv_padding,
        max_pooling=config.max_pooling,
        norm_layer=config.norm_layer,
        n_rows=n_rows,
        n_norm_parameter_rows=1 if config.enable_inner_loop_optimizable_bn_params else n_rows,
        learn_norm_weight=config.learnable_bn_gamma,
        learn_norm_bias=config.learnable_bn_beta,
        norm_momentum=config.batch_norm_momentum,
        learnable_norm_momentum=config.learnable_batch_norm_momentum,
        dropout=config.dropout_rate_value,
    )
    network.initialise(torch.Generator().manual_seed(config.initialisation_seed))
    return network


def build_learner(config: Any, device: torch.device | str) -> FewShotLearner:
    """Build the learner of a config (`utils.config.ExperimentConfig`) on `device`."""
    device = torch.device(device)
    dtype = getattr(torch, config.precision)
    network = build_network(config)
    norm_names = {
        f"{name}.{key}" for name, module in network.named_modules() if name.endswith(".norm") for key, _ in module.named_parameters()
    }
    adapted = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and (name not in norm_names or (config.enable_inner_loop_optimizable_bn_params and not name.endswith(".momentum")))
    ]
    inner_loop = GradientDescent(
        adapted,
        config.init_inner_loop_learning_rate,
        config.number_of_training_steps_per_iter,
        learnable=config.learnable_per_layer_per_step_inner_loop_learning_rate,
        dtype=dtype,
    )
    outer_loop = OuterLoop(
        second_order=config.second_order,
        first_order_to_second_order_epoch=config.first_order_to_second_order_epoch,
        multi_step_loss=config.use_multi_step_loss_optimization,
        multi_step_loss_epochs=config.multi_step_loss_num_epochs,
    )
    image_shape = (config.image_channels, config.image_height, config.image_width)
    n_tasks = config.tasks_per_meta_batch
    automatic = config.task_chunk_size == "auto"
    return FewShotLearner(
        network.to(device=device, dtype=dtype),
        inner_loop.to(device=device),
        outer_loop,
        outer_update=build_outer_update(config),
        loss=TaskLoss(config.loss, config.label_smoothing),
        n_evaluation_steps=config.number_of_evaluation_steps_per_iter,
        batch_norm_statistics=config.batch_norm_statistics,
        task_chunk_size=choose_task_chunk_size(device, image_shape, n_tasks) if automatic else config.task_chunk_size,
        chosen_automatically=automatic,
    )
