"""What a run writes for its report beside the metrics: gradients, updates, where the time goes, a few episodes.

Computed between epochs, never in a training step, and a pure function of the learner's state (times and memory
aside): a run that was killed and resumed writes the same.

Letters: E example episodes, N way, K support and Q query images shown of each class.
"""

import math
import resource
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from experiment_parts.learner import Learner
from experiment_parts.records.epoch_records import BINS_PER_POWER, HIGHEST_POWER, LOWEST_POWER
from experiment_parts.records.non_finite import is_finite
from experiment_parts.runs.checkpoints import checkpoint_bytes
from utils.config import ExperimentConfig
from utils.episodes.source import Episodes, EpisodeSource
from utils.files.atomic_files import write_bytes_atomically
from utils.metrics import finite_or_none, is_regression

if TYPE_CHECKING:
    from meta_learning.meta_gradients import MetaGradients

LARGEST_SIDE = 48
"""Pixels; larger example images are reduced."""
MOST_IMAGES_OF_A_CLASS = 5
MOST_IMAGES = 400
EXAMPLE_EPISODES = 4


class Diagnostics:
    """Inspects the learner after an epoch.

    Args:
        examples_file: see `write_examples`.
        tasks_per_meta_batch: B, tasks of a split on which gradients are computed.
        every_epochs: epochs between two inspections.
    """

    def __init__(self, examples_file: Path, tasks_per_meta_batch: int, every_epochs: int = 1):
        self.examples_file = examples_file
        self.tasks_per_meta_batch, self.every_epochs = tasks_per_meta_batch, every_epochs

    def inspect(self, learner: Learner, data: EpisodeSource, epoch: int, *, is_last: bool) -> dict[str, Any]:
        """Write the example episodes and return what curves.json holds of an epoch (from 0) beside the metrics.

        Changes nothing in the learner; does nothing and returns nothing in an epoch that is not due. To be called
        before the epoch's checkpoint is saved: a run that is killed in between does both again.

        Raises:
            StorageError: no space or no permission.
        """
        if (epoch + 1) % self.every_epochs and not is_last:
            return {}
        start = time.perf_counter()
        episodes = data.episodes("val", range(self.tasks_per_meta_batch))
        right = write_examples(self.examples_file, learner, data, epoch)
        examples = {"examples_right": right} if right else {}
        gradients, inspected = inspect_gradients(learner, episodes, epoch)
        # A learner that has refused one update refuses all that follow: a look must not be what it stops at.
        updates = {"updates": inspect_update(learner, gradients, epoch)} if is_finite(gradients) else {}
        # Of training tasks, always the same: where these are known by heart, those of validation vanish nowhere.
        inspected["magnitudes"] = weight_magnitudes(
            learner, data.episodes("train", range(self.tasks_per_meta_batch)), epoch
        )
        found = {"gradients": inspected, **updates, **examples, "peak_memory_mib": peak_memory_mib(learner)}
        return found | {"look_time_s": time.perf_counter() - start}


def build_diagnostics(config: ExperimentConfig, logs: Path) -> Diagnostics | None:
    """Unpack a config; None where the run asks for none."""
    every_epochs = config.diagnostics_every_epochs
    return (
        Diagnostics(logs / "validation_episodes.safetensors", config.tasks_per_meta_batch, every_epochs)
        if every_epochs
        else None
    )


