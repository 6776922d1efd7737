"""Test the weights that come with this project again: their bytes, their cards, their accuracy on the test tasks.

    python -m experiment_tools.verify_pretrained [NAME ...] [--tasks 20]
    python -m experiment_tools.verify_pretrained --add RUN [--name NAME]

The dataset is looked for in DATASET_DIR; without it, bytes and cards alone are compared, or with --tasks it is an
error. --add makes file, card and entry of the index out of the best epoch of a run, tested on its dataset.
"""

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from data import build_data
from experiment_parts.evaluation.split_evaluation import evaluate_tasks
from experiment_parts.evaluation.task_sets import shape_protocols
from experiment_parts.evaluation.test_results import score_models
from experiment_parts.runs.checkpoints import checkpoint_bytes, read_checkpoint_state
from experiment_tools.parts.command import on_console
from experiment_tools.parts.methods import method_name
from experiment_tools.parts.run_reading import Run, find_run, read_whole_run
from experiment_tools.parts.settings import config_of, nearest_config, script_command
from few_shot_classifier import FewShotClassifier, run_checkpoint
from utils.config import check_config
from utils.errors import ConfigError, DataError
from utils.files import pretrained
from utils.files.archives import find_archive
from utils.files.atomic_files import write_bytes_atomically
from utils.files.atomic_folders import is_filled
from utils.files.reading import read_text, why_unreadable
from utils.files.tables import write_json
from utils.known_datasets import folder_named, known_by_folder
from utils.metrics import percent, summarise
from utils.paths import PACKAGE, command, configs, dataset_root
from utils.words import counted

log = logging.getLogger(__name__)

PUBLISHED_TASKS = 600
NAME = re.compile(r"[a-z0-9][a-z0-9_+]{0,79}")


class Training(TypedDict):
    """What a card says of a training: that of its weights, or an earlier one that they began with."""

    config: dict[str, Any]
    epoch: int
    command: str
    epochs_done: int
    val_accuracy: float
    training_s: float
    start: Mapping[str, Any]


def measure(classifier: FewShotClassifier, n_tasks: int, epoch: int, most_tasks: int) -> list[dict[str, Any]]:
    """Test on the first `n_tasks` test tasks of its dataset, as the end of its run does.

    Args:
        epoch: that it is of, for the result.
        most_tasks: that are published, whose digest the result names.
    Returns:
        entries of `results` in test_summary.json, with `hits`: right answers in each task. One for each shape of tasks
        and kind of batch-norm statistics: those of the run's test and, where the network has batch norm, `support`.
    Raises:
        DataError: the dataset is not there, or not in order.
    """
    changes = {"num_evaluation_tasks": max(n_tasks, most_tasks)}
    config = check_config(classifier.meta_config_ | changes, "the test of the weights")
    data = build_data(config, "cpu", getattr(torch, config.parameter_format))
    inductive = ["support"] if config.norm_layer in ("batch_norm", "task_norm") else []
    learner, results = classifier.initial_learner(), []
    for shape, protocol in shape_protocols(config):
        digest = data.task_list_digest("test", range(most_tasks), shape)
        for kind in dict.fromkeys([*config.test_batch_norm_statistics, *inductive]):
            evaluation = evaluate_tasks(
                learner, data, "test", n_tasks=n_tasks, tasks_per_batch=config.tasks_per_meta_batch, statistics=kind,
                with_scores=True, shape=shape,
            )  # fmt: skip
            hits = (evaluation.scores.argmax(-1) == evaluation.labels).sum(-1).tolist()
            result = {"protocol": protocol | {"statistics": kind}, "task_list_digest": digest, "hits": hits}
            results.append(result | score_models(evaluation.scores[None], evaluation.labels, [{"epoch": epoch}]))
    data.check_content()
    return results


def accuracy_text(result: Mapping[str, Any], n_tasks: int | None = None) -> str:
    """Return '98.03 % +- 0.50', of the first tasks or of all."""
    n_queries = result["protocol"]["ways"] * result["protocol"]["queries"]
    return percent(summarise([hits / n_queries for hits in result["hits"][:n_tasks]]))


