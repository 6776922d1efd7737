"""What every form of a dataset is turned into before anything is written: classes, each with named images."""

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.episodes.drawing import SPLITS
from utils.episodes.randomness import random_words, sample_without_replacement
from utils.errors import DataError
from utils.files.atomic_folders import folds_case
from utils.images.folders import report_problems
from utils.known_datasets import Counts
from utils.words import first_lines, printable, some_of

logger = logging.getLogger(__name__)

ImageContent = Path | bytes | np.ndarray
"""An image file to copy, the bytes of one, or pixels: uint8 (H, W) or (H, W, 3) in red green blue."""


@dataclass(frozen=True)
class SourceClass:
    """One class of a dataset and where its images come from; nothing is read before `read` is called."""

    split: str | None
    """"train", "val" or "test"; None where the config is to split the classes."""
    name: str
    """Folder below the split; may have several parts, as in alphabet/character."""
    files: Sequence[str]
    """Names that the images get."""
    read: Callable[[int], ImageContent]
    """Place in `files` -> content."""
    label: str | None = None
    """What the source calls it, where the name is made from that and says less: C# is the folder C."""
    is_drawn: bool = False
    """Whether `read` makes the image, which takes time, and no file stands behind it."""

    @property
    def called(self) -> str:
        """What people know it by."""
        return self.name if self.label is None else self.label

    @property
    def folder(self) -> str:
        """POSIX path below the dataset folder."""
        return f"{self.split}/{self.name}" if self.split else self.name


@dataclass(frozen=True)
class FoundClasses:
    """What was found in a source."""

    form: str
    """The form of the source, in words."""
    classes: list[SourceClass]


def safe_name(text: object) -> str:
    """Return a name that is one folder or file on every system, and no hidden one."""
    name = re.sub(r"[^\w.+,()=\-]+", "_", str(text).strip()).strip("_")
    return f"_{name}" if not name or name.startswith(".") else name


def classes_by_label(
    split: str | None,
    labels: Sequence[int] | np.ndarray,
    read: Callable[[int], ImageContent],
    names: Sequence[str] | Mapping[int, str] | None = None,
) -> list[SourceClass]:
    """Return the classes of numbered images, such as an array and its labels.

    Args:
        labels: (images,), whole numbers.
        read: number of an image -> content.
        names: label -> name of the class; None: `<split>_<label>`, since files of different splits number anew.
    """
    labels = np.asarray(labels).reshape(-1)
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    classes = []
    for value, ranks in zip(values.tolist(), np.split(order, starts)[1:], strict=True):
        label = f"{split}_{value:03}" if names is None else str(names[value])
        files = [f"{rank:07}.png" for rank in ranks.tolist()]
        classes.append(SourceClass(split, safe_name(label), files, reader_of(ranks, read), label))
    return classes


def reader_of(ranks: np.ndarray, read: Callable[[int], ImageContent]) -> Callable[[int], ImageContent]:
    """Return place among `ranks` -> content, of number of an image -> content."""
    return lambda place: read(int(ranks[place]))


def split_by_seed(names: Sequence[str], seed: int, fractions: tuple[float, float], purpose: int) -> dict[str, str]:
    """Deal names, sorted, to train, val and test: shuffled with the seed, then cut by the fractions for train and val.

    Args:
        purpose: of the random words, see `random_words`.
    """
    words = random_words(seed, "prepared_splits", [0], purpose, len(names))
    order = sample_without_replacement(words, np.array([len(names)]))[0] if names else []
    n_train, n_val = (round(fraction * len(names)) for fraction in fractions)
    splits = ["train"] * n_train + ["val"] * n_val + ["test"] * (len(names) - n_train - n_val)
    return {names[place]: split for place, split in zip(order, splits, strict=True)}


