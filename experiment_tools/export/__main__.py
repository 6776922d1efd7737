"""Export what was learned: weights under plain names, a torch.export program, ONNX, and a model card.

    python -m experiment_tools.export --experiment NAME [--support FOLDER] [--formats safetensors torch_export onnx]
    python -m experiment_tools.export --pretrained omniglot_5way_1shot --support FOLDER

--support holds a folder of images per class, or, where examples are arrays, a file CLASS.npy: the network adapted to
them is exported, a classifier. Without it, the initialisation.
"""

import argparse
import logging
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import NORMALISATIONS
from experiment_parts.runs.checkpoints import read_checkpoint_state
from experiment_tools.adapt import check_number_of_classes, read_images, support_files_of
from experiment_tools.export.arrays import read_arrays
from experiment_tools.export.formats import (
    FILES,
    check_formats,
    largest_difference,
    write_onnx,
    write_safetensors,
    write_torch_export,
)
from experiment_tools.export.model_card import CardFacts, model_card
from experiment_tools.export.plain import PlainNetwork, plain_network
from experiment_tools.parts import learned
from experiment_tools.parts.command import on_console
from experiment_tools.parts.run_reading import Run, find_run, read_whole_run
from experiment_tools.parts.settings import command_of, shared_path, shell_word, with_plugins
from few_shot_classifier import FewShotClassifier, run_checkpoint
from utils.config import ExperimentConfig, check_config
from utils.data_sources.dataset_classes import pixel_format_of
from utils.errors import ConfigError
from utils.files.atomic_files import free_path
from utils.files.atomic_folders import is_filled, make_folder
from utils.files.pretrained import LICENCE
from utils.paths import command

log = logging.getLogger(__name__)

STATISTICS = ("transductive", "running", "support", "episodic")


def export(options: argparse.Namespace) -> dict[str, float]:
    """Write the folder; returns file -> largest difference from the original on random input.

    Raises:
        ConfigError, DataError, StorageError: what cannot be exported or written.
    """
    output: Path = options.output or free_path(Path(f"exported_{learned.name_of(options)}"))
    if is_filled(output) or (output.exists() and not output.is_dir()):
        raise ConfigError(f"{output}: exists already and stays as it is; give another --output")
    check_formats(options.formats)
    is_run = options.pretrained is None
    run = read_whole_run(find_run(options.experiment)) if is_run else learned.pretrained_run(options.pretrained)
    if options.checkpoint == "best" and not run.test:
        done = f"{len(run.rows)} of {run.config.get('total_epochs')} epochs, no test"
        raise ConfigError(
            f"{run.path}: this run has not finished ({done}). Run its script again, or export what there is with "
            "--checkpoint EPOCH"
        )
    checkpoint = run_checkpoint(run.path, options.checkpoint) if is_run else run.path
    classifier, statistics = _classifier(run, checkpoint, options)
    config = check_config(classifier.meta_config_, str(checkpoint))
    adapted, classes, counts = None, None, []
    if options.support is not None:
        examples, labels = _support(options.support, config)
        check_number_of_classes(classifier.meta_config_, options.support, len(set(labels)))
        classifier.fit(examples, labels)
        adapted, classes = classifier.adapted_learner(), [str(name) for name in classifier.classes_]
        counts = [Counter(labels)[name] for name in classes]
    learner = classifier.initial_learner() if adapted is None else adapted.learner
    plain = plain_network(learner, adapted, config)
    differences: dict[str, float] = {}

    def fill(folder: Path) -> None:
        differences.update(_write_files(folder, plain, config, statistics, classes, options.formats))
        n_steps = learner.n_evaluation_steps
        facts = _facts(run, checkpoint, options, plain, statistics, classes, counts, differences, n_steps)
        (folder / "README.md").write_text(model_card(facts, classifier.meta_config_), encoding="utf-8")

    make_folder(output, fill)
    initial = "the initialisation, to be adapted: no --support was given"
    log.info("%s", f"adapted to {', '.join(classes)}" if classes else initial)
    for file, difference in differences.items():
        log.info("%s: differs from the original by at most %.1e", output / file, difference)
    if plain.uses_batch and classes:
        log.warning(
            "single examples come out wrong: batch norm normalises those of a batch together (%s statistics), as in "
            "the run's test. Classify batches with all classes in about equal parts, or export with --statistics "
            "support, which answers each example by itself",
            statistics,
        )
    what = "the model card" if options.pretrained is not None else "the model card; fill in its licence"
    log.info("%s: %s", output / "README.md", what)
    return differences


