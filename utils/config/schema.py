"""The sections of a config: every key with its meaning, type, range and default. The only list of keys.

`utils.config` reads, checks and resolves a config; impossible combinations are in `utils.config.rules`.
"""

import dataclasses
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from utils.config.value_types import (
    AtLeastOne,
    AtLeastTwo,
    AugmentationName,
    DatasetName,
    ReadWith,
    as_list,
    name_of,
)
from utils.episodes.drawing import EpisodeShape, combinations
from utils.episodes.inputs import Inputs
from utils.episodes.randomness import LARGEST_SEED
from utils.errors import ConfigError
from utils.registry import BUILT_IN_BACKBONES
from utils.registry import choices as registered

InnerLoopOptimizerName = name_of("inner_loop_optimizer")
HeadName = name_of("head")
LossName = name_of("loss")
OuterLossName = name_of("outer_loss")
NormLayerName = name_of("norm_layer")
AdapterKindName = name_of("adapter_kind", "none")
BatchNormStatistics = name_of("batch_norm_statistics")
TestBatchNormStatistics = name_of("batch_norm_statistics", "mixed")
OF_ADAPTERS = ReadWith("adapter_kind", lambda kind: kind != "none", refused=True)
OF_USERS_NETWORKS = ReadWith("backbone", lambda name: name not in BUILT_IN_BACKBONES, refused=True)
OF_REGRESSION = ReadWith(
    "loss", lambda name: registered.fact("loss", name, "is_regression", name not in registered.choices("loss"))
)
OF_OWN_SPLIT = ReadWith("sets_are_pre_split", lambda is_split: not is_split)
OF_STEPS = ReadWith("meta_learning_rate_schedule", lambda name: name == "step")


def _known_inputs(given: tuple[int | str, ...]) -> tuple[int | str, ...]:
    try:
        Inputs.of(given)
    except ValueError as error:
        raise PydanticCustomError("inputs", "Input should be {allowed}", {"allowed": str(error)}) from error
    return given


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ExperimentSection(_Section):
    """The run as a whole."""

    experiment_name: str = Field(pattern=r"^[A-Za-z0-9_+=,.()\- ]{1,200}$")
    """Name of the run's folder under `EXPERIMENTS_DIR` (default `experiments/`)."""
    train_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of the training episodes and, unless `seed` is given, of the initial weights."""
    val_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of the validation and test episodes, which are drawn from separate streams."""
    seed: int | None = Field(None, ge=0, le=2**64 - 1)
    """Seed of the initial weights alone; null: `train_seed`."""
    total_epochs: int = Field(100, ge=1)
    """Training epochs; at the first start also the period of the schedule of the meta learning rate."""
    pretraining_epochs: int = Field(0, ge=0)
    """The first so many of `total_epochs` are plain classification over all training classes, validated by nearest
    class centroids; its head is dropped, and the episodes begin with the body that it leaves. What counts epochs of
    the episodes, `multi_step_loss_num_epochs` and `first_order_to_second_order_epoch`, counts from there. As many as
    `total_epochs`, or more: nothing else, for a `head` that each episode makes, with which it is validated then."""
    total_iter_per_epoch: int = Field(500, ge=1)
    """Meta-updates in an epoch."""
    total_epochs_before_pause: int = Field(0, ge=0)
    """Epochs after which a process saves, pauses and leaves with exit code 0, to be started again; 0: never."""
    early_stopping_patience: int = Field(0, ge=0)
    """Stop training at a validation that comes this many epochs or more after the best one, and test; 0: never."""
    continue_from_epoch: int | Literal["latest", "from_scratch"] = "latest"
    """`latest` (and any negative number): resume; a number: resume from that epoch's checkpoint; `from_scratch`
    (command line only): rename the old run folder and start anew."""
    allow_config_change: tuple[str, ...] = ()
    """Keys that this start may change although the run has started with other values; the results are then of no one
    config.
    """
    dry_run: bool = False
    """Only see whether it works: one training iteration, one validation task and one test task in a temporary
    folder, which is removed."""
    test_after_training: bool = True
    """false: the run ends with its last validation and leaves the test set alone, as the trials of a sweep do; the
    same command with true tests it."""
    evaluate_on_test_set_only: bool = False
    """Skip training and test the best models of the run so far."""
    load_checkpoint: str = ""
    """Epoch number or path of a checkpoint: the weights to test, or to start a new run from."""
    tag: Annotated[str, ReadWith("evaluate_on_test_set_only", bool, refused=True)] = Field(
        "", pattern=r"^[A-Za-z0-9_+=,.\-]{0,80}$"
    )
    """With `evaluate_on_test_set_only`: suffix of the result files, e.g. `test_summary_<tag>.csv`."""
    plugin_sha256: tuple[str, ...] = ()
    """Written by the program: name and digest of each file given with `--plugin`.

    A run goes on with the same ones alone.
    """
    max_models_to_save: AtLeastOne | Literal["all"] = 5
    """Checkpoints kept by validation accuracy, beside the newest two; `all`: that of every epoch, for `test_curve`."""
    number_of_ensemble_models: int | None = Field(None, ge=1)
    """Best models whose mean logits are tested; null: 5, at most `max_models_to_save`."""
    log_every_iterations: int = Field(10, ge=1)
    """Iterations between two readings of the training metrics from the device."""
    diagnostics_every_epochs: int = Field(1, ge=0)
    """Epochs between two looks at gradients, updates and a few validation episodes for the report; 0: never."""
    report_every_s: float = Field(60.0, ge=0.0)
    """Least seconds between two versions of `visual_outputs/report.html` while the run goes on; 0: no report."""
    checkpoint_every_s: float = Field(60.0, ge=0.0)
    """Seconds between two saves inside an epoch (`unfinished.safetensors`); 0: at every reading of the metrics."""
    skip_iterations: tuple[AtLeastOne, ...] = ()
    """Training iterations, counted from 1, that are left out, as if their episodes had never been drawn. A run that
    stops at a loss or gradient that is not finite (exit code 3) names the number: a rerun would come to it again."""
    replay_iteration: int = Field(0, ge=0)
    """Compute this training iteration again from the newest checkpoint before it, show everything about it and
    leave; 0: no.
    """