def inspect_gradients(learner: Learner, episodes: Episodes, epoch: int) -> "tuple[MetaGradients, dict[str, Any]]":
    """Return a meta-gradient, and its norm per parameter, the angle between first and second order, and what took
    the time.

    The second of them:
        norms: name -> Euclidean norm, of the epoch's own derivative order.
        order: "first" or "second".
        angle_degrees: between the two orders' gradients of the same meta-batch, over all parameters; None in a run
            that is of first order throughout.
        time_inner_s, time_outer_s: up to the last inner gradient, and after it.
    """
    device = episodes.support_images.device
    times = _GradientClock(device, learner.meta_parameters().values())
    is_second_order = learner.is_second_order(epoch)
    angle = None
    # A replay runs no Python: the clock, which watches calls of autograd.grad, would see none.
    with learner.step_by_step():
        with times:
            meta_gradients = learner.meta_gradients(episodes, epoch)
        gradients = meta_gradients.gradients
        if learner.ever_second_order:
            other = learner.meta_gradients(episodes, epoch, second_order=not is_second_order)
            angle = angle_degrees(gradients, other.gradients)
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()]).tolist()
    return meta_gradients, {
        "norms": {
            name.removeprefix("network."): finite_or_none(norm) for name, norm in zip(gradients, norms, strict=True)
        },
        "order": "second" if is_second_order else "first",
        "angle_degrees": angle,
        "time_inner_s": times.inner_s,
        "time_outer_s": times.outer_s,
    }


def weight_magnitudes(learner: Learner, episodes: Episodes, epoch: int) -> dict[str, list[int]]:
    """Return name -> histogram of a weight's meta-gradient, see `magnitudes`; norm layers left out."""
    with learner.step_by_step():
        gradients = learner.meta_gradients(episodes, epoch).gradients
    return {
        name.removeprefix("network."): magnitudes(gradient)
        for name, gradient in gradients.items()
        if name.endswith("weight") and ".norm." not in name
    }


def magnitudes(gradient: Tensor) -> list[int]:
    """Count the elements of a gradient, of any shape, by their magnitude: `BINS_PER_POWER` bins for each power of ten.

    What is smaller than `LOWEST_POWER`, zeros too, is in the first bin; what is not smaller than `HIGHEST_POWER` in the
    last.
    """
    n_bins = (HIGHEST_POWER - LOWEST_POWER) * BINS_PER_POWER
    powers = gradient.detach().abs().nan_to_num().log10()
    places = ((powers - LOWEST_POWER) * BINS_PER_POWER).clamp(0, n_bins - 1).long()
    return torch.bincount(places.flatten(), minlength=n_bins).tolist()


def angle_degrees(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """Return the angle between two gradients, all parameters together; None where one is zero or not finite.

    2 atan2(|a/|a| - b/|b||, |a/|a| + b/|b||), which is exact for small angles too.
    """
    a, b = (torch.cat([tensors[name].detach().flatten().double() for name in one]) for tensors in (one, other))
    a, b = a / torch.linalg.vector_norm(a), b / torch.linalg.vector_norm(b)
    radians = 2 * math.atan2(float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a + b)))
    return finite_or_none(math.degrees(radians))


class _GradientClock(TorchFunctionMode):
    """Seconds of the calls between: up to the last inner gradient, and from there on.

    Waits for the device at each gradient.
    """

    def __init__(self, device: torch.device, meta_parameters: Iterable[Tensor]):
        super().__init__()
        self._device, self._meta_parameters = device, {id(parameter) for parameter in meta_parameters}
        self.inner_s = self.outer_s = 0.0

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def __enter__(self) -> "_GradientClock":
        self._mark = self._now()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.outer_s += self._now() - self._mark

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.autograd.grad:
            now = self._now()
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            if any(id(tensor) in self._meta_parameters for tensor in inputs):
                self.outer_s += now - self._mark
            else:
                self.inner_s += now - self._mark
            self._mark = now
        return result


