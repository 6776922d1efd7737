"""The processes of a run refuse to begin with different configs, code or images, and all say the same."""

import os

import pytest

from tests.tools.ranks import in_ranks
from utils.errors import ConfigError, DataError
from utils.ranks import same_start
from utils.ranks.group import ALONE
from utils.ranks.same_start import check_same_data, check_same_folder, check_same_program, code_digest

CONFIG = {"meta_learning_rate": 0.001, "gpu_to_use": "0", "dataset_path": "here"}
DATA = {"dataset_name": "strokes", "content_sha256": "a" * 64, "dataset_folder": "here", "splits": {"train": 3}}


def refusals(tmp_path, check):
    """What three ranks are told by `check(group)`."""

    def work(group, rank):
        try:
            check(group)
        except (ConfigError, DataError) as error:
            (tmp_path / str(rank.index)).write_text(f"{type(error).__name__}: {error}")

    assert in_ranks(3, work) == [0, 0, 0]
    return [path.read_text() for path in sorted(tmp_path.iterdir())]


def test_another_config_is_named_with_its_place(tmp_path):
    texts = refusals(
        tmp_path,
        lambda group: check_same_program(group, CONFIG | {"meta_learning_rate": 0.001 if group.index < 2 else 0.002}),
    )
    assert len(texts) == 3 and len({*texts}) == 1
    assert texts[0].startswith(
        "ConfigError: the processes of this run were not started alike: meta_learning_rate is 0.001 in process 0 on "
    )
    assert (
        ", but 0.002 in process 2 on " in texts[0]
        and "with the same config, from the same version of this project" in texts[0]
    )


def test_other_images_are_named(tmp_path):
    texts = refusals(
        tmp_path, lambda group: check_same_data(group, DATA | {"content_sha256": "ab"[group.index == 1] * 64})
    )
    assert len({*texts}) == 1 and len(texts) == 3
    assert (
        f"DataError: the images differ between the machines of this run: content_sha256 of strokes is {'a' * 20}... "
        "in process 0 on " in texts[0]
    )
    assert "Copy the dataset from one to the others, or share DATASET_DIR." in texts[0]


def test_of_several_datasets_the_one_that_differs_is_named(tmp_path):
    texts = refusals(
        tmp_path, lambda group: check_same_data(group, {"one": DATA, "two": DATA | {"splits": {"test": group.index}}})
    )
    assert "splits of two is" in texts[0] and "of one is" not in texts[0]


def test_how_a_machine_does_its_work_may_differ(tmp_path):
    def check(group):
        check_same_program(group, CONFIG | {"gpu_to_use": str(group.index), "dataset_path": f"there {group.index}"})
        check_same_data(group, DATA | {"dataset_folder": f"there {group.index}"})

    assert refusals(tmp_path, check) == []


def test_a_process_alone_is_like_itself():
    check_same_program(ALONE, CONFIG)
    check_same_data(ALONE, DATA)


@pytest.mark.parametrize(
    ("own_folder", "newest", "text"),
    [
        (2, (0, 0), "EXPERIMENTS_DIR must be one folder that all machines of a run share"),
        (None, (3, 0), "process 2 on "),
        (None, (0, 0), None),
    ],
)
def test_a_machine_with_another_or_a_newer_folder_is_refused(tmp_path_factory, monkeypatch, own_folder, newest, text):
    monkeypatch.setattr(same_start, "SEEN_WITHIN_S", 1.0)
    shared, own, told = (tmp_path_factory.mktemp(name) for name in ("shared", "own", "told"))

    def check(group):
        folder = own if group.index == own_folder else shared
        check_same_folder(group, folder, lambda: newest if group.index == 2 else (0, 0))

    texts = refusals(told, check)
    assert len(texts) == (3 if text else 0) and len({*texts}) <= 1
    assert text is None or texts[0].startswith(f"ConfigError: {text}")
    assert [*shared.iterdir(), *own.iterdir()] == []


@pytest.mark.parametrize("change", [("utils/room.py", "b = 1\n"), ("utils/other.py", "a = 1\n")])
def test_other_code_has_another_digest(tmp_path, change):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "room.py").write_text("a = 1\n")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    os.mkfifo(tmp_path / "utils" / "pipe.py")  # would be waited for
    assert code_digest(tmp_path) == before
    (tmp_path / change[0]).write_text(change[1])
    assert code_digest(tmp_path) != before