class DataSection(_Section):
    """From files on disk to packed images."""

    dataset_name: DatasetName = "omniglot_dataset"
    """Any name. `omniglot` means `omniglot_dataset`, `mini_imagenet` means `mini_imagenet_full_size`."""
    dataset_path: str = ""
    """Folder of the dataset under `DATASET_DIR` (default `datasets/`); empty: `dataset_name`."""
    image_height: int = Field(28, ge=1)
    """Height in pixels to which images are resized."""
    image_width: int = Field(28, ge=1)
    """Width in pixels to which images are resized."""
    image_channels: Literal[1, 3] = 1
    """1: grey, 3: RGB."""
    input_shape: Annotated[tuple[AtLeastOne | str, ...], AfterValidator(_known_inputs)] = ()
    """What an example is where it is no image (docs/any_modality.md): the sides of one array, as [16] or [6, 128], or
    its parts, as ["ids:int:24", "mask:bool:24"]; empty: an image of the three keys above."""
    resize_filter: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = "auto"
    """Resampling filter of the resize; auto: nearest for Omniglot's 1-bit images, else bicubic."""
    normalisation: Literal[
        "auto", "none", "imagenet", "mini_imagenet", "tiered_imagenet", "cifar100", "inaturalist"
    ] = "auto"
    """none: pixel values 0 to 1; a dataset's name: minus its mean, over its standard deviation (CUB is commonly
    normalised with imagenet's); auto: imagenet for mini-ImageNet, else none."""
    class_rotation: bool | Literal["auto"] = "auto"
    """Rotate each class of a training episode by 0, 90, 180 or 270 degrees; auto: for Omniglot only."""
    sets_are_pre_split: bool = False
    """The folder holds train, val and test folders (any letter case) with class folders inside."""
    train_val_test_split: Annotated[
        Annotated[tuple[float, ...], Field(min_length=2, max_length=3)] | Literal["auto"],
        OF_OWN_SPLIT,
    ] = "auto"
    """Fractions of the classes for train and val; test gets what is left. auto: Omniglot's own, for other datasets too
    if they leave train and val the ways of the training; else about 64 % and 16 %, so that each split has these ways.
    The log names them. Without effect when pre-split."""
    class_split_seed: Annotated[int | None, OF_OWN_SPLIT] = Field(None, ge=0, le=2**32 - 1)
    """Seed of the split of the classes; null: the reference's split, the same for every seed."""
    indexes_of_folders_indicating_class: tuple[int, ...] = Field((-3, -2), min_length=1)
    """Parts of an image's path that make its class, counted from the file name backwards, e.g. [-3, -2]:
    alphabet/character."""
    labels_as_int: bool = False
    """Class folder names are integers and sort as such."""
    reverse_channels: bool = False
    """Turn RGB into BGR."""
    load_into_memory: bool = True
    """Read the packed images into memory: a GPU's, where they fit, else the machine's, up to 1 GiB. Larger ones, and
    all with false, are mapped from the file, and a thread gathers the next meta-batches meanwhile."""
    num_dataprovider_workers: int = Field(4, ge=0)
    """Processes that decode images into the packed file, once; 0: the process itself."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What is wrong with a dataset's images (files that cannot be decoded, the same image in two splits, many of one
    colour, folders inside of classes, other numbers than a known dataset has): stop with a list of all of it, or leave
    out what can be left out, take the rest as it is, and say what."""
    reset_stored_filepaths: bool = False
    """Decode the images again even when the packed file seems up to date."""


