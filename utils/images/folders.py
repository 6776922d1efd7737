"""From a folder of images to classes and splits: which file belongs to which class, in a fixed order.

Two formats (see datasets/README.md): class folders that `train_val_test_split` distributes, and folders that are split
into train, val and test already. Paths are POSIX and relative to the dataset folder, so nothing depends on where it is.
"""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.episodes.drawing import SPLITS, EpisodeShape, fitting_fractions, split_classes
from utils.errors import ConfigError, DataError
from utils.words import counted, first_lines, printable, some_of

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
UNREAD_EXTENSIONS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".jp2", ".tga", ".jfif")
"""Images too, but not ones that are read; a folder's are told, lest classes be smaller than they look."""
MOST_PROBLEMS_SHOWN = 1000
MOST_ALIKE = 3
"""Classes of a split that are too small are told one by one up to this number, beyond it in one problem."""
MOST_NAMED = 10
"""Of the classes in such a problem."""
MEANT_SPLITS = {
    "training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test",
}  # fmt: skip
"""Folder name, in small letters -> how that split's folder is called here."""


@dataclass(frozen=True)
class ImageFolder:
    """One folder that holds images."""

    path: str
    """POSIX, relative to the dataset folder; "" for the dataset folder itself."""
    files: tuple[str, ...]
    """File names, sorted."""

    def path_of(self, file: str) -> str:
        """Return the path of one of its files, relative to the dataset folder."""
        return f"{self.path}/{file}" if self.path else file


@dataclass(frozen=True)
class ImageClass:
    """One class: its name and the ranks of its images in the sorted list of all images of the dataset."""

    name: str
    split: str | None
    """"train", "val" or "test" where the dataset is pre-split, else None."""
    images: tuple[int, ...]
    folders: tuple[str, ...]


def report_problems(dataset_folder: Path, problems: Sequence[str], advice: str = "") -> DataError:
    """Return one error that lists every problem of a dataset, and ends with the advice."""
    return DataError(
        f"{printable(dataset_folder)}: {counted(len(problems), 'problem')} in this dataset:"
        + first_lines(problems, MOST_PROBLEMS_SHOWN)
        + (advice and f"\n{advice}")
    )


def log_unread(folder: Path, files: Sequence[str]) -> None:
    """Log how many of these files are images of a format that is not read."""
    counts = Counter(Path(file).suffix.lower() for file in files if file.lower().endswith(UNREAD_EXTENSIONS))
    if counts:
        listed = ", ".join(f"{count} {extension}" for extension, count in sorted(counts.items()))
        logger.warning(
            "%s: images of other formats are left out: %s. Read are %s; convert them to PNG to have them read",
            printable(folder), listed, " ".join(IMAGE_EXTENSIONS),
        )  # fmt: skip


