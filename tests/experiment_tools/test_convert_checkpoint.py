"""A checkpoint of the reference: read without running it, renamed, and adapting to the same logits as its network."""

import codecs
import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiment_parts.runs.checkpoints import load_checkpoint
from experiment_tools.convert_checkpoint import convert_checkpoint, main, read_tensors_and_numbers
from few_shot_learning_system import build_learner
from tests.tools.learners import Episodes
from utils.config import check_config
from utils.errors import ConfigError, StorageError

CONFIG = {
    "experiment_name": "old",
    "image_height": 12,
    "image_width": 12,
    "num_stages": 2,
    "cnn_num_filters": 3,
    "num_classes_per_set": 3,
    "number_of_training_steps_per_iter": 3,
    "total_iter_per_epoch": 5,
    "class_rotation": False,
    "per_step_bn_statistics": True,
    "learnable_per_layer_per_step_inner_loop_learning_rate": True,
}
ADAPTED = [f"{layer}.{key}" for layer in ("conv0.conv", "conv1.conv") for key in ("weight", "bias")] + [
    "linear.weights",
    "linear.bias",
]


def reference_tensors(per_step=True, prefix=""):
    """Random weights with the names and shapes that the reference gives to two stages of three filters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / 3

    rows = (3,) if per_step else ()
    tensors = OrderedDict()
    for index, channels in ((0, 1), (1, 3)):
        layer = f"classifier.{prefix}layer_dict.conv{index}"
        tensors |= {f"{layer}.conv.weight": draw(3, channels, 3, 3), f"{layer}.conv.bias": draw(3)}
        tensors |= {f"{layer}.norm_layer.{key}": draw(*rows, 3) for key in ("running_mean", "bias", "weight")}
        tensors[f"{layer}.norm_layer.running_var"] = draw(*rows, 3).square()
    tensors |= {
        f"classifier.{prefix}layer_dict.linear.weights": draw(3, 27),
        f"classifier.{prefix}layer_dict.linear.bias": draw(3),
    }
    rates = {
        f"inner_loop_optimizer.names_learning_rates_dict.layer_dict-{name.replace('.', '-')}": draw(4).abs()
        for name in ADAPTED
    }
    return tensors | rates


def save(path, tensors, **more):
    """Write what the reference writes: numpy's numbers beside the tensors."""
    torch.save(
        {
            "best_val_acc": np.float64(0.5),
            "current_iter": 10,
            "val_loss_mean": np.float32(1.5),
            "network": tensors,
            **more,
        },
        path,
    )
    return path


def plain_logits(tensors, task):
    """Adapt three steps and classify, in plain torch: conv, batch norm of the batch, leaky ReLU, pool; linear."""
    weights = {name.removeprefix("classifier.layer_dict."): value for name, value in tensors.items()}
    fast = {name: weights[name].clone().requires_grad_() for name in ADAPTED}

    def forward(x, step):
        for index in (0, 1):
            layer, norm = f"conv{index}.conv", f"conv{index}.norm_layer"
            x = F.conv2d(x, fast[f"{layer}.weight"], fast[f"{layer}.bias"], padding=1)
            x = F.batch_norm(
                x, None, None, weights[f"{norm}.weight"][step], weights[f"{norm}.bias"][step], training=True
            )
            x = F.max_pool2d(F.leaky_relu(x), 2)
        return F.linear(x.flatten(1), fast["linear.weights"], fast["linear.bias"])

    for step in range(3):
        loss = F.cross_entropy(forward(task.support_images[0], step), task.support_labels[0])
        for (name, value), gradient in zip(
            list(fast.items()), torch.autograd.grad(loss, list(fast.values())), strict=True
        ):
            rate = tensors[f"inner_loop_optimizer.names_learning_rates_dict.layer_dict-{name.replace('.', '-')}"][step]
            fast[name] = (value - rate * gradient).detach().requires_grad_()
    return forward(task.query_images[0], 2).detach()


class ThreeWay(Episodes):
    """Episodes that know their number of ways."""

    n_way = 3


