"""The choices that a user has, as changes to a small config, for tests that hold for all of them; and the steps a
test takes with each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tools.gate import few_of
from tests.tools.learners import PLUS_PLUS, Episodes, PlainBlock, random_episodes, small_config
from utils import registry

TINY = {"number_of_training_steps_per_iter": 2, "batch_size": 2}
THREE_EPOCHS = PLUS_PLUS | {"multi_step_loss_num_epochs": 3}
WITHOUT_CLASSES = {"loss": "mean_squared_error", "backbone": "mlp", "num_regression_outputs": 2}
_CHANGES: dict[str, dict[str, Any]] = {
    "MAML": {},
    "MAML++": THREE_EPOCHS,
    "first order": {"second_order": False},
    "first order, then second": THREE_EPOCHS | {"first_order_to_second_order_epoch": 1},
    "ANIL": {"adapted_parameters": "head"},
    "ANIL of one row of norms and support statistics": {
        "adapted_parameters": "head",
        "batch_norm_statistics": "support",
    },
    "BOIL": {"adapted_parameters": "body"},
    "frozen layers": {"frozen_layers": ["block0", "conv.bias"]},
    "Meta-SGD": {"learnable_inner_loop_learning_rates": "per_element"},
    "a learned rate per layer": {
        "learnable_inner_loop_learning_rates": "per_layer",
        "init_head_inner_loop_learning_rate": 0.3,
    },
    "Reptile": {"outer_update": "displacement", "second_order": False},
    "zero head": {"head": "zero"},
    "zero head, Meta-SGD": {"head": "zero", "learnable_inner_loop_learning_rates": "per_element"},
    "ProtoMAML": {"head": "prototypes"},
    "ProtoNet": {"head": "prototypes", "number_of_training_steps_per_iter": 0},
    "inner momentum and decay": {"inner_loop_momentum": 0.7, "inner_loop_weight_decay": 0.01},
    "inner Adam": {"inner_loop_optimizer": "adam"},
    "inner RMSprop": {"inner_loop_optimizer": "rmsprop"},
    "inner clipping": {"inner_loop_gradient_clip_norm": 0.5, "inner_loop_gradient_clamp": 0.1},
    "adapted norms": {"enable_inner_loop_optimizable_bn_params": True},
    "running statistics": {"batch_norm_statistics": "running", "per_step_bn_statistics": True},
    "learned momentum": {
        "batch_norm_statistics": "running",
        "learnable_batch_norm_momentum": True,
        "batch_norm_momentum": 0.5,
    },
    "support statistics": {"batch_norm_statistics": "support", "per_step_bn_statistics": True},
    "episodic statistics": {"batch_norm_statistics": "episodic"},
    "statistics of each block": {"batch_norm_statistics": ["support", "episodic"]},
    "layer norm": {"norm_layer": "layer_norm"},
    "group norm": {"norm_layer": "group_norm", "norm_groups": 3},
    "task norm": {"norm_layer": "task_norm"},
    "task norm of support": {"norm_layer": "task_norm", "batch_norm_statistics": "support"},
    "dropout": {"dropout_rate_value": 0.3},
    "no padding": {"conv_padding": False},
    "strides": {"max_pooling": False, "cnn_blocks_per_stage": 2},
    "conv4": {
        "backbone": "conv4",
        "image_height": 16,
        "image_width": 16,
        "image_channels": 3,
        "dropout_rate_value": 0.2,
    },
    "ResNet-12": {"backbone": "resnet12", "dropout_rate_value": 0.1, "image_channels": 3},
    "ResNet-18 of support": {
        "backbone": "resnet18",
        "batch_norm_statistics": "support",
        "image_height": 32,
        "image_width": 32,
    },
    "a module of a user": {"backbone": "users"},
    "a module of a user, task by task": {
        "backbone": "users",
        "task_batching": "loop",
        "batch_norm_statistics": "episodic",
    },
    "torchvision's ShuffleNet": {"backbone": "torchvision", "image_channels": 3, "image_height": 32, "image_width": 32},
    "regression": WITHOUT_CLASSES,
    "binary cross-entropy": {"loss": "binary_cross_entropy"},
    "label smoothing": {"label_smoothing": 0.1},
    "UNICORN-MAML": {"head": "shared", "shared_temperature": 0.5},
    "ridge head": {"head": "ridge"},
    "R2D2": {"head": "ridge", "number_of_training_steps_per_iter": 0},
    "Meta-Curvature": {"inner_loop_optimizer": "meta_curvature"},
    "GAP": {"inner_loop_optimizer": "gap"},
    "ALFA": {"inner_loop_optimizer": "alfa"},
    "L2F": {"inner_loop_optimizer": "l2f"},
    "worst tasks": {"outer_loss": "cvar"},
    "T-Net": {"warp_kernel_size": 1},
    "Warp-MAML without pooling": {"warp_kernel_size": 3, "max_pooling": False},
    "Sharp-MAML": {"sharpness_radius": 0.05},
    "Sharp-MAML, lower level": {"inner_loop_optimizer": "sharp"},
    "iMAML": {"inner_loop_optimizer": "proximal", "outer_update": "implicit"},
    "MeTAL": {"inner_loop_optimizer": "metal"},
    "CAVIA": {"adapter_kind": "context", "adapter_targets": ["block1.norm"], "adapted_parameters": "body"},
    "FiLM": {"adapter_kind": "film", "adapter_targets": ["norm"]},
    "LoRA in a module of a user": {"adapter_kind": "lora", "adapter_rank": 2, "backbone": "users"},
    "residual adapters": {"adapter_kind": "residual", "adapter_base": "frozen", "head": "prototypes"},
    "gradient checkpointing": THREE_EPOCHS | {"gradient_checkpointing": True},
    "gradient checkpointing, prototypes, inner Adam": {
        "gradient_checkpointing": True,
        "head": "prototypes",
        "inner_loop_optimizer": "adam",
    },
    "chunks of one task": THREE_EPOCHS | {"task_chunk_size": 1},
    "chunks that do not fit": {"task_chunk_size": 2, "batch_size": 3},
    "bfloat16": {"precision": "bfloat16", "precision_error_limit": 1e9},
    "AdamW, clipped": {"meta_optimizer": "adamw", "meta_weight_decay": 0.01, "gradient_clip_norm": 1.0},
    "SGD, clamped": {"meta_optimizer": "sgd", "meta_momentum": 0.9, "gradient_clamp": 0.01},
    "RMSprop": {"meta_optimizer": "rmsprop", "meta_momentum": 0.9, "meta_learning_rate_schedule": "constant"},
}
METHODS = {name: TINY | changes for name, changes in _CHANGES.items()}
CHANGING = (
    "first order, then second",
    "Reptile",
    "ProtoMAML",
    "inner Adam",
    "episodic statistics",
    "dropout",
    "regression",
    "chunks that do not fit",
)
"""Those in which something of each kind changes from one iteration to the next."""
BY_CHANGE = few_of(METHODS, *CHANGING)
"""All of them; at every change those."""
BY_GRAPH = few_of(METHODS, "first order, then second", "Reptile", "ProtoMAML", "chunks that do not fit")
"""All of them; at every change those whose graphs are put together in different ways."""


@dataclass(frozen=True)
class SizedEpisodes(Episodes):
    """Episodes whose number of ways nobody has to read from a tensor."""

    n_way: int = 0


class Users(nn.Module):
    """A small network of a user's, with dropout and a batch norm of vectors."""

    def __init__(self, n_way: int) -> None:
        super().__init__()
        self.block, self.drop, self.norm = PlainBlock(1, 3), nn.Dropout(0.2), nn.BatchNorm1d(108)
        self.classifier = nn.Linear(108, n_way)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.norm(self.drop(self.block(x)).flatten(1)))


