"""Comparing runs: numbers checked against scipy and numpy on the same tasks, and what is said of runs that do not
fit.
"""

import csv
import dataclasses
import io
import json
import math
import random
import re
from typing import get_args

import numpy as np
import pytest
import scipy.stats

from experiment_tools.compare import __main__ as compare
from experiment_tools.compare.comparison import compare_runs
from experiment_tools.compare.figures import figure_of, four_panel_pictures, mean_curve, validation_pictures
from experiment_tools.compare.page import html_page
from experiment_tools.compare.published_results import published_result, published_results
from experiment_tools.compare.tables import (
    accuracy_table,
    baseline_table,
    csv_text,
    latex,
    markdown,
)
from experiment_tools.parts.methods import (
    DATA,
    LONGEST_LABEL,
    METHOD,
    NEITHER,
    PROTOCOL,
    Row,
    labels_of,
    method_name,
    rows_of,
    unnamed_differences,
)
from experiment_tools.parts.run_reading import data_of_result, read_run, results_of
from tests.tools.finished_runs import MAML_PLUS_PLUS, change_json, finished_run
from utils.config import ExperimentConfig
from utils.config.schema import fields
from utils.known_datasets import OMNIGLOT_SPLIT
from utils.paths import configs


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
    assert list(comparison.rows) == ["MAML"]
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
    assert list(comparison.rows) == ["MAML (run a)", "MAML (run b)", "MAML (run c)"]
    assert all(len(cell.runs) == 1 for cell in comparison.cells.values())
    assert (
        "runs of one method with the same train_seed are no repetition: each has a row of its own" in comparison.notes
    )
    assert list(compare_runs([read_run(path) for path in paths[1:]]).rows) == ["MAML"]
    configs = [{"train_seed": 0, "x": 1}, {"train_seed": 0, "x": 2}]
    rows = rows_of(configs, [["1 shot"], ["1 shot"]], ["a", "b"])
    assert rows == [Row("MAML", (("x", "1"),)), Row("MAML", (("x", "2"),))]
    configs = [{"train_seed": 0, "seed": seed} for seed in (None, 0, 1)]
    columns = [["1 shot"], ["5 shot"], ["1 shot"]]  # no column has a seed twice
    assert rows_of(configs, columns, ["a", "b", "c"]) == [Row("MAML")] * 3


def test_runs_that_differ_in_another_key_are_told_apart_by_it(root):
    paths = [finished_run(root, f"a{rate}", A, meta_learning_rate=rate) for rate in (0.001, 0.01)]
    rows = compare_runs([read_run(path) for path in paths]).rows
    assert list(rows) == ["MAML (meta_learning_rate 0.001)", "MAML (meta_learning_rate 0.01)"]


def test_a_key_that_changes_with_the_shots_does_not_split_a_method():
    configs = [{"num_samples_per_class": 1, "batch_size": 4}, {"num_samples_per_class": 5, "batch_size": 2}]
    assert rows_of(configs, [["1 shot"], ["5 shot"]], "ab") == [Row("MAML"), Row("MAML")]
    shown = [str(row) for row in rows_of(configs, [["1 shot"], ["1 shot"]], "ab")]
    assert shown == ["MAML (batch_size 4, num_samples_per_class 1)", "MAML (batch_size 2, num_samples_per_class 5)"]


def test_methods_of_two_names_say_what_else_they_differ_in():
    """The example of the fault: "MAML++ - MAML++, support statistics" named neither network, optimiser nor epochs."""
    plain = {**MAML_PLUS_PLUS, "backbone": "vgg", "meta_optimizer": "adam", "total_epochs": 100}
    other = plain | {
        "backbone": "conv4",
        "meta_optimizer": "sgd",
        "total_epochs": 50,
        "batch_norm_statistics": "support",
    }
    rows = rows_of([plain, other, MAML_PLUS_PLUS | {"second_order": False}], [["a"], ["a"], ["b"]], "xyz")
    assert [row.method for row in rows] == ["MAML++", "MAML++, support statistics", "first-order MAML++"]
    assert [dict(row.settings) for row in rows[:2]] == [
        {key: str(config[key]) for key in ("backbone", "meta_optimizer", "total_epochs")} for config in (plain, other)
    ]
    # ProtoMAML does not say whether its body alone is adapted, so its row does.
    proto = [{"head": "prototypes", "adapted_parameters": "head"}, {}]
    assert [dict(row.settings) for row in rows_of(proto, [["a"], ["a"]], "xy")] == [
        {"adapted_parameters": "head"}, {"adapted_parameters": "all"}
    ]  # fmt: skip


