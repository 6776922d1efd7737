"""Comparing runs: numbers checked against scipy and numpy on the same tasks, and what is said of runs that do not
fit.
"""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from experiment_tools.compare import __main__ as compare
from experiment_tools.compare.comparison import compare_runs
from experiment_tools.compare.figures import comparison_figures, four_panel_figures, mean_curve
from experiment_tools.compare.published_results import published_result, published_results
from experiment_tools.compare.tables import accuracy_table, csv_text, difference_table, html_page, latex, markdown
from experiment_tools.parts.methods import distinguish_repeats, method_name, row_labels
from experiment_tools.parts.pages import svg_text
from experiment_tools.parts.run_reading import read_run, results_of
from tests.tools.finished_runs import MAML_PLUS_PLUS, change_json, finished_run


def answers(seed, probability, n_tasks=40, n_queries=10):
    return (np.random.default_rng(seed).random((n_tasks, n_queries)) < probability).astype(int)


A, B, C = answers(1, 0.7), answers(2, 0.6), answers(3, 0.72)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def only_difference(*paths):
    (difference,) = compare_runs([read_run(path) for path in paths]).differences
    return difference


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_task_s_score_is_the_share_of_right_answers_of_the_ensemble(root):
    (result,) = results_of(read_run(finished_run(root, "a", A)))
    np.testing.assert_allclose(result.task_scores, A.mean(axis=1))
    assert result.mean == pytest.approx(A.mean())
    assert result.ci95 == pytest.approx(scipy.stats.t.ppf(0.975, 39) * A.mean(axis=1).std(ddof=1) / math.sqrt(40))
    right, wrong = -math.log(math.e / (math.e + 1)), -math.log(1 / (math.e + 1))  # scores are 0 and 1
    assert result.loss == pytest.approx(np.where(A == 1, right, wrong).mean())


# --- the table --------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seeds_alone_are_one_method_with_an_interval_over_seeds(root):
    paths = [finished_run(root, f"a{seed}", right, train_seed=seed) for seed, right in enumerate((A, B, C))]
    comparison = compare_runs([read_run(path) for path in paths])
    assert comparison.rows == ("MAML",)
    (cell,) = comparison.cells.values()
    means = [right.mean() for right in (A, B, C)]
    assert cell.summary.mean == pytest.approx(np.mean(means))
    assert cell.summary.ci95 == pytest.approx(scipy.stats.t.ppf(0.975, 2) * np.std(means, ddof=1) / math.sqrt(3))
    assert "(3 seeds)" in accuracy_table(comparison)[1][1]


def test_the_same_seed_twice_is_no_repetition(root):
    paths = [
        finished_run(root, name, right, train_seed=seed)
        for name, right, seed in (("a", A, 0), ("b", B, 0), ("c", C, 1))
    ]
    comparison = compare_runs([read_run(path) for path in paths])
    assert comparison.rows == ("MAML (run a)", "MAML (run b)", "MAML (run c)")
    assert all(len(cell.runs) == 1 for cell in comparison.cells.values())
    assert (
        "runs of one method with the same train_seed are no repetition: each has a row of its own" in comparison.notes
    )
    assert compare_runs([read_run(path) for path in paths[1:]]).rows == ("MAML",)
    labels = distinguish_repeats(
        ["MAML (x 1)", "MAML"], ["a", "b"], [{"train_seed": 0}, {"train_seed": 0}], [["1 shot"], ["1 shot"]]
    )
    assert labels == ["MAML (x 1)", "MAML"]
    configs = [{"train_seed": 0, "seed": seed} for seed in (None, 0, 1)]
    columns = [["1 shot"], ["5 shot"], ["1 shot"]]  # no column has a seed twice
    assert distinguish_repeats(["MAML"] * 3, ["a", "b", "c"], configs, columns) == ["MAML"] * 3


def test_runs_that_differ_in_another_key_are_told_apart_by_it(root):
    paths = [finished_run(root, f"a{rate}", A, meta_learning_rate=rate) for rate in (0.001, 0.01)]
    rows = compare_runs([read_run(path) for path in paths]).rows
    assert rows == ("MAML (meta_learning_rate 0.001)", "MAML (meta_learning_rate 0.01)")


