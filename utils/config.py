"""The schema of an experiment config: the only list of keys, with meaning, type, range and default.

A config is flat JSON. Order of precedence: defaults < JSON file < command line (`--key value`). Everything that can be
found wrong without touching data is found here, all in one message. No torch in this file: a typing error should
not cost the seconds that importing torch takes.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from utils.config_messages import expected, place_of, unknown_key
from utils.config_rules import CONTRADICTIONS
from utils.errors import ConfigError

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent

BatchNormStatistics = Literal["transductive", "running"]
Problems = list[tuple[tuple[str, ...], str]]  # the keys it is about, and what is wrong


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ExperimentSection(_Section):
    """The run as a whole."""

    experiment_name: str = Field(pattern=r"^[A-Za-z0-9_+=,.()\- ]{1,200}$")
    """Name of the run's folder under `EXPERIMENTS_DIR` (default `experiments/`)."""
    train_seed: int = Field(0, ge=0)
    """Seed of the training episodes and, unless `seed` is given, of the initial weights."""
    val_seed: int = Field(0, ge=0)
    """Seed of the validation and test episodes, which are drawn from separate streams."""
    seed: int | None = Field(None, ge=0)
    """Seed of the initial weights alone; null: `train_seed`."""
    total_epochs: int = Field(100, ge=1)
    """Training epochs; at the first start also the period of the cosine annealing of the meta learning rate."""
    total_iter_per_epoch: int = Field(500, ge=1)
    """Meta-updates in an epoch."""
    total_epochs_before_pause: int = Field(0, ge=0)
    """Epochs after which a process saves, pauses and leaves with exit code 0, to be started again; 0: never."""
    continue_from_epoch: int | Literal["latest", "from_scratch"] = "latest"
    """`latest` (and any negative number): resume; a number: resume from that epoch's checkpoint; `from_scratch`
    (command line only): rename the old run folder and start anew."""
    allow_config_change: tuple[str, ...] = ()
    """Keys that this start may change although the run has started with other values; the results are then of no one config."""
    evaluate_on_test_set_only: bool = False
    """Skip training and test the best models of the run so far."""
    load_checkpoint: str = ""
    """Epoch number or path of a checkpoint: the weights to test, or to start a new run from."""
    tag: str = Field("", pattern=r"^[A-Za-z0-9_+=,.\-]{0,80}$")
    """With `evaluate_on_test_set_only`: suffix of the result files, e.g. `test_summary_<tag>.csv`."""
    max_models_to_save: int = Field(5, ge=1)
    """Checkpoints kept by validation accuracy, beside the newest two."""
    number_of_ensemble_models: int | None = Field(None, ge=1)
    """Best models whose mean logits are tested; null: 5, at most `max_models_to_save`."""
    log_every_iterations: int = Field(10, ge=1)
    """Iterations between two readings of the training metrics from the device."""
    checkpoint_every_s: float = Field(60.0, ge=0.0)
    """Seconds between two saves inside an epoch (`unfinished.safetensors`); 0: at every reading of the metrics."""


    skip_non_finite_iterations: int = Field(0, ge=0)
    """Training iterations of the run whose loss or gradient may be not finite: their updates are skipped. One more stops
    the run (exit code 3)."""
    replay_iteration: int = Field(0, ge=0)
    """Compute this training iteration again from the newest checkpoint before it, show everything about it and leave; 0: no."""


