import fcntl
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment_parts.runs.checkpoints import epoch_path, list_epochs, read_checkpoint_state, save_checkpoint
from experiment_parts.runs.run_folder import add_start, open_run_folder
from utils.config import ExperimentConfig, check_config
from utils.config.changes import EVALUATION_KEYS, FREE_KEYS, TRAINING_KEYS, check_config_changes
from utils.config.command_line import parse_command_line
from utils.errors import ConfigError, StorageError
from utils.paths import REPOSITORY_ROOT


def config_of(name, **changes):
    return check_config({"experiment_name": name} | changes, "test").to_json_dict()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "experiments"


@pytest.fixture
def opened():
    """`opened(root, name, **arguments)` -> a RunFolder of the config's defaults, let go at the end of the test."""
    folders = []

    def open_one(root, name, *, config=None, **arguments):
        folders.append(open_run_folder(root, name, config or config_of(name), **arguments))
        return folders[-1]

    yield open_one
    for folder in folders:
        folder.unlock()


def train(folder, epochs, config=None):
    """Leave the checkpoints that a run of so many epochs would."""
    name = folder.path.name
    for epoch in epochs:
        save_checkpoint(
            epoch_path(folder.saved_models, epoch),
            {"w": torch.ones(2)},
            {"epoch": epoch, "iteration": 4 * epoch, "config": config or config_of(name)},
        )
    (folder.logs / "metrics.jsonl").write_text('{"iteration": 1}\n')
    folder.unlock()


def test_a_new_run_has_its_folders_and_its_config(root, opened):
    folder = opened(root, "run")
    assert sorted(os.listdir(folder.path)) == [".lock", "config.json", "logs", "saved_models", "visual_outputs"]
    assert json.loads((folder.path / "config.json").read_text()) == config_of("run")


def test_an_unwritable_place_is_a_storage_error(tmp_path, opened):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run/saved_models: cannot be written \(Not a directory\)"):
        opened(tmp_path / "file", "run")


@pytest.mark.parametrize("place", ["/proc/x", "file/x"])
def test_a_place_for_experiments_that_cannot_be_made_names_the_variable(tmp_path, monkeypatch, opened, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / place))
    with pytest.raises(StorageError) as raised:
        opened(tmp_path / place, "run")
    assert f"Set EXPERIMENTS_DIR, which is {tmp_path / place}, to a folder that you can write to." in str(raised.value)
    assert "MiB" not in str(raised.value)


# --- starts that fail -------------------------------------------------------------------------------------------------


def test_a_start_that_fails_leaves_no_folder(root, opened):
    with pytest.raises(ConfigError, match="no checkpoint to test yet"):
        opened(root, "run", config=config_of("run", evaluate_on_test_set_only=True), only_testing=True)
    assert os.listdir(root) == []
    folder = opened(root, "run")
    (folder.logs / "run.log").write_text("what was said\n")
    folder.remove_failed_start()
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    "file", ["notes.txt", "logs/metrics.jsonl", "saved_models/train_model_1.safetensors", "visual_outputs/a.png"]
)
def test_a_file_of_anybody_else_keeps_everything(root, opened, file):
    folder = opened(root, "run")
    (folder.path / file).write_text("mine")
    before = sorted(root.rglob("*"))
    folder.remove_failed_start()
    assert sorted(root.rglob("*")) == before


def test_a_folder_that_was_there_before_stays(root, opened):
    (root / "run").mkdir(parents=True)
    opened(root, "run").remove_failed_start()
    assert (root / "run" / "config.json").exists()
    opened(root, "other").unlock()
    opened(root, "other").remove_failed_start()  # a second start; the first one did not fail
    assert (root / "other" / "config.json").exists()


def test_a_lock_whose_folder_was_taken_away_meanwhile_is_not_taken_for_ours(root, opened, monkeypatch):
    """Between our opening of the lock and our holding it, the start that held it fails and removes its folder."""
    first = opened(root, "run")
    lockf = fcntl.lockf

    def late(*arguments):
        if (root / "run").exists():
            first.remove_failed_start()
            first.unlock()
        monkeypatch.setattr(fcntl, "lockf", lockf)
        lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", late)
    second = opened(root, "run")
    assert sorted(os.listdir(second.path)) == [".lock", "config.json", "logs", "saved_models", "visual_outputs"]
    assert f"process {os.getpid()} on " in (second.path / ".lock").read_text()


# --- config changes ---------------------------------------------------------------------------------------------------


def other_value(key):
    """A value of the key that differs from its default."""
    value = config_of("run")[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "other"]
    if isinstance(value, int | float):
        return value + 1
    return "other"


@pytest.mark.parametrize("key", sorted(ExperimentConfig.model_fields))
def test_every_key_is_free_or_free_for_tests_or_refused_as_tabled(key):
    stored, new = config_of("run"), config_of("run") | {key: other_value(key)}

    def is_refused(only_testing):
        try:
            check_config_changes(stored, new, only_testing=only_testing, experiment="run")
        except ConfigError as error:
            assert f"  {key}: {stored[key]!r} before, {new[key]!r} now" in str(error)
            assert "--continue_from_epoch from_scratch" in str(error)
            return True
        return False

    assert is_refused(False) == (key not in FREE_KEYS)
    assert is_refused(True) == (key not in FREE_KEYS | EVALUATION_KEYS | TRAINING_KEYS)


