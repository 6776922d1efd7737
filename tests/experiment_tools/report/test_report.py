"""The report of a run: numbers against those worked out by hand, and folders that are unfinished or damaged."""

import base64
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import Drawing, FewShotData, ImageClasses, Preprocessing
from experiment_parts.evaluation.test_results import OTHER_DATA, SAME_CLASSES
from experiment_tools.parts import svg
from experiment_tools.parts.run_reading import Run, read_whole_run, scores_and_loss
from experiment_tools.parts.settings import command_of
from experiment_tools.report import layers as report_layers
from experiment_tools.report import learning as report_learning
from experiment_tools.report import machine as report_machine
from experiment_tools.report import page as report
from experiment_tools.report import results as report_results
from experiment_tools.report.__main__ import main
from experiment_tools.report.answers import (
    Answers,
    answers_of_test,
    confused_pairs,
    confusion,
    hardest_classes,
    hardest_task,
)
from experiment_tools.report.page import LARGEST_BYTES, REPORT, SECTIONS, write_report
from experiment_tools.report.sections import duration, short, thinned
from experiment_tools.report.verdict import findings
from tests.tools.gate import few_of
from tests.tools.runs import PLUS_PLUS, run_tiny
from utils.config import load_config
from utils.files.tables import write_csv
from utils.metrics import calibration_bins, calibration_error
from utils.paths import REPOSITORY_ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of MAML++ whose second epoch is of second order."""
    changes = PLUS_PLUS | {
        "first_order_to_second_order_epoch": 0,
        "total_epochs": 3,
        "number_of_evaluation_steps_per_iter": 3,
    }
    return run_tiny(tmp_path_factory.mktemp("runs"), **changes)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


# --- the whole page ---------------------------------------------------------------------------------------------------


def test_a_finished_run_has_every_section_and_nothing_is_missing(folder):
    sections = report.build_sections(read_whole_run(folder))
    assert [section.id for section in sections] == [
        "learning",
        "adaptation",
        "episodes",
        "test",
        "inner-rates",
        "gradients",
        "batch-norm",
        "outer-loop",
        "machine",
        "config",
        "environment",
    ]
    missing = {section.id: section.missing for section in sections if section.missing}
    assert missing == {
        "environment": ["environment.json is not there or cannot be read."]
    }  # written by the program, not by the builder
    titles = {figure.title for section in sections for figure in section.figures}
    assert titles >= {
        "Accuracy",
        "Loss",
        "Accuracy per inner step",
        "Before and after, over epochs",
        "Task 1",
        "All results",
        "The same tasks, otherwise",
        "Accuracy over tasks",
        "Calibration",
        "Hardest classes",
        "Confusions in the hardest task",
        "Layer × step",
        "Angle between first and second order",
        "Update / weight",
        "Gradient norm by parameter, over epochs",
        "Update norm by parameter, over epochs",
        "Running variance",
        "Multi-step loss weights",
        "Time split",
        "Peak memory",
    }
    assert write_report(folder).stat().st_size < LARGEST_BYTES


def test_the_head_tells_result_interval_protocol_and_command(folder):
    page = page_of(folder)
    result = json.loads((folder / "logs/test_summary.json").read_text())
    assert (
        f"{100 * result['test_accuracy_mean']:.2f} %<small>± {100 * result['test_accuracy_ci95']:.2f}</small>" in page
    )
    for text in (
        "3-way 1-shot",
        "3 inner steps",
        "3 tasks of omniglot_dataset",
        "95 % interval over tasks",
        "run/config.json",
    ):
        assert text in page, text


def test_validation_and_test_say_of_which_epochs_they_are(folder):
    """The validation of the newest epoch stands beside the test of the best ones."""
    page, summary = page_of(folder), json.loads((folder / "logs/test_summary.json").read_text())
    tested, newest = summary["ensemble"]["epochs"], json.loads((folder / "logs/curves.json").read_text())["epochs"][-1]
    assert f"test accuracy of the ensemble of {len(tested)} models, epochs {', '.join(map(str, tested))}" in page
    assert f"in 3 inner steps, validation of epoch {newest['epoch']}" in page
    run = read_whole_run(folder)
    said = [finding.text for finding in findings(run.rows, run.epochs, run.config, run.test)]
    best = summary["results"][0]["baselines"]["model"]["epoch"]
    assert any(text.endswith(f"(validation of epoch {newest['epoch']}).") for text in said)
    assert any(text.endswith(f" (test of epoch {best}).") for text in said)


def test_a_run_on_the_cpu_has_no_version_of_cuda():
    start = {"python": "3.11", "cuda": "13.0", "packages": {}}
    tables = [
        report_machine.environment(read_run_of(starts=[start | {"device": device}])).figures[0].content.rows
        for device in ("cpu", "H200")
    ]
    assert [["cuda", "13.0"] in rows for rows in tables] == [False, True]


def test_the_switch_of_the_derivative_order_is_marked(finished):
    chart = report_layers.angle_chart(read_whole_run(finished).epochs)
    assert "second order from here" in chart and "shade" in chart
    angle = next(
        entry["gradients"]["angle_degrees"] for entry in read_whole_run(finished).epochs if entry["epoch"] == 2
    )
    (figure,) = [
        figure
        for figure in report_layers.gradients(read_whole_run(finished)).figures
        if figure.title.startswith("Angle")
    ]
    assert f"In epoch 2, the first of second order, they are {angle:.1f}° apart." in figure.note


def test_a_report_needs_no_torch(folder):
    code = (
        "import sys; from experiment_tools.report.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in "
        "sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_text_and_never_markup(folder):
    evil = '<script>alert(1)</script>"onload="x'
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"experiment_name": evil, "dataset_name": evil}))
    summary = json.loads((folder / "logs/test_summary.json").read_text())
    summary["results"][0]["protocol"]["statistics"] = summary["protocol"]["dataset"] = evil
    (folder / "logs/test_summary.json").write_text(json.dumps(summary))
    curves = (folder / "logs/curves.json").read_text().replace("block0.conv.weight", "<script>alert(2)</script>weight")
    (folder / "logs/curves.json").write_text(curves)
    page = page_of(folder)
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == page.count("</script>") == 1


def test_nothing_is_loaded_from_anywhere(folder):
    page = page_of(folder)
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]{1,12})""", page) + re.findall(
        r"url\(([^)]{1,8})|@import", page
    )
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "default-src 'none'; img-src data:" in page


