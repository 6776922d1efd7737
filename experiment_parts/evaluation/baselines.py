"""What stands beside the result of a test, on the very same tasks: chance, simple methods, every inner step, orders of
labels; and what it says in words about adapting. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiment_parts.learner import Learner
from utils.metrics import ACCURACY, Score, score_named, summarise
from utils.words import counted

UNTRAINED_SHARE, REORDERED_SHARE = 0.06, 0.08
"""Of the images that pass through the networks of a test, so many may pass once more for the untrained body and for
other orders of labels; all else beside a result is made of features that the test computes anyway.
"""
MOST_REORDERED = 100
"""Tasks whose labels are put into other orders."""
WORDS = {
    "chance": "chance",
    "pixels": "nearest neighbour on pixels",
    "inputs": "nearest neighbour on the inputs",
    "untrained": "untrained body, class centroids",
    "centroids": "its body, class centroids",
    "ridge": "its body, ridge regression",
}
"""Row -> what it is. The others are `after_<s>_steps` and `ensemble`."""
WITHOUT_STEPS = ("centroids", "ridge", "after_0_steps")


def tasks_of_baselines(
    learner: Learner, protocol: Mapping[str, Any], n_models: int, *, is_regression: bool
) -> tuple[int, int]:
    """Return of how many tasks the untrained body is scored, and of how many other orders of labels."""
    ways = 1 if is_regression else protocol["ways"]
    shots = int(str(protocol["shots"]).rpartition("-")[2])  # the most, where classes have shots of their own
    costs = learner.images_per_task(ways * shots, ways * protocol["queries"], protocol["statistics"])
    whole = n_models * protocol["tasks"] * costs["evaluation"]
    # By counting, not by the clock: the same test has the same rows everywhere.
    untrained = min(protocol["tasks"], int(UNTRAINED_SHARE * whole / costs["untrained"]))
    reordered = min(protocol["tasks"], MOST_REORDERED, int(REORDERED_SHARE * whole / costs["label_orders"]))
    return untrained, reordered


def summarise_baselines(
    found: Mapping[str, Sequence[Any]],
    steps: Sequence[Sequence[float]],
    model: Mapping[str, Any],
    n_way: int,
    ensemble: Sequence[float] | None,
) -> dict[str, Any]:
    """Return the entry `baselines` of a result.

    Args:
        found: name -> of each task, `Learner.baselines`; nothing in a regression.
        steps: [S+1][T], the best model's score of each task after each number of inner steps.
        model: what is known of it.
        n_way: N.
        ensemble: of each task, where there are several models.
    Returns:
        "model"; "steps", S; "rows": name -> mean, std, ci95, worst_tenth_mean, tasks, and difference from the model
        after all of its steps, on the row's tasks, with its interval; "label_orders" where a head is learned: of the
        accuracies of a task in the orders of its labels the mean, standard deviation, lowest and highest, means over
        tasks.
    """
    own = steps[-1]
    columns: dict[str, Sequence[float]] = {}
    if found:
        columns["chance"] = [1 / n_way] * len(own)
    columns |= {name: [value for value in found[name] if not math.isnan(value)] for name in WORDS if name in found}
    columns |= {f"after_{step}_steps": scores for step, scores in enumerate(steps)}
    columns |= {} if ensemble is None else {"ensemble": ensemble}
    summary: dict[str, Any] = {
        "model": dict(model),
        "steps": len(steps) - 1,
        "rows": {name: _row(scores, own) for name, scores in columns.items() if scores},
    }
    orders = [
        [score, *others]
        for score, others in zip(own, found.get("label_orders", ()), strict=False)
        if not math.isnan(others[0])
    ]
    if orders:
        spreads = [summarise(of_task) for of_task in orders]
        n_tasks = len(orders)
        summary["label_orders"] = {
            "tasks": n_tasks,
            "orders": len(orders[0]),
            "mean": math.fsum(spread.mean for spread in spreads) / n_tasks,
            "std": math.fsum(spread.std for spread in spreads) / n_tasks,
            "lowest": math.fsum(map(min, orders)) / n_tasks,
            "highest": math.fsum(map(max, orders)) / n_tasks,
        }
    return summary


def _row(scores: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    summary = summarise(scores)
    difference = summarise([score - best for score, best in zip(scores, own, strict=False)])
    return {
        "mean": summary.mean,
        "std": summary.std,
        "ci95": summary.ci95,
        "worst_tenth_mean": worst_tenth_mean(scores),
        "tasks": summary.count,
        "difference": difference.mean,
        "difference_ci95": difference.ci95,
    }


def worst_tenth_mean(scores: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the tasks' scores, of one task at least (rounded up)."""
    lowest = sorted(scores)[: -(-len(scores) // 10)]
    return math.fsum(lowest) / len(lowest)


# --- in words ---------------------------------------------------------------------------------------------------------


def row_name(name: str, baselines: Mapping[str, Any]) -> str:
    """Return what a row is, for people."""
    if name == "ensemble":
        return "ensemble"
    if name in WORDS:
        return WORDS[name]
    steps = int(name.removeprefix("after_").removesuffix("_steps"))
    return f"epoch {baselines['model']['epoch']} alone, {counted(steps, 'inner step')}"


def does_adapting_help(result: Mapping[str, Any]) -> tuple[str, str] | None:
    """Judge whether the inner steps do more than the best of what needs none: ("good", "note" or "warning", a
    sentence); None where there is nothing to judge.
    """
    baselines = result.get("baselines") or {"rows": {}, "steps": 0}
    rows, last = baselines["rows"], baselines["steps"]
    rivals = {name: rows[name] for name in WITHOUT_STEPS if name in rows}
    if not last or not rivals:
        return None
    own, score = rows[f"after_{last}_steps"], score_named(result.get("score"))
    name = max(rivals, key=lambda rival: rivals[rival]["mean"])
    rival = rivals[name]
    what = "the same network without inner steps"
    if name in WORDS:
        what = f"{WORDS[name].removeprefix('its body, ')} on its body's features, without inner steps,"
    gain, interval = -rival["difference"], rival["difference_ci95"] or math.inf
    steps = f"{counted(last, 'inner step')} {'reaches' if last == 1 else 'reach'}"
    verb = "reach" if name == "centroids" else "reaches"
    reached = f"{steps} {score.text(own['mean'])}; {what} {verb} {score.text(rival['mean'])}"
    by = f"a difference of {_difference(score, gain, interval)} on the same {counted(rival['tasks'], 'task')}"
    if gain > interval:
        return "good", f"Adapting helps: {reached}: {by}."
    if gain < -interval:
        return "warning", f"Adapting does not pay: {reached}: {by}."
    return "note", f"Not shown that adapting helps: {reached}: {by}."


def _difference(score: Score, mean: float, interval: float) -> str:
    scale, unit, digits = (100, " points", 2) if score is ACCURACY else (1, "", 4)
    known = f" +- {scale * interval:.{digits}f}" if math.isfinite(interval) else ""
    return f"{scale * mean:.{digits}f}{known}{unit}"


def lines_beside(result: Mapping[str, Any]) -> list[str]:
    """Return what the terminal shows below a result: three lines, fewer where something has no meaning."""
    baselines = result.get("baselines")
    if not baselines:
        return []
    rows, score = baselines["rows"], score_named(result.get("score"))
    n_tasks = rows[f"after_{baselines['steps']}_steps"]["tasks"]
    simple = [
        f"{words} {_short(score, rows[name])}"
        + (f" (the first {fewer})" if (fewer := rows[name]["tasks"]) < n_tasks else "")
        for name, words in WORDS.items()
        if name in rows
    ]
    lines = [f"  on the same tasks: {'; '.join(simple)}"] if simple else []
    last = baselines["steps"]
    after = [_short(score, rows[f"after_{step}_steps"]) for step in range(last + 1)]
    line = f"  epoch {baselines['model']['epoch']} alone, inner steps 0 to {last}: {', '.join(after)}"
    worst = rows.get("ensemble") or rows[f"after_{last}_steps"]
    line += f"; worst tenth of the tasks {score.text(worst['worst_tenth_mean'])}"
    if (error := baselines.get("calibration_error")) is not None:
        line += f"; calibration error {100 * error:.1f} %"
    if orders := baselines.get("label_orders"):
        line += (
            f"; with a task's labels in {orders['orders']} orders its accuracy has a standard deviation of "
            f"{100 * orders['std']:.1f} points ({counted(orders['tasks'], 'task')})"
        )
    verdict = does_adapting_help(result)
    return [*lines, line, *([f"  {verdict[1]}"] if verdict else [])]


def _short(score: Score, row: Mapping[str, Any]) -> str:
    return score.short_text(row["mean"])