def test_a_key_that_changes_with_the_shots_does_not_split_a_method():
    configs = [{"num_samples_per_class": 1, "batch_size": 4}, {"num_samples_per_class": 5, "batch_size": 2}]
    assert row_labels(configs, [["1 shot"], ["5 shot"]]) == ["MAML", "MAML"]
    assert row_labels(configs, [["1 shot"], ["1 shot"]]) == ["MAML (batch_size 4)", "MAML (batch_size 2)"]


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        ({}, "MAML"),
        ({"second_order": False}, "FOMAML"),
        (MAML_PLUS_PLUS, "MAML++"),
        ({"per_step_bn_statistics": True}, "MAML, per-step batch norm"),
        ({"adapted_parameters": "head"}, "ANIL"),
        ({"adapted_parameters": "head", "second_order": False}, "first-order ANIL"),
        ({"adapted_parameters": "body", "head": "zero"}, "BOIL, zero head"),
        ({"learnable_inner_loop_learning_rates": "per_element"}, "Meta-SGD"),
        ({"outer_update": "displacement", "second_order": False}, "Reptile"),
        ({"head": "prototypes"}, "ProtoMAML"),
        ({"head": "prototypes", "number_of_training_steps_per_iter": 0}, "ProtoNet"),
        ({"batch_norm_statistics": "running"}, "MAML, running statistics"),
    ],
)
def test_a_method_has_the_name_that_the_field_gives_it(choices, name):
    assert method_name(choices) == name


def test_the_published_value_stands_beside_the_own_one(root):
    path = finished_run(root, "a", A, dataset_name="omniglot", num_classes_per_set=5, train_seed=3)
    heading, row = accuracy_table(compare_runs([read_run(path)]))
    assert heading == ["method", "omniglot_dataset, 5-way 1-shot, 5 queries", "published"]
    assert row[2] == "98.70 ± 0.40"


def test_published_values_are_found_by_dataset_and_those_not_confirmed_are_marked():
    assert published_result("MAML", "mini_imagenet_full_size", 5, 1).accuracy == 48.70
    assert published_result("MAML", "quickdraw_100_samples_seed123", 10, 5).accuracy == 70.5
    assert published_result("ProtoNet", "omniglot_dataset", 20, 1).text() == "96.00 (?)"
    assert published_result("MAML", "no such dataset", 5, 1) is None
    keys = [(r.method, r.dataset, r.ways, r.shots) for r in published_results()]
    assert len(keys) == len(set(keys)) > 50
    assert all(20 < r.accuracy < 100 and r.source for r in published_results())


# --- tests of differences ---------------------------------------------------------------------------------------------


def test_on_the_same_tasks_the_test_is_scipy_s_paired_one(root):
    found = only_difference(finished_run(root, "a", A), finished_run(root, "b", B, **MAML_PLUS_PLUS))
    expected = scipy.stats.ttest_rel(A.mean(axis=1), B.mean(axis=1))
    interval = expected.confidence_interval(0.95)
    assert (found.test, found.first, found.second, found.note) == ("paired t-test", "MAML", "MAML++", "")
    assert found.mean == pytest.approx(A.mean() - B.mean())
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.p_over_seeds is None


def test_with_seeds_the_tasks_scores_are_means_over_runs_and_seeds_are_tested_too(root):
    paths = [finished_run(root, f"a{seed}", right, train_seed=seed) for seed, right in enumerate((A, C))]
    paths += [
        finished_run(root, f"b{s}", right, train_seed=s, **MAML_PLUS_PLUS)
        for s, right in enumerate((B, answers(4, 0.6)))
    ]
    found = only_difference(*paths)
    one, other = (A.mean(axis=1) + C.mean(axis=1)) / 2, (B.mean(axis=1) + answers(4, 0.6).mean(axis=1)) / 2
    assert found.p == pytest.approx(scipy.stats.ttest_rel(one, other).pvalue)
    seeds = scipy.stats.ttest_ind([A.mean(), C.mean()], [B.mean(), answers(4, 0.6).mean()], equal_var=False)
    assert found.p_over_seeds == pytest.approx(seeds.pvalue)


