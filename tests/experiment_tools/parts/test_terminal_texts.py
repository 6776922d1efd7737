"""What a run says at its start and its end."""

import json
import os
import shlex

import pytest

from experiment_tools.parts.terminal_texts import MOST_LAYERS, next_command, parameter_table, start_banner
from few_shot_learning_system import build_learner
from tests.tools.runs import TINY
from utils.config import check_config, load_config
from utils.paths import REPOSITORY_ROOT


def test_the_banner_fits_on_one_screen_and_says_how_the_run_is_set_up():
    config = load_config(
        REPOSITORY_ROOT / "experiment_config" / "quickstart.json", {"cnn_num_filters": 8, "gpu_to_use": "cpu"}
    )
    description = build_learner(config, "cpu").description()
    narrow = start_banner(config, description, width=80).splitlines()
    assert len(narrow) <= 14 and all(len(line) <= 80 for line in narrow)
    lines = start_banner(config, description, width=120).splitlines()
    assert lines[0] == "MAML++, 5-way 1-shot, 1 query per class, 3 inner steps"
    assert lines[1].startswith(
        "  5 epochs x 60 iterations x 8 tasks; validation and test on 300 tasks; the best 5 models are tested"
    )
    assert lines[2] == "  differs from experiment_config/quickstart.json: cnn_num_filters 8 (32)"
    assert len(lines) <= 14 and all(len(line) <= 120 for line in lines)
    untested = config.model_copy(update={"test_after_training": False})
    assert "validation on 300 tasks; no test (test_after_training)" in start_banner(untested, description, width=120)


def test_a_config_as_it_was_generated_says_so():
    config = load_config(REPOSITORY_ROOT / "experiment_config" / "quickstart.json")
    assert (
        "  settings of experiment_config/quickstart.json"
        in start_banner(config, build_learner(config, "cpu").description()).splitlines()
    )


@pytest.mark.parametrize("choices", [{}, {"adapted_parameters": "head"}, {"per_step_bn_statistics": True}])
def test_the_table_counts_every_parameter_and_what_is_adapted(choices):
    learner = build_learner(check_config(TINY | choices, "test"), "cpu")
    rows = [line.split() for line in parameter_table(learner.description())][1:]
    network = dict(learner.meta_parameters())
    assert sum(int(row[1].replace(",", "")) for row in rows[:-1]) == sum(value.numel() for value in network.values())
    assert rows[-1][:2] == ["all", f"{sum(value.numel() for value in network.values()):,}"]
    adapted = {row[0]: row[2] for row in rows[:-1]}
    assert (adapted["block0"] == "no") == (choices == {"adapted_parameters": "head"})
    assert adapted["head"] != "no"


def test_a_large_network_is_cut_to_one_screen():
    layers = {f"network.layer{number}.weight": [2, 3] for number in range(40)}
    lines = parameter_table({"meta_parameters": layers, "adapted_parameters": [], "n_meta_parameters": 240})
    assert (
        len(lines) == MOST_LAYERS + 2
        and lines[-2].startswith(f"{len(layers) - MOST_LAYERS + 1} more")
        and lines[-1].startswith("all")
    )


def test_the_end_names_a_comparison_with_the_newest_other_result_on_such_tasks_or_else_one_s_own_images(tmp_path):
    alone = "Next: python -m experiment_tools.adapt --experiment 'my run' --support FOLDER --query FOLDER"
    run, tasks = tmp_path / "my run", {"dataset": "birds", "ways": 5, "shots": 1, "queries": 15, "seed": 0}
    assert next_command(run) == alone

    def tested(name, time, protocol):
        summary = tmp_path / name / "logs" / "test_summary.json"
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps({"protocol": protocol}))
        os.utime(summary, (time, time))

    tested("my run", 0, tasks)
    for number, changes in enumerate(({"dataset": "flowers"}, {"ways": 3}, {"shots": 5}, {"queries": 1})):
        tested(f"unrelated {number}", 9, tasks | changes)
    tested("of another release", 9, {})
    assert next_command(run) == alone
    tested("old", 1, tasks | {"seed": 1})
    assert next_command(run) == "Next: python -m experiment_tools.compare 'my run' old"
    tested("new", 2, tasks)
    assert next_command(run) == "Next: python -m experiment_tools.compare 'my run' new"
    tested("my run", 3, {})
    assert next_command(run) == alone
    (tmp_path / "sweep.toml").touch()  # whose trials are found by their paths
    folder = shlex.quote(str(run))
    assert next_command(run) == alone.replace("'my run'", folder)
    tested("my run", 3, tasks)
    assert next_command(run) == f"Next: python -m experiment_tools.compare {folder} {tmp_path / 'new'}"
