"""The report's head and its sections about answers: result, validation episodes as images, the test task by task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiment_parts.evaluation.baselines import row_name
from experiment_tools.parts.pages import Legend, Section, as_image, data_address
from experiment_tools.parts.run_reading import Run, scores_and_loss
from experiment_tools.parts.svg import Axes, Markup, Series, bar_chart, line_chart, ramp
from experiment_tools.report.answers import (
    Answers,
    answers_of_test,
    confused_pairs,
    confusion,
    hardest_classes,
    hardest_task,
)
from experiment_tools.report.sections import TEST, VAL, percent, percent_tick, queries_per_class, short
from experiment_tools.report.verdict import best_row
from utils.metrics import calibration_bins, calibration_error, score_named, score_of
from utils.words import counted

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST_MATRIX = MOST_SINGLE_BARS = 20
NOT_TESTED = (
    "Not tested, as test_after_training is false. To test it: the same command with --test_after_training true."
)


def headline(run: Run) -> dict[str, Any]:
    """Show the result in large letters, what it is of, and a few numbers beside it."""
    best = best_row(run.rows)
    total, done = run.config.get("total_epochs"), len(run.rows)
    head: dict[str, Any] = {
        "state": f"epoch {done} of {total or '?'}",
        "finished": False,
        "value": "–",
        "interval": "",
        "what": "no result yet",
    }
    if run.test:
        ensemble = run.test["ensemble"]
        n_models = ensemble["models"]
        of_epochs = f"epoch{'s' if n_models > 1 else ''} {', '.join(map(str, ensemble['epochs']))}"
        is_over = not total or done >= total or run.test.get("stopped_early")
        measure = score_named(run.test.get("score")).name
        head |= _score(run.test["test_accuracy_mean"], run.test.get("test_accuracy_ci95")) | {
            "state": "finished" if is_over else f"tested, {head['state']}",
            "finished": bool(is_over),
            "what": f"test {measure} of {f'the ensemble of {n_models} models, ' if n_models > 1 else ''}{of_epochs}",
            "protocol": _protocol(run.test["protocol"], is_regression=run.is_regression),
        }
    elif best:
        what = f"best validation {score_of(run.is_regression).name} so far, in epoch {best['epoch']}"
        head |= _score(best["val_accuracy_mean"], best.get("val_accuracy_ci95")) | {"what": what}
    if "protocol" not in head:
        head["protocol"] = _protocol_of_config(run.config, is_regression=run.is_regression)
    tiles = []
    if best:
        tiles.append(("best validation", _score(best["val_accuracy_mean"], None)["value"], f"epoch {best['epoch']}"))
    newest = next((entry for entry in reversed(run.epochs) if entry.get("val")), None)
    gain = newest["val"]["query_accuracy"] if newest else ()
    if newest and gain and gain[0] is not None and gain[-1] is not None:
        before, after = (
            f"{run.shown(score):.3g}" if run.is_regression else percent(score, 0) for score in (gain[0], gain[-1])
        )
        steps = f"in {counted(len(gain) - 1, 'inner step')}, validation of epoch {newest['epoch']}"
        tiles.append(("adaptation", f"{before} → {after}", steps))
    if run.rows and (speed := run.rows[-1].get("train_tasks_per_s")):
        tiles.append(("speed", f"{speed:.3g}" if speed < 100 else f"{speed:,.0f}", "training tasks per second"))
    return head | {"tiles": tiles}


def _score(mean: float, interval: float | None) -> dict[str, str]:
    if mean < 0:  # minus the mean squared error of regression
        return {"value": short(-mean), "interval": "" if interval is None else f"± {short(interval)}"}
    return {"value": f"{100 * mean:.2f} %", "interval": "" if interval is None else f"± {100 * interval:.2f}"}


def _protocol(protocol: Mapping[str, Any], *, is_regression: bool) -> list[str]:
    if is_regression:
        return [
            f"{protocol['shots']} points to adapt to",
            f"{protocol['queries']} points to predict",
            counted(protocol["steps"], "inner step"),
            f"{counted(protocol['tasks'], 'task')} of {protocol['dataset']}",
            f"task seed {protocol['seed']}",
            "95 % interval over tasks",
        ]
    return [
        f"{protocol['ways']}-way {protocol['shots']}-shot",
        queries_per_class(protocol["queries"]),
        counted(protocol["steps"], "inner step"),
        f"{protocol['statistics']} batch norm",
        f"{counted(protocol['tasks'], 'task')} of {protocol['dataset']}",
        f"task seed {protocol['seed']}",
        "95 % interval over tasks",
    ]


def _protocol_of_config(config: Mapping[str, Any], *, is_regression: bool) -> list[str]:
    shapes = {
        "num_classes_per_set": "{}-way".format,
        "num_samples_per_class": "{}-shot".format,
        "num_target_samples": queries_per_class,
    }
    if is_regression:
        shapes = {
            "num_samples_per_class": "{} points to adapt to".format,
            "num_target_samples": "{} points to predict".format,
        }
    words = shapes | {
        "number_of_evaluation_steps_per_iter": "{} inner steps".format, "num_evaluation_tasks": "{} tasks".format,
        "dataset_name": str,
    }  # fmt: skip
    return [text(config[key]) for key, text in words.items() if config.get(key) is not None]


# --- validation episodes ----------------------------------------------------------------------------------------------


def episodes(run: Run) -> Section:
    """Show the first validation tasks: support images, query images with their prediction, mistakes marked."""
    section = Section(
        "episodes",
        "Validation episodes",
        "The same tasks every time: what the newest model answers after adapting to the support images on the left. A "
        "mistake has a cross and the "
        "letter of the class it was taken for.",
        "Episodes",
    )
    arrays, state = run.examples
    if run.is_regression:
        return section.lacking("A regression has points, which are nothing to look at one by one.")
    if run.config.get("input_shape"):
        return section.lacking("Examples are arrays, of which there are no pictures.")
    if not arrays:
        return section.lacking(
            "logs/validation_episodes.safetensors is not there: no epoch is finished, or diagnostics_every_epochs is 0."
        )
    n_episodes, n_way = arrays["predictions"].shape[:2]
    history = [entry["examples_right"] for entry in run.epochs if entry.get("examples_right")]
    for index in range(n_episodes):
        before, after = int(arrays["right_before"][index]), int(arrays["right"][index])
        rows = [_class_row(arrays, state, index, way) for way in range(n_way)]
        n_queries = state["queries_per_task"]
        content = {"rows": rows, "before": before, "after": after, "queries": n_queries}
        note = f"Epoch {state['epoch']}: {after} of {n_queries} right, {before} before adaptation."
        if history and len(history[-1]) > index:
            note += f" Right over epochs: {', '.join(str(right[index]) for right in history[-12:])}."
        section.add(
            f"Task {index + 1}",
            content,
            kind="episodes",
            size="quarter"
            if arrays["predictions"].shape[2] <= 3 and arrays["support_images"].shape[2] <= 1
            else "half",
            note=note,
        )
    return section


def _class_row(arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], episode: int, way: int) -> dict[str, Any]:
    queries = [
        {
            "image": picture(arrays["query_images"][episode, way, q]),
            "right": predicted == way,
            "letter": letter(predicted),
            "name": state["class_names"][episode][predicted],
            "confidence": percent(float(arrays["confidence"][episode, way, q]), 0),
        }
        for q, predicted in enumerate(arrays["predictions"][episode, way].tolist())
    ]
    support = [picture(pixels) for pixels in arrays["support_images"][episode, way]]
    return {"letter": letter(way), "name": state["class_names"][episode][way], "support": support, "queries": queries}


def letter(way: int) -> str:
    """Return A, B, ..., Z, A2, ..."""
    return LETTERS[way % 26] + (str(way // 26 + 1) if way >= 26 else "")


def picture(pixels: np.ndarray) -> Markup:
    """Return a data: address of an image, uint8 (C, H, W): PNG where it is grey, else WebP."""
    kind, options = ("PNG", {"optimize": True}) if len(pixels) == 1 else ("WEBP", {"quality": 80})
    return Markup(data_address(as_image(pixels), kind, **options))


# --- the test ---------------------------------------------------------------------------------------------------------


def test_answers(run: Run) -> Section:
    """Show the final test: spread over tasks, single models, calibration, hard classes, one task's confusions."""
    section = Section(
        "test",
        "Test, task by task",
        "The final test of the best models on fixed tasks with classes never seen in training or validation.",
        "Test",
    )
    if run.test:
        section.add(
            "All results",
            _result_rows(run.test),
            kind="models",
            size="wide" if len(run.test["results"]) > 1 else "third",
            note="The ensemble takes the mean scores of the best models by validation accuracy. Whiskers: 95 % "
            "intervals over tasks.",
        )
        _add_baselines(section, run.test["results"][0])
    _add_test_curve(section, run)
    if run.is_regression and run.scores[0]:
        arrays, state = run.scores
        _add_errors(section, -scores_and_loss(arrays, state["protocol"])[0])
        return section
    answers = answers_of_test(*run.scores) if run.scores[0] else None
    if answers is None:
        section.missing.append(
            "No test yet: it follows the last epoch." if run.config.get("test_after_training", True) else NOT_TESTED
        )
        histogram = next((entry for entry in reversed(run.epochs) if entry.get("val_accuracy_histogram")), None)
        if histogram:
            section.add(
                f"Accuracy over validation tasks, epoch {histogram['epoch']}",
                _histogram(histogram["val_accuracy_histogram"], VAL),
            )
        return section
    low, high = (percent(float(np.quantile(answers.task_accuracies, share))) for share in (0.25, 0.75))
    middle = f"half of them or more have {low}" if low == high else f"half of them lie between {low} and {high}"
    section.add("Accuracy over tasks", task_histogram(answers), note=f"{len(answers.labels)} tasks: {middle}.")
    if run.config.get("loss", "cross_entropy") == "cross_entropy":
        _add_calibration(section, answers)
    else:
        section.missing.append(f"Calibration: with the loss {run.config['loss']} the scores are no probabilities.")
    if answers.class_ids is None:
        section.missing.append(
            "Hardest classes: this run's logs/test_predictions.safetensors does not name the classes of its tasks."
        )
    else:
        _add_classes(section, answers)
    _add_confusion(section, answers)
    return section


