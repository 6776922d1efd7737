"""What a glance at the curves of a run should say in words: is it learning, overfitting, vanishing, adapting?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment_parts.evaluation.baselines import does_adapting_help
from experiment_parts.records.epoch_records import ranked_epochs

GOOD, NOTE, WARNING = "good", "note", "warning"
Entries = Sequence[Mapping[str, Any]]

GAP, OVERFITTING_GAP = 0.1, 0.2
"""Training minus validation accuracy at the newest validation, as shares: what is noted, and what is overfitting. Both
count only beyond twice the interval of the validation. (MAML on mini-ImageNet ends with 0.1 to 0.15.)
"""
VANISHED = 0.01
"""Of the largest epoch's norm of the meta-gradient: what is below it hardly changes the weights any more."""
SOLVED = 0.99
"""Training accuracy from which on little gradient is left because there is little left to learn."""
SMALLEST_SHARE_OF_GRADIENT = 1e-4
"""A weight tensor whose gradient is below this share of the largest learns practically nothing by Adam's standards
of the others.
"""


@dataclass(frozen=True)
class Finding:
    """A sentence and how good it is."""

    kind: str
    text: str

    def of(self, model: str) -> "Finding":
        """Return the same, saying which model it is of."""
        return Finding(self.kind, f"{self.text.removesuffix('.')} ({model}).")