class EpisodeSection(_Section):
    """What a task is made of."""

    batch_size: int = Field(8, ge=1)
    """Tasks in a meta-batch, over all devices."""
    samples_per_iter: int = Field(1, ge=1)
    """Multiplies `batch_size`."""
    num_classes_per_set: AtLeastTwo | tuple[AtLeastTwo, ...] = 5
    """N, the ways: classes in a task. A list: each meta-batch of the training draws one of these ways and one of the
    shots; validation has the first."""
    num_samples_per_class: AtLeastOne | tuple[AtLeastOne, ...] = 1
    """K, the shots: support images per class; a list as for the ways."""
    num_target_samples: int = Field(15, ge=1)
    """Q: query images per class."""
    support_augmentation: tuple[AugmentationName, ...] = ()
    """Random changes of the support images in training, in this order. resize: random_resized_crop and flip; crop:
    pad_and_crop and flip; color: these with color_jitter between; enlarge is not random."""
    query_augmentation: tuple[AugmentationName, ...] = ()
    """The same for the query images in training; an empty list, or null, leaves them as they are."""
    number_of_train_tasks: int | None = Field(None, ge=1)
    """Fixed training tasks, which are met again and again; null: new ones for ever."""


class BackboneSection(_Section):
    """The network."""

    backbone: str = "vgg"
    """`vgg`: the reference's network; `mlp`: fully connected layers, without norm; the other names, and how to bring
    a network of your own, are in docs/backbones.md."""
    head_name: Annotated[str, OF_USERS_NETWORKS] = ""
    """Of a plugin's network, the name of the linear layer that is its head; empty: the last one."""
    task_batching: Annotated[Literal["auto", "batched", "loop"], OF_USERS_NETWORKS] = "auto"
    """Of a plugin's network: compute all tasks `batched` by one vmap, or one after the other (`loop`); auto: batched
    where it can be.
    """
    initial_weights: str = ""
    """Path of a safetensors file whose weights the body starts from, e.g. a pretrained ResNet of torchvision, from here
    or from the folder of the runs, or a name of pretrained/index.json; the head starts as ever."""
    head: HeadName = "learned"
    """Where the last layer starts in each episode."""
    mlp_hidden_sizes: Annotated[tuple[AtLeastOne, ...], ReadWith("backbone")] = (40, 40)
    """Units of each hidden layer of the `backbone` mlp."""
    num_regression_outputs: Annotated[int, OF_REGRESSION] = Field(1, ge=1)
    """D, numbers to predict for each image, with `loss` mean_squared_error."""
    num_stages: Annotated[int, ReadWith("backbone")] = Field(4, ge=1)
    """Stages, each ending in a 2x2 max-pooling or a stride of 2."""
    cnn_blocks_per_stage: Annotated[int, ReadWith("backbone")] = Field(1, ge=1)
    """Convolution, norm and leaky ReLU blocks in a stage."""
    cnn_num_filters: Annotated[int, ReadWith("backbone")] = Field(64, ge=1)
    """Filters of every convolution."""
    conv_padding: Annotated[bool, ReadWith("backbone")] = True
    """Pad the 3x3 convolutions by one pixel."""
    max_pooling: Annotated[bool, ReadWith("backbone")] = True
    """true: max-pooling, then flatten; false: strided convolutions, then global average pooling."""
    warp_kernel_size: Annotated[Literal[0, 1, 3], ReadWith("backbone")] = 0
    """Side of a convolution after each of the others, before its norm, which starts at the identity and which only the
    outer loop learns; 1: T-Net, 3: Warp-MAML, 0: none."""
    feature_scale: Annotated[float, ReadWith("backbone")] = Field(0.0, ge=0.0)
    """Above 0: bring the features of each image to mean 0 and this standard deviation, before the head (vgg, conv4)."""
    norm_layer: NormLayerName = "batch_norm"
    """Norm after each convolution."""
    norm_groups: Annotated[int, ReadWith("norm_layer")] = Field(8, ge=1)
    """Groups of `group_norm`; must divide the filters."""
    dropout_rate_value: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation after each block while meta-training; masks follow from the episode."""
    per_step_bn_statistics: bool = False
    """One row of batch-norm weights, biases and running statistics per inner step (MAML++)."""
    learnable_bn_gamma: bool = True
    """Meta-learn the norm weights."""
    learnable_bn_beta: bool = True
    """Meta-learn the norm biases."""
    batch_norm_statistics: BatchNormStatistics | tuple[BatchNormStatistics, ...] = "transductive"
    """Statistics that normalise; a list gives one value per block (stage) of the network."""
    batch_norm_momentum: float = Field(0.1, gt=0.0, le=1.0)
    """Share of the newest iteration in the running statistics."""
    learnable_batch_norm_momentum: bool = False
    """Meta-learn that share, one per norm layer; needs `batch_norm_statistics` running."""


class InnerLoopSection(_Section):
    """Adaptation to one task."""

    number_of_training_steps_per_iter: int = Field(5, ge=0)
    """S, updates on the support set while meta-training; 0, with `head` prototypes: ProtoNet."""
    number_of_evaluation_steps_per_iter: int | None = Field(None, ge=0)
    """Updates at validation and test; null: as in training.

    Steps beyond S reuse the last step's rates and norm rows.
    """
    init_inner_loop_learning_rate: float = Field(0.1, gt=0.0)
    """The inner learning rate, or its start where it is learned."""
    learnable_per_layer_per_step_inner_loop_learning_rate: bool = False
    """LSLR: meta-learn one inner learning rate per parameter tensor and step (MAML++)."""
    learnable_inner_loop_learning_rates: Literal["none", "per_layer", "per_element"] = "none"
    """Meta-SGD: meta-learn one inner learning rate per parameter element, or one per tensor, the same for all steps."""
    init_head_inner_loop_learning_rate: float | None = Field(None, gt=0.0)
    """The inner learning rate of the head; null: `init_inner_loop_learning_rate`."""
    adapted_parameters: Literal["all", "head", "body"] = "all"
    """What the inner loop adapts: everything, the last layer alone (ANIL) or everything else (BOIL)."""
    frozen_layers: tuple[str, ...] = ()
    """Layers that the inner loop leaves as they are, e.g. ["block0", "conv.bias", "*.weight"]: a part of a
    parameter's name between dots, or a pattern with * and ?."""
    adapter_kind: AdapterKindName = "none"
    """What the inner loop adapts beside the layers of the body, in the place of their weights; none: the weights."""
    adapter_targets: Annotated[tuple[str, ...], OF_ADAPTERS] = Field(("*",), min_length=1)
    """Layers of the body that get an adapter, in patterns as of `frozen_layers`, e.g. ["block2.norm", "linear1"]: of
    those that match, the ones that `adapter_kind` fits."""
    adapter_rank: Annotated[int, ReadWith("adapter_kind", refused=True)] = Field(4, ge=1)
    """Size of an adapter: the rank of `adapter_kind` lora, the context parameters of context."""
    adapter_base: Annotated[Literal["learned", "frozen"], OF_ADAPTERS] = "learned"
    """Whether the outer loop learns the body's own weights, or the adapters and the head alone, beside a body from
    `initial_weights`, say."""
    inner_loop_optimizer: InnerLoopOptimizerName = "sgd"
    """Update rule of the inner loop; its state starts anew in each episode and is differentiated through."""
    inner_loop_momentum: Annotated[float, ReadWith("inner_loop_optimizer", refused=True)] = Field(0.0, ge=0.0, lt=1.0)
    """Momentum of the inner `sgd`."""
    inner_loop_weight_decay: float = Field(0.0, ge=0.0)
    """Times the parameter, added to its inner gradient."""
    inner_loop_betas: Annotated[tuple[float, float], ReadWith("inner_loop_optimizer")] = (0.9, 0.999)
    """Decay rates of the inner `adam`."""
    inner_loop_smoothing: Annotated[float, ReadWith("inner_loop_optimizer")] = Field(0.99, ge=0.0, lt=1.0)
    """Decay rate of the inner `rmsprop`."""
    inner_loop_epsilon: Annotated[float, ReadWith("inner_loop_optimizer")] = Field(1e-8, gt=0.0)
    """Added to the denominator of the inner `adam` and `rmsprop`."""
    inner_loop_gradient_clip_norm: float = Field(0.0, ge=0.0)
    """Bound of each task's inner gradient norm; 0: off."""
    inner_loop_gradient_clamp: float = Field(0.0, ge=0.0)
    """Bound of each element of the inner gradient; 0: off."""
    enable_inner_loop_optimizable_bn_params: bool = False
    """Adapt norm weights and biases in the inner loop; they then have one row, not one per step."""
    second_order: bool = True
    """Differentiate through the inner gradients."""
    first_order_to_second_order_epoch: Annotated[int, ReadWith("second_order", bool, refused=True)] = Field(-1, ge=-1)
    """k: second order from epoch > k on, counted from 0 (derivative-order annealing); -1: always."""


