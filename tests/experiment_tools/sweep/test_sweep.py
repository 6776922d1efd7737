"""Sweeps: the file is checked before anything runs, points are reproducible, trials run side by side, are pruned,
and go on after a stop.
"""

import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import yaml

from experiment_tools.parts.run_reading import list_runs
from experiment_tools.sweep import __main__ as sweep_command
from experiment_tools.sweep.file import Choice, Range, read_sweep, trial_config, wandb_yaml
from experiment_tools.sweep.results import parallel_coordinates, place, score_text, table
from experiment_tools.sweep.trials import Trial, best_trial, is_hopeless, load_trials, next_point, save_trials
from utils.config import check_config
from utils.errors import ConfigError, ExperimentInUseError, Interrupted
from utils.machine.stop_signals import StopSignals
from utils.paths import REPOSITORY_ROOT

FILE = """
template = "tiny.json"
method = "{method}"
{more}
[fixed]
total_epochs = 4
shots = 5

[parameters]
meta_learning_rate = {rate}
number_of_training_steps_per_iter = {steps}
"""
RATE, STEPS = "{ low = 1e-4, high = 1e-2, log = true }", "{ low = 1, high = 4 }"


@pytest.fixture
def write(tmp_path):
    """`write(method="random", more="", rate=..., steps=...)` -> path of a sweep file beside its template."""
    (tmp_path / "tiny.json").write_text(
        '{"experiment_name": "$experiment_name$", "num_samples_per_class": $shots$, "total_epochs": 9}'
    )
    (tmp_path / "values.toml").write_text('[defaults]\nshots = 1\n["tiny"]\nshots = [2, 3]\n')

    def write(method="random", more="", rate=RATE, steps=STEPS):
        path = tmp_path / "search.sweep.toml"
        path.write_text(FILE.format(method=method, more=more, rate=rate, steps=steps))
        return path

    return write


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_sweep_takes_its_template_with_what_is_fixed(write):
    sweep = read_sweep(write())
    config = check_config(trial_config(sweep, "trial_000", {"meta_learning_rate": 0.005}), "test")
    assert not config.test_after_training
    assert (config.experiment_name, config.num_samples_per_class, config.total_epochs) == ("trial_000", 5, 4)
    assert (config.meta_learning_rate, sweep.name, sweep.trials) == (0.005, "search", 20)