def findings(
    rows: Entries, curves: Entries, config: Mapping[str, Any], test: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Judge a run by its epochs and its test; warnings first.

    Args:
        rows: of summary_statistics.json.
        curves: entries of curves.json.
        test: test_summary.json.
    """
    validated = [row for row in rows if row.get("val_accuracy_mean") is not None]
    if not validated:
        return [Finding(NOTE, "No epoch has been validated yet: there is nothing to judge.")]
    if len(validated) == 1:
        return [Finding(NOTE, "Too short to tell: one epoch has been validated, and a curve begins with two.")]
    if any(
        row["val_accuracy_mean"] < 0 for row in validated
    ):  # a regression: the score is minus the mean squared error
        found = [*_regression(validated), *_gradients(rows, curves), *_of_newest(curves, _adaptation_to_points)]
    else:
        found = [
            *_learning(validated, config),
            *_overfitting(validated, config),
            *_gradients(rows, curves),
            *_of_newest(curves, _adaptation),
        ]
    if test and (helps := does_adapting_help(test["results"][0])):
        found.append(Finding(*helps).of(f"test of epoch {test['results'][0]['baselines']['model']['epoch']}"))
    order = (WARNING, NOTE, GOOD)
    return sorted(found, key=lambda finding: order.index(finding.kind))


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def best_row(rows: Entries) -> Mapping[str, Any] | None:
    """Return the row with the best validation accuracy; None: nothing was validated."""
    return next((row for epoch in ranked_epochs(rows) for row in rows if row["epoch"] == epoch), None)


def _learning(validated: Entries, config: Mapping[str, Any]) -> list[Finding]:
    best, ways = best_row(validated), config.get("val_num_classes_per_set")
    ways = ways or _largest(config.get("num_classes_per_set"))
    accuracy, interval = best["val_accuracy_mean"], best.get("val_accuracy_ci95") or 0.0
    if ways and accuracy - interval <= 1 / ways:
        return [
            Finding(
                WARNING,
                f"Not above chance: the best validation accuracy is {100 * accuracy:.1f} %, guessing gives "
                f"{100 / ways:.1f} %. "
                "Look at the inner learning rate and at the validation episodes below.",
            )
        ]
    if best is validated[-1]:
        return [Finding(GOOD, "Still improving: the newest validation is the best one. More epochs may help.")]
    return [Finding(GOOD, f"Learning: the best validation accuracy came in epoch {best['epoch']}.")]


def _largest(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return max(value, default=None)
    return value if isinstance(value, int) else None


def _overfitting(validated: Entries, config: Mapping[str, Any]) -> list[Finding]:
    """Warn where training goes on getting better while validation has got worse by more than its interval."""
    best, last = best_row(validated), validated[-1]
    interval = best.get("val_accuracy_ci95") or 0.0
    lost = best["val_accuracy_mean"] - last["val_accuracy_mean"]
    if best is not last and best["train_loss_mean"] is not None and last["train_loss_mean"] is not None:
        loss_rises = (last.get("val_loss_mean") or 0.0) > (best.get("val_loss_mean") or math.inf)
        train_falls = last["train_loss_mean"] < best["train_loss_mean"]
        if train_falls and loss_rises and lost > interval:
            return [
                Finding(
                    WARNING,
                    f"Overfitting: since epoch {best['epoch']} validation accuracy fell by {_points(lost)} while the "
                    "training "
                    "loss went on falling. The test uses the best epochs, not the last.",
                )
            ]
    if n_way := config.get("val_num_classes_per_set"):
        text = f"Validation has {n_way} ways of its own: its accuracy is not compared with that of the training."
        return [Finding(NOTE, text)]
    train, val = last.get("train_accuracy_mean"), last["val_accuracy_mean"]
    interval = last.get("val_accuracy_ci95") or 0.0
    if train is not None and train - val > max(GAP, 2 * interval):
        gap = f"of {_points(train - val)} between training and validation accuracy in epoch {last['epoch']}"
        if train - val > OVERFITTING_GAP:
            text = (
                f"Overfitting: a gap {gap} ({100 * train:.1f} % and {100 * val:.1f} %), over {_points(OVERFITTING_GAP)}"
            )
            return [Finding(WARNING, f"{text}. More training classes, augmentation or fewer epochs may help.")]
        return [Finding(NOTE, f"A gap {gap}: the training classes are known better than new ones.")]
    return [Finding(GOOD, "No overfitting seen: validation follows training.")]


def _gradients(rows: Entries, curves: Entries) -> list[Finding]:
    norms = [row["gradient_norm_mean"] for row in rows if row.get("gradient_norm_mean") is not None]
    if not norms:
        return []
    if norms[-1] < VANISHED * max(norms) or max(norms) < 1e-6:
        text = (
            f"Vanishing gradients: the meta-gradient's norm went from {max(norms):.2g} down to {norms[-1]:.2g}, below "
            f"{100 * VANISHED:.0f} % of it."
        )
        is_solved = (rows[-1].get("train_accuracy_mean") or 0.0) > SOLVED
        reason = "The training tasks are solved: nothing is left to learn from them." if is_solved else ""
        return [Finding(WARNING, f"{text} {reason or 'The weights hardly change any more.'}")]
    quiet = _quiet_layers(curves)
    if quiet:
        text = (
            f"Vanishing gradients in {', '.join(quiet)}: below {SMALLEST_SHARE_OF_GRADIENT:g} of the largest layer's."
        )
        return [Finding(WARNING, text)]
    if len(norms) > 2 and norms[-1] > 20 * sorted(norms)[len(norms) // 2]:
        return [
            Finding(
                WARNING,
                f"Exploding gradients: the last epoch's norm {norms[-1]:.2g} is over 20 times the usual. Clip them: "
                "gradient_clip_norm.",
            )
        ]
    return [Finding(GOOD, f"Gradients flow: norm {norms[-1]:.2g} in the last epoch, {norms[0]:.2g} in the first.")]


def _quiet_layers(curves: Entries) -> list[str]:
    """Warn of weight tensors that get next to no gradient. (Biases before a norm layer have none by nature.)"""
    newest = next((entry for entry in reversed(curves) if entry.get("gradients")), None)
    if newest is None:
        return []
    norms = newest["gradients"]["norms"]
    weights = {n: v for n, v in norms.items() if n.endswith("weight") and ".norm." not in n and v is not None}
    largest = max(weights.values(), default=0.0)
    return [name for name, norm in weights.items() if largest > 0 and norm < SMALLEST_SHARE_OF_GRADIENT * largest]


def _of_newest(curves: Entries, judge: Callable[[Sequence[float]], list[Finding]]) -> list[Finding]:
    """Judge the scores after each inner step in the newest validation, and say which that is."""
    newest = next((entry for entry in reversed(curves) if entry.get("val")), None)
    scores = newest["val"]["query_accuracy"] if newest else ()
    if newest is None or len(scores) < 2 or None in scores:
        return []
    return [finding.of(f"validation of epoch {newest['epoch']}") for finding in judge(scores)]


def _adaptation(accuracies: Sequence[float]) -> list[Finding]:
    before, after = accuracies[0], accuracies[-1]
    steps = len(accuracies) - 1
    if after - before < 0.02:
        return [
            Finding(
                WARNING,
                f"Adaptation changes little: {100 * before:.1f} % before and {100 * after:.1f} % after {steps} inner "
                "steps.",
            )
        ]
    text = (
        f"The inner loop learns: {steps} step{'s' if steps > 1 else ''} lift new classes from {100 * before:.1f} % "
        f"to {100 * after:.1f} %."
    )
    best_step = max(range(steps + 1), key=lambda step: accuracies[step])
    if accuracies[best_step] - after > 0.02:
        text = (
            f"Too many inner steps: after {best_step} the query accuracy is {100 * accuracies[best_step]:.1f} %, "
            f"after {steps} {100 * after:.1f} %."
        )
        return [Finding(NOTE, text)]
    return [Finding(GOOD, text)]


# --- regression: the score is minus the mean squared error ------------------------------------------------------------


def _regression(validated: Entries) -> list[Finding]:
    """Judge whether the error falls, and whether the training error parts from it."""
    best, last = best_row(validated), validated[-1]
    error, interval = -best["val_accuracy_mean"], best.get("val_accuracy_ci95") or 0.0
    found = []
    if best is last:
        found.append(
            Finding(
                GOOD,
                f"Still improving: the newest mean squared error is the lowest, {error:.3g}. More epochs may help.",
            )
        )
    else:
        found.append(
            Finding(GOOD, f"Learning: the lowest mean squared error came in epoch {best['epoch']}: {error:.3g}.")
        )
    newest = -last["val_accuracy_mean"]
    train_falls = (last.get("train_loss_mean") or 0.0) < (best.get("train_loss_mean") or 0.0)
    if best is not last and train_falls and newest - error > interval:
        text = (
            f"Overfitting: since epoch {best['epoch']} the validation error rose from {error:.3g} to {newest:.3g} "
            "while the training loss fell."
        )
        return [*found, Finding(WARNING, f"{text} The test uses the best epochs, not the last.")]
    train = -best["train_accuracy_mean"] if best.get("train_accuracy_mean") is not None else error
    if error > 1.5 * train and error - train > 2 * interval:
        text = (
            f"A gap between training and validation error at the best epoch: {train:.3g} against {error:.3g}. More "
            "training tasks may help."
        )
        return [*found, Finding(NOTE, text)]
    return [*found, Finding(GOOD, "No overfitting seen: validation follows training.")]


def _adaptation_to_points(scores: Sequence[float]) -> list[Finding]:
    """Judge whether the inner steps lower the error of new tasks."""
    errors = [-score for score in scores]
    before, after, steps = errors[0], errors[-1], len(errors) - 1
    best_step = min(range(steps + 1), key=lambda step: errors[step])
    if after > 0.95 * before and best_step == 0:
        return [
            Finding(
                WARNING,
                f"Adaptation does not help: mean squared error {before:.3g} before and {after:.3g} after {steps} "
                "inner steps. "
                "Look at the inner learning rate.",
            )
        ]
    if errors[best_step] < 0.8 * after:
        return [
            Finding(
                NOTE,
                f"Too many inner steps: after {best_step} the error is {errors[best_step]:.3g}, after {steps} "
                f"{after:.3g}.",
            )
        ]
    return [
        Finding(
            GOOD,
            f"The inner loop learns: {steps} step{'s' if steps > 1 else ''} lower the error of new tasks from "
            f"{before:.3g} to {after:.3g}.",
        )
    ]