def test_the_table_names_only_keys_that_there_are():
    assert set(ExperimentConfig.model_fields) >= FREE_KEYS | EVALUATION_KEYS | TRAINING_KEYS
    assert len(FREE_KEYS | EVALUATION_KEYS | TRAINING_KEYS) == len(FREE_KEYS) + len(EVALUATION_KEYS) + len(
        TRAINING_KEYS
    )


def test_the_split_is_free_where_the_sets_are_split_already():
    stored = config_of("run", sets_are_pre_split=True)
    new = stored | {"train_val_test_split": [0.5, 0.5], "class_split_seed": 3}
    assert len(check_config_changes(stored, new, only_testing=False, experiment="run")) == 2
    for one_side in (stored, new):
        other = (new if one_side is stored else stored) | {"sets_are_pre_split": False}
        with pytest.raises(ConfigError, match="class_split_seed"):
            check_config_changes(one_side, other, only_testing=False, experiment="run")


def test_the_first_advice_is_to_give_the_same_overrides_again():
    stored = config_of("run", train_val_test_split=[0.5, 0.25], batch_size=2, indexes_of_folders_indicating_class=[-2])
    with pytest.raises(ConfigError) as raised:
        check_config_changes(stored, config_of("run"), only_testing=False, experiment="run")
    advice = str(raised.value).splitlines()[-1]
    assert advice.startswith("To go on with the run, give the same overrides as at its first start: --")
    given = advice.split("first start: ")[1].split(". Else")[0]
    assert (
        check_config({"experiment_name": "run"} | parse_command_line(shlex.split(given))[1], "again").to_json_dict()
        == stored
    )


def test_all_refused_keys_are_named_at_once(root, opened):
    train(opened(root, "run"), [1])
    with pytest.raises(ConfigError) as raised:
        opened(root, "run", config=config_of("run", batch_size=2, num_classes_per_set=20, total_epochs=7))
    assert "batch_size: 8 before, 2 now" in str(raised.value)
    assert "num_classes_per_set: 5 before, 20 now" in str(raised.value)
    assert "total_epochs" not in str(raised.value)
    assert json.loads((root / "run" / "config.json").read_text())["batch_size"] == 8


def test_a_refused_key_names_the_flag_that_allows_it(root, opened, caplog):
    caplog.set_level(logging.INFO)
    train(opened(root, "run"), [1])
    changed = config_of("run", batch_size=2, num_classes_per_set=20)
    with pytest.raises(ConfigError, match="--allow_config_change batch_size num_classes_per_set"):
        opened(root, "run", config=changed)
    with pytest.raises(ConfigError, match="num_classes_per_set: 5 before, 20 now"):
        opened(root, "run", config=changed, allowed_changes=["batch_size"])
    with pytest.raises(ConfigError, match="allow_config_change: there is no key batchsize"):
        opened(root, "run", config=changed, allowed_changes=["batchsize"])
    opened(root, "run", config=changed, allowed_changes=["batch_size", "num_classes_per_set"])
    assert "config: batch_size is 2 now, was 8" in caplog.messages


def test_what_is_meant_for_one_start_is_not_stored():
    once = {"allow_config_change": "batch_size", "restart_schedule": True, "replay_iteration": 3}
    stored = config_of("run", **once)
    assert {key: stored[key] for key in once} == {
        "allow_config_change": [],
        "restart_schedule": False,
        "replay_iteration": 0,
    }


def test_an_edited_config_json_does_not_hide_a_change(root, opened):
    """The comparison is with the config that the checkpoint was trained with."""
    train(opened(root, "run"), [1])
    (root / "run" / "config.json").write_text(json.dumps(config_of("run", batch_size=2)))
    with pytest.raises(ConfigError, match="batch_size"):
        opened(root, "run", config=config_of("run", batch_size=2))


def test_before_the_first_checkpoint_every_key_is_free(root, opened):
    opened(root, "run").unlock()
    opened(root, "run", config=config_of("run", batch_size=2))


def test_a_test_alone_leaves_config_json_as_it_is(root, opened):
    train(opened(root, "run"), [1])
    before = (root / "run" / "config.json").read_bytes()
    opened(
        root, "run", config=config_of("run", num_evaluation_tasks=9, evaluate_on_test_set_only=True), only_testing=True
    )
    assert (root / "run" / "config.json").read_bytes() == before


def test_advice_for_a_change_of_the_evaluation_alone(root, opened):
    train(opened(root, "run"), [1])
    with pytest.raises(ConfigError, match="--evaluate_on_test_set_only true --tag NAME"):
        opened(root, "run", config=config_of("run", num_evaluation_tasks=1000))


# --- where to go on from ----------------------------------------------------------------------------------------------


