"""benchmarks/on_a_gpu.sh, with a stand-in for Python that writes down what it is asked for."""

import os
import subprocess

from utils.paths import REPOSITORY_ROOT

SCRIPT = REPOSITORY_ROOT / "benchmarks" / "on_a_gpu.sh"


def run(tmp_path, *arguments):
    """The finished script and what it asked Python for."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/usr/bin/env bash\necho "$*" >> "{tmp_path}/asked"\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stand_in), "OUT": str(tmp_path / "out put")}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    asked = tmp_path / "asked"
    return done, asked.read_text().splitlines() if asked.exists() else []


def test_each_part_runs_its_command_and_keeps_what_it_printed(tmp_path):
    done, asked = run(tmp_path, "table", "cost", "train", "original", "--", "/the/original")
    assert done.returncode == 0, done.stderr
    assert asked == [
        "benchmarks/meta_iteration.py",
        "benchmarks/meta_iteration.py --settings Omniglot 5-way 1-shot Omniglot 20-way 1-shot --deterministic true",
        "train_maml_system.py --name_of_args_json_file experiment_config/omniglot_maml++_20way_1shot_seed0.json "
        "--gpu_to_use 0"
        " --experiment_name released_schedule --batch_size 8 --total_epochs 100 --total_iter_per_epoch 500",
        "benchmarks/compare_with_original.py --original /the/original --iterations 20",
    ]
    names = {"table.txt", "deterministic.txt", "train.txt", "original.txt"}
    assert {path.name for path in (tmp_path / "out put").iterdir()} == names


def test_an_unknown_part_and_a_missing_path_are_refused(tmp_path):
    done, asked = run(tmp_path, "tabel")
    assert (done.returncode, asked) == (1, [])
    assert 'no part "tabel"; there are: table graphs original resume cost train' in done.stderr
    done, asked = run(tmp_path, "original")
    assert done.returncode != 0
    assert "give its path after --" in done.stderr
    assert not asked
