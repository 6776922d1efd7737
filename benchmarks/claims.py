"""What other MAML projects claim, put to the test on Omniglot, 5-way 1-shot, on one short budget.

    python benchmarks/claims.py [--only protocols tasks_6000 outer_rate inner_adam pool]

Trains what is not trained yet (`EXPERIMENTS_DIR/claims_<name>`; interrupted runs are resumed) on the Omniglot in
`DATASET_DIR`, and prints the accuracies, the verdict on each claim and the commands, from the runs' own files. What
is not trained yet says so.

A difference between two trainings is held against the intervals over test tasks and `TRAINING_NOISE`, by which two
seeds of one setting may differ; one between two tests of one training against the intervals alone.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.trained_runs import TrainedRun, say, table, with_interval

BUDGET = {
    "total_epochs": 2,
    "total_iter_per_epoch": 150,
    "batch_size": 4,
    "cnn_num_filters": 32,
    "number_of_training_steps_per_iter": 3,
    "number_of_evaluation_steps_per_iter": 3,
    "num_evaluation_tasks": 600,
    "validate_every_epochs": 2,
    "max_models_to_save": 1,
    "diagnostics_every_epochs": 0,
    "report_every_s": 0,
}
"""300 iterations of 4 tasks, 3 inner steps, 32 filters; 600 test tasks."""
QUERIES = {"test_num_target_samples": [1, 5, 15]}
TRAINED = {"transductive": "transductive", "inductive": "support"}
"""How it is trained -> batch_norm_statistics."""
TRAINING_NOISE = 0.02
LARGE_TEST = 6000
LARGE_TEST_HEADING = [
    "run", f"{LARGE_TEST} tasks", "the first 600", "the others", "difference", "ten times 600",
    "600 tasks are biased (fmu2)",
]  # fmt: skip


def _run(name: str, template: str = "maml", **overrides) -> TrainedRun:
    return TrainedRun(f"omniglot_{template}_5way_1shot_seed0", f"claims_{name}", BUDGET | overrides)


def _runs() -> dict[str, dict[str, TrainedRun]]:
    """Group -> name -> run."""
    groups: dict[str, dict[str, TrainedRun]] = {
        "protocols": {},
        "tasks_6000": {},
        "outer_rate": {},
        "inner_adam": {},
        "pool": {},
    }
    adam = {"inner_loop_optimizer": "adam", "init_inner_loop_learning_rate": 0.01}
    long = {"total_epochs": 4, "total_iter_per_epoch": 400, "second_order": False}
    methods = {
        "maml": ("maml", {}), "first_order": ("maml", {"second_order": False}), "anil": ("anil", {}),
        "task_norm": ("maml", {"norm_layer": "task_norm"}),
    }  # fmt: skip
    for method, (template, overrides) in methods.items():
        for kind, statistics in TRAINED.items():
            groups["protocols"][f"{method}_{kind}"] = _run(
                f"{method}_{kind}", template, **overrides, batch_norm_statistics=statistics, **QUERIES
            )
    groups["protocols"]["maml_episodic"] = _run("maml_episodic", batch_norm_statistics="episodic", **QUERIES)
    for kind, statistics in TRAINED.items():
        groups["outer_rate"][f"rate_1e-4_{kind}"] = _run(
            f"rate_1e-4_{kind}", batch_norm_statistics=statistics, meta_learning_rate=0.0001, min_learning_rate=0.0001
        )
        groups["inner_adam"][f"adam_{kind}"] = _run(f"adam_{kind}", batch_norm_statistics=statistics, **adam)
        groups["inner_adam"][f"adam_clipped_{kind}"] = _run(
            f"adam_clipped_{kind}", batch_norm_statistics=statistics, **adam, inner_loop_gradient_clip_norm=1.0
        )
    groups["pool"]["pool_1088"] = _run("pool_1088", **long, number_of_train_tasks=1088)
    groups["pool"]["pool_unlimited"] = _run("pool_unlimited", **long)
    return groups


RUNS = _runs()
ALL_RUNS = {name: run for group in RUNS.values() for name, run in group.items()}
LARGE_TESTS = ("maml_transductive", "maml_inductive")
"""Runs that are also tested on 6,000 tasks."""


@dataclass(frozen=True)
class Measured:
    """An accuracy and the half width of its 95 % interval."""

    mean: float
    half_width: float


def tested(name: str, statistics: str, queries: int = 1) -> Measured | None:
    """Return the test of a run under a kind of batch-norm statistics; None while there is none."""
    for result in (
        result
        for tag in ("", "_other_statistics")
        for result in (ALL_RUNS[name].read(f"test_summary{tag}.json") or {"results": []})["results"]
    ):
        if (result["protocol"]["statistics"], result["protocol"]["queries"]) == (statistics, queries):
            return Measured(result["test_accuracy_mean"], result["test_accuracy_ci95"])
    return None


@dataclass(frozen=True)
class Claim:
    """The first of two tests is claimed to be lower than the second, by `claimed` (accuracy) where a size is given."""

    text: str
    first: tuple[str, str, int]
    second: tuple[str, str, int]
    claimed: float | None = None

    def row(self) -> list[str]:
        """Claim, both accuracies, difference and verdict."""
        first, second = tested(*self.first), tested(*self.second)
        if first is None or second is None:
            return [self.text, "not run", "not run", "", "not decidable here: budget"]
        noise = TRAINING_NOISE if self.first[0] != self.second[0] else 0.0
        difference, width = first.mean - second.mean, math.hypot(first.half_width, second.half_width)
        return [
            self.text, with_interval(first.mean, first.half_width), with_interval(second.mean, second.half_width),
            with_interval(difference, width), verdict(difference, width + noise, self.claimed),
        ]  # fmt: skip


def verdict(difference: float, width: float, claimed: float | None) -> str:
    """Return what a difference, known to `width`, says about the claim that it is negative (about `claimed`)."""
    if difference + width < 0:
        return "held" if claimed is None or difference - width <= claimed else "held, but smaller"
    too_small = difference - width > (claimed or 0.0)
    return "not held" if too_small else "not decidable here"


WORSE = (
    ("ANIL is worse than MAML (fmu2: drops where inductive)", "anil", "maml", None),
    ("batch norm is worse than TaskNorm", "maml", "task_norm", None),
    ("outer rate 1e-3 is worse than 1e-4 (hoyeoplee)", "maml", "rate_1e-4", None),
    ("inner Adam without clipping is worse than with", "adam", "adam_clipped", None),
    ("inner Adam is worse than gradient descent", "adam", "maml", None),
)
"""Claims about runs that are there of both kinds: text, the two of them, and by how much."""


def claims() -> list[Claim]:
    """Return everything that is asked of the runs."""
    asked = [
        Claim("inductive training and test is about 4 points worse than transductive (fmu2)",
              ("maml_inductive", "support", 1), ("maml_transductive", "transductive", 1), -0.04),
        Claim("the same with the moving average that fmu2 has",
              ("maml_episodic", "episodic", 1), ("maml_transductive", "transductive", 1), -0.04),
        Claim("a transductively trained network is worse in an inductive test",
              ("maml_transductive", "support", 1), ("maml_transductive", "transductive", 1)),
    ]  # fmt: skip
    for method in ("maml", "first_order", "anil", "task_norm"):
        trained = f"{method}_transductive"
        asked += [
            Claim(f"{method}, transductive: {queries} queries are {points} points worse than 1 (fmu2)",
                  (trained, "transductive", queries), (trained, "transductive", 1), -points / 100)
            for queries, points in ((5, 1.5), (15, 2.5))
        ]  # fmt: skip
    for kind, statistics in TRAINED.items():
        size, claimed = ("at least 10 points ", -0.1) if kind == "inductive" else ("", None)
        first_order = f"first order is {size}worse than second (fmu2: collapses where inductive)"
        asked += [
            Claim(f"{kind}: {text}", (f"{first}_{kind}", statistics, 1), (f"{second}_{kind}", statistics, 1), points)
            for text, first, second, points in ((first_order, "first_order", "maml", claimed), *WORSE)
        ]
    asked.append(Claim("1,088 fixed training tasks are worse than unlimited ones (Lightning): transductive test",
                       ("pool_1088", "transductive", 1), ("pool_unlimited", "transductive", 1)))  # fmt: skip
    return asked


def accuracy_rows() -> list[list[str]]:
    """Return every run under every test: name, statistics, and the accuracy with 1, 5 and 15 queries."""
    rows = []
    for name in ALL_RUNS:
        for statistics in ("transductive", "support", "episodic"):
            found = [tested(name, statistics, queries) for queries in (1, 5, 15)]
            if any(found):
                rows.append(
                    [name, statistics, *(with_interval(one.mean, one.half_width) if one else "" for one in found)]
                )
    return rows


def large_test_rows() -> list[list[str]]:
    """Return the accuracy on 6,000 tasks, on the first 600 and on the others, what that says of a bias, and the range
    of ten times 600.
    """
    from safetensors.torch import load_file

    from utils.metrics import summarise, task_scores

    rows = []
    for name in LARGE_TESTS:
        path = ALL_RUNS[name].folder / "logs" / f"test_predictions_{LARGE_TEST}.safetensors"
        if not path.exists():
            rows.append([name, "not run", "", "", "", "", "not decidable here: budget"])
            continue
        arrays = load_file(path)
        (key,) = (key for key in arrays if key.startswith("scores."))
        scores = task_scores(arrays[key][0].double(), arrays["query_labels"])
        whole, first, others = (summarise(part.tolist()) for part in (scores, scores[:600], scores[600:]))
        parts = scores.view(10, 600).mean(dim=1).tolist()
        inside = sum(abs(part - whole.mean) <= first.ci95 for part in parts)
        difference, width = first.mean - others.mean, math.hypot(first.ci95, others.ci95)
        rows.append(
            [
                name,
                *(with_interval(part.mean, part.ci95) for part in (whole, first, others)),
                with_interval(difference, width),
                f"{100 * min(parts):.2f} to {100 * max(parts):.2f}, {inside} of 10 within the interval of 600",
                "held" if abs(difference) > width else "not held",
            ]
        )
    return rows


def training_rows() -> list[list[str]]:
    """Return what the runs with a fixed pool saw: accuracy on training and validation tasks, per epoch."""
    rows = []
    for name in RUNS["pool"]:
        for epoch in (ALL_RUNS[name].read("curves.json") or {"epochs": []})["epochs"]:
            accuracies = [
                (epoch.get(part) or {"query_accuracy": [None]})["query_accuracy"][-1] for part in ("train", "val")
            ]
            rows.append(
                [name, str(epoch["epoch"]), *("" if value is None else f"{100 * value:.2f}" for value in accuracies)]
            )
    return rows


def main() -> None:
    """Train and test the groups asked for, then print everything that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=list(RUNS),
        default=list(RUNS),
        help="groups of runs to carry out; none: only print",
    )
    options = parser.parse_args()
    for name, run in ((name, run) for group in options.only for name, run in RUNS[group].items()):
        say(f"{name}: {run.command}")
        run.carry_out()
        other = {"transductive": "support", "support": "transductive"}.get(run.overrides.get("batch_norm_statistics"))
        if other and tested(name, other) is None:
            run.carry_out(
                evaluate_on_test_set_only=True,
                tag="other_statistics",
                test_batch_norm_statistics=other,
                test_num_target_samples=1,
            )
    if "tasks_6000" in options.only:
        for name in LARGE_TESTS:
            if not (ALL_RUNS[name].folder / "logs" / f"test_summary_{LARGE_TEST}.json").exists():
                say(f"{name}: {LARGE_TEST} test tasks")
                ALL_RUNS[name].carry_out(
                    evaluate_on_test_set_only=True,
                    tag=LARGE_TEST,
                    num_evaluation_tasks=LARGE_TEST,
                    test_num_target_samples=1,
                )
    print("5-way 1-shot; accuracy in per cent with its 95 % interval over test tasks\n")
    print(table(["trained", "tested", "1 query", "5 queries", "15 queries"], accuracy_rows()))
    print(table(LARGE_TEST_HEADING, large_test_rows()))
    print(table(["trained", "epoch", "training tasks", "validation tasks"], training_rows()))
    print(table(["claim", "first", "second", "difference", "verdict"], [claim.row() for claim in claims()]))
    print("\n".join(f"{name}: {run.command}" for name, run in ALL_RUNS.items()))


if __name__ == "__main__":
    main()