def inspect_update(learner: Learner, meta_gradients: "MetaGradients", epoch: int) -> dict[str, dict[str, float | None]]:
    """Return name -> the norm of the parameter and of the step that the meta-optimiser would take; the step is taken
    back.

    What can be resumed from restores everything, so the learner's own state is set back from it.
    """
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    parameters = learner.meta_parameters()
    starts = {name: value.detach().clone() for name, value in parameters.items()}  # saved tensors may have other names
    try:
        learner.meta_update(meta_gradients, epoch)
        norms = [
            torch.linalg.vector_norm(tensor)
            for name, value in parameters.items()
            for tensor in (value.detach() - starts[name], starts[name])
        ]
        numbers = iter(torch.stack(norms).tolist())
    finally:
        learner.load_state_tensors(before)
    return {
        name.removeprefix("network."): {
            "update_norm": finite_or_none(next(numbers)),
            "norm": finite_or_none(next(numbers)),
        }
        for name in parameters
    }


def peak_memory_mib(learner: Learner) -> float:
    """Return the most device memory that was in use at once, or that of the process on a CPU."""
    device = next(iter(learner.meta_parameters().values())).device
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


# --- example episodes -------------------------------------------------------------------------------------------------


def write_examples(path: Path, learner: Learner, data: EpisodeSource, epoch: int) -> list[int]:
    """Write the first validation episodes with the learner's answers, before and after adaptation, to one verified
    file.

    Nothing in a regression, whose points are no pictures, nor of tasks that come without names of classes.
    Returns the number of right answers in each of them, after adaptation.

    Tensors: support_images uint8 (E, N, K, C, h, w), query_images uint8 (E, N, Q, C, h, w); predictions_before,
    predictions int64 (E, N, Q); confidence float32 (E, N, Q), the probability of the prediction; and all of a task's
    query images counted: right_before, right int64 (E,). State: epoch (from 1), class_names of each episode, queries
    in a task.

    Raises:
        StorageError: no space or no permission.
    """
    shape = data.shape_of("val")
    n_way, n_shot, n_query = shape.n_way, shape.n_shot, shape.n_query
    shown = min(n_shot, MOST_IMAGES_OF_A_CLASS), min(n_query, MOST_IMAGES_OF_A_CLASS)
    n_episodes = max(1, min(EXAMPLE_EPISODES, MOST_IMAGES // (n_way * sum(shown))))
    episodes = data.episodes("val", range(n_episodes))
    names = data.class_names["val"]
    if is_regression(episodes.query_labels) or not names:
        return []
    tensors: dict[str, Tensor] = {}
    for role, n_images, n_shown in (("support", n_shot, shown[0]), ("query", n_query, shown[1])):
        pixels = data.as_pixels(getattr(episodes, f"{role}_images"))
        if pixels is None:
            return []
        pixels = _reduced(pixels.cpu()).reshape(n_episodes, n_way, n_images, -1, *_reduced_size(*pixels.shape[-2:]))
        tensors[f"{role}_images"] = pixels[:, :, :n_shown]
    for suffix, n_steps in (("_before", 0), ("", None)):
        logits = learner.evaluate(episodes, n_steps=n_steps).query_logits.detach().cpu().float()
        right = logits.argmax(dim=-1) == episodes.query_labels.cpu()
        confidence, predictions = (
            values.reshape(n_episodes, n_way, n_query)[:, :, : shown[1]]
            for values in logits.softmax(dim=-1).max(dim=-1)
        )
        tensors |= {
            f"predictions{suffix}": predictions,
            f"confidence{suffix}": confidence,
            f"right{suffix}": right.sum(dim=-1),
        }
    state = {
        "epoch": epoch + 1,
        "class_names": [[names[rank] for rank in ranks] for ranks in episodes.class_ids.tolist()],
        "queries_per_task": n_way * n_query,
    }
    write_bytes_atomically(path, checkpoint_bytes(tensors, state))
    return tensors["right"].tolist()


def _reduced_size(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, LARGEST_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _reduced(pixels: Tensor) -> Tensor:
    """Reduce uint8 (B, n, C, H, W) to uint8 (B*n, C, h, w)."""
    size = _reduced_size(*pixels.shape[-2:])
    images = pixels.flatten(0, 1)
    if size == tuple(pixels.shape[-2:]):
        return images
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