def test_a_key_of_a_newer_release_counts_with_its_default_and_a_plugin_s_always():
    columns, names = [["a"], ["a"]], ["x", "y"]
    assert rows_of([{"train_seed": 1}, {"label_smoothing": 0.0}], columns, names) == [Row("MAML")] * 2
    rows = rows_of([{}, {"label_smoothing": 0.1}], columns, names)
    assert [dict(row.settings) for row in rows] == [{"label_smoothing": "0.0"}, {"label_smoothing": "0.1"}]
    resolved_since = [{"train_seed": 1}, {"resize_filter": "bicubic", "seed": None}]  # "auto" then meant the same
    assert rows_of(resolved_since, columns, names) == [Row("MAML")] * 2
    rows = rows_of([{}, {"key_of_a_plugin": 3}], columns, names)
    assert [dict(row.settings) for row in rows] == [{}, {"key_of_a_plugin": "3"}]


def test_a_plugin_s_choice_joins_the_title_and_its_file_is_named_without_the_digest():
    """The example of the fault: rows MAML++ [1] and MAML++ [2], 64 digits, and `damped_power null`."""
    own = {"inner_loop_optimizer": "damped", "damped_power": 0.5, "plugin_sha256": [f"damped.py:{'9' * 64}"]}
    damped = MAML_PLUS_PLUS | own
    columns = [["a"], ["a"], ["a"]]
    rows = rows_of([damped, MAML_PLUS_PLUS | {"plugin_sha256": []}], columns[:2], "xy")
    assert [row.method for row in rows] == ["MAML++, damped", "MAML++"]
    assert [dict(row.settings) for row in rows] == [{"plugin_sha256": "damped.py", "damped_power": "0.5"}, {}]
    other = damped | {"plugin_sha256": [f"damped.py:{'8' * 64}"]}
    rows = rows_of([damped, other, MAML_PLUS_PLUS | {"plugin_sha256": []}], columns, "xyz")
    assert [dict(row.settings).get("plugin_sha256") for row in rows] == [
        "damped.py:99999999", "damped.py:88888888", None
    ]  # fmt: skip


def test_two_ways_to_learn_the_rates_are_two_methods():
    """They had one name, so that their runs were taken for seeds of one."""
    per_layer, lslr = (
        {"learnable_inner_loop_learning_rates": "per_layer"},
        {"learnable_per_layer_per_step_inner_loop_learning_rate": True},
    )
    rows = rows_of([per_layer, lslr], [["a"], ["a"]], "xy")
    assert [row.method for row in rows] == ["MAML, learned rates per layer", "MAML, learned rates"]


@pytest.mark.parametrize(("name", "dead"), [
    ("quickstart", {"adapter_targets", "adapter_rank", "adapter_base", "alfa_weight_decay_start", "proximal_strength",
                    "implicit_gradient_iterations", "inner_loop_betas", "mlp_hidden_sizes", "norm_groups",
                    "meta_learning_rate_milestones", "inner_loop_epsilon", "prototypes_scale", "cvar_share"}),
    ("omniglot_alfa_5way_1shot_seed0", {"proximal_strength", "multi_step_loss_num_epochs", "inner_loop_momentum"}),
    ("omniglot_imaml_5way_1shot_seed0", {"alfa_weight_decay_start", "adapter_rank", "multi_step_loss_num_epochs"}),
])  # fmt: skip
def test_keys_that_mean_nothing_with_the_other_values_are_no_difference(name, dead):
    config = json.loads(configs()[name].read_text())
    for key in dead:
        assert unnamed_differences(config, config | {key: other_than(fields()[key].default)}) == [], key
    live = {"number_of_training_steps_per_iter": 7, "batch_size": 3, "init_inner_loop_learning_rate": 0.3}
    assert set(unnamed_differences(config, config | live)) == live.keys()
    own = {"sgd": "multi_step_loss_num_epochs", "alfa": "alfa_weight_decay_start", "proximal": "proximal_strength"}
    key = own[config.get("inner_loop_optimizer", "sgd")]
    assert unnamed_differences(config, config | {key: 0.123}) == [key]


