"""Reading, checking and resolving an experiment config; its keys are in `utils.config.schema`.

A config is flat JSON. Order of precedence: defaults < JSON file < command line (`--key value`). Everything that can be
found wrong without touching data is found here, all in one message. No torch in this file: a typing error should
not cost the seconds that importing torch takes.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from utils.config.messages import COMMAND_LINE, expected, place_of, unknown_key
from utils.config.rules import OF_IMAGES_ALONE, contradictions, keys_without_effect, unsolved_inner_problem
from utils.config.schema import ExperimentConfig, fields, is_list_key, schema
from utils.config.value_types import as_list
from utils.errors import ConfigError
from utils.files.reading import parse_json, read_text
from utils.known_datasets import folder_named, known_by_folder
from utils.paths import configs, working_folder
from utils.registry import GIVEN_NETWORK
from utils.registry.choices import GIVEN, KINDS, choices
from utils.words import counted, printable

Problems = list[tuple[tuple[str, ...], str]]  # the keys it is about, and what is wrong


class OldKey(NamedTuple):
    """A key of the reference, or of an earlier release, that is not a key here."""

    renamed_to: str | None = None
    unset: Any = None  # value that means "not given" for a renamed key
    neutral: tuple[Any, ...] | None = None  # values that change nothing; None: no value does
    advice: str = ""


OLD_KEYS: dict[str, OldKey] = {
    "task_learning_rate": OldKey(renamed_to="init_inner_loop_learning_rate", unset=-1),
    "init_task_learning_rate": OldKey(renamed_to="init_inner_loop_learning_rate", unset=-1),
    "reset_stored_paths": OldKey(renamed_to="reset_stored_filepaths", unset=False),
    "evalute_on_test_set_only": OldKey(renamed_to="evaluate_on_test_set_only", unset=False),
    "num_of_gpus": OldKey(advice="the ids after the script's name decide"),
    "minimum_per_task_contribution": OldKey(
        neutral=(0.01,), advice="the floor of the multi-step weights is 0.03 / steps"
    ),
    "weight_decay": OldKey(renamed_to="meta_weight_decay"),
    "meta_opt_bn": OldKey(neutral=(False,), advice='use "enable_inner_loop_optimizable_bn_params"'),
    "cnn_num_blocks": OldKey(neutral=(4,), advice='use "num_stages"'),
    "architecture_name": OldKey(
        neutral=(None, ""), advice="the backbone keys (num_stages, cnn_num_filters, ...) decide"
    ),
    "load_from_npz_files": OldKey(neutral=(False,), advice="images are read from folders"),
    "train_in_stages": OldKey(
        neutral=(False,), advice='use "first_order_to_second_order_epoch" to train in two stages'
    ),
    "use_gdrive": OldKey(neutral=(False,), advice='put the archive into the folder "DATASET_DIR"'),
    "name_of_args_json_file": OldKey(neutral=(None, "", "None"), advice="give it on the command line"),
    "skip_non_finite_iterations": OldKey(
        neutral=(0,), advice='list the iterations to leave out in "skip_iterations"; the run that stops at one names it'
    ),
}
"""Keys of the reference that have another name or no effect here, and one of earlier releases. The reference's other
keys are in the schema and work.
"""


def load_config(
    json_path: Path | str | None, overrides: Mapping[str, Any] | None = None, *, place: str = "overrides"
) -> ExperimentConfig:
    """Read, check and resolve a config: defaults < JSON file < `overrides`.

        >>> from mamlkit import load_config
        >>> load_config(None, {"experiment_name": "mine", "num_classes_per_set": 3}).num_classes_per_set
        3

    Args:
        json_path: of a file, or the name of a config in experiment_config/; None: of no file.
        place: what errors call the overrides; COMMAND_LINE for those that were read from it.
    Raises:
        ConfigError: everything that is wrong, in one message that names the file, the keys, the values and the fixes.
    """
    values: dict[str, Any] = {}
    if json_path is not None:
        json_path = config_file(json_path)
        try:
            values = parse_json(read_text(json_path, may_be_pipe=True))
        except OSError as error:
            raise ConfigError(_unreadable(json_path, error)) from error
        except ValueError as error:
            raise ConfigError(f"{json_path}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{json_path}: a config is one JSON object, not a {type(values).__name__}")
        if values.get("continue_from_epoch") == "from_scratch":
            raise ConfigError(
                f'{json_path}: "continue_from_epoch": "from_scratch" would start anew at every rerun; '
                "give it on the command line: --continue_from_epoch from_scratch"
            )
        if "plugin" in values:
            raise ConfigError(
                f'{json_path}: "plugin" is for the command line alone (--plugin FILE.py): a config executes no file'
            )
    merged, source = _without_overridden(values, overrides or {}), str(json_path or place)
    for key in (key for key in KINDS if merged.get(key) == GIVEN):
        raise ConfigError(
            f'{place_of([key], merged, overrides or (), source, place)}: "{key}" {GIVEN} stands for an object that a '
            f"Python program hands over, as in FewShotClassifier({key}=...); give a name, or that of one of your own, "
            "with --plugin FILE.py on the command line (docs/own_method.md)"
        )
    is_handed_over = place != COMMAND_LINE and "backbone" in (overrides or {})
    if merged.get("backbone") == GIVEN_NETWORK and not is_handed_over:
        raise ConfigError(
            f'{place_of(["backbone"], merged, overrides or (), source, place)}: "backbone" {GIVEN_NETWORK} stands for '
            "a network that a Python program hands over, as in FewShotClassifier(network=...); give a name of "
            "docs/backbones.md, or that of a network of your own, with --plugin FILE.py on the command line"
        )
    config = check_config(merged, source, overridden=overrides or (), place=place)
    config._experiment_of_file = values.get("experiment_name")
    config._file = json_path
    return config


def config_file(name: Path | str) -> Path:
    """Return the file of a config: a path stays what it is, a name is one of experiment_config/.

    Raises:
        ConfigError: a word that is neither.
    """
    path, named = Path(name), configs()
    if path.exists() or len(path.parts) != 1:
        return path
    if path.suffix != ".json" and path.name not in named:
        near = difflib.get_close_matches(path.name, named, n=3) or ["quickstart"]
        raise ConfigError(
            f'there is no config "{path}", neither as a file nor as a name; did you mean {" or ".join(near)}?'
        )
    return named.get(path.name.removesuffix(".json"), path)


def _unreadable(path: Path, error: OSError) -> str:
    elsewhere = working_folder() / path
    if isinstance(error, FileNotFoundError) and not path.is_absolute() and elsewhere.is_file():
        return (
            f"{path}: not found in the current folder {Path.cwd()}, but in {working_folder()}; "
            f"give --name_of_args_json_file {elsewhere}, or start from that folder"
        )
    place = "" if path.is_absolute() else f" in {Path.cwd()}"
    return f"{path}: cannot be read{place} ({error.strerror}); give the path of a config JSON"


def current_name(key: str) -> str:
    """Return the key that an older spelling is read as; any other key itself."""
    old = OLD_KEYS.get(key)
    return (old.renamed_to or key) if old else key


def _without_overridden(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge; an override also displaces the JSON's other spellings of the same key, and another dataset the old
    one's folder.
    """
    overridden = {current_name(key) for key in overrides}
    name = values.get("dataset_name", fields()["dataset_name"].default)
    if "dataset_name" in overridden and values.get("dataset_path") in (name, _normalise_spelling("dataset_name", name)):
        overridden.add(
            "dataset_path"
        )  # it only repeats the name: kept, the old images would be trained on under the new name
    return {key: value for key, value in values.items() if current_name(key) not in overridden} | dict(overrides)


