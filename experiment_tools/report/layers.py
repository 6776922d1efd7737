"""The report's sections about layers: learned inner rates, batch norm per step, gradients and updates."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from experiment_parts.records.epoch_records import BINS_PER_POWER, HIGHEST_POWER, LOWEST_POWER
from experiment_tools.parts.pages import Legend, Section, Table, data_address
from experiment_tools.parts.run_reading import Run
from experiment_tools.parts.svg import Axes, Mark, Markup, Series, line_chart, picture_chart, ramp, sparkline, strip
from experiment_tools.report.sections import ends, series_of, short, thinned, trace

MOST_STRIP_CELLS = 80
MOST_SPARK_POINTS = 60
MOST_WEIGHTS = 12
HEAT = (79, 126, 214)
"""Colour of the histograms, strong on white and on a dark page."""
NO_GRADIENT = 1e-5
"""Of the largest gradient: what is left is rounding."""
Entry = Mapping[str, Any]
Rates = Mapping[str, Sequence[float]]


def inner_rates(run: Run) -> Section:
    """Show learned inner learning rates: layer x step, with their way over epochs in each cell; of Meta-SGD how they
    are spread.
    """
    section = Section(
        "inner-rates",
        "Inner learning rates",
        "One learning rate per parameter and inner step. Colour compares with where they started; the line in a cell "
        "is its way over epochs.",
        "Inner rates",
    )
    history = [rates for entry in run.epochs if (rates := rates_of(entry))]
    _add_learned(section, [entry for entry in run.epochs if entry.get("learned")])
    if not history:
        return section.lacking(
            "No epoch in logs/curves.json holds inner learning rates (one number per parameter and step)."
        )
    starts = {name: start_of(run.config, name) for name in history[-1]}
    form = run.config.get("learnable_inner_loop_learning_rates")
    if form == "per_element":
        section.lead = (
            "One learning rate per element of each parameter: their mean, and below how they are spread. Colour "
            "compares with where they started."
        )
    learned = _are_learned(history, starts)
    section.add(
        "Layer × step",
        _rate_table(history, starts, {"per_layer": "all steps", "per_element": "mean, all steps"}.get(form)),
        kind="rates",
        size="two-thirds" if learned else "wide",
        note="" if learned else "These rates are not learned in this run: all stay where they started.",
    )
    if learned:
        weights = [name for name in history[-1] if name.endswith("weight")]
        epochs = [entry["epoch"] for entry in run.epochs if rates_of(entry)]
        means = {name: [_mean(rates.get(name, ())) for rates in history] for name in weights}
        lines = [
            Series(name, list(zip(epochs, means[name], strict=True)), ramp(i, len(weights)))
            for i, name in enumerate(weights)
        ]
        section.add(
            "Change over epochs",
            line_chart(lines, Axes("epoch", short, "epoch"), "Mean inner learning rate of each weight over epochs"),
            legend=ends([Legend(line.name, line.colour) for line in lines]),
            note="Mean over inner steps, weights only.",
        )
    legend = [Legend("median", "var(--accent)"), Legend("start", "var(--muted)", "dashed")]
    note = "Band: half of its elements; faint lines: 5 and 95 % of them."
    for name, chart in element_rates(run.epochs, starts):
        section.add(f"Rates in {name}", chart, legend=legend, note=note)
    return section


def _add_learned(section: Section, entries: Sequence[Entry]) -> None:
    """Add what the run's method learns of its own, such as the parameters of an update rule or of a head, by name."""
    if not entries:
        return
    first, newest = entries[0]["learned"], entries[-1]["learned"]
    rows = [
        [name, short(first[name][1]) if name in first else "–", short(mean), f"{short(least)} … {short(largest)}"]
        for name, (least, mean, largest) in newest.items()
    ]
    heads = ["parameter", f"mean, epoch {entries[0]['epoch']}", "mean now", "least … largest"]
    section.add("Learned by the method", Table(rows, heads, code=True), kind="table", size="wide")
    means = {name: [(entry["epoch"], entry["learned"][name][1]) for entry in entries if name in entry["learned"]]
             for name in newest}  # fmt: skip
    lines = [Series(name, points, ramp(i, len(means))) for i, (name, points) in enumerate(means.items())]
    chart = line_chart(lines, Axes("epoch", short, "epoch"), "Mean of what the method learns of its own, over epochs")
    section.add("Over epochs", chart, legend=ends([Legend(line.name, line.colour) for line in lines]))


def _are_learned(history: Sequence[Rates], starts: Mapping[str, float]) -> bool:
    """Whether a rate has moved, or is not where it started."""
    newest = history[-1]
    moved = any(rates[name] != newest[name] for rates in history for name in newest if name in rates)
    return moved or any(
        abs(rate - starts[name]) > 1e-6 * abs(starts[name]) for name, row in newest.items() for rate in row
    )