class OuterLoopSection(_Section):
    """The meta-update."""

    outer_update: Literal["gradient", "displacement", "implicit"] = "gradient"
    """What the meta-update follows: the gradient of the outer loss through the inner steps; the way that the adapted
    parameters went (Reptile); or the gradient as it is where the inner problem is solved, whatever the way there
    (iMAML).
    """
    implicit_gradient_iterations: Annotated[int, ReadWith("outer_update", lambda name: name == "implicit")] = Field(
        5, ge=1
    )
    """Iterations of conjugate gradients, each a product with the Hessian, of `outer_update` implicit."""
    sharpness_radius: float = Field(0.0, ge=0.0)
    """Sharp-MAML: the outer gradient is taken this far uphill, along the gradient of the network's parameters; 0: where
    they are."""
    loss: LossName = "cross_entropy"
    """Loss of a task, in both loops."""
    outer_loss: OuterLossName = "mean"
    """Outer loss: how the query losses of a meta-batch's tasks become one number."""
    label_smoothing: Annotated[float, ReadWith("loss", refused=True)] = Field(0.0, ge=0.0, lt=1.0)
    """Share of the target probability that `loss` cross_entropy spreads evenly over the classes."""
    meta_optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """Optimiser of the meta-update, as in `torch.optim`."""
    meta_momentum: Annotated[
        float, ReadWith("meta_optimizer", lambda name: name in ("sgd", "rmsprop"), refused=True)
    ] = Field(0.0, ge=0.0, lt=1.0)
    """Momentum of `meta_optimizer` sgd and rmsprop."""
    meta_weight_decay: float = Field(0.0, ge=0.0)
    """Weight decay of the network's parameters; decoupled from the gradient with `meta_optimizer` adamw, else added
    to it.
    """
    meta_learning_rate: float = Field(0.001, gt=0.0)
    """The outer optimiser's learning rate: the first one, or the highest one of a one-cycle schedule."""
    meta_learning_rate_schedule: Literal["cosine", "step", "one_cycle", "constant"] = "cosine"
    """How it goes from epoch to epoch: cosine annealing to `min_learning_rate`; steps at
    `meta_learning_rate_milestones`; one cycle, up from a 25th of it in 30 % of the epochs and down to
    `min_learning_rate`; or not at all."""
    min_learning_rate: Annotated[
        float, ReadWith("meta_learning_rate_schedule", lambda name: name in ("cosine", "one_cycle"))
    ] = Field(0.00001, ge=0.0)
    """Where a cosine and one-cycle schedule ends; with cosine, equal to `meta_learning_rate`: no annealing."""
    meta_learning_rate_milestones: Annotated[tuple[int, ...], OF_STEPS._replace(refused=True)] = ()
    """Epochs, counted from 0, from which on the rate of a step schedule is multiplied by `meta_learning_rate_gamma`
    once more.
    """
    meta_learning_rate_gamma: Annotated[float, OF_STEPS] = Field(0.1, gt=0.0, le=1.0)
    """Factor at each milestone of a step schedule."""
    restart_schedule: bool = False
    """A run that is continued with another `total_epochs` anneals over those from now on, not over its first ones."""
    gradient_clamp: float | Literal["auto"] = "auto"
    """Bound c: each element of the network's meta-gradient is clamped to [-c, c]; 0: off; auto: 10 for
    mini-ImageNet.
    """
    gradient_clip_norm: float = Field(0.0, ge=0.0)
    """Bound of the norm of the whole meta-gradient, after the clamp; a longer one is shortened to it. 0: off."""
    use_multi_step_loss_optimization: bool = False
    """Weigh the query losses after every inner step (MAML++), instead of the last one alone."""
    multi_step_loss_num_epochs: Annotated[int, ReadWith("use_multi_step_loss_optimization", bool)] = Field(10, ge=1)
    """Epochs over which those weights move to the last step; after them the last step alone counts."""