def test_every_key_is_of_the_method_the_protocol_or_neither():
    listed = [*METHOD, *PROTOCOL, *NEITHER]
    assert sorted(listed) == sorted({*ExperimentConfig.model_fields, "run_id"}), "list a new key once, in methods.py"


def choices(annotation):
    """The texts that a key may be."""
    parts = get_args(annotation)
    return [part for part in parts if isinstance(part, str)] + [text for part in parts for text in choices(part)]


def other_than(value, key=None):
    """Another value of the same kind."""
    if key in ExperimentConfig.model_fields and isinstance(value, str):
        return next((v for v in choices(ExperimentConfig.model_fields[key].annotation) if v != value), f"{value}2")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}2"
    return ["more", *value] if isinstance(value, list) else 1


DEAD = {
    "adapter_targets": "adapter_kind", "adapter_rank": "adapter_kind", "adapter_base": "adapter_kind",
    "mlp_hidden_sizes": "backbone", "norm_groups": "norm_layer", "num_regression_outputs": "loss",
    "implicit_gradient_iterations": "outer_update", "multi_step_loss_num_epochs": "use_multi_step_loss_optimization",
    "meta_learning_rate_milestones": "meta_learning_rate_schedule",
    "meta_learning_rate_gamma": "meta_learning_rate_schedule", "inner_loop_betas": "inner_loop_optimizer",
    "inner_loop_smoothing": "inner_loop_optimizer", "inner_loop_epsilon": "inner_loop_optimizer",
    "head_name": "backbone", "meta_momentum": "",  # which Adam's relatives do not have either
}  # fmt: skip
"""Key that means nothing in plain MAML -> the key that gives it a meaning."""

FACTS = {"num_evaluation_tasks": "tasks", "number_of_evaluation_steps_per_iter": "steps",
         "test_batch_norm_statistics": "statistics", "test_num_classes_per_set": "ways",
         "test_num_samples_per_class": "shots", "test_num_target_samples": "queries", "test_dataset_name": "dataset",
         "task_list": "dataset"}  # fmt: skip
"""Key of the protocol -> what a result says of it; the others change the number of models."""


def changed_protocol(run, key):
    """The run's test as it would be with another value of a key of the protocol."""
    test = json.loads(json.dumps(run.test))
    (result,) = test["results"]
    if key in FACTS:
        result["protocol"][FACTS[key]] = other_than(result["protocol"][FACTS[key]])
    else:
        result["ensemble"]["models"] += 1
    return dataclasses.replace(run, test=test)


def test_whatever_differs_between_two_runs_is_named_or_they_are_not_compared(root):
    """Law: pairs that differ in 1 to 5 of all keys, in each key several times."""
    one, base = (read_run(finished_run(root, name, right)) for name, right in (("one", A), ("other", B)))
    generator, keys = random.Random(0), list(ExperimentConfig.model_fields)
    waiting = [key for _ in range(2) for key in generator.sample(keys, len(keys))]
    seen = set()
    while waiting:
        drawn = {waiting.pop() for _ in range(min(generator.randint(1, 5), len(waiting)))}
        seen |= drawn
        other = dataclasses.replace(
            base, config=base.config | {key: other_than(base.config[key], key) for key in drawn}
        )
        for key in sorted(drawn & PROTOCOL):
            other = changed_protocol(other, key)
        comparison = compare_runs([one, other])
        texts = [markdown(comparison), latex(comparison), csv_text(comparison)]
        texts += [html_page(comparison, [])] if len(seen) < 30 else []
        first, second = (comparison.rows[comparison.labels[str(run.path)]] for run in (one, other))
        is_compared = bool(comparison.differences)
        assert is_compared or len(comparison.columns) == 2 or first == second
        effective = {key for key in drawn & set(METHOD) if key not in DEAD or DEAD[key] in drawn}
        for key in drawn & set(METHOD) - effective if is_compared else ():
            assert key not in dict(first.settings) | dict(second.settings), key
        for key in effective if is_compared else ():
            by_name = method_name(one.config | {key: other.config[key]}) != method_name(one.config)
            assert by_name or dict(first.settings).get(key) != dict(second.settings).get(key), key
            assert by_name or all(key in text.replace(r"\_", "_") for text in texts), key
        for key in drawn & PROTOCOL if is_compared else ():
            name = {"tasks": "test tasks", "steps": "inner steps", "statistics": "batch-norm statistics"}.get(
                FACTS.get(key), "models in the ensemble"
            )
            assert name in comparison.differences[0].note, key
        assert not {key for row in (first, second) for key, _ in row.settings} & (NEITHER | PROTOCOL)
        if first == second and len(comparison.columns) == 1:
            assert not effective and drawn & {"train_seed", "seed"}
    assert seen == set(keys)


