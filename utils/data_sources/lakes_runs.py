"""Lake's within-alphabet runs as tasks."""

from pathlib import Path

from utils.data_sources.task_lists import TaskList, TaskLists
from utils.episodes.drawing import EpisodeShape
from utils.errors import DataError
from utils.files.archives import unpack_archive
from utils.files.atomic_folders import is_filled
from utils.paths import dataset_root
from utils.words import printable

LABELS_FILE = "class_labels.txt"


def all_runs_tasks(location: Path) -> TaskLists:
    """Return Lake's within-alphabet classification runs, one task each: of 20 classes one training image and one item.

    A run is a folder with `class_labels.txt`, whose lines are "<run>/test/<item> <run>/training/<class>", relative
    to the folder that the runs are in.

    Args:
        location: the archive, which is unpacked into DATASET_DIR where that was not done, or the folder.
    Raises:
        DataError: no run, a line of another form, or an image that is not there; lists all of them.
    Source: Lake et al. 2015, one-shot classification; brendenlake/omniglot, all_runs.zip.
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
