"""What benchmarks say of themselves, and what those of trained runs conclude; the measurements themselves are run
by hand.
"""

import ast
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from benchmarks import baseline_cost, claims, observation_cost, speedrun
from benchmarks.claims import verdict
from benchmarks.methods_on_omniglot import DATASETS, METHODS, row_of, run_of
from benchmarks.parts.altered_files import measure_altered_images, measure_swapped_checkpoints
from benchmarks.parts.measuring import measure_config
from benchmarks.reliability import ROW_OF_SAVING, replace_rows
from utils.config import load_config
from utils.config.command_line import parse_command_line
from utils.paths import REPOSITORY_ROOT

BENCHMARKS = sorted(path.stem for path in (REPOSITORY_ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_how_it_is_started_or_of_which_it_is_a_part(name):
    text = ast.get_docstring(ast.parse((REPOSITORY_ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")))
    wholes = re.findall(r"`(\w+)\.py`", text.splitlines()[0]) if text.startswith("Part of ") else []
    if wholes:
        assert all(
            f"benchmarks.{name} import" in (REPOSITORY_ROOT / "benchmarks" / f"{whole}.py").read_text(encoding="utf-8")
            for whole in wholes
        )
    else:
        assert f"python benchmarks/{name}.py" in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inner_loop_memory", ["--backbone", "--image_size", "--steps"]),
        ("observation_cost", ["CONFIG.json", "--key value"]),
        ("baseline_cost", ["CONFIG.json", "--key value"]),
    ],
)
def test_help_says_what_a_benchmark_does_and_its_options_without_torch(name, options, tmp_path):
    script = str(REPOSITORY_ROOT / "benchmarks" / f"{name}.py")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported, which takes seconds')")
    command = [sys.executable, script, "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python benchmarks/{name}.py" in done.stdout and all(option in done.stdout for option in options)


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "rows"),
    [(baseline_cost, ["without", "with the rows"]), (observation_cost, ["order a report", "a look"])],
)
def test_a_benchmark_of_any_config_measures_it(module, rows, tiny_dataset, tmp_path, capsys):
    tiny_dataset("tiny", n_classes=12)
    values = {
        "experiment_name": "measured", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
        "cnn_num_filters": 4, "num_classes_per_set": 3, "num_target_samples": 2, "batch_size": 2, "gpu_to_use": "cpu",
        "num_evaluation_tasks": 2, "number_of_ensemble_models": 1, "num_dataprovider_workers": 0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    words = [str(tmp_path / "config.json"), "--total_epochs", "1"]
    assert measure_config(words, "", module.measure, module.table) == 0
    printed = capsys.readouterr().out
    assert all(any(line.startswith(f"{row}  ") for line in printed.splitlines()) for row in rows), printed


@pytest.mark.parametrize(
    ("difference", "width", "claimed", "text"),
    [
        (-0.05, 0.02, -0.04, "held"),
        (-0.05, 0.02, None, "held"),
        (-0.01, 0.005, -0.04, "held, but smaller"),
        (-0.01, 0.02, -0.04, "not held"),
        (0.05, 0.02, None, "not held"),
        (0.01, 0.02, None, "not decidable here"),
        (-0.03, 0.04, -0.04, "not decidable here"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(difference, width, claimed, text):
    assert verdict(difference, width, claimed) == text


def test_every_run_of_a_benchmark_is_a_valid_config_and_its_command_says_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    of_methods = itertools.starmap(run_of, itertools.product(METHODS, DATASETS, (0, 1)))
    runs = [*of_methods, *claims.ALL_RUNS.values()]
    assert len({run.experiment_name for run in runs}) == len(runs)
    for run in runs:
        arguments = run.command.split()
        script, rest = arguments[1], arguments[2:]
        path, overrides = parse_command_line(
            ["--name_of_args_json_file", script.replace("scripts", "config").replace(".sh", ".json"), *rest]
        )
        config = load_config(path, overrides)
        values = config.to_json_dict()
        assert {key: values[key] for key in run.overrides if key != "test_num_target_samples"} == {
            key: value for key, value in run.overrides.items() if key != "test_num_target_samples"
        }


def test_a_row_of_the_methods_has_the_mean_over_seeds_and_what_it_is_above_maml_on_the_same_tasks():
    method, maml = np.array([[1.0, 0.0, 1.0, 0.4], [0.8, 0.4, 1.0, 0.2]]), np.array([[0.8, 0.2, 0.8, 0.2]] * 2)
    of_tasks, above = method.mean(axis=0), method.mean(axis=0) - 0.5 * (maml[0] + maml[1])
    half = [100 * stats.sem(values) * stats.t.ppf(0.975, 3) for values in (of_tasks, above)]
    assert row_of("anil", method, maml, (81.7, 5.55), "bash a.sh") == [
        "ANIL", f"60.00 ± {half[0]:.2f}", "60.00 60.00", f"10.00 ± {half[1]:.2f}", "82", "5.5", "`bash a.sh`"
    ]  # fmt: skip
    assert row_of("reptile", method, maml, None, "")[3:6] == ["-", "not measured", "not measured"]
    assert row_of("anil", method, np.empty(0), None, "")[3] == row_of("anil", method, maml[:, :2], None, "")[3] == "-"


def test_the_template_of_the_record_is_the_recipe_of_the_speedrun():
    """But for what is validated and kept, which trains nothing."""
    free = {*speedrun.ALWAYS, "experiment_name", "initial_weights", "val_num_classes_per_set", "validate_every_epochs"}
    problem = speedrun.PROBLEMS["omniglot_5way"]
    stages = speedrun.RECIPES[speedrun.RECORD].stages
    for name, stage in zip(("omniglot_fast_body_seed1", "omniglot_fast_5way_1shot_seed1"), stages, strict=True):
        template, recipe = (
            load_config(REPOSITORY_ROOT / "experiment_config" / f"{file}.json", keys).to_json_dict()
            for file, keys in ((name, {}), (problem.config_name, {"train_seed": 1} | problem.overrides | stage))
        )
        assert {key for key in template if template[key] != recipe.get(key)} - free == set()
        assert template.keys() - recipe.keys() <= free
    first = load_config(REPOSITORY_ROOT / "experiment_config" / "omniglot_fast_body_seed1.json", {})
    assert (
        template["initial_weights"]
        == f"{first.experiment_name}/saved_models/train_model_{first.total_epochs}.safetensors"
    )


def test_the_speedrun_judges_its_three_seeds_alone_and_each_row_has_its_own(tmp_path, monkeypatch, capsys):
    def finish(recipe, problem, seed, archive):
        assert archive == tmp_path / "omniglot_dataset.tar.gz"  # a link keeps its own name
        row = {"difference": -0.5, "difference_ci95": 0.01}
        test = {"test_accuracy_mean": 0.98, "test_accuracy_ci95": 0.01, "protocol": {"statistics": "support"}}
        baselines = {"rows": {"after_0_steps": row}}
        return speedrun.Finish(seed, 100.0, 0.985, test | {"results": [test], "baselines": baselines})

    monkeypatch.setattr(speedrun, "carry_out", finish)
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    (tmp_path / "omniglot_dataset.md5").write_text("of the archive")
    assert speedrun.main(["--seeds", "7"]) == 2
    assert f"{tmp_path}: no archive omniglot_dataset{{.tar.bz2," in capsys.readouterr().err
    (tmp_path / "stored").write_bytes(b"")
    (tmp_path / "omniglot_dataset.tar.gz").symlink_to(tmp_path / "stored")
    for seeds, judged in ((["7", "9"], "not judged: needs seeds 0 1 2"), (["2", "0", "1"], "counts")):
        assert speedrun.main(["--seeds", *seeds]) == 0
        rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
        rows = [row for row in rows if "warm_start" in row]
        assert [row[2] for row in rows] == [*seeds, "all"] and judged in rows[-1]


def test_a_claim_whose_runs_are_missing_is_not_decided(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    rows = [claim.row() for claim in claims.claims()]
    assert {row[-1] for row in rows} == {"not decidable here: budget"} and claims.accuracy_rows() == []


def test_rows_of_the_report_take_their_place_and_new_ones_come_before_the_last():
    save = f"| {ROW_OF_SAVING} (2 MiB) | 1 | 9 ms |"
    report = f"# Title\n\n| what | tried | came of it |\n| a | 1 | 1 |\n{save}\n\nEnd\n"
    expected = report.replace("| a | 1 | 1 |", "| a | 2 | 2 |\n| b | 3 | 3 |")
    assert replace_rows(report, ["| a | 2 | 2 |", "| b | 3 | 3 |"]) == expected
    assert replace_rows(expected, ["| b | 3 | 3 |", save]) == expected
    with pytest.raises(ValueError):
        replace_rows("# no report\n", ["| b | 3 | 3 |"])


def test_what_alters_a_run_s_files_is_found_every_time(tmp_path):
    assert [row.split("|")[3].strip() for row in measure_altered_images(tmp_path / "images", 5)] == [
        "5 times the right images, read anew"
    ] * 2
    assert measure_swapped_checkpoints(tmp_path / "swapped")[0].endswith("| 25 | 25 times not used |")
