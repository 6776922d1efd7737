"""The parameters of `FewShotClassifier`: config keys, objects in the place of names, and the config that they make."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meta_learning.losses.base import TaskLoss
from utils.config import ExperimentConfig, check_config
from utils.config.schema import ONE_START_ONLY, fields
from utils.errors import ConfigError
from utils.registry import GIVEN_NETWORK
from utils.registry.choices import GIVEN

OF_SCRIPTS_ALONE = {
    *ONE_START_ONLY,
    "test_after_training",
    "evaluate_on_test_set_only",
    "load_checkpoint",
    "tag",
    "test_curve",
    "dataset_name",
    "dataset_path",
    "total_epochs_before_pause",
    "plugin_sha256",
}
"""Config keys that are no parameters: `meta_fit` is given the dataset, `accuracy` tests, `load` loads."""
IMAGE_SIDES = ("image_channels", "image_height", "image_width")


def parameters() -> dict[str, Any]:
    """Return parameter -> default: the config keys of today, those of plugins among them, and two more.

    `network`: a `torch.nn.Module`, a function of (config, (C, H, W), N) that makes one, the name of a backbone, or None
    for the key `backbone`. `image_shape`: C, H, W of flat images. None for the size of images: that of the first ones.
    The keys of OBJECTS may also be a class, or a function that makes one, as the functions of `utils.registry` take
    them; `loss` also a function of (logits (n, N), labels (n,)).
    """
    keys = {
        name: None if name in ("experiment_name", *IMAGE_SIDES) else field.default
        for name, field in fields().items()
        if name not in OF_SCRIPTS_ALONE
    }
    return {"network": None, "image_shape": None, **keys, "diagnostics_every_epochs": 0}


OBJECTS = ("inner_loop_optimizer", "head", "loss", "outer_loss", "norm_layer")
"""Parameters that may be a name or an object."""


class _FunctionLoss(TaskLoss):
    """A user's loss of (logits (n, N), labels (n,)), task by task."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each task's loss (B,)."""
        losses = [self.function(logits, of_task) for logits, of_task in zip(outputs, labels, strict=True)]
        return torch.stack([loss.mean() for loss in losses])


def objects_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are no names: a network, a loss, ...; a function is a loss of its own."""
    given = {name: params[name] for name in ("network", *OBJECTS) if not isinstance(params[name], str | None)}
    loss = given.get("loss")
    if loss is not None and not isinstance(getattr(loss, "func", loss), TaskLoss | type):
        given["loss"] = _FunctionLoss(loss)
    return given


def config_of(
    params: Mapping[str, Any], shape: Sequence[int] | None, meta_config: Mapping[str, Any] | None, *,
    n_way: int | None = None, **changes: Any,
) -> ExperimentConfig:  # fmt: skip
    """Return the config of parameters; what they leave open is that of the meta-learning, else follows from the data.

    Args:
        shape: of an example; None: only the parameters have it.
        meta_config: of the meta-learning; None: there was none.
        n_way: N, where nothing was meta-learned.
        changes: keys of the config that are to be other than the parameters.
    Raises:
        ConfigError: values that cannot work, or the size of images is not known.
    """
    objects = objects_of(params)
    values = {name: plain(value) for name, value in params.items() if name not in ("network", "image_shape")}
    values |= {
        "experiment_name": values["experiment_name"] or "few_shot_classifier",
        "dataset_name": "images",
        **{name: GIVEN for name in OBJECTS if name in objects},
    }
    if params["network"] is not None:
        values["backbone"] = GIVEN_NETWORK if "network" in objects else params["network"]
    if meta_config is not None:
        values["input_shape"] = values["input_shape"] or meta_config["input_shape"]
    elif shape is not None and len(shape) != 3:  # of a source of episodes that are no images
        values["input_shape"] = values["input_shape"] or list(shape)
    left_open = [name for name in IMAGE_SIDES if values[name] is None]
    if values["input_shape"]:  # there is no image
        known = {name: field.default for name, field in fields().items()}
    else:
        known = meta_config or dict(zip(IMAGE_SIDES, map(int, shape or ()), strict=False))
    if missing := [name for name in left_open if name not in known]:
        raise ConfigError(
            f'FewShotClassifier: "{missing[0]}" is not given; set image_channels, image_height and image_width '
            "for this dataset, or input_shape if it has no images"
        )
    values |= {name: known[name] for name in left_open}
    if n_way is not None and meta_config is None:
        values["num_classes_per_set"] = n_way
    config = check_config(values | changes, "FewShotClassifier")
    if config.is_regression:
        raise ConfigError(
            f'FewShotClassifier: "loss" {config.loss} is for regression; use cross_entropy or binary_cross_entropy'
        )
    return config


def plain(value: Any) -> Any:
    """Return numpy's numbers and tuples, as grid searches give them, in the types of JSON."""
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
