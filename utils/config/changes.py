"""Which keys of an experiment may change between two starts, as one table."""

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from utils.errors import ConfigError
from utils.known_datasets import OMNIGLOT_SPLIT

FREE_KEYS = frozenset(
    {  # how long, where and how visibly a run goes; what is done with its models afterwards
        "experiment_name",
        "continue_from_epoch",
        "dry_run",
        "total_epochs",
        "total_epochs_before_pause",
        "early_stopping_patience",
        "gpu_to_use",
        "dataset_path",
        "num_dataprovider_workers",
        "load_into_memory",
        "reset_stored_filepaths",
        "trackers",
        "track_grad_norm",
        "wandb_project",
        "wandb_mode",
        "log_every_iterations",
        "diagnostics_every_epochs",
        "report_every_s",
        "checkpoint_every_s",
        "max_models_to_save",
        "skip_iterations",
        "replay_iteration",
        "allow_config_change",
        "restart_schedule",
        "number_of_ensemble_models",
        "test_batch_norm_statistics",
        "test_dataset_name",
        "task_list",
        "test_num_classes_per_set",
        "test_num_samples_per_class",
        "test_num_target_samples",
        "test_after_training",
        "evaluate_on_test_set_only",
        "test_curve",
        "test_baselines",
        "tag",
        "load_checkpoint",
        "task_chunk_size",
        "deterministic",
        "precision_error_limit",
        "use_cuda_graphs",
    }
)

DATA = "data"
"""No key, but what allow_config_change may name beside them: the images and classes that a run was started with."""

EVALUATION_KEYS = frozenset(
    {  # which tasks a model is tested on and how: free when nothing is trained or validated any more
        "num_evaluation_tasks", "number_of_evaluation_steps_per_iter", "validate_every_epochs", "val_seed",
        "val_num_classes_per_set",
        "num_samples_per_class", "num_target_samples", "batch_size", "samples_per_iter",
    }
)  # fmt: skip

TRAINING_KEYS = frozenset(
    {  # what a test does not use, beside the keys above: free when nothing is trained any more
        "total_iter_per_epoch", "train_seed", "seed", "meta_learning_rate", "min_learning_rate", "gradient_clamp",
        "gradient_clip_norm", "meta_optimizer", "meta_momentum", "meta_weight_decay", "meta_learning_rate_schedule",
        "meta_learning_rate_milestones", "meta_learning_rate_gamma",
        "use_multi_step_loss_optimization", "multi_step_loss_num_epochs", "second_order",
        "first_order_to_second_order_epoch", "dropout_rate_value", "class_rotation",
        "number_of_train_tasks", "pretraining_epochs", "support_augmentation", "query_augmentation",
    }
)  # fmt: skip
"""Every other key changes the model, the episodes or the training, and is refused on a run that has started."""


def check_config_changes(
    stored: Mapping[str, Any], new: Mapping[str, Any], *, only_testing: bool, experiment: str,
    allowed_by_user: Collection[str] = (),
) -> list[str]:  # fmt: skip
    """Return the names of the changed keys; a key that only one of the two configs knows is left out.

    Args:
        allowed_by_user: the key allow_config_change.
    Raises:
        ConfigError: a key changed that a started run cannot change; names all of them, both values and the fix.
    """
    unknown = [key for key in allowed_by_user if key not in new and key != DATA]
    if unknown:
        raise ConfigError(f"allow_config_change: there is no key {', '.join(unknown)}.")
    allowed = FREE_KEYS.union(allowed_by_user, EVALUATION_KEYS | TRAINING_KEYS if only_testing else ())
    if stored.get("sets_are_pre_split") and new.get("sets_are_pre_split"):
        allowed |= {"train_val_test_split", "class_split_seed"}  # without effect
    if new.get("train_val_test_split") == "auto" and stored.get("train_val_test_split") == list(OMNIGLOT_SPLIT):
        allowed |= {"train_val_test_split"}  # the default before: where a run could start with it, auto is the same
    changed = [key for key in new if key in stored and stored[key] != new[key]]
    refused = [key for key in changed if key not in allowed]
    if refused:
        lines = [f"  {key}: {_shown(repr(stored[key]))} before, {_shown(repr(new[key]))} now" for key in refused]
        advice = (
            f"{_how_to_go_on({key: stored[key] for key in refused})} Else give the changed experiment its own "
            "--experiment_name, or start over with --continue_from_epoch from_scratch (the old folder is renamed, not "
            f"deleted). To change it all the same: --allow_config_change {' '.join(refused)}."
        )
        if not only_testing and all(key in EVALUATION_KEYS for key in refused):
            advice += " To test the trained models with these values: --evaluate_on_test_set_only true --tag NAME."
        raise ConfigError(
            f'experiment "{experiment}" has started with other values, which a started run cannot change:\n'
            + "\n".join(lines)
            + f"\n{advice}"
        )
    return changed


def _shown(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}..."  # a stored value may be anything


def _how_to_go_on(before: Mapping[str, Any]) -> str:
    same = " ".join(f"--{key} {_shown(as_argument(value))}" for key, value in before.items() if key != "plugin_sha256")
    steps = [f"give the same overrides as at its first start: {same}."] if same else []
    if "plugin_sha256" in before:
        names = " ".join(entry.partition(":")[0] for entry in before["plugin_sha256"])
        steps.append(f"give --plugin {names}, unchanged." if names else "give no --plugin.")
    return f"To go on with the run, {' And '.join(steps)}"


def as_argument(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple) and len(value) > 1:
        return " ".join(as_argument(part) for part in value)
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