# --- unfinished and damaged folders -----------------------------------------------------------------------------------

FILES = (
    "config.json",
    "logs/curves.json",
    "logs/summary_statistics.json",
    "logs/metrics.jsonl",
    "logs/test_summary.json",
    "logs/test_predictions.safetensors",
    "logs/validation_episodes.safetensors",
)


def problems_of(page):
    """The list of damaged files in the page's head."""
    return "".join(re.findall(r'<ul class="problems">.*?</ul>', page, flags=re.S))


SPOILT = {
    "absent": None,
    "empty": b"",
    "cut": b'{"epochs": [{"epoch"',
    "of another kind": b"[1, 2]\n",
    "garbage": bytes(range(256)),
}


DAMAGES = list(itertools.product(FILES, SPOILT))
QUICK_DAMAGES = [
    (name, content) for name, content in DAMAGES if content == "garbage" or name.endswith(("curves.json", ".jsonl"))
]


@pytest.mark.parametrize("damage", few_of(DAMAGES, *QUICK_DAMAGES), ids="-".join)
def test_a_file_that_is_missing_or_damaged_is_said_and_the_rest_is_shown(folder, damage):
    name, content = damage
    if SPOILT[content] is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(SPOILT[content])
    page = page_of(folder)
    assert page.count("<section id=") == len(SECTIONS)
    silent = content == "absent" or (name, content) in {
        ("logs/metrics.jsonl", "empty"),
        ("logs/metrics.jsonl", "cut"),
    }  # a run under way
    assert (f"<li>{name}: " in problems_of(page)) == (not silent)
    if name != "logs/curves.json":
        assert "Accuracy per inner step" in page


ENTRIES = ("val", "train", "gradients", "updates", "learned_rates", "batch_norm", "epoch", "time")
OTHER_FORMS = [(entry, value) for entry in ENTRIES for value in (None, 3, "x", [], {}, {"norms": 1})]


