"""Test tasks as a file: what a run is tested on, by name, for others to score, and Lake's within-alphabet runs."""

import json
import os
import shutil
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import torch

from data import build_data
from tests.conftest import draw_dataset, draw_image
from tests.tools.runs import other_task_sets
from utils.config import check_config
from utils.data_sources.lakes_runs import all_runs_tasks
from utils.data_sources.task_lists import (
    TaskList,
    TaskLists,
    indexed_tasks,
    named_tasks,
    read_task_lists,
    tasks_digest,
    write_task_lists,
)
from utils.data_sources.write_task_lists import main
from utils.episodes.class_table import ClassTable
from utils.episodes.drawing import EpisodeShape
from utils.errors import DataError
from utils.paths import REPOSITORY_ROOT
from utils.prepare_dataset.__main__ import main as prepare_dataset

TINY = {
    "experiment_name": "tiny", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
    "train_val_test_split": [0.4, 0.3, 0.3], "num_classes_per_set": 3, "num_samples_per_class": [2, 1],
    "num_target_samples": 3, "num_evaluation_tasks": 7, "val_seed": 5,
}  # fmt: skip


def config(**changes):
    return check_config(TINY | changes, "test")


@pytest.fixture
def written(tiny_dataset, tmp_path, capsys):
    """`written()` -> path of the task list of TINY, made by the command."""
    tiny_dataset()
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))

    def write():
        assert (
            prepare_dataset(["tasks", "--config", str(tmp_path / "tiny.json"), "--to", str(tmp_path / "tasks.json")])
            == 0
        )
        return tmp_path / "tasks.json"

    return write


def test_a_run_on_the_file_sees_exactly_the_test_tasks(written, capsys):
    path = written()
    digests = [build_data(config(), "cpu").task_list_digest("test", range(7), shape) for shape in config().test_shapes]
    listed = other_task_sets(config(task_list=str(path)))
    assert [tasks.digest for tasks in listed] == digests
    assert digests[0][:12] in capsys.readouterr().out
    for tasks in listed:
        expected = build_data(config(), "cpu").episodes("test", [6, 2], tasks.shape)
        batch = tasks.data.episodes("test", [6, 2], tasks.shape)
        for name in ("support_images", "support_labels", "query_images", "query_labels"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))
    assert listed[0].protocol["task_list"] == "tasks.json" and listed[0].protocol["seed"] == 5
    assert [tasks.protocol["shots"] for tasks in listed] == [2, 1]


def test_the_file_says_everything_by_name(written):
    """A reader of its own: nothing of this project is used."""
    content = json.loads(written().read_text())
    batch = build_data(config(), "cpu").episodes("test", [3])
    names = build_data(config(), "cpu").class_names["test"]
    task = content["lists"][0]["tasks"][3]
    assert [content["classes"][rank] for rank, _, _ in task] == [names[rank] for rank in batch.class_ids[0]]
    assert [(len(support), len(query)) for _, support, query in task] == [(2, 3)] * 3
    for rank, support, query in task:
        assert all(
            content["images"][i].startswith(content["classes"][rank].removeprefix("tiny/")) for i in support + query
        )


def test_nothing_is_overwritten(written, capsys):
    path = written()
    config = path.parent / "tiny.json"
    before, changed_at = path.read_bytes(), path.stat().st_mtime_ns
    assert main(["--config", str(config), "--to", str(path)]) == 0, "the same tasks: a second call verifies"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, changed_at)
    capsys.readouterr()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"val_seed": 77}))
    assert main(["--config", str(config), "--to", str(path)]) == 1
    assert "is there already, with other tasks; nothing is overwritten" in capsys.readouterr().err
    path.write_text("the user's notes")
    assert main(["--config", str(config), "--to", str(path)]) == 2
    assert path.read_text() == "the user's notes"


def test_names_with_any_bytes_survive(tmp_path):
    odd = os.fsdecode(b'a "b"\n\xff.png')
    lists = TaskLists("birds", (TaskList(EpisodeShape(1, 1, 1), ((("it's", (odd, "2.png")),),)),))
    write_task_lists(tmp_path / "x.json", lists)
    assert read_task_lists(tmp_path / "x.json") == lists


OWN_SHOTS = TaskLists("birds", (TaskList(EpisodeShape(2, 3, 1, 1), (
    (("robin", ("r1", "r2", "r3", "r4")), ("wren", ("w1", "w2"))),
    (("wren", ("w2", "w3", "w1")), ("robin", ("r4", "r1", "r2"))),
), 0, "0123"),))  # fmt: skip
"""Two tasks of robins and wrens; the last image of a class is its query."""


