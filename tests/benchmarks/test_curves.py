"""The curves of long runs: stages count on, a name is drawn anew, and no curve is left out in silence."""

import csv
import json

import pytest

from benchmarks import curves
from tests.tools.finished_runs import change_json, finished_run
from utils.errors import ConfigError, DataError

HALF_AN_HOUR = 1800.0


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two stages of 10 iterations of 2 tasks an epoch, half an hour each."""
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "runs"))
    for name, accuracies in (("body", (0.90, 0.92)), ("top", (0.95, 0.97))):
        run = finished_run(
            tmp_path / "runs", name, [[1, 0]], val_accuracies=accuracies, total_iter_per_epoch=10, batch_size=2
        )
        change_json(
            run / "logs/summary_statistics.json", epoch_run_time=[HALF_AN_HOUR] * 2, val_accuracy_ci95=[0.01, 0.02]
        )
    return tmp_path


def rows_of(folder):
    with (folder / "points.csv").open() as file:
        return [
            tuple(row[name] if name == "curve" else float(row[name]) for name in row) for row in csv.DictReader(file)
        ]


def test_the_last_of_several_stages_is_drawn_after_the_tasks_and_hours_of_all(runs):
    curves.main([str(runs / "out"), "warm=body,top", "cold=top"])
    assert rows_of(runs / "out") == [
        ("warm", 60, 1.5, 0.95, 0.01), ("warm", 80, 2, 0.97, 0.02),
        ("cold", 20, 0.5, 0.95, 0.01), ("cold", 40, 1, 0.97, 0.02),
    ]  # fmt: skip


def test_a_curve_given_again_is_replaced_and_others_stay(runs):
    curves.main([str(runs / "out"), "a=body", "b=top"])
    curves.main([str(runs / "out"), "a=top"])
    assert [row[:2] for row in rows_of(runs / "out")] == [("b", 20), ("b", 40), ("a", 20), ("a", 40)]


def test_each_curve_has_a_colour_of_its_own_and_one_too_many_is_refused(runs):
    assert len(curves.COLOURS) == 8
    names = [f"curve {n}" for n in range(len(curves.COLOURS))]
    curves.main([str(runs / "out"), *(f"{name}=body" for name in names)])
    text = (runs / "out/tasks.svg").read_text()
    assert all(
        f'{colour}; font-weight: 600">{name}<' in text for name, colour in zip(names, curves.COLOURS, strict=True)
    )
    table = (runs / "out/points.csv").read_text()
    with pytest.raises(ConfigError, match=r"points.csv: 9 curves, and a picture has colours for 8: curve 0, .*, more;"):
        curves.main.__wrapped__([str(runs / "out"), "more=body"])
    assert (runs / "out/points.csv").read_text() == table


def test_hours_are_those_of_one_core_and_tasks_those_of_every_image_again(runs):
    change_json(runs / "runs/top/config.json", samples_per_iter=3)
    (runs / "runs/top/environment.json").write_text(json.dumps({"starts": [{"threads": 2, "processes": 2}]}))
    curves.main([str(runs / "out"), "a=top"])
    assert [row[1:3] for row in rows_of(runs / "out")] == [(60, 2), (120, 4)]


def test_pictures_drawn_again_from_the_table_are_the_same_to_the_byte_and_tell_curves_apart_alike(runs):
    change_json(runs / "runs/top/logs/summary_statistics.json", epoch_run_time=[1234.5678, 777.7777])
    curves.main([str(runs / "out"), "a=body", "b=top"])
    table = (runs / "out/points.csv").read_text()
    (runs / "out/points.csv").write_text(table.replace("a,20,0.5,", "a,20,,").replace("a,40,1.0,", "a,40,,"))
    curves.main([str(runs / "out")])
    tasks, hours = ((runs / f"out/{name}.svg").read_bytes() for name in ("tasks", "hours"))
    curves.main([str(runs / "out")])
    assert [(runs / f"out/{name}.svg").read_bytes() for name in ("tasks", "hours")] == [tasks, hours]
    of_b = f'style="fill: {curves.COLOURS[1]}; font-weight: 600">b<'.encode()
    assert of_b in tasks and of_b in hours and b">a<" in tasks and b">a<" not in hours


def test_what_lies_below_the_picture_is_not_drawn(runs):
    change_json(runs / "runs/body/logs/summary_statistics.json", val_accuracy_mean=[0.67, 0.9])
    curves.main([str(runs / "out"), "a=body"])
    text = (runs / "out/tasks.svg").read_text()
    assert (
        text.count("<circle") == 1 and "67 %" not in text and [row[3] for row in rows_of(runs / "out")] == [0.67, 0.9]
    )


def test_no_curve_is_replaced_by_a_shorter_one(runs):
    curves.main([str(runs / "out"), "a=body"])
    change_json(runs / "runs/top/logs/summary_statistics.json", val_accuracy_mean=[None, 0.97])
    with pytest.raises(ConfigError, match=r'points.csv: "a" has 2 points, top only 1; give the curve another name'):
        curves.main.__wrapped__([str(runs / "out"), "a=top"])
    assert [row[3] for row in rows_of(runs / "out")] == [0.9, 0.92]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("curve,tasks,hours,accuracy,ci95\na,10,1,91.2,\n", r"line 2: accuracy is 91.2; it is a number from 0 to 1"),
        ("curve,tasks,hours,accuracy,ci95\na,10,1,nan,\n", r"line 2: accuracy is nan; it is a number from 0 to 1"),
        ("curve,tasks,hours,accuracy,ci95\na,ten,1,0.9,\n", r'line 2: tasks is "ten", no number'),
        ("curve,tasks,hours,accuracy,ci95\na,10,1,0.9\n", r"line 2: a row has the columns curve,tasks,hours,"),
        ("a,10,1,0.9,\nb,10,1,0.9,\n", r"line 2: a row has the columns curve,tasks,hours,"),
        ("curve,tasks,hours,accuracy,ci95\n\xff\n", r"points.csv: .*UTF-8"),
        (None, r"points.csv: .*directory"),
    ],
)
def test_a_table_that_somebody_damaged_is_named_with_line_and_value(runs, table, message):
    (runs / "out").mkdir()
    if table is None:
        (runs / "out/points.csv").mkdir()
    else:
        (runs / "out/points.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        curves.main.__wrapped__([str(runs / "out"), "b=top"])


def test_what_is_no_run_with_a_validation_and_no_curve_is_refused(runs):
    for words, message in (
        ("top", '"top" is no CURVE=RUN, such as'),
        ("=top", '"=top" is no CURVE=RUN, such as'),
        ("a=", '"a=" names no run'),
        ("a=nowhere", "nowhere: no such run folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            curves.main.__wrapped__([str(runs / "out"), words])
    change_json(runs / "runs/body/logs/summary_statistics.json", val_accuracy_mean=[None, None])
    with pytest.raises(ConfigError, match=r"body: no epoch was validated"):
        curves.main.__wrapped__([str(runs / "out"), "a=body"])
    (runs / "runs/body/logs/summary_statistics.json").write_text("{")
    with pytest.raises(DataError, match=r"body: .*summary_statistics.json"):
        curves.main.__wrapped__([str(runs / "out"), "a=body"])
    assert not (runs / "out").exists()