def check_config(
    values: Mapping[str, Any], source: str, overridden: Collection[str] = (), place: str = "overrides"
) -> ExperimentConfig:
    """Check and resolve a config given as a dict.

    Every line of an error begins with `source` (a file name), or with `place` for the keys in `overridden`.
    """
    problems: Problems = []
    notes: list[str] = []
    values = {key: value for key, value in values.items() if key != "run_id"}  # a run's config.json has it, of itself
    known = _translate_old_keys(dict(values), problems, notes)
    given = {*values, *known}
    overridden = {*overridden, *map(current_name, overridden)}
    for key in [key for key in known if key not in fields()]:
        problems.append(((key,), unknown_key(key, [*fields(), *OLD_KEYS])))
        del known[key]
    known = {key: _normalise_spelling(key, value) for key, value in known.items()}
    for key in [key for key, value in known.items() if not _is_text(value)]:
        seen = _shown(known.pop(key))
        problems.append(((key,), f'"{key}" is {seen}, which is no text in UTF-8; rename the file or folder it names'))
    invalid = _schema_problems(known, problems)
    sound = {key: value for key, value in known.items() if key not in invalid}
    config = _validated({"experiment_name": "unnamed"} | sound)
    config = _resolve(config, notes)
    for contradiction in contradictions():
        if not invalid.intersection(contradiction.keys) and (problem := contradiction.problem(config)):
            problems.append((contradiction.keys, problem))
    if problems:
        raise ConfigError(
            "\n".join(f"{place_of(keys, given, overridden, source, place)}: {text}" for keys, text in problems)
        )
    config._notes = tuple(notes)
    return config