def test_classes_with_shots_of_their_own_survive_the_file_and_the_numbers(tmp_path):
    write_task_lists(tmp_path / "x.json", OWN_SHOTS)
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["version"], content["lists"][0]["n_shot"]) == (2, [1, 3])
    assert [(len(support), len(query)) for _, support, query in content["lists"][0]["tasks"][0]] == [(3, 1), (1, 1)]
    assert read_task_lists(tmp_path / "x.json") == OWN_SHOTS
    ranks = {path: rank for rank, path in enumerate(("r4", "w3", "w1", "r1", "r2", "r3", "w2"))}
    classes, episodes, _ = indexed_tasks(OWN_SHOTS.lists, ranks)
    (shape, drawn), *_ = episodes.items()
    assert drawn.support_sizes(3).tolist() == [4, 4]
    table, path_of = ClassTable.of(classes), list(ranks).__getitem__
    assert named_tasks(drawn, table, path_of) == OWN_SHOTS.lists[0].tasks
    lines = ["test 2 way 1 to 3 shot 1 query", "0\trobin\t0\tr1\tr2\tr3\tr4", "0\twren\t0\tw1\tw2"]
    lines += ["1\twren\t0\tw2\tw3\tw1", "1\trobin\t0\tr4\tr1\tr2"]
    assert tasks_digest("test", shape, range(2), drawn, table, path_of) == sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (
                lambda one, shots=shots: one.update(n_shot=shots),
                f"n_shot and n_query are [2, {json.dumps(shots)}, 1], but must be whole numbers above 0; n_shot",
            )
            for shots in ([0, 3], [3, 1], [2, 2], [1, 8], [1, 2, 3], [], ["1", "3"], [None, 3], "1-3", {"1": 3})
        ),
        (lambda one: one.update(n_shot=[2, 3]), "list 0, task 0 is not of 2 way 2 to 3 shot 1 query"),
        (lambda one: one.update(n_shot=[1, 2]), "list 0, task 0 is not of 2 way 1 to 2 shot 1 query"),
        (lambda one: one.update(n_shot=3), "list 0, task 0 is not of 2 way 3 shot 1 query"),
        (lambda one: one["tasks"][1][0][1].clear(), "list 0, task 1 is not of 2 way 1 to 3 shot 1 query"),
        (lambda one: one["tasks"][1][0][2].append(0), "list 0, task 1 is not of 2 way 1 to 3 shot 1 query"),
        (lambda one: one["tasks"][1][0][1].append(0), "list 0, task 1 has an image twice"),
    ],
)
def test_a_forged_range_of_shots_and_a_class_outside_of_it_are_named(tmp_path, change, message):
    path = tmp_path / "x.json"
    write_task_lists(path, OWN_SHOTS)
    content = json.loads(path.read_text())
    change(content["lists"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_task_lists(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_an_image_that_is_gone_and_a_list_that_was_changed_are_named(written):
    path = written()
    content = json.loads(path.read_text())
    first = content["lists"][0]["tasks"][0][0]
    first[1][0], first[2][0] = first[2][0], first[1][0]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="the tasks of 3 way 2 shot 3 query are not those of its digest; it was changed"
    ):
        other_task_sets(config(task_list=str(path)))
    content["images"][0] = "alphabet_0/nowhere.png"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"alphabet_0/nowhere.png: in .*tasks.json, but not here"):
        other_task_sets(config(task_list=str(path)))


def test_a_problem_without_images_has_no_tasks_to_list(tmp_path, capsys):
    path = REPOSITORY_ROOT / "experiment_config" / "sinusoid_maml_10shot_seed0.json"
    assert main(["--config", str(path), "--to", str(tmp_path / "x.json")]) == 1
    assert '"dataset_name" is sinusoid: its tasks are drawn and have no images to list' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="?"), 'it does not say "format": "few-shot task list"'),
        (lambda c: c.update(version=3), "version 3; this release reads 1 and 2"),
        (lambda c: c.pop("images"), "'images' is missing"),
        (lambda c: c.update(dataset="../x"), '"dataset" is "../x"; it must be the name of a folder'),
        (lambda c: c["lists"][0].update(n_way=0), "list 0: n_way, n_shot and n_query are [0, 1, 1]"),
        (lambda c: c["lists"][0].update(n_way=2**63), "list 0, task 0 is not of 9223372036854775808 way"),
        (lambda c: c["lists"][0].update(n_query=2), "list 0, task 0 is not of 1 way 1 shot 2 query"),
        (
            lambda c: c["lists"][0]["tasks"][0][0].__setitem__(0, 5),
            "list 0, task 0 names a class outside of the 1 there are",
        ),
        (lambda c: c["lists"][0]["tasks"][0][0].__setitem__(2, [-1]), "names an image outside"),
        (lambda c: c["lists"][0]["tasks"][0][0].__setitem__(2, [0]), "list 0, task 0 has an image twice"),
        (lambda c: c["lists"][0].update(tasks=[]), "list 0 has no tasks"),
        (lambda c: c["lists"].append(c["lists"][0]), "no two of one shape"),
        (lambda c: c["lists"].clear(), "at least one list"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "x.json"
    write_task_lists(path, TaskLists("birds", (TaskList(EpisodeShape(1, 1, 1), ((("robin", ("1.png", "2.png")),),)),)))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_task_lists(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_there_or_no_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x.json: this task list cannot be read: No such file"):
        read_task_lists(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(
        DataError, match=r"x.json: not a task list: .* Make one with: python -m utils.prepare_dataset tasks"
    ):
        read_task_lists(tmp_path / "x.json")


# --- Lake's runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_runs(tmp_path, monkeypatch):
    """A zip of the form of all_runs.zip: two runs of three classes; item i of a run shows class (i + 1) mod 3."""
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    (tmp_path / "datasets").mkdir()
    source = tmp_path / "source"
    for run in ("run01", "run02"):
        draw_dataset(source, [f"{run}/training", f"{run}/test"], images_per_class=0)
        lines = []
        for i in range(3):
            draw_image(i, 0).save(source / run / "training" / f"class{i + 1:02}.png")
            draw_image((i + 1) % 3, 1).save(source / run / "test" / f"item{i + 1:02}.png")
            lines.append(f"{run}/test/item{i + 1:02}.png {run}/training/class{(i + 1) % 3 + 1:02}.png")
        (source / run / "class_labels.txt").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as archive:
        for file in sorted(source.rglob("*.*")):
            archive.write(file, file.relative_to(source))
    return tmp_path / "all_runs.zip"


def test_lakes_runs_are_one_task_each(all_runs, tmp_path):
    task_lists = all_runs_tasks(all_runs)
    assert task_lists.dataset == "all_runs" and task_lists.lists[0].shape == EpisodeShape(3, 1, 1)
    assert task_lists.lists[0].tasks[1] == (
        ("run02/class01", ("run02/training/class01.png", "run02/test/item03.png")),
        ("run02/class02", ("run02/training/class02.png", "run02/test/item01.png")),
        ("run02/class03", ("run02/training/class03.png", "run02/test/item02.png")),
    )
    assert (tmp_path / "datasets" / "all_runs" / "run01" / "class_labels.txt").is_file()


@pytest.mark.parametrize("form", ["zip", "folder", "list"])
def test_a_run_is_tested_on_them(all_runs, tmp_path, form, capsys):
    location = all_runs
    if form == "folder":
        all_runs_tasks(all_runs)
        location = tmp_path / "datasets" / "all_runs"
    if form == "list":
        location = tmp_path / "lake.json"
        assert main(["--from", str(all_runs), "--to", str(location)]) == 0
        assert "2 tasks of 3 way 1 shot 1 query from all_runs" in capsys.readouterr().out
    (tasks,) = other_task_sets(config(task_list=str(location)))
    batch = tasks.data.episodes("test", range(2), tasks.shape)
    assert (tasks.n_tasks, batch.support_images.shape) == (2, (2, 3, 1, 14, 14))
    for label in range(3):  # support: image 0 of the class, query: image 1
        for images, rank in ((batch.support_images, 0), (batch.query_images, 1)):
            pixels = torch.from_numpy(np.asarray(draw_image(label, rank)).astype(np.int32))
            assert torch.equal((images[0, label, 0] * 255).round().int(), pixels)


def test_runs_that_are_not_whole_are_listed(all_runs, tmp_path):
    all_runs_tasks(all_runs)
    folder = tmp_path / "datasets" / "all_runs"
    (folder / "run01" / "test" / "item02.png").unlink()
    (folder / "run02" / "class_labels.txt").write_text("run02/test/item01.png\n")
    with pytest.raises(DataError) as error:
        all_runs_tasks(folder)
    assert 'class_labels.txt: line 1 is "run02/test/item01.png", not "ITEM CLASS"' in str(error.value)
    assert "run01/test/item02.png: not there" in str(error.value)
    assert "different numbers of classes: 0, 3" in str(error.value)
    shutil.rmtree(folder / "run01"), shutil.rmtree(folder / "run02")
    (folder / "x").mkdir()
    with pytest.raises(DataError, match=r"no folder with class_labels\.txt"):
        all_runs_tasks(folder)
