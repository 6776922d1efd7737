"""What every form of a dataset is turned into before anything is written: classes, each with named images."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.episodes.drawing import SPLITS
from utils.episodes.randomness import random_words, sample_without_replacement
from utils.errors import DataError
from utils.images.folders import report_problems
from utils.known_datasets import Counts
from utils.words import printable

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
    """Names that the images get, each once."""
    read: Callable[[int], ImageContent]
    """Place in `files` -> content."""

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
        name = f"{split}_{value:03}" if names is None else safe_name(names[value])
        files = [f"{rank:07}.png" for rank in ranks.tolist()]
        classes.append(SourceClass(split, name, files, _reader(ranks, read)))
    return classes


def _reader(ranks: np.ndarray, read: Callable[[int], ImageContent]) -> Callable[[int], ImageContent]:
    return lambda place: read(int(ranks[place]))


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
        limited.append(replace(c, files=[c.files[i] for i in chosen], read=_reader(chosen, c.read)))
    return limited


def check_classes(source: Path | str, classes: Sequence[SourceClass], *, accept_shared: bool = False) -> None:
    """Raise one DataError with every class that cannot be written: none at all, twice the same, without images.

    A class in two splits is one too, unless that is accepted: few-shot accuracy is meant for classes never seen in
    training.
    """
    problems = []
    if not classes:
        problems.append("no class found")
    seen: dict[str, SourceClass] = {}
    splits: dict[str, set[str | None]] = {}
    for c in classes:
        if seen.setdefault(c.folder.casefold(), c) is not c:
            problems.append(f'two classes would be the folder "{printable(c.folder)}"')
        splits.setdefault(c.name, set()).add(c.split)
        if not c.files:
            problems.append(f'class "{printable(c.folder)}" has no image')
        elif len({file.casefold() for file in c.files}) < len(c.files):
            problems.append(f'class "{printable(c.folder)}" has two images of one name')
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
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise DataError(
            f"{name}: not what the field knows under this name:\n  "
            + "\n  ".join(shown)
            + "\nNothing was written. Complete"
            " the source, or take it as it is with --accept_counts."
        )
    return problems
