"""Whether a learner computes what it says: each check compares it with something that shares no derivative code with
it.

adaptation      the inner loop against `torch.optim`, or against its own rule, task by task
meta-gradient   against central differences of the outer loss, in first order with the inner gradients held constant;
                Reptile against the displacement by `torch.optim`; ProtoNet against autograd on its formula; iMAML
                against differences of first derivatives; Sharp-MAML against the gradient at the moved parameters
tasks together  the gradient of a meta-batch against the mean over its tasks alone
order           second order differs from first where it should
own parameters  what the method learns beside weights and rates has a gradient at all
evaluation      changes nothing
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from data import EpisodeBatch
from experiment_tools.check_gradients.comparing import Check, compared, share_of
from experiment_tools.check_gradients.held_constant import inner_gradients, moved, moving_statistics, recorder, replayer
from experiment_tools.check_gradients.torch_inner_loop import (
    TORCH_OPTIMIZERS,
    adapted_by_torch,
    mean_loss,
    names_with_gradient,
)
from few_shot_learning_system import FewShotLearner
from meta_learning.adaptation import Adapted
from meta_learning.evaluation.reporting import of_the_method
from meta_learning.execution.execution import task_chunks
from meta_learning.heads.prototypes import PrototypeHead
from meta_learning.inner_loop.proximal import ProximalGradientDescent
from meta_learning.meta_optimizer import NETWORK
from meta_learning.networks.passes import Pass
from meta_learning.outer_gradients import implicit_gradient
from meta_learning.outer_gradients.displacement import Displacement
from meta_learning.outer_gradients.implicit_gradient import Implicit, conjugate_gradients
from utils.words import some_of

DIFFERENCE_TOLERANCE = 1e-5
"""Of central differences, which have an error of their own."""
N_DIRECTIONS = 2
MOST_NAMED = 6
SOLVED_STRENGTH, SOLVED_ITERATIONS = 100.0, 60
"""Pull of an implicit gradient, beside which the Hessian is small, and iterations that solve its system then."""
STEPS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
"""Widths of the central differences; the first good one counts, because a kink of a ReLU, or the sharp bend of
a norm over few values, may lie in a wider one."""


def check_learner(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int = 0) -> list[Check]:
    """Run every check that applies to a learner in float64 on the CPU; its parameters are as before afterwards."""
    with _well_posed(learner):
        checks = [check_evaluation(learner, episodes), check_tasks_together(learner, episodes, epoch)]
    if learner.n_steps:
        checks.append(check_adaptation(learner, episodes))
    if isinstance(learner.outer_gradient, Displacement):  # which moves nothing but what is adapted
        return [*checks, check_displacement(learner, episodes, epoch)]
    if own := of_the_method(learner.meta_parameters(), learner.network):
        checks += check_own_parameters(learner, episodes, epoch, own)
    if learner.outer_loop.sharpness_radius:
        checks.append(check_sharpness(learner, episodes, epoch))
    if isinstance(learner.outer_gradient, Implicit):
        with _well_posed(learner):
            return [*checks, check_implicit_gradient(learner, episodes, epoch)]
    checks.append(check_meta_gradient(learner, episodes, epoch))
    if not learner.n_steps and isinstance(learner.head, PrototypeHead):
        checks.append(check_proto_net(learner, learner.head, episodes, epoch))
    elif learner.n_steps and learner.is_second_order(epoch):
        checks.append(check_order(learner, episodes, epoch))
    return checks


def check_evaluation(learner: FewShotLearner, episodes: EpisodeBatch) -> Check:
    """Evaluate twice: no tensor of the learner, no number of torch's generator and no result may change."""
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    generator = torch.get_rng_state()
    first = learner.evaluate(episodes).query_logits
    second = learner.evaluate(episodes).query_logits
    after = learner.state_tensors()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    changes = (
        len(changed) + int(not torch.equal(generator, torch.get_rng_state())) + int(not torch.equal(first, second))
    )
    return Check("evaluation", "state before it: tensors that changed", float(changes), 0.0, where=", ".join(changed))