@pytest.mark.parametrize("right", [B, answers(2, 0.6, n_tasks=30)], ids=["other list", "other number"])
def test_on_different_tasks_the_test_is_welch_s_and_says_so(root, right):
    found = only_difference(
        finished_run(root, "a", A), finished_run(root, "b", right, digest="another", **MAML_PLUS_PLUS)
    )
    expected = scipy.stats.ttest_ind(A.mean(axis=1), right.mean(axis=1), equal_var=False)
    assert (found.test, found.note) == ("Welch's t-test", "tested on different tasks, so not paired")
    assert found.p == pytest.approx(expected.pvalue)
    assert found.high == pytest.approx(expected.confidence_interval(0.95).high)


def test_equal_answers_are_no_difference(root):
    found = only_difference(finished_run(root, "a", A), finished_run(root, "b", A, **MAML_PLUS_PLUS))
    assert (found.mean, found.p) == (0.0, 1.0)


def test_several_pairs_are_corrected_by_holm_s_method(root):
    paths = [
        finished_run(root, "a", A),
        finished_run(root, "b", B, **MAML_PLUS_PLUS),
        finished_run(root, "c", C, second_order=False),
    ]
    differences = compare_runs([read_run(path) for path in paths]).differences
    ordered = sorted(differences, key=lambda d: d.p)
    expected = [min(1, 3 * ordered[0].p)]
    expected.append(max(expected[-1], min(1, 2 * ordered[1].p)))
    expected.append(max(expected[-1], ordered[2].p))
    assert [d.p_holm for d in ordered] == pytest.approx(expected)


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_methods(root):
    paths = [finished_run(root, "a", A), finished_run(root, "b_50", B, digest="another", **MAML_PLUS_PLUS)]
    return compare_runs([read_run(path) for path in paths])


def test_every_format_holds_the_same_numbers(two_methods):
    accuracy = f"{100 * A.mean():.2f}"
    assert f"| MAML   | {accuracy} ± " in markdown(two_methods)
    assert rf"MAML & {accuracy} $\pm$ " in latex(two_methods)
    assert f"<td class=text>MAML</td><td>{accuracy} ± " in html_page(two_methods, [])
    rows = list(csv.DictReader(io.StringIO(csv_text(two_methods))))
    assert [row["method"] for row in rows] == ["MAML", "MAML++"]
    assert float(rows[0]["test_accuracy_mean"]) == pytest.approx(A.mean())
    assert rows[1]["runs"] == "b_50"


def test_latex_has_balanced_rows_and_no_bare_special_letters(two_methods):
    lines = latex(two_methods).splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows[:3]} == {1}
    assert all(not re.search(r"(?<!\\)[%_#]", line) for line in rows)


def test_a_name_cannot_put_markup_into_the_page(root):
    path = finished_run(root, "a", A)
    change_json(path / "config.json", dataset_name="<script>alert(1)</script>")
    change_json(path / "logs" / "test_summary.json", results=[_with_dataset(path, "<script>alert(1)</script>")])
    run = read_run(path)
    page = html_page(compare_runs([run]), [])
    assert "<script" not in page and "&lt;script&gt;" in page


def _with_dataset(path, dataset):
    result = json.loads((path / "logs" / "test_summary.json").read_text())["results"][0]
    return result | {"protocol": result["protocol"] | {"dataset": dataset}}


# --- curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_over_runs_with_their_deviation(root):
    runs = [
        read_run(finished_run(root, f"r{seed}", A, val_accuracies=values))
        for seed, values in enumerate(((0.2, 0.6), (0.4, 0.5, 0.7)))
    ]
    curve = mean_curve(runs, "val_accuracy_mean")
    assert curve.epochs == [1, 2, 3]
    assert curve.mean == pytest.approx([0.3, 0.55, 0.7])
    assert curve.deviation == pytest.approx([np.std([0.2, 0.4], ddof=1), np.std([0.6, 0.5], ddof=1), 0.0])


