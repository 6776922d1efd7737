"""What stands beside the result of a test: what a task's support images give without an inner step, and what the
order of its labels does.

Letters: B tasks, N way, D features, S inner steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meta_learning.adaptation import Adaptation, PreparedEpisodes
from meta_learning.evaluation.evaluation import Evaluation
from meta_learning.evaluation.feature_classifiers import nearest_neighbours, predictions, ridge_head
from meta_learning.execution.execution import Execution
from meta_learning.heads.prototypes import PrototypeHead
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.passes import Pass, PassRecord
from utils.episodes.source import Episodes

class_means = PrototypeHead(0).make
LABEL_ORDERS = 5
"""In how many orders a task's labels are tried, its own among them."""
HeadOfFeatures = Callable[[Tensor, Tensor, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Baselines:
    """Scores tasks without an inner step, and with their labels in other orders.

    Attributes:
        adaptation: of the learner beside whose result they stand.
        execution: how its computations are carried out.
        untrained: its network before any training; None: nobody knows it.
        n_steps: inner steps of its evaluation, S.
        pass_: says how norm layers treat the images.
    """

    adaptation: Adaptation
    execution: Execution
    untrained: MetaNetwork | None
    n_steps: int
    pass_: Pass

    def of_tasks(
        self, episodes: Episodes, evaluation: Evaluation, untrained: Episodes | None, reordered: Episodes | None
    ) -> dict[str, Tensor]:
        """Return accuracies (B,) in float64, of what has a meaning for this learner and these tasks.

            pixels         nearest neighbour; "inputs" of what is no image, nothing where numbers are ids
            centroids      of the classes, on the features before adaptation
            ridge          regression, on the same
            untrained      centroids on the features of the network before its training
            label_orders   (B, orders - 1): after the inner steps, class c being output (c + shift) mod N, where a head
                           is learned; over all orders each class is each output equally often, if N is 5 or less

        Args:
            evaluation: of the episodes, with features.
            untrained, reordered: the first of them, which get the last two; nan stands for the others.
        Source of the label orders: Ye & Chao 2022, section 4.
        """
        if self.adaptation.loss.is_regression:
            return {}
        n_tasks, n_way = len(episodes.support_labels), episodes.n_way
        support, query = episodes.support_images.flatten(2), episodes.query_images.flatten(2)
        found = {}
        if compared_as := self.adaptation.network.compared_as:
            found[compared_as] = _shares(nearest_neighbours(support, episodes.support_labels, query), episodes)
        choices = [
            layer.choice(self.pass_)
            for layer in self.adaptation.network.norm_layers().values()
            if layer.sees_other_images
        ]
        # Before any inner step a moving average of the episode stands at its start, which describes no images.
        if not any(choice.moves_within_episode for choice in choices):
            features = evaluation.support_features, evaluation.query_features
            found["centroids"] = _accuracies(class_means, episodes, *features)
            found["ridge"] = _accuracies(ridge_head, episodes, *features)
            # Nor do the running averages of a network that was never trained.
            is_known = untrained is not None and self.untrained is not None
            if is_known and not any(choice.evaluates_with_running for choice in choices):
                found["untrained"] = _filled(self.of_centroids(self.untrained, untrained, "untrained"), n_tasks)
        n_orders = min(LABEL_ORDERS, n_way)
        if reordered is not None and not self.adaptation.head.is_made_per_episode and n_orders > 1:
            shifts = [order * n_way // n_orders for order in range(1, n_orders)]
            found["label_orders"] = _filled(self._in_other_orders(reordered, shifts), n_tasks)
        return found

    def images_per_task(self, n_support: int, n_query: int) -> dict[str, int]:
        """Return how many images pass through a body for a task, a backward pass counting twice: of an "evaluation",
        and of the entries of `of_tasks` that need passes of their own.
        """
        orders, steps = LABEL_ORDERS - 1, self.n_steps
        n_query += n_support if self.adaptation.network.needs_support(self.pass_) else 0
        once = n_support + n_query
        if self.adaptation.features_stay(self.pass_):
            return {"evaluation": once, "untrained": once, "label_orders": orders * once}
        inner = (3 * steps + self.adaptation.head.uses_features) * n_support
        evaluation = inner + n_support + (steps + 1) * n_query
        return {"evaluation": evaluation, "untrained": once, "label_orders": orders * (inner + n_query)}

    @torch.no_grad()
    def of_centroids(self, network: MetaNetwork, episodes: Episodes, name: str) -> Tensor:
        """Return accuracies (B,) of class centroids on the features of a network, one `name` for each."""

        def features(tasks: Episodes) -> dict[str, Tensor]:
            prepared = PreparedEpisodes(tasks, network)
            own = self.pass_.recording(moving={})
            return {role: prepared.features(role, {}, own) for role in ("support", "query")}

        found = self.execution.over_tasks(features, episodes, (name, self.pass_.statistics))
        return _accuracies(class_means, episodes, found["support"], found["query"])

    def _in_other_orders(self, episodes: Episodes, shifts: list[int]) -> Tensor:
        def accuracies(tasks: Episodes) -> dict[str, Tensor]:
            columns = []
            for shift in shifts:
                names = ("support_labels", "query_labels")
                moved = {name: (getattr(tasks, name) + shift) % tasks.n_way for name in names}
                columns.append(self._after_steps(replace(tasks, **moved)))
            return {"": torch.stack(columns, dim=1)}

        return self.execution.over_tasks(accuracies, episodes, ("label orders", self.pass_.statistics))[""]

    def _after_steps(self, episodes: Episodes) -> Tensor:
        pass_ = replace(self.pass_, record=PassRecord(affine_rows={}))
        prepared = self.adaptation.prepare(episodes, pass_)
        *_, (adapted, _, _) = self.adaptation.path(prepared, pass_, self.n_steps)
        with torch.no_grad():
            logits = self.adaptation.outputs("query", prepared, adapted, replace(pass_, step=max(self.n_steps - 1, 0)))
            return _shares(logits.argmax(-1), episodes)


def _shares(answers: Tensor, episodes: Episodes) -> Tensor:
    return (answers == episodes.query_labels).double().mean(1)


def _accuracies(make: HeadOfFeatures, episodes: Episodes, support: Tensor, query: Tensor) -> Tensor:
    return _shares(predictions(query, make(support, episodes.support_labels, episodes.n_way)), episodes)


def _filled(values: Tensor, n_tasks: int) -> Tensor:
    missing = values.new_full((n_tasks - len(values), *values.shape[1:]), torch.nan)
    return torch.cat([values, missing])