def _classifier(run: Run, checkpoint: Path, options: argparse.Namespace) -> tuple[FewShotClassifier, str]:
    """Load the classifier with the batch-norm statistics of the option, else those of the first test of the run."""
    config = read_checkpoint_state(checkpoint).get("config", {})
    if config.get("loss") == "mean_squared_error":
        raise ConfigError(f"{run.path}: is a regression; export is for classifiers")
    statistics = options.statistics or (config.get("test_batch_norm_statistics") or ["transductive"])[0]
    changes: dict[str, Any] = (
        {} if statistics == "mixed" else {"batch_norm_statistics": statistics, "test_batch_norm_statistics": None}
    )
    if config.get("precision") == "bfloat16":  # of the convolutions while training; the weights are float32
        changes["precision"] = "float32"
    if options.steps is not None:
        changes["number_of_evaluation_steps_per_iter"] = options.steps
    return learned.classifier_of(options, takes_arrays=True, gpu_to_use="cpu", **changes), statistics


def _support(folder: Path, config: ExperimentConfig) -> tuple[Any, list[str]]:
    """Read the examples of --support and the class of each."""
    if config.inputs is not None:
        return read_arrays(folder, config.inputs)
    files, labels = support_files_of(folder)
    return read_images(folder, files, pixel_format_of(config)), labels


def _write_files(
    folder: Path,
    plain: PlainNetwork,
    config: ExperimentConfig,
    statistics: str,
    classes: list[str] | None,
    formats: list[str],
) -> dict[str, float]:
    mean, deviation = NORMALISATIONS[config.normalisation]
    of_images = {
        "shape": ["n", *config.example_shape],
        "values": [0, 1],
        "resize_filter": config.resize_filter,
        "reverse_channels": config.reverse_channels,
    }
    examples = {"input_shape": config.input_shape} if config.inputs else of_images
    metadata = {
        "architecture": plain.architecture,
        "classes": classes,
        "batch_norm_statistics": statistics,
        "input": examples | {"mean": mean, "deviation": deviation},
    }
    if plain.architecture is not None:
        (folder / "network.py").write_bytes(Path(__file__).with_name("network.py").read_bytes())
    writers = {
        "safetensors": lambda: write_safetensors(plain, folder, metadata),
        "torch_export": lambda: write_torch_export(plain, folder),
        "onnx": lambda: write_onnx(plain, folder),
    }
    return {FILES[name]: largest_difference(plain, writers[name](), FILES[name]) for name in formats}


def _facts(
    run: Run,
    checkpoint: Path,
    options: argparse.Namespace,
    plain: PlainNetwork,
    statistics: str,
    classes: list[str] | None,
    counts: list[int],
    differences: dict[str, float],
    steps: int,
) -> CardFacts:
    import torch

    words = [*command("export").split()]
    for name, value in (
        ("experiment" if options.pretrained is None else "pretrained", run.experiment_name),
        ("support", options.support and shared_path(options.support)),
        ("checkpoint", shared_path(options.checkpoint) if Path(options.checkpoint).exists() else options.checkpoint),
        ("statistics", options.statistics),
        ("steps", options.steps),
    ):
        words += [f"--{name}", shell_word(str(value))] if value not in (None, "best") else []
    words += with_plugins(map(shared_path, options.plugin or ()))
    start = run.starts[-1] if run.starts else {}
    versions = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "trained with torch": start.get("packages", {}).get("torch"),
        "code of commit": start.get("commit"),
    }
    return CardFacts(
        name=run.experiment_name,
        files=differences,
        classes=classes,
        support_counts=counts,
        statistics=statistics,
        uses_batch=plain.uses_batch,
        has_head=plain.has_head,
        has_module=plain.architecture is not None,
        steps=steps,
        epoch=read_checkpoint_state(checkpoint).get("epoch"),
        test=run.test,
        command=" ".join([*words, "--formats", *options.formats]),
        training_command=command_of(run),
        licence=LICENCE if options.pretrained is not None else "",
        versions={name: value for name, value in versions.items() if value},
    )


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("export"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    learned.add_options(parser)
    parser.add_argument(
        "--support",
        type=Path,
        help="a folder per class, with a few images each, or a file CLASS.npy of arrays each; without it the "
        "initialisation is exported",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=tuple(FILES),
        default=["safetensors", "torch_export"],
        help="default: safetensors torch_export",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="new folder; default exported_<name>, exported_<name>-2, ... One with something in it stays",
    )
    parser.add_argument("--steps", type=int, help="inner steps; default: the run's")
    parser.add_argument(
        "--statistics", choices=STATISTICS, help="batch-norm statistics; default: those that the run was tested with"
    )
    options = parser.parse_args(arguments)
    options.formats = list(dict.fromkeys(options.formats))
    export(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
