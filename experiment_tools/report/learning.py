"""The report's sections about learning: curves over epochs, adaptation step by step, and the outer loop's schedules."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiment_tools.parts.pages import Legend, Section
from experiment_tools.parts.run_reading import Run
from experiment_tools.parts.svg import Axes, Mark, Markup, Series, area_chart, line_chart, ramp
from experiment_tools.report.sections import TRAIN, VAL, ends, percent, percent_tick, series_of, short, thinned, trace
from experiment_tools.report.verdict import best_row

NOT_YET = "no epoch is finished yet."
Entry = Mapping[str, Any]


def learning(run: Run) -> Section:
    """Show training and validation over epochs, with the best epoch marked."""
    section = Section(
        "learning",
        "Learning curves",
        "Loss and accuracy over epochs. The band is the 95 % interval over validation tasks.",
        "Learning",
    )
    validated = [row for row in run.rows if row.get("val_accuracy_mean") is not None]
    best = best_row(validated)
    words = short if run.is_regression else percent
    names = (
        ("accuracy", "Mean squared error", (0.0, None)) if run.is_regression else ("accuracy", "Accuracy", (0.0, 1.0)),
        ("loss", "Loss", (0.0, None)),
    )
    legend = [Legend("training", TRAIN), Legend("validation", VAL), Legend("single iterations", TRAIN, "faint")]
    n_before = run.config.get("pretraining_epochs") or 0
    before = [row for row in run.rows if row["epoch"] <= n_before]
    episodes = run.rows[len(before) :]
    if before:
        legend.append(Legend("validation by class centroids, in pre-training", VAL, "dashed"))
    has_dots = len(run.rows) < 30
    for name, title, y_range in names:
        is_score = name == "accuracy"
        axes = Axes("epoch", percent_tick if title == "Accuracy" else short, "epoch", y_range)
        shown = run.shown if is_score else _as_it_is
        middle = {row["epoch"]: shown(row.get(f"val_{name}_mean")) for row in validated}
        half = {row["epoch"]: row.get(f"val_{name}_ci95") for row in validated}
        band = [(x, middle[x] - width, middle[x] + width) for x, width in half.items() if width is not None]
        train, val = (series_of(episodes, f"{split}_{name}_mean", shown) for split in ("train", "val"))
        lines = [
            Series("single iterations", [(x, shown(y)) for x, y in trace(run, name)], TRAIN, "faint"),
            Series("training", train, TRAIN, dots=has_dots),
            Series("validation", val, VAL, dots=has_dots, band=band),
            Series("pre-training", series_of(before, f"train_{name}_mean", shown), TRAIN, dots=has_dots),
            Series(
                "class centroids", series_of(before, f"pretraining_val_{name}_mean", shown), VAL, "dashed", has_dots
            ),
        ]
        text = f", {words(run.shown(best['val_accuracy_mean']))}" if best and is_score else ""
        marks = [Mark(best["epoch"], f"best: epoch {best['epoch']}{text}", VAL)] if best else []
        chart = line_chart(lines, axes, f"{title} of training and validation over epochs", marks)
        section.add(
            title,
            chart,
            NOT_YET,
            legend=legend,
            size="half",
            note=f"Query {'points' if run.is_regression else 'images'} after the last inner step"
            + (", in pre-training images among all training classes." if before else ".")
            if is_score
            else "What the outer loop lowers.",
        )
    return section


def adaptation(run: Run) -> Section:
    """Show support and query, before and after each inner step."""
    section = Section(
        "adaptation",
        "Adaptation, step by step",
        "What the inner loop does to a task with classes never seen before: step 0 is before adaptation, each step is "
        "one update on the "
        "support set.",
        "Adaptation",
    )
    entries = [entry for entry in run.epochs if entry.get("val")]
    if not entries:
        return section.lacking("No validated epoch in logs/curves.json yet.")
    best_epoch = (best_row(run.rows) or entries[-1])["epoch"]
    chosen = next((entry for entry in entries if entry["epoch"] == best_epoch), entries[-1])
    score, y_text, y_range = "Accuracy", percent_tick, (0.0, 1.0)
    if run.is_regression:
        score, y_text, y_range = "Mean squared error", short, (None, None)
    of_score = {"y_text": y_text, "y_range": y_range, "log_y": run.is_regression}
    legend = [
        Legend("validation, query", VAL), Legend("validation, support", VAL, "dashed"),
        Legend("training, query", TRAIN), Legend("training, support", TRAIN, "dashed"),
    ]  # fmt: skip
    for name, title, axes in (
        ("accuracy", score, Axes("inner steps done", x_title="after step", **of_score)),
        ("loss", "Loss", Axes("inner steps done", short, "after step", log_y=True)),
    ):
        shown = run.shown if name == "accuracy" else _as_it_is
        lines = [
            Series(
                f"{words}, {part}",
                [(x, shown(y)) for x, y in _steps(chosen, split, f"{part}_{name}")],
                colour,
                "dashed" if part == "support" else "solid",
                dots=part == "query",
            )
            for split, words, colour in (("train", "training", TRAIN), ("val", "validation", VAL))
            for part in ("support", "query")
        ]
        chart = line_chart(lines, axes, f"{title} after each inner step in epoch {chosen['epoch']}")
        note = (
            f"Epoch {chosen['epoch']}, the best one." if chosen["epoch"] == best_epoch else f"Epoch {chosen['epoch']}."
        )
        section.add(f"{title} per inner step", chart, legend=legend, note=note)
    _add_gain(section, run, entries, Axes("epoch", x_title="epoch", **of_score), score.lower())
    return section


def _add_gain(section: Section, run: Run, entries: Sequence[Entry], axes: Axes, score: str) -> None:
    """Draw a line over epochs for each number of inner steps done, validation alone."""
    n_rows = len(entries[-1]["val"]["query_accuracy"])
    lines = [
        Series(
            f"after {step} step{'s' if step > 1 else ''}" if step else "before adaptation",
            [(entry["epoch"], run.shown(entry["val"]["query_accuracy"][step])) for entry in entries],
            ramp(step, n_rows),
        )
        for step in range(n_rows)
    ]
    section.add(
        "Before and after, over epochs",
        line_chart(lines, axes, f"Validation {score} over epochs, by inner steps done"),
        legend=[Legend(line.name, line.colour) for line in (lines if n_rows <= 6 else (lines[0], lines[1], lines[-1]))],
        note=f"Validation, query, {score}. The distance between the lowest and the highest line is what adaptation "
        "gains.",
    )


def _as_it_is(value: float | None) -> float | None:
    return value


def _steps(entry: Entry, split: str, name: str) -> list[tuple[float, float | None]]:
    values = (entry.get(split) or {}).get(name) or ()
    first = (entry.get("train_first_step") or {}).get(name, 0) if split == "train" else 0
    return [(index + first, value) for index, value in enumerate(values)]


def outer_loop(run: Run) -> Section:
    """Show weights of the outer loss and the meta learning rate."""
    section = Section(
        "outer-loop",
        "Outer loop",
        "Which inner steps the outer loss looks at, and how fast the start is learned.",
        "Outer loop",
    )
    rows = [
        (entry["epoch"], entry["multi_step_loss_weights"])
        for entry in run.epochs
        if entry.get("multi_step_loss_weights")
    ]
    n_steps = len(rows[-1][1]) if rows else 0
    legend = ends([Legend(f"step {step + 1}", ramp(step, n_steps), "area") for step in range(n_steps)])
    section.add("Multi-step loss weights", multi_step_weights(rows), NOT_YET, legend=legend, size="half",
                note="Share of the query loss after each inner step in the outer loss; they sum to one.")  # fmt: skip
    rates = series_of(run.epochs, "meta_learning_rate")
    section.add(
        "Meta learning rate",
        line_chart([Series("meta learning rate", rates, "var(--ink)", dots=len(rates) < 30)],
                   Axes("epoch", short, "epoch", from_zero=True), "Meta learning rate over epochs"),
        NOT_YET, size="half",
    )  # fmt: skip
    return section


def multi_step_weights(rows: Sequence[tuple[int, Sequence[float]]]) -> Markup | None:
    """Draw stacked weights over epochs, from (epoch, weights of the S steps)."""
    if not rows:
        return None
    n_steps = len(rows[-1][1])
    rows = thinned([(epoch, weights) for epoch, weights in rows if len(weights) == n_steps], 150)
    names = [f"step {step + 1}" for step in range(n_steps)]
    colours = [ramp(step, n_steps) for step in range(n_steps)]
    return area_chart(
        names,
        rows,
        colours,
        Axes("epoch", percent_tick, "epoch"),
        "Weights of the inner steps in the outer loss over epochs",
    )
