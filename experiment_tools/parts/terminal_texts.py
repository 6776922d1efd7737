"""What a run says at its start and at its end: how it is set up, on one screen, and what to do next. Pure functions."""

import json
import math
import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_tools.parts.methods import method_name
from experiment_tools.parts.settings import nearest_config
from utils.config import ExperimentConfig
from utils.config.changes import FREE_KEYS
from utils.files.reading import object_or_nothing, read_object
from utils.paths import command, without_user
from utils.words import counted, some_of

TEST_SUMMARY = "logs/test_summary.json"
MOST_LAYERS, MOST_DIFFERENCES = 8, 8
"""So that the banner fits on one screen of 24 rows, with what is said of device, data and resuming."""


def start_banner(config: ExperimentConfig, description: Mapping[str, Any], width: int | None = None) -> str:
    """Return method, tasks, schedule, what differs from the template's config, and the parameters by layer.

    Args:
        config: of the run.
        description: of the learner.
        width: of a line; None: the terminal's, 80 where there is none.
    """
    width = width or shutil.get_terminal_size().columns
    values = config.to_json_dict()
    shape = config.training_shapes[0]
    heading = (
        f"{method_name(values)}, {shape.n_way}-way {shape.n_shot}-shot, "
        f"{counted(shape.n_query, 'query', 'queries')} per class, "
        f"{counted(config.number_of_training_steps_per_iter, 'inner step')}"
    )
    plan = (
        f"{counted(config.total_epochs, 'epoch')} x {counted(config.total_iter_per_epoch, 'iteration')} x "
        f"{counted(config.tasks_per_meta_batch, 'task')}; "
    )
    of_episodes = config.total_epochs - config.pretraining_epochs
    if config.pretraining_epochs:
        first = f"the first {counted(config.pretraining_epochs, 'epoch')}" if of_episodes > 0 else "nothing but"
        plan += f"{first} pre-training; "
    tasks = counted(config.num_evaluation_tasks, "task")
    if config.test_after_training:
        n_models = min(config.number_of_ensemble_models, of_episodes if of_episodes > 0 else config.total_epochs)
        tested = f"the best {n_models} models are tested" if n_models > 1 else "the best model is tested"
        plan += f"validation and test on {tasks}; {tested}"
    else:
        plan += f"validation on {tasks}; no test (test_after_training)"
    texts = [
        line for text in (heading, f"  {plan}", *(f"  {line}" for line in _differences(values, config.file)))
        for line in textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    ]  # fmt: skip
    return "\n".join([*texts, *(f"  {line}" for line in parameter_table(description, width - 2))])


def _differences(values: Mapping[str, Any], file: Path | None) -> list[str]:
    nearest = nearest_config(values, file)
    if nearest is None:
        return []
    path, changed = nearest
    name = without_user(path) or path
    unsaid = FREE_KEYS - {"total_epochs"} | {"plugin_sha256"}  # what a plugin brings has a name of its own
    changed = {key: pair for key, pair in changed.items() if key not in unsaid}
    if not changed:
        return [f"settings of {name}"]
    pairs = [f"{key} {json.dumps(here)} ({json.dumps(there)})" for key, (there, here) in changed.items()]
    return [f"differs from {name}: {some_of(pairs, MOST_DIFFERENCES)}"]


def parameter_table(description: Mapping[str, Any], width: int = 120) -> list[str]:
    """Return one line per layer: parameters, shapes, and which the inner loop adapts.

    Shapes that do not fit into the width are left out.
    """
    adapted = set(description["adapted_parameters"])
    layers: dict[str, dict[str, Sequence[int]]] = {}
    for name, shape in description["meta_parameters"].items():
        layer, _, rest = name.removeprefix("network.").partition(".")
        layers.setdefault(layer, {})[rest] = shape
    rows: list[tuple[str, str, str, list[str]]] = [("layer", "parameters", "adapted", ["shapes"])]
    for layer, shapes in layers.items():
        counts = {rest: math.prod(shape) for rest, shape in shapes.items()}
        n_adapted = sum(count for rest, count in counts.items() if f"{layer}.{rest}" in adapted)
        texts = [f"{rest} {'x'.join(map(str, shape)) or '1'}" for rest, shape in shapes.items()]
        rows.append((layer, f"{sum(counts.values()):,}", f"{n_adapted:,}" if n_adapted else "no", texts))
    if len(rows) > MOST_LAYERS + 1:
        left_out = len(rows) - MOST_LAYERS
        rows[MOST_LAYERS:] = [(f"{left_out} more", "", "", [])]
    rows.append(("all", f"{description['n_meta_parameters']:,}", "", []))
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    room = width - sum(widths) - 6
    return [
        f"{layer:<{widths[0]}}  {count:>{widths[1]}}  {inner:>{widths[2]}}  {_fitting(shapes, room)}".rstrip()
        for layer, count, inner, shapes in rows
    ]


def _fitting(shapes: Sequence[str], room: int) -> str:
    """Return as many of them as there is room for."""
    for count in range(len(shapes), 0, -1):
        text = ", ".join([*shapes[:count], *(["..."] if count < len(shapes) else [])])
        if len(text) <= room:
            return text
    return ""


def next_command(run_folder: Path) -> str:
    """Return the next useful command: a comparison with the newest other result on such tasks, or one's own images."""
    # A sweep alone gives its trials another EXPERIMENTS_DIR than the user's terminal has.
    is_trial = (run_folder.parent / "sweep.toml").is_file()
    name, tasks = (str(run_folder) if is_trial else run_folder.name), _tested_tasks(run_folder)
    others = [path.parent.parent for path in run_folder.parent.glob(f"*/{TEST_SUMMARY}")]
    others = [other for other in others if other.name != run_folder.name and _tested_tasks(other) == tasks]
    if others and tasks is not None:
        other = max(others, key=lambda folder: (folder / TEST_SUMMARY).stat().st_mtime)
        both = shlex.join([name, str(other) if is_trial else other.name])
        return f"Next: {command('compare')} {both}"
    if object_or_nothing(run_folder / "config.json").get("input_shape"):
        return f"Next: FewShotClassifier.from_experiment({name!r}).fit(examples, labels), in Python"
    return f"Next: {command('adapt')} --experiment {shlex.quote(name)} --support FOLDER --query FOLDER"


def _tested_tasks(run_folder: Path) -> list[Any] | None:
    try:
        protocol = read_object(run_folder / TEST_SUMMARY)["protocol"]
        return [protocol[name] for name in ("dataset", "ways", "shots", "queries")]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not as this release writes it
        return None
