"""The datasets that this project knows by name, in one table: what they have, how they are commonly treated, whose
terms hold, and what they are prepared from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SINUSOID = "sinusoid"
"""The name of the dataset that is drawn task by task (`utils.data_sources.sinusoid`)."""
COMMON_TREATMENT = {"class_rotation": False, "normalisation": "none", "gradient_clamp": 0.0, "resize_filter": "bicubic"}
"""Config key -> what `auto` stands for, unless the dataset says otherwise."""
OMNIGLOT_SPLIT = (0.70918052988, 0.03080714725, 0.2606284658)
"""Fractions of its classes for train, val and test, as the reference has them."""
IMAGENET_LICENCE = "ImageNet's terms: non-commercial research and education only, no redistribution of images"
IMAGENET_TERMS = (
    "The images are ImageNet's: non-commercial research and education only, no redistribution. See "
    "imagenet_license.md and https://image-net.org/download."
)


@dataclass(frozen=True)
class Counts:
    """How many classes and images a dataset of the field has."""

    classes: Mapping[str | None, int]
    """Split -> classes; None: all that is not split."""
    images_per_class: int | None = None


@dataclass(frozen=True)
class KnownDataset:
    """One dataset of the field; the values of a name that is not known are the defaults."""

    name: str = ""
    """Short; `utils.prepare_dataset` and configs take it."""
    folder: str = ""
    """Name of its folder, which is the `dataset_name` of configs."""
    forms: str = ""
    """What --from of `utils.prepare_dataset` may be, in words; empty: nothing, as it makes itself."""
    counts: Counts | None = None
    own_treatment: Mapping[str, Any] = field(default_factory=dict)
    """Where it differs from `COMMON_TREATMENT`."""
    dark_on_light: bool = False
    """Whether its images are dark lines on a light ground, which light ones on a dark ground do not look like."""
    licence: str = ""
    """Empty: not known here."""
    terms: str = ""
    """Logged whenever it is prepared."""
    fetched: str = ""
    """What is fetched without --from: everything, or images, whose split the user's lists give."""
    seed: int = 0
    """Of what is drawn, unless --seed says otherwise."""
    split_by_seed: bool = False
    """Whether the seed decides which classes are train, val and test."""

    @property
    def treatment(self) -> dict[str, Any]:
        """Config key -> what `auto` stands for."""
        return COMMON_TREATMENT | dict(self.own_treatment)


TABLE = (
    KnownDataset(SINUSOID, SINUSOID, own_treatment={"resize_filter": "nearest"}),
    KnownDataset(
        "synthetic_strokes", "synthetic_strokes", licence="drawn by the training program itself; MIT, as the program"
    ),
    KnownDataset(
        "omniglot",
        "omniglot_dataset",
        "a folder with images_background.zip and images_evaluation.zip, or those unpacked; without --from it is "
        "fetched",
        Counts({None: 1623}, 20),
        own_treatment={
            "class_rotation": True,
            "resize_filter": "nearest",
            "train_val_test_split": OMNIGLOT_SPLIT,
        },
        dark_on_light=True,
        licence="MIT (Lake et al. 2015)",
        fetched="everything",
    ),
    KnownDataset(
        "mini_imagenet",
        "mini_imagenet_full_size",
        "folders train, val and test, or their archive; train.csv, val.csv and test.csv with a folder images, or with "
        "an ImageNet tree (then --splits gives the CSVs); mini-imagenet-cache-{train,val,test}.pkl; "
        "train_phase_train.pickle, val.pickle, test.pickle",
        Counts({"train": 64, "val": 16, "test": 20}, 600),
        own_treatment={"normalisation": "imagenet", "gradient_clamp": 10.0},
        licence=IMAGENET_LICENCE,
        terms=IMAGENET_TERMS,
    ),
    KnownDataset(
        "tiered_imagenet",
        "tiered_imagenet",
        "{train,val,test}_images.npz or _images_png.pkl with _labels.pkl; folders train, val and test",
        Counts({"train": 351, "val": 97, "test": 160}),
        licence=IMAGENET_LICENCE,
        terms=IMAGENET_TERMS,
    ),
    KnownDataset(
        "cifar_fs",
        "cifar_fs",
        "CIFAR-100's files (fetched without --from) with lists {train,val,test}.txt or .json (--splits); its class "
        "folders with such lists; {train,val,test}.pickle",
        Counts({"train": 64, "val": 16, "test": 20}, 600),
        fetched="images",
    ),
    KnownDataset(
        "fc100",
        "fc100",
        "like cifar_fs; the lists may name superclasses",
        Counts({"train": 60, "val": 20, "test": 20}, 600),
        fetched="images",
    ),
    KnownDataset(
        "cub",
        "cub",
        "CUB_200_2011.tgz or its folder, with 100/50/50 classes drawn by --seed; split CSVs with a folder images; "
        "folders train, val, test",
        Counts({"train": 100, "val": 50, "test": 50}),
        split_by_seed=True,
    ),
    KnownDataset(
        "groceries",
        "grocery_few_shot",
        "a clone of https://github.com/marcusklasson/GroceryStoreDataset, or an archive of it: 50/12/19 of its 81 "
        "products by --seed, squares of 96 pixels; folders train, val, test",
        Counts({"train": 50, "val": 12, "test": 19}),
        licence="MIT (Klasson et al. 2019)",
        split_by_seed=True,
    ),
    KnownDataset(
        "quickdraw",
        "quickdraw",
        "a folder with the 345 .npy bitmap files; those that are missing are fetched",
        Counts({"train": 207, "val": 69, "test": 69}),
        licence="CC BY 4.0 (Google)",
        fetched="everything",
        seed=123,
        split_by_seed=True,
    ),
)
KNOWN_DATASETS = {known.name: known for known in TABLE}


def known_by_folder(dataset_name: str) -> KnownDataset:
    """Return the entry whose folder has this name; one of defaults where there is none."""
    return next((known for known in KNOWN_DATASETS.values() if known.folder == dataset_name), KnownDataset())


def folder_named(dataset_name: str) -> str:
    """Return the folder of a dataset that may be called by its short name."""
    return KNOWN_DATASETS[dataset_name].folder if dataset_name in KNOWN_DATASETS else dataset_name
