"""Nothing of a training step runs on the host: checked on torch's meta device.

A meta tensor has a device but no values: whoever reads one on the host (`.item()`, `bool(t)`, `.cpu()`), or mixes it
with tensors of the CPU, gets an error. What runs there waits for no device, and what is computed under `OnOneDevice`
could be recorded as a CUDA graph.
"""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Drawing, FewShotData, ImageClasses, Preprocessing
from few_shot_learning_system import build_learner
from meta_learning.execution.cuda_graphs import GraphedComputation
from meta_learning.networks import first_block as image_patches
from meta_learning.networks import layers
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.operations import window_maxima
from tests.tools.learners import PLUS_PLUS, small_config, small_learner, worst_difference
from tests.tools.methods.method_matrix import BY_CHANGE, METHODS, episodes_of, epochs_of, users_networks
from utils.data_sources.sinusoid import SinusoidData
from utils.episodes.augmentation import AUGMENTATIONS
from utils.episodes.drawing import EpisodeShape


def devices(tree: Any) -> set[str]:
    """Of all tensors in it."""
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


class _NewTensors(TorchFunctionMode):
    """Notes tensors that are made of numbers of Python, which operators do not show in all versions of torch."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("tensor", "new_tensor", "as_tensor") and "meta" in devices(out):
            self.found.append(function.__name__)
        return out


class CopiesFromHost(TorchDispatchMode):
    """Collects what brings something from the host to the device; each of these makes the host wait unless memory is
    pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._new_tensors = _NewTensors(self.found)

    def __enter__(self) -> Any:
        self._new_tensors.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._new_tensors.__exit__(*error)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        name, given, made = operator.overloadpacket.__name__, devices((args, kwargs)), devices(out)
        if "meta" in made and name in ("_to_copy", "copy_", "index", "index_put_") and "cpu" in given:
            self.found.append(name)
        return out


REFUSED_IF_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "bincount",
    "cumsum",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "grid_sampler_2d_backward",
    "histc",
    "index_reduce",
    "kthvalue",
    "max_unpool2d",
    "max_unpool3d",
    "median",
    "nll_loss2d_backward",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}
"""Operators of which CUDA has no version that gives the same bits each time, by the documentation of
`torch.use_deterministic_algorithms`. The backward of max-pooling, which torch warns of too, gives them where windows
do not overlap (`utils.machine.devices.make_deterministic`).
"""


class OnOneDevice(CopiesFromHost):
    """Fails for every operator that takes or makes a tensor of the CPU, even one number, or brings one to the
    device.
    """

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(operator, types, args, kwargs)
        assert operator.overloadpacket.__name__ not in REFUSED_IF_DETERMINISTIC, (
            f"{operator} is not deterministic on CUDA"
        )
        touched = devices((args, kwargs, out))
        assert touched <= {"meta"}, f"{operator} touches {', '.join(sorted(touched))}"
        return out


class Watch:
    """A recorder that lets nothing leave the device; what it watches counts as replayed."""

    def __init__(self) -> None:
        self.n_recordings = 0

    def __call__(self, function: Any) -> Any:
        self.n_recordings += 1
        try:
            with OnOneDevice() as copies:
                result = function()
                assert not copies.found, f"touches the host: {copies.found}"
        except RuntimeError as error:  # which `GraphedComputation` takes for a machine that cannot record
            raise AssertionError(f"reads the device: {error}") from error
        return self, result

    def replay(self) -> None:
        """Compute nothing."""


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    # An evaluation with running statistics looks on the host whether there are any.
    monkeypatch.setattr(MetaBatchNorm2d, "has_running_statistics", lambda self: True)
    with users_networks():
        yield


@pytest.mark.parametrize(
    "read",
    [
        lambda t: torch.tensor([1.0], device="meta"),
        lambda t: t * torch.tensor(2.0),
        lambda t: t.sum().item(),
        lambda t: t.cpu(),
        bool,
    ],
)
def test_what_leaves_the_device_is_noticed(read):
    watch = Watch()
    with pytest.raises(AssertionError, match=r"touches|reads the device"):
        watch(lambda: read(torch.zeros(1, device="meta")))