def _rate_table(history: Sequence[Rates], starts: Mapping[str, float], one_head: str | None) -> dict[str, Any]:
    """Draw a row of cells per parameter, below the inner steps, or below `one_head` for all of them."""
    newest, thin = history[-1], thinned(history, MOST_SPARK_POINTS)
    heads = [one_head] if one_head else [f"step {step + 1}" for step in range(len(next(iter(newest.values()))))]
    rows = [
        {
            "name": name,
            "cells": [
                _rate_cell(rate, starts[name], [_at(rates, name, step) for rates in thin], f"{name}, {head}")
                for step, (rate, head) in enumerate(zip(newest[name], heads, strict=True))
            ],
        }
        for name in newest
    ]
    return {"heads": heads, "rows": rows, "start": " and ".join(short(value) for value in sorted(set(starts.values())))}


def start_of(config: Mapping[str, Any], name: str) -> float:
    """Return where a parameter's inner rate begins."""
    start = config.get("init_inner_loop_learning_rate") or 0.1
    return (config.get("init_head_inner_loop_learning_rate") or start) if name.startswith("head.") else start


def element_rates(epochs: Sequence[Entry], starts: Mapping[str, float]) -> list[tuple[str, Markup | None]]:
    """Return (weight, how the rates of its elements are spread over epochs) of Meta-SGD, which has one per element."""
    seen = [entry for entry in epochs if entry.get("rate_quantiles")]
    names = [name for name in seen[-1]["rate_quantiles"] if name.endswith("weight")][:MOST_WEIGHTS] if seen else []
    charts = []
    for name in names:
        rows = [
            (entry["epoch"], *entry["rate_quantiles"][name][1:6]) for entry in seen if name in entry["rate_quantiles"]
        ]
        lines = [
            Series("start", [(row[0], starts.get(name)) for row in rows], "var(--muted)", "dashed"),
            Series("5 %", [(row[0], row[1]) for row in rows], "var(--accent)", "faint"),
            Series("95 %", [(row[0], row[5]) for row in rows], "var(--accent)", "faint"),
            Series(
                "median",
                [(row[0], row[3]) for row in rows],
                "var(--accent)",
                dots=len(rows) < 30,
                band=[(row[0], row[2], row[4]) for row in rows],
            ),
        ]
        charts.append(
            (
                name,
                line_chart(
                    lines, Axes("epoch", short, "epoch"), f"Inner learning rates of the elements of {name} over epochs"
                ),
            )
        )
    return charts


def rates_of(entry: Entry) -> dict[str, list[float]]:
    """Return name -> one rate per step, of an epoch's entry; names whose rates are of another kind are left out."""
    rates = entry.get("learned_rates") or {}
    return {
        name: row for name, row in rates.items()
        if isinstance(row, list) and row and all(isinstance(rate, int | float) for rate in row)
    }  # fmt: skip


def _at(rates: Rates, name: str, step: int) -> float | None:
    row = rates.get(name, ())
    return row[step] if step < len(row) else None


def _rate_cell(rate: float, start: float, history: Sequence[float | None], name: str) -> dict[str, Any]:
    doublings = math.log2(rate / start) if rate * start > 0 else -2.0
    share = round(min(abs(doublings) / 2, 1.0) * 100)
    hue = "--hot" if doublings > 0 else "--cold"
    return {
        "text": f"{rate:.3g}" if abs(rate) >= 1e-3 else short(rate),
        "colour": f"color-mix(in oklab, var({hue}) {share}%, var(--cell))",
        "spark": sparkline(history, f"{name} over epochs"),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def batch_norm(run: Run) -> Section:
    """Show statistics and parameters of the norm layers, per inner step where they have rows of their own."""
    section = Section(
        "batch-norm",
        "Batch norm",
        "Means over the channels of each layer. MAML++ keeps one row per inner step; else it is one over epochs.",
        "Batch norm",
    )
    entries = [entry for entry in run.epochs if entry.get("batch_norm")]
    if not entries:
        return section.lacking("No epoch in logs/curves.json holds batch-norm statistics.")
    newest = entries[-1]["batch_norm"]
    names = {
        "running_mean": "Running mean",
        "running_var": "Running variance",
        "weight": "Weight γ",
        "bias": "Bias β",
    }
    for key, title in names.items():
        layers = [layer for layer, values in newest.items() if _numbers(values.get(key))]
        per_step = any(len(newest[layer][key]) > 1 for layer in layers)
        lines = []
        for index, layer in enumerate(layers):
            colour = ramp(index, len(layers))
            if per_step:
                first = entries[0]["batch_norm"].get(layer, {}).get(key) or ()
                if len(entries) > 1:
                    lines.append(Series(f"{layer}, first", [(s + 1, v) for s, v in enumerate(first)], colour, "faint"))
                lines.append(Series(layer, [(s + 1, v) for s, v in enumerate(newest[layer][key])], colour, dots=True))
            else:
                values = [
                    (entry["epoch"], _mean(entry["batch_norm"].get(layer, {}).get(key) or ())) for entry in entries
                ]
                lines.append(Series(layer, values, colour, dots=len(entries) < 30))
        axes = Axes("inner step" if per_step else "epoch", short, "step" if per_step else "epoch")
        what = "per inner step" if per_step else "over epochs"
        section.add(
            title,
            line_chart(lines, axes, f"{title} of each norm layer {what}"),
            legend=ends([Legend(line.name, line.colour) for line in lines if line.look != "faint"]),
            size="half",
            note=f"Epoch {entries[-1]['epoch']}; faint: epoch {entries[0]['epoch']}."
            if per_step and len(entries) > 1
            else "",
        )
    return section


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)