def test_runs_on_other_images_of_the_same_name_are_told_apart_by_them(root):
    runs = []
    for name, digest in (("a", "a" * 64), ("b", "b" * 64), ("c", None)):
        path = finished_run(root, name, A, train_seed=len(runs))
        if digest:
            (path / "environment.json").write_text(json.dumps({"starts": [{"data": {"content_sha256": digest}}]}))
        runs.append(read_run(path))
    assert list(compare_runs(runs[:2]).rows) == ["MAML (data aaaaaaaa)", "MAML (data bbbbbbbb)"]
    assert list(compare_runs([runs[0], runs[2]]).rows) == ["MAML"], "it is not known of the older one"
    sizes = [{"image_height": 28, DATA: "aaaa"}, {"image_height": 84, DATA: "bbbb"}]
    assert [dict(row.settings) for row in rows_of(sizes, [[1], [1]], "ab")] == [
        {"image_height": "28"}, {"image_height": "84"}
    ]  # fmt: skip


def test_a_tagged_test_on_other_data_does_not_rename_the_run_s_own_result(root):
    path = finished_run(root, "a", A)
    starts = [{"data": {"content_sha256": digit * 64}} for digit in "ab"] + [{"data": {}}]  # the last: of fixed tasks
    (path / "environment.json").write_text(json.dumps({"starts": starts}))

    def digit(**of_summary):
        change_json(path / "logs" / "test_summary.json", **of_summary)
        return data_of_result(read_run(path))["content_sha256"][0]

    assert digit() == "a", "an older release's result does not say, but runs end with the data that they began with"
    assert digit(other_data_than_trained_on=["train: 24 classes before, 23 now"]) == "b", "unless it says otherwise"
    assert [digit(content_sha256=of_test * 64) for of_test in "abc"] == ["a", "b", "c"]
    other = finished_run(root, "b", A, train_seed=1)
    (other / "environment.json").write_text(json.dumps({"starts": starts[:1]}))
    change_json(path / "logs" / "test_summary.json", content_sha256="a" * 64)
    assert list(compare_runs([read_run(path), read_run(other)]).rows) == ["MAML"]


def test_a_test_on_other_data_than_the_training_s_says_so(root):
    paths = [finished_run(root, name, A, **more) for name, more in (("a", {}), ("b", MAML_PLUS_PLUS))]
    line = "train has 23 classes, 24 before"
    change_json(paths[1] / "logs" / "test_summary.json", other_data_than_trained_on=[line])
    comparison = compare_runs([read_run(path) for path in paths])
    assert accuracy_table(comparison)[2][1].endswith("(40 tasks, other data)")
    assert accuracy_table(comparison)[1][1].endswith("(40 tasks)")
    assert comparison.differences[0].note == "b tested on other data than trained on"
    assert f"b: tested on other data than trained on: {line}" in comparison.notes


def test_omniglot_s_fractions_are_auto_and_a_test_of_few_classes_says_what_its_interval_is(root):
    split = list(OMNIGLOT_SPLIT)
    paths = [
        finished_run(root, name, A, train_seed=seed, train_val_test_split=fractions)
        for seed, (name, fractions) in enumerate((("a", split), ("b", "auto"), ("c", [0.5, 0.2])))
    ]
    assert list(compare_runs([read_run(path) for path in paths[:2]]).rows) == ["MAML"]
    assert len(compare_runs([read_run(path) for path in paths]).rows) == 2
    change_json(paths[0] / "logs" / "test_summary.json", every_task_has_the_same_classes=True)
    notes = compare_runs([read_run(path) for path in paths[:2]]).notes
    assert any(note.startswith("every 2-way task has the same classes, all that there are: the") for note in notes)