def limit_samples(classes: Iterable[SourceClass], most: Mapping[str | None, int], seed: int) -> list[SourceClass]:
    """Draw at most `most[split]` images of each class by seed; a class's draw depends on its name and size alone."""
    limited = []
    for c in classes:
        count = most.get(c.split, most.get(None))
        if count is None or len(c.files) <= count:
            limited.append(c)
            continue
        name_digest = hashlib.sha256(c.folder.encode("utf-8", "surrogateescape")).digest()
        words = random_words(seed, "prepared_samples", [int.from_bytes(name_digest[:8], "big") >> 2], 0, count)
        chosen = np.sort(sample_without_replacement(words, np.array([len(c.files)]))[0])
        limited.append(replace(c, files=[c.files[i] for i in chosen], read=reader_of(chosen, c.read)))
    return limited


def with_own_names(classes: Iterable[SourceClass], destination: Path) -> list[SourceClass]:
    """Give numbers to folders and images whose names would be one: of other symbols, or of other letter case alone.

    Letter case counts where the file system of the destination tells it apart. Classes of one label keep their one
    name, in whatever splits; that is for `check_classes` to find.
    """
    fold = str.casefold if folds_case(destination) else str
    own, numbered = [], []
    labels: dict[str, str] = {}
    for c in classes:
        names = itertools.chain([c.name], (f"{c.name}_{number}" for number in itertools.count(2)))
        name = next(name for name in names if labels.setdefault(fold(name), c.called) == c.called)
        if name != c.name:
            numbered.append(f"{c.called} is {name}")
        own.append(replace(c, name=name, files=_own_files(c.files, fold)))
    if numbered:
        logger.info("class folders are numbered where their names would be one: %s", some_of(numbered))
    return own


def _own_files(files: Sequence[str], fold: Callable[[str], str]) -> Sequence[str]:
    if len({fold(file) for file in files}) == len(files):
        return files
    own: dict[str, str] = {}
    for file in files:
        stem, dot, ending = file.rpartition(".")
        names = itertools.chain([file], (f"{stem}_{number}{dot}{ending}" for number in itertools.count(2)))
        name = next(name for name in names if fold(name) not in own)
        own[fold(name)] = name
    return list(own.values())


def check_classes(source: Path | str, classes: Sequence[SourceClass], *, accept_shared: bool = False) -> None:
    """Raise one DataError with every class that cannot be written: none at all, twice the same, without images.

    A class in two splits is one too, unless that is accepted: few-shot accuracy is meant for classes never seen in
    training.
    """
    problems = []
    if not classes:
        problems.append("no class found")
    seen: set[str] = set()
    splits: dict[str, set[str | None]] = {}
    for c in classes:
        if c.folder in seen:
            problems.append(f'two classes are called "{printable(c.folder)}"; give one of them another name')
        seen.add(c.folder)
        splits.setdefault(c.called, set()).add(c.split)
        if not c.files:
            problems.append(f'class "{printable(c.folder)}" has no image')
    shared = {name: [s for s in SPLITS if s in found] for name, found in splits.items() if len(found) > 1}
    if shared and not accept_shared:
        problems += [f'class "{printable(name)}" is in {" and ".join(found)}' for name, found in shared.items()]
        problems.append(
            "few-shot accuracy is meant for classes never seen in training (the command's --accept_counts takes them "
            "as they are)"
        )
    if problems:
        raise report_problems(Path(source), problems)


def check_counts(
    name: str, classes: Sequence[SourceClass], expected: Counts, most: Mapping[str | None, int], *, accept: bool
) -> list[str]:
    """Compare with what the dataset is known to have; returns the deviations where they are accepted.

    Raises:
        DataError: deviations that are not accepted.
    """
    problems = []
    for split, count in expected.classes.items():
        found = sum(split is None or c.split == split for c in classes)
        if found != count:
            problems.append(f"{f'split {split}' if split else 'it'} has {found} classes, {count} expected")
    if expected.images_per_class is not None:
        for c in classes:
            count = min(expected.images_per_class, most.get(c.split, most.get(None, expected.images_per_class)))
            if len(c.files) != count:
                problems.append(f'class "{printable(c.folder)}" has {len(c.files)} images, {count} expected')
    if problems and not accept:
        raise DataError(
            f"{name}: not what the field knows under this name:{first_lines(problems, 20)}\nNothing was written. "
            "Complete the source, or take it as it is with --accept_counts."
        )
    return problems
