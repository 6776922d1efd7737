"""From the class scores of tested models to test_summary: ensemble, single models, intervals, protocol."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment_parts.evaluation.baselines import lines_beside
from experiment_parts.records.epoch_records import early_stop
from experiment_parts.runs.run_folder import RunFolder
from utils.errors import ConfigError, NonFiniteError
from utils.files.reading import read_object
from utils.metrics import (
    ACCURACY,
    Score,
    Summary,
    finite_or_none,
    is_regression,
    pooled,
    score_named,
    score_of,
    summarise,
    task_scores,
)
from utils.words import counted, is_whole_number

if TYPE_CHECKING:
    from torch import Tensor

BEST_MODELS = "best validation accuracy"
OTHER_DATA = "other_data_than_trained_on"
"""Key of a summary: what differs from the data of the training, a line each; absent: nothing."""
TESTED_ON = "content_sha256"
"""Key of a summary: of the data that it is of, as in environment.json; absent where they have no digest."""
ALL_TASKS = "all_tasks"
"""Key of a summary: `over_all_tasks`; absent where there is nothing to put together."""
SAME_CLASSES = "every_task_has_the_same_classes"
"""Key of a result whose split has no more classes than a task has ways; absent: tasks differ in classes."""


def score_models(outputs: "Tensor", labels: "Tensor", models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Score over tasks of the models' mean outputs and of each model.

    Args:
        outputs: (models, tasks, queries, classes), class scores, higher is better; (models, tasks, points, D) in a
            regression.
        labels: int64 (tasks, queries); float (tasks, points, D) in a regression.
        models: what is known of each (epoch, file, validation score).
    Raises:
        NonFiniteError: the score of a task is not; an accuracy always is.
    """
    # The mean of logits, not of probabilities, as in the reference. Its deviation, though, is that of hits and misses
    # over images, about sqrt(p (1 - p)) however many tasks there are; here it is over tasks, which are independent.
    of_ensemble, *of_models = (_task_scores(some, labels) for some in (outputs.mean(dim=0), *outputs))
    for model, scores in zip(models, of_models, strict=True):
        diverged = [task for task, score in enumerate(scores) if not math.isfinite(score)]
        if diverged:
            raise NonFiniteError(
                f"{model['file']} gives numbers that are not finite in {len(diverged)} of {len(scores)} test tasks, "
                f"the first one task {diverged[0]}: the inner loop diverges there. Test with fewer steps, "
                "--evaluate_on_test_set_only true --tag NAME --number_of_evaluation_steps_per_iter N, or train with a "
                "lower init_inner_loop_learning_rate"
            )
    ensemble = summarise(of_ensemble)
    return {
        "score": score_of(is_regression(labels)).key,
        **_columns(ensemble),
        "ensemble": {"models": len(models), "epochs": [model["epoch"] for model in models], **_columns(ensemble)},
        "models": [model | _columns(summarise(scores)) for model, scores in zip(models, of_models, strict=True)],
    }