def _add_test_curve(section: Section, run: Run) -> None:
    """Show the test of each kept epoch's model over the iterations of its training, beside the validation."""
    if not run.test_curve:
        return
    per_epoch = run.config.get("total_iter_per_epoch", 1)
    validation = [(row["epoch"] * per_epoch, run.shown(row.get("val_accuracy_mean"))) for row in run.rows]
    lines = [Series("validation", validation, VAL, "dashed")]
    by_protocol: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.test_curve:
        name = f"test, {row['ways']:.0f}-way {row['shots']:.0f}-shot, {row['statistics']}"
        by_protocol.setdefault(name, []).append(row)
    for place, (name, rows) in enumerate(by_protocol.items()):
        known = [
            (row["epoch"] * per_epoch, run.shown(row["test_accuracy_mean"]), row["test_accuracy_ci95"]) for row in rows
        ]
        band = [(x, y - width, y + width) for x, y, width in known if None not in (y, width)]
        colour = ramp(place, len(by_protocol)) if len(by_protocol) > 1 else TEST
        lines.append(Series(name, [(x, y) for x, y, _ in known], colour, dots=True, band=band))
    n_tested, n_epochs = len({row["epoch"] for row in run.test_curve}), len(run.rows)
    note = (
        f"{n_tested} of {counted(n_epochs, 'epoch')}, each alone, never used to choose. Band: 95 % interval over tasks."
    )
    if n_tested < n_epochs:
        note += " With max_models_to_save all every epoch is kept."
    title = f"Test {score_of(run.is_regression).name} over iterations"
    axes = Axes("iteration", short if run.is_regression else percent_tick, "iteration")
    legend = [Legend(line.name, line.colour, line.look) for line in lines]
    section.add(title, line_chart(lines, axes, title), legend=legend, note=note, size="half")