class DataSection(_Section):
    """From files on disk to packed images."""

    dataset_name: str = Field("omniglot_dataset", pattern=r"^[A-Za-z0-9_+=,.\- ]{1,200}$")
    """Any name. `omniglot` means `omniglot_dataset`, `mini_imagenet` means `mini_imagenet_full_size`."""
    dataset_path: str = ""
    """Folder of the dataset under `DATASET_DIR` (default `datasets/`); empty: `dataset_name`."""
    image_height: int = Field(28, ge=1)
    """Height in pixels to which images are resized."""
    image_width: int = Field(28, ge=1)
    """Width in pixels to which images are resized."""
    image_channels: Literal[1, 3] = 1
    """1: grey, 3: RGB."""
    resize_filter: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = "auto"
    """Resampling filter of the resize; auto: nearest for Omniglot's 1-bit images, else bicubic."""
    normalisation: Literal["auto", "none", "imagenet"] = "auto"
    """none: pixel values 0 to 1; imagenet: minus ImageNet's mean, over its standard deviation; auto: imagenet for
    mini-ImageNet, else none."""
    class_rotation: bool | Literal["auto"] = "auto"
    """Rotate each class of a training episode by 0, 90, 180 or 270 degrees; auto: for Omniglot only."""
    sets_are_pre_split: bool = False
    """The folder holds train, val and test folders (any letter case) with class folders inside."""
    train_val_test_split: tuple[float, ...] = Field((0.70918052988, 0.03080714725, 0.2606284658), min_length=2, max_length=3)
    """Fractions of the classes for train and val; test gets what is left. Without effect when pre-split."""
    class_split_seed: int | None = Field(None, ge=0)
    """Seed of the split of the classes; null: the reference's split, the same for every seed."""
    indexes_of_folders_indicating_class: tuple[int, ...] = Field((-3, -2), min_length=1)
    """Parts of an image's path that make its class, counted from the file name backwards, e.g. [-3, -2]:
    alphabet/character."""
    labels_as_int: bool = False
    """Class folder names are integers and sort as such."""
    reverse_channels: bool = False
    """Turn RGB into BGR."""
    load_into_memory: bool = True
    """Read the packed images into memory (a GPU's, where they fit) instead of mapping the file."""
    num_dataprovider_workers: int = Field(4, ge=0)
    """Processes that decode images into the packed file, once; 0: the process itself."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Image files that cannot be decoded: stop with a list of all of them, or leave them out and say how many."""
    reset_stored_filepaths: bool = False
    """Decode the images again even when the packed file seems up to date."""


class EpisodeSection(_Section):
    """What a task is made of."""

    batch_size: int = Field(8, ge=1)
    """Tasks in a meta-batch, over all devices."""
    samples_per_iter: int = Field(1, ge=1)
    """Multiplies `batch_size`."""
    num_classes_per_set: int = Field(5, ge=2)
    """N, the ways: classes in a task."""
    num_samples_per_class: int = Field(1, ge=1)
    """K, the shots: support images per class."""
    num_target_samples: int = Field(15, ge=1)
    """Q: query images per class."""


class BackboneSection(_Section):
    """The network."""

    num_stages: int = Field(4, ge=1)
    """Stages, each ending in a 2x2 max-pooling or a stride of 2."""
    cnn_blocks_per_stage: int = Field(1, ge=1)
    """Convolution, norm and leaky ReLU blocks in a stage."""
    cnn_num_filters: int = Field(64, ge=1)
    """Filters of every convolution."""
    conv_padding: bool = True
    """Pad the 3x3 convolutions by one pixel."""
    max_pooling: bool = True
    """true: max-pooling, then flatten; false: strided convolutions, then global average pooling."""
    norm_layer: Literal["batch_norm", "layer_norm"] = "batch_norm"
    """Norm after each convolution."""
    dropout_rate_value: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation after each block while meta-training; masks follow from the episode."""
    per_step_bn_statistics: bool = False
    """One row of batch-norm weights, biases and running statistics per inner step (MAML++)."""
    learnable_bn_gamma: bool = True
    """Meta-learn the norm weights."""
    learnable_bn_beta: bool = True
    """Meta-learn the norm biases."""
    batch_norm_statistics: BatchNormStatistics = "transductive"
    """Statistics that normalise: `transductive`, those of the set that is classified; `running`, per-step running
    statistics at evaluation."""
    batch_norm_momentum: float = Field(0.1, gt=0.0, le=1.0)
    """Share of the newest iteration in the running statistics."""
    learnable_batch_norm_momentum: bool = False
    """Meta-learn that share, one per norm layer; needs `batch_norm_statistics` running."""


class InnerLoopSection(_Section):
    """Adaptation to one task."""

    number_of_training_steps_per_iter: int = Field(5, ge=1)
    """S, updates on the support set while meta-training."""
    number_of_evaluation_steps_per_iter: int | None = Field(None, ge=0)
    """Updates at validation and test; null: as in training. Steps beyond S reuse the last step's rates and norm rows."""
    init_inner_loop_learning_rate: float = Field(0.1, gt=0.0)
    """The inner learning rate, or its start where it is learned."""
    learnable_per_layer_per_step_inner_loop_learning_rate: bool = False
    """LSLR: meta-learn one inner learning rate per parameter tensor and step (MAML++)."""
    enable_inner_loop_optimizable_bn_params: bool = False
    """Adapt norm weights and biases in the inner loop; they then have one row, not one per step."""
    second_order: bool = True
    """Differentiate through the inner gradients."""
    first_order_to_second_order_epoch: int = Field(-1, ge=-1)
    """k: second order from epoch > k on, counted from 0 (derivative-order annealing); -1: always."""