def over_all_tasks(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the score over the tasks of all ways, of each kind of statistics, where classes have shots of their own:
    what Meta-Dataset reports (Triantafillou et al. 2020).
    """
    parts: dict[str, list[Summary]] = {}
    for result in results:
        protocol, columns = result["protocol"], result["ensemble"]
        if isinstance(protocol["shots"], str):
            numbers = (columns[name] for name in ("test_accuracy_mean", "test_accuracy_std", "test_accuracy_ci95"))
            parts.setdefault(protocol["statistics"], []).append(Summary(*numbers, protocol["tasks"]))
    whole = {kind: pooled(of_kind) for kind, of_kind in parts.items() if len(of_kind) > 1}
    return [{"statistics": kind, "tasks": one.count, **_columns(one)} for kind, one in whole.items()]


def accuracy_columns(outputs: "Tensor", labels: "Tensor") -> dict[str, Any]:
    """Return test_accuracy_mean, _std and _ci95 over tasks of one model's outputs (tasks, queries, classes or D); None
    where not finite.
    """
    columns = _columns(summarise(_task_scores(outputs, labels)))
    return {name: None if value is None else finite_or_none(value) for name, value in columns.items()}


def _task_scores(outputs: "Tensor", labels: "Tensor") -> list[float]:
    return task_scores(outputs.double(), labels).tolist()


def stored_result(
    run_folder: RunFolder,
    total_epochs: int,
    protocols: Sequence[Mapping[str, Any]],
    n_models: int,
    *,
    with_curve: bool,
    with_baselines: bool = True,
    patience: int = 0,
) -> str | None:
    """Return the text of a finished and tested run, to be shown again; None where something is left to do. No torch.

    Args:
        protocols, n_models, with_baselines: what the config asks for now; where that differs from the stored test, the
            text says so.
        patience: of early stopping.
    """
    newest = run_folder.newest_good_checkpoint()
    if newest is None or (
        newest[1]["epoch"] < total_epochs and not early_stop(newest[1]["rows"], total_epochs, patience)
    ):
        return None
    try:
        summary = read_object(run_folder.logs / "test_summary.json")
        if summary["selection"] != BEST_MODELS or summary["epochs_trained"] != newest[1]["epoch"]:
            return None
        text = result_text(summary, run_folder.path)
        tested = [result["protocol"] for result in summary["results"]]
        available = min(n_models, len([row for row in newest[1]["rows"] if row["val_accuracy_mean"] is not None]))
        changed = _differ(tested, protocols) or summary["ensemble"]["models"] != available
        if "test_baselines" in newest[1]["config"]:  # a run of before they were there is not told that they are missing
            changed |= with_baselines is not any("baselines" in result for result in summary["results"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # not there, or not as this release writes it
        return None
    if with_curve and not (run_folder.logs / "test_curve.csv").exists():
        return None
    text = f"This experiment is finished ({counted(summary['epochs_trained'], 'epoch')}). Its result:\n{text}"
    if changed:
        text += (
            "\nThis test used other test keys than the config has now; for another test: "
            "--evaluate_on_test_set_only true --tag NAME"
        )
    return text


def result_suffix(tag: str, checkpoint: str, elsewhere: str = "") -> str:
    """Return what the names of a test's files end in: `_<tag>`, or for chosen weights and other tasks without a tag
    what these are.

    Args:
        checkpoint: the key load_checkpoint, where it chooses the weights.
        elsewhere: what is tested on instead of the run's own dataset.
    """
    if tag:
        return f"_{tag}"
    weights = (
        f"_epoch_{checkpoint}" if is_whole_number(checkpoint) else f"_{Path(checkpoint).stem}" if checkpoint else ""
    )
    where = f"_{elsewhere}" if elsewhere else ""
    return weights + re.sub(r"[^A-Za-z0-9_+=,.\-]", "_", where)[:120]


def _differ(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether two tests are not the same; an entry that only one of two releases writes does not count."""
    return len(before) != len(now) or any(
        one[key] != other[key] for one, other in zip(before, now, strict=True) for key in one.keys() & other.keys()
    )


def refuse_to_replace(
    summary_file: Path, now: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]], epochs_trained: int
) -> None:
    """Leave the result of a test with other protocols or other models alone; the same test may be repeated, and
    after more training.

    Args:
        now: protocols of the test that is about to begin.
        models: what is known of those that it tests: epoch, file, val_accuracy.
        epochs_trained: by the run so far.
    Raises:
        ConfigError: names the file, what differs, and the tag to give.
    """
    try:
        summary = read_object(summary_file)
        before = [result["protocol"] for result in summary["results"]]
        tested = [
            {key: model[key] for key in ("epoch", "file", "val_accuracy")} for model in summary.get("models", models)
        ]
        trained_since = summary.get("epochs_trained") != epochs_trained
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not as this release writes it
        return
    if before == now:
        if trained_since or tested == list(models):
            return
        other = f"{_names_of(tested)} before, {_names_of(models)} now"
        raise ConfigError(
            f"{summary_file}: holds the result of other models ({other}). Give this test a name of its own: --tag NAME"
        )
    was, becomes = before[0], now[0]
    changed = [f"{key} {was.get(key)} before, {becomes[key]} now" for key in becomes if was.get(key) != becomes[key]]
    if [test["statistics"] for test in before] != [test["statistics"] for test in now]:
        changed.append("another list of batch-norm statistics")
    if not changed:
        changed.append("other ways, shots, queries or datasets beside the first")
    raise ConfigError(
        f"{summary_file}: holds the result of another test ({'; '.join(changed)}). Give this one a name of its own: "
        "--tag NAME"
    )


