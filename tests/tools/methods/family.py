"""MAML by hand on the tiny network of `tests.tools.learners`, with places where a method differs: a few lines of plain
torch that share no code with the engine.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_shot_learning_system import FewShotLearner
from tests.tools.learners import Episodes, PlainNetwork

Values = dict[str, Tensor]
OfTask = Callable[[Values, Episodes], Tensor]


def body_of(values: Values, images: Tensor) -> Tensor:
    """Features (n, D) of one task's images at these values, named as in the learner's network."""
    network = PlainNetwork().double()
    network.head = nn.Identity()
    names = dict(network.named_parameters())
    return torch.func.functional_call(network, {name: values[name] for name in names}, (images,))


def logits_of(values: Values, images: Tensor) -> Tensor:
    """Logits (n, N) of one task."""
    return F.linear(body_of(values, images), values["head.weight"], values["head.bias"])


def plain_meta_gradients(
    learner: FewShotLearner, episodes: Episodes, loss_of_task: OfTask, outer: Any = torch.mean
) -> Values:
    """Name of a meta-parameter -> its gradient by autograd through `loss_of_task(values, task)`, task by task."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in learner.meta_parameters().items()}
    n_tasks = len(episodes.support_labels)
    loss = outer(torch.stack([loss_of_task(leaves, episodes.task(index)) for index in range(n_tasks)]))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def network_values(leaves: Values) -> Values:
    """The meta-parameters of the network, under their names in it."""
    return {name.removeprefix("network."): value for name, value in leaves.items() if name.startswith("network.")}


def adapted(
    values: Values, names: list[str], task: Episodes, n_steps: int, update: Callable[[int, Values, Values], Values],
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Values:  # fmt: skip
    """Take the inner loop: update(step, values, gradients of the support loss) -> the new values of `names`."""
    for step in range(n_steps):
        loss = loss_of(logits_of(values, task.support_images[0]), task.support_labels[0])
        gradients = torch.autograd.grad(loss, [values[name] for name in names], create_graph=True)
        values = values | update(step, values, dict(zip(names, gradients, strict=True)))
    return values
