"""The inner loop where something is learned from it: its steps, and the query loss that the outer loop counts."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, set_grad_enabled, zeros_like

from meta_learning.adaptation import Adaptation, Adapted, PreparedEpisodes
from meta_learning.networks.passes import Pass

Metrics = dict[str, Tensor]


class TrainingSteps:
    """The S inner steps of some tasks, for one outer gradient.

    Args:
        adaptation: where the tasks start, what a step does, and the loss, of query images too.
        prepared: the tasks.
        pass_: how their images pass through the network.
        weights: v[s], (), of the query loss after each step; None: zero, and the step's query images are not needed.
            There is one, too, where S is 0 (ProtoNet).
        task_weights: (B,), how much the query losses of each task count; None: all alike.
    """

    def __init__(
        self, adaptation: Adaptation, prepared: PreparedEpisodes, pass_: Pass, weights: Sequence[Tensor | None],
        task_weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.adaptation, self.prepared, self.pass_ = adaptation, prepared, pass_
        self.weights, self.task_weights, self.n_steps = weights, task_weights, adaptation.optimizer.n_steps

    def start(self, *, create_graph: bool) -> Adapted:
        """Return theta[0], with its history back to the meta-parameters."""
        return self.adaptation.start(self.prepared, self.pass_, create_graph=create_graph)

    def take_all(
        self, start: Adapted, *, create_graph: bool, detached: bool = False, query_gradients: bool = True
    ) -> tuple[Adapted, list[Tensor], list[Metrics]]:
        """Take all inner steps.

        Args:
            create_graph: make the inner gradients differentiable, for second order.
            detached: for what differentiates nothing outside a step, so that none needs the history of the one before.
            query_gradients: whether the query losses are differentiated; they are metrics anyway.
        Returns:
            the learners after the last step and, of each step, weight * query loss and the metrics.
        """
        adapted, losses, metrics = start, [], []
        for step in range(len(self.weights)):
            before = adapted.detached() if detached else adapted
            adapted, loss, of_step = self.take(step, before, create_graph=create_graph, query_gradients=query_gradients)
            losses.append(loss)
            metrics.append(of_step)
        return adapted, losses, metrics

    def take(
        self, step: int, before: Adapted, *, create_graph: bool, query_gradients: bool = True
    ) -> tuple[Adapted, Tensor, Metrics]:
        """Take an inner step on the support images, then classify the query images where their loss counts.

        Returns:
            the learners after the step; weight * query loss, mean over tasks, and the step's metrics, each of shape ().
        """
        prepared, adaptation, weight = self.prepared, self.adaptation, self.weights[step]
        episodes, pass_, adapted = prepared.episodes, replace(self.pass_, step=step), before
        # Not a zero, which would count as a loss: running means leave nan out (`RunningStatistics`).
        not_computed = episodes.support_images.new_full((), float("nan"))
        metrics: Metrics = {}
        if self.n_steps:
            adapted, logits, support_loss = adaptation.step(prepared, before, pass_, create_graph=create_graph)
            metrics["support_loss"] = support_loss.detach().mean()
            metrics["support_accuracy"] = adaptation.loss.per_task_score(logits, episodes.support_labels).mean()
        if weight is None:  # a weight of zero: a whole pass for the metrics alone is not worth its time
            metrics |= {"query_loss": not_computed, "query_accuracy": not_computed}
            return adapted, zeros_like(not_computed), metrics
        with set_grad_enabled(query_gradients):
            # The query pass after step s uses the norm rows of step s, as in the reference, not those of s + 1.
            logits = adaptation.outputs("query", prepared, adapted, pass_)
            losses = adaptation.loss.per_task_loss(logits, episodes.query_labels)
            query_loss = losses.mean()
        metrics["query_loss"] = query_loss.detach()
        metrics["query_accuracy"] = adaptation.loss.per_task_score(logits, episodes.query_labels).mean()
        if self.task_weights is not None:
            query_loss = (losses * self.task_weights).mean()
        return adapted, weight * query_loss, metrics
