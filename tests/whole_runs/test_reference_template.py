"""The Omniglot template that the reference's README prints, pasted over ours: it must keep working, key for key."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from script_generation_tools.generate_configs import generate_configs
from script_generation_tools.generate_scripts import generate_scripts
from tests.conftest import draw_dataset
from utils.config import load_config
from utils.paths import REPOSITORY_ROOT

FIXTURE = REPOSITORY_ROOT / "tests" / "whole_runs" / "fixtures" / "reference_readme_template.json"


@pytest.fixture
def generated(tmp_path):
    """Folders of configs and scripts, generated with that template in place of omniglot_maml++.json; and the notes."""
    templates = shutil.copytree(REPOSITORY_ROOT / "experiment_template_config", tmp_path / "templates")
    shutil.copy(FIXTURE, templates / "omniglot_maml++.json")
    configs, scripts = tmp_path / "experiment_config", tmp_path / "experiment_scripts"
    outcome = generate_configs(templates, configs)
    generate_scripts(configs, scripts, REPOSITORY_ROOT / "script_generation_tools" / "local_run_template_script.sh")
    return configs, scripts, outcome.notes


def test_it_generates_the_same_files_with_its_own_experiment_names(generated):
    configs, scripts, _ = generated
    names = {path.stem for path in configs.glob("omniglot_maml++*.json")}
    assert names == {
        f"omniglot_maml++_{n}way_{k}shot_seed{seed}" for n in (5, 20) for k in (1, 5) for seed in (0, 1, 2)
    }
    assert all((scripts / f"{name}.sh").exists() for name in names)
    config = json.loads((configs / "omniglot_maml++_20way_5shot_seed2.json").read_text())
    assert config["experiment_name"] == "MAML++_Omniglot_20_way_5_shot_5_filter_multi_step_loss_with_max_pooling_seed_2"


def test_the_values_it_does_not_use_are_one_note(generated):
    assert generated[2] == [
        "values.toml: omniglot_maml++.json does not use $batch_size$, $conv_padding$, $init_inner_loop_learning_rate$, "
        "$learnable_bn_beta$, $learnable_bn_gamma$, $num_filters$: their values have no effect; take them out of "
        '["omniglot_maml++"], or write the variables into the template'
    ]


def test_its_keys_mean_what_they_say(generated):
    config = load_config(generated[0] / "omniglot_maml++_5way_1shot_seed1.json")
    assert (config.batch_size, config.total_epochs, config.total_epochs_before_pause) == (16, 150, 150)
    assert config.init_inner_loop_learning_rate == 0.4  # init_task_learning_rate; task_learning_rate -1 is unset
    assert config.first_order_to_second_order_epoch == 80
    assert config.continue_from_epoch == "latest"  # -2: a rerun resumes
    assert (config.train_seed, config.num_target_samples) == (1, 1)
    assert any("use_gdrive" in note for note in config.notes)


@pytest.mark.full
def test_it_trains_is_killed_resumes_and_is_tested_on_a_cpu(generated, tmp_path):
    """Real processes, with the sizes overridden and a small drawn dataset in Omniglot's place and form."""
    characters = [f"images_background/alphabet_{rank // 20}/character_{rank % 20:02}" for rank in range(170)]
    draw_dataset(tmp_path / "datasets" / "omniglot_dataset", characters, images_per_class=3)
    environment = os.environ | {
        "DATASET_DIR": str(tmp_path / "datasets"), "EXPERIMENTS_DIR": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    sizes = (
        "--batch_size 2 --cnn_num_filters 4 --num_evaluation_tasks 6 --total_iter_per_epoch 30 --total_epochs 2 "
        "--on_bad_image skip"
    )
    command = [
        sys.executable, str(REPOSITORY_ROOT / "train_maml_system.py"), "--name_of_args_json_file",
        str(generated[0] / "omniglot_maml++_5way_1shot_seed0.json"), *sizes.split(),
    ]  # fmt: skip
    run = tmp_path / "runs" / "MAML++_Omniglot_5_way_1_shot_5_filter_multi_step_loss_with_max_pooling_seed_0"

    killed = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    metrics = run / "logs" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 4):  # ten iterations each: epoch 2 is under way
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.communicate()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Resuming after epoch 1" in again.stdout and "Test accuracy of the ensemble of 2 models" in again.stdout
    rows = (run / "logs" / "summary_statistics.csv").read_text().splitlines()
    column = rows[0].split(",").index("epoch")
    assert [row.split(",")[column] for row in rows[1:]] == ["1", "2"]
    assert json.loads((run / "logs" / "test_summary.json").read_text())["protocol"]["tasks"] == 6