@pytest.mark.parametrize("name", BY_CHANGE)
def test_training_and_evaluation_stay_on_the_device(name):
    changes = METHODS[name]
    learner = build_learner(small_config(**changes), "meta")
    assert devices([*learner.parameters(), *learner.buffers()]) == {"meta"}
    watch = Watch()
    learner.execution.replayed = GraphedComputation(watch)
    for epoch in epochs_of(changes):
        learner.execution.precision._checked_epoch = epoch  # it waits for the device once an epoch
        episodes = episodes_of(changes, device="meta")
        meta_gradients = learner.meta_gradients(episodes, epoch)
        assert devices(meta_gradients.tensors()) == {"meta"}
        with CopiesFromHost() as copies:
            again = learner.meta_gradients(episodes, epoch)
            assert learner.meta_update(again, epoch).device.type == "meta"
        assert not copies.found
    evaluation = learner.evaluate(episodes_of(changes, device="meta"))
    assert evaluation.query_logits.device.type == "meta"
    # Of a meta-gradient one, and one of the losses that decide how much a task counts; and the evaluation.
    per_epoch = 1 if learner.outer_loss.is_mean else 2
    assert watch.n_recordings == per_epoch * len(epochs_of(changes)) + 1


class CountsOperators(TorchDispatchMode):
    """Counts those that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (operator.is_view or "empty" in operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def test_a_meta_gradient_is_made_of_no_more_operators_than_it_was():
    """Each takes a GPU microseconds, whatever it computes: MAML++ with the paper's network and steps; it had 4,117
    once.
    """
    changes = PLUS_PLUS | {
        "num_stages": 4,
        "image_height": 28,
        "image_width": 28,
        "number_of_training_steps_per_iter": 5,
    }
    learner, episodes = build_learner(small_config(**changes), "meta"), episodes_of(changes, device="meta")
    learner.meta_gradients(episodes, 0)  # chooses how many tasks are computed at once
    with CountsOperators() as operators:
        learner.meta_gradients(episodes, 0)
    assert operators.count <= 2400


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_episodes_come_to_the_device_in_one_copy_of_each_kind(augmentation, on_device):
    images = torch.zeros(24, 3, 12, 12, dtype=torch.uint8, device="meta" if on_device else "cpu")
    classes = {f"class{label}": range(4 * label, 4 * label + 4) for label in range(6)}
    names = {} if augmentation is None else {"support": (augmentation,), "query": (augmentation,)}
    data = FewShotData(
        ImageClasses(images, {"train": classes}),
        Drawing(EpisodeShape(5, 1, 2), {"train": 0}, class_rotation=True),
        Preprocessing("imagenet", reverse_channels=True, augmentation=names, device="meta"),
    )
    data.episodes("train", range(3))  # makes what stays on the device
    with CopiesFromHost() as copies:
        episodes = data.episodes("train", range(3, 6))
    assert {episodes.support_images.device.type, episodes.query_labels.device.type, episodes.seeds.device.type} == {
        "meta"
    }
    assert len(copies.found) == 1 + (not on_device) + len(names), (
        copies.found
    )  # numbers, gathered images, parameters of each augmentation


@pytest.mark.parametrize("operator", sorted(REFUSED_IF_DETERMINISTIC))
def test_the_refused_operators_have_the_names_that_torch_calls_them_by(operator):
    assert hasattr(torch.ops.aten, operator)


def test_sinusoids_come_to_the_device_in_two_copies():
    data = SinusoidData(shape=EpisodeShape(1, 5, 5), seeds={"train": 0}, device="meta")
    with CopiesFromHost() as copies:
        assert data.episodes("train", range(3)).query_labels.device.type == "meta"
    assert len(copies.found) == 2


@pytest.mark.parametrize(
    "name", ["MAML++", "running statistics", "support statistics", "conv4", "gradient checkpointing", "layer norm"]
)
def test_what_a_gpu_computes_instead_is_the_same(name, monkeypatch):
    """The branches that are not for a CPU, taken there: other memory formats, all pixels of the pooling windows at
    once.
    """
    learner, episodes = small_learner(**METHODS[name]), episodes_of(METHODS[name])
    on_cpu = learner.meta_gradients(episodes, 4).gradients
    calls = []
    monkeypatch.setattr(window_maxima, "_PixelByPixel", window_maxima._AllPixels)
    for module in (layers, image_patches):
        monkeypatch.setattr(module, "in_best_format", lambda x: calls.append(x) or x.contiguous())
    assert worst_difference(learner.meta_gradients(episodes, 4).gradients, on_cpu) <= 1e-9
    assert calls
