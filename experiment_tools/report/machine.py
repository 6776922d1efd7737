"""The report's sections about the machine and the settings: where the time went, memory, environment, config."""

import json
from collections.abc import Mapping
from typing import Any

from experiment_tools.parts.pages import Legend, Section, Table
from experiment_tools.parts.run_reading import Run, data_of_result
from experiment_tools.parts.settings import config_of, nearest_config
from experiment_tools.parts.svg import Axes, Series, line_chart
from experiment_tools.report.sections import TEST, TRAIN, VAL, duration, duration_tick, percent, series_of, short
from utils.config.schema import sections
from utils.paths import without_user

PARTS = (
    ("waiting for data", "var(--muted)"),
    ("inner loop", "var(--accent)"),
    ("outer loop", TRAIN),
    ("evaluation", VAL),
    ("writing this report", TEST),
)
START_KEYS = ("started", "device", "python", "system", "cuda", "cudnn", "threads", "commit", "uncommitted_changes")


def time_and_memory(run: Run) -> Section:
    """Where the seconds went, speed and memory over epochs."""
    section = Section(
        "machine",
        "Time and memory",
        "Where the seconds of the run went, how fast it trains and what it needs.",
        "Machine",
    )
    split = time_split(run)
    if split:
        by_probe = "inner loop" in split
        note = "Inner and outer loop: their shares as measured once per epoch on one meta-batch." if by_probe else ""
        section.add("Time split", _parts(split), kind="split", size="wide", note=note)
    else:
        section.missing.append("Time split: no epoch is finished yet.")
    speed, has_dots = series_of(run.rows, "train_tasks_per_s"), len(run.rows) < 30
    section.add(
        "Speed",
        line_chart(
            [Series("training tasks per second", speed, TRAIN, dots=has_dots)],
            Axes("epoch", short, "epoch", from_zero=True),
            "Training tasks per second over epochs",
        ),
        note="Training tasks per second, waiting for data included.",
    )
    memory = series_of(run.epochs, "peak_memory_mib")
    on = run.starts[-1].get("device", "") if run.starts else ""
    section.add(
        "Peak memory",
        line_chart(
            [Series("MiB", memory, "var(--accent)", dots=len(memory) < 30)],
            Axes("epoch", lambda mib: f"{mib:.0f}", "epoch", from_zero=True),
            "Peak memory over epochs, in MiB",
        ),
        note=f"MiB {'of the process' if on == 'cpu' else 'allocated on the device'}, the most so far since its start.",
    )
    section.add("Time of an epoch", line_chart(
        [Series("training", series_of(run.rows, "train_time_s"), TRAIN, dots=has_dots),
         Series("validation", series_of(run.rows, "val_time_s"), VAL, dots=has_dots)],
        Axes("epoch", duration_tick, "epoch", from_zero=True), "Seconds of training and validation over epochs",
    ), legend=[Legend("training", TRAIN), Legend("validation", VAL)])  # fmt: skip
    return section


def _parts(split: Mapping[str, float]) -> dict[str, Any]:
    """Draw the bar of the time split: its parts with their share of the seconds."""
    total = sum(split.values())
    parts = [
        {"name": name, "colour": colour, "share": round(100 * split[name] / total, 2),
         "percent": percent(split[name] / total), "text": duration(split[name])}
        for name, colour in PARTS if split.get(name)
    ]  # fmt: skip
    return {"parts": parts, "total": duration(total)}


def time_split(run: Run) -> dict[str, float]:
    """Return the seconds of the run by what they went into; training is one part where its parts were not timed."""
    train = sum(row.get("train_time_s") or 0.0 for row in run.rows)
    data = sum(row.get("data_time_s") or 0.0 for row in run.rows)
    evaluation = sum(row.get("val_time_s") or 0.0 for row in run.rows)
    if train <= 0:
        return {}
    inspected = [entry["gradients"] for entry in run.epochs if entry.get("gradients")]
    inner, outer = (sum(one.get(f"time_{loop}_s") or 0.0 for one in inspected) for loop in ("inner", "outer"))
    computing = max(train - data, 0.0)
    share = inner / (inner + outer) if inner + outer > 0 else None
    return {
        "waiting for data": data,
        **({} if share is None else {"inner loop": computing * share}),
        "outer loop": computing * (1 - (share or 0.0)),
        "evaluation": evaluation,
        "writing this report": sum(entry.get("look_time_s") or 0.0 for entry in run.epochs),
    }


# --- config and environment -------------------------------------------------------------------------------------------


def settings(run: Run) -> Section:
    """Show what differs from the config that the run was started with, else from the nearest one, and all keys."""
    section = Section("config", "Settings", "What makes this run different, and the whole config.", "Settings")
    if not run.config:
        return section.lacking("config.json is not there or cannot be read.")
    nearest = nearest_config(run.config, config_of(run))
    if nearest is not None:
        path, changed = nearest
        changed = {key: values for key, values in changed.items() if key != "experiment_name"}
        rows = [[key, _json(there), _json(here)] for key, (there, here) in changed.items()]
        title = f"Differs from {without_user(path) or path.name}"
        note = "" if rows else "Nothing: every key has the value that this file gives it."
        section.add(title, Table(rows, ["key", "there", "this run"], code=True), kind="table", size="wide", note=note)
    groups = [
        {
            "name": (model.__doc__ or "").strip(),
            "rows": [[key, _json(run.config[key])] for key in model.model_fields if key in run.config],
        }
        for model in sections()
    ]
    named = {key for group in groups for key, _ in group["rows"]}
    others = [[key, _json(value)] for key, value in run.config.items() if key not in named and key != "run_id"]
    groups.append({"name": "Of plugins, and of other releases.", "rows": others})
    section.add("The whole config", [group for group in groups if group["rows"]], kind="config", size="wide")
    return section


def environment(run: Run) -> Section:
    """Show versions and device of every start."""
    section = Section(
        "environment",
        "Environment",
        "What the run was made with. A run that was resumed has several starts.",
        "Environment",
    )
    if not run.starts:
        return section.lacking("environment.json is not there or cannot be read.")
    newest = run.starts[-1]
    unused = ("cuda",) if newest.get("device") == "cpu" else ()  # the version that torch was built for
    facts = {key: newest.get(key) for key in START_KEYS if key not in unused}
    # A start that resumes does not read them.
    of_weights = filter(None, (start.get("initial_weights_sha256") for start in run.starts))
    facts["initial_weights_sha256"] = next(of_weights, None)
    rows = [[key.replace("_", " "), _plain(value)] for key, value in facts.items() if value not in (None, "")]
    section.add("Machine and code", Table(rows), kind="table")
    packages = newest.get("packages") or {}
    section.add(
        "Packages", Table([[name, _plain(version)] for name, version in packages.items() if version]), kind="table"
    )
    data = data_of_result(run)
    splits = data.get("splits") or {}
    rows = [[split, f"{counts['classes']} classes, {counts['images']} images"] for split, counts in splits.items()]
    rows += [
        [key.replace("_", " "), _plain(data[key])]
        for key in ("dataset_name", "image_shape", "content_sha256")
        if data.get(key)
    ]
    section.add("Data", Table(rows), kind="table")
    if len(run.starts) > 1:
        rows = [
            [
                str(start.get("started", "?")),
                f"{start.get('device', '?')}, torch {(start.get('packages') or {}).get('torch', '?')}",
            ]
            for start in run.starts[-20:]
        ]
        section.add(f"{len(run.starts)} starts", Table(rows), kind="table")
    return section


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)
