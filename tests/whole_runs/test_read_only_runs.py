"""A run of somebody else, or on a disk that is read only: everything that only reads works, and changes nothing."""

import hashlib

import numpy as np
import pytest
from PIL import Image

import train_maml_system
from experiment_parts.runs.checkpoints import epoch_path
from experiment_parts.runs.run_folder import RunFolder
from experiment_tools import adapt, runs
from experiment_tools.compare import __main__ as compare
from experiment_tools.export import __main__ as export
from experiment_tools.report import __main__ as report
from few_shot_classifier import FewShotClassifier
from tests.tools.disks import read_only
from tests.tools.runs import run_tiny
from utils.errors import StorageError


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """`start(command, *arguments)` -> (exit code, what was printed), beside a folder `experiments`."""
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        code = command.main([*map(str, arguments)])
        return code, "".join(capsys.readouterr())

    return run


def files_of(folder):
    """Path -> digest and time of every file."""
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def images(folder):
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((10, 10), ord(name), np.uint8)).save(folder / name / "0.png")
    return folder


def test_a_finished_run_that_cannot_be_written_is_shown_and_used(tmp_path, start):
    folder = run_tiny(tmp_path / "experiments")
    pictures = images(tmp_path / "pictures")
    config = ("--name_of_args_json_file", folder / "config.json")
    before = files_of(folder)
    with read_only(folder):
        code, said = start(train_maml_system, *config)
        assert code == 0 and "This experiment is finished (2 epochs). Its result:" in said
        code, said = start(train_maml_system, *config, "--evaluate_on_test_set_only", "true", "--tag", "x")
        assert code == 4 and f"{folder}: no permission to write there. Set EXPERIMENTS_DIR to another folder." in said
        code, said = start(report, "tiny")
        assert code == 4 and "Or write the report elsewhere: --output FILE" in said
        assert start(report, "tiny", "--output", "elsewhere/report.html")[0] == 0
        assert "<html" in (tmp_path / "elsewhere/report.html").read_text()
        code, said = start(report, "tiny", "--output", "elsewhere/report.html")
        assert code == 1 and "exists already and stays as it is" in said
        code, said = start(runs)
        assert code == 0 and "finished" in said
        assert start(compare, "tiny")[0] == 0
        assert start(adapt, "--experiment", "tiny", "--support", pictures, "--query", pictures)[0] == 0
        assert start(export, "--experiment", "tiny", "--formats", "safetensors")[0] == 0
        run_tiny(tmp_path / "experiments", replay_iteration=3)
        FewShotClassifier.load(epoch_path(folder / "saved_models", 2))
    assert files_of(folder) == before


def test_what_is_left_to_do_in_a_run_that_cannot_be_written_is_exit_code_4(tmp_path, start):
    folder = run_tiny(tmp_path / "experiments", total_epochs_before_pause=1)
    before = files_of(folder)
    with read_only(folder):
        code, said = start(train_maml_system, "--name_of_args_json_file", folder / "config.json")
        assert code == 4 and f"{folder}: no permission to write there." in said
    assert files_of(folder) == before


def test_who_does_not_hold_a_run_renames_none_of_its_files(tmp_path, start, caplog):
    folder = run_tiny(tmp_path / "experiments")
    damaged = epoch_path(folder / "saved_models", 2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = files_of(folder)
    assert RunFolder(folder).newest_good_checkpoint()[1]["epoch"] == 1
    assert FewShotClassifier.from_experiment("tiny").initialisation_
    assert f"{damaged}: damaged" in caplog.text and "Set aside" not in caplog.text
    assert files_of(folder) == before
    epoch_path(folder / "saved_models", 1).write_bytes(b"x")
    with pytest.raises(StorageError, match="no usable checkpoint is left, all are damaged or of another run"):
        RunFolder(folder).newest_good_checkpoint()