def test_the_converted_network_adapts_to_the_same_logits(tmp_path):
    tensors = reference_tensors()
    config = check_config(CONFIG, "test")
    learner = build_learner(config, "cpu")
    converted, state = convert_checkpoint(config, save(tmp_path / "train_model_2", tensors))
    learner.load_state_tensors(converted, optimizer=False)
    labels, generator = torch.arange(3)[None], torch.Generator().manual_seed(1)
    images = [torch.rand((1, 3, 1, 12, 12), generator=generator) for _ in range(2)]
    task = ThreeWay(images[0], labels, images[1], labels, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(
        learner.evaluate(task).query_logits[0], plain_logits(tensors, task), rtol=1e-4, atol=1e-5
    )
    assert (state["epoch"], state["iteration"], state["converted_from"]["best_val_accuracy"]) == (2, 10, 0.5)


def test_names_of_several_gpus_are_read_too(tmp_path):
    config = check_config(CONFIG, "test")
    one, _ = convert_checkpoint(config, save(tmp_path / "one", reference_tensors()))
    several, _ = convert_checkpoint(config, save(tmp_path / "several", reference_tensors(prefix="module.")))
    assert all(torch.equal(one[name], several[name]) for name in one)
    assert one.keys() == several.keys()


def test_the_command_writes_a_checkpoint_beside_the_old_one_and_replaces_nothing(tmp_path, capsys):
    (tmp_path / "new.json").write_text(json.dumps(CONFIG))
    path = save(tmp_path / "train_model_2", reference_tensors())
    arguments = ["--config", str(tmp_path / "new.json"), "--checkpoint", str(path)]
    assert main(arguments) == 0
    tensors, state = load_checkpoint(tmp_path / "train_model_2.safetensors")
    assert state["config"]["experiment_name"] == "old"
    assert tensors["network.block1.norm.weight"].shape == (3, 3)
    assert tensors["inner_loop.learning_rates"].shape == (6, 3)
    assert main(arguments) == 1
    assert "exists already and stays as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cnn_num_filters": 4}, "train_model_2: the checkpoint is of another network"),
        (
            {"enable_inner_loop_optimizable_bn_params": True, "per_step_bn_statistics": False},
            "adapts other parameters than the config says",
        ),
    ],
)
def test_another_config_than_the_networks_is_an_error(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        convert_checkpoint(
            check_config(CONFIG | changes, "test"), save(tmp_path / "train_model_2", reference_tensors())
        )


def test_a_fixed_rate_that_differs_from_the_configs_is_an_error(tmp_path):
    tensors = {
        name: torch.full_like(value, 0.1) if "names_learning" in name else value
        for name, value in reference_tensors().items()
    }
    changes = {"learnable_per_layer_per_step_inner_loop_learning_rate": False, "init_inner_loop_learning_rate": 0.01}
    with pytest.raises(
        ConfigError, match=r'adapts with the rate 0.1, but "init_inner_loop_learning_rate" is 0.01; set it to 0.1'
    ):
        convert_checkpoint(check_config(CONFIG | changes, "test"), save(tmp_path / "x", tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current_iter": "8"}, "\"current_iter\" is '8', but must be a number from 0 on"),
        ({"current_iter": -5}, '"current_iter" is -5, but must be'),
        ({"best_val_acc": np.float64("nan")}, '"best_val_acc" is'),
        ({"network": {"classifier.layer_dict.linear.bias": 3}}, "is int, but must be a named tensor"),
        ({"network": {5: torch.zeros(2)}}, '"5" of its network is Tensor, but must be a named tensor'),
        ({"network": {"classifier.layer_dict.linear.bias": torch.zeros(3).to_sparse()}}, "must be a named tensor"),
    ],
)
def test_contents_of_another_kind_are_named(tmp_path, changes, message):
    path = save(tmp_path / "x", reference_tensors(), **changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        convert_checkpoint(check_config(CONFIG, "test"), path)


@pytest.mark.parametrize("rates", [torch.ones(2), torch.ones(()), torch.ones(4, 2)])
def test_rates_of_another_shape_are_named(tmp_path, rates):
    name = "inner_loop_optimizer.names_learning_rates_dict.layer_dict-conv1-conv-bias"
    path = save(tmp_path / "x", reference_tensors() | {name: rates})
    with pytest.raises(ConfigError, match=f'"{name}" has the shape .*, but must be a rate for each of 3 steps'):
        convert_checkpoint(check_config(CONFIG, "test"), path)


class _Evil:
    """Unpickled by an ordinary reader, it makes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("place", ["network", "val_loss_mean"])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path, place):
    path = tmp_path / "evil"
    torch.save({"current_iter": 1, "network": {}, place: _Evil(tmp_path / "ran")}, path)
    with pytest.raises(StorageError, match=r"evil: refused; it is damaged or holds more than tensors and numbers"):
        read_tensors_and_numbers(path)
    assert not (tmp_path / "ran").exists()


def test_whole_modules_and_damaged_files_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module")
    whole = save(tmp_path / "whole", reference_tensors()).read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    for name in ("module", "half"):
        with pytest.raises(StorageError, match=f"{name}: refused"):
            read_tensors_and_numbers(tmp_path / name)
    with pytest.raises(StorageError, match="cannot be read"):
        read_tensors_and_numbers(tmp_path / "missing")


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    """numpy 1 called the module of its scalars numpy.core.multiarray, numpy 2 calls it numpy._core.multiarray."""

    class Old:
        def __reduce__(self):
            scalar = np.float64(0).__reduce__()[0]
            return (scalar, (np.dtype("float64"), codecs.encode(np.float64(0.25).tobytes().decode("latin1"), "latin1")))

    path = tmp_path / "old"
    torch.save({"value": Old()}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert read_tensors_and_numbers(path)["value"] == 0.25


def test_something_else_is_no_checkpoint_of_the_reference(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ConfigError, match='it has no "network"'):
        convert_checkpoint(check_config(CONFIG, "test"), tmp_path / "other")