def verify(name: str, n_tasks: int | None = None) -> str:
    """Compare bytes, card and accuracy with what was published; returns what was found.

    Args:
        n_tasks: None: those of the card; of more, the accuracy is told beside that of the card's.
    Raises:
        ConfigError: no such name. StorageError: damaged. DataError: the card, the tasks or an accuracy differ, or
            `n_tasks` cannot be tested.
    """
    path = pretrained.pretrained_file(name)
    state = read_checkpoint_state(path)
    card = path.with_suffix(".md")
    try:
        is_of_file = read_text(card) == card_text(path, state)
    except (OSError, ValueError) as error:
        raise DataError(f"{card}: {why_unreadable(error)}; {pretrained.remedy(card)}") from error
    if not is_of_file:
        raise DataError(f"{card}: does not say what {path.name} holds; {pretrained.remedy(card)}")
    config, published = state["config"], state["test"]["results"]
    folder = folder_named(config["dataset_path"] or config["dataset_name"])
    if not is_filled(dataset_root() / folder) and find_archive(config["dataset_name"], dataset_root()) is None:
        untested = f"{folder} is not in DATASET_DIR, {dataset_root()}"
        if n_tasks:
            raise DataError(f"{name}: bytes and card are in order, but --tasks {n_tasks} cannot be tested: {untested}")
        return f"{name}: bytes and card are in order. NOT TESTED: {untested}"
    most_tasks = published[0]["protocol"]["tasks"]
    n_tasks = n_tasks or most_tasks
    n_compared = min(n_tasks, most_tasks)
    classifier = FewShotClassifier.from_pretrained(name, gpu_to_use="cpu")
    found = []
    for before, now in zip(published, measure(classifier, n_tasks, state["epoch"], most_tasks), strict=True):
        if before["task_list_digest"] != now["task_list_digest"]:
            raise DataError(
                f"{card}: its test tasks are not those of {dataset_root() / folder}, which has other classes or images"
            )
        was, here = accuracy_text(before, n_compared), accuracy_text(now, n_compared)
        if was != here:
            raise DataError(
                f"{card}: {was} on {counted(n_compared, 'task')} with {before['protocol']['statistics']} statistics, "
                f"but {here} here. Made with torch {state['tested_with']}, here is {torch.__version__}: another "
                "version or processor rounds otherwise, which may turn single answers; more is other images or a fault"
            )
        protocol = before["protocol"]
        more = f"; {accuracy_text(now)} on {counted(n_tasks, 'task')}" if n_tasks > n_compared else ""
        found.append(f"{here} ({protocol['ways']}-way {protocol['shots']}-shot, {protocol['statistics']}{more})")
    tasks = counted(n_compared, "task")
    return f"{name}: bytes and card are in order, accuracy on {tasks} as published: {', '.join(found)}"