def check_tasks_together(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare the gradient over all tasks with the mean over tasks, each computed alone; where tasks decide together,
    as by an outer loss that is no mean or on where a sharp gradient is taken, with chunks of one task.
    """
    together = learner.meta_gradients(episodes, epoch).gradients
    if learner.outer_loss.is_mean and not learner.outer_loop.sharpness_radius:
        alone = [learner.meta_gradients(task, epoch).gradients for task in task_chunks(episodes, 1)]
        one_by_one = {name: torch.stack([gradients[name] for gradients in alone]).mean(0) for name in together}
    else:
        with patch.object(learner.execution.chunks, "size", 1):
            one_by_one = learner.meta_gradients(episodes, epoch).gradients
    return compared("tasks together", "mean over tasks, one by one", together, one_by_one, share_of(learner))


# The inner loop.


def check_adaptation(learner: FewShotLearner, episodes: EpisodeBatch) -> Check:
    """Compare the adapted parameters of each task with those that `torch.optim` reaches.

    Left out is what has no gradient, such as a bias before a norm: a rule may divide the rounding there by its size.
    """
    ours = learner.adapt(episodes, learner.n_steps).params
    theirs = adapted_by_torch(learner, episodes, training=False)
    reached = names_with_gradient(learner, episodes) & theirs.keys()
    other = "torch.optim" if type(learner.inner_loop) in TORCH_OPTIMIZERS else "its rule"
    theirs = {name: theirs[name] for name in reached}
    return compared("adaptation", f"{other}, task by task", ours, theirs, share_of(learner))


# The meta-gradient.


def check_displacement(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare Reptile's update with the mean displacement that `torch.optim` makes; what is not adapted stays."""
    after = adapted_by_torch(learner, episodes, training=True)
    ours = learner.meta_gradients(episodes, epoch).gradients
    expected = {}
    for name, parameter in learner.meta_parameters().items():
        adapted = after.get(name.removeprefix("network."))
        expected[name] = torch.zeros_like(parameter) if adapted is None else parameter.detach() - adapted.mean(0)
    return compared("meta-gradient", "displacement by torch.optim", ours, expected, share_of(learner))


def check_meta_gradient(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare slopes along random directions with central differences of the outer loss.

    Held constant: in first order the inner gradients, and always the moving averages of `episodic` batch norm.
    """
    if learner.outer_loop.sharpness_radius:  # no loss has a gradient that is taken elsewhere: `check_sharpness`
        with _outer_loop(learner, sharpness_radius=0.0):
            return check_meta_gradient(learner, episodes, epoch)
    second_order = learner.is_second_order(epoch)
    recorded: list[Sequence[Tensor]] = []
    moving: list[Sequence[Tensor]] = []
    with inner_gradients(learner, recorder(recorded)), moving_statistics(learner, recorder(moving)):
        gradients = learner.meta_gradients(episodes, epoch).gradients
    parameters = learner.meta_parameters()
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(N_DIRECTIONS):
        direction = {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in parameters.items()
        }

        def outer_loss(width: float, direction: dict[str, Tensor] = direction) -> float:
            gradients_held = nullcontext() if second_order else inner_gradients(learner, replayer(recorded))
            with moved(parameters, direction, width), gradients_held, moving_statistics(learner, replayer(moving)):
                return float(learner.meta_gradients(episodes, epoch).metrics["loss"])

        worst = max(worst, _slope_error(gradients, direction, outer_loss))
    where = "" if worst <= DIFFERENCE_TOLERANCE else f"most: {_worst_parameter(gradients, direction, outer_loss)}"
    held = "" if second_order or not learner.n_steps else ", inner gradients held constant"
    return Check("meta-gradient", f"finite differences{held}", worst, DIFFERENCE_TOLERANCE, where=where)


def check_own_parameters(
    learner: FewShotLearner, episodes: EpisodeBatch, epoch: int, own: Mapping[str, Tensor]
) -> list[Check]:
    """Count those without a gradient, which are never learned, at a start without symmetry: a factor of zero hides
    what it multiplies. None in first order where second order follows, which some have to wait for.
    """
    if learner.ever_second_order and not learner.is_second_order(epoch):
        return []
    generator = torch.Generator().manual_seed(3)
    direction = {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in own.items()}
    with moved(own, direction, 0.1):
        gradients = learner.meta_gradients(episodes, epoch).gradients
    has_gradient: dict[str, bool] = {}
    for name in own:  # attributes of a piece: one tensor of several may be of a bias before a norm, say
        attribute = name if name.startswith(NETWORK) else ".".join(name.split(".")[:2])
        has_gradient[attribute] = has_gradient.get(attribute, False) or bool(gradients[name].any())
    unused = [name for name, has in has_gradient.items() if not has]
    against = f"none without a gradient: {some_of(list(has_gradient), MOST_NAMED)}"
    where = ", ".join(f"{name}: no gradient" for name in unused)
    return [Check("own parameters", against, float(len(unused)), 0.0, where=where)]


def check_sharpness(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare with the plain gradient at parameters moved by the radius along the plain gradient of the network."""
    radius, parameters = learner.outer_loop.sharpness_radius, learner.meta_parameters()
    ours = learner.meta_gradients(episodes, epoch).gradients
    with _outer_loop(learner, sharpness_radius=0.0):
        here = learner.meta_gradients(episodes, epoch).gradients
        uphill = {name: value for name, value in here.items() if name.startswith(NETWORK)}
        norm = float(torch.linalg.vector_norm(torch.cat([value.flatten() for value in uphill.values()])))
        with moved({name: parameters[name] for name in uphill}, uphill, radius / norm):
            theirs = learner.meta_gradients(episodes, epoch).gradients
    return compared("sharpness", "plain gradient, uphill", ours, theirs, share_of(learner))


def check_implicit_gradient(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare slopes with central differences of what the implicit function theorem differentiates, with the learners
    that the inner steps reach, phi, and the solution y of its linear system held constant:

        F(phi, psi) - y d(phi, psi),   and along phi, for y itself,   dF/dphi r = y (d(phi + r) - d(phi - r)) / 2

    d, the update rule's direction, has first derivatives alone. The learners need not have come to rest, which the
    kinks of a ReLU may keep them from.
    """
    kept: dict[str, Any] = {}
    from_rest = implicit_gradient.implicit_gradient

    def solved(multiply: Any, right: Sequence[Tensor], n_iterations: int) -> Sequence[Tensor]:
        kept["right"], kept["y"] = right, conjugate_gradients(multiply, right, SOLVED_ITERATIONS)
        return kept["y"]

    def of_rest(loss: Tensor, adapted: Adapted, *others: Any) -> list[Tensor]:
        kept["phi"] = {name: value.detach() for name, value in adapted.params.items()}
        return from_rest(loss, adapted, *others)

    parameters = learner.meta_parameters()
    with ExitStack() as stack:
        stack.enter_context(patch.object(learner.execution.chunks, "size", len(episodes.support_labels)))
        stack.enter_context(_outer_loop(learner, sharpness_radius=0.0))
        with (
            patch.object(implicit_gradient, "conjugate_gradients", solved),
            patch.object(implicit_gradient, "implicit_gradient", of_rest),
        ):
            gradients = learner.meta_gradients(episodes, epoch).gradients

        def at_rest(phi: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            """Outer loss and y d of some learners."""
            pass_ = learner._training_pass(episodes)
            prepared = learner.adaptation.prepare(episodes, pass_)
            start = learner.adaptation.start(prepared, pass_)
            at = replace(start, params={name: value.detach().requires_grad_() for name, value in phi.items()})
            last = replace(pass_, step=learner.n_steps - 1)
            logits = learner.adaptation.outputs("query", prepared, at, last)
            found = learner.adaptation.direction(prepared, at, last)
            product = sum((one * other).sum() for one, other in zip(kept["y"], found, strict=True))
            return learner.outer_loss(learner.loss.per_task_loss(logits, episodes.query_labels)), product

        generator, worst = torch.Generator().manual_seed(1), 0.0

        def drawn(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in values.items()}

        for _ in range(N_DIRECTIONS):
            direction, of_phi = drawn(parameters), drawn(kept["phi"])

            def along_psi(width: float, direction: dict[str, Tensor] = direction) -> float:
                with moved(parameters, direction, width):
                    loss, product = at_rest(kept["phi"])
                return float((loss - product).detach())

            def along_phi(width: float, of_phi: dict[str, Tensor] = of_phi) -> float:
                return float(at_rest({n: v + width * of_phi[n] for n, v in kept["phi"].items()})[1].detach())

            right = dict(zip(kept["phi"], kept["right"], strict=True))
            worst = max(worst, _slope_error(gradients, direction, along_psi), _slope_error(right, of_phi, along_phi))
        where = "" if worst <= DIFFERENCE_TOLERANCE else f"most: {_worst_parameter(gradients, direction, along_psi)}"
    against = "finite differences of the implicit function"
    return Check("meta-gradient", against, worst, DIFFERENCE_TOLERANCE, where=where)


def _slope_error(
    gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor], value: Callable[[float], float]
) -> float:
    """Return how far a slope is from the central differences of a function of the width along a direction."""
    scale = float(torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values())))
    slope, smallest = float(sum((gradients[name] * direction[name]).sum() for name in gradients)), float("inf")
    for width in STEPS:
        smallest = min(smallest, abs(slope - (value(width) - value(-width)) / (2 * width)) / scale)
        if smallest <= DIFFERENCE_TOLERANCE:
            break
    return smallest


def _worst_parameter(
    gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor], value: Callable[..., float]
) -> str:
    """Return the parameter along whose part of a direction the slope is furthest from central differences."""

    def error(name: str) -> float:
        alone = {other: part if other == name else torch.zeros_like(part) for other, part in direction.items()}
        return _slope_error(gradients, alone, partial(value, direction=alone))

    return max(direction, key=error)


def check_order(learner: FewShotLearner, episodes: EpisodeBatch, epoch: int) -> Check:
    """Check that second and first order differ: if they do not, something has cut the graph of the inner loop."""
    second = learner.meta_gradients(episodes, epoch).gradients
    with _outer_loop(learner, second_order=False, first_order_to_second_order_epoch=-1):
        first = learner.meta_gradients(episodes, epoch).gradients
    flat = [torch.cat([gradients[name].flatten() for name in second]) for gradients in (second, first)]
    difference = float(torch.linalg.vector_norm(flat[0] - flat[1]) / torch.linalg.vector_norm(flat[0]))
    return Check("second order", "first order: must differ", difference, 1e-6, at_least=True)


def check_proto_net(learner: FewShotLearner, head: PrototypeHead, episodes: EpisodeBatch, epoch: int) -> Check:
    """Compare with autograd on softmax over minus squared distances to the class means (Snell et al. 2017, Algorithm
    1), times `prototypes_scale`.
    """
    pass_ = Pass(
        statistics=learner.batch_norm_statistics, is_training=True,
        dropout_seeds=episodes.seeds if learner.network.uses_dropout else None,
    )  # fmt: skip
    network, n_support = learner.network, episodes.support_images.shape[1]
    support = network.features(episodes.support_images, {}, pass_)
    query_pass = replace(pass_, is_query=True)
    if network.needs_support(query_pass):
        both = torch.cat([episodes.support_images, episodes.query_images], dim=1)
        query = network.features(both, {}, replace(query_pass, n_support=n_support))[:, n_support:]
    else:
        query = network.features(episodes.query_images, {}, query_pass)
    prototypes = torch.stack(
        [support[:, (episodes.support_labels[0] == way)].mean(1) for way in range(episodes.n_way)], dim=1
    )
    # |f|^2 does not change the softmax, but the yes-or-no questions of binary cross-entropy.
    logits = head.scale * (query.square().sum(-1, keepdim=True) - torch.cdist(query, prototypes).square())
    loss = mean_loss(learner, logits.flatten(0, 1), episodes.query_labels.flatten())
    parameters = learner.meta_parameters()
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    ours = learner.meta_gradients(episodes, epoch).gradients
    theirs = dict(zip(parameters, expected, strict=True))
    return compared("ProtoNet", "autograd on its formula", ours, theirs, allowed=1e-7)


@contextmanager
def _outer_loop(learner: FewShotLearner, **changes: Any) -> Iterator[None]:
    """Change choices of the outer loop inside."""
    with patch.object(learner, "outer_loop", replace(learner.outer_loop, **changes)):
        yield


@contextmanager
def _well_posed(learner: FewShotLearner) -> Iterator[None]:
    """Inside, our own rule for implicit gradients pulls so strongly that its linear system is solved, and that rounding
    does not grow: with a weak pull the system may have no solution at all.
    """
    rule = learner.inner_loop
    if not isinstance(learner.outer_gradient, Implicit) or not isinstance(rule, ProximalGradientDescent):
        yield
        return
    strength, rates = rule.strength, rule.learning_rates.detach().clone()
    rule.strength = max(strength, SOLVED_STRENGTH)
    rule.learning_rates.data.fill_(0.5 / rule.strength)
    try:
        yield
    finally:
        rule.strength = strength
        rule.learning_rates.data.copy_(rates)