def test_the_four_panels_have_a_line_for_each_number_of_shots_and_points_of_the_test(root):
    runs = [read_run(finished_run(root, f"s{shots}", A, num_samples_per_class=shots)) for shots in (1, 5, 10)]
    ((stem, _, figure),) = four_panel_figures(compare_runs(runs), runs)
    assert stem == "four_panels_MAML_tiny_2way"
    assert [axes.get_title() for axes in figure.axes] == [
        "Training loss",
        "Validation loss",
        "Training accuracy",
        "Validation accuracy",
    ]
    accuracy = figure.axes[3]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["1 shot", "5 shot", "10 shot", "test"]
    points = [line.get_xydata().tolist() for line in accuracy.lines if len(line.get_xdata()) == 1]
    assert points == [[[2.0, pytest.approx(100 * A.mean())]]] * 3
    assert svg_text(figure).startswith("<svg") and svg_text(figure).endswith("</svg>")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_all_formats_and_never_over_an_older_comparison(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finished_run(root, "a", A), finished_run(root, "b", B, **MAML_PLUS_PLUS)
    for folder, options in (("comparison", ["--four_panels"]), ("comparison-2", [])):
        assert compare.main(["a", str(root / "b"), *options]) == 0
        assert f"Written to {folder}: " in capsys.readouterr().out
        files = {path.name for path in (tmp_path / folder).iterdir()}
        texts = {"comparison.html", "comparison.md", "comparison.tex", "comparison.csv"}
        assert texts | {"validation_tiny_2way_1shot_5query.png"} <= files
        panels = {"four_panels_MAML_tiny_2way.png", "four_panels_MAML++_tiny_2way.png"}
        assert files & panels == (panels if options else set())
    page = (tmp_path / "comparison" / "comparison.html").read_text()
    assert page.count("<svg") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:)(?!#)[^\"]", page), "the page loads nothing"


def test_an_unfinished_run_is_named_and_only_its_curve_is_shown(root, tmp_path, capsys):
    finished_run(root, "a", A), finished_run(root, "b", B, tested=False, total_epochs=9, **MAML_PLUS_PLUS)
    assert compare.main(["a", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert (
        "b: unfinished, epoch 2 of 9; run its script again to go on; no test result, so only its curves are shown"
        in shown
    )
    runs = [read_run(root / name) for name in "ab"]
    ((_, _, figure),) = comparison_figures(compare_runs(runs), runs)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["MAML", "MAML++"]


def test_damaged_predictions_leave_the_table_and_take_the_test(root, capsys, tmp_path):
    finished_run(root, "a", A)
    path = finished_run(root, "b", B, **MAML_PLUS_PLUS) / "logs" / "test_predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert compare.main(["a", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"{100 * B.mean():.2f} ± " in shown
    assert "none: the predictions of a run are missing or damaged" in shown
    assert re.search(r"b: .*test_predictions.safetensors: damaged", shown)


def test_predictions_of_another_test_are_not_used(root):
    one, other = finished_run(root, "a", A), finished_run(root, "b", B, **MAML_PLUS_PLUS)
    name = "logs/test_predictions.safetensors"
    (one / name).write_bytes((other / name).read_bytes())
    assert only_difference(one, other).test == "none"


def test_a_damaged_run_folder_is_left_out_and_named(root, capsys, tmp_path):
    finished_run(root, "a", A)
    (finished_run(root, "b", B) / "logs" / "summary_statistics.json").write_text('{"epoch": [1,')
    assert compare.main(["a", "b", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "b: damaged, left out (" in printed.err and "summary_statistics.json: damaged, not valid JSON" in printed.err
    assert "MAML" in printed.out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], r"nothing: no such run folder, neither as a path nor below .*runs .*experiment_tools\.runs"),
        (
            ["empty"],
            r"nothing to compare: none of these runs has a finished epoch\.\n.*empty: empty, left out \(holds no "
            r"config\.json",
        ),
    ],
)
def test_without_anything_to_compare_the_command_says_why(root, capsys, names, message):
    (root / "empty").mkdir(parents=True)
    assert compare.main(names) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_kind_of_statistics_that_was_not_tested_is_said(root):
    comparison = compare_runs([read_run(finished_run(root, "a", A))], "running")
    assert comparison.notes == ("a: was not tested with running batch-norm statistics; only its curves are shown",)
    assert difference_table(comparison) == []
