"""From what a run writes to named scalars: the same names in every tracker. Pure functions.

The step of everything is the training iteration; an epoch stands at its last one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiment_parts.records.epoch_records import FIRST_STEP, STEP_METRICS
from utils.files.reading import parse_json, read_object

Scalars = dict[str, float]

EPOCH_SCALARS = {
    "val_loss_mean": "val/loss",
    "val_accuracy_mean": "val/accuracy",
    "val_accuracy_ci95": "val/accuracy_ci95",
    "train_loss_mean": "epoch/train_loss",
    "train_accuracy_mean": "epoch/train_accuracy",
    "gradient_norm_mean": "epoch/gradient_norm",
    "train_tasks_per_s": "time/tasks_per_s",
    "epoch_run_time": "time/epoch_s",
}
"""Column of summary_statistics.csv -> name."""


def iteration_scalars(record: Mapping[str, Any]) -> Scalars:
    """Return train/<metric>, and inner_steps/train_<metric>/after_<s>_steps, of a line of metrics.jsonl."""
    scalars: Scalars = {}
    for name, value in record.items():
        if name in STEP_METRICS:
            for index, entry in enumerate(value):
                scalars[f"inner_steps/train_{name}/after_{index + FIRST_STEP[name]}_steps"] = entry
        elif name == "multi_step_loss_weights":
            scalars |= {f"multi_step_loss_weights/step_{index + 1}": weight for index, weight in enumerate(value)}
        elif name == "epoch":
            scalars["epoch/number"] = value
        elif name not in ("iteration", "iterations_averaged", "time_tasks_per_s"):
            scalars[f"train/{name}"] = value
    return _numbers(scalars)


def epoch_scalars(row: Mapping[str, Any], curves: Mapping[str, Any]) -> Scalars:
    """Return val/..., epoch/..., time/..., the validation after each inner step, and each learned inner rate."""
    scalars = {name: row.get(column) for column, name in EPOCH_SCALARS.items()}
    for metric, values in (curves.get("val") or {}).items():
        scalars |= {f"inner_steps/val_{metric}/after_{steps}_steps": value for steps, value in enumerate(values)}
    for name, rates in (curves.get("learned_rates") or {}).items():
        scalars |= {f"learned_rates/{name}/step_{index + 1}": rate for index, rate in enumerate(rates)}
    scalars |= {f"learned/{name}": values[1] for name, values in (curves.get("learned") or {}).items()}
    return _numbers(scalars)


def summary_scalars(summary: Mapping[str, Any]) -> Scalars:
    """Return test/accuracy and its interval, with the test's suffix; a name more per set of tasks or statistics."""
    scalars: Scalars = {}
    for place, result in enumerate(summary["results"]):
        protocol = result["protocol"]
        where = f"test{summary['suffix']}"
        if place:
            where += "/{dataset}_{ways}way_{shots}shot_{queries}query_{statistics}".format_map(protocol)
        scalars |= {
            f"{where}/accuracy": result["test_accuracy_mean"],
            f"{where}/accuracy_ci95": result["test_accuracy_ci95"],
        }
    return _numbers(scalars)


def _numbers(scalars: Mapping[str, Any]) -> Scalars:
    return {name: float(value) for name, value in scalars.items() if isinstance(value, int | float)}


# --- what a run has already written -----------------------------------------------------------------------------------


def written_records(run_folder: Path) -> Iterator[tuple[int, Scalars]]:
    """Yield (iteration, scalars) of each line of metrics.jsonl."""
    path = run_folder / "logs" / "metrics.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = parse_json(line)
            yield record["iteration"], iteration_scalars(record)


def written_epochs(
    run_folder: Path, config: Mapping[str, Any], rows: list[dict[str, Any]]
) -> Iterator[tuple[int, Scalars]]:
    """Yield (iteration of its end, scalars) of each finished epoch."""
    path = run_folder / "logs" / "curves.json"
    entries = read_object(path)["epochs"] if path.exists() else []
    by_epoch = {entry["epoch"]: entry for entry in entries}
    for row in rows:
        yield int(row["epoch"]) * config["total_iter_per_epoch"], epoch_scalars(row, by_epoch.get(row["epoch"], {}))


def last_iteration(run_folder: Path, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> int:
    """Return where a run stands by its files: the last logged iteration, or the end of its last epoch; else 0."""
    logged = [iteration for iteration, _ in written_records(run_folder)]
    return max([len(rows) * config["total_iter_per_epoch"], *logged[-1:]])
