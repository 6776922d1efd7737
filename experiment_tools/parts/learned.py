"""What a tool adapts: what a run has learned, or weights that come with this project."""

import argparse
from typing import Any

from experiment_parts.runs.checkpoints import read_checkpoint_state
from experiment_tools.parts.run_reading import Run, find_run
from few_shot_classifier import FewShotClassifier
from utils.errors import ConfigError
from utils.files.pretrained import pretrained_file
from utils.registry import load_plugins


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let a command line say which: a run and its epoch, or a name."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--experiment", help="name of a run, or the path of its folder")
    source.add_argument(
        "--pretrained", metavar="NAME", help="weights that come with this project, such as omniglot_5way_1shot"
    )
    parser.add_argument("--checkpoint", default="best", help="epoch or file; default: the best by validation")
    parser.add_argument("--plugin", nargs="+", metavar="FILE.py", help="plugin files of the run")


def name_of(options: argparse.Namespace) -> str:
    """Return what it is called."""
    return find_run(options.experiment).name if options.pretrained is None else options.pretrained


def classifier_of(options: argparse.Namespace, *, takes_arrays: bool = False, **params: Any) -> FewShotClassifier:
    """Load it.

    Args:
        takes_arrays: whether the tool knows what to do with examples that are no images.
        params: parameters that are to be other than those of the training.
    Raises:
        ConfigError: no such run, epoch or name, or its examples are no images. StorageError: it cannot be read, or is
            damaged.
    """
    load_plugins({} if options.plugin is None else {"plugin": options.plugin})
    if options.pretrained is not None and options.checkpoint != "best":
        raise ConfigError(
            f"--checkpoint {options.checkpoint} chooses among the epochs of a run, but --pretrained "
            f"{options.pretrained} is one model; leave it out"
        )
    if options.pretrained is None:
        classifier = FewShotClassifier.from_experiment(find_run(options.experiment), options.checkpoint, **params)
    else:
        classifier = FewShotClassifier.from_pretrained(options.pretrained, **params)
    if classifier.input_shape and not takes_arrays:
        raise ConfigError(
            f"{options.experiment or options.pretrained}: its examples are arrays (input_shape "
            f"{list(classifier.input_shape)}), and this command reads images; FewShotClassifier.fit(arrays, labels) "
            "takes arrays"
        )
    return classifier


def pretrained_run(name: str) -> Run:
    """Return what is known of the run that made these weights, as far as their file says it.

    Raises:
        ConfigError, StorageError: as `utils.files.pretrained.pretrained_file`.
    """
    path = pretrained_file(name)
    state = read_checkpoint_state(path)
    config = state["config"] | {"experiment_name": name}
    commands = [training["command"] for training in (*state.get("began_with", ()), state)]
    return Run(
        path, config=config, test=state["test"], starts=[state["start"]], command="\n".join(filter(None, commands))
    )