def scan(dataset_folder: Path) -> tuple[list[ImageFolder], str]:
    """Find every image below a folder: the one walker, for datasets and for the images that tools are given.

    Hidden files and folders and __MACOSX are left out, and images of other formats, with a warning; links to folders
    are followed, each real folder once, with a warning where it is met again. What would be missing silently is kept to
    be reported: a broken link with an image's name counts as an image, and a folder that is as deep as those with
    images but has none counts as one of them.

    Returns:
        (folders with images, sorted by path; sha256 of all that tells whether they hold what they held: where the
        folder is; inode and times of every folder in it; name, size and time of every image).
    Raises:
        DataError: no image at all, or a folder that cannot be read.
    """
    image_folders: list[ImageFolder] = []
    empty_folders: list[ImageFolder] = []
    other_files: list[str] = []
    again: list[str] = []
    seen: set[tuple[int, int]] = set()
    # No device number: of a network file system it differs between machines, and after each mount.
    digest = hashlib.sha256(os.fsencode(dataset_folder.resolve()))
    waiting = [""]
    while waiting:
        path = waiting.pop()
        absolute = dataset_folder / path
        try:
            status = absolute.stat()
            if (status.st_dev, status.st_ino) in seen:
                again.append(path)
                continue
            with os.scandir(absolute) as opened:
                entries = sorted(
                    (e for e in opened if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: e.name
                )
        except OSError as error:
            raise DataError(f"{printable(absolute)}: this folder cannot be read: {error.strerror}.") from error
        seen.add((status.st_dev, status.st_ino))
        subfolders = [entry.name for entry in entries if _is_folder(entry)]
        files = [e for e in entries if e.name.lower().endswith(IMAGE_EXTENSIONS) and e.name not in subfolders]
        other_files += [
            e.name for e in entries if e.name.lower().endswith(UNREAD_EXTENSIONS) and e.name not in subfolders
        ]
        digest.update(_fingerprint_lines(path, status, files))
        waiting += [f"{path}/{name}" if path else name for name in reversed(subfolders)]
        if files:
            image_folders.append(ImageFolder(path, tuple(entry.name for entry in files)))
        elif not subfolders:
            empty_folders.append(ImageFolder(path, ()))
    log_unread(dataset_folder, other_files)
    if again:
        logger.warning(
            "%s: links to folders that are in the dataset already are left out: %s; copy such a folder if it is to "
            "count twice",
            printable(dataset_folder), some_of(again),
        )  # fmt: skip
    depths = {folder.path.count("/") for folder in image_folders}
    image_folders += [folder for folder in empty_folders if image_folders and folder.path.count("/") in depths]
    if not image_folders:
        raise DataError(
            f"{printable(dataset_folder)}: no image found (looked for {', '.join(IMAGE_EXTENSIONS)} in all folders"
            " below). docs/own_data.md shows the folder formats."
        )
    return sorted(image_folders, key=lambda folder: folder.path), digest.hexdigest()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, through a file, or into a folder that may not be entered
        return False


def _fingerprint_lines(path: str, status: os.stat_result, files: Sequence[os.DirEntry]) -> bytes:
    """Return a folder and its images, a line each; times alone would not do, as archives and rsync set them.

    A change time cannot be set: that of a folder shows a file that was replaced under its old name and times, that of a
    file what was written into it in place.
    """
    lines = [f"{path!r} {status.st_ino} {status.st_ctime_ns} {status.st_mtime_ns}"]
    for entry in files:
        try:
            of_file = entry.stat()
            lines.append(f"{entry.name!r} {of_file.st_size} {of_file.st_mtime_ns} {of_file.st_ctime_ns}")
        except OSError:  # a broken link: it cannot be decoded either, which is reported with its reason
            lines.append(repr(entry.name))
    return "\n".join([*lines, ""]).encode()


def folders_inside_classes(folders: Sequence[ImageFolder], name_of: Callable[[str], object]) -> list[str]:
    """Return a problem per folder with images of its own and in folders below it that are other classes.

    A subfolder of a class would be a class of its own, often in another split.

    Args:
        name_of: path of a folder -> what its class is; None for a folder that is no class.
    """
    with_images = {folder.path for folder in folders if folder.files and name_of(folder.path) is not None}
    inside: dict[str, list[str]] = defaultdict(list)
    for path in sorted(with_images - {""}):
        parts = path.split("/")
        for above in ("/".join(parts[:depth]) for depth in range(len(parts))):
            if above in with_images and name_of(above) != name_of(path):
                inside[above].append(path)
    problems = [
        f"{printable(above or 'the dataset folder itself')} has images of its own and in {some_of(below)}; say by "
        "indexes_of_folders_indicating_class or by moving them what is one class"
        for above, below in list(inside.items())[:MOST_NAMED]
    ]
    return problems + ([f"so have {len(inside) - MOST_NAMED} more folders"] if len(inside) > MOST_NAMED else [])


def group_into_classes(
    folders: Iterable[ImageFolder],
    dataset_folder: Path,
    indexes_of_folders_indicating_class: Sequence[int],
    sets_are_pre_split: bool,
    labels_as_int: bool = False,
) -> tuple[list[ImageClass], list[str]]:
    """Group images by class name: the path parts with the given indexes, joined by "/".

    Parts are those of <dataset folder>/.../<file>, so -1 would be the file and -2 the folder it is in. For a pre-split
    dataset the uppermost folder named train, val or test (in any letter case) is the split and no part of the name.

    Args:
        folders: as `scan` returns them.
        labels_as_int: class names are whole numbers and sorted as such.
    Returns:
        (classes sorted by name, problems as lines of text).
    Raises:
        ConfigError: an index of the file name itself.
    """
    if -1 in indexes_of_folders_indicating_class or not indexes_of_folders_indicating_class:
        raise ConfigError(
            f"indexes_of_folders_indicating_class {list(indexes_of_folders_indicating_class)}: must name folders; -1 is"
            " the image file itself, -2 the folder it is in. Use e.g. [-2] or [-3, -2]."
        )
    problems: list[str] = []
    outside_of_splits: list[str] = []
    any_split = False
    images: dict[tuple[str | None, str], list[int]] = {}
    paths: dict[tuple[str | None, str], list[str]] = {}
    spellings: dict[tuple[str | None, str], str] = {}
    start = 0
    for folder in folders:
        ranks = range(start, start + len(folder.files))
        start += len(folder.files)
        parts = [dataset_folder.resolve().name, *(folder.path.split("/") if folder.path else []), "file"]
        at = _place_of_split(parts) if sets_are_pre_split else None
        any_split |= at is not None
        try:
            spelled = _name_in_path(parts, indexes_of_folders_indicating_class, at, folder.files)
            if sets_are_pre_split and at is None:
                outside_of_splits.append(folder.path)
                continue
            name = _whole_number(spelled) if labels_as_int else spelled
        except ValueError as error:
            problems.append(f"{printable(dataset_folder / folder.path)}: {error}")
            continue
        of_class = (None if at is None else parts[at].lower(), name)
        if spellings.setdefault(of_class, spelled) != spelled:
            problems.append(
                f'{printable(dataset_folder / folder.path)}: with labels_as_int "{printable(spelled)}" is the class'
                f' {name}, as "{printable(spellings[of_class])}" is. Rename one, or set labels_as_int to false'
            )
        images.setdefault(of_class, []).extend(ranks)
        paths.setdefault(of_class, []).append(folder.path)
    classes = [ImageClass(name, split, tuple(images[split, name]), tuple(paths[split, name])) for split, name in images]
    problems = _name_outsiders(dataset_folder, outside_of_splits, any_split=any_split) + problems
    return sorted(classes, key=lambda c: (c.split or "", int(c.name) if labels_as_int else 0, c.name)), problems


def _place_of_split(parts: Sequence[str]) -> int | None:
    """Return the place of the uppermost folder below the dataset's own that is named as a split."""
    return next((i for i, part in enumerate(parts[1:-1], start=1) if part.lower() in SPLITS), None)


def _name_in_path(parts: Sequence[str], indexes: Sequence[int], at: int | None, files: Sequence[str]) -> str:
    """Return the name of the class that a path says.

    Args:
        parts: of the path, with the dataset's folder and the file.
        at: place of the split, which is no part of a name.
        files: the images there.
    Raises:
        ValueError: it says none.
    """
    keys = f"indexes_of_folders_indicating_class {list(indexes)}"
    try:
        positions = [range(len(parts))[index] for index in indexes]
    except IndexError:
        example = (
            f". Move its images, such as {printable(files[0])}, into class folders, or change that key" if files else ""
        )
        raise ValueError(f"not deep enough for {keys}{example}") from None
    names = [parts[position] for position in positions if position != at]
    if not names:
        raise ValueError(f"{keys} names no class folder below the split")
    return "/".join(names)


def _whole_number(name: str) -> str:
    """Return the name of a class as the number that it is. Raises ValueError where it is none."""
    try:
        return str(int(name))
    except ValueError:
        raise ValueError(f'class name "{printable(name)}" is no whole number, but labels_as_int is true') from None


def _name_outsiders(dataset_folder: Path, folders: Sequence[str], *, any_split: bool) -> list[str]:
    """Return a problem per folder that should have been a split, or holds none: named nearly so, else the uppermost.

    Plain class folders, without any split among them, are one problem together.
    """
    if (
        folders
        and not any_split
        and not any(part.lower() in MEANT_SPLITS for folder in folders for part in folder.split("/"))
    ):
        return [
            f"{printable(dataset_folder)}: sets_are_pre_split is true, but no folder in it is named train, val or test."
            ' Set "sets_are_pre_split" to false to have its classes split, or sort them into such folders.'
        ]
    counts: Counter[tuple[str, str]] = Counter()
    for folder in folders:
        parts = folder.split("/")
        at = next((i for i, part in enumerate(parts) if part.lower() in MEANT_SPLITS), None)
        counts["/".join(parts[: (at or 0) + 1]), "" if at is None else MEANT_SPLITS[parts[at].lower()]] += 1
    return [
        f"{printable(dataset_folder / path)}: sets_are_pre_split is true, but no folder above these images is named "
        "train,"
        f" val or test{f' ({count} folders)' if count > 1 else ''}"
        + (f". Rename {printable(path.split('/')[-1])} to {meant}." if meant else "")
        for (path, meant), count in counts.items()
    ]


def split_into_sets(
    classes: Sequence[ImageClass], train_val_test_split: Sequence[float], class_split_seed: int
) -> dict[str, list[ImageClass]]:
    """Return split -> classes: as the folders say for a pre-split dataset, else by `split_classes`."""
    if any(c.split is not None for c in classes):
        return {split: [c for c in classes if c.split == split] for split in SPLITS}
    by_name = {c.name: c for c in classes}
    names = split_classes(list(by_name), train_val_test_split, class_split_seed)
    return {split: [by_name[name] for name in names[split]] for split in SPLITS}


def find_shortages(
    sets: dict[str, list[ImageClass]],
    dataset_folder: Path,
    shapes: Mapping[str, Sequence[EpisodeShape]],
    pre_split: bool,
) -> list[str]:
    """Return every reason why no episodes can be drawn: too few classes for N way, too few images for K shot + Q query.

    Args:
        shapes: split -> shapes of its episodes, of which the largest count; a test shape that is none of the training's
            is blamed on the keys of the test.
    """
    problems = []
    n_classes = sum(map(len, sets.values()))
    ways = {split: max(shape.n_way for shape in shapes[split]) for split in shapes}
    least = [ways.get(split, 1) for split in SPLITS]
    fitting = fitting_fractions(n_classes, least)
    of_fractions = (
        f"No fractions give all splits enough: there are {n_classes} classes, and {' + '.join(map(str, least))} are "
        "needed. Add classes"
    )
    if fitting:
        of_fractions = (
            f"Raise its fraction in train_val_test_split (there are {n_classes} classes), as in --train_val_test_split "
            f"{' '.join(map(str, fitting))}"
        )
    third = n_classes // len(SPLITS)  # which each split can have
    most = f" to {third}" if third > 1 and not fitting and not pre_split else ""
    for split in shapes:
        classes = sets[split]
        n_way = ways[split]
        largest = max(shapes[split], key=lambda shape: shape.n_images)
        of_the_test = (
            "test_" if split == "test" and not set(shapes[split]) <= set(shapes.get("train", shapes[split])) else ""
        )
        of_training = {shape.n_way for shape in shapes.get("train", shapes[split])}
        of_ways = "val_" if split == "val" and n_way not in of_training else of_the_test
        fix = (
            f"Put class folders into {printable(_split_folder(dataset_folder, split, classes))}"
            if pre_split
            else of_fractions
        )
        lower = f" or lower {of_ways}num_classes_per_set{most}"
        if not classes:
            problems.append(f"split {split} has no class. {fix}{lower if most else ''}.")
        elif len(classes) < n_way:
            problems.append(
                f"split {split} has {counted(len(classes), 'class', 'classes')}, but"
                f" {of_ways}num_classes_per_set is {n_way}. {fix}{lower}."
            )
        problems += _small_classes(split, classes, dataset_folder, largest, of_the_test)
    return problems


def _small_classes(
    split: str, classes: Sequence[ImageClass], dataset_folder: Path, shape: EpisodeShape, of_the_test: str
) -> list[str]:
    """Return a problem per class with too few images for K shot + Q query, or one for all where they are many."""
    needed = (
        f"{of_the_test}num_samples_per_class {shape.n_shot} + {of_the_test}num_target_samples {shape.n_query} needs "
        f"{shape.n_images}"
    )
    fix = f"Add images, lower {of_the_test}num_target_samples or take"
    small = [c for c in classes if len(c.images) < shape.n_images]
    if len(small) <= MOST_ALIKE:
        return [
            f'class "{printable(c.name)}" ({split}) has {len(c.images)} images, but {needed}:'
            f" {printable(dataset_folder / c.folders[0])}. {fix} {'the folder' if c.folders[0] else 'its images'} out."
            for c in small
        ]
    sizes = sorted({len(c.images) for c in small})
    named = some_of([f"{c.folders[0]} ({len(c.images)})" for c in small], MOST_NAMED)
    return [
        f"split {split}: {len(small)} of its {len(classes)} classes have only {sizes[0]}"
        f"{f' to {sizes[-1]}' if len(sizes) > 1 else ''} images, but {needed}. {fix} these folders out: {named}."
    ]


def _split_folder(dataset_folder: Path, split: str, classes: Sequence[ImageClass]) -> Path:
    """Return the folder of a split as it is spelled on disk."""
    if classes:
        parts = classes[0].folders[0].split("/")
        at = next((i for i, part in enumerate(parts) if part.lower() == split), 0)
        return dataset_folder.joinpath(*parts[: at + 1])
    try:
        names = sorted(
            entry.name for entry in dataset_folder.iterdir() if entry.name.lower() == split and entry.is_dir()
        )
    except OSError:
        names = []
    return dataset_folder / (names[0] if names else split)