class EvaluationSection(_Section):
    """Validation and test."""

    num_evaluation_tasks: int = Field(600, ge=1, le=10_000_000)
    """Tasks of a validation and of the test; exact."""
    validate_every_epochs: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    val_num_classes_per_set: AtLeastTwo | None = None
    """Ways of the validation; null: the first of the training. Fewer, as where ProtoNet trains on more than it is
    tested with, want a head that is made for each task."""
    test_batch_norm_statistics: TestBatchNormStatistics | tuple[TestBatchNormStatistics, ...] | None = None
    """Batch-norm statistics of the test, or a list of them, side by side; null: as in training (`mixed` where those
    are listed per block)."""
    test_num_classes_per_set: AtLeastTwo | tuple[AtLeastTwo, ...] | None = None
    """Ways of the test, or a list of them; null: as in training.

    Every combination of ways, shots and queries gives a row.
    """
    test_num_samples_per_class: AtLeastOne | tuple[AtLeastOne, ...] | None = None
    """Shots of the test, or a list of them; null: as in training."""
    test_num_target_samples: AtLeastOne | tuple[AtLeastOne, ...] | None = None
    """Query images per class of the test, or a list of them; null: as in training."""
    test_dataset_name: tuple[DatasetName, ...] = ()
    """Other datasets on which to test a run that has been trained, in one table; their images are brought to its
    size and channels. Nothing is trained."""
    task_list: str = ""
    """File of fixed tasks, made by `python -m utils.prepare_dataset tasks` or Lake's all_runs.zip, on which to test
    a run that has been trained. Nothing is trained."""
    test_curve: bool = False
    """After training, also test every kept epoch into `logs/test_curve.csv`, which the report draws; never used to
    select. With `max_models_to_save` all: every epoch."""
    test_baselines: bool = True
    """Beside each result of a test, on the same tasks: chance, nearest neighbour on pixels, class centroids of the
    untrained body and of the best model's, ridge regression on the latter, the model after each inner step, and other
    orders of the labels."""