class OuterLoopSection(_Section):
    """The meta-update."""

    meta_learning_rate: float = Field(0.001, gt=0.0)
    """Adam's learning rate at epoch 0."""
    min_learning_rate: float = Field(0.00001, ge=0.0)
    """Where cosine annealing ends; equal to `meta_learning_rate`: no annealing."""
    restart_schedule: bool = False
    """A run that is continued with another `total_epochs` anneals over those from now on, not over its first ones."""
    gradient_clamp: float | Literal["auto"] = "auto"
    """Bound c: each element of the network's meta-gradient is clamped to [-c, c]; 0: off; auto: 10 for mini-ImageNet."""
    use_multi_step_loss_optimization: bool = False
    """Weigh the query losses after every inner step (MAML++), instead of the last one alone."""
    multi_step_loss_num_epochs: int = Field(10, ge=1)
    """Epochs over which those weights move to the last step; after them the last step alone counts."""


class EvaluationSection(_Section):
    """Validation and test."""

    num_evaluation_tasks: int = Field(600, ge=1)
    """Tasks of a validation and of the test; exact."""
    validate_every_epochs: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    test_batch_norm_statistics: BatchNormStatistics | tuple[BatchNormStatistics, ...] | None = None
    """Batch-norm statistics of the test, or a list of them; null: `batch_norm_statistics`."""
    test_curve: bool = False
    """After training, also test every kept epoch into `logs/test_curve.csv`; never used to select."""


class MachineSection(_Section):
    """How it is computed."""

    gpu_to_use: str = Field("auto", pattern=r"^(auto|all|cpu|\d+(,\d+)*)$")
    """GPU ids separated by commas, `all`, `cpu`, or auto: the first GPU there is, else the CPU."""
    precision: Literal["float32", "float64"] = "float32"
    """Number format; float64 is for checks."""
    task_chunk_size: int | Literal["auto"] = "auto"
    """Tasks computed at once; the others of the meta-batch follow. auto: by device and image size."""
    deterministic: bool = False
    """On CUDA: only operations that give the same bits every time."""


