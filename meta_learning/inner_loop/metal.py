"""MeTAL: gradient descent on the support loss plus two learned losses, which every task and step shapes for itself.

    L[s] = cross-entropy + mean over support images of l_s(x; phi') + mean over query images of m_s(z; psi')
    x = (loss, mean of theta_l[s] over all layers l, logits, one-hot label),   z = (means, logits, sum of p log p)
    phi'_i = (1 + a_i g_i) phi_i + b_i h_i,   (g, h) = MLP of what the task's images share of x (of z: its mean)

l and m have one hidden layer of as many units as x and z have entries, each step its own, x and z are brought to mean 0
and deviation 1 over a task's images and entries, and a, b begin at zero: losses that no task shapes. Loss networks that
answer zero leave MAML. Query images come without labels, so a query's answer depends on the others; without them the
method is inductive. Without second order nothing of this is learned.

The released code normalises support and query images together and learns from the cross-entropy of both in the outer
loop; here the query images have a pass of their own, and the outer loss is theirs.

Source: Baik et al. 2021, "Meta-learning with task-adaptive loss function for few-shot learning", section 3; released
code (baiksung/MeTAL).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.inner_loop.alfa import Alfa
from meta_learning.inner_loop.base import InnerLoopOptimizer
from utils.errors import ConfigError
from utils.registry import Key, register_inner_loop_optimizer

N_TENSORS = 4  # of a loss network: weight and bias of two layers


class ShapedLoss(nn.Module):
    """A loss network of each inner step, and what shapes it.

    Args:
        n_inputs: D, entries of an image's state.
        n_shared: entries of the task's state.
    """

    def __init__(self, n_inputs: int, n_shared: int, n_steps: int) -> None:
        super().__init__()
        hidden = [nn.init.xavier_uniform_(torch.empty(n_inputs, n_inputs)) for _ in range(n_steps)]
        last = [nn.init.xavier_uniform_(torch.empty(1, n_inputs)) for _ in range(n_steps)]
        self.hidden_weight, self.hidden_bias = nn.Parameter(torch.stack(hidden)), nn.Parameter(
            torch.zeros(n_steps, n_inputs)
        )  # fmt: skip
        self.last_weight, self.last_bias = nn.Parameter(torch.stack(last)), nn.Parameter(torch.zeros(n_steps, 1))
        self.shapers = nn.ModuleList(
            nn.Sequential(nn.Linear(n_shared, n_shared), nn.ReLU(), nn.Linear(n_shared, 2 * N_TENSORS))
            for _ in range(n_steps)
        )
        self.shares = nn.Parameter(torch.zeros(n_steps, 2, N_TENSORS))  # a and b

    def forward(self, states: Tensor, shared: Tensor, step: int) -> Tensor:
        """Return the mean over images (B,) for their states (B, n, D) and the tasks' (B, n_shared)."""
        step = min(step, len(self.shapers) - 1)
        found = self.shapers[step](shared).unflatten(1, (2, -1)) * self.shares[step]  # (B, 2, 4)
        tensors = (self.hidden_weight, self.hidden_bias, self.last_weight, self.last_bias)
        hidden, hidden_bias, last, last_bias = (
            (1 + found[:, 0, i].view(-1, 1, 1)) * value + found[:, 1, i].view(-1, 1, 1)
            for i, value in enumerate(torch.atleast_2d(tensor[step]) for tensor in tensors)
        )
        activations = F.relu(torch.baddbmm(hidden_bias, states, hidden.transpose(1, 2)))
        return torch.baddbmm(last_bias, activations, last.transpose(1, 2)).mean(dim=(1, 2))


class MeTAL(InnerLoopOptimizer):
    """Gradient descent on learned losses.

    Args:
        n_way: N of every episode.
        unlabelled_queries: whether the query images count in the inner loop.
    """

    needs_second_order = True
    learns_of_steps = True
    title = "MeTAL"

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, *, n_way: Any,
        unlabelled_queries: bool = True, **shared: Any,
    ) -> None:  # fmt: skip
        super().__init__(shapes, learning_rate, n_steps, **shared)
        if not isinstance(n_way, int):
            raise ConfigError(
                f'"inner_loop_optimizer" metal reads the outputs of one number of classes, but "num_classes_per_set" '
                f"is {list(n_way)}; give one number"
            )
        self.n_way, self.sees_queries, n_layers = n_way, unlabelled_queries, len(self.names)
        self.of_support = ShapedLoss(1 + n_layers + 2 * n_way, 1 + n_layers, n_steps)
        if unlabelled_queries:
            n_inputs = n_layers + n_way + 1
            self.of_query = ShapedLoss(n_inputs, n_inputs, n_steps)

    def objective(
        self, losses: Tensor, outputs: Tensor, labels: Tensor, queries: Tensor | None, params: Mapping[str, Tensor],
        step: int,
    ) -> Tensor:  # fmt: skip
        """Return L[s] (B,); arguments as of `InnerLoopOptimizer.objective`."""
        if outputs.shape[-1] != self.n_way or labels.is_floating_point():
            raise ConfigError(
                f'"inner_loop_optimizer" metal was made for {self.n_way} classes, but an episode has '
                f'{"none" if labels.is_floating_point() else outputs.shape[-1]}; its networks fit the "num_classes_per_'
                'set" of the training alone'
            )
        means = torch.stack([params[name].flatten(1).mean(1) for name in self.names], dim=1)  # (B, L)
        shared = torch.cat([losses[:, None], means], dim=1)
        states = torch.cat([_of_each(shared, outputs), outputs, F.one_hot(labels, self.n_way).to(outputs.dtype)], dim=2)
        losses = losses + self.of_support(_normalised(states), _normalised(shared), step)
        if queries is not None and queries.shape[1]:
            logs = F.log_softmax(queries, dim=-1)
            entropies = (logs.exp() * logs).sum(-1, keepdim=True)
            states = _normalised(torch.cat([_of_each(means, queries), queries, entropies], dim=2))
            losses = losses + self.of_query(states, states.mean(1), step)
        return losses


class MeTALWithALFA(MeTAL, Alfa):
    """Generated rates and decays on learned losses."""

    needs_second_order = True
    learns_of_steps = True
    title = "MeTAL + ALFA"


def _of_each(of_task: Tensor, outputs: Tensor) -> Tensor:
    return of_task[:, None].expand(-1, outputs.shape[1], -1)


def _normalised(states: Tensor) -> Tensor:
    """Return states (B, ...) of mean 0 and standard deviation 1 in each task."""
    flat = states.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-12)
    return flat.view(states.shape)


KEYS = {"unlabelled_queries": Key(True, "Whether the query images, without labels, count in the inner loop.")}
register_inner_loop_optimizer(
    "metal",
    MeTAL,
    keys=KEYS,
    reads={"n_way": "num_classes_per_set"},
    meaning="gradient descent on the support loss plus learned losses of support and query images (MeTAL)",
)
register_inner_loop_optimizer(
    "metal_alfa",
    MeTALWithALFA,
    keys=KEYS,
    reads={"n_way": "num_classes_per_set"},
    meaning="metal's losses with alfa's rates and decays",
)