class TrackingSection(_Section):
    """Where else the curves go."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers beside the CSV and JSON-lines files, which are always written: `tensorboard` (logs/tensorboard),
    `wandb` (logs/wandb).
    """
    track_grad_norm: bool = False
    """Send the norm and a histogram of each parameter's meta-gradient to the trackers with every line of the
    metrics.
    """
    wandb_project: str = Field("few-shot", min_length=1, max_length=128)
    """Project of Weights & Biases."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """offline: into files, for `wandb sync`; online: to the server, as the run goes."""


class MachineSection(_Section):
    """How it is computed."""

    gpu_to_use: str = Field("auto", pattern=r"^(auto|all|cpu|\d+(,\d+)*)$")
    """GPU ids separated by commas, `all`, `cpu`, or auto: the first GPU there is, else the CPU."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Number format. float32: on a GPU convolutions use TF32. bfloat16: the products of convolutions, all else stays
    float32; the meta-gradient is compared with float32's once an epoch. float64 is for checks."""
    precision_error_limit: float = Field(0.25, gt=0)
    """Relative error of the meta-gradient in bfloat16 above which training stops."""
    use_cuda_graphs: bool = True
    """Where there is CUDA: record the kernels of the meta-gradient once and replay them, instead of launching each
    of thousands.
    """
    task_chunk_size: int | Literal["auto"] = "auto"
    """Tasks computed at once; the others of the meta-batch follow. auto: by device and image size, at most as many
    as fit into the free memory; chosen at the first start, and halved where memory runs out all the same."""
    gradient_checkpointing: bool = False
    """Compute each inner step a second time instead of keeping its activations: the same gradients with the memory
    of one step, in up to half as much time again."""
    deterministic: bool = False
    """On CUDA: only operations that give the same bits every time."""


