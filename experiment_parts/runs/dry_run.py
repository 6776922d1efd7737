"""A run of one iteration, one validation task and one test task in a temporary folder that is removed at the end."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.config import ExperimentConfig
from utils.words import is_whole_number

log = logging.getLogger(__name__)
LIMITS = {"total_iter_per_epoch": 1, "num_evaluation_tasks": 1}


@contextmanager
def dry_run(config: ExperimentConfig) -> Iterator[tuple[ExperimentConfig, Path]]:
    """Give the limited config and the folder to run it in; afterwards remove the folder and say how long it took.

    Images that were unpacked or decoded stay, as any run needs them.

    Args:
        config: its derivative order becomes that of the heaviest epoch.
    """
    limits: dict[str, Any] = dict(LIMITS)
    limits |= {
        "total_epochs": 1 + (0 < config.pretraining_epochs < config.total_epochs),
        "pretraining_epochs": min(config.pretraining_epochs, 1),
        "continue_from_epoch": "latest",
        "total_epochs_before_pause": 0,
        "wandb_mode": "offline",
        "test_after_training": True,
    }
    if config.second_order:
        limits["first_order_to_second_order_epoch"] = -1
    if is_whole_number(config.load_checkpoint):  # of a run folder that is left alone here
        limits["load_checkpoint"] = ""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        yield config.model_copy(update=limits), Path(folder)
    log.info(
        "This was a dry run: one training iteration, one validation task and one test task went through in %.1f s. "
        "Its folder is removed, nothing is left behind.",
        time.perf_counter() - start,
    )