def test_from_scratch_renames_the_old_folder(root, opened, caplog):
    caplog.set_level(logging.INFO)
    train(opened(root, "run"), [1, 2])
    (root / "run" / "mine.txt").write_text("kept")
    folder = opened(root, "run", continue_from_epoch="from_scratch", config=config_of("run", batch_size=2))
    assert not list_epochs(folder.saved_models)
    (old,) = [path for path in root.iterdir() if path.name != "run"]
    assert old.name.startswith("run.")
    assert str(old) in caplog.text
    assert (old / "mine.txt").read_text() == "kept"
    assert list(list_epochs(old / "saved_models")) == [1, 2]


def test_from_scratch_of_a_run_that_does_not_exist_renames_nothing(root, opened):
    opened(root, "run", continue_from_epoch="from_scratch")
    assert os.listdir(root) == ["run"]


def test_from_scratch_twice_in_a_second_keeps_both(root, opened):
    for _ in range(3):
        train(opened(root, "run", continue_from_epoch="from_scratch"), [1])
    assert len(os.listdir(root)) == 3


@pytest.mark.parametrize("problem", ["cannot be read", "format version 2"])
def test_a_checkpoint_that_may_be_good_is_neither_renamed_nor_passed_over(root, opened, monkeypatch, problem):
    """A network file system that has lost its server for a second must not cost an epoch."""
    folder = opened(root, "run")
    if problem == "format version 2":
        monkeypatch.setattr("experiment_parts.runs.checkpoints.FORMAT_VERSION", 2)
    train(folder, [1, 2])
    monkeypatch.undo()
    read = Path.read_bytes

    def fails(path):
        if path.name == "train_model_2.safetensors":
            raise OSError(5, "Input/output error")
        return read(path)

    if problem == "cannot be read":
        monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(StorageError, match=f"train_model_2.safetensors: {problem}.*move (it|the file) away"):
        opened(root, "run")
    assert sorted(os.listdir(folder.saved_models)) == ["train_model_1.safetensors", "train_model_2.safetensors"]


def test_an_epoch_number_is_refused_while_newer_epochs_exist(root, opened):
    train(opened(root, "run"), [1, 2, 3])
    with pytest.raises(ConfigError, match="continue_from_epoch 2: run goes on to epoch 3, which would be lost"):
        opened(root, "run", continue_from_epoch=2)
    opened(root, "run", continue_from_epoch=3)


def test_an_epoch_that_is_not_there_names_those_that_are(root, opened):
    train(opened(root, "run"), [1, 3])
    with pytest.raises(ConfigError, match="continue_from_epoch 2: run holds the epochs 1, 3"):
        opened(root, "run", continue_from_epoch=2)
    with pytest.raises(ConfigError, match="continue_from_epoch 5: new holds no checkpoint"):
        opened(root, "new", continue_from_epoch=5)


def test_a_new_name_branches_off_with_the_history(root, opened):
    train(opened(root, "run"), [1, 2, 3])
    changed = config_of("branch", meta_learning_rate=0.5)
    branch = opened(root, "branch", config=changed, continue_from_epoch=2, source_experiment="run")
    assert list(list_epochs(branch.saved_models)) == [1, 2]
    assert (branch.logs / "metrics.jsonl").exists()
    assert list(list_epochs(root / "run" / "saved_models")) == [1, 2, 3]
    train(branch, [3], config=changed)  # and when the same command is run again, the branch resumes
    again = opened(root, "branch", config=changed, continue_from_epoch=2, source_experiment="run")
    assert read_checkpoint_state(again.newest_good_checkpoint()[0])["config"]["meta_learning_rate"] == 0.5


def test_a_branch_from_an_epoch_that_is_not_there_leaves_no_checkpoint(root, opened):
    train(opened(root, "run"), [1])
    with pytest.raises(ConfigError, match="run holds the epochs 1"):
        opened(root, "branch", continue_from_epoch=4, source_experiment="run")
    assert not list_epochs(root / "branch" / "saved_models")


def test_nothing_to_test_is_said_early(root, opened):
    with pytest.raises(ConfigError, match="no checkpoint to test yet"):
        opened(root, "run", only_testing=True)
    with pytest.raises(ConfigError, match="nothing to test with continue_from_epoch from_scratch"):
        opened(root, "run", only_testing=True, continue_from_epoch="from_scratch")


# --- one process per experiment ---------------------------------------------------------------------------------------


TRY_TO_LOCK = """
import sys
from pathlib import Path
from utils.errors import ExperimentInUseError
from experiment_parts.runs.run_folder import RunFolder
try:
    RunFolder(Path(sys.argv[1])).lock()
except ExperimentInUseError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_second_process_is_refused_and_told_who_holds_the_folder(root, opened):
    folder = opened(root, "run")
    command = [sys.executable, "-c", TRY_TO_LOCK, str(folder.path)]
    second = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 5, second.stderr
    assert f"run: in use by process {os.getpid()} on " in second.stdout
    folder.unlock()
    assert subprocess.run(command, cwd=REPOSITORY_ROOT, timeout=60, check=False).returncode == 0


def test_starts_are_added_to_the_environment_file(tmp_path):
    for number in range(3):
        add_start(tmp_path / "environment.json", {"number": number})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"starts": [{"number": n} for n in range(3)]}