@pytest.mark.parametrize("entry_and_value", few_of(OTHER_FORMS, *OTHER_FORMS[::5], *OTHER_FORMS[2::7]), ids=str)
def test_entries_of_another_form_spoil_at_most_their_own_part(folder, entry_and_value):
    entry, value = entry_and_value
    curves = json.loads((folder / "logs/curves.json").read_text())
    for epoch in curves["epochs"]:
        epoch[entry] = value
    (folder / "logs/curves.json").write_text(json.dumps(curves))
    page = page_of(folder)
    assert page.count("<section id=") == len(SECTIONS) and "Calibration" in page


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"experiment_name": "new", "total_epochs": 7}))
    page = page_of(tmp_path / "run")
    assert "epoch 0 of 7" in page and "there is nothing to judge" in page and "No test yet" in page


def test_after_the_first_epoch_the_best_validation_stands_in_for_the_test(tmp_path):
    folder = run_tiny(tmp_path, total_epochs=2, total_epochs_before_pause=1)
    page = page_of(folder)
    assert "epoch 1 of 2" in page and "best validation accuracy so far, in epoch 1" in page
    assert "Accuracy over validation tasks, epoch 1" in page


def test_a_report_that_would_be_too_large_goes_without_pictures(folder, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_BYTES", 1000)
    page = page_of(folder)
    assert "the validation episodes are left out" in page and "<img" not in page


def test_what_is_no_run_folder_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no run folder (neither config.json nor logs/ is there)" in capsys.readouterr().err


def test_the_command_line_says_where_the_report_is(folder, capsys):
    assert main([str(folder)]) == 0
    assert str(folder / REPORT) in capsys.readouterr().out


# --- numbers ----------------------------------------------------------------------------------------------------------


def answers():
    """Two tasks of two classes out of three, two query images of each; sure of the first, wrong in one of the
    second.
    """
    sure, unsure = [0.95, 0.05], [0.4, 0.6]
    probabilities = np.array([[sure, sure, sure[::-1], sure[::-1]], [sure, unsure, unsure, unsure]])
    return Answers(probabilities, np.array([[0, 0, 1, 1]] * 2), np.array([[0, 1], [0, 2]]), ["a", "b", "c"])


def test_a_task_of_few_queries_has_a_bar_for_each_accuracy_it_can_have():
    n_query = answers().labels.shape[1]
    chart = report_results.task_histogram(answers())
    assert chart.count('class="bar"') == n_query + 1
    for accuracy in answers().task_accuracies:
        assert f"{round(accuracy * n_query)} of {n_query} right: 1 tasks" in chart


def test_accuracy_confusion_and_the_hardest():
    assert answers().task_accuracies.tolist() == [1.0, 0.75]
    assert hardest_task(answers()) == 1
    assert confusion(answers(), 1).tolist() == [[1, 1], [0, 2]]
    assert hardest_classes(answers()) == [("a", 0.75, 4), ("b", 1.0, 2), ("c", 1.0, 2)]
    assert confused_pairs(answers()) == [("a", "c", 1, 2)]


def test_calibration_by_hand():
    """Five predictions at 0.95, all right; three at 0.6, two of them right: error (5 * 0.05 + 3 * |2/3 - 0.6|) / 8."""
    bins = calibration_bins(answers().probabilities, answers().labels)
    assert [(round(b.confidence, 9), b.accuracy, b.count) for b in bins] == [
        (0.6, pytest.approx(2 / 3), 3),
        (0.95, 1.0, 5),
    ]
    assert calibration_error(bins) == pytest.approx((5 * 0.05 + 3 * abs(2 / 3 - 0.6)) / 8)


def test_the_accuracy_of_the_report_is_that_of_the_test(finished):
    run = read_whole_run(finished)
    assert answers_of_test(*run.scores).task_accuracies.mean() == pytest.approx(run.test["test_accuracy_mean"])


def test_the_test_curve_stands_over_iterations_beside_the_validation(folder):
    """S3's picture: test accuracy against iterations, of every kept epoch."""
    titles = {figure.title for section in report.build_sections(read_whole_run(folder)) for figure in section.figures}
    assert "Test accuracy over iterations" not in titles, "nothing was tested for it"
    rows = [
        {"epoch": epoch, "val_accuracy_mean": 0.4, "test_accuracy_mean": mean, "test_accuracy_ci95": interval,
         "ways": 3, "shots": 1, "statistics": "transductive"}
        for epoch, mean, interval in ((1, 0.25, 0.05), (3, 0.75, None))
    ]  # fmt: skip
    write_csv(folder / "logs" / "test_curve.csv", rows)
    (section,) = (s for s in report.build_sections(read_whole_run(folder)) if s.id == "test")
    (figure,) = (figure for figure in section.figures if figure.title == "Test accuracy over iterations")
    tips = json.loads(html.unescape(re.search('data-tips="([^"]*)"', figure.content)[1]))
    of_test = {x: text for _, x, values in tips for name, _, text in values if name.startswith("test, 3-way 1-shot")}
    assert of_test == {"iteration 5": "25 %", "iteration 15": "75 %"}  # five iterations in an epoch
    assert "2 of 3 epochs, each alone" in figure.note and "max_models_to_save all" in figure.note


def test_pre_training_is_a_line_of_its_own_beside_the_episodes():
    before = {"train_accuracy_mean": 0.02, "pretraining_val_accuracy_mean": 0.67}
    after = {"train_accuracy_mean": 0.75, "val_accuracy_mean": 0.8, "val_accuracy_ci95": 0.05}
    rows = [{"epoch": 1, **before}, {"epoch": 2, **before}, {"epoch": 3, **after}]

    def answers_of(**values):
        section = report_learning.learning(read_run_of(**values))
        figure = section.figures[0]
        tips = json.loads(html.unescape(re.search('data-tips="([^"]*)"', figure.content)[1]))
        return {x: {name: text for name, _, text in found} for _, x, found in tips}, figure

    drawn, figure = answers_of(rows=rows, config={"pretraining_epochs": 2})
    assert drawn["epoch 2"] == {"pre-training": "2 %", "class centroids": "67 %"}
    assert drawn["epoch 3"] == {"training": "75 %", "validation": "80 %"}
    assert "in pre-training images among all training classes" in figure.note
    drawn, figure = answers_of(rows=rows[2:], config={"pretraining_epochs": 0})
    assert drawn == {"epoch 3": {"training": "75 %", "validation": "80 %"}} and "pre-training" not in figure.note


def test_the_histograms_of_gradients_are_pictures_over_epochs(folder):
    curves = json.loads((folder / "logs" / "curves.json").read_text())
    (section,) = (s for s in report.build_sections(read_whole_run(folder)) if s.id == "gradients")
    charts = {figure.title: figure.content for figure in section.figures if figure.title.startswith("Gradient of ")}
    assert list(charts) == [
        "Gradient of block0.conv.weight",
        "Gradient of block1.conv.weight",
        "Gradient of head.weight",
    ]
    data = re.search('href="data:image/png;base64,([^"]*)"', charts["Gradient of head.weight"])[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        alpha = np.asarray(image)[..., 3]  # (bins, epochs), the largest at the top
    counts = np.array([entry["gradients"]["magnitudes"]["head.weight"] for entry in curves["epochs"]]).T[::-1]
    counts = counts[np.flatnonzero(counts.any(axis=1))[0] : np.flatnonzero(counts.any(axis=1))[-1] + 1]
    np.testing.assert_allclose(alpha / 255, np.sqrt(counts / counts.max()), atol=0.003)


def test_it_is_not_written_through_a_link_inside_the_run_folder(folder, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "report.html").write_text("mine")
    if (folder / "visual_outputs").exists():
        shutil.rmtree(folder / "visual_outputs")
    (folder / "visual_outputs").symlink_to(theirs)
    assert main([str(folder)]) != 0
    err = capsys.readouterr().err
    assert f"visual_outputs: a symbolic link to {theirs}; inside a run folder nothing is written through links" in err
    assert "--output FILE" in err and (theirs / "report.html").read_text() == "mine"
    assert main([str(folder), "--output", str(tmp_path / "own.html")]) == 0 and (tmp_path / "own.html").exists()


def test_a_test_on_other_data_than_the_training_s_is_said_at_the_top(folder):
    assert "Tested on other data" not in page_of(folder)
    summary = folder / "logs" / "test_summary.json"
    line = "the class <b> is gone from train"
    before = json.loads(summary.read_text())
    summary.write_text(json.dumps(before | {OTHER_DATA: [line]}))
    page = page_of(folder)
    assert "Tested on other data than trained on: the class &lt;b&gt; is gone from train" in page.partition("<nav")[0]
    same = "In the test every 3-way task has the same classes, all that there are: the interval is over their images"
    assert same in page.partition("<nav")[0]  # those of three classes
    del before[SAME_CLASSES]
    summary.write_text(json.dumps(before))
    assert "have the same classes" not in page_of(folder)


def history(*epochs):
    """Rows from (train loss, train accuracy, val loss, val accuracy)."""
    names = ("train_loss_mean", "train_accuracy_mean", "val_loss_mean", "val_accuracy_mean")
    return [
        {"epoch": number, "val_accuracy_ci95": 0.01, "gradient_norm_mean": 1.0} | dict(zip(names, values, strict=True))
        for number, values in enumerate(epochs, 1)
    ]


def texts(rows, curves=(), **config):
    return " ".join(finding.text for finding in findings(rows, curves, {"num_classes_per_set": 5} | config))


def test_the_same_tasks_otherwise_are_a_forest_plot_and_a_verdict(folder):
    run = read_whole_run(folder)
    (figure,) = [f for f in report_results.test_answers(run).figures if f.title == "The same tasks, otherwise"]
    rows = run.test["baselines"]["rows"]
    assert [row["mean"] for row in figure.content] == [row["mean"] for row in rows.values()]
    assert [row["name"] for row in figure.content][:2] == ["chance", "nearest neighbour on pixels"]
    assert [row["name"] for row in figure.content if row["strong"]] == [
        f"epoch {run.test['models'][0]['epoch']} alone, 3 inner steps", "ensemble",
    ]  # fmt: skip
    low, high = (min(r["at"] for r in figure.content), max(r["from"] + r["width"] for r in figure.content))
    assert low >= 0 and high <= 100.2
    assert "worst tenth" in figure.note and "on the first 2 tasks" in figure.note  # all that a fifth of the time allows
    with_test = {finding.text for finding in findings(run.rows, run.epochs, run.config, run.test)}
    (verdict,) = with_test - {finding.text for finding in findings(run.rows, run.epochs, run.config)}
    assert "adapting" in verdict.lower() and "on the same 3 tasks" in verdict


def test_a_test_of_a_release_without_them_is_shown_without(folder):
    summary = json.loads((folder / "logs" / "test_summary.json").read_text())
    for result in (summary, *summary["results"]):
        result.pop("baselines", None)
    (folder / "logs" / "test_summary.json").write_text(json.dumps(summary))
    assert "The same tasks, otherwise" not in page_of(folder)


def test_the_verdict_sees_overfitting_only_where_validation_falls_by_more_than_its_interval():
    falling = history((1.0, 0.6, 1.0, 0.60), (0.5, 0.8, 0.9, 0.65), (0.1, 0.99, 1.5, 0.55))
    assert "Overfitting: since epoch 2 validation accuracy fell by 10.0 points" in texts(falling)
    wobbling = history((1.0, 0.6, 1.0, 0.60), (0.5, 0.7, 0.9, 0.65), (0.4, 0.7, 0.91, 0.645))
    assert "Overfitting" not in texts(wobbling) and "No overfitting seen" in texts(wobbling)


def test_the_verdict_sees_chance_improvement_and_a_gap():
    first = (1.6, 0.2, 1.6, 0.2)
    assert texts(history((1.6, 0.2, 1.6, 0.205))).startswith("Too short to tell: one epoch has been validated")
    assert "Not above chance" in texts(history(first, (1.6, 0.2, 1.6, 0.205)))
    assert "Still improving" in texts(history((1.0, 0.6, 1.0, 0.6), (0.9, 0.7, 0.9, 0.7)))
    assert "A gap of 15.0 points" in texts(history(first, (0.1, 0.9, 1.0, 0.75)))
    assert "No overfitting seen" in texts(history(first, (0.1, 0.8, 1.0, 0.71)))
    own_ways = texts(history(first, (0.1, 0.9, 1.0, 0.45)), val_num_classes_per_set=2)
    assert "guessing gives 50.0 %" in own_ways and "A gap" not in own_ways
    assert "Validation has 2 ways of its own: its accuracy is not compared" in own_ways
    overfitted = (
        "Overfitting: a gap of 28.5 points between training and validation accuracy in epoch 2 (100.0 % and 71.5"
    )
    assert overfitted in texts(history((0.1, 0.7, 1.0, 0.72), (0.0, 1.0, 1.0, 0.715)))


def test_the_verdict_sees_gradients_vanish_and_explode():
    rows = history(*[(1.0, 0.6, 1.0, 0.6)] * 4)
    assert "Gradients flow" in texts(rows)
    assert "Vanishing gradients" in texts([*rows[:3], rows[3] | {"gradient_norm_mean": 0.009}])
    assert "Vanishing gradients" not in texts([*rows[:3], rows[3] | {"gradient_norm_mean": 0.011}])
    assert "The weights hardly change" in texts([*rows[:3], rows[3] | {"gradient_norm_mean": 0.009}])
    assert "Exploding gradients" in texts([*rows[:3], rows[3] | {"gradient_norm_mean": 100.0}])
    norms = {"block0.conv.weight": 1e-7, "block0.conv.bias": 0.0, "head.weight": 1.0}
    assert "Vanishing gradients in block0.conv.weight:" in texts(rows, [{"epoch": 1, "gradients": {"norms": norms}}])


def classes_of_patterns(config, n_train):
    """A pattern per class under noise: three classes, then without noise, are soon known by heart, many are not."""
    generator = torch.Generator().manual_seed(0)
    counts = {"train": n_train, "val": 8, "test": 8}
    patterns = torch.rand((sum(counts.values()), 1, 1, 10, 10), generator=generator)
    noise = torch.rand((len(patterns), 6, 1, 10, 10), generator=generator)
    share = torch.full((len(patterns), 1, 1, 1, 1), 0.5)
    share[: 3 if n_train == 3 else 0] = 0.0
    images = (255 * (patterns * (1 - share) + noise * share)).to(torch.uint8).flatten(0, 1)
    ranks = iter(range(len(patterns)))
    classes = {
        split: {f"{split}{c}": range(6 * rank, 6 * rank + 6) for c, rank in zip(range(count), ranks, strict=False)}
        for split, count in counts.items()
    }
    drawing = Drawing(config.validation_shape, dict.fromkeys(classes, 0))
    return FewShotData(ImageClasses(images, classes), drawing, Preprocessing(dtype=torch.float32))


@pytest.mark.parametrize("n_train", [3, 60])
def test_the_verdict_on_runs_made_to_overfit_and_vanish_and_on_one_that_does_neither(tmp_path, n_train):
    """Three classes, always the same task: training reaches 100 % and its gradient ends, validation stays behind."""
    settings = {
        "total_epochs": 5, "total_iter_per_epoch": 20, "num_evaluation_tasks": 10, "cnn_num_filters": 8,
        "number_of_training_steps_per_iter": 1, "meta_learning_rate": 0.02 if n_train == 3 else 0.005,
        "meta_learning_rate_schedule": "constant", "diagnostics_every_epochs": 0,
    }  # fmt: skip
    folder = run_tiny(tmp_path, data=lambda config: classes_of_patterns(config, n_train), **settings)
    run = read_whole_run(folder)
    text = " ".join(finding.text for finding in findings(run.rows, run.epochs, run.config))
    if n_train == 3:
        assert run.rows[-1]["train_accuracy_mean"] > 0.99 and run.rows[-1]["val_accuracy_mean"] < 0.8
        assert "Overfitting: " in text
        assert "Vanishing gradients: " in text and "The training tasks are solved" in text
    else:
        assert "No overfitting seen" in text and "Gradients flow" in text


@pytest.mark.parametrize(
    ("accuracies", "text"),
    [
        (
            [0.2, 0.5, 0.8],
            "The inner loop learns: 2 steps lift new classes from 20.0 % to 80.0 % (validation of epoch 1).",
        ),
        ([0.2, 0.21], "changes little"),
        ([0.2, 0.8, 0.6], "Too many inner steps: after 1"),
    ],
)
def test_the_verdict_on_adaptation(accuracies, text):
    assert text in texts(history(*[(1.0, 0.6, 1.0, 0.6)] * 2), [{"epoch": 1, "val": {"query_accuracy": accuracies}}])


def test_a_regression_is_judged_by_its_error(folder):
    """Scores below zero are minus the mean squared error: no per cent, and no talk of chance."""
    rows = history((1.0, -1.0, 1.0, -1.0), (0.5, -0.5, 0.6, -0.6))
    assert "Still improving: the newest mean squared error is the lowest, 0.6." in texts(rows)
    parting = history((1.0, -1.0, 1.0, -1.0), (0.5, -0.5, 0.6, -0.6), (0.1, -0.1, 2.0, -2.0))
    assert "Overfitting: since epoch 2 the validation error rose from 0.6 to 2 while" in texts(parting)
    assert "A gap between training and validation error at the best epoch: 0.1 against 0.6." in texts(
        history((1.0, -1.0, 1.0, -1.0), (0.1, -0.1, 0.6, -0.6))
    )
    for scores, text in (
        ([-4.0, -1.0, -0.5], "2 steps lower the error of new tasks from 4 to 0.5"),
        ([-4.0, -4.1], "Adaptation does not help"),
        ([-4.0, -0.5, -1.0], "Too many inner steps: after 1 the error is 0.5, after 2 1 (validation of epoch 1)."),
    ):
        assert text in texts(rows, [{"epoch": 1, "val": {"query_accuracy": scores}}])
    assert not re.search("chance|%", texts(rows) + texts(parting))
    columns = json.loads((folder / "logs/summary_statistics.json").read_text())
    columns["val_accuracy_mean"] = [-1.0, -0.5, -0.25]
    (folder / "logs/summary_statistics.json").write_text(json.dumps(columns))
    (folder / "logs/test_summary.json").unlink()
    curves = json.loads((folder / "logs/curves.json").read_text())["epochs"]
    for entry in curves:
        entry["val"] |= {name: [-1.0, -0.5, -0.25, -0.2] for name in ("support_accuracy", "query_accuracy")}
    (folder / "logs/curves.json").write_text(json.dumps({"epochs": curves}))
    page = page_of(folder)
    assert (
        '<p class="value">0.25' in page
        and "best: epoch 3, 0.25" in page
        and "best validation mean squared error so far, in epoch 3" in page
    )
    assert "Mean squared error per inner step" in page and "Accuracy per inner step" not in page


def test_the_errors_of_a_regression_s_test_are_those_of_the_mean_output():
    """Two models, two tasks of two points: the mean outputs are 1 and 3 beside 0 and 0, then 1 and 1 beside 1 and 1."""
    outputs = np.array([[[[0.0], [2.0]], [[1.0], [0.0]]], [[[2.0], [4.0]], [[1.0], [2.0]]]], dtype=np.float32)
    arrays = {
        "scores.transductive": outputs,
        "query_labels": np.array([[[0.0], [0.0]], [[1.0], [1.0]]], dtype=np.float32),
    }
    protocol = {"statistics": "transductive", "dataset": "sinusoid", "ways": 1, "shots": 2, "queries": 2}
    scores, loss = scores_and_loss(arrays, protocol)
    assert (-scores).tolist() == [5.0, 0.0] and loss == 2.5


def test_the_rates_of_meta_sgd_are_drawn_by_their_spread(finished):
    epochs = [
        {
            "epoch": n,
            "rate_quantiles": {"head.weight": [0.0, 0.05, 0.1 * n, 0.2, 0.3, 0.4, 0.5], "head.bias": [0.1] * 7},
        }
        for n in (1, 2)
    ]
    ((name, chart),) = report_layers.element_rates(epochs, {"head.weight": 0.1})
    assert name == "head.weight" and chart.count('class="band"') == 1 and chart.count('class="line faint"') == 2
    assert report_layers.element_rates(read_whole_run(finished).epochs, {}) == []


def test_a_run_without_a_test_says_how_to_test_it(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"test_after_training": False}))
    for name in ("test_summary.json", "test_predictions.safetensors"):
        (folder / "logs" / name).unlink()
    assert "the same command with --test_after_training true" in page_of(folder)


