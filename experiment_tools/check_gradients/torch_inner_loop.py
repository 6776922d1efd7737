"""An independent inner loop: one task at a time, with the optimisers and losses of torch where it has them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data import EpisodeBatch
from few_shot_learning_system import FewShotLearner
from meta_learning.adaptation import Adapted
from meta_learning.execution.execution import task_chunks
from meta_learning.inner_loop.adam import Adam
from meta_learning.inner_loop.base import InnerLoopOptimizer
from meta_learning.inner_loop.gradient_descent import GradientDescent
from meta_learning.inner_loop.rmsprop import RMSprop
from meta_learning.losses.binary_cross_entropy import BinaryCrossEntropy
from meta_learning.losses.cross_entropy import CrossEntropy
from meta_learning.losses.mean_squared_error import MeanSquaredError
from meta_learning.networks.passes import Pass

ROUNDING = 1e-12
"""Share of the largest gradient below which one is zero, in float64."""


def adapted_by_torch(learner: FewShotLearner, episodes: EpisodeBatch, *, training: bool) -> dict[str, Tensor]:
    """Adapt with `torch.optim` and `torch.nn.utils`, or with the rule itself where torch has none: name -> (B, ...)."""
    tasks = []
    for task in task_chunks(episodes, 1):
        pass_ = Pass(statistics=learner.batch_norm_statistics)
        if training:
            seeds = task.seeds if learner.network.uses_dropout else None
            pass_ = replace(pass_, is_training=True, dropout_seeds=seeds)
        started = learner.adaptation.start(
            learner.adaptation.prepare(task, pass_), pass_
        )  # with the head that the episode brings
        values = {name: value[0].detach().clone().requires_grad_() for name, value in started.params.items()}
        has_torch = type(learner.inner_loop) in TORCH_OPTIMIZERS
        take_step = (_TorchRule if has_torch else _OwnRule)(learner.inner_loop, values)
        for step in range(learner.n_steps):
            at_step = replace(pass_, step=step)
            found = _support_gradients(learner, task, started, values, at_step)
            if learner.inner_loop.looks_ahead:
                stacked = {name: value[None] for name, value in values.items()}
                ahead = learner.inner_loop.ahead(stacked, [gradient[None] for gradient in found])
                uphill = {name: value[0] for name, value in ahead.items()}
                found = _support_gradients(learner, task, started, uphill, at_step)
            take_step(found, step)
        tasks.append({name: value.detach() for name, value in values.items()})
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}


def names_with_gradient(learner: FewShotLearner, episodes: EpisodeBatch) -> set[str]:
    """Return what is adapted and has a gradient of the support loss at the start that is more than rounding."""
    found: set[str] = set()
    for task in task_chunks(episodes, 1):
        pass_ = Pass(statistics=learner.batch_norm_statistics)
        started = learner.adaptation.start(learner.adaptation.prepare(task, pass_), pass_)
        values = {name: value[0] for name, value in started.params.items()}
        norms = [float(gradient.norm()) for gradient in _support_gradients(learner, task, started, values, pass_)]
        found |= {name for name, norm in zip(values, norms, strict=True) if norm > ROUNDING * max(norms)}
    return found


def _support_gradients(
    learner: FewShotLearner, task: EpisodeBatch, started: Adapted, values: Mapping[str, Tensor], pass_: Pass
) -> Sequence[Tensor]:
    """Return the gradients of one task's support loss at some values of what is adapted."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    stacked = {name: value[None] for name, value in leaves.items()}
    support_pass = pass_.recording(moving=dict(started.moving))
    outputs = learner.network(task.support_images, stacked | started.fixed, support_pass)
    loss = mean_loss(learner, outputs[0], task.support_labels[0])
    if type(learner.inner_loop) not in TORCH_OPTIMIZERS:
        at, prepared = replace(started, params=stacked), learner.adaptation.prepare(task, support_pass)
        loss = learner.adaptation.objective(prepared, at, support_pass, outputs, loss[None])[0]
    return torch.autograd.grad(loss, list(leaves.values()))


class _OwnRule:
    """Lets a rule take a step of one task alone, and keeps its state."""

    def __init__(self, rule: InnerLoopOptimizer, values: Mapping[str, Tensor]) -> None:
        self.rule, self.values = rule, values
        # Of copies: the values are changed in place, and a rule may keep where it started.
        self.state = rule.init({name: value.detach().clone()[None] for name, value in values.items()})

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], step: int) -> None:
        before = {name: value.detach().clone()[None] for name, value in self.values.items()}
        after, self.state = self.rule.update(before, [gradient[None] for gradient in gradients], self.state, step)
        for name, value in self.values.items():
            value.copy_(after[name][0])


class _TorchRule:
    """The step of `torch.optim`, with rate 1, which gives its direction; learned or fixed rates then multiply that."""

    def __init__(self, rule: InnerLoopOptimizer, values: Mapping[str, Tensor]) -> None:
        self.rule, self.values = rule, values
        self.optimizer = TORCH_OPTIMIZERS[type(rule)](values.values(), rule)

    def __call__(self, gradients: Sequence[Tensor], step: int) -> None:
        for value, gradient in zip(self.values.values(), gradients, strict=True):
            value.grad = gradient
        if self.rule.clamp:
            torch.nn.utils.clip_grad_value_(self.values.values(), self.rule.clamp)
        if self.rule.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.values.values(), self.rule.clip_norm)
        before = {name: value.detach().clone() for name, value in self.values.items()}
        self.optimizer.step()
        with torch.no_grad():
            for rate, (name, value) in zip(self.rule.rates(step), self.values.items(), strict=True):
                value.copy_(before[name] - rate.detach() * (before[name] - value))


TORCH_OPTIMIZERS: Mapping[type[InnerLoopOptimizer], Callable[..., torch.optim.Optimizer]] = {
    GradientDescent: lambda values, rule: torch.optim.SGD(
        values, lr=1.0, momentum=rule.momentum, weight_decay=rule.weight_decay
    ),
    Adam: lambda values, rule: torch.optim.Adam(
        values, lr=1.0, betas=rule.betas, eps=rule.epsilon, weight_decay=rule.weight_decay
    ),
    RMSprop: lambda values, rule: torch.optim.RMSprop(
        values, lr=1.0, alpha=rule.smoothing, eps=rule.epsilon, weight_decay=rule.weight_decay
    ),
}
"""Update rule -> the same of torch."""


def mean_loss(learner: FewShotLearner, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return torch's own loss of outputs (n, N), averaged over everything; of a loss that torch has not, the task's."""
    if isinstance(learner.loss, MeanSquaredError):
        return F.mse_loss(outputs, labels)
    if isinstance(learner.loss, BinaryCrossEntropy):
        return F.binary_cross_entropy_with_logits(outputs, F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype))
    if isinstance(learner.loss, CrossEntropy):
        return F.cross_entropy(outputs, labels, label_smoothing=learner.loss.label_smoothing)
    return learner.loss.per_task_loss(outputs[None], labels[None]).sum()
