"""Train on each domain, test on all: the matrix of accuracies per method, as a table and a heat map.

    python benchmarks/glyph_matrix.py --domains glyphs_scripts ... --methods omniglot_maml_5way_1shot_seed0 ...
        [--seeds 0 1] [--list 5way_1shot] [--against METHOD] [--part 1/4] [--output FOLDER] [-- --total_epochs 5 ...]

A domain is a dataset folder that is split already, with its fixed tasks in `<folder>_tasks/` (python -m
utils.prepare_dataset tasks). A method is a config in experiment_config/, one's own too; what stands after `--` goes to
every run. Runs are `EXPERIMENTS_DIR/matrix_<method>_<domain>_<seed>`: finished ones cost a second, interrupted ones are
resumed, so the command can be killed and given again, or given in parts (a SLURM array: --part $SLURM_ARRAY_TASK_ID/4);
without --part it ends with the pages, from what is there. `--only_pages` trains and tests nothing.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.matrix_cells import BESIDE, Cell, Effect, cells_of, effects_of
from benchmarks.parts.trained_runs import TrainedRun, as_arguments, say, table
from experiment_tools.parts.pages import Section, Table, page_html
from experiment_tools.parts.svg import Markup, element, escaped, ramp, standalone
from utils.config.command_line import parse_command_line, read_command_line
from utils.data_sources.write_task_lists import domain_images
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.paths import REPOSITORY_ROOT, dataset_root, expanded
from utils.prepare_dataset.glyphs.benchmark import (
    OTHER_DOMAINS,
    SHAPES,
    by_pixels,
    is_too_easy,
    pixel_lines,
)
from utils.prepare_dataset.glyphs.domains import FOLDER, folder_of

OVERRIDES = {"sets_are_pre_split": True, "indexes_of_folders_indicating_class": [-3, -2], "num_target_samples": 3}
"""Of every run: the folder format, and the queries that a class of four images leaves for one shot."""
CLASSIFIER = "omniglot_classifier_5way_1shot_seed0"
N_DIVERSITY_TASKS = 500
"""Training tasks of which the diversity of a domain is the mean."""
STEPS = 20
"""Colours of the heat maps, from the lowest to the highest cell of all."""
CELL, LABEL, HEAD = 92, 150, 26


def runs_of(
    methods: Sequence[str], domains: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any]
) -> dict[tuple[str, str, int], TrainedRun]:
    """Return (method, domain, seed) -> the run that trains it."""
    return {
        (method, domain, seed): TrainedRun(
            method,
            f"matrix_{method}_{domain}_seed{seed}",
            OVERRIDES
            | {"dataset_name": domain, "dataset_path": domain, "train_seed": seed}
            | OTHER_DOMAINS.get(domain, {})
            | dict(overrides),
        )
        for method, domain, seed in itertools.product(methods, domains, seeds)
    }


def task_list_of(domain: str, name: str) -> Path:
    """Return the file of a domain's fixed tasks.

    Raises:
        ConfigError: it is not there, or the domain is too easy.
    """
    path = dataset_root() / f"{domain}_tasks" / f"{name}.tasks.json"
    if not path.is_file():
        command = f"python -m utils.prepare_dataset tasks --domain {domain.removeprefix('glyphs_')}"
        raise ConfigError(f"{path}: no task list. Run: {command}")
    found = by_pixels(dataset_root() / domain, domain_images(dataset_root() / domain))
    if is_too_easy(found):
        raise ConfigError(f"{domain}: {pixel_lines(found)[0]}. Leave it out of --domains.")
    return path


def carry_out(run: TrainedRun, lists: Mapping[str, Path]) -> None:
    """Train a run, then test it on the tasks of each domain that it has not been tested on."""
    run.carry_out()
    for domain, path in lists.items():
        if run.read(f"test_summary_{tag_of(path, domain)}.json") is None:
            run.carry_out(evaluate_on_test_set_only=True, task_list=path, tag=tag_of(path, domain))


def tag_of(path: Path, domain: str) -> str:
    """Return the tag of a test on a domain's list."""
    return f"{domain}_{path.name.partition('.')[0]}"