def gradients(run: Run) -> Section:
    """Norms of meta-gradients and updates, and the angle between first and second order."""
    section = Section(
        "gradients",
        "Gradients and updates",
        "How large the meta-gradient is, what it does to the weights, and how far the first-order approximation "
        "points elsewhere.",
        "Gradients",
    )
    means = series_of(run.rows, "gradient_norm_mean")
    chart = line_chart(
        [
            Series("single iterations", trace(run, "gradient_norm"), "var(--ink)", "faint"),
            Series("mean of the epoch", means, "var(--ink)", dots=len(means) < 30),
        ],
        Axes("epoch", short, "epoch", log_y=True),
        "Norm of the meta-gradient over epochs",
    )
    section.add("Norm of the meta-gradient", chart, "nothing is logged yet.",
                legend=[Legend("mean of the epoch", "var(--ink)"), Legend("single iterations", "var(--ink)", "faint")],
                note="All parameters together, before clamping and clipping.")  # fmt: skip
    seen = [entry for entry in run.epochs if entry.get("gradients")]
    if not seen:
        return section.lacking(
            "Norms per layer and angles: no epoch was looked at (diagnostics_every_epochs is 0, or no epoch is "
            "finished)."
        )
    section.add(
        "Angle between first and second order",
        angle_chart(seen),
        "this run is of first order throughout, so the second was never computed.",
        note=f"Both gradients of the same validation tasks. {_angle_at_switch(seen)}0° would mean that the second "
        "order changes nothing but the length.",
    )
    updates = [entry for entry in run.epochs if entry.get("updates")]
    _add_update_ratios(section, updates)
    norms = [(entry["epoch"], entry["gradients"]["norms"]) for entry in seen]
    section.add(
        "Gradient norm by parameter, over epochs",
        norm_strips(norms, "Gradient norm"),
        kind="strips",
        size="half",
        note="The stronger the colour, the larger, on a logarithmic scale; the number is the newest. "
        "Parameters with next to no gradient are left out, such as biases before a norm layer.",
    )
    norms = [(entry["epoch"], {name: one.get("update_norm") for name, one in entry["updates"].items()})
             for entry in updates]  # fmt: skip
    section.add("Update norm by parameter, over epochs", norm_strips(norms, "Update norm"), "no update was looked at.",
                kind="strips", size="half", note="Of one meta-update, the next one after the epoch.")  # fmt: skip
    note = (
        "Of training tasks: its elements by magnitude. The stronger the colour, the more; zeros are in the lowest row."
    )
    for name, chart in magnitude_charts(seen):
        section.add(f"Gradient of {name}", chart, note=note)
    return section


