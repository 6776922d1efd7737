"""`python -m utils.prepare_dataset tasks`: write the exact test tasks of a config, or Lake's within-alphabet runs, to a file.

    python -m utils.prepare_dataset tasks --config experiment_config/X.json [--to FILE]
    python -m utils.prepare_dataset tasks --from all_runs.zip [--to FILE]

A run is tested on the file with `--task_list FILE`. Needs no torch.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from utils.archives import unpack_archive
from utils.atomic_folders import is_filled
from utils.class_table import ClassTable
from utils.config import dataset_root, load_config
from utils.dataset_classes import find_classes
from utils.episodes import EpisodeShape, draw_episodes
from utils.errors import ConfigError, DataError, UserError
from utils.image_folders import printable
from utils.task_lists import TaskList, TaskLists, named_tasks, tasks_digest, write_task_lists

LABELS_FILE = "class_labels.txt"


def test_tasks(config: Any) -> TaskLists:
    """The test tasks of a config (`utils.config.ExperimentConfig`), a list per shape: those that a run of it is tested on.

    Raises:
        ConfigError: a dataset without images.
        DataError, StorageError: as `find_classes`.
    """
    if config.is_regression:
        raise ConfigError(f'"dataset_name" is {config.dataset_name}: its tasks are drawn and have no images to list.')
    dataset = find_classes(config, {"test": config.test_shapes})
    table = ClassTable.of({c.name: c.images for c in dataset.sets["test"]})
    indices = range(config.num_evaluation_tasks)
    lists = []
    for shape in config.test_shapes:
        drawn = draw_episodes(
            seed=config.val_seed, split="test", indices=indices, class_sizes=table.sizes, shape=shape, rotate=False
        )
        image_path = dataset.packed.image_path
        digest = tasks_digest("test", shape, indices, drawn, table, image_path)
        lists.append(TaskList(shape, named_tasks(drawn, table, image_path), config.val_seed, digest))
    return TaskLists(dataset.folder.name, tuple(lists))


def all_runs_tasks(location: Path) -> TaskLists:
    """Lake's within-alphabet classification runs, one task each: 20 classes, one training image and one item of each.

    A run is a folder with `class_labels.txt`, whose lines are "<run>/test/<item> <run>/training/<class>", relative to the
    folder that the runs are in. Source: Lake et al. 2015, one-shot classification; brendenlake/omniglot, all_runs.zip.

    Args:
        location: the archive, which is unpacked into DATASET_DIR where that was not done, or the folder.
    Raises:
        DataError: no run, a line of another form, or an image that is not there; lists all of them.
    """
    folder = location if location.is_dir() else dataset_root() / location.name.partition(".")[0]
    if not location.is_dir() and not is_filled(folder):
        if not location.is_file():
            raise DataError(f"{printable(location)}: there is no such file or folder.")
        unpack_archive(location, folder)
    problems: list[str] = []
    tasks = []
    for labels in sorted(folder.rglob(LABELS_FILE)):
        runs = labels.parent.parent
        prefix = runs.relative_to(folder).as_posix().removeprefix(".")
        task = []
        for number, line in enumerate(labels.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
            paths = line.split()
            if len(paths) != 2:
                problems.append(f'{printable(labels)}: line {number} is "{printable(line)}", not "ITEM CLASS"')
                continue
            problems += [f"{printable(runs / path)}: not there" for path in paths if not (runs / path).is_file()]
            item, training = (f"{prefix}/{path}" if prefix else path for path in paths)
            task.append((f"{labels.parent.name}/{Path(training).stem}", (training, item)))
        tasks.append(tuple(sorted(task)))
    if not tasks:
        problems.append(f"no folder with {LABELS_FILE}")
    sizes = sorted({len(task) for task in tasks})
    if len(sizes) > 1:
        problems.append(f"the runs have different numbers of classes: {', '.join(map(str, sizes))}")
    if problems:
        raise DataError(f"{printable(folder)}: not Lake's runs:\n  " + "\n  ".join(problems))
    return TaskLists(folder.name, (TaskList(EpisodeShape(sizes[0], 1, 1), tuple(tasks)),))


def main(arguments: list[str]) -> int:
    """Write a task list; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.prepare_dataset tasks", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="config whose test tasks are written")
    what.add_argument("--from", dest="location", type=Path, help="all_runs.zip, or the folder that it unpacks to")
    parser.add_argument("--to", type=Path, help="file to write (default: <experiment or archive name>.tasks.json, here)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if options.config is not None:
            config = load_config(options.config)
            task_lists, name = test_tasks(config), config.experiment_name
        else:
            task_lists, name = all_runs_tasks(options.location), options.location.name.partition(".")[0]
        path = options.to or Path(f"{name}.tasks.json")
        if path.exists():
            raise ConfigError(f"{printable(path)}: is there already; nothing is overwritten. Give another name with --to.")
        write_task_lists(path, task_lists)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for one in task_lists.lists:
        print(f"{printable(path)}: {len(one.tasks)} tasks of {one.shape} from {task_lists.dataset} {one.digest[:12]}".rstrip())
    return 0