def test_long_settings_stand_below_the_table_and_no_row_is_long(root):
    long = {"learnable_per_layer_per_step_inner_loop_learning_rate": True, "init_head_inner_loop_learning_rate": 0.3}
    paths = [finished_run(root, f"a_run_with_a_name_{n}", A, meta_learning_rate=10**-n, **long) for n in (2, 3)]
    paths.append(finished_run(root, "plain", A))
    comparison = compare_runs([read_run(path) for path in paths])
    assert list(comparison.rows) == ["MAML, learned rates [1]", "MAML, learned rates [2]", "MAML [3]"]
    table = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert max(map(len, table)) < 160
    settings = "init_head_inner_loop_learning_rate 0.3, meta_learning_rate 0.01"
    assert f"- MAML, learned rates [1]: {settings}\n" in markdown(comparison)
    assert f"MAML, learned rates [1]<small>{settings}</small>" in html_page(comparison, [])
    assert labels_of([Row("MAML", (("x", "1" * LONGEST_LABEL),)), Row("ANIL")]) == {
        Row("MAML", (("x", "1" * LONGEST_LABEL),)): "MAML [1]", Row("ANIL"): "ANIL"
    }  # fmt: skip


def test_a_grid_of_many_kinds_of_tasks_has_a_row_for_each(root):
    shapes = [(ways, shots) for ways in (2, 5) for shots in (1, 5)]
    runs = [
        read_run(finished_run(root, f"{ways}_{shots}_{name}", np.tile(A, (1, 5)), num_classes_per_set=ways,
                              num_samples_per_class=shots, **more))
        for ways, shots in shapes for name, more in (("maml", {}), ("maml++", MAML_PLUS_PLUS))
    ]  # fmt: skip
    heading, *rows = accuracy_table(compare_runs(runs))
    assert heading == ["tasks", "method", "mean"]
    assert [row[:2] for row in rows] == [
        [f"tiny, {ways}-way {shots}-shot, 25 queries", method]
        for ways, shots in shapes
        for method in ("MAML", "MAML++")
    ]


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
        (
            {"head": "prototypes", "number_of_training_steps_per_iter": 0, "pretraining_epochs": 3, "total_epochs": 3},
            "ProtoNet, only pre-trained",
        ),
        ({"batch_norm_statistics": "running"}, "MAML, running statistics"),
        ({"inner_loop_optimizer": "adam"}, "MAML, inner Adam"),
        (
            {
                "adapted_parameters": "head",
                "use_multi_step_loss_optimization": True,
                "per_step_bn_statistics": True,
                "inner_loop_optimizer": "adam",
                "learnable_inner_loop_learning_rates": "per_element",
            },
            "ANIL, multi-step loss, per-step batch norm, inner Adam, learned rates per element",
        ),
        (MAML_PLUS_PLUS | {"head": "my_head"}, "MAML++, my_head"),
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


