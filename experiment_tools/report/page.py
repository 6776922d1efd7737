"""Write `visual_outputs/report.html`, one file that shows what a run did: python -m experiment_tools.report RUN_FOLDER

It holds pictures, style and script itself and loads nothing from anywhere; what a run has not written (yet) is said
in its place. Needs no torch, so that it can be made beside a training run; `experiment_tools.report.observer` starts
it so, with --watch.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from experiment_parts.evaluation.test_results import same_classes_text
from experiment_tools.parts.pages import Section, page_html
from experiment_tools.parts.run_reading import Run, read_whole_run
from experiment_tools.parts.settings import command_of
from experiment_tools.report import layers as report_layers
from experiment_tools.report import learning as report_learning
from experiment_tools.report import machine as report_machine
from experiment_tools.report import results as report_results
from experiment_tools.report.verdict import findings
from utils.files.atomic_files import refuse_link, storage_errors, write_bytes_atomically

Part = TypeVar("Part")
REPORT = Path("visual_outputs") / "report.html"
FOOTER = "Written from the files of the run folder; accuracy is the share of right answers."
LARGEST_BYTES = 2_000_000
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, AssertionError)
"""What reading a file with another content than this release writes may raise."""

SECTIONS: tuple[Callable[[Run], Section], ...] = (
    report_learning.learning, report_learning.adaptation, report_results.episodes, report_results.test_answers,
    report_layers.inner_rates, report_layers.gradients, report_layers.batch_norm, report_learning.outer_loop,
    report_machine.time_and_memory, report_machine.settings, report_machine.environment,
)  # fmt: skip


def build_sections(run: Run) -> list[Section]:
    """Every section; one whose files hold something unexpected says so instead of being drawn."""
    return [_attempt(partial(build, run), partial(_not_drawn, build.__name__)) for build in SECTIONS]


def _attempt(build: Callable[[], Part], otherwise: Callable[[Exception], Part]) -> Part:
    try:
        return build()
    except DAMAGED as error:
        return otherwise(error)


def _not_drawn(name: str, error: Exception) -> Section:
    name = name.replace("_", "-")
    reason = f"the run's files hold something unexpected ({type(error).__name__}: {error})"
    return Section(name, name.replace("-", " ").capitalize(), "").lacking(f"This part could not be drawn: {reason}.")


def _no_head(run: Run, error: Exception) -> dict[str, Any]:
    run.problems.append(f"the result cannot be shown ({type(error).__name__}: {error})")
    shown = {"state": "damaged", "finished": False, "value": "–", "interval": "", "what": "the result cannot be shown"}
    return {**shown, "tiles": [], "protocol": []}


def report_html(run: Run) -> str:
    """Return the whole page.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    head = _attempt(partial(report_results.headline, run), partial(_no_head, run))
    verdict = _attempt(partial(findings, run.rows, run.epochs, run.config, run.test), lambda _: [])
    command = _attempt(partial(command_of, run), lambda _: "")
    sections = build_sections(run)
    problems = [f"Tested on other data than trained on: {line}" for line in run.other_data] + run.problems
    if same := _attempt(partial(same_classes_text, [run.test] if run.test else []), lambda _: ""):
        problems.append(f"In the test {same}.")
    return page_html(
        run.experiment_name, sections, head=head, verdict=verdict, command=command, problems=problems,
        footer=FOOTER, as_of=time.strftime("%Y-%m-%d %H:%M", time.localtime(run.modified)) if run.modified else "",
    )  # fmt: skip


def write_report(run_folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run folder and return where it is: at `path`, else in visual_outputs/.

    Raises:
        ConfigError: it is no run folder, or jinja2 is missing.
        StorageError: it cannot be written, or visual_outputs/ is a link, through which nothing is written.
    """
    if path is None:
        refuse_link((run_folder / REPORT).parent)
    page = report_html(read_whole_run(run_folder)).encode("utf-8", "replace")
    if len(page) > LARGEST_BYTES:  # pictures are the only thing that can be so large
        run = read_whole_run(run_folder)
        run.examples = ({}, {})
        run.problems.append(
            "the validation episodes are left out: with their images the report would be larger than 2 MB"
        )
        page = report_html(run).encode("utf-8", "replace")
    path = path or run_folder / REPORT
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, page)
    return path