def _add_classes(section: Section, answers: Answers) -> None:
    bars = [
        {"name": name, "share": share, "text": f"{percent(share, 0)} of {count}"}
        for name, share, count in hardest_classes(answers)
    ]
    note = "Share of their query images that were recognised, over all test tasks."
    section.add("Hardest classes", bars, kind="bars", note=note)
    pairs = [
        {"one": one, "other": other, "text": f"{times} of {together}"}
        for one, other, times, together in confused_pairs(answers)
        if times > 1
    ]
    note = "Of the query images of the first class in tasks that had both."
    section.add("Most confused", pairs, "no class was taken for the same other one twice.", kind="pairs", note=note)


def _add_errors(section: Section, errors: np.ndarray) -> None:
    """Show how the mean squared error is spread over test tasks of a regression; the last bar holds all larger ones."""
    most = float(np.quantile(errors, 0.98)) or 1.0
    counts = np.histogram(np.minimum(errors, most), bins=20, range=(0.0, most))[0].tolist()
    bars = [
        (
            f"{short(most * index / 20)} to {short(most * (index + 1) / 20)}{' and more' if index == 19 else ''}: "
            f"{count} tasks",
            float(count),
            f"{most * index / 20:.2g}" if index % 4 == 0 else "",
        )
        for index, count in enumerate(counts)
    ]
    mean = float(errors.mean())
    chart = bar_chart(
        bars,
        "mean squared error of a task",
        "Number of tasks by their error",
        TEST,
        (min(mean / most, 1.0), f"mean {short(mean)}"),
    )
    low, middle, high = (float(np.quantile(errors, share)) for share in (0.25, 0.5, 0.75))
    section.add(
        "Error over tasks",
        chart,
        note=f"{len(errors)} tasks: half of them lie between {low:.3g} and {high:.3g}, the median is {middle:.3g}.",
    )


