"""Whole experiments on images made up on the spot, in this process: a real learner, real episodes, a real run
folder.
"""

from pathlib import Path

import torch

from data import Drawing, FewShotData, ImageClasses, Preprocessing, build_data, build_other_data
from experiment_builder import build_experiment
from experiment_parts.evaluation.task_sets import TaskSet, build_other_task_sets
from experiment_parts.runs.opening import open_run_folder
from experiment_parts.runs.run_folder import RunFolder
from few_shot_learning_system import build_learner
from utils.config import check_config
from utils.data_sources.sinusoid import SinusoidData
from utils.ranks.group import ALONE

TINY = {
    "experiment_name": "tiny", "image_height": 10, "image_width": 10, "num_stages": 2, "cnn_num_filters": 3,
    "num_classes_per_set": 3, "num_target_samples": 2, "batch_size": 2, "number_of_training_steps_per_iter": 2,
    "total_epochs": 2, "total_iter_per_epoch": 5, "num_evaluation_tasks": 3, "log_every_iterations": 2,
    "max_models_to_save": 2, "class_rotation": False,
}  # fmt: skip
PLUS_PLUS = {
    "use_multi_step_loss_optimization": True, "multi_step_loss_num_epochs": 1, "per_step_bn_statistics": True,
    "learnable_per_layer_per_step_inner_loop_learning_rate": True,
}  # fmt: skip
SINUSOID = {
    "experiment_name": "tiny",
    "dataset_name": "sinusoid",
    "loss": "mean_squared_error",
    "backbone": "mlp",
    "mlp_hidden_sizes": [8, 6],
    "image_height": 1,
    "image_width": 1,
    "num_samples_per_class": 5,
    "num_target_samples": 4,
}
"""On top of TINY, or alone."""


def tiny_data(config) -> FewShotData | SinusoidData:
    """Nine classes of five random images, three per split; or waves."""
    if config.dataset_name == "sinusoid":
        return build_data(config, "cpu", getattr(torch, config.parameter_format))
    generator = torch.Generator().manual_seed(3)
    shape = (45, config.image_channels, config.image_height, config.image_width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    classes = {
        split: {f"{split}{c}": range(start + 5 * c, start + 5 * c + 5) for c in range(3)}
        for split, start in (("train", 0), ("val", 15), ("test", 30))
    }
    drawing = Drawing(
        config.training_shapes[0], dict.fromkeys(classes, 0), config.number_of_train_tasks, config.class_rotation,
        names_training_classes=config.pretraining_epochs > 0, validation_shape=config.validation_shape,
    )  # fmt: skip
    augmentation = {"support": config.support_augmentation, "query": config.query_augmentation}
    preprocessing = Preprocessing(augmentation=augmentation, dtype=getattr(torch, config.parameter_format))
    return FewShotData(ImageClasses(images, classes), drawing, preprocessing)


def other_task_sets(config) -> list[TaskSet]:
    """What a config with `test_dataset_name` or `task_list` is tested on, as the program makes it."""
    return build_other_task_sets(config, build_other_data(config, "cpu"))


def run_tiny(
    root: Path, stop=None, *, learner_changes=None, observers=(), group=ALONE, data=tiny_data, **changes
) -> Path:
    """One start of the experiment of TINY and `changes` below `root`, as the program makes it; returns its folder.

    Args:
        stop: signals that are asked between iterations, e.g. one of `interruptions`.
        learner_changes: called with the learner before the run.
        observers: those who watch it.
        group: where this process is one of several.
        data: from a config to what is learned.
    """
    torch.manual_seed(0)  # the state that a fresh process has
    config = check_config(TINY | changes, "test")
    run_folder = RunFolder(root / config.experiment_name)
    if group.is_main:
        run_folder = open_run_folder(
            root, config.experiment_name, config.to_json_dict(), keeps_config=bool(config.replay_iteration)
        )
    try:
        learner = build_learner(config, "cpu")
        if learner_changes is not None:
            learner_changes(learner)
        build_experiment(config, learner, data(config), observers, run_folder, "cpu", stop, group=group).run()
    finally:
        run_folder.unlock()
    return run_folder.path