def test_the_time_split_adds_up():
    run = read_run_of(
        rows=[{"epoch": 1, "train_time_s": 10.0, "data_time_s": 2.0, "val_time_s": 5.0}],
        epochs=[{"epoch": 1, "gradients": {"time_inner_s": 3.0, "time_outer_s": 1.0}, "look_time_s": 0.5}],
    )
    assert report_machine.time_split(run) == {
        "waiting for data": 2.0, "inner loop": 6.0, "outer loop": 2.0, "evaluation": 5.0, "writing this report": 0.5,
    }  # fmt: skip


def read_run_of(**values):
    return Run(Path("somewhere") / "run", **values)


def test_a_generated_config_with_overrides_gives_script_and_differences():
    config = load_config(REPOSITORY_ROOT / "experiment_config" / "quickstart.json", {"batch_size": 3}).to_json_dict()
    quickstart = REPOSITORY_ROOT / "experiment_config" / "quickstart.json"
    assert report_machine.nearest_config(config) == (quickstart, {"batch_size": (8, 3)})
    run = read_run_of(config=config)
    assert command_of(run) == "bash experiment_scripts/quickstart.sh --batch_size 3"
    other = config | {"experiment_name": "mine"}
    assert report_machine.nearest_config(other)[0] == quickstart
    assert command_of(read_run_of(config=other)) == (
        "python train_maml_system.py --name_of_args_json_file somewhere/run/config.json"
    )


