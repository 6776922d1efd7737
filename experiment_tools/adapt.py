"""Adapt a trained network to a few images of new classes, and classify others.

    python -m experiment_tools.adapt --experiment NAME --support FOLDER --query FOLDER
    python -m experiment_tools.adapt --pretrained omniglot_5way_1shot --support FOLDER --query FOLDER

--support holds a folder of images per class, two or more, and no more than a learned head has outputs for; --query
images, anywhere below it, or is one image. Writes predictions.csv and contact_sheet.html.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiment_tools.parts import learned
from experiment_tools.parts.command import on_console
from experiment_tools.parts.pages import Section, as_image, data_address, page_html
from few_shot_classifier import FewShotClassifier
from utils.errors import ConfigError, DataError
from utils.files.atomic_files import free_path, storage_errors, write_bytes_atomically
from utils.files.tables import as_csv
from utils.images.decoding import DECODING_ERRORS, PixelFormat, decode_image, original_form, thin_lines_text
from utils.images.duplicates import are_of_one_colour, one_colour_text
from utils.images.folders import ImageFolder, scan
from utils.paths import command
from utils.words import counted, printable, some_of

log = logging.getLogger(__name__)

LARGEST_SIDE = 96
"""Pixels, in the contact sheet."""


def image_folders(folder: Path) -> list[ImageFolder]:
    """Return the folders with images at and below a folder, by the rules of datasets.

    Raises:
        DataError: there are none, or it is no folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return scan(folder)[0]


def files_of(folders: Sequence[ImageFolder]) -> list[Path]:
    """All images, sorted."""
    return sorted(Path(folder.path_of(file)) for folder in folders for file in folder.files)


def read_images(folder: Path, files: Sequence[Path], pixel_format: PixelFormat) -> np.ndarray:
    """Decode files to uint8 (n, C, H, W), exactly as images are packed for training.

    Raises:
        DataError: a list of all that cannot be decoded.
    """
    images, problems = [], []
    for file in files:
        try:
            images.append(decode_image(folder / file, pixel_format))
        except DECODING_ERRORS as error:
            problems.append(f"  {printable(file)}: {str(error) or type(error).__name__}")
    if problems:
        raise DataError(
            f"{folder}: {len(problems)} {'image' if len(problems) == 1 else 'images'} cannot be decoded; repair or "
            f"remove {'it' if len(problems) == 1 else 'them'}\n" + "\n".join(problems)
        )
    pixels = np.stack(images)
    blank = [files[rank].as_posix() for rank in are_of_one_colour(pixels)]
    if blank:
        log.warning("%s: %s", printable(folder), one_colour_text(folder, blank, len(files)))
    for file in files if pixel_format.resize_filter == "nearest" else ():
        width, height, _ = original_form(folder / file)
        if lost := thin_lines_text((height, width), pixel_format):
            log.warning("%s: %s", printable(folder / file), lost)
            break  # the others of a folder are as large, mostly
    return pixels


def support_files_of(support: Path) -> tuple[list[Path], list[str]]:
    """Return the images below class folders, as paths inside `support`, and the class of each.

    Raises:
        DataError: an image outside the class folders, none at all, or none in a class folder.
    """
    folders = image_folders(support)
    files = files_of(folders)
    outside = [file for file in files if len(file.parts) < 2]
    if outside:
        raise DataError(
            f"{support}: {printable(outside[0])} lies in no class folder; --support is one folder per class, with "
            "images inside"
        )
    empty = [folder.path for folder in folders if not folder.files]
    if empty:
        raise DataError(f"{support}: no image in {some_of(empty)}; give each class some, or take its folder out")
    return files, [file.parts[0] for file in files]


def check_number_of_classes(config: Mapping[str, Any], support: Path, n_classes: int) -> None:
    """Refuse another number of classes than the head of a trained run has learned.

    Raises:
        ConfigError: one alone, or more than it has learned outputs for.
    """
    most = config["num_classes_per_set"] if config["head"] == "learned" else n_classes
    if n_classes < 2:
        raise ConfigError(f"{support}: holds 1 class; to tell classes apart takes two or more")
    if n_classes > most:
        raise ConfigError(
            f"{support}: holds {n_classes} classes, but the head that was learned tells {most} classes apart "
            f'("num_classes_per_set"). Give 2 to {most}, or take weights trained with "head" "zero" or "prototypes", '
            "which tell any number apart, as those of pretrained/ do whose names end in _fast"
        )


def adapt(classifier: FewShotClassifier, support: Path, query: Path) -> dict[str, Any]:
    """Adapt to the class folders of `support` and classify the images below `query`, or one image.

    Returns:
        classes; support_files, support_labels, support_images; query_files, query_images, probabilities (n, N),
        predictions; and labels, the class whose folder a query image lies in (None: none of them).
    Raises:
        DataError, ConfigError: folders that cannot work, or a number of classes that the head has no outputs for.
    """
    pixel_format = PixelFormat.of(classifier.meta_config_)
    query, files = (query.parent, [Path(query.name)]) if query.is_file() else (query, None)
    query_files = files or files_of(image_folders(query))
    support_files, support_labels = support_files_of(support)
    check_number_of_classes(classifier.meta_config_, support, len(set(support_labels)))
    support_images = read_images(support, support_files, pixel_format)
    query_images = read_images(query, query_files, pixel_format)
    classifier.fit(support_images, support_labels)
    probabilities = classifier.predict_proba(query_images)
    classes = [str(name) for name in classifier.classes_]
    return {
        "classes": classes,
        "support_files": support_files, "support_labels": support_labels, "support_images": support_images,
        "query_files": query_files, "query_images": query_images, "probabilities": probabilities,
        "predictions": [classes[rank] for rank in probabilities.argmax(axis=1)],
        "labels": [next((part for part in reversed(file.parts[:-1]) if part in classes), None) for file in query_files],
    }  # fmt: skip