@pytest.mark.parametrize(
    ("right", "more"),
    [(B, ""), (answers(2, 0.6, n_tasks=30), "; test tasks 40 / 30")],
    ids=["other list", "other number"],
)
def test_on_different_tasks_the_test_is_welch_s_and_says_so(root, right, more):
    found = only_difference(
        finished_run(root, "a", A), finished_run(root, "b", right, digest="another", **MAML_PLUS_PLUS)
    )
    expected = scipy.stats.ttest_ind(A.mean(axis=1), right.mean(axis=1), equal_var=False)
    assert (found.test, found.note) == ("Welch's t-test", f"tested on different tasks, so not paired{more}")
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
    assert f"<td>MAML</td><td>{accuracy} ± " in html_page(two_methods, [])
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
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_a_name_cannot_put_a_picture_into_another_folder(root, tmp_path):
    path = finished_run(root, "a", A)
    change_json(path / "config.json", dataset_name="../../" + "x" * 300)
    assert compare.main(["a", "--output", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.name.startswith("validation_.._.._xxx") and not list(tmp_path.glob("*.png"))


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
    (picture,) = four_panel_pictures(compare_runs(runs), runs)
    assert picture.stem == "four_panels_MAML_tiny_2way"
    figure = figure_of(picture.panels, picture.title)
    assert [axes.get_title() for axes in figure.axes] == [
        "Training loss",
        "Validation loss",
        "Training accuracy",
        "Validation accuracy",
    ]
    accuracy = figure.axes[3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 shot", "5 shot", "10 shot", "test"]
    points = [line.get_xydata().tolist() for line in accuracy.lines if len(line.get_xdata()) == 1]
    assert picture.panels[3].chart().count("<circle") == 3 * 2 + 3, "the page has the same points"
    assert points == [[[2.0, pytest.approx(100 * A.mean())]]] * 3


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
    assert page.count("<svg") == 1 + 2 * 4
    assert not re.findall(r"(?:src|href)=\"(?!data:)(?!#)[^\"]", page), "the page loads nothing"


def test_runs_that_are_not_tested_yet_are_compared_by_their_validation_and_told_how_to_be_tested(
    root, tmp_path, capsys
):
    for name, accuracy in (("a", 0.5), ("b", 0.625)):
        finished_run(root, name, A, tested=False, val_accuracies=(accuracy, 0.25), train_seed=ord(name))
    assert compare.main(["a", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("None of these runs has a test result yet.\n\n| method | run | tasks ")
    for name, best in (("a", "50.00 %"), ("b", "62.50 %")):
        assert re.search(rf"\| MAML   \| {name}   \| tiny, 2-way 1-shot, 5 queries \| 2/2    \| {best} ", shown)
        to_test = rf"- {name}: trained, not tested; no test result\. To test what it has: .*train_maml_system.* "
        assert re.search(to_test + rf".*/{name}/config\.json.* --evaluate_on_test_set_only true\n", shown)
    page, tex = ((tmp_path / "out" / f"comparison.{kind}").read_text() for kind in ("html", "tex"))
    assert "None of these runs has a test result yet." in page and "62.50 %" in page and "Not tested" in page
    assert (
        tex.startswith("% None of these runs") and r"MAML & b & tiny, 2-way 1-shot, 5 queries & 2/2 & 62.50 \%" in tex
    )


def test_a_trial_of_a_sweep_is_tested_where_it_lies_and_a_renamed_run_under_its_folders_name(root):
    trial = finished_run(root / "sweep x", "trial_000", A, tested=False)
    renamed = finished_run(root, "b", A, tested=False).rename(root / "of today")
    notes = compare_runs([read_run(trial), read_run(renamed)]).notes
    assert f"To test what it has: EXPERIMENTS_DIR='{root / 'sweep x'}' python " in notes[0]
    assert notes[0].endswith("--evaluate_on_test_set_only true")
    assert notes[1].endswith("--evaluate_on_test_set_only true --experiment_name 'of today'")


def test_an_unfinished_run_is_named_with_its_validation_and_its_curve(root, tmp_path, capsys):
    finished_run(root, "a", A), finished_run(root, "b", B, tested=False, total_epochs=9, **MAML_PLUS_PLUS)
    assert compare.main(["a", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "b: unfinished, epoch 2 of 9; run its script again to go on; no test result. To test what it has: " in shown
    assert re.search(r"\| MAML\+\+ .*\| b +\| tiny, 2-way 1-shot, 5 queries \| 2/9 +\| 75\.00 % ", shown)
    runs = [read_run(root / name) for name in "ab"]
    (picture,) = validation_pictures(compare_runs(runs), runs)
    assert [line.name for line in picture.panels[0].lines()] == ["MAML (total_epochs 2)", "MAML++ (total_epochs 9)"]


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
    assert comparison.notes == ("a: was not tested with running batch-norm statistics",)
    assert comparison.differences == ()


def test_what_stands_beside_results_is_a_table_of_means_over_seeds(root):
    """Two seeds with ridge at 0.5 and 0.7; the second was tested by a release without it."""
    paths = [finished_run(root, f"run{seed}", A, train_seed=seed) for seed in (0, 1, 2)]
    assert baseline_table(compare_runs([read_run(path) for path in paths])) == []
    for path, ridge in zip(paths[:2], (0.5, 0.7), strict=True):
        row = {"mean": ridge, "worst_tenth_mean": 0.1, "tasks": 600}
        rows = {"untrained": row | {"tasks": 7}, "ridge": row, "after_0_steps": row, "after_5_steps": row}
        beside = {"steps": 5, "rows": rows, "calibration_error": 0.25}
        summary = json.loads((path / "logs" / "test_summary.json").read_text())
        change_json(
            path / "logs" / "test_summary.json",
            results=[result | {"baselines": beside} for result in summary["results"]],
        )
    comparison = compare_runs([read_run(path) for path in paths])
    head, row = baseline_table(comparison)
    assert head[2:] == ["untrained", "ridge", "0 steps", "all steps", "worst tenth", "calibration error"]
    assert row[2:] == ["60.00 (first 7)", "60.00", "60.00", "60.00", "10.00", "25.00"]
    assert "of the best model by validation" in markdown(comparison) and "worst tenth" in latex(comparison)
    assert "The same tasks, otherwise" in html_page(comparison, [])