def _shuffle_net(n_way: int) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.shufflenet_v2_x0_5(num_classes=n_way)


@contextmanager
def users_networks() -> Iterator[None]:
    """Inside, the backbones "users" and "torchvision" are there, as a plugin would register them."""
    before = dict(registry._backbones)
    registry.register_backbone("users", lambda config, image_shape, n_way: Users(n_way))
    registry.register_backbone("torchvision", lambda config, image_shape, n_way: _shuffle_net(n_way))
    try:
        yield
    finally:
        registry._backbones.clear()
        registry._backbones.update(before)


def epochs_of(changes: dict[str, Any]) -> tuple[int, ...]:
    """The first epoch and, where schedules make others of another kind, one with the last query loss and of second
    order.
    """
    config = small_config(**changes)
    return (0, 4) if config.use_multi_step_loss_optimization or config.first_order_to_second_order_epoch >= 0 else (0,)


def episodes_of(changes: dict[str, Any], seed: int = 0, device: str = "cpu") -> SizedEpisodes:
    """Random episodes of a config's shapes and number format."""
    config = small_config(**changes)
    drawn = vars(random_episodes(config, seed))
    if config.is_regression:
        drawn |= {
            f"{role}_labels": _targets(drawn[f"{role}_labels"], config.num_regression_outputs)
            for role in ("support", "query")
        }
    form = getattr(torch, config.parameter_format)
    tensors = {
        name: (value.to(form) if value.is_floating_point() else value).to(device) for name, value in drawn.items()
    }
    return SizedEpisodes(**tensors, n_way=1 if config.is_regression else config.num_classes_per_set)


def _targets(labels: Tensor, n_outputs: int) -> Tensor:
    return torch.sin(labels[..., None] + torch.arange(n_outputs, dtype=torch.float64))
