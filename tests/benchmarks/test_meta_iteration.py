"""The table of the standard settings, on tiny sizes."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks.meta_iteration import main
from benchmarks.parts import standard_settings
from benchmarks.parts.standard_settings import SETTINGS, cells, flops_of, measure
from utils.paths import REPOSITORY_ROOT

TINY = {
    "cnn_num_filters": 4,
    "number_of_training_steps_per_iter": 1,
    "batch_size": 2,
    "image_height": 16,
    "image_width": 16,
    "gpu_to_use": "cpu",
}


def test_products_are_counted_with_their_groups():
    x, weight = torch.zeros(5, 6, 7, 7), torch.zeros(8, 3, 3, 3)
    out = F.conv2d(x, weight, None, 1, 1, 1, 2)
    multiplications = 5 * 8 * 7 * 7 * 3 * 9
    assert flops_of("convolution", (x, weight), out) == 2 * multiplications
    assert flops_of("convolution_backward", (out, x, weight, [True, True, False]), None) == 4 * multiplications
    assert flops_of("bmm", (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)), torch.zeros(2, 3, 5)) == 2 * 2 * 3 * 4 * 5
    assert flops_of("add", (x, x), x) == 0


@pytest.mark.parametrize("name", ["Omniglot 5-way 1-shot", pytest.param("84x84 5-way 1-shot", marks=pytest.mark.full)])
def test_a_row_holds_what_the_table_shows(name, monkeypatch):
    if name == "Omniglot 5-way 1-shot":  # what the machine reaches at best takes seconds
        ceilings = {"ceiling_flops_per_s": 1e12, "ceiling_bytes_per_s": 1e11}
        monkeypatch.setattr(standard_settings, "ceilings", lambda device: ceilings)
    row = measure(name, 2, TINY)
    assert row["ms_multi_step_loss"] > 0
    assert row["flops"] > 0 and row["operators"] > 100
    assert 0 < row["share_of_data"] < 1
    assert row["flops_per_s"] == pytest.approx(row["flops"] / row["ms_multi_step_loss"] * 1000)
    shown = cells(row)
    assert shown[0] == name
    assert len(shown) == 9
    json.dumps(row)


def test_every_setting_is_a_config_that_there_is():
    assert all((REPOSITORY_ROOT / "experiment_config" / file).is_file() for file, _ in SETTINGS.values())


@pytest.mark.full
def test_the_command_prints_a_table_and_one_json_object():
    tiny = [text for key, value in TINY.items() for text in (f"--{key}", str(value))]
    command = [
        sys.executable,
        "benchmarks/meta_iteration.py",
        "--settings",
        "Omniglot 5-way 1-shot",
        "--iterations",
        "1",
        *tiny,
    ]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| setting | ms with multi-step loss |")
    assert lines[2].startswith("| Omniglot 5-way 1-shot |")
    assert json.loads(lines[-1])["rows"][0]["iterations"] == 1


def test_an_unknown_setting_is_refused_with_those_that_there_are(capsys):
    assert main(["--settings", "x"]) == 1
    message = 'command line: --settings: there is no "x"; there are: "Omniglot 5-way 1-shot", '
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("count", ["0", "x", "1.5"])
def test_a_count_that_is_none_is_refused(capsys, count):
    assert main(["--experiment_name", "x", "--iterations", count]) == 1
    error = capsys.readouterr().err
    assert error.startswith("command line: --iterations is ") and len(error.splitlines()) == 1