class ExperimentConfig(
    ExperimentSection, DataSection, EpisodeSection, BackboneSection, InnerLoopSection, OuterLoopSection,
    EvaluationSection, MachineSection,
):  # fmt: skip
    """A whole config, flat as its JSON. Made by `load_config` or `check_config`, which also resolve `auto` and null."""

    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines worth telling the user once: what was looked up, renamed or has no effect."""
        return self._notes

    @property
    def tasks_per_meta_batch(self) -> int:
        """B, tasks of one meta-update."""
        return self.batch_size * self.samples_per_iter

    @property
    def initialisation_seed(self) -> int:
        """Seed of the initial weights."""
        return self.train_seed if self.seed is None else self.seed

    def to_json_dict(self) -> dict[str, Any]:
        """Every key with its resolved value; valid input again, without what is meant for one start only."""
        values = json.loads(self.model_dump_json()) | ONE_START_ONLY
        return {key: values[key] for section in SECTIONS for key in section.model_fields}


SECTIONS: tuple[type[_Section], ...] = (
    ExperimentSection, DataSection, EpisodeSection, BackboneSection, InnerLoopSection, OuterLoopSection,
    EvaluationSection, MachineSection,
)  # fmt: skip

ONE_START_ONLY: dict[str, Any] = {
    "continue_from_epoch": "latest", "replay_iteration": 0, "allow_config_change": [], "restart_schedule": False,
}  # fmt: skip
"""Values, in what is stored, of keys that say what one start is to do."""

DATASET_ALIASES = {"omniglot": "omniglot_dataset", "mini_imagenet": "mini_imagenet_full_size"}
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "omniglot_dataset": {"class_rotation": True, "normalisation": "none", "gradient_clamp": 0.0, "resize_filter": "nearest"},
    "mini_imagenet_full_size": {"class_rotation": False, "normalisation": "imagenet", "gradient_clamp": 10.0, "resize_filter": "bicubic"},
}  # fmt: skip
OTHER_DATASETS = {"class_rotation": False, "normalisation": "none", "gradient_clamp": 0.0, "resize_filter": "bicubic"}


class OldKey(NamedTuple):
    """A key of the reference that is not a key here."""

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
    "minimum_per_task_contribution": OldKey(neutral=(0.01,), advice="the floor of the multi-step weights is 0.03 / steps"),
    "weight_decay": OldKey(neutral=(0.0,), advice="the meta-update is Adam without weight decay; remove the key"),
    "meta_opt_bn": OldKey(neutral=(False,), advice='use "enable_inner_loop_optimizable_bn_params"'),
    "cnn_num_blocks": OldKey(neutral=(4,), advice='use "num_stages"'),
    "architecture_name": OldKey(neutral=(None, ""), advice="the backbone keys (num_stages, cnn_num_filters, ...) decide"),
    "load_from_npz_files": OldKey(neutral=(False,), advice="images are read from folders"),
    "train_in_stages": OldKey(neutral=(False,), advice='use "first_order_to_second_order_epoch" to train in two stages'),
    "use_gdrive": OldKey(neutral=(False,), advice='put the archive into the folder "DATASET_DIR"'),
    "name_of_args_json_file": OldKey(neutral=(None, "", "None"), advice="give it on the command line"),
}
"""Keys of the reference that have another name or no effect here. Its other keys are in the schema and work."""


def dataset_root() -> Path:
    """Folder of the datasets: environment variable DATASET_DIR, else `datasets/` of this checkout."""
    return Path(os.environ.get("DATASET_DIR") or REPOSITORY_ROOT / "datasets").expanduser()


def experiments_root() -> Path:
    """Folder of the runs: environment variable EXPERIMENTS_DIR, else `experiments/` of this checkout."""
    return Path(os.environ.get("EXPERIMENTS_DIR") or REPOSITORY_ROOT / "experiments").expanduser()


def load_config(json_path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read, check and resolve a config: defaults < JSON file < `overrides` (the command line's).

    Raises:
        ConfigError: everything that is wrong, in one message that names the file, the keys, the values and the fixes.
    """
    values: dict[str, Any] = {}
    if json_path is not None:
        try:
            values = json.loads(Path(json_path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(_unreadable(Path(json_path), error)) from error
        except ValueError as error:
            raise ConfigError(f"{json_path}: not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{json_path}: a config is one JSON object, not a {type(values).__name__}")
        if values.get("continue_from_epoch") == "from_scratch":
            raise ConfigError(
                f'{json_path}: "continue_from_epoch": "from_scratch" would start anew at every rerun; '
                "give it on the command line: --continue_from_epoch from_scratch"
            )
    merged = _without_overridden(values, overrides or {})
    return check_config(merged, str(json_path or "command line"), overridden=overrides or ())


def _unreadable(path: Path, error: OSError) -> str:
    elsewhere = REPOSITORY_ROOT / path
    if isinstance(error, FileNotFoundError) and not path.is_absolute() and elsewhere.is_file():
        return (
            f"{path}: not found in the current folder {Path.cwd()}, but in {REPOSITORY_ROOT}; "
            f"give --name_of_args_json_file {elsewhere}, or start from that folder"
        )
    place = "" if path.is_absolute() else f" in {Path.cwd()}"
    return f"{path}: cannot be read{place} ({error.strerror}); give the path of a config JSON"


def current_name(key: str) -> str:
    """The key that an older spelling is read as; any other key itself."""
    old = OLD_KEYS.get(key)
    return (old.renamed_to or key) if old else key


def _without_overridden(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge; an override also displaces the JSON's other spellings of the same key."""
    overridden = {current_name(key) for key in overrides}
    return {key: value for key, value in values.items() if current_name(key) not in overridden} | dict(overrides)


def check_config(values: Mapping[str, Any], source: str, overridden: Collection[str] = ()) -> ExperimentConfig:
    """Check and resolve a config given as a dict.

    Every line of an error begins with `source` (a file name), or with "command line" for the keys in `overridden`.
    """
    problems: Problems = []
    notes: list[str] = []
    known = _translate_old_keys(dict(values), problems, notes)
    given = {*values, *known}
    overridden = {*overridden, *map(current_name, overridden)}
    for key in [key for key in known if key not in ExperimentConfig.model_fields]:
        problems.append(((key,), unknown_key(key, [*ExperimentConfig.model_fields, *OLD_KEYS])))
        del known[key]
    known = {key: _normalise_spelling(key, value) for key, value in known.items()}
    invalid = _schema_problems(known, problems)
    sound = {key: value for key, value in known.items() if key not in invalid}
    config = _validated({"experiment_name": "unnamed"} | sound)
    config = _resolve(config, notes)
    for contradiction in CONTRADICTIONS:
        if not invalid.intersection(contradiction.keys) and (problem := contradiction.problem(config)):
            problems.append((contradiction.keys, problem))
    if problems:
        raise ConfigError("\n".join(f"{place_of(keys, given, overridden, source)}: {text}" for keys, text in problems))
    config._notes = tuple(notes)
    return config


def _validated(values: Mapping[str, Any]) -> ExperimentConfig:
    # Through JSON text: strict mode then takes a JSON array for a tuple, but no "5" for 5 and no true for 1.
    return ExperimentConfig.model_validate_json(json.dumps(values), strict=True)


def _schema_problems(values: Mapping[str, Any], problems: Problems) -> set[str]:
    try:
        _validated(values)
    except ValidationError as error:
        seen: dict[str, list[str]] = {}
        for item in error.errors():
            key = str(item["loc"][0])
            seen.setdefault(key, []).append(expected(key, values.get(key), item))
        for key, texts in seen.items():
            if key not in values:
                problems.append(((key,), f'"{key}" is missing; {meaning(key)}'))
                continue
            allowed = " or ".join(dict.fromkeys(texts))
            problems.append(((key,), f'"{key}" is {json.dumps(values[key])}, but must be: {allowed}. {meaning(key)}'))
        return set(seen)
    return set()


def meaning(key: str) -> str:
    """What a key is for, in one line."""
    return " ".join((ExperimentConfig.model_fields[key].description or "").split())


def _translate_old_keys(values: dict[str, Any], problems: Problems, notes: list[str]) -> dict[str, Any]:
    if values.get("init_inner_loop_learning_rate") == -1:
        del values["init_inner_loop_learning_rate"]
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
        return DATASET_ALIASES.get(value, value)
    if key == "gpu_to_use":
        parts = value if isinstance(value, list) else str(value).split()
        return ",".join(str(part) for part in parts) or "auto"
    if key == "allow_config_change" and isinstance(value, str):
        return [value]
    if key == "continue_from_epoch" and isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return "latest"
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _resolve(config: ExperimentConfig, notes: list[str]) -> ExperimentConfig:
    """Replace `auto` and null by what they stand for, and say what was looked up."""
    table = DATASET_DEFAULTS.get(config.dataset_name, OTHER_DATASETS)
    looked_up = {key: value for key, value in table.items() if getattr(config, key) == "auto"}
    if looked_up:
        known = "known" if config.dataset_name in DATASET_DEFAULTS else "no entry of its own"
        notes.append(f"dataset {config.dataset_name} ({known}): " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in looked_up.items()))
    split = config.train_val_test_split
    if not config.sets_are_pre_split and len(split) == 3 and abs(sum(split) - 1) > 1e-6:
        notes.append(f'"train_val_test_split" sums to {sum(split):.4f}; test gets the classes that train and val leave')
    statistics = config.test_batch_norm_statistics or config.batch_norm_statistics
    return config.model_copy(
        update=looked_up
        | {
            "dataset_path": config.dataset_path or config.dataset_name,
            "number_of_evaluation_steps_per_iter": config.number_of_training_steps_per_iter
            if config.number_of_evaluation_steps_per_iter is None
            else config.number_of_evaluation_steps_per_iter,
            "number_of_ensemble_models": config.number_of_ensemble_models or min(5, config.max_models_to_save),
            "test_batch_norm_statistics": (statistics,) if isinstance(statistics, str) else tuple(dict.fromkeys(statistics)),
        }
    )
