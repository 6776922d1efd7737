"""What stands beside the result of a test: what a task's support images give without an inner step, and what the
order of its labels does.

Letters: B tasks, N way, D features, S inner steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from meta_learning.adaptation import PreparedEpisodes
from meta_learning.feature_classifiers import nearest_neighbours, predictions, ridge_head
from meta_learning.heads.prototypes import PrototypeHead
from meta_learning.networks.base import MetaNetwork
from meta_learning.networks.passes import Pass, PassRecord
from utils.episodes.source import Episodes

if TYPE_CHECKING:
    from few_shot_learning_system import Evaluation, FewShotLearner

class_means = PrototypeHead(0).make
LABEL_ORDERS = 5
"""In how many orders a task's labels are tried, its own among them."""
HeadOfFeatures = Callable[[Tensor, Tensor, int], dict[str, Tensor]]


def of_tasks(
    learner: "FewShotLearner",
    episodes: Episodes,
    evaluation: "Evaluation",
    pass_: Pass,
    untrained: Episodes | None,
    reordered: Episodes | None,
) -> dict[str, Tensor]:
    """Return accuracies (B,) in float64, of what has a meaning for this learner and these tasks.

        pixels         nearest neighbour
        centroids      of the classes, on the features before adaptation
        ridge          regression, on the same
        untrained      centroids on the features of the network before its training
        label_orders   (B, orders - 1): after the inner steps, class c being output (c + shift) mod N, where a head is
                       learned; over all orders each class is each output equally often, if N is 5 or less

    Args:
        evaluation: of the episodes, with features.
        untrained, reordered: the first of them, which get the last two; nan stands for the others.
    Source of the label orders: Ye & Chao 2022, section 4.
    """
    if learner.loss.is_regression:
        return {}
    n_tasks, n_way = len(episodes.support_labels), episodes.n_way
    support, query = episodes.support_images.flatten(2), episodes.query_images.flatten(2)
    found = {"pixels": _shares(nearest_neighbours(support, episodes.support_labels, query), episodes)}
    choices = [layer.choice(pass_) for layer in learner.network.norm_layers().values() if layer.sees_other_images]
    # Before any inner step a moving average of the episode stands at its start, which describes no images.
    if not any(choice.moves_within_episode for choice in choices):
        features = evaluation.support_features, evaluation.query_features
        found["centroids"] = _accuracies(class_means, episodes, *features)
        found["ridge"] = _accuracies(ridge_head, episodes, *features)
        # Nor do the running averages of a network that was never trained.
        is_known = untrained is not None and learner.untrained_network is not None
        if is_known and not any(choice.evaluates_with_running for choice in choices):
            found["untrained"] = _filled(
                of_centroids(learner, learner.untrained_network, untrained, pass_, "untrained"), n_tasks
            )
    n_orders = min(LABEL_ORDERS, n_way)
    if reordered is not None and not learner.head.is_made_per_episode and n_orders > 1:
        shifts = [order * n_way // n_orders for order in range(1, n_orders)]
        found["label_orders"] = _filled(_in_other_orders(learner, reordered, pass_, shifts), n_tasks)
    return found


def images_per_task(learner: "FewShotLearner", n_support: int, n_query: int, pass_: Pass) -> dict[str, int]:
    """Return how many images pass through a body for a task, a backward pass counting twice: of an "evaluation", and
    of the entries of `of_tasks` that need passes of their own.
    """
    orders, steps = LABEL_ORDERS - 1, learner.n_evaluation_steps
    n_query += n_support if learner.network.needs_support(pass_) else 0
    once = n_support + n_query
    if learner.adaptation.features_stay(pass_):
        return {"evaluation": once, "untrained": once, "label_orders": orders * once}
    inner = (3 * steps + learner.adaptation.head.uses_features) * n_support
    evaluation = inner + n_support + (steps + 1) * n_query
    return {"evaluation": evaluation, "untrained": once, "label_orders": orders * (inner + n_query)}


def _shares(answers: Tensor, episodes: Episodes) -> Tensor:
    return (answers == episodes.query_labels).double().mean(1)


def _accuracies(make: HeadOfFeatures, episodes: Episodes, support: Tensor, query: Tensor) -> Tensor:
    return _shares(predictions(query, make(support, episodes.support_labels, episodes.n_way)), episodes)


def _filled(values: Tensor, n_tasks: int) -> Tensor:
    missing = values.new_full((n_tasks - len(values), *values.shape[1:]), torch.nan)
    return torch.cat([values, missing])


@torch.no_grad()
def of_centroids(learner: "FewShotLearner", network: MetaNetwork, episodes: Episodes, pass_: Pass, name: str) -> Tensor:
    """Return accuracies (B,) of class centroids on the features of a network, one `name` for each."""

    def features(tasks: Episodes) -> dict[str, Tensor]:
        prepared = PreparedEpisodes(tasks, network)
        own = pass_.recording(moving={})
        return {role: prepared.features(role, {}, own) for role in ("support", "query")}

    found = learner.execution.over_tasks(features, episodes, (name, pass_.statistics))
    return _accuracies(class_means, episodes, found["support"], found["query"])


def _in_other_orders(learner: "FewShotLearner", episodes: Episodes, pass_: Pass, shifts: list[int]) -> Tensor:
    def accuracies(tasks: Episodes) -> dict[str, Tensor]:
        columns = []
        for shift in shifts:
            names = ("support_labels", "query_labels")
            moved = {name: (getattr(tasks, name) + shift) % tasks.n_way for name in names}
            columns.append(_after_steps(learner, replace(tasks, **moved), pass_))
        return {"": torch.stack(columns, dim=1)}

    return learner.execution.over_tasks(accuracies, episodes, ("label orders", pass_.statistics))[""]


def _after_steps(learner: "FewShotLearner", episodes: Episodes, pass_: Pass) -> Tensor:
    pass_, n_steps = replace(pass_, record=PassRecord(affine_rows={})), learner.n_evaluation_steps
    prepared = learner.adaptation.prepare(episodes, pass_)
    *_, (adapted, _, _) = learner.adaptation.path(prepared, pass_, n_steps)
    with torch.no_grad():
        logits = learner.adaptation.outputs("query", prepared, adapted, replace(pass_, step=max(n_steps - 1, 0)))
        return _shares(logits.argmax(-1), episodes)