def add(options: argparse.Namespace) -> Path:
    """Make file, card and entry of the index out of a run; returns the file.

    Raises:
        ConfigError: a run that cannot be published, or the name is taken. DataError: no dataset to test it on.
    """
    run = read_whole_run(find_run(options.add))
    name = options.name or run.experiment_name
    path = pretrained.FOLDER / f"{name}.safetensors"
    if PACKAGE:
        raise ConfigError("--add: weights are added to a checkout, not to an installed package")
    if not NAME.fullmatch(name):
        raise ConfigError(f'--name {name}: a name is 1 to 80 small letters, digits, "_" and "+"')
    taken = [file for file in (path, path.with_suffix(".md")) if file.exists()]
    # The last two are files there, too, where letter case does not count.
    if taken or name in (*pretrained.pretrained_index(), "readme", "index"):
        raise ConfigError(f"{(taken or [path])[0]}: exists already and stays as it is; give another --name")
    if run.is_regression or run.config.get("plugin_sha256") or run.best_val is None:
        raise ConfigError(
            f"{run.path}: a plugin's network, a regression or not validated yet; --add takes this project's classifiers"
        )
    checkpoint = run_checkpoint(run.path)
    stored = read_checkpoint_state(checkpoint)
    classifier, epoch = FewShotClassifier.from_experiment(run.path, checkpoint, gpu_to_use="cpu"), stored["epoch"]
    n_tasks = options.tasks or PUBLISHED_TASKS
    state = {
        **training_of(run, classifier.meta_config_, epoch),
        "began_with": earlier_stages(run.config.get("initial_weights") or ""),
        "test": {"results": measure(classifier, n_tasks, epoch, n_tasks)},
        "tested_with": torch.__version__,
    }
    data = checkpoint_bytes(classifier.initialisation_, state)
    if len(data) > pretrained.MOST_BYTES:
        raise ConfigError(
            f"{checkpoint}: {len(data):,} bytes of weights, but each clone gets them, so at most "
            f"{pretrained.MOST_BYTES:,} are taken; share it by {command('export')}"
        )
    together = len(data) + sum(file.stat().st_size for file in pretrained.FOLDER.glob("*.safetensors"))
    if together > pretrained.MOST_BYTES_TOGETHER:
        raise ConfigError(
            f"{pretrained.FOLDER}: with these weights {together:,} bytes, but each clone gets them, so at most "
            f"{pretrained.MOST_BYTES_TOGETHER:,} are taken; take others out first, or share it by {command('export')}"
        )
    write_bytes_atomically(path, data)
    write_bytes_atomically(path.with_suffix(".md"), card_text(path, state).encode())
    # Read again: while this one was tested, another may have been added.
    write_json(pretrained.index_path(), pretrained.pretrained_index() | {name: hashlib.sha256(data).hexdigest()})
    return path


def training_of(run: Run, config: Mapping[str, Any], epoch: int) -> Training:
    """Return what a card says of the training of a run up to an epoch."""
    beginning = run.config.get("initial_weights") or ""
    shown = {"initial_weights": "/".join(["experiments", *Path(beginning).parts[-3:]])} if "/" in beginning else {}
    if len(run.rows) < run.config["total_epochs"]:
        shown["total_epochs_before_pause"] = len(run.rows)
    # Others have the generated configs alone: where it was started with one of these, that, else the nearest.
    given = config_of(run)
    nearest = nearest_config(dict(config) | shown, given if given in configs().values() else None)
    return {
        "config": dict(config) | {"initial_weights": ""},  # which the file holds, trained on
        "epoch": epoch,
        "command": script_command(*nearest) if nearest else "",
        "epochs_done": len(run.rows),
        "val_accuracy": run.rows[epoch - 1]["val_accuracy_mean"],
        "training_s": sum(row["epoch_run_time"] for row in run.rows[:epoch]),
        "start": run.starts[0] if run.starts else {},
    }


def earlier_stages(weights: str) -> list[Training]:
    """Return the trainings behind the weights that a run began with, the first one first.

    Raises:
        ConfigError: a file without the run that it is of.
    """
    if not weights:
        return []
    if weights in pretrained.pretrained_index():
        state = read_checkpoint_state(pretrained.pretrained_file(weights))
        return [*state.get("began_with", []), Training(**{key: state[key] for key in Training.__annotations__})]
    path = pretrained.weights_file(weights)
    folder = path.parent.parent
    if not path.is_file() or not (folder / "config.json").is_file():
        raise ConfigError(
            f"{path}: the run began with these weights, whose own training belongs on the card, but they are in no "
            "folder of a run; put that back there"
        )
    run = read_whole_run(folder)
    stage = training_of(run, run.config, read_checkpoint_state(path)["epoch"])
    return [*earlier_stages(run.config.get("initial_weights") or ""), stage]


def training_text(training: Training) -> str:
    """Return how long a training was, and on what."""
    config, start, epoch = training["config"], training["start"], training["epoch"]
    device = {"cpu": f"{counted(start.get('threads', 1), 'thread')} of a CPU"}
    return (
        f"epoch {epoch} (validation accuracy {100 * training['val_accuracy']:.2f} %) of {training['epochs_done']} done "
        f"and {config['total_epochs']} planned: {epoch * config['total_iter_per_epoch']:,} iterations of "
        f"{config['batch_size'] * config['samples_per_iter']} tasks, {training['training_s'] / 3600:.2f} hours on "
        f"{device.get(start.get('device'), start.get('device', 'a machine not known'))}"
    )