def test_numbers_are_written_for_people():
    assert [short(x) for x in (0, 0.1, 0.0016344, 12345.6, 1e-7, 2.5e9)] == [
        "0",
        "0.1",
        "0.001634",
        "12346",
        "1e-7",
        "2.5e9",
    ]
    assert [duration(s) for s in (4.56, 200, 3840, 190000)] == ["4.56 s", "3 min 20 s", "1 h 04 min", "2 d 04 h"]
    assert thinned(list(range(10)), 4) == [0, 3, 6, 9] and thinned([1, 2], 4) == [1, 2]
    assert svg.ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1.0] and svg.ticks(1, 5, 5, whole=True) == [1, 2, 3, 4, 5]


def test_a_chart_holds_its_points_and_escapes_its_words():
    axes = svg.Axes("<epoch>", lambda y: f"{y:.1f}&")
    chart = svg.line_chart(
        [svg.Series("a<b", [(1, 0.0), (2, None), (3, 1.0), (4, 2.0)], "red", dots=True)], axes, 'x"y'
    )
    assert "<epoch>" not in chart and "&lt;epoch&gt;" in chart and "x&quot;y" in chart and "a&lt;b" in chart
    assert (
        chart.count("<circle") == 3 and chart.count('class="line') == 1
    )  # the gap splits the line; one point alone is a dot
    assert svg.line_chart([svg.Series("none", [(1, None), (2, float("nan"))], "red")], axes, "x") is None
    assert svg.line_chart([svg.Series("zero", [(1, 0.0)], "red")], svg.Axes("x", str, log_y=True), "x") is None


def test_many_epochs_stay_small_and_quick(folder):
    """300 epochs and 3,000 logged lines."""
    curves = json.loads((folder / "logs/curves.json").read_text())["epochs"]
    many = [curves[n % 3] | {"epoch": n + 1} for n in range(300)]
    (folder / "logs/curves.json").write_text(json.dumps({"epochs": many}))
    columns = json.loads((folder / "logs/summary_statistics.json").read_text())
    columns = {name: (values * 100)[:300] for name, values in columns.items()} | {"epoch": list(range(1, 301))}
    (folder / "logs/summary_statistics.json").write_text(json.dumps(columns))
    lines = (folder / "logs/metrics.jsonl").read_text() * 300
    (folder / "logs/metrics.jsonl").write_text(lines)
    start = time.perf_counter()
    assert write_report(folder).stat().st_size < LARGEST_BYTES / 2
    assert time.perf_counter() - start < 20