def heat_map(cells: Sequence[Cell], domains: Sequence[str], low: float, high: float) -> Markup:
    """Draw the cells of one method: a row per training domain, a column per test domain; shades from low to high."""
    size = LABEL + CELL * len(domains), HEAD + CELL // 2 * len(domains)
    places = {domain: place for place, domain in enumerate(domains)}
    parts = [
        element("text", escaped(domain.removeprefix(FOLDER)), x=x, y=y, text_anchor=anchor)
        for domain, place in places.items()
        for x, y, anchor in (
            (LABEL + CELL * (place + 0.5), HEAD - 8, "middle"),
            (LABEL - 8, HEAD + CELL // 2 * (place + 0.6), "end"),
        )
    ]
    for cell in cells:
        x, y = LABEL + CELL * places[cell.tested_on], HEAD + CELL // 2 * places[cell.trained_on]
        shade = ramp(round(STEPS * (cell.summary.mean - low) / max(high - low, 1e-9)), STEPS + 1)
        title = element("title", escaped(f"{cell.trained_on} to {cell.tested_on}, {len(cell.means)} seeds"))
        rect = element("rect", title, x=x, y=y, width=CELL - 2, height=CELL // 2 - 2, fill=shade, fill_opacity="0.5")
        mean, _, interval = cell.text.partition(" ")
        lines = ((mean, 20, "600"), (interval, 36, "400"))
        parts += [rect] + [
            element(
                "text", line, x=x + CELL / 2, y=y + below, text_anchor="middle", fill="var(--ink)", font_weight=bold
            )
            for line, below, bold in lines
        ]
    label = "accuracy, a row per training domain and a column per test domain"
    return Markup(element("svg", "".join(parts), viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=label))


def picture(maps: Mapping[str, Markup]) -> str:
    """Return an SVG of all maps, two beside each other, each under the name of its method."""
    width, height = (float(side) for side in next(iter(maps.values())).split('viewBox="0 0 ')[1].split('"')[0].split())
    parts = []
    for place, (method, shown) in enumerate(maps.items()):
        at = f"translate({place % 2 * (width + 20)} {place // 2 * (height + 50) + 30})"
        title = element("text", escaped(method), x=8, y=-8, font_weight="600")
        sized = shown.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
        parts.append(element("g", title + sized, transform=at, class_="heat"))
    return standalone("".join(parts), 2 * width + 20, -(-len(maps) // 2) * (height + 50) + 10)


def diversities(runs: Mapping[tuple[str, str, int], TrainedRun]) -> dict[str, float]:
    """Return training domain -> diversity of its tasks, as the first method's run has them."""
    from benchmarks.parts.diversity import diversity
    from data import build_data
    from utils.config import load_config

    found = {}
    for (_, domain, _), run in runs.items():
        if domain not in found:
            path = REPOSITORY_ROOT / "experiment_config" / f"{run.config_name}.json"
            overrides = {"experiment_name": run.experiment_name} | run.overrides
            _, overrides = read_command_line(as_arguments(overrides))  # with the methods of a --plugin
            data = build_data(load_config(path, overrides), "cpu")
            found[domain] = diversity(data.episodes("train", range(N_DIVERSITY_TASKS)))
    return found


def tables_of(
    cells: Sequence[Cell], effects: Sequence[Effect], domains: Sequence[str], diversity: Mapping[str, float]
) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return title -> heading and rows: accuracies, differences from a method, and what stands beside each result."""
    columns = [f"on {domain.removeprefix('glyphs_')}" for domain in domains]

    def square(found: Mapping[tuple[str, str, str], str], more: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
        keys = dict.fromkeys((method, trained_on) for method, trained_on, _ in found)
        rows = [[*key, more.get(key[1], ""), *(found.get((*key, domain), "") for domain in domains)] for key in keys]
        return ["method", "trained on", "diversity", *columns], rows

    def place(one: Cell | Effect) -> tuple[str, str, str]:
        return one.method, one.trained_on, one.tested_on

    shown = {domain: f"{value:.4f}" for domain, value in diversity.items()}
    found = {"Accuracy": square({place(cell): cell.text for cell in cells}, shown)}
    if effects:
        title = f"Points above {effects[0].against}, and Cohen's d"
        found[title] = square({place(effect): effect.text for effect in effects}, shown)
    rows = []
    for cell in cells:
        beside = [cell.beside.get(name) for name in BESIDE]
        texts = ["" if row is None else f"{100 * row.mean:.2f} ({_signed(row.gain, row.ci95)})" for row in beside]
        rows.append([*place(cell), cell.text, *texts])
    found["Beside each result: accuracy (what the model is above it)"] = (
        ["method", "trained on", "tested on", "accuracy", *BESIDE.values()], rows,
    )  # fmt: skip
    return found


def _signed(gain: float, ci95: float | None) -> str:
    return f"{100 * gain:+.2f}" + ("" if ci95 is None else f" ± {100 * ci95:.2f}")


def answers(effects: Sequence[Effect]) -> list[str]:
    """Say for each method in how many cells it is better and worse than the one that it is compared with."""
    return [
        f"{method}: better than {against} in {count['better']} of {count.total()} cells, worse in {count['worse']}, "
        f"not told apart in {count['not told apart']} (95 % interval of the paired difference over tasks)"
        for method, against in dict.fromkeys((effect.method, effect.against) for effect in effects)
        for count in [Counter(effect.verdict for effect in effects if effect.method == method)]
    ]


def write_pages(
    cells: Sequence[Cell], effects: Sequence[Effect], domains: Sequence[str], diversity: Mapping[str, float],
    list_name: str, folder: Path,
) -> str:  # fmt: skip
    """Write matrix.html, .md, .json and .svg; return the Markdown."""
    tables = tables_of(cells, effects, domains, diversity)
    lead = (
        f"Accuracy in % on the fixed tasks {list_name} of each domain, with the 95 % interval over seeds, or tasks "
        "where there is one. Diversity: mean cosine distance of a training task's classes, by a fixed random network."
    )
    section = Section("matrix", "Train on a row, test on a column", lead)
    shades = [minmax((cell.summary.mean for cell in cells), default=0.0) for minmax in (min, max)]
    maps = {
        method: heat_map([cell for cell in cells if cell.method == method], domains, *shades)
        for method in dict.fromkeys(cell.method for cell in cells)
    }
    for method, shown in maps.items():
        section.add(method, shown, size="half")
    section.add("Where a method beats the other", answers(effects), kind="lines", size="wide")
    for title, (head, rows) in tables.items():
        section.add(title, Table(rows, head, numbers=True), kind="table", size="wide")
    digests = sorted({f"{cell.tested_on} {cell.digest}" for cell in cells})
    section.add("Digests of the tasks", digests, kind="lines", size="wide")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"{title}\n\n{table(head, rows)}" for title, (head, rows) in tables.items()]
    markdown = "\n".join([*parts, *answers(effects)])
    values = {
        "cells": [{k: v for k, v in dataclasses.asdict(cell).items() if k != "scores"} for cell in cells],
        "effects": [dataclasses.asdict(effect) for effect in effects],
        "diversity": dict(diversity),
    }
    for name, text in (
        ("matrix.html", page_html("Matrix of domains", [section])),
        ("matrix.md", markdown),
        ("matrix.json", json.dumps(values, indent=1)),
        *([("matrix.svg", picture(maps))] if maps else []),
    ):
        write_bytes_atomically(folder / name, text.encode())
    return markdown


def part_of(text: str | None) -> tuple[int, int]:
    """Parse "1/4": the second of four, as SLURM numbers arrays."""
    place, slash, count = (text or "0/1").partition("/")
    if not (slash and place.isdigit() and count.isdigit() and int(place) < int(count)):
        raise ConfigError(f"--part {text}: must be such as 0/4 to 3/4.")
    return int(place), int(count)


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the runs of the matrix, or a part of them, and write the pages."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", required=True, help="print, ..., or dataset folders, as glyphs_print")
    parser.add_argument("--methods", nargs="+", required=True, help="names of configs in experiment_config/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="train_seed of a run each (default 0)")
    parser.add_argument("--list", default="5way_1shot", choices=tuple(SHAPES), help="tasks of the tests (5way_1shot)")
    parser.add_argument("--against", default=CLASSIFIER, help="method that the others are compared with")
    parser.add_argument("--part", help="1/4: every fourth run, from the second; then no pages")
    parser.add_argument("--only_pages", action="store_true", help="of what is there")
    parser.add_argument("--output", type=expanded, default=Path("matrix"), help="folder for the pages (matrix)")
    options = parser.parse_args(arguments[:end])
    _, overrides = parse_command_line(arguments[end + 1 :])
    lists = {domain: task_list_of(domain, options.list) for domain in map(folder_of, options.domains)}
    runs = runs_of(options.methods, list(lists), options.seeds, overrides)
    place, count = part_of(options.part)
    own_runs = [] if options.only_pages else list(runs.values())[place::count]
    for number, run in enumerate(own_runs, start=1):
        say(f"{number}/{len(own_runs)}: {run.command}")
        carry_out(run, lists)
    if options.part is None:
        cells = list(cells_of(runs, {domain: tag_of(path, domain) for domain, path in lists.items()}))
        effects = effects_of(cells, options.against)
        pages = write_pages(cells, effects, list(lists), diversities(runs), options.list, options.output)
        print(pages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