def card_text(path: Path, state: Mapping[str, Any]) -> str:
    """Return the card of a file of weights: made of the file alone."""
    data, config, start = path.read_bytes(), state["config"], state["start"]
    of_data, results = start.get("data", {}), state["test"]["results"]
    dataset, images = config["dataset_name"], f"{config['image_height']}x{config['image_width']}"
    classes = ", ".join(f"{facts['classes']:,} {split}" for split, facts in of_data.get("splits", {}).items())
    began_with = state.get("began_with", [])
    facts = {
        "method": f"{method_name(config)}, {config['num_classes_per_set']}-way {config['num_samples_per_class']}-shot, "
        f"backbone {config['backbone']}, images {images}x{config['image_channels']}",
        "file": f"`{path.name}`, {len(data):,} bytes, sha256 `{hashlib.sha256(data).hexdigest()}`",
        "licence": f"{pretrained.LICENCE}, as this project",
        "data": f"{dataset}; licence: {known_by_folder(dataset).licence or 'not known here'}",
        "classes": f"{classes}; decoded images `{of_data.get('content_sha256', 'not known')}`",
        **{
            f"before that, {training['config']['experiment_name']}": f"{training['config']['num_classes_per_set']}-way "
            f"{training['config']['num_samples_per_class']}-shot, {training_text(training)}"
            for training in began_with
        },
        "training": training_text(state),
        "made with": f"torch {start.get('packages', {}).get('torch')}, code of commit `{start.get('commit')}`",
    }
    lines = [f"# {path.stem}", "", "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items())]
    if commands := [training["command"] for training in (*began_with, state) if training["command"]]:
        lines += ["", "```bash", *commands, "```"]
    lines += ["", "| test tasks | queries per class | inner steps | batch-norm statistics | accuracy |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for result in results:
        protocol = result["protocol"]
        tasks = f"{protocol['tasks']:,} of seed {protocol['seed']}, {protocol['ways']}-way {protocol['shots']}-shot"
        cells = (tasks, protocol["queries"], protocol["steps"], protocol["statistics"], accuracy_text(result))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    digests = dict.fromkeys(f"`{result['task_list_digest']}`" for result in results)
    lines += [
        "",
        "+- is the half width of the 95 % interval of the mean over tasks (Student's t), one model alone. Under "
        f"`support` an answer does not depend on the other queries. List of tasks: {', '.join(digests)}. Tested with "
        f"torch {state['tested_with']}; `verify_pretrained` tests it again.",
    ]
    return "\n".join(lines) + "\n"


def _all_names() -> list[str]:
    """Return what the index has, where the folder holds no other weights.

    Raises:
        DataError: it does, or there are none at all.
    """
    names = list(pretrained.pretrained_index())
    others = sorted({path.stem for path in pretrained.FOLDER.glob("*.safetensors")} - set(names))
    if others or not names:
        raise DataError(
            f"{pretrained.index_path()}: names {', '.join(names) or 'no weights'}, and beside it lie "
            f"{', '.join(others) or 'none'}; {pretrained.remedy(pretrained.index_path())}"
        )
    return names


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("verify_pretrained"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all in the index")
    parser.add_argument("--tasks", type=int, help=f"test tasks; default: the card's, with --add {PUBLISHED_TASKS}")
    parser.add_argument(
        "--add", metavar="RUN", help="publish the best epoch of a run: its name, or the path of its folder"
    )
    parser.add_argument("--name", help="what they are called; default: as the run")
    options = parser.parse_args(arguments)
    if options.tasks is not None and options.tasks < 1:
        raise ConfigError(f"--tasks {options.tasks}: give 1 or more")
    if options.add and options.names:
        raise ConfigError(f"{' '.join(options.names)}: --add tests what it adds alone; leave them out")
    if options.name and not options.add:
        raise ConfigError(f"--name {options.name}: is for --add RUN; names to test are given without it")
    names = [add(options).stem] if options.add else options.names or _all_names()
    for name in names:  # before the first one is tested, which takes minutes
        pretrained.pretrained_file(name)
    for name in names:
        log.info("%s", verify(name, options.tasks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