class ExperimentConfig(
    ExperimentSection, DataSection, EpisodeSection, BackboneSection, InnerLoopSection, OuterLoopSection,
    EvaluationSection, TrackingSection, MachineSection,
):  # fmt: skip
    """A whole config, flat as its JSON. Made by `load_config` or `check_config`, which also resolve `auto` and null."""

    _notes: tuple[str, ...] = PrivateAttr(())
    _experiment_of_file: str | None = PrivateAttr(None)
    _file: Path | None = PrivateAttr(None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines worth reporting once: what was looked up, renamed or has no effect."""
        return self._notes

    @property
    def experiment_of_file(self) -> str | None:
        """The experiment_name that the file says, whatever the command line says; None: there was no file."""
        return self._experiment_of_file

    @property
    def file(self) -> Path | None:
        """That was read, a command line's overrides on top of it; None: there was no file."""
        return self._file

    @property
    def models_kept(self) -> float:
        """Most checkpoints that are kept by validation accuracy."""
        return math.inf if self.max_models_to_save == "all" else self.max_models_to_save

    @property
    def tasks_per_meta_batch(self) -> int:
        """B, tasks of one meta-update."""
        return self.batch_size * self.samples_per_iter

    @property
    def parameter_format(self) -> str:
        """Number format of parameters and images."""
        return "float32" if self.precision == "bfloat16" else self.precision

    @property
    def is_regression(self) -> bool:
        """Whether labels are real numbers; there are no classes then, and images are counted as those of one class."""
        return registered.fact("loss", self.loss, "is_regression", False)

    @property
    def inputs(self) -> Inputs | None:
        """What an example is made of; None: an image."""
        return Inputs.of(self.input_shape) if self.input_shape else None

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Of an example in an episode; of an image C, H, W."""
        return self.inputs.shape if self.inputs else (self.image_channels, self.image_height, self.image_width)

    @property
    def network_shape(self) -> Any:
        """What a network of a plugin is built for: C, H, W, or the shape of each part of an example."""
        inputs = self.inputs
        return inputs.by_name([part.shape for part in inputs.parts]) if inputs else self.example_shape

    @property
    def training_shapes(self) -> tuple[EpisodeShape, ...]:
        """Every way and shot of the training episodes."""
        ways, shots = (
            (1,) if self.is_regression else as_list(self.num_classes_per_set),
            as_list(self.num_samples_per_class),
        )
        return combinations(ways, shots, (self.num_target_samples,))

    @property
    def validation_shape(self) -> EpisodeShape:
        """The first way and shot of the training, or the ways that validation has of its own."""
        first = self.training_shapes[0]
        n_way = None if self.is_regression else self.val_num_classes_per_set
        return first if n_way is None else dataclasses.replace(first, n_way=n_way)

    @property
    def test_shapes(self) -> tuple[EpisodeShape, ...]:
        """Every way, shot and number of query images of the test."""
        return combinations(
            (1,) if self.is_regression else as_list(self.test_num_classes_per_set or self.num_classes_per_set),
            as_list(self.test_num_samples_per_class or self.num_samples_per_class),
            as_list(self.test_num_target_samples or self.num_target_samples),
        )

    @property
    def tested_elsewhere(self) -> str:
        """What is tested on instead of the run's own dataset, as a part of a file name; empty for that one."""
        if self.task_list:
            return f"on_{Path(self.task_list).stem}"
        return f"on_{'_'.join(self.test_dataset_name)}" if self.test_dataset_name else ""

    @property
    def initialisation_seed(self) -> int:
        """Seed of the initial weights."""
        return self.train_seed if self.seed is None else self.seed

    def to_json_dict(self) -> dict[str, Any]:
        """Return every key with its resolved value; valid input again, without what is meant for one start only.

        Of the keys that choices bring, those of the config's own choices.
        """
        values = json.loads(self.model_dump_json()) | ONE_START_ONLY
        keys = [key for section in SECTIONS for key in section.model_fields]
        for choice in registered.with_own_keys():
            keys += choice.own_keys().values() if getattr(self, choice.kind) == choice.name else ()
        return {key: values[key] for key in keys}


SECTIONS: tuple[type[_Section], ...] = (
    ExperimentSection, DataSection, EpisodeSection, BackboneSection, InnerLoopSection, OuterLoopSection,
    EvaluationSection, TrackingSection, MachineSection,
)  # fmt: skip

ONE_START_ONLY: dict[str, Any] = {
    "continue_from_epoch": "latest", "replay_iteration": 0, "allow_config_change": [], "restart_schedule": False,
    "test_dataset_name": [], "task_list": "", "dry_run": False,
}  # fmt: skip
"""Values, in what is stored, of keys that say what one start is to do."""


class _OwnKeys(_Section):
    """Own keys of methods. Each counts with the value that it is named after."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def schema() -> type[ExperimentConfig]:
    """Return the config with the keys of all choices that are registered by now."""
    choices_with_keys = registered.with_own_keys()
    return _schema_with(choices_with_keys)[0] if choices_with_keys else ExperimentConfig


def fields() -> dict[str, FieldInfo]:
    """Return every key of today with its type, range, default and meaning."""
    return schema().model_fields


def sections() -> tuple[type[_Section], ...]:
    """Return the sections with all keys of today."""
    choices_with_keys = registered.with_own_keys()
    return (*SECTIONS, _schema_with(choices_with_keys)[1]) if choices_with_keys else SECTIONS


def read_with() -> dict[str, ReadWith]:
    """Return the keys of today that mean something beside some values of another one alone."""
    return {key: mark for key, field in fields().items() for mark in field.metadata if isinstance(mark, ReadWith)}


@lru_cache(maxsize=8)
def _schema_with(with_keys: tuple[registered.Choice, ...]) -> tuple[type[ExperimentConfig], type[_Section]]:
    own: dict[str, Any] = {}
    for choice in with_keys:
        for argument, name in choice.own_keys().items():
            if name in ExperimentConfig.model_fields:
                raise ConfigError(
                    f'register_{choice.kind}("{choice.name}", ...): "{name}" is a key of every config already; give '
                    f'the argument "{argument}" another name'
                )
            own[name] = _field(choice, choice.keys[argument])
    section = create_model("OwnKeys", __base__=_OwnKeys, __doc__=_OwnKeys.__doc__, **own)
    return create_model("ExperimentConfig", __base__=(ExperimentConfig, section)), section


def _field(choice: registered.Choice, key: registered.Key) -> tuple[Any, Any]:
    meaning = f"With `{choice.kind}` {choice.name}: {key.meaning}"
    mark = ReadWith(choice.kind, lambda name: name == choice.name, refused=True)
    is_list = isinstance(key.default, list | tuple)
    entry: Any = type(key.default[0]) if is_list else type(key.default)
    if key.one_of and not is_list:
        entry = Literal[key.one_of]
    if is_list:
        bounded = Annotated[entry, Field(**key.bounds)] if key.bounds else entry
        return Annotated[tuple[bounded, ...], mark], Field(tuple(key.default), description=meaning)
    return Annotated[entry, mark], Field(key.default, description=meaning, **key.bounds)


def is_list_key(key: str) -> bool:
    """Return whether a key takes a list of any length; a single value given is a list of one."""
    field = fields().get(key)
    return field is not None and get_args(field.annotation)[1:] == (...,)