def _names_of(models: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{model['file']} of epoch {model['epoch']}" for model in models)


def summary_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of test_summary.csv, one per shape and kind of statistics; the reference's columns first."""
    return [
        {name: result[name] for name in ("test_accuracy_mean", "test_accuracy_std", "test_accuracy_ci95")}
        | result["protocol"]
        | {
            "score": score_named(result.get("score")).key,
            "ensemble_epochs": " ".join(str(epoch) for epoch in result["ensemble"]["epochs"]),
            "epochs_trained": summary["epochs_trained"],
        }
        for result in summary["results"]
    ]


def result_text(summary: dict[str, Any], run_folder: Path | None) -> str:
    """Return the result for people: score with interval, protocol, single models, and where everything was written,
    unless that is None.
    """
    results = summary["results"]
    task_sets = {tuple(result["protocol"][name] for name in TASK_COLUMNS) for result in results}
    is_table, same = len(task_sets) > 1, same_classes_text(results)
    lines = [f"Note: {same}"] if same else []  # what is said of the numbers, before them
    lines += _table(results) if is_table else []
    for whole in summary.get(ALL_TASKS, ()):
        text = _text(score_named(results[0].get("score")), whole)
        lines.append(f"  over all {counted(whole['tasks'], 'task')}, {whole['statistics']}: {text}")
    for result in () if is_table else results:
        protocol, ensemble = result["protocol"], result["ensemble"]
        n_models = ensemble["models"]
        what = f"the ensemble of {n_models} models" if n_models > 1 else "the model"
        score = score_named(result.get("score"))
        lines.append(
            f"Test {score.name} of {what}: {_text(score, ensemble)} (95 % interval over "
            f"{counted(protocol['tasks'], 'task')})"
        )
        queries = counted(protocol["queries"], "query", "queries")
        shape = f"{protocol['ways']}-way {protocol['shots']}-shot, {queries} per class"
        if score is not ACCURACY:
            shape = f"{counted(protocol['shots'], 'point')} to adapt to, {protocol['queries']} to predict"
        lines.append(
            f"  {shape}, {counted(protocol['steps'], 'inner step')}, {protocol['statistics']} batch-norm statistics, "
            f"{protocol['dataset']}, {_origin(protocol)}"
        )
        for model in result["models"] if n_models > 1 else ():
            val = model["val_accuracy"]
            val = "" if val is None else f" (validation {score.text(val)})"
            lines.append(f"  epoch {model['epoch']} alone: {_text(score, model)}{val}")
        lines += lines_beside(result)
    for line in summary.get(OTHER_DATA, ()):
        lines.append(f"  not the data of the training: {line}")
    if summary.get("stopped_early"):
        lines.append(summary["stopped_early"])
    if run_folder is not None:
        suffix = summary["suffix"]
        lines.append(f"Everything was written to {run_folder}")
        lines.append(
            f"  result: logs/test_summary{suffix}.csv, .json; scores: logs/test_predictions{suffix}.safetensors"
        )
        lines.append("  epochs: logs/summary_statistics.csv, .json, curves.json; models: saved_models/")
    return "\n".join(lines)


def same_classes_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Return what the interval of a test leaves out whose tasks all have the same classes; "" where none is so."""
    ways = sorted({result["protocol"]["ways"] for result in results if result.get(SAME_CLASSES)})
    if not ways:
        return ""
    return (
        f"every {' or '.join(map(str, ways))}-way task has the same classes, all that there are: the interval is over "
        "their images and says nothing about other classes"
    )


TASK_COLUMNS = ("dataset", "ways", "shots", "queries")
TABLE_COLUMNS = (*TASK_COLUMNS, "statistics")


def _origin(protocol: Mapping[str, Any]) -> str:
    """Return where the tasks come from."""
    return f"tasks of {protocol['task_list']}" if "task_list" in protocol else f"test tasks of seed {protocol['seed']}"


def _table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line per set of tasks and kind of statistics, under one heading."""
    protocol, n_models = results[0]["protocol"], results[0]["ensemble"]["models"]
    what = f"the ensemble of {n_models} models" if n_models > 1 else "the model"
    score = score_named(results[0].get("score"))
    rows = [[*TABLE_COLUMNS, score.name]]
    rows += [[*(str(r["protocol"][name]) for name in TABLE_COLUMNS), _text(score, r["ensemble"])] for r in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    counts = sorted({result["protocol"]["tasks"] for result in results})
    over = f"{counts[0]} to {counted(counts[-1], 'task')}" if len(counts) > 1 else counted(counts[0], "task")
    return [
        f"Test {score.name} of {what} (95 % interval over {over} each), "
        f"{counted(protocol['steps'], 'inner step')}, {_origin(protocol)}",
        *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
    ]


def _text(score: Score, columns: dict[str, Any]) -> str:
    return score.text(columns["test_accuracy_mean"], columns["test_accuracy_ci95"])


def _columns(summary: Summary) -> dict[str, Any]:
    return {
        "test_accuracy_mean": summary.mean,
        "test_accuracy_std": summary.std,
        "test_accuracy_ci95": summary.ci95,
    }