def _shown(value: Any) -> str:
    """Return a value as JSON, cut where it fills a screen."""
    text = json.dumps(value)
    return text if len(text) < 1000 else f"{text[:1000]}..."


def _is_text(value: Any) -> bool:
    """Whether a value holds no byte of a file's name, and no half of a character, that is no text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _validated(values: Mapping[str, Any]) -> ExperimentConfig:
    # Through JSON text: strict mode then takes a JSON array for a tuple, but no "5" for 5 and no true for 1.
    return schema().model_validate_json(json.dumps(values), strict=True)


def _schema_problems(values: Mapping[str, Any], problems: Problems) -> set[str]:
    try:
        _validated(values)
    except ValidationError as error:
        seen: dict[str, list[str]] = {}
        out_of_range = {item["loc"][0] for item in error.errors() if item["type"] == "greater_than_equal"}
        for item in error.errors():
            key = str(item["loc"][0])
            if key in out_of_range and item["type"] in (
                "tuple_type",
                "int_type",
            ):  # of the right kind, alone or in a list
                continue
            seen.setdefault(key, []).append(expected(key, values.get(key), item, partial(_works, key)))
        for key, texts in seen.items():
            if key not in values:
                problems.append(((key,), f'"{key}" is missing; {meaning(key)}'))
                continue
            allowed = " or ".join(dict.fromkeys(texts))
            advice = meaning(key)
            if key in KINDS and isinstance(values[key], str):  # what all of its values mean would fill a screen
                near = difflib.get_close_matches(values[key], choices(key), 1)
                meant = f' Did you mean "{near[0]}"?' if near else ""
                said = " ".join((fields()[key].description or "").split())
                advice = f"{said}{meant} If a plugin brings it: forgot --plugin FILE.py?"
            problems.append(((key,), f'"{key}" is {_shown(values[key])}, but must be: {allowed}. {advice}'))
        return set(seen)
    return set()


def _works(key: str, value: Any) -> bool:
    """Return whether a key could have this value, whatever the others are."""
    try:
        config = _validated({"experiment_name": "unnamed"} | {key: value})
    except ValidationError:
        return False
    return not any(rule.problem(config) for rule in contradictions() if rule.keys == (key,))


def meaning(key: str) -> str:
    """Return what a key is for, in one line, and what each of its values means where they are registered."""
    text = " ".join((fields()[key].description or "").split())
    known = choices(key) if key in KINDS else {}
    of_values = [f"`{name}`: {one.meaning}" for name, one in known.items() if one.meaning]
    return f"{text} {'; '.join(of_values)}." if of_values else text


def _translate_old_keys(values: dict[str, Any], problems: Problems, notes: list[str]) -> dict[str, Any]:
    if values.get("init_inner_loop_learning_rate") == -1:
        del values["init_inner_loop_learning_rate"]
    padding = values.get("conv_padding")
    if type(padding) is int and padding in (0, 1):  # so many pixels, in configs of the reference until May 2019
        values["conv_padding"] = bool(padding)
        notes.append(f'"conv_padding" {padding} is read as {json.dumps(bool(padding))}')
    for key in [key for key in values if key in OLD_KEYS]:
        value, old = values.pop(key), OLD_KEYS[key]
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if old.renamed_to is None:
            if old.neutral is None or value in old.neutral:
                notes.append(f'"{key}" has no effect here{": " + old.advice if old.neutral is None else ""}')
            else:
                problems.append(((key,), f'"{key}" is {json.dumps(value)}, but has no effect here: {old.advice}'))
        elif value != old.unset:
            if old.renamed_to in values and values[old.renamed_to] != value:
                other = f'"{old.renamed_to}" is {json.dumps(values[old.renamed_to])}'
                problems.append(((key,), f'"{key}" is {json.dumps(value)}, but {other}; they mean the same, give one'))
            values[old.renamed_to] = value
            notes.append(f'"{key}" is read as "{old.renamed_to}"')
    return values


def _normalise_spelling(key: str, value: Any) -> Any:
    if key == "dataset_name" and isinstance(value, str):
        return folder_named(value)
    if key == "gpu_to_use":
        parts = value if isinstance(value, list) else str(value).split()
        return ",".join(str(part) for part in parts) or "auto"
    if key == "test_dataset_name" and isinstance(value, str | list):
        names = [value] if isinstance(value, str) else value
        return [folder_named(name) if isinstance(name, str) else name for name in names]
    if key in ("support_augmentation", "query_augmentation") and value in (None, "null"):
        return []
    if is_list_key(key) and isinstance(value, str | int | float) and "," not in str(value):
        return [value]
    if key == "continue_from_epoch" and isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return "latest"
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _resolve(config: ExperimentConfig, notes: list[str]) -> ExperimentConfig:
    """Replace `auto` and null by what they stand for, and say what was looked up."""
    dataset = known_by_folder(config.dataset_name)
    treatment = dataset.treatment | (OF_IMAGES_ALONE if config.inputs is not None else {})
    looked_up = {key: treatment[key] for key in dataset.treatment if getattr(config, key) == "auto"}
    if looked_up:
        known = "known" if dataset.name else "not a known one"
        notes.append(
            f"dataset {config.dataset_name} ({known}): "
            + ", ".join(f"{k} = {json.dumps(v)}" for k, v in looked_up.items())
        )
    if config.dataset_path and Path(config.dataset_path).name != config.dataset_name:
        folder = printable(config.dataset_path)
        notes.append(f'dataset {config.dataset_name} is read from the folder {folder} ("dataset_path")')
    split = config.train_val_test_split
    if not config.sets_are_pre_split and len(split) == 3 and abs(sum(split) - 1) > 1e-6:
        notes.append(f'"train_val_test_split" sums to {sum(split):.4f}; test gets the classes that train and val leave')
    if idle := keys_without_effect(config):
        listed = ", ".join(f'"{key}" {json.dumps(getattr(config, key))}' for key in idle)
        notes.append(f'{listed} without effect: "backbone" {config.backbone} has a form of its own')
    if unsolved := unsolved_inner_problem(config):
        notes.append(unsolved)
    steps, at_test = config.number_of_training_steps_per_iter, config.number_of_evaluation_steps_per_iter
    if at_test is not None and at_test < steps:
        notes.append(
            f"validation and test take {counted(at_test, 'inner step')} of the training's {steps} "
            '("number_of_evaluation_steps_per_iter")'
        )
    trained = config.batch_norm_statistics if isinstance(config.batch_norm_statistics, str) else "mixed"
    statistics = config.test_batch_norm_statistics or trained
    ways_and_shots = {key: as_list(getattr(config, key)) for key in ("num_classes_per_set", "num_samples_per_class")}
    return config.model_copy(
        update=looked_up
        | {key: values[0] for key, values in ways_and_shots.items() if len(values) == 1}
        | {
            "dataset_path": config.dataset_path or config.dataset_name,
            "evaluate_on_test_set_only": config.evaluate_on_test_set_only or bool(config.tested_elsewhere),
            "number_of_evaluation_steps_per_iter": config.number_of_training_steps_per_iter
            if config.number_of_evaluation_steps_per_iter is None
            else config.number_of_evaluation_steps_per_iter,
            "number_of_ensemble_models": config.number_of_ensemble_models or min(5, config.models_kept),
            "test_batch_norm_statistics": (statistics,)
            if isinstance(statistics, str)
            else tuple(dict.fromkeys(statistics)),
        }
    )