def magnitude_charts(seen: Sequence[Entry]) -> list[tuple[str, Markup]]:
    """Draw the histograms of each weight's gradient over epochs, (name, chart)."""
    seen = thinned([entry for entry in seen if entry["gradients"].get("magnitudes")], MOST_STRIP_CELLS)
    charts = []
    for name in list(seen[-1]["gradients"]["magnitudes"])[:MOST_WEIGHTS] if seen else ():
        known = [entry for entry in seen if name in entry["gradients"]["magnitudes"]]
        counts = [entry["gradients"]["magnitudes"][name] for entry in known]
        used = [place for place in range(len(counts[0])) if any(column[place] for column in counts)]
        low, high = used[0], used[-1] + 1
        largest = max(map(max, counts))
        shades = ((*HEAT, round(255 * math.sqrt(column[place] / largest)))
                  for place in reversed(range(low, high)) for column in counts)  # fmt: skip
        picture = Image.frombytes("RGBA", (len(counts), high - low), bytes(itertools.chain(*shades)))
        powers = [power for power in range(LOWEST_POWER, HIGHEST_POWER + 1) if low <= _bin_of(power) <= high]
        y_ticks = [((_bin_of(power) - low) / (high - low), f"1e{power}") for power in powers[:: 1 + len(powers) // 6]]
        label = f"Histograms of the gradient of {name} over epochs"
        epochs = [entry["epoch"] for entry in known]
        charts.append((name, picture_chart(data_address(picture), epochs, y_ticks, "epoch", label)))
    return charts


def _bin_of(power: int) -> int:
    """Return the first bin of a power of ten."""
    return (power - LOWEST_POWER) * BINS_PER_POWER


def _add_update_ratios(section: Section, updates: Sequence[Entry]) -> None:
    weights = [n for n in updates[-1]["updates"] if n.endswith("weight") and ".norm." not in n] if updates else []
    lines = [
        Series(name, [(entry["epoch"], _ratio(entry["updates"].get(name))) for entry in updates], ramp(i, len(weights)))
        for i, name in enumerate(weights)
    ]
    axes = Axes("epoch", short, "epoch", log_y=True)
    section.add(
        "Update / weight",
        line_chart(lines, axes, "Norm of an update over norm of the weight, over epochs"),
        legend=ends([Legend(line.name, line.colour) for line in lines]),
        note="Norm of one meta-update relative to the weight's own. Around 0.001 is usual.",
    )


def angle_chart(seen: Sequence[Entry]) -> Markup | None:
    """Angle over epochs; the background and a mark tell where the derivative order changes."""
    angles = [(entry["epoch"], entry["gradients"].get("angle_degrees")) for entry in seen]
    switch = _switch(seen)
    axes = Axes(
        "epoch",
        lambda degrees: f"{degrees:.3g}°",
        "epoch",
        (0.0, None),
        shades=() if switch is None else [(0, switch - 0.5, "var(--shade)")],
    )
    marks = [] if switch is None else [Mark(switch - 0.5, "second order from here", "var(--ink)")]
    return line_chart([Series("angle", angles, "var(--accent)", dots=len(angles) < 30)], axes,
                      "Angle between first- and second-order meta-gradients over epochs", marks)  # fmt: skip


def _switch(seen: Sequence[Entry]) -> int | None:
    """Return the first epoch of second order after one of first order."""
    orders = [(entry["epoch"], entry["gradients"].get("order")) for entry in seen]
    return next(
        (epoch for (_, before), (epoch, now) in itertools.pairwise(orders) if (before, now) == ("first", "second")),
        None,
    )


def _angle_at_switch(seen: Sequence[Entry]) -> str:
    switch = _switch(seen)
    angle = next((entry["gradients"].get("angle_degrees") for entry in seen if entry["epoch"] == switch), None)
    return "" if angle is None else f"In epoch {switch}, the first of second order, they are {angle:.1f}° apart. "


def _ratio(update: Mapping[str, float | None] | None) -> float | None:
    if not update or not update.get("norm") or update.get("update_norm") is None:
        return None
    return update["update_norm"] / update["norm"]


def norm_strips(of_epochs: Sequence[tuple[int, Mapping[str, float | None]]], what: str) -> list[dict[str, Any]]:
    """Draw one strip of cells per parameter, layer by layer.

    Args:
        of_epochs: (epoch, name -> norm).
        what: is measured.
    """
    if not of_epochs:
        return []
    shown = thinned(list(of_epochs), MOST_STRIP_CELLS)
    names = list(shown[-1][1])
    largest = {name: max((norms.get(name) or 0.0 for _, norms in shown), default=0.0) for name in names}
    names = [name for name in names if largest[name] > NO_GRADIENT * max(largest.values())]
    known = [norm for _, norms in shown for name in names if (norm := norms.get(name))]
    if not known:
        return []
    high = math.log10(max(known))
    low = max(math.log10(min(known)), high - 3)
    order = list(dict.fromkeys(name.rpartition(".")[0] for name in names))  # layers, as they come
    rows = []
    for name in sorted(names, key=lambda name: order.index(name.rpartition(".")[0])):
        row = [(epoch, norms.get(name)) for epoch, norms in shown]
        cells = [
            (_strip_colour(norm, low, high), f"{name}, epoch {epoch}: {'–' if norm is None else short(norm)}")
            for epoch, norm in row
        ]
        last = row[-1][1]
        rows.append(
            {
                "name": name,
                "strip": strip(cells, f"{what} of {name} over epochs"),
                "last": "–" if last is None else f"{last:.3g}",
            }
        )
    return rows


def _strip_colour(norm: float | None, low: float, high: float) -> str:
    if not norm:
        return "var(--cell)"
    share = (math.log10(norm) - low) / (high - low) if high > low else 1.0
    return f"color-mix(in oklab, var(--heat) {100 * min(max(share, 0.0), 1.0):.0f}%, var(--cell))"