def accuracy_text(result: Mapping[str, Any]) -> str:
    """Return '7 of 10 right' for the query images whose class their folder names; empty without any."""
    known = [
        (label, predicted)
        for label, predicted in zip(result["labels"], result["predictions"], strict=True)
        if label is not None
    ]
    right = sum(label == predicted for label, predicted in known)
    return f"{right} of {len(known)} right, {100 * right / len(known):.2f} %" if known else ""


def predictions_csv(result: Mapping[str, Any]) -> str:
    """Return a row per query image: file, prediction, its probability, the folder's class, a probability per class."""
    heading = ["file", "prediction", "probability", "folder", *(f"p({name})" for name in result["classes"])]
    images = zip(result["query_files"], result["predictions"], result["labels"], result["probabilities"], strict=True)
    rows = [
        [file.as_posix(), predicted, f"{probabilities.max():.6f}", label,
         *(f"{p:.6f}" for p in probabilities)]
        for file, predicted, label, probabilities in images
    ]  # fmt: skip
    return as_csv([heading, *rows])


def contact_sheet(result: Mapping[str, Any], title: str) -> str:
    """Return one HTML file without anything outside of it: the examples of each class, then every query image with its
    probabilities.
    """
    examples = Section("examples", "Examples", "What the network was adapted to.")
    for name in result["classes"]:
        shown = zip(result["support_images"], result["support_labels"], strict=True)
        images = [_picture(image) for image, label in shown if label == name]
        examples.add(name, {"images": images, "bars": (), "wrong": False}, kind="sheet", size="quarter")
    predictions = Section("predictions", "Predictions", "A red frame: another class than that of the image's folder.")
    queries = zip(
        *(result[key] for key in ("query_files", "query_images", "predictions", "labels", "probabilities")), strict=True
    )
    for file, image, predicted, label, probabilities in queries:
        likely = sorted(zip(probabilities, result["classes"], strict=True), reverse=True)[:5]
        bars = [{"name": name, "share": float(p), "text": f"{100 * p:.1f} %"} for p, name in likely]
        content = {"images": [_picture(image)], "bars": bars, "wrong": label not in (None, predicted)}
        predictions.add(predicted, content, kind="sheet", size="quarter", note=file.as_posix())
    return page_html(title, [examples, predictions], lead=accuracy_text(result))


def _picture(pixels: np.ndarray) -> str:
    image = as_image(pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return data_address(image)


def write_results(targets: Sequence[Path], result: Mapping[str, Any], title: str) -> None:
    """Write the table and the contact sheet.

    Raises:
        StorageError: no space or no permission.
    """
    folder = targets[0].parent
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for target, text in zip(targets, (predictions_csv(result), contact_sheet(result, title)), strict=True):
        write_bytes_atomically(target, text.encode())


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("adapt"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    learned.add_options(parser)
    parser.add_argument("--support", required=True, type=Path, help="a folder per class, with a few images each")
    parser.add_argument("--query", required=True, type=Path, help="images to classify: a folder, or one file")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the results; default adapted_<name>, adapted_<name>-2, ... Files that exist stay",
    )
    parser.add_argument("--steps", type=int, help="inner steps; default: the run's")
    parser.add_argument(
        "--statistics",
        help="batch-norm statistics: transductive (query images are normalised together), support, running, "
        "episodic; default: the run's",
    )
    options = parser.parse_args(arguments)
    changes = {"number_of_evaluation_steps_per_iter": options.steps, "batch_norm_statistics": options.statistics}
    name = learned.name_of(options)
    output = options.output or free_path(Path(f"adapted_{name}"))
    targets = [output / "predictions.csv", output / "contact_sheet.html"]
    for path in targets:
        if path.exists():
            raise ConfigError(f"{path}: exists already and stays as it is; give another --output")
    classifier = learned.classifier_of(options, **{key: value for key, value in changes.items() if value is not None})
    result = adapt(classifier, options.support, options.query)
    write_results(targets, result, f"{name} adapted to {options.support}")
    n_images = ", ".join(f"{name}: {result['support_labels'].count(name)}" for name in result["classes"])
    log.info("adapted to %d classes (%s images)", len(result["classes"]), n_images)
    accuracy = accuracy_text(result)
    classified = counted(len(result["query_files"]), "image")
    log.info("%s classified%s", classified, f"; {accuracy}" if accuracy else "")
    if classifier.adapted_learner().depends_on_other_images:
        log.info(
            "the images to classify are normalised together (transductive batch-norm statistics); "
            "--statistics support would not"
        )
    log.info("%s\n%s", *targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
