"""The meta-update: torch's optimisers, the schedule of the meta learning rate, clamping and clipping of the
meta-gradient.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from utils.config import ExperimentConfig
from utils.errors import ConfigError

NETWORK = ("network.", "head.")
"""What the names of the parameters of the network, and of a head of its own, begin with; the others are learned inner
learning rates and the like.
"""


@dataclass(frozen=True)
class LearningRateSchedule:
    """The meta learning rate, constant within an epoch e of E, counted from 0.

        cosine:    end + (start - end) (1 + cos(pi e / E)) / 2                       (Loshchilov & Hutter 2017)
        step:      start * gamma ** (number of milestones <= e)
        one_cycle: from start / 25 in half a cosine to start at epoch 0.3 E - 1, then to end at the last
                   (Smith & Topin 2018)
        constant:  start
    As torch's schedulers of these names do when they are stepped once per epoch; cosine and one_cycle end at E and
    stay there.
    """

    kind: str = "cosine"
    start: float = 0.001
    end: float = 0.00001
    epochs: int = 100
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def at(self, epoch: int) -> float:
        """Return the learning rate in `epoch`."""
        if self.kind == "constant":
            return self.start
        if self.kind == "step":
            return self.start * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if self.kind == "cosine":
            return _half_cosine(self.start, self.end, min(epoch, self.epochs) / self.epochs)
        # 0.3 and 25 are OneCycleLR's pct_start and div_factor; its final_div_factor gives way to `end`.
        top, last = 0.3 * self.epochs - 1, self.epochs - 1
        if epoch <= top:
            return _half_cosine(self.start / 25, self.start, epoch / top)
        return _half_cosine(self.start, self.end, (min(epoch, last) - top) / (last - top))

    @property
    def period(self) -> int:
        """E where the rate depends on it, else 0."""
        return self.epochs if self.kind in ("cosine", "one_cycle") else 0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], tuple[str, ...], bool]] = MappingProxyType(
    {
        "adam": (torch.optim.Adam, ("step", "exp_avg", "exp_avg_sq"), False),
        "adamw": (torch.optim.AdamW, ("step", "exp_avg", "exp_avg_sq"), False),
        "sgd": (torch.optim.SGD, (), True),
        "rmsprop": (torch.optim.RMSprop, ("step", "square_avg"), True),
    }
)
"""Value of the key `meta_optimizer` -> torch's class, what it keeps of each parameter (a count of steps, moments), and
whether it can have momentum, which is one moment more."""


@dataclass(frozen=True)
class OuterUpdate:
    """Choices of the meta-update; the meanings are those of the config keys."""

    optimizer: str = "adam"
    schedule: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    momentum: float = 0.0
    weight_decay: float = 0.0
    gradient_clamp: float = 0.0
    gradient_clip_norm: float = 0.0


class MetaOptimizer:
    """Applies meta-gradients to parameters by one of torch's optimisers, unless something about them is not finite.

    The order: clamp each element of the network's gradients, clip the norm of all of them together, decay and step of
    torch's optimiser. The network's parameters decay, learned rates do not: nothing speaks for an inner learning
    rate of zero.

    Args:
        parameters: name -> what is learned.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], choices: OuterUpdate) -> None:
        self.choices, self.schedule = choices, choices.schedule
        self._parameters = dict(parameters)
        network = [parameter for name, parameter in self._parameters.items() if name.startswith(NETWORK)]
        others = [parameter for name, parameter in self._parameters.items() if not name.startswith(NETWORK)]
        groups: list[dict[str, Any]] = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((network, choices.weight_decay), (others, 0.0))
            if params
        ]
        kind, kept, takes_momentum = OPTIMIZERS[choices.optimizer]
        momentum = {"momentum": choices.momentum} if takes_momentum else {}
        self.torch_optimizer: torch.optim.Optimizer = kind(groups, lr=self.schedule.start, **momentum)
        self._kept = (*kept, "momentum_buffer") if momentum and choices.momentum else kept
        self._guard = UpdateGuard()

    def anneal_over(self, epochs: int) -> None:
        """Let the schedule's period be this many epochs, counted from the first of the run."""
        self.schedule = replace(self.schedule, epochs=epochs)

    @contextmanager
    def update(
        self,
        gradients: Mapping[str, Tensor],
        epoch: int,
        evidence: Iterable[Tensor],
        also_changed: Sequence[Tensor] = (),
    ) -> Iterator[Tensor]:
        """Take a step on entry; what the caller writes to `also_changed` inside belongs to it.

        Args:
            gradients: name -> the shape of the parameter.
            evidence: tensors of one dtype; the update stays if all are finite. Nobody waits for them.
        Yields:
            bool (), on the device: false where the update is taken back on leaving. Then `state_tensors` are as
            before, and will be from then on.
        """
        with self._guard.update(evidence, [*also_changed, *self._changed_by_a_step()]) as applied:
            self._step(gradients, epoch)
            yield applied

    def _step(self, gradients: Mapping[str, Tensor], epoch: int) -> None:
        applied = self._clipped(self._clamped(gradients))
        for name, parameter in self._parameters.items():
            parameter.grad = applied[name]
        # From the epoch, not from a scheduler that counts: a resumed run has nothing to restore.
        for group in self.torch_optimizer.param_groups:
            group["lr"] = self.schedule.at(epoch)
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)

    def _clamped(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        clamp = self.choices.gradient_clamp
        if not clamp:
            return gradients
        # The reference clamps the network's gradients, not those of the learned rates.
        return {
            name: gradient.clamp(-clamp, clamp) if name.startswith(NETWORK) else gradient
            for name, gradient in gradients.items()
        }

    def _clipped(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not self.choices.gradient_clip_norm:
            return gradients
        norms = torch.stack([torch.linalg.vector_norm(gradients[name]) for name in self._parameters])
        # 1e-6 and all parameters together: torch.nn.utils.clip_grad_norm_.
        share = (self.choices.gradient_clip_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
        return {name: gradient * share for name, gradient in gradients.items()}

    def _changed_by_a_step(self) -> list[Tensor]:
        """Return parameters and moments; the counts of steps are on the host."""
        self._begin()
        state, moments = self.torch_optimizer.state, [key for key in self._kept if key != "step"]
        return [*self._parameters.values(), *(state[p][key] for p in self._parameters.values() for key in moments)]

    def _begin(self) -> None:
        """Make the state that torch's own first step would make, so that a first step can be taken back."""
        for parameter in self._parameters.values():
            state = self.torch_optimizer.state[parameter]
            for key in () if state else self._kept:
                state[key] = torch.tensor(0.0) if key == "step" else torch.zeros_like(parameter)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments and counts of steps as "<kind>.<parameter>"; empty before the first step."""
        # torch counts on the host, which does not know what the device has taken back.
        taken_back = self._guard.taken_back()
        return {
            f"{key}.{name}": value - taken_back if key == "step" else value.detach()
            for name, parameter in self._parameters.items()
            for key, value in self.torch_optimizer.state.get(parameter, {}).items()
        }

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` returned.

        Raises:
            ConfigError: a tensor is missing, unknown or of another shape: the state is of another optimiser.
        """
        wanted = (
            {f"{key}.{name}": parameter for name, parameter in self._parameters.items() for key in self._kept}
            if tensors
            else {}
        )
        for full_name in sorted(wanted.keys() ^ tensors.keys()):
            where = "missing" if full_name in wanted else "there, but not used"
            raise ConfigError(
                f'the checkpoint is of another meta-optimiser than "meta_optimizer" {self.choices.optimizer} with '
                '"meta_momentum" '
                f'{self.choices.momentum}: its tensor "optimizer.{full_name}" is {where}. Go on with the values that '
                "it was trained with, "
                "or start a new run from its weights with --load_checkpoint PATH and another --experiment_name"
            )
        self._guard = UpdateGuard()
        self.torch_optimizer.state.clear()
        for name, parameter in self._parameters.items() if wanted else ():
            for key in self._kept:
                value = tensors[f"{key}.{name}"]
                self.torch_optimizer.state[parameter][key] = (
                    value.clone() if key == "step" else value.to(parameter, copy=True)
                )


def build_outer_update(config: ExperimentConfig) -> OuterUpdate:
    """Unpack a config (`utils.config.ExperimentConfig`)."""
    schedule = LearningRateSchedule(
        config.meta_learning_rate_schedule,
        config.meta_learning_rate,
        config.min_learning_rate,
        config.total_epochs,
        config.meta_learning_rate_milestones,
        config.meta_learning_rate_gamma,
    )
    return OuterUpdate(
        config.meta_optimizer,
        schedule,
        config.meta_momentum,
        config.meta_weight_decay,
        config.gradient_clamp,
        config.gradient_clip_norm,
    )


class UpdateGuard:
    """Takes back, on the device and without waiting for it, updates that came of numbers that are not finite.

    After the first it lets none through any more: the host reads it every so many iterations, and until then the state
    stays what it was before the one that failed.
    """

    def __init__(self) -> None:
        self._taken_back: Tensor | None = None  # made where the first update is: a copy to there would wait

    def taken_back(self) -> int:
        """Return how many updates have been taken back; waits for the device."""
        return 0 if self._taken_back is None else int(self._taken_back)

    @contextmanager
    def update(self, evidence: Iterable[Tensor], changed: Sequence[Tensor]) -> Iterator[Tensor]:
        """Run an update inside; afterwards `changed` are as before unless all evidence is finite, and always was.

        Args:
            evidence: tensors of any shapes, of one dtype.
            changed: everything that the update writes to.
        Yields:
            bool (), whether the update stays.
        """
        finite = torch.isfinite(torch.cat([tensor.detach().reshape(-1) for tensor in evidence])).all()
        if self._taken_back is None:
            self._taken_back = torch.zeros((), dtype=torch.int64, device=finite.device)
        stays = finite & (self._taken_back == 0)
        self._taken_back += torch.logical_not(stays)
        # A copy first and the step in any case: whether it may stay is known on the device alone, and asking would
        # wait.
        before = [tensor.detach().clone() for tensor in changed]
        yield stays
        # In place: optimiser and layers hold these very tensors. Detached: with gradients on `out` refuses them.
        for tensor, old in zip(changed, before, strict=True):
            torch.where(stays, tensor.detach(), old, out=tensor.detach())
