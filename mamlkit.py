"""The project under its one name: what a program of one's own imports, and `python mamlkit.py COMMAND ...`.

    >>> import numpy as np
    >>> from mamlkit import FewShotClassifier
    >>> images = np.random.default_rng(0).integers(0, 256, (40, 14, 14), dtype=np.uint8)  # 8 classes of 5
    >>> classifier = FewShotClassifier(
    ...     backbone="mlp", num_classes_per_set=2, num_target_samples=1, total_epochs=1, total_iter_per_epoch=2,
    ...     number_of_training_steps_per_iter=1, num_evaluation_tasks=2, batch_size=2, gpu_to_use="cpu",
    ... ).meta_fit((images, np.repeat(np.arange(8), 5)))
    >>> classifier.fit(images[:2], ["a", "b"]).predict(images[2:4]).shape
    (2,)

These names stay what they are; everything else may change without notice. In a checkout this file hands them on,
installed it is the package's `__init__` and `__main__`. Nothing is imported before it is used: torch takes seconds.
"""

import ast
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data import build_data
    from few_shot_classifier import FewShotClassifier
    from few_shot_classifier.adapted_task import AdaptedLearner, adapt
    from few_shot_learning_system import FewShotLearner, build_learner, meta_gradients
    from meta_learning.adaptation import Adaptation
    from meta_learning.heads.base import Head
    from meta_learning.inner_loop.base import InnerLoopOptimizer
    from meta_learning.losses.base import TaskLoss
    from meta_learning.meta_gradients import MetaGradients
    from meta_learning.networks.adapters.base import Adapter
    from meta_learning.networks.norms.base import AffineNorm, MetaNorm
    from meta_learning.networks.passes import StatisticsChoice
    from meta_learning.outer_losses.base import OuterLoss
    from train_maml_system import main as train
    from utils.config import ExperimentConfig, load_config
    from utils.episodes.batches import EpisodeBatch, episodes_from_arrays
    from utils.errors import UserError
    from utils.paths import __version__
    from utils.prepare_dataset.forms.from_dataset import prepare_from_dataset
    from utils.registry import (
        Key,
        register_adapter_kind,
        register_backbone,
        register_batch_norm_statistics,
        register_dataset,
        register_head,
        register_inner_loop_optimizer,
        register_loss,
        register_norm_layer,
        register_outer_loss,
    )

__all__ = [
    "Adaptation",
    "AdaptedLearner",
    "Adapter",
    "AffineNorm",
    "EpisodeBatch",
    "ExperimentConfig",
    "FewShotClassifier",
    "FewShotLearner",
    "Head",
    "InnerLoopOptimizer",
    "Key",
    "MetaGradients",
    "MetaNorm",
    "OuterLoss",
    "StatisticsChoice",
    "TaskLoss",
    "UserError",
    "__version__",
    "adapt",
    "build_data",
    "build_learner",
    "episodes_from_arrays",
    "load_config",
    "meta_gradients",
    "prepare_from_dataset",
    "register_adapter_kind",
    "register_backbone",
    "register_batch_norm_statistics",
    "register_dataset",
    "register_head",
    "register_inner_loop_optimizer",
    "register_loss",
    "register_norm_layer",
    "register_outer_loss",
    "train",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name of the face where it is first asked for, as the block above says, which is not executed."""
        if name not in __all__:
            raise AttributeError(f"module {__name__} has no attribute {name}; it has {', '.join(__all__)}")
        for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if name == (alias.asname or alias.name):
                    globals()[name] = getattr(importlib.import_module(str(node.module)), alias.name)
        return globals()[name]


def __dir__() -> list[str]:
    """Return the face."""
    return __all__


def main() -> None:
    """Become the command that the first word of the command line names; without one, list them."""
    import runpy

    from utils.paths import COMMANDS, PARTS, __version__, module_of

    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        name = ""
    if name == "--version":
        print(__version__)
    elif name in COMMANDS or name in PARTS:
        sys.argv[:] = ["-m", *arguments]  # as `python -m` has it while it looks for a module
        runpy.run_module(module_of(name), run_name="__main__", alter_sys=True)
    else:
        sys.exit(f"{name}: no such command. There are: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