def task_histogram(answers: Answers) -> Markup:
    """Draw a bar for each accuracy that a task of few queries can have; else equally wide bins."""
    accuracies, n_query = answers.task_accuracies, answers.labels.shape[1]
    mean = float(accuracies.mean())
    if n_query > MOST_SINGLE_BARS:
        return _histogram(np.histogram(np.clip(accuracies + 1e-9, 0, 1), bins=20, range=(0, 1))[0].tolist(), TEST, mean)
    counts = np.bincount(np.rint(accuracies * n_query).astype(int), minlength=n_query + 1).tolist()
    every = max(1, round(n_query / 5))
    bars = [
        (
            f"{right} of {n_query} right: {count} tasks",
            float(count),
            f"{100 * right / n_query:.0f}" if right % every == 0 else "",
        )
        for right, count in enumerate(counts)
    ]
    mark = ((mean * n_query + 0.5) / (n_query + 1), f"mean {percent(mean)}")
    return bar_chart(bars, "accuracy of a task in %", "Number of tasks by their accuracy", TEST, mark, centred=True)


def _histogram(counts: Sequence[int], colour: str, mean: float | None = None) -> Markup:
    n_bins = len(counts)
    bars = [
        (f"{percent(index / n_bins, 0)} to {percent((index + 1) / n_bins, 0)}: {count} tasks", float(count),
         f"{100 * index / n_bins:.0f}" if index % (n_bins // 5) == 0 else "")
        for index, count in enumerate(counts)
    ]  # fmt: skip
    mark = None if mean is None else (mean, f"mean {percent(mean)}")
    return bar_chart(bars, "accuracy of a task in %", "Number of tasks by their accuracy", colour, mark)


def _add_calibration(section: Section, answers: Answers) -> None:
    bins = calibration_bins(answers.probabilities, answers.labels)
    chart = line_chart(
        [Series("accuracy", [(b.confidence, b.accuracy) for b in bins], TEST, dots=True)],
        Axes("confidence of the prediction", percent_tick, "confidence", (0.0, 1.0), whole_x=False, diagonal=True),
        "Accuracy of predictions by their confidence",
    )
    sure = sum(b.count * (b.confidence - b.accuracy) for b in bins)
    section.add(
        "Calibration",
        chart,
        legend=[Legend("ensemble", TEST), Legend("as sure as right", "var(--muted)", "dashed")],
        note=f"Expected calibration error {percent(calibration_error(bins))}: "
        f"on average its answers are right {'less' if sure > 0 else 'more'} often than its confidence says.",
    )


def _add_confusion(section: Section, answers: Answers) -> None:
    task = hardest_task(answers)
    matrix = confusion(answers, task)
    n_way = len(matrix)
    if n_way > LARGEST_MATRIX:
        section.missing.append(
            f"Confusion of one task: {n_way} classes do not fit; at most {LARGEST_MATRIX} are shown."
        )
        return
    names = (
        [answers.class_names[c] for c in answers.class_ids[task]]
        if answers.class_ids is not None
        else [f"class {letter(w)}" for w in range(n_way)]
    )
    largest = max(1, int(matrix.max()))
    rows = [
        {
            "name": names[row],
            "letter": letter(row),
            "cells": [
                {"count": int(count), "share": round(100 * count / largest), "right": row == column}
                for column, count in enumerate(matrix[row])
            ],
        }
        for row in range(n_way)
    ]
    section.add(
        "Confusions in the hardest task",
        {"rows": rows, "letters": [letter(w) for w in range(n_way)]},
        kind="confusion",
        note=f"Test task {task}. Rows: what it was; columns: what it was taken for. Accuracy "
        f"{percent(float(answers.task_accuracies[task]))}.",
    )


def _result_rows(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return ensemble and single models of every result, with mean and interval in per cent of a common axis."""
    several = len(test["results"]) > 1
    rows = []
    for result in test["results"]:
        protocol = result["protocol"]
        ensemble = result["ensemble"]
        where = f"{protocol['ways']}-way {protocol['shots']}-shot, {protocol['statistics']}" if several else ""
        label = f"ensemble of {ensemble['models']}" if ensemble["models"] > 1 else f"epoch {ensemble['epochs'][0]}"
        rows.append(
            {"name": f"{where}: {label}" if where else label, "strong": True, "val": None, **_whisker(ensemble)}
        )
        if ensemble["models"] > 1 and not several:
            rows += [
                {"name": f"epoch {m['epoch']} alone", "strong": False, "val": m.get("val_accuracy"), **_whisker(m)}
                for m in result["models"]
            ]
    return _on_one_axis(rows)


def _add_baselines(section: Section, result: Mapping[str, Any]) -> None:
    """Show what simple methods and each inner step reach on the test tasks, as a forest plot."""
    baselines = result.get("baselines")
    if not baselines:
        return
    last, score = baselines["steps"], score_named(result.get("score"))
    own = (f"after_{last}_steps", "ensemble")
    rows = [
        {"name": row_name(name, baselines), "strong": name in own, "val": None, "mean": row["mean"],
         "ci": row["ci95"] or 0.0}
        for name, row in baselines["rows"].items()
    ]  # fmt: skip
    worst = baselines["rows"].get(own[1], baselines["rows"][own[0]])["worst_tenth_mean"]
    notes = [f"In the worst tenth of the tasks: {score.short_text(worst)}."]
    if fewer := {row["tasks"] for row in baselines["rows"].values()} - {baselines["rows"][own[0]]["tasks"]}:
        notes.append(f"The untrained body was tested on the first {min(fewer)} tasks.")
    if orders := baselines.get("label_orders"):
        notes.append(
            f"With the labels of a task in {orders['orders']} orders its accuracy has a standard deviation of "
            f"{percent(orders['std'])}, from {percent(orders['lowest'])} to {percent(orders['highest'])} on average "
            f"({counted(orders['tasks'], 'task')})."
        )
    section.add("The same tasks, otherwise", _on_one_axis(rows), kind="models", size="half", note=" ".join(notes))


def _on_one_axis(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    low = min(row["mean"] - row["ci"] for row in rows)
    high = max(row["mean"] + row["ci"] for row in rows)
    width = (high - low) or 1.0
    for row in rows:
        row |= {
            "text": _score(row["mean"], row["ci"] or None),
            "at": round(100 * (row["mean"] - low) / width, 1),
            "from": round(100 * (row["mean"] - row["ci"] - low) / width, 1),
            "width": round(100 * 2 * row["ci"] / width, 1),
        }
    return rows


def _whisker(columns: Mapping[str, Any]) -> dict[str, float]:
    return {"mean": columns["test_accuracy_mean"], "ci": columns.get("test_accuracy_ci95") or 0.0}
