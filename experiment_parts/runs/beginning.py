"""The weights that a run begins with, looked at before anything that takes long."""

import logging
from pathlib import Path
from typing import Any

from experiment_parts.runs.checkpoints import read_checkpoint_state
from utils.config import ExperimentConfig
from utils.config.changes import as_argument
from utils.errors import ConfigError, UserError
from utils.files.pretrained import pretrained_index, weights_file

log = logging.getLogger(__name__)

KEYS_OF_A_BODY = (
    "backbone", "num_stages", "cnn_blocks_per_stage", "cnn_num_filters", "max_pooling", "norm_layer",
    "per_step_bn_statistics", "number_of_training_steps_per_iter", "head", "feature_scale", "normalisation",
)  # fmt: skip
"""Keys that say what a body was trained to do: with others it fits no more, or does worse than it could."""


def check_beginning(config: ExperimentConfig) -> None:
    """Look at `initial_weights`: are they there, and were they trained as they are used now? The latter is a line in
    the log, as another use may be meant; only weights of this project say it.

    Raises:
        ConfigError: there is no such file.
    """
    path = weights_file(config.initial_weights)
    if not path.exists():
        raise ConfigError(
            f'"initial_weights" {path} cannot be read (no such file); give the file of a run that has trained, for a '
            "stage of a card of pretrained/ by the command before it there, or a name: "
            f"{', '.join(sorted(pretrained_index()))}"
        )
    if changed := _changed_keys(path, config):
        trained = " ".join(f"--{key} {as_argument(value)}" for key, value in changed.items())
        here = " ".join(f"--{key} {as_argument(getattr(config, key))}" for key in changed)
        log.info("initial_weights %s: trained with %s; this run has %s", config.initial_weights, trained, here)


def _changed_keys(path: Path, config: ExperimentConfig) -> dict[str, Any]:
    """Return key -> value at the training of the weights, where it is another here; none, where they do not say it."""
    try:
        trained = read_checkpoint_state(path)["config"]
        return {key: trained[key] for key in KEYS_OF_A_BODY if key in trained and trained[key] != getattr(config, key)}
    except (UserError, OSError, LookupError, TypeError):  # of torchvision, say; building the network tells the rest
        return {}
