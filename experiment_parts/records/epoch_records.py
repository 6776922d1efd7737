"""What an epoch leaves in the books: a row of the CSV, an entry of curves.json, lines of metrics.jsonl. Pure functions.

Columns of the reference come first, with its names. A value that was not computed is None: an empty cell.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from utils.metrics import ACCURACY, Score, Summary, finite_or_none, summarise
from utils.words import counted

Row = dict[str, Any]
STEP_METRICS = ("support_loss", "support_accuracy", "query_loss", "query_accuracy")
LOWEST_POWER, HIGHEST_POWER, BINS_PER_POWER = -9, 1, 2
"""Of ten: the histograms of a meta-gradient's elements go from 1e-9 to 10, two bins for each."""
FIRST_STEP = {"support_loss": 0, "support_accuracy": 0, "query_loss": 1, "query_accuracy": 1}
"""Inner steps done at the first entry of a training metric: the support set is seen before a step, the query set
after.
"""


def first_steps(train: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Return `FIRST_STEP`, or where nothing is adapted (ProtoNet, no support metrics) zero for the query set, too."""
    return FIRST_STEP if train.get("support_loss", True) else dict.fromkeys(FIRST_STEP, 0)


def epoch_row(
    *,
    epoch: int,
    train: Mapping[str, Sequence[tuple[float | None, float | None]]],
    val: Mapping[str, Sequence[Sequence[float]]] | None,
    multi_step_loss_weights: Sequence[float],
    meta_learning_rate: float,
    train_time_s: float,
    data_time_s: float,
    val_time_s: float,
    tasks_trained: int,
) -> Row:
    """Return the row of one epoch in summary_statistics.csv.

    Args:
        epoch: counted from 1.
        train: metric -> (mean, deviation) over iterations, of each entry; nothing where all of them were skipped.
        val: metric -> one row per number of inner steps done (0..S) with a value per task; None without validation.
    """
    row: Row = {}
    not_computed = [(None, None)]
    for name in ("loss", "accuracy"):
        row[f"train_{name}_mean"], row[f"train_{name}_std"] = train.get(name, not_computed)[0]
    row |= _weights("train", multi_step_loss_weights)
    row |= {"train_learning_rate_mean": meta_learning_rate, "train_learning_rate_std": 0.0}
    last = {name: _summary(val[f"query_{name}"][-1]) if val else None for name in ("loss", "accuracy")}
    for name, summary in last.items():
        row[f"val_{name}_mean"] = summary.mean if summary else None
        row[f"val_{name}_std"] = summary.std if summary else None
    row |= _weights("val", multi_step_loss_weights) if val else dict.fromkeys(_weights("val", multi_step_loss_weights))
    row |= {
        "epoch": epoch,
        "epoch_run_time": train_time_s + val_time_s,
        "val_accuracy_ci95": last["accuracy"].ci95 if last["accuracy"] else None,
        "val_loss_ci95": last["loss"].ci95 if last["loss"] else None,
        "val_tasks": len(val["query_loss"][-1]) if val else None,
        "train_tasks_per_s": tasks_trained / train_time_s if train_time_s > 0 else None,
        "train_time_s": train_time_s,
        "val_time_s": val_time_s if val else None,
        "data_time_s": data_time_s,
    }
    row["gradient_norm_mean"], row["gradient_norm_std"] = train.get("gradient_norm", not_computed)[0]
    for name in STEP_METRICS:
        for index, (mean, _) in enumerate(train.get(name, ())):
            row[f"train_{name}_after_{index + first_steps(train)[name]}_steps"] = mean
    for name in STEP_METRICS:
        for index, values in enumerate(val[name] if val else ()):
            row[f"val_{name}_after_{index}_steps"] = finite_or_none(sum(values) / len(values))
    return row


def centroid_columns(accuracies: Sequence[float]) -> Row:
    """Return the columns of an epoch of pre-training: accuracy of class centroids over the validation tasks."""
    summary = summarise(accuracies)
    return {
        "pretraining_val_accuracy_mean": summary.mean,
        "pretraining_val_accuracy_std": summary.std,
        "pretraining_val_accuracy_ci95": summary.ci95,
        "pretraining_val_tasks": summary.count,
    }


def curves_entry(
    row: Row,
    *,
    iteration: int,
    train: Mapping[str, Sequence[tuple[float | None, float | None]]],
    val: Mapping[str, Sequence[Sequence[float]]] | None,
    multi_step_loss_weights: Sequence[float],
    snapshot: Mapping[str, Any],
    score: Score = ACCURACY,
) -> dict[str, Any]:
    """Return the entry of one epoch in curves.json: lists over inner steps, and the snapshot of the learner."""
    mean_over_tasks = {
        name: [finite_or_none(sum(values) / len(values)) for values in val[name]] if val else None
        for name in STEP_METRICS
    }
    return {
        "epoch": row["epoch"],
        "iteration": iteration,
        "meta_learning_rate": row["train_learning_rate_mean"],
        "multi_step_loss_weights": list(multi_step_loss_weights),
        "train": {name: [mean for mean, _ in train[name]] for name in STEP_METRICS if name in train},
        "train_first_step": first_steps(train),
        "val": mean_over_tasks if val else None,
        "val_accuracy_histogram": accuracy_histogram(val["query_accuracy"][-1]) if val and score is ACCURACY else None,
        "gradient_norm": {"mean": row["gradient_norm_mean"], "std": row["gradient_norm_std"]},
        **snapshot,
        "time": {
            name: row[name]
            for name in ("epoch_run_time", "train_time_s", "data_time_s", "val_time_s", "train_tasks_per_s")
        },
    }


def iteration_record(
    *, iteration: int, epoch: int, interval: Sequence[Mapping[str, Sequence[float]]], meta_learning_rate: float,
    multi_step_loss_weights: Sequence[float], tasks_per_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Return a line of metrics.jsonl: means over the iterations since the last line, up to and with `iteration`."""
    record: dict[str, Any] = {"iteration": iteration, "epoch": epoch, "iterations_averaged": len(interval)}
    for name in interval[0]:
        columns = zip(*(metrics[name] for metrics in interval), strict=True)
        means = [finite_or_none(sum(column) / len(interval)) for column in columns]
        record[name] = means if name in STEP_METRICS else means[0]
    return record | {
        "meta_learning_rate": meta_learning_rate,
        "multi_step_loss_weights": list(multi_step_loss_weights),
        "time_tasks_per_s": round(tasks_per_s, 2),
    }


def accuracy_histogram(accuracies: Sequence[float], n_bins: int = 20) -> list[int]:
    """Count tasks by accuracy: bin b counts b / n_bins <= accuracy < (b + 1) / n_bins, the last also 1; other scores
    count nowhere.
    """
    counts = [0] * n_bins
    for accuracy in accuracies:
        if 0.0 <= accuracy <= 1.0:
            counts[min(int(accuracy * n_bins + 1e-9), n_bins - 1)] += 1
    return counts


def ranked_epochs(rows: Sequence[Row]) -> list[int]:
    """Return validated epochs, best validation accuracy first; of equals the earlier one first."""
    validated = [row for row in rows if row.get("val_accuracy_mean") is not None]
    # Rounded: the same number of hits, summed in another order, may differ in the last bit.
    return [r["epoch"] for r in sorted(validated, key=lambda r: (-round(r["val_accuracy_mean"], 9), r["epoch"]))]


def early_stop(rows: Sequence[Row], total_epochs: int, patience: int) -> str | None:
    """Return why training ends here, before its last epoch; None where it goes on.

    It ends at a validation that is `patience` epochs or more after the best one; 0: never.
    """
    if not patience or not rows or len(rows) >= total_epochs or rows[-1].get("val_tasks") is None:
        return None
    best = next(iter(ranked_epochs(rows)), 0)
    if len(rows) - best < patience:
        return None
    return (
        f"Training stopped early, after {len(rows)} of {total_epochs} epochs: no validation since epoch {best} was "
        "better "
        f"(early_stopping_patience {patience})."
    )


def epochs_to_keep(rows: Sequence[Row], best: int | Literal["all"], newest: int = 2) -> set[int]:
    """Return epochs whose checkpoints stay: the best by validation accuracy and the newest, or all."""
    if best == "all":
        return {row["epoch"] for row in rows}
    return set(ranked_epochs(rows)[:best]) | {row["epoch"] for row in rows[-newest:]}


def columns_as_lists(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return column -> values over epochs, as in the reference's summary_statistics.json."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def epoch_text(row: Row, total_epochs: int, score: Score = ACCURACY, peak_memory_mib: float | None = None) -> str:
    """Return one line for people about an epoch, with the peak of the memory so far, where it was measured."""
    text = f"epoch {row['epoch']}/{total_epochs}: "
    if row["train_loss_mean"] is None:
        text += "every iteration skipped"
    else:
        text += f"train loss {row['train_loss_mean']:.4f}, {score.name} {score.short_text(row['train_accuracy_mean'])}"
    if row["val_accuracy_mean"] is not None:
        val = score.text(row["val_accuracy_mean"], row["val_accuracy_ci95"])
        loss = "not finite" if row["val_loss_mean"] is None else f"{row['val_loss_mean']:.4f}"
        text += f"; val loss {loss}, {score.name} {val} ({counted(row['val_tasks'], 'task')})"
    if row.get("pretraining_val_accuracy_mean") is not None:
        val = score.text(row["pretraining_val_accuracy_mean"], row["pretraining_val_accuracy_ci95"])
        text += f"; pre-training, val accuracy of class centroids {val} "
        text += f"({counted(row['pretraining_val_tasks'], 'task')})"
    speed = f", {row['train_tasks_per_s']:.1f} tasks/s" if row["train_tasks_per_s"] else ""
    memory = f", peak memory {peak_memory_mib:.0f} MiB" if peak_memory_mib else ""
    return f"{text}; {row['epoch_run_time']:.1f} s{speed}{memory}"


def _summary(values: Sequence[float]) -> Summary | None:
    return summarise(values) if all(finite_or_none(value) is not None for value in values) else None


def _weights(prefix: str, weights: Sequence[float]) -> Row:
    return {
        f"{prefix}_loss_importance_vector_{index}_{name}": value
        for index, weight in enumerate(weights)
        for name, value in (("mean", weight), ("std", 0.0))
    }
