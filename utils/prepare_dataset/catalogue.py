"""The datasets that `python -m utils.prepare_dataset` knows: folder names, what they have, whose terms hold, which forms are read."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from utils.prepare_dataset.class_sources import Counts

IMAGENET_TERMS = (
    "The images are ImageNet's: non-commercial research and education only, no redistribution. See imagenet_license.md and"
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
        "a folder with images_background.zip and images_evaluation.zip, or those unpacked; without --from it is fetched",
        Counts({None: 1623}, 20),
    ),
    "mini_imagenet": KnownDataset(
        "mini_imagenet_full_size",
        "folders train, val and test, or their archive; train.csv, val.csv and test.csv with a folder images, or with an ImageNet tree"
        " (then --splits gives the CSVs); mini-imagenet-cache-{train,val,test}.pkl; train_phase_train.pickle, val.pickle, test.pickle",
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
        "CIFAR-100's files (fetched without --from) with lists {train,val,test}.txt or .json (--splits); its class folders with"
        " such lists; {train,val,test}.pickle",
        Counts({"train": 64, "val": 16, "test": 20}, 600),
    ),
    "fc100": KnownDataset("fc100", "like cifar_fs; the lists may name superclasses", Counts({"train": 60, "val": 20, "test": 20}, 600)),
    "cub": KnownDataset(
        "cub",
        "CUB_200_2011.tgz or its folder, with 100/50/50 classes drawn by --seed; split CSVs with a folder images; folders train, val, test",
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
GENERIC = {
    "csv": "a folder images with train.csv, val.csv and test.csv of rows file,label; --name names the dataset",
    "folder": "any tree of class folders, or an archive of one; --name names the dataset",
}
"""Forms rather than datasets: the user names them."""

MostSamples = Mapping[str | None, int]
"""Split (None: each) -> most images per class."""


def folder_name(base: str, most: MostSamples, seed: int, *, names_seed: bool) -> str:
    """Name of a dataset's folder; whatever was drawn by seed is in it, so that two preparations never mix."""
    if most:
        counts = "_".join(str(count) if split is None else f"{split}{count}" for split, count in most.items())
        return f"{base}_{counts}_samples_seed{seed}"
    return f"{base}_seed{seed}" if names_seed else base


def command_for(dataset_name: str) -> str:
    """The one command that prepares the dataset of this folder name."""
    match = re.fullmatch(r"(.+?)(?:_(\d+|(?:(?:train|val|test)\d+_?)+)_samples)?(?:_seed(\d+))?", dataset_name)
    base, counts, seed = match.groups() if match else (dataset_name, None, None)
    name = next((name for name, known in KNOWN_DATASETS.items() if known.folder == base), None)
    command = "python -m utils.prepare_dataset "
    if name is None:
        return command + f"folder --from FOLDER_OR_ARCHIVE --name {shlex.quote(dataset_name)}"
    command += name
    if name not in ("omniglot", "quickdraw"):
        command += " --from PATH_OR_ADDRESS"
    if counts:
        given = re.sub(r"(train|val|test)(\d+)_?", r"\1=\2,", counts).rstrip(",")
        command += f" --max_samples_per_class {given}"
    return command + (f" --seed {seed}" if seed else "")