def test_without_a_choice_the_first_value_of_the_template_s_variables_is_taken(write, tmp_path):
    path = write()
    path.write_text(path.read_text().replace("shots = 5\n", ""))
    assert read_sweep(path).config["num_samples_per_class"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("meta_learning_rate", "meta_lerning_rate"),
            r'\[parameters\]: unknown key "meta_lerning_rate"; did you mean "meta_learning_rate"\?',
        ),
        (("method =", "metod ="), r'unknown entry "metod"; did you mean "method"\?'),
        (('"random"', '"bayes"'), r'"method" is "bayes", but must be one of grid, random, tpe'),
        (
            ('"random"', '"grid"'),
            r'"meta_learning_rate" is a range, of which a grid cannot try every value; give a list',
        ),
        (("low = 1,", "low = 5,"), r'"number_of_training_steps_per_iter" needs numbers with low < high, not 5 and 4'),
        (("low = 1e-4", "low = 0"), r'"meta_learning_rate" cannot be logarithmic from 0 on'),
        (
            ("low = 1,", "low = -1,"),
            r'\[parameters\]: "number_of_training_steps_per_iter" is -1, but must be: greater than or equal to 0',
        ),
        (
            ("total_epochs = 4", "total_epochs = 0"),
            r'\[fixed\]: "total_epochs" is 0, but must be: greater than or equal to 1',
        ),
        (
            ("shots = 5", "shots = 5\ntest_curve = true"),
            r'\[fixed\]: "test_curve" is made after training, but "test_after_training" is false',
        ),
        (("shots = 5", "shoots = 5"), r'\[fixed\]: unknown key "shoots"'),
        (("meta_learning_rate", "experiment_name"), r'"experiment_name" is set by the sweep itself; leave it out'),
        (("tiny.json", "none.json"), r"none.json: there is no such template"),
        (
            ("[parameters]", "[other]"),
            r'"parameters" is missing: a table \[parameters\] of config keys and the values to try',
        ),
        (("{ low = 1,", "[] #"), r'"number_of_training_steps_per_iter" has no values'),
        (("[fixed]", "[fixed"), r"not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_sweep_file_is_said_before_anything_runs(write, change, message, capsys):
    path = write()
    text = path.read_text()
    path.write_text(text.replace(*change, 1))
    assert path.read_text() != text
    assert sweep_command.main([str(path)]) == 1
    assert re.search(rf"search\.sweep\.toml.*{message}|{message}", capsys.readouterr().err)


def test_every_sweep_file_of_this_checkout_is_in_order():
    paths = sorted((REPOSITORY_ROOT / "experiment_template_config").glob("*.sweep.toml"))
    assert len(paths) >= 2
    for path in paths:
        sweep = read_sweep(path)
        for point in sweep.points(min(sweep.trials, 20)):
            check_config(trial_config(sweep, "x", point), path.name)


# --- points -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once(write):
    sweep = read_sweep(write("grid", rate="[0.1, 0.01]", steps="[1, 2, 3]"))
    points = sweep.points(sweep.trials)
    assert sweep.trials == 6
    assert {tuple(point.values()) for point in points} == {(rate, steps) for rate in (0.1, 0.01) for steps in (1, 2, 3)}
    assert read_sweep(write("grid", "trials = 4", "[0.1, 0.01]", "[1, 2, 3]")).trials == 4


def test_random_points_are_the_same_at_every_call_and_spread_over_their_ranges(write):
    sweep = read_sweep(write(more="seed = 3"))
    points = sweep.points(400)
    assert sweep.points(7) == points[:7]
    assert points != read_sweep(write(more="seed = 4")).points(400)
    rates, steps = ([point[name] for point in points] for name in sweep.parameters)
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 0.4 < np.mean(np.array(rates) < 1e-3) < 0.6  # half of the logarithmic way
    assert set(steps) == {1, 2, 3, 4} and all(type(step) is int for step in steps)


def test_tpe_finds_a_peak_better_than_chance_and_needs_no_memory_but_the_trials(write):
    sweep = read_sweep(write("tpe", "trials = 24"))
    random = read_sweep(write("random", "trials = 24"))

    def quality(point):
        return -abs(np.log10(point["meta_learning_rate"]) + 2.5) - abs(point["number_of_training_steps_per_iter"] - 3)

    trials = []
    for number in range(24):
        point = next_point(sweep, trials)
        assert point == next_point(sweep, list(trials))
        trials.append(Trial(number, point, "complete", {1: quality(point)}))
    found = statistics.fmean(quality(trial.point) for trial in trials[12:])
    assert found > statistics.fmean(quality(point) for point in random.points(200)) + 0.3


def test_tpe_tells_how_to_get_optuna(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ConfigError,
        match=r'"tpe" needs Optuna: python -m pip install -r requirements-extras.txt; or use the method "random"',
    ):
        next_point(read_sweep(write("tpe")), [])


# --- pruning ----------------------------------------------------------------------------------------------------------


def with_accuracies(number, *accuracies, state="complete"):
    return Trial(number, {}, state, dict(enumerate(accuracies, start=1)))


def test_a_trial_below_the_median_of_three_others_is_hopeless():
    others = [
        with_accuracies(0, 0.2, 0.6),
        with_accuracies(1, 0.3, 0.5, state="pruned"),
        with_accuracies(2, 0.4, 0.4, 0.9),
    ]
    assert is_hopeless(
        with_accuracies(3, 0.1, 0.49, state="running"), others, 1
    )  # the median of 0.6, 0.5 and 0.4 is 0.5
    assert not is_hopeless(with_accuracies(3, 0.1, 0.51, state="running"), others, 1)
    assert not is_hopeless(with_accuracies(3, 0.9, 0.1, state="running"), others, 1), "its best epoch counts"
    assert not is_hopeless(with_accuracies(3, 0.1, 0.1, state="running"), others, 3), "too early"
    assert not is_hopeless(with_accuracies(3, 0.1, 0.1, state="running"), others, 0), "not asked for"
    assert not is_hopeless(with_accuracies(3, 0.1, 0.1, state="running"), others[:2], 1), "too few others"


def test_the_best_trial_is_the_first_of_equals_and_never_one_that_failed():
    trials = [with_accuracies(0, 0.9, state="failed"), with_accuracies(1, 0.5, 0.4), with_accuracies(2, 0.5)]
    assert best_trial(trials).number == 1
    assert best_trial(trials[:1]) is None


# --- running ----------------------------------------------------------------------------------------------------------

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config = json.loads(Path(arguments["--name_of_args_json_file"]).read_text())
if config["meta_learning_rate"] == 0.5:
    sys.exit("the rate is too high")
folder = Path(os.environ["EXPERIMENTS_DIR"]) / config["experiment_name"]
(folder / "logs").mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(json.dumps(config))
with (folder / "starts.txt").open("a") as file:
    file.write(arguments["--gpu_to_use"] + "\\n")
if "--test_after_training" in arguments:
    (folder / "tested.txt").write_text(arguments["--test_after_training"])
    sys.exit(0)
table = folder / "logs" / "summary_statistics.json"
rows = json.loads(table.read_text()) if table.exists() else {"epoch": [], "val_accuracy_mean": []}
while len(rows["epoch"]) < config["total_epochs"]:
    time.sleep(SLEEP)
    rows["epoch"].append(len(rows["epoch"]) + 1)
    rows["val_accuracy_mean"].append(config["meta_learning_rate"])
    table.with_suffix(".new").write_text(json.dumps(rows))
    table.with_suffix(".new").rename(table)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A stand-in for the training program, whose validation accuracy is the meta learning rate; `program(sleep_s)`
    sets its pace.
    """
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    monkeypatch.setattr(sweep_command, "SECONDS_BETWEEN_CHECKS", 0.02)
    path = tmp_path / "program.py"
    monkeypatch.setattr(sweep_command, "PROGRAM", [sys.executable, str(path)])

    def pace(sleep_s):
        path.write_text(textwrap.dedent(PROGRAM).replace("SLEEP", str(sleep_s)))

    pace(0.0)
    return pace


def trials_of(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_runs_on_all_gpus_and_ends_in_a_table_a_page_and_a_picture(program, write, tmp_path, capsys):
    path = write("grid", rate="[0.1, 0.5, 0.3]", steps="[1, 2]")
    assert sweep_command.main([str(path), "--gpus", "0", "3"]) == 0
    folder = tmp_path / "experiments" / "sweep_search"
    rows = trials_of(folder)
    assert [row["state"] for row in rows] == ["complete", "complete", "failed", "failed", "complete", "complete"]
    assert [row["val_accuracy_best"] for row in rows] == ["0.1", "0.1", "", "", "0.3", "0.3"]
    assert rows[2]["note"] == "exit code 1: the rate is too high"
    used = {path.read_text().strip() for path in folder.glob("trial_*/starts.txt")}
    assert used == {"0", "3"}
    shown = capsys.readouterr().out
    assert "Sweep search: grid, 6 trials, 2 at a time" in shown and "Best: trial 4. Its config: " in shown
    page = (folder / "sweep.html").read_text()
    assert page.count("<tr>") == 7 and page.count("<svg") == 1
    assert (folder / "parallel_coordinates.png").stat().st_size > 5000
    assert len(list_runs(tmp_path / "experiments")) == 4


def test_the_best_trial_alone_is_tested_and_only_when_asked(program, write, tmp_path, capsys):
    path = write("grid", rate="[0.1, 0.3, 0.2]", steps="[1]")
    folder = tmp_path / "experiments" / "sweep_search"
    assert sweep_command.main([str(path)]) == 0
    assert "Next: the same command with --test, which tests this trial alone" in capsys.readouterr().out
    assert not list(folder.glob("trial_*/tested.txt"))
    assert all(
        json.loads(config.read_text())["test_after_training"] is False for config in folder.glob("configs/*.json")
    )
    assert sweep_command.main([str(path), "--test"]) == 0
    (tested,) = folder.glob("trial_*/tested.txt")
    assert (tested.parent.name, tested.read_text()) == ("trial_001", "true")


class StopsAfter(StopSignals):
    """Says after n looks that SIGINT has come."""

    def __init__(self, n_looks):
        super().__init__()
        self._looks = n_looks

    def check(self):
        self._looks -= 1
        if self._looks < 0:
            import signal

            raise Interrupted(signal.SIGINT)


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing_that_was_done(program, write, tmp_path):
    sweep = read_sweep(write("random", "trials = 4"))
    folder = tmp_path / "experiments" / "sweep_search"
    program(0.05)
    with pytest.raises(Interrupted):
        sweep_command.run_sweep(sweep, folder, ["cpu"], StopsAfter(16))
    before = load_trials(folder, sweep)
    done = [trial.number for trial in before if trial.is_done]
    assert len(before) > len(done)
    program(0.0)
    assert sweep_command.run_sweep(sweep, folder, ["cpu"], StopSignals()) == 0
    assert [row["state"] for row in trials_of(folder)] == ["complete"] * 4
    assert [trial.point for trial in load_trials(folder, sweep)] == sweep.points(4)
    for number in done:
        assert len((folder / f"trial_{number:03}" / "starts.txt").read_text().split()) == 1


def test_a_trial_that_a_killed_sweep_left_running_is_waited_for(program, write, tmp_path, capsys):
    path = write("grid", rate="[0.1, 0.3]", steps="[1]")
    sweep, folder = read_sweep(path), tmp_path / "experiments" / "sweep_search"
    run_folder = folder / "trial_000"
    run_folder.mkdir(parents=True)
    save_trials(folder, [*load_trials(folder, sweep), Trial(0, sweep.points(1)[0], "running")])
    holder = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', "
        "flush=True); time.sleep(0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(run_folder / ".lock")], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        assert sweep_command.main([str(path)]) == 0
    finally:
        process.communicate()
    assert "trial 0 still runs since before; its end is waited for\ntrial 0 complete" in capsys.readouterr().out
    assert [row["state"] for row in trials_of(folder)] == ["complete", "complete"]


def test_a_hopeless_trial_is_stopped(program, write, tmp_path):
    program(0.1)
    path = write("grid", "prune_after_epochs = 1", "[0.3, 0.2, 0.4, 0.1]", "[1]")
    assert sweep_command.main([str(path), "--workers", "1"]) == 0
    last = trials_of(tmp_path / "experiments" / "sweep_search")[3]
    assert last["state"] == "pruned" and int(last["epochs"]) < 4


def test_another_sweep_file_of_the_same_name_is_refused_but_more_trials_are_not(write, tmp_path):
    folder = tmp_path / "sweep_search"
    folder.mkdir()
    sweep = read_sweep(write("random", "trials = 2"))
    save_trials(folder, [*load_trials(folder, sweep), Trial(0, {"meta_learning_rate": 0.1}, "complete", {1: 0.5})])
    assert load_trials(folder, read_sweep(write("random", "trials = 3")))[0].accuracies == {1: 0.5}
    with pytest.raises(ConfigError, match=r"has started with another sweep file than this\. Restore it"):
        load_trials(folder, read_sweep(write("random", "seed = 2")))


def test_another_template_under_the_same_name_is_refused_as_its_trials_would_not_compare(program, write, tmp_path):
    path = write("grid", "trials = 1", "[0.1, 0.3]", "[1]")
    assert sweep_command.main([str(path)]) == 0
    template = tmp_path / "tiny.json"
    before = template.read_text()
    template.write_text(before.replace('"total_epochs": 9', '"batch_size": 3'))
    folder = tmp_path / "experiments" / "sweep_search"
    with pytest.raises(ConfigError, match=r"trial_000.json: the template has changed since this trial \(batch_size\)"):
        load_trials(folder, read_sweep(path))
    template.write_text(before)
    path.write_text(path.read_text().replace("trials = 1", ""))
    assert sweep_command.main([str(path)]) == 0
    assert [row["state"] for row in trials_of(folder)] == ["complete", "complete"]


def test_a_folder_that_no_sweep_has_made_is_refused_and_stays_as_it_was(program, write, tmp_path, capsys):
    folder = tmp_path / "experiments" / "sweep_search"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text("mine")
    assert sweep_command.main([str(write())]) == 4
    assert f"{folder}: holds trials.csv, but no sweep; nothing was written there." in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["trials.csv"]
    (folder / "sweep.toml").write_text("[")
    assert sweep_command.main([str(write())]) == 4
    assert "sweep.toml: not valid TOML" in capsys.readouterr().err and (folder / "trials.csv").read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", "output/trial_000.txt", "output", "configs"])
def test_a_sweep_writes_through_no_link_in_its_folder(program, write, tmp_path, capsys, name):
    """The folder may come from somebody else."""
    path = write("grid", rate="[0.1]", steps="[1]")
    assert sweep_command.main([str(path)]) == 0
    folder, treasure = tmp_path / "experiments" / "sweep_search", tmp_path / "treasure"
    (folder / "trials.json").unlink()
    is_file = "." in name
    treasure.write_text("gold") if is_file else treasure.mkdir()
    if is_file:
        (folder / name).unlink()
    else:
        shutil.rmtree(folder / name)
    (folder / name).symlink_to(treasure)
    assert sweep_command.main([str(path)]) == 4
    assert f"{folder / name}: a symbolic link to {treasure}" in capsys.readouterr().err
    assert treasure.read_text() == "gold" if is_file else not list(treasure.iterdir())


def test_two_processes_do_not_run_one_sweep(program, write, tmp_path):
    folder = tmp_path / "experiments" / "sweep_search"
    folder.mkdir(parents=True)
    holder = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', "
        "flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ExperimentInUseError, match="another process runs this sweep"):
            sweep_command.run_sweep(read_sweep(write()), folder, ["cpu"], StopSignals())
    finally:
        process.communicate()


def test_when_every_trial_fails_the_exit_code_says_so(program, write, capsys):
    assert sweep_command.main([str(write("grid", rate="[0.5]", steps="[1]"))]) == 1
    assert "Every trial failed; see " in capsys.readouterr().err


# --- results ----------------------------------------------------------------------------------------------------------


def test_axes_go_from_the_lowest_value_to_the_highest():
    assert [place(Range(1e-4, 1e-2, log=True), value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert [place(Range(1, 5), value) for value in (1, 2, 5)] == [0, 0.25, 1]
    assert [place(Choice(("b", "a", "c")), value) for value in "bac"] == [0, 0.5, 1]
    assert [place(Choice((0.3, 0.1, 0.2)), value) for value in (0.1, 0.2, 0.3)] == [0, 0.5, 1]


def test_the_picture_has_a_line_for_each_trial_with_an_accuracy(write):
    sweep = read_sweep(write())
    points = sweep.points(4)
    trials = [
        Trial(n, point, "complete" if n else "failed", {1: n / 10} if n else {}) for n, point in enumerate(points)
    ]
    (axes,) = parallel_coordinates(sweep, trials).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([0, 0.5, 1])
    assert lines[-1].get_linewidth() > 3
    heading, rows = table(sweep, trials)
    assert heading[:4] == ["trial", "best val", "state", "epochs"] and [row[0] for row in rows] == ["3", "2", "1", "0"]


def test_a_regression_shows_its_error(write):
    sweep = read_sweep(write())
    assert score_text(sweep, 0.9375) == "93.75 %"
    assert score_text(replace(sweep, config=sweep.config | {"loss": "mean_squared_error"}), -0.25) == "0.2500"


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def test_the_wandb_sweep_says_the_same(write, tmp_path, capsys):
    path = write(
        "tpe", "prune_after_epochs = 2\ntrials = 7", rate="{ low = 1e-5, high = 1e-2, log = true }", steps="[1, 3]"
    )
    target = tmp_path / "wandb.yaml"
    assert sweep_command.main([str(path), "--wandb_yaml", str(target)]) == 0
    assert f"Next: wandb sweep {target}" in capsys.readouterr().out
    content = yaml.safe_load(target.read_text())
    assert content["method"] == "bayes" and content["run_cap"] == 7
    assert content["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert content["parameters"] == {
        "meta_learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "number_of_training_steps_per_iter": {"values": [1, 3]},
    }
    assert content["early_terminate"] == {"type": "hyperband", "min_iter": 2}
    assert content["command"][2:] == ["-m", "experiment_tools.sweep", str(path), "--trial", "${args}"]
    assert yaml.safe_load(wandb_yaml(read_sweep(path), path)) == content


def test_a_trial_that_an_agent_chose_runs_under_a_name_of_its_own(program, write, tmp_path, capsys):
    path = str(write())
    assert (
        sweep_command.main([path, "--trial", "--meta_learning_rate=0.25", "--number_of_training_steps_per_iter=2"]) == 0
    )
    (config,) = (tmp_path / "experiments" / "sweep_search" / "configs").iterdir()
    values = json.loads(config.read_text())
    assert (values["meta_learning_rate"], values["trackers"], values["wandb_mode"]) == (0.25, ["wandb"], "online")
    assert sweep_command.main([path, "--trial", "--batch_size=3"]) == 1
    assert "batch_size is not under [parameters] of the sweep file" in capsys.readouterr().err
