"""The datasets that this project knows by name: what they have, how they are commonly treated, whose terms hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DATA_LICENCES = {
    "omniglot_dataset": "MIT (Lake et al. 2015)",
    "synthetic_strokes": "drawn by the training program itself; MIT, as the program",
    "mini_imagenet_full_size": "ImageNet's terms: non-commercial research and education only, no redistribution of "
    "images",
    "tiered_imagenet": "ImageNet's terms: non-commercial research and education only, no redistribution of images",
    "quickdraw": "CC BY 4.0 (Google)",
}
"""Folder of a dataset -> its licence, where this project knows it."""


SINUSOID = "sinusoid"
"""The name of the dataset that is drawn task by task (`utils.data_sources.sinusoid`)."""


DATASET_ALIASES = {"omniglot": "omniglot_dataset", "mini_imagenet": "mini_imagenet_full_size"}


DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    SINUSOID: {"class_rotation": False, "normalisation": "none", "gradient_clamp": 0.0, "resize_filter": "nearest"},
    "omniglot_dataset": {
        "class_rotation": True,
        "normalisation": "none",
        "gradient_clamp": 0.0,
        "resize_filter": "nearest",
    },
    "mini_imagenet_full_size": {
        "class_rotation": False,
        "normalisation": "imagenet",
        "gradient_clamp": 10.0,
        "resize_filter": "bicubic",
    },
}


OTHER_DATASETS = {"class_rotation": False, "normalisation": "none", "gradient_clamp": 0.0, "resize_filter": "bicubic"}


@dataclass(frozen=True)
class Counts:
    """How many classes and images a dataset of the field has."""

    classes: Mapping[str | None, int]
    """Split -> classes; None: all that is not split."""
    images_per_class: int | None = None


IMAGENET_TERMS = (
    "The images are ImageNet's: non-commercial research and education only, no redistribution. See "
    "imagenet_license.md and"
    " https://image-net.org/download."
)


@dataclass(frozen=True)
class KnownDataset:
    """One dataset of the field."""

    folder: str
    """Name of its folder, which is the `dataset_name` of configs."""
    forms: str
    """What --from may be, in words."""
    counts: Counts | None = None
    terms: str = ""
    seed: int = 0
    """Of what is drawn, unless --seed says otherwise."""
    split_by_seed: bool = False
    """Whether the seed decides which classes are train, val and test."""


KNOWN_DATASETS: dict[str, KnownDataset] = {
    "omniglot": KnownDataset(
        "omniglot_dataset",
        "a folder with images_background.zip and images_evaluation.zip, or those unpacked; without --from it is "
        "fetched",
        Counts({None: 1623}, 20),
    ),
    "mini_imagenet": KnownDataset(
        "mini_imagenet_full_size",
        "folders train, val and test, or their archive; train.csv, val.csv and test.csv with a folder images, or with "
        "an ImageNet tree"
        " (then --splits gives the CSVs); mini-imagenet-cache-{train,val,test}.pkl; train_phase_train.pickle, "
        "val.pickle, test.pickle",
        Counts({"train": 64, "val": 16, "test": 20}, 600),
        IMAGENET_TERMS,
    ),
    "tiered_imagenet": KnownDataset(
        "tiered_imagenet",
        "{train,val,test}_images.npz or _images_png.pkl with _labels.pkl; folders train, val and test",
        Counts({"train": 351, "val": 97, "test": 160}),
        IMAGENET_TERMS,
    ),
    "cifar_fs": KnownDataset(
        "cifar_fs",
        "CIFAR-100's files (fetched without --from) with lists {train,val,test}.txt or .json (--splits); its class "
        "folders with"
        " such lists; {train,val,test}.pickle",
        Counts({"train": 64, "val": 16, "test": 20}, 600),
    ),
    "fc100": KnownDataset(
        "fc100", "like cifar_fs; the lists may name superclasses", Counts({"train": 60, "val": 20, "test": 20}, 600)
    ),
    "cub": KnownDataset(
        "cub",
        "CUB_200_2011.tgz or its folder, with 100/50/50 classes drawn by --seed; split CSVs with a folder images; "
        "folders train, val, test",
        Counts({"train": 100, "val": 50, "test": 50}),
        split_by_seed=True,
    ),
    "quickdraw": KnownDataset(
        "quickdraw",
        "a folder with the 345 .npy bitmap files; those that are missing are fetched",
        Counts({"train": 207, "val": 69, "test": 69}),
        seed=123,
        split_by_seed=True,
    ),
}
