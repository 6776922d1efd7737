"""Words for what is wrong with a key or a value. Knows no schema, so that the schema can import it."""

import contextlib
import difflib
import json
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

from utils.files.reading import parse_json

COMMAND_LINE = "command line"
"""What errors call the place of what was given there."""

USUAL_NAMES = {
    "learning_rate": "meta_learning_rate",
    "lr": "meta_learning_rate",
    "outer_learning_rate": "meta_learning_rate",
    "inner_learning_rate": "init_inner_loop_learning_rate",
    "inner_lr": "init_inner_loop_learning_rate",
    "epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "ways": "num_classes_per_set",
    "n_way": "num_classes_per_set",
    "shots": "num_samples_per_class",
    "k_shot": "num_samples_per_class",
    "queries": "num_target_samples",
    "gpu": "gpu_to_use",
    "gpus": "gpu_to_use",
    "device": "gpu_to_use",
    "name": "experiment_name",
    "dataset": "dataset_name",
    "config": "name_of_args_json_file",
    "inner_steps": "number_of_training_steps_per_iter",
    "meta_lr": "meta_learning_rate",
    "outer_lr": "meta_learning_rate",
    "inner_loop_lr": "init_inner_loop_learning_rate",
    "encoder_lr": "init_inner_loop_learning_rate",
    "step_size": "init_inner_loop_learning_rate",
    "classifier_lr": "init_head_inner_loop_learning_rate",
    "num_steps": "number_of_training_steps_per_iter",
    "inner_loop_steps": "number_of_training_steps_per_iter",
    "num_inner_loop": "number_of_training_steps_per_iter",
    "n_step": "number_of_training_steps_per_iter",
    "episode_classes": "num_classes_per_set",
    "num_ways": "num_classes_per_set",
    "num_shots": "num_samples_per_class",
    "n_shot": "num_samples_per_class",
    "support_samples": "num_samples_per_class",
    "query_samples": "num_target_samples",
    "num_shots_test": "num_target_samples",
    "n_query": "num_target_samples",
    "num_batch": "batch_size",
    "num_batches": "total_iter_per_epoch",
    "hidden_size": "cnn_num_filters",
    "first_order": "second_order",
    "efficient": "gradient_checkpointing",
    "n": "num_classes_per_set",
    "k": "num_samples_per_class",
    "k_spt": "num_samples_per_class",
    "k_qry": "num_target_samples",
    "test_shots": "num_target_samples",
    "task_num": "batch_size",
    "tasks_per_step": "batch_size",
    "meta_batch_size": "batch_size",
    "update_lr": "init_inner_loop_learning_rate",
    "fast_lr": "init_inner_loop_learning_rate",
    "adapt_lr": "init_inner_loop_learning_rate",
    "update_step": "number_of_training_steps_per_iter",
    "adaptation_steps": "number_of_training_steps_per_iter",
    "num_adaptation_steps": "number_of_training_steps_per_iter",
    "n_inner_iter": "number_of_training_steps_per_iter",
    "update_step_test": "number_of_evaluation_steps_per_iter",
    "adapt_steps": "number_of_training_steps_per_iter",
    "num_inner_loop_test": "number_of_evaluation_steps_per_iter",
    "imgsz": "image_height",
    "imgc": "image_channels",
    "num_iterations": "total_iter_per_epoch",
    "use_cuda": "gpu_to_use",
    "way": "num_classes_per_set",
    "n_ways": "num_classes_per_set",
    "shot": "num_samples_per_class",
    "n_shots": "num_samples_per_class",
    "train_shots": "num_samples_per_class",
    "query": "num_target_samples",
    "task_lr": "init_inner_loop_learning_rate",
    "num_inner_steps": "number_of_training_steps_per_iter",
    "n_inner_steps": "number_of_training_steps_per_iter",
    "num_updates": "number_of_training_steps_per_iter",
    "model": "backbone",
}
"""What others call a key, where the spelling alone does not lead to it; docs/move_over.md has some of them."""

PATTERNS = {
    "experiment_name": "1 to 200 characters out of letters a-z and A-Z, digits, spaces and _ + = , . ( ) -",
    "dataset_name": "1 to 200 characters out of letters a-z and A-Z, digits, spaces and _ + = , . -",
    "test_dataset_name": "names of datasets, each of 1 to 200 letters a-z and A-Z, digits, spaces and _ + = , . -",
    "tag": "at most 80 characters out of letters a-z and A-Z, digits and _ + = , . - (no spaces)",
    "gpu_to_use": "GPU ids separated by commas, such as 0 or 0,1, or all, cpu or auto",
}
"""The patterns of the schema in words."""


def unknown_key(key: str, known: Collection[str]) -> str:
    """Return the text that a key is unknown, and which one is meant."""
    nearest = key_meant(key, known)
    advice = (
        f'; did you mean "{nearest}"?'
        if nearest
        else "; docs/config_keys.md and --help have all keys; if a plugin brings it: forgot --plugin FILE.py?"
    )
    return f'unknown key "{key}"{advice}'


def key_meant(key: str, known: Collection[str]) -> str | None:
    """Return the known key that others call so, that is spelled like it or has it as a part; None: none is near."""
    spelled = key.replace("-", "_").lower()
    if (usual := USUAL_NAMES.get(spelled)) in known:
        return usual
    longer = sorted((name for name in known if f"_{spelled}_" in f"_{name}_"), key=len)
    return next(iter([*difflib.get_close_matches(spelled, known, 1, 0.7), *longer]), None)


def expected(key: str, value: Any, item: Mapping[str, Any], works: Callable[[Any], bool]) -> str:
    """Return what a value must be, from one of pydantic's errors (`ValidationError.errors()`).

    Args:
        works: whether the key could have a value; a list is suggested only if it does.
    """
    if item["type"] == "bool_type":
        return "true or false"
    if item["type"] == "string_pattern_mismatch" and key in PATTERNS:
        return PATTERNS[key]
    if item["type"] == "tuple_type":
        if isinstance(value, str) and "," in value:
            parts = [part.strip(" \"'") for part in value.strip("[]() ").split(",") if part.strip()]
            wanted = [json_or_text(part) for part in parts]
            if works(wanted):
                return f"a list, written {shlex.join(parts)} on the command line and {json.dumps(wanted)} in a file"
        return "a list"
    return item["msg"].removeprefix("Input should be ")


def json_or_text(text: str) -> Any:
    """Return a value as the command line has it: as JSON where it is JSON (`5`, `0.1`, `true`), else as text."""
    for read in (parse_json, float):  # float also takes ".5", which JSON does not
        with contextlib.suppress(ValueError):
            return read(text)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def place_of(
    keys: Collection[str], given: Collection[str], overridden: Collection[str], source: str, place: str
) -> str:
    """Return where a mistake was made: the file `source`, the overrides, called `place`, or the two together.

    Keys left at their default do not count.
    """
    origins = {key in overridden for key in keys if key in given}
    if not origins or origins == {False} or source == place:
        return source
    return place if origins == {True} else f"{source} and {place}"
