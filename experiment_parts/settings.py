"""What the builder and its parts take from the config."""

from dataclasses import dataclass
from typing import Literal

from utils.episodes.drawing import EpisodeShape


@dataclass(frozen=True)
class ExperimentSettings:
    """Plain values that say how long and how a run goes. Names as in the config."""

    total_epochs: int
    total_iter_per_epoch: int
    tasks_per_meta_batch: int
    num_evaluation_tasks: int
    training_shapes: tuple[EpisodeShape, ...] = ()
    """Of which each meta-batch draws one; none: the shape that the data has of itself."""
    train_seed: int = 0
    pretraining_epochs: int = 0
    validate_every_epochs: int = 1
    total_epochs_before_pause: int = 0
    early_stopping_patience: int = 0
    is_regression: bool = False
    loss: str = "cross_entropy"
    max_models_to_save: int | Literal["all"] = 5
    # As in the released code; its commit of 2018-11-25 took three.
    number_of_ensemble_models: int = 5
    test_batch_norm_statistics: tuple[str, ...] = ("transductive",)
    log_every_iterations: int = 10
    checkpoint_every_s: float = 60.0
    skip_iterations: tuple[int, ...] = ()
    replay_iteration: int = 0
    restart_schedule: bool = False
    evaluate_on_test_set_only: bool = False
    test_curve: bool = False
    test_baselines: bool = False
    tested_elsewhere: str = ""
    tag: str = ""
    load_checkpoint: str = ""
    allow_config_change: tuple[str, ...] = ()
    dry_run: bool = False
    """The run folder is removed at the end, so that nobody is sent there."""
