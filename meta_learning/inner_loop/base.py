"""What every inner-loop optimiser is: rates, learned or fixed, and a pure update rule over stacked parameters.

    init(params) -> state,   update(params, gradients, state, step) -> (params, state)

B tasks at once. State that is passed around can be differentiated, and nothing is left behind between episodes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

State = dict[str, Any]

RATE_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Shares of a parameter's elements whose rates are not above: what is reported of Meta-SGD's rates."""


class InnerLoopOptimizer(nn.Module):
    """Rates, clipping and weight decay that all update rules share; alone it is plain gradient descent.

        g     = clipped gradient + weight_decay * theta
        theta[s+1] = theta[s] - alpha * direction(g)

    alpha is one number per parameter tensor and step ("fixed", or meta-learned as "per_layer_per_step": LSLR of
    MAML++), one per tensor ("per_layer") or one per element ("per_element": Meta-SGD). Where each episode brings its
    head, the elements of its rates are shared over the classes.

    Args:
        shapes: name -> shape of the adapted parameters, without the task axis.
        learning_rate: initial value of every alpha.
        n_steps: S, steps of meta-training. Later steps (evaluation only) reuse the last rates.
        learning_rates: "fixed", "per_layer_per_step", "per_layer" or "per_element".
        head_learning_rate: initial value for parameters called "head.*"; None: `learning_rate`.
        clip_norm: bound of each task's gradient norm over all adapted parameters; 0: none.
        clamp: bound of each element of the gradient; 0: none.
    Source: Finn et al. 2017, Algorithm 1; Antoniou et al. 2019, section 4 (LSLR); Li et al. 2017, equation 2
    (Meta-SGD).
    """

    begins = False
    """Whether `begin` makes the start of each episode, which costs a pass like that of a step."""
    looks_ahead = False
    """Whether the gradient of a step is taken at the parameters that `ahead` makes, for a pass more in each step."""
    comes_to_rest = False
    """Whether it solves an inner problem, at whose solution `direction` is zero, so that the outer gradient may be
    taken there (`outer_update` implicit)."""

    sees_queries = False
    """Whether `objective` is given the outputs of the query images, which costs a pass of them in every step."""
    needs_second_order = False
    """Whether what it learns has no gradient in first order."""
    learns_of_steps = False
    """Whether it learns something of its own, beside rates, which without inner steps has no gradient."""

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], learning_rate: float, n_steps: int, *, learning_rates: str = "fixed",
        head_learning_rate: float | None = None, weight_decay: float = 0.0, clip_norm: float = 0.0, clamp: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names, self.n_steps, self.form = tuple(shapes), n_steps, learning_rates
        self.weight_decay, self.clip_norm, self.clamp = weight_decay, clip_norm, clamp
        starts = [
            learning_rate if head_learning_rate is None or not name.startswith("head.") else head_learning_rate
            for name in self.names
        ]
        if learning_rates == "per_element":
            # A parameter's name may not hold dots.
            self.element_rates = nn.ParameterDict(
                {
                    name.replace(".", "/"): nn.Parameter(torch.full(tuple(shapes[name]), start, dtype=dtype))
                    for name, start in zip(self.names, starts, strict=True)
                }
            )
        else:
            # S columns; the reference's vectors have S + 1 entries, the last of which no step reads.
            columns = 1 if learning_rates == "per_layer" else max(n_steps, 1)
            rates = torch.tensor(starts, dtype=dtype).reshape(-1, 1).repeat(1, columns)
            # Nothing keeps a learned rate above zero, as in the reference; Meta-SGD's shall even change signs (Li et
            # al. 2017).
            self.learning_rates = nn.Parameter(rates, requires_grad=learning_rates != "fixed")  # (tensors, S)

    def rates(self, step: int) -> list[Tensor]:
        """Return alpha of each parameter at a step, broadcastable to (B, ...)."""
        if self.form == "per_element":
            return [self.element_rates[name.replace(".", "/")] for name in self.names]
        return list(self._row(step).unbind())

    def _row(self, step: int) -> Tensor:
        return self.learning_rates[:, min(step, self.learning_rates.shape[1] - 1)]

    def snapshot(self) -> dict[str, Any]:
        """Return the rates as they are reported: `mean_rates` and, of Meta-SGD, `rate_quantiles`."""
        quantiles = self.rate_quantiles()
        return {"learned_rates": self.mean_rates()} | ({"rate_quantiles": quantiles} if quantiles else {})

    def rate_quantiles(self) -> dict[str, list[float]]:
        """Return name -> the RATE_QUANTILES of its elements' rates, where each element has its own; else nothing."""
        if self.form != "per_element":
            return {}
        found = {}
        for name in self.names:
            ordered = self.element_rates[name.replace(".", "/")].detach().flatten().sort().values
            places = [round(share * (len(ordered) - 1)) for share in RATE_QUANTILES]
            found[name] = ordered[places].cpu().tolist()
        return found

    def mean_rates(self) -> dict[str, list[float]]:
        """Return name -> mean rate at each step."""
        if self.form == "per_element":
            return {name: [float(self.element_rates[name.replace(".", "/")].detach().mean())] for name in self.names}
        return dict(zip(self.names, self.learning_rates.detach().cpu().tolist(), strict=True))

    def begin(self, params: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return where the inner loop begins, name -> (B, ...), where `begins` is true.

        Args:
            params: what it would begin at otherwise.
            gradients: of the support loss there, in the order of `names`.
        """
        return dict(params)

    def ahead(self, params: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return where the gradient of a step is taken, name -> (B, ...), where `looks_ahead` is true.

        Args:
            params: theta[s].
            gradients: of the support loss there, in the order of `names`.
        """
        return dict(params)

    def objective(
        self, losses: Tensor, outputs: Tensor, labels: Tensor, queries: Tensor | None, params: Mapping[str, Tensor],
        step: int,
    ) -> Tensor:  # fmt: skip
        """Return what a step descends on, (B,), instead of the loss of the support images.

        Args:
            losses: that loss, (B,).
            outputs, labels: of the support images, (B, n, N) and (B, n).
            queries: outputs of the query images (B, n', N), where `sees_queries` is true.
            params: theta[s], name -> (B, ...).
        """
        return losses

    def init(self, params: Mapping[str, Tensor]) -> State:
        """Return the state before the first step; gradient descent has none."""
        return {}

    def update(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[dict[str, Tensor], State]:
        """Take one step.

        Args:
            params: name -> (B, ...), in the order of `names`.
            gradients: of the support loss, the shapes of params.
            step: s, from 0.
        """
        gradients = self.prepared(params, gradients)
        directions, state = self.direction(params, gradients, state, step)
        values = [params[name] for name in self.names]
        if self.form == "per_element":
            updated = [
                value - rate * direction
                for value, rate, direction in zip(values, self.rates(step), directions, strict=True)
            ]
        else:
            updated = _Step.apply(self._row(step), *values, *directions)
        return dict(zip(self.names, updated, strict=True)), state

    def prepared(self, params: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients clipped, and with weight decay."""
        # Decay after clipping, the order of a training loop that calls clip_grad_norm_ before a torch optimiser with
        # decay.
        gradients = self._clipped(gradients)
        if self.weight_decay:
            gradients = [
                gradient + self.weight_decay * params[name]
                for name, gradient in zip(self.names, gradients, strict=True)
            ]
        return gradients

    def direction(
        self, params: Mapping[str, Tensor], gradients: Sequence[Tensor], state: State, step: int
    ) -> tuple[Sequence[Tensor], State]:
        """Return what is subtracted, before the rate, and the state for the next step.

        Args:
            params: theta[s], name -> (B, ...), in the order of `names`.
            gradients: of the support loss, clipped and with decay, each (B, ...) in the order of `names`.
        """
        return gradients, state

    def _clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.clamp:
            gradients = [gradient.clamp(-self.clamp, self.clamp) for gradient in gradients]
        if self.clip_norm:
            # torch.nn.utils.clip_grad_norm_'s constant
            scale = (self.clip_norm / (norms_of_tasks(gradients) + 1e-6)).clamp(max=1.0)
            gradients = [gradient * scale.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
        return gradients


class _Step(torch.autograd.Function):
    """values[i] - rates[i] * directions[i] for rates (n,), n values and n directions: one pass over each tensor, one
    over each of its derivatives.
    """

    @staticmethod
    def forward(ctx: Any, rates: Tensor, *values_and_directions: Tensor) -> tuple[Tensor, ...]:
        values, directions = values_and_directions[: len(rates)], values_and_directions[len(rates) :]
        ctx.save_for_backward(rates, *(directions if ctx.needs_input_grad[0] else ()))  # for the gradient of the rates
        return tuple(torch.addcmul(*parts, value=-1) for parts in zip(values, rates.unbind(), directions, strict=True))

    @staticmethod
    # Once, in second order too: an inner gradient ends at the values that come out of here, and only the outer gradient
    # goes on through.
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rates, *directions = ctx.saved_tensors
        for_rates, for_directions = None, [None] * len(grads)
        if ctx.needs_input_grad[0]:
            for_rates = -torch.stack(
                [(grad * direction).sum() for grad, direction in zip(grads, directions, strict=True)]
            )
        if any(ctx.needs_input_grad[1 + len(grads) :]):
            for_directions = [grad * rate for grad, rate in zip(grads, (-rates).unbind(), strict=True)]
        return for_rates, *grads, *for_directions


def per_task(numbers: Tensor, values: Tensor) -> Tensor:
    """Return a number per task (B,) in a shape that goes with values (B, ...)."""
    return numbers.view(-1, *[1] * (values.dim() - 1))


def norms_of_tasks(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of each task's gradients together, (B,), with derivative 0 at 0."""
    of_each = [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
    return square_root(torch.stack(of_each).sum(0))


def square_root(values: Tensor) -> Tensor:
    """Return the square root, with derivative 0, not infinity, at 0."""
    positive = values > 0
    # Inside as well: where() multiplies the gradient of the branch that is not taken by 0, and 0 * infinity is nan.
    return torch.where(
        positive, torch.sqrt(torch.where(positive, values, torch.ones_like(values))), torch.zeros_like(values)
    )
