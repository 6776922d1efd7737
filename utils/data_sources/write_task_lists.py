"""`python -m utils.prepare_dataset tasks`: write the exact test tasks of a config, or Lake's within-alphabet runs,
to a file; or the fixed lists of a domain, of glyphs or another.

    python -m utils.prepare_dataset tasks --config experiment_config/X.json [--to FILE]
    python -m utils.prepare_dataset tasks --from all_runs.zip [--to FILE]
    python -m utils.prepare_dataset tasks --domain scripts [--to FOLDER]

A run is tested on the file with `--task_list FILE`. Needs no torch.
"""

import argparse
import hashlib
from pathlib import Path

from utils.config import ExperimentConfig, load_config
from utils.data_sources.dataset_classes import find_classes
from utils.data_sources.lakes_runs import all_runs_tasks
from utils.data_sources.task_lists import (
    TaskList,
    TaskLists,
    named_tasks,
    read_task_lists,
    tasks_digest,
    write_task_lists,
)
from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import draw_episodes
from utils.errors import ConfigError, DataError, prints_user_errors
from utils.files.atomic_files import storage_errors
from utils.paths import command, dataset_root
from utils.prepare_dataset.glyphs.benchmark import (
    OTHER_DOMAINS,
    SEED,
    SHAPES,
    TestImages,
    by_pixels,
    fixed_tasks,
    pixel_lines,
)
from utils.prepare_dataset.glyphs.card import expected_digests
from utils.prepare_dataset.glyphs.domains import DOMAINS, folder_of
from utils.words import counted, log_to_terminal, printable, say

SMALL_AND_GREY = {"image_height": 28, "image_width": 28, "image_channels": 1}
"""As the matrix reads them, so that they are decoded once."""


def test_tasks(config: ExperimentConfig) -> TaskLists:
    """Return the test tasks of a config, a list per shape: those that a run of it is tested on.

    Raises:
        ConfigError: a dataset without images.
        DataError, StorageError: as `find_classes`.
    """
    if config.is_regression:
        raise ConfigError(f'"dataset_name" is {config.dataset_name}: its tasks are drawn and have no images to list.')
    dataset = find_classes(config, {"test": config.test_shapes})
    table = ClassTable.of(dataset.classes["test"])
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


def domain_images(dataset_folder: Path) -> TestImages:
    """Return the test images of a domain: glyphs, another one of the benchmark, or a folder that is split already.

    Raises:
        DataError: the dataset is not there, or not split.
    """
    name = dataset_folder.name
    if name in OTHER_DOMAINS:
        keys = {"experiment_name": name, "dataset_name": name, "dataset_path": name, **SMALL_AND_GREY}
        dataset = find_classes(load_config(None, keys | OTHER_DOMAINS[name]), {"test": list(SHAPES.values())[:1]})
        path_of = dataset.packed.image_path
        return TestImages.of({name: list(map(path_of, ranks)) for name, ranks in dataset.classes["test"].items()})
    images = TestImages.of_folder(dataset_folder)
    if not images.classes:
        raise DataError(f"{printable(dataset_folder)}: no classes below a folder test; a domain is split already.")
    return images


def domain_tasks(dataset_name: str, images: TestImages) -> dict[str, TaskLists]:
    """Return the fixed lists of a domain's test images, by name."""
    found = {}
    for name, by_shape in fixed_tasks(images).items():
        lists = []
        for shape, drawn in by_shape.items():
            table = images.table(shape)
            digest = tasks_digest("test", shape, range(len(drawn.classes)), drawn, table, images.paths.__getitem__)
            lists.append(TaskList(shape, named_tasks(drawn, table, images.paths.__getitem__), SEED, digest))
        found[name] = TaskLists(dataset_name, tuple(lists))
    return found


def lists_digest(task_lists: TaskLists) -> str:
    """Return one digest for all lists of a file: that of the list, where there is one."""
    digests = [one.digest for one in task_lists.lists]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@prints_user_errors
def main(arguments: list[str]) -> int:
    """Write a task list; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{command('prepare_dataset')} tasks", description=main.__doc__.partition(";")[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="config whose test tasks are written")
    what.add_argument("--from", dest="location", type=Path, help="all_runs.zip, or the folder that it unpacks to")
    what.add_argument(
        "--domain",
        help=f"whose fixed lists are written: {', '.join([*DOMAINS, *OTHER_DOMAINS])}, or a dataset folder with train, "
        "val and test",
    )
    parser.add_argument(
        "--to",
        type=Path,
        help="file to write (default: <experiment or archive name>.tasks.json, here); of --domain, the folder for its "
        "files (default: <dataset folder>_tasks)",
    )
    options = parser.parse_args(arguments)
    log_to_terminal()
    if options.domain is not None:
        dataset_folder = dataset_root() / folder_of(options.domain)
        expected = expected_digests(dataset_folder.name).get("tasks", {})
        folder = options.to or dataset_folder.with_name(f"{dataset_folder.name}_tasks")
        images = domain_images(dataset_folder)
        for name, lists in domain_tasks(dataset_folder.name, images).items():
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            path, digest = folder / f"{name}.tasks.json", lists_digest(lists)
            _write(path, lists)
            n_tasks = counted(sum(len(one.tasks) for one in lists.lists), "task")
            same = {None: "none is published", digest: "as published"}
            of_known = same.get(expected.get(name), "not the published one")
            say(f"{printable(path)}: {n_tasks} from {lists.dataset}, digest {digest}: {of_known}")
        say("\n".join(pixel_lines(by_pixels(dataset_folder, images))))
        return 0
    if options.config is not None:
        config = load_config(options.config)
        task_lists, name = test_tasks(config), config.experiment_name
    else:
        task_lists, name = all_runs_tasks(options.location), options.location.name.partition(".")[0]
    path = options.to or Path(f"{name}.tasks.json")
    _write(path, task_lists)
    for one in task_lists.lists:
        text = f"{printable(path)}: {len(one.tasks)} tasks of {one.shape} from {task_lists.dataset} {one.digest[:12]}"
        say(text.rstrip())
    return 0


def _write(path: Path, task_lists: TaskLists) -> None:
    if path.exists() and read_task_lists(path) != task_lists:
        raise ConfigError(
            f"{printable(path)}: is there already, with other tasks; nothing is overwritten. Give another name "
            "with --to."
        )
    if not path.exists():
        write_task_lists(path, task_lists)
