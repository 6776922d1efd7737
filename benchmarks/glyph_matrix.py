"""Train on each domain, test on all: the matrix of accuracies per method, as a table and a heat map.

    python benchmarks/glyph_matrix.py --domains glyphs_scripts ... --methods omniglot_maml_5way_1shot_seed0 ...
        [--seeds 0 1] [--list 5way_1shot] [--part 1/4] [--output FOLDER] [-- --total_epochs 5 ...]

A domain is a dataset folder that is split already, with its fixed tasks in `<folder>_tasks/` (python -m
utils.prepare_dataset tasks). A method is a config in experiment_config/, one's own too; what stands after `--` goes to
every run. Runs are `EXPERIMENTS_DIR/matrix_<method>_<domain>_<seed>`: finished ones cost a second, interrupted ones are
resumed, so the command can be killed and given again, or given in parts (a SLURM array: --part $SLURM_ARRAY_TASK_ID/4);
without --part it ends with the pages, from what is there.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.trained_runs import TrainedRun, say, table, with_interval
from experiment_tools.parts.pages import Section, Table, page_html
from experiment_tools.parts.svg import Markup, element, escaped, ramp
from utils.config.command_line import parse_command_line
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.metrics import Summary, summarise
from utils.paths import dataset_root, expanded

OVERRIDES = {"sets_are_pre_split": True, "indexes_of_folders_indicating_class": [-3, -2], "num_target_samples": 3}
"""Of every run: the folder format, and the queries that a class of four images leaves for one shot."""
STEPS = 20
"""Colours of the heat map, from 0 to 1."""
CELL, LABEL, HEAD = 92, 150, 26


@dataclass(frozen=True)
class Cell:
    """A method trained on one domain and tested on another: one run per seed."""

    method: str
    trained_on: str
    tested_on: str
    means: tuple[float, ...]
    digest: str

    @property
    def summary(self) -> Summary:
        """Over seeds, where there are several."""
        return summarise(self.means)

    @property
    def text(self) -> str:
        """Mean with the 95 % interval over seeds."""
        found = self.summary
        return f"{100 * found.mean:.2f}" if found.ci95 is None else with_interval(found.mean, found.ci95)


def runs_of(
    methods: Sequence[str], domains: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any]
) -> dict[tuple[str, str, int], TrainedRun]:
    """Return (method, domain, seed) -> the run that trains it."""
    return {
        (method, domain, seed): TrainedRun(
            method,
            f"matrix_{method}_{domain}_seed{seed}",
            OVERRIDES | {"dataset_name": domain, "dataset_path": domain, "train_seed": seed} | dict(overrides),
        )
        for method, domain, seed in itertools.product(methods, domains, seeds)
    }


def task_list_of(domain: str, name: str) -> Path:
    """Return the file of a domain's fixed tasks.

    Raises:
        ConfigError: it is not there.
    """
    path = dataset_root() / f"{domain}_tasks" / f"{name}.tasks.json"
    if not path.is_file():
        command = f"python -m utils.prepare_dataset tasks --domain {domain.removeprefix('glyphs_')}"
        raise ConfigError(f"{path}: no task list. Run: {command}")
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


def cells_of(runs: Mapping[tuple[str, str, int], TrainedRun], lists: Mapping[str, Path]) -> Iterator[Cell]:
    """Read the cells of which a run has been tested."""
    keys = dict.fromkeys((method, domain) for method, domain, _ in runs)
    for (method, trained_on), (tested_on, path) in itertools.product(keys, lists.items()):
        of_cell = [run for (*key, _), run in runs.items() if tuple(key) == (method, trained_on)]
        found = [test for run in of_cell if (test := run.read(f"test_summary_{tag_of(path, tested_on)}.json"))]
        if found:
            means = tuple(test["test_accuracy_mean"] for test in found)
            yield Cell(method, trained_on, tested_on, means, str(found[0].get("task_list_digest")))


def heat_map(cells: Sequence[Cell], domains: Sequence[str]) -> Markup:
    """Draw the cells of one method: a row per training domain, a column per test domain."""
    size = LABEL + CELL * len(domains), HEAD + CELL // 2 * len(domains)
    places = {domain: place for place, domain in enumerate(domains)}
    parts = [
        element("text", escaped(domain.removeprefix("glyphs_")), x=x, y=y, text_anchor=anchor)
        for domain, place in places.items()
        for x, y, anchor in (
            (LABEL + CELL * (place + 0.5), HEAD - 8, "middle"),
            (LABEL - 8, HEAD + CELL // 2 * (place + 0.6), "end"),
        )
    ]
    for cell in cells:
        x, y = LABEL + CELL * places[cell.tested_on], HEAD + CELL // 2 * places[cell.trained_on]
        shade = ramp(round(STEPS * cell.summary.mean), STEPS + 1)
        title = element("title", escaped(f"{cell.trained_on} to {cell.tested_on}, {len(cell.means)} seeds"))
        text = element("text", escaped(cell.text), x=x + CELL / 2, y=y + 27, text_anchor="middle", fill="var(--ink)")
        parts += [element("rect", title, x=x, y=y, width=CELL - 2, height=CELL // 2 - 2, fill=shade), text]
    label = "accuracy, a row per training domain and a column per test domain"
    return Markup(element("svg", "".join(parts), viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=label))


def write_pages(cells: Sequence[Cell], domains: Sequence[str], list_name: str, folder: Path) -> str:
    """Write matrix.html, .md and .json; return the Markdown."""
    head = ["method", "trained on", *(f"on {domain}" for domain in domains)]
    found = {(cell.method, cell.trained_on, cell.tested_on): cell for cell in cells}
    rows = [
        [*key, *(found[(*key, domain)].text if (*key, domain) in found else "" for domain in domains)]
        for key in dict.fromkeys((cell.method, cell.trained_on) for cell in cells)
    ]
    lead = f"Accuracy in % on the fixed tasks {list_name} of each domain, with the 95 % interval over seeds."
    section = Section("matrix", "Train on a row, test on a column", lead)
    for method in dict.fromkeys(cell.method for cell in cells):
        section.add(method, heat_map([cell for cell in cells if cell.method == method], domains), size="half")
    section.add("All cells", Table(rows, head, numbers=True), kind="table", size="wide")
    digests = sorted({f"{cell.tested_on} {cell.digest}" for cell in cells})
    section.add("Digests of the tasks", digests, kind="lines", size="wide")
    folder.mkdir(parents=True, exist_ok=True)
    markdown = table(head, rows)
    values = [vars(cell) for cell in cells]
    for name, text in (
        ("matrix.html", page_html("Matrix of domains", [section])),
        ("matrix.md", markdown),
        ("matrix.json", json.dumps(values, indent=1)),
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
    parser.add_argument("--domains", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--list", default="5way_1shot")
    parser.add_argument("--part")
    parser.add_argument("--output", type=expanded, default=Path("matrix"))
    options = parser.parse_args(arguments[:end])
    _, overrides = parse_command_line(arguments[end + 1 :])
    lists = {domain: task_list_of(domain, options.list) for domain in options.domains}
    runs = runs_of(options.methods, options.domains, options.seeds, overrides)
    place, count = part_of(options.part)
    own_runs = list(runs.values())[place::count]
    for number, run in enumerate(own_runs, start=1):
        say(f"{number}/{len(own_runs)}: {run.command}")
        carry_out(run, lists)
    if options.part is None:
        print(write_pages(list(cells_of(runs, lists)), options.domains, options.list, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
