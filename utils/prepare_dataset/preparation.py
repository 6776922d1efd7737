"""From a request to a dataset folder: find the classes, check them, draw samples, write, report."""

import logging
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataError
from utils.files.archives import find_archive
from utils.files.atomic_folders import is_filled
from utils.images.folders import scan
from utils.known_datasets import KNOWN_DATASETS, KnownDataset
from utils.paths import expanded
from utils.prepare_dataset.catalogue import GENERIC, MostSamples, check_name, folder_name
from utils.prepare_dataset.class_sources import (
    FoundClasses,
    SourceClass,
    check_classes,
    check_counts,
    limit_samples,
    with_own_names,
)
from utils.prepare_dataset.dataset_folders import verify_dataset, write_dataset
from utils.prepare_dataset.datasets.cifar import find_cifar
from utils.prepare_dataset.datasets.cub import find_cub
from utils.prepare_dataset.datasets.groceries import find_groceries
from utils.prepare_dataset.datasets.omniglot import fetch_omniglot, find_omniglot
from utils.prepare_dataset.datasets.quickdraw import PUBLISHED_SAMPLES, find_quickdraw
from utils.prepare_dataset.downloads import is_url
from utils.prepare_dataset.forms.array_files import find_cache_pickles, find_labelled_pickles, find_tiered
from utils.prepare_dataset.forms.class_folders import find_class_folders, find_pre_split
from utils.prepare_dataset.forms.csv_splits import find_csv
from utils.prepare_dataset.workspace import Workspace
from utils.words import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    dataset: str
    """A name in KNOWN_DATASETS or GENERIC."""
    dataset_root: Path
    """Where the dataset's folder is to be."""
    location: str | None = None
    """Path or address of the source; None: `<folder>.<archive>` in the dataset folder, else what the dataset is
    fetched from.
    """
    sha256: str | None = None
    splits: Path | None = None
    """Folder with the lists that split the classes, where they are not beside the images."""
    name: str | None = None
    """Name of the dataset's folder instead of its usual one."""
    most: MostSamples = field(default_factory=dict)
    """Split (None: each) -> most images per class."""
    seed: int | None = None
    channels: str = "auto"
    """Of tiered-ImageNet's arrays: rgb, bgr, or auto."""
    accept_counts: bool = False

    @property
    def known(self) -> KnownDataset:
        """What is known of the dataset; of a form, what it may be made from."""
        return KNOWN_DATASETS.get(self.dataset) or KnownDataset(forms=GENERIC[self.dataset])


def prepare(request: Request) -> str:
    """Make a dataset folder, or verify the one that is there; returns a line that says which and what it holds.

    Raises:
        ConfigError: options that do not fit the dataset.
        DataError: sources that are missing, damaged or not what the field knows under this name.
        StorageError: no space or no permission.
    """
    known = request.known
    base, most, seed = _name_and_draw(request)
    shown = folder_name(base, most, seed, names_seed=known.split_by_seed and seed != known.seed)
    destination = request.dataset_root / shown
    if known.terms:
        logger.info(known.terms)
    if is_filled(destination):
        return _verified(destination, request, most)
    workspace = Workspace(request.dataset_root)
    source = _source(request, destination, workspace)
    if request.dataset == "omniglot" and source is None:
        source = workspace.folder_for("omniglot")
        fetch_omniglot(source)
        workspace.facts["source"] = "fetched with torchvision"
    found = _find(request, source, most, seed, workspace)
    logger.info("%s: %s", printable(source or "fetched"), found.form)
    classes = limit_samples(with_own_names(found.classes, request.dataset_root), most, seed)
    check_classes(source or request.dataset_root, classes, accept_shared=request.accept_counts)
    deviations = check_counts(shown, classes, known.counts, most, accept=request.accept_counts) if known.counts else []
    facts: dict[str, Any] = {
        "dataset": request.dataset,
        "form": found.form,
        **workspace.facts,
        "accepted_deviations": deviations,
    }
    if most:
        facts |= {"max_samples_per_class": {split or "each split": count for split, count in most.items()}}
    if most or known.split_by_seed:
        facts |= {"seed": seed}
    write_dataset(destination, classes, facts, linkable=workspace.unpacked)
    workspace.clean()
    return f"{printable(destination)}: prepared, {_in_words(classes)}"


