"""The rows beside a test's result: means, differences, the worst tasks, orders of labels, and what is said of them."""

import json
import math

import pytest

from experiment_parts.evaluation.baselines import (
    does_adapting_help,
    lines_beside,
    summarise_baselines,
    tasks_of_baselines,
    worst_tenth_mean,
)
from experiment_parts.evaluation.test_results import result_text
from tests.tools.runs import run_tiny
from utils.metrics import summarise

NAN = math.nan
FOUND = {
    "pixels": [0.2, 0.4, 0.2, 0.4],
    "centroids": [0.6, 0.8, 0.6, 0.8],
    "ridge": [0.6, 0.8, 0.7, 0.8],
    "untrained": [0.4, 0.6, NAN, NAN],
    "label_orders": [[0.8, 0.6], [1.0, 0.8], [NAN, NAN], [NAN, NAN]],
}
STEPS = [[0.2, 0.2, 0.2, 0.2], [0.6, 0.8, 1.0, 1.0]]
MODEL = {"epoch": 7, "file": "train_model_7.safetensors", "val_accuracy": 0.8}


def summary(steps=STEPS, found=FOUND, **more):
    return summarise_baselines(found, steps, MODEL, 5, None) | more


def test_each_row_has_its_mean_and_its_difference_on_the_very_same_tasks():
    rows = summary()["rows"]
    assert list(rows) == ["chance", "pixels", "untrained", "centroids", "ridge", "after_0_steps", "after_1_steps"]
    assert rows["chance"]["mean"] == 0.2 and rows["chance"]["std"] == 0
    ridge = summarise([0.0, 0.0, -0.3, -0.2])
    assert rows["ridge"]["difference"] == pytest.approx(ridge.mean)
    assert rows["ridge"]["difference_ci95"] == pytest.approx(ridge.ci95)
    untrained = rows["untrained"]  # of the first two tasks, and paired with the model on these two
    assert (untrained["tasks"], untrained["mean"], untrained["difference"]) == (2, 0.5, pytest.approx(-0.2))
    assert rows["after_1_steps"]["difference"] == 0


def test_orders_of_labels_are_summarised_with_the_tasks_own_among_them():
    """Task 0: 0.6, 0.8, 0.6; task 1: 0.8, 1.0, 0.8."""
    orders = summary()["label_orders"]
    assert (orders["tasks"], orders["orders"]) == (2, 3)
    assert orders["mean"] == pytest.approx((2.0 / 3 + 2.6 / 3) / 2)
    assert orders["std"] == pytest.approx(summarise([0.6, 0.8, 0.6]).std)
    assert (orders["lowest"], orders["highest"]) == (pytest.approx(0.7), pytest.approx(0.9))


def test_the_worst_tenth_is_rounded_up_to_whole_tasks():
    assert worst_tenth_mean([0.5, 0.1, 0.9]) == 0.1
    assert worst_tenth_mean([i / 100 for i in range(25)]) == pytest.approx((0.0 + 0.01 + 0.02) / 3)


def test_a_regression_has_its_steps_alone():
    rows = summary([[-4.0, -2.0], [-1.0, -1.0]], {})
    assert list(rows["rows"]) == ["after_0_steps", "after_1_steps"] and "label_orders" not in rows
    kind, text = does_adapting_help({"baselines": rows, "score": "minus_mean_squared_error"})
    assert (
        kind == "note"
        and "1 inner step reaches 1.0000; the same network without inner steps reaches 3.0000: a diff" in text
    )


@pytest.mark.parametrize(
    ("last", "kind", "begin"),
    [
        ([0.9, 1.0, 0.9, 1.0], "good", "Adapting helps: 1 inner step reaches 95.00 %"),
        ([0.6, 0.8, 0.8, 0.8], "note", "Not shown that adapting helps"),
        ([0.2, 0.2, 0.2, 0.4], "warning", "Adapting does not pay"),
    ],
)
def test_the_verdict_holds_the_steps_to_the_best_that_needs_none(last, kind, begin):
    """The best is ridge, 0.6, 0.8, 0.7, 0.8."""
    steps = [STEPS[0], last]
    found = does_adapting_help({"baselines": summary(steps)})
    assert found[0] == kind and found[1].startswith(begin)
    assert "; ridge regression on its body's features, without inner steps, reaches 72.50 %: a " in found[1]
    assert found[1].endswith(" points on the same 4 tasks.")


def test_without_inner_steps_there_is_no_verdict():
    assert does_adapting_help({"baselines": summary([[0.6, 0.8, 0.6, 1.0]])}) is None
    assert does_adapting_help({}) is None


def test_the_terminal_has_three_lines():
    lines = lines_beside({"baselines": summary(calibration_error=0.123)})
    assert len(lines) == 3
    assert lines[0].startswith("  on the same tasks: chance 20.0 %; nearest neighbour on pixels 30.0 %; untrained")
    assert "untrained body, class centroids 50.0 % (the first 2); its body" in lines[0]
    assert "epoch 7 alone, inner steps 0 to 1: 20.0 %, 85.0 %" in lines[1]
    assert "calibration error 12.3 %" in lines[1] and lines[1].endswith(
        "with a task's labels in 3 orders its accuracy has a standard deviation of 11.5 points (2 tasks)"
    )
    assert lines_beside({}) == []


class Costs:
    def images_per_task(self, n_support, n_query, statistics):
        assert (n_support, n_query, statistics) == (5, 75, "support")
        return {"evaluation": 500, "untrained": 80, "label_orders": 600}


@pytest.mark.parametrize(("n_models", "expected"), [(1, (225, 40)), (5, (600, 100))])
def test_what_needs_passes_of_its_own_stays_within_its_share(n_models, expected):
    protocol = {"ways": 5, "shots": 1, "queries": 15, "tasks": 600, "statistics": "support"}
    found = tasks_of_baselines(Costs(), protocol, n_models, is_regression=False)
    assert found == expected
    assert found[0] * 80 + found[1] * 600 <= 0.14 * n_models * 600 * 500


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Run folders of the same run, with and without what stands beside its result."""
    root = tmp_path_factory.mktemp("runs")
    return [
        run_tiny(root, experiment_name=name, test_baselines=name == "with", num_samples_per_class=1)
        for name in ("with", "without")
    ]


def test_one_key_turns_it_off_and_changes_nothing_else(tested):
    summaries = [json.loads((run / "logs" / "test_summary.json").read_text()) for run in tested]
    rows = summaries[0].pop("baselines")["rows"]
    assert {"chance", "pixels", "untrained", "centroids", "ridge", "after_0_steps", "ensemble"} <= rows.keys()
    assert all(0 <= row["mean"] <= 1 for row in rows.values())
    assert rows["ensemble"]["mean"] == summaries[0]["test_accuracy_mean"]
    assert rows["after_2_steps"]["mean"] == pytest.approx(summaries[0]["models"][0]["test_accuracy_mean"], abs=1e-12)
    del summaries[0]["results"][0]["baselines"]
    assert summaries[0] == summaries[1]
    predictions = [(run / "logs" / "test_predictions.safetensors").read_bytes() for run in tested]
    assert predictions[0] == predictions[1]


def test_the_earlier_lines_of_the_result_stay(tested):
    texts = [result_text(json.loads((run / "logs" / "test_summary.json").read_text()), None) for run in tested]
    with_rows, without = (text.splitlines() for text in texts)
    assert [line for line in with_rows if line in without] == without and len(with_rows) == len(without) + 3
