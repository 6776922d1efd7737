"""The curves of long runs: stages count on, a name is drawn anew, and no curve is left out in silence."""

import csv
from itertools import pairwise

import pytest

from benchmarks import curves
from tests.tools.finished_runs import change_json, finished_run
from utils.errors import ConfigError

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
    names = [f"curve {n}" for n in range(len(curves.COLOURS))]
    curves.main([str(runs / "out"), *(f"{name}=body" for name in names)])
    text = (runs / "out/tasks.svg").read_text()
    places = [text.index(f">{name}<") for name in names]
    assert all(before < after for before, after in pairwise(places))
    assert all(colour in text for colour in curves.COLOURS)
    table = (runs / "out/points.csv").read_text()
    with pytest.raises(ConfigError, match=r"points.csv: 9 curves, and a picture has colours for 8: curve 0, .*, more;"):
        curves.main.__wrapped__([str(runs / "out"), "more=body"])
    assert (runs / "out/points.csv").read_text() == table


def test_a_run_that_was_not_validated_and_a_word_that_is_no_curve_are_refused(runs):
    change_json(runs / "runs/body/logs/summary_statistics.json", val_accuracy_mean=[None, None])
    with pytest.raises(ConfigError, match=r"body: .*no epoch.*validat"):
        curves.main.__wrapped__([str(runs / "out"), "a=body"])
    with pytest.raises(ConfigError, match='"top" is no CURVE=RUN, such as'):
        curves.main.__wrapped__([str(runs / "out"), "top"])
    assert not (runs / "out").exists()
