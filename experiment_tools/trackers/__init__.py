"""Where else the curves of a run go, by the key `trackers`: TensorBoard, Weights & Biases.

CSV and JSON-lines are always written.
"""

import logging
from importlib.util import find_spec

from experiment_parts.records.observers import Observer
from utils.config import ExperimentConfig
from utils.machine.packages import extras_command

log = logging.getLogger(__name__)


def build_trackers(config: ExperimentConfig) -> list[Observer]:
    """Build the trackers that a config names.

    One whose package is missing is left out with a warning that says how to get it.
    """
    return [_tracker(name, config) for name in config.trackers if _is_installed(name)]


def _is_installed(package: str) -> bool:
    if find_spec(package) is not None:
        return True
    log.warning(
        "trackers: the package %s is not installed, so nothing is sent to it; the run goes on. Install it: %s",
        package,
        extras_command("trackers"),
    )
    return False


def _tracker(name: str, config: ExperimentConfig) -> Observer:
    if name == "tensorboard":
        from experiment_tools.trackers.tensorboard_tracker import TensorBoardTracker

        return TensorBoardTracker(track_gradients=config.track_grad_norm)
    from experiment_tools.trackers.wandb_tracker import WandbTracker

    return WandbTracker(project=config.wandb_project, mode=config.wandb_mode, track_gradients=config.track_grad_norm)
