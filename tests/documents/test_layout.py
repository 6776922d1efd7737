"""docs/layout.md names every room and no other, its ways lead past files that exist, and its measures measure."""

import re

import pytest

from tests.tools import list_rooms, measure_tree
from utils.paths import REPOSITORY_ROOT

LAYOUT = list_rooms.LAYOUT.read_text(encoding="utf-8")
WAYS = re.findall(r"^## (The way of .+?)$(.+?)(?=^## )", LAYOUT, re.MULTILINE | re.DOTALL)
NO_ROOMS = {"tests", "docs", "datasets", "experiments"}


def test_the_rooms_are_up_to_date():
    assert list_rooms.with_rooms(LAYOUT) == LAYOUT, "run: python tests/tools/list_rooms.py"


def test_every_module_has_its_line_and_nothing_else_has():
    listed = LAYOUT.partition(list_rooms.BEGIN)[2].partition(list_rooms.END)[0]
    named = []
    for house, rows in re.findall(r"^### (.+?)$(.+?)(?=^### |\Z)", listed, re.MULTILINE | re.DOTALL):
        folder = house if house.endswith("/") else ""
        named += [f"{folder}{name}" for name in re.findall(r"^\| `(.+?\.py)` \| \S", rows, re.MULTILINE)]
    there = {path.relative_to(REPOSITORY_ROOT).as_posix() for path in REPOSITORY_ROOT.rglob("[a-z_]*.py")}
    there = {path for path in there if path.split("/")[0] not in NO_ROOMS and not path.startswith(".")}
    assert sorted(named) == sorted(path for path in there if not path.endswith("__init__.py"))


@pytest.mark.parametrize(("way", "text"), WAYS, ids=[way for way, _ in WAYS])
def test_a_way_leads_past_files_that_exist(way, text):
    steps = re.findall(r"^\d+\. .+$", text, re.MULTILINE)
    assert len(steps) >= 8
    for step in steps:
        paths = [name for name in re.findall(r"`([\w./+]+)`", step) if re.search(r"\w\.(py|sh)$|^\w+/", name)]
        paths = [name for name in paths if name.partition("/")[0] not in ("logs", "compare", "report")]
        assert paths, step
        assert [path for path in paths if not (REPOSITORY_ROOT / path).exists()] == []


def test_there_are_four_ways():
    assert [way.rpartition("a ")[2].removeprefix("The way of an ") for way, _ in WAYS] == [
        "episode", "config value", "checkpoint", "test task",
    ]  # fmt: skip


def test_a_small_tree_is_measured_as_counted_by_hand(tmp_path, monkeypatch):
    """Ten lines in two files of one folder; of five statements two are docstrings; one comment alone, one behind."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "one.py").write_text(f'"""A room."""\n\n# Why.\nx = 1  # how\ny = {"1" * 120}\n')
    (tmp_path / "room" / "two.py").write_text('def f():\n    """Do."""\n    return 1  # noqa: X\n\n\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("assert True\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "other.py").write_text("x = 1\n")
    monkeypatch.setattr(measure_tree, "_way_to_the_meta_gradient", lambda *_: {"way": "1"})
    assert measure_tree.measure(tmp_path) == {
        "all but the tests: files, lines": "2, 10",
        "statements; without docstrings": "6; 4",
        "most files in one folder": "2, `room/`",
        "longest file, lines": "5, `room/one.py`",
        "median file, lines": "5",
        "functions of more than 50 lines": "0",
        "lines that are a comment; that have one": "10.0 %; 20.0 %",
        "lines of more than 120 columns": "1",
        "tests: files, lines": "1, 1",
        "tests: lines of more than 120 columns": "0",
        "way": "1",
        "`room/`: files, lines": "2, 10",
    }


def test_concepts_are_what_the_inner_loop_belongs_to_names_and_calls(tmp_path):
    (tmp_path / "meta_learning").mkdir()
    (tmp_path / "meta_learning" / "rules.py").write_text(
        "class Rule: ...\n\n\nclass Momentum(Rule):\n    def update(self): ...\n\n\n"
        "def norm(): ...\n\n\nclass Unused: ...\n"
    )
    (tmp_path / "few_shot_learning_system.py").write_text(
        "from meta_learning.rules import Rule, Unused\n\n\nclass Learner:\n    def step(self, rule: Rule): ...\n\n"
        "    def save(self, x: Unused): ...\n"
    )
    call = measure_tree.Function
    step = call("few_shot_learning_system.py", "Learner.step", 5)
    update = call("meta_learning/rules.py", "Momentum.update", 5)
    norm = call("meta_learning/rules.py", "norm", 8)
    calls = {(None, step), (step, update), (step, norm)}
    found = measure_tree.concepts(calls, measure_tree.sources_of(tmp_path), [measure_tree.LEARNER])
    assert found == {
        ("few_shot_learning_system.py", "Learner"),
        ("meta_learning/rules.py", "Rule"),
        ("meta_learning/rules.py", "norm"),
    }


@pytest.mark.full
def test_nine_concepts_are_enough_to_change_the_inner_loop():
    row = "concepts that the inner loop alone names or calls; their files, lines"
    assert int(measure_tree.measure(REPOSITORY_ROOT)[row].split()[0]) <= 9


def test_writing_one_column_leaves_the_other():
    before, after = measure_tree.columns(LAYOUT)
    assert before["all but the tests: files, lines"] == "189, 28,620"
    written = measure_tree.with_columns(LAYOUT, before, {"median file, lines": "7"})
    assert measure_tree.columns(written) == (before, {"median file, lines": "7"})
    assert measure_tree.with_columns(LAYOUT, before, after) == LAYOUT