def _name_and_draw(request: Request) -> tuple[str, MostSamples, int]:
    known = request.known
    if request.dataset in GENERIC and request.name is None and request.location is None:
        raise ConfigError(f"{request.dataset}: give --from ({known.forms}).")
    location = request.location or ""
    path = urllib.parse.urlsplit(location).path if is_url(location) else location
    base = request.name or known.folder or Path(path).name.split(".")[0]
    check_name(base)
    most = request.most
    if request.dataset == "quickdraw":
        if set(most) - {None}:
            raise ConfigError("--max_samples_per_class: quickdraw has one number for all splits, such as 100.")
        most = most or {None: PUBLISHED_SAMPLES}
    return base, most, known.seed if request.seed is None else request.seed


def _source(request: Request, destination: Path, workspace: Workspace) -> Path | None:
    """Return the folder of the source; None where the dataset is to be fetched."""
    if request.location is not None:
        return workspace.open(request.location, request.sha256, is_tree=request.dataset == "folder")
    archive = find_archive(request.known.folder or destination.name, request.dataset_root)
    if archive is not None:
        return workspace.open(str(archive), request.sha256)
    if request.known.fetched:
        return None
    raise DataError(
        f"{request.dataset}: not in {printable(request.dataset_root)}. Say with --from where it is: "
        f"{request.known.forms}."
    )


def _find(request: Request, source: Path | None, most: MostSamples, seed: int, workspace: Workspace) -> FoundClasses:
    finders: dict[str, Callable[[], FoundClasses | None]] = {
        "omniglot": lambda: find_omniglot(source, workspace),
        "mini_imagenet": lambda: (
            find_cache_pickles(source)
            or find_labelled_pickles(source)
            or find_csv(source, request.splits)
            or find_pre_split(source)
        ),
        "tiered_imagenet": lambda: (
            find_tiered(source, request.channels, workspace.folder_for("arrays")) or find_pre_split(source)
        ),
        "cifar_fs": lambda: find_cifar(source, request.splits, workspace),
        "fc100": lambda: find_cifar(source, request.splits, workspace),
        "cub": lambda: find_cub(source, request.splits, seed, workspace),
        "groceries": lambda: find_groceries(source, seed),
        "quickdraw": lambda: find_quickdraw(source, most[None], seed, workspace, accept_counts=request.accept_counts),
        "csv": lambda: find_csv(source, request.splits),
        "folder": lambda: find_class_folders(source),
    }
    found = finders[request.dataset]()
    if found is None:
        raise DataError(f"{printable(source)}: no form of {request.dataset} that is known here: {request.known.forms}.")
    return found


def _verified(destination: Path, request: Request, most: MostSamples) -> str:
    record, counts = verify_dataset(destination), request.known.counts
    if record is not None:
        source = record.get("source", request.location)
        if (
            request.location not in (None, source)
            and expanded(request.location).resolve() != expanded(source).resolve()
        ):
            raise ConfigError(
                f"{printable(destination)}: is there and verified, but made from {printable(source)}, not from "
                f"{printable(request.location)}; give another name with --name, or leave --from out"
            )
        images = record["images_per_class"]
        return (
            f"{printable(destination)}: is there and verified, {sum(images.values())} images in {len(images)} classes"
        )
    folders, _ = scan(destination)
    if counts:
        parts = [(f.path.split("/")[0].lower(), f) for f in folders]
        classes = [SourceClass(s if s in counts.classes else None, f.path, f.files, str) for s, f in parts]
        check_counts(
            f"{printable(destination)} (not written by this command)",
            classes,
            counts,
            most,
            accept=request.accept_counts,
        )
    return f"{printable(destination)}: is there, {sum(len(f.files) for f in folders)} images in {len(folders)} folders"


def _in_words(classes: list[SourceClass]) -> str:
    images = sum(len(c.files) for c in classes)
    splits = [f"{split} {n}" for split in ("train", "val", "test") if (n := sum(c.split == split for c in classes))]
    return f"{images} images in {len(classes)} classes" + (f" ({', '.join(splits)})" if splits else "")
