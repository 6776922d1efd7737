import fcntl
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from experiment_parts.records.run_records import RunRecords
from experiment_parts.runs.checkpoints import (
    epoch_path,
    list_epochs,
    load_checkpoint,
    read_checkpoint_state,
    save_checkpoint,
)
from experiment_parts.runs.console import Console
from experiment_parts.runs.opening import add_start, open_run_folder
from utils.config import ExperimentConfig, check_config
from utils.config.changes import EVALUATION_KEYS, FREE_KEYS, TRAINING_KEYS, check_config_changes
from utils.config.command_line import parse_command_line
from utils.errors import ConfigError, StorageError
from utils.files.atomic_files import read_regular
from utils.files.tables import JsonLines
from utils.known_datasets import OMNIGLOT_SPLIT
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


def train(folder, epochs, config=None, **more):
    """Leave the checkpoints that a run of so many epochs would."""
    for epoch in epochs:
        state = {"epoch": epoch, "iteration": 4 * epoch, "config": config or config_of(folder.path.name)}
        state |= {"rows": [], "curves": [], "metrics_jsonl_bytes": 17, "run_id": folder.run_id}
        state |= {"automatic_choices": {}, "annealing_epochs": 0} | more
        save_checkpoint(epoch_path(folder.saved_models, epoch), {"w": torch.ones(2)}, state)
    (folder.logs / "metrics.jsonl").write_text('{"iteration": 1}\n')
    folder.unlock()


def test_a_new_run_has_its_folders_and_its_config(root, opened):
    folder = opened(root, "run")
    assert sorted(os.listdir(folder.path)) == [".lock", "config.json", "logs", "saved_models", "visual_outputs"]
    assert json.loads((folder.path / "config.json").read_text()) == {"run_id": folder.run_id} | config_of("run")
    assert len(folder.run_id) == 32 and folder.run_id != opened(root, "another").run_id


def test_an_unwritable_place_is_a_storage_error(tmp_path, opened):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run/saved_models: cannot be written \(Not a directory\)"):
        opened(tmp_path / "file", "run")
    opened(tmp_path, "run").logs.rmdir()
    (tmp_path / "run" / "logs").touch()
    with pytest.raises(StorageError, match=r"run/logs: cannot be written \(File exists\)\. Move away what is there in"):
        opened(tmp_path, "run")


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


def test_a_run_with_the_default_split_of_before_goes_on_with_auto():
    new = config_of("run", dataset_name="birds")
    assert new["train_val_test_split"] == "auto" and config_of("run")["train_val_test_split"] == list(OMNIGLOT_SPLIT)
    stored = new | {"train_val_test_split": list(OMNIGLOT_SPLIT)}
    assert check_config_changes(stored, new, only_testing=False, experiment="run") == ["train_val_test_split"]
    for before, now in ((new | {"train_val_test_split": [0.5, 0.25]}, new), (new, stored)):
        with pytest.raises(ConfigError, match="train_val_test_split"):
            check_config_changes(before, now, only_testing=False, experiment="run")


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
    read = read_regular

    def fails(path):
        if path.name == "train_model_2.safetensors":
            raise OSError(5, "Input/output error")
        return read(path)

    if problem == "cannot be read":
        monkeypatch.setattr("experiment_parts.runs.checkpoints.read_regular", fails)
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


# --- which files belong together --------------------------------------------------------------------------------------


def test_a_folder_that_is_renamed_or_copied_goes_on_with_its_own_id(root, opened):
    first = opened(root, "run")
    train(first, [1, 2])
    first.path.rename(root / "renamed")
    again = opened(root, "renamed")
    assert again.run_id == first.run_id and again.newest_good_checkpoint()[0].name == "train_model_2.safetensors"


def test_from_scratch_and_a_branch_have_ids_of_their_own(root, opened):
    first = opened(root, "run")
    train(first, [1, 2])
    branch = opened(root, "branch", config=config_of("branch"), continue_from_epoch=1, source_experiment="run")
    assert branch.run_id != first.run_id
    path, state = branch.newest_good_checkpoint()
    assert state["run_id"] == branch.run_id and state["is_branch"] and state["epoch"] == 1
    tensors, _ = load_checkpoint(path)
    assert torch.equal(tensors["w"], torch.ones(2))
    branch.unlock()
    assert opened(root, "branch", continue_from_epoch=1, source_experiment="run").run_id == branch.run_id
    fresh = opened(root, "run", continue_from_epoch="from_scratch")
    assert fresh.run_id not in (first.run_id, branch.run_id)


def test_a_checkpoint_of_another_run_is_set_aside_and_the_one_before_it_is_used(root, opened, caplog):
    train(opened(root, "other"), [2])
    mine = opened(root, "run")
    train(mine, [1, 2])
    theirs = (root / "other/saved_models/train_model_2.safetensors").read_bytes()
    epoch_path(mine.saved_models, 2).write_bytes(theirs)
    again = opened(root, "run")
    assert again.newest_good_checkpoint()[1]["epoch"] == 1
    assert "train_model_2.safetensors: not used, it is of another run (its run_id " in caplog.text
    assert (mine.saved_models / "train_model_2.safetensors.foreign").read_bytes() == theirs
    assert again.load_usable(epoch_path(mine.saved_models, 1))["w"].tolist() == [1.0, 1.0]


def test_where_only_files_of_others_are_left_nothing_is_renamed_and_nothing_begun(root, opened):
    train(opened(root, "other"), [1])
    mine = opened(root, "run")
    train(mine, [1])
    shutil.copy(root / "other/saved_models/train_model_1.safetensors", mine.saved_models)
    with pytest.raises(StorageError) as raised:
        opened(root, "run")
    assert "no usable checkpoint is left: train_model_1.safetensors is of another run" in str(raised.value)
    assert "Put this run's own files back under their names. To start over:" in str(raised.value)
    assert os.listdir(mine.saved_models) == ["train_model_1.safetensors"]


def test_swapped_epochs_are_neither_resumed_nor_tested(root, opened, caplog):
    folder = opened(root, "run")
    train(folder, [1, 2, 3])
    one, two = epoch_path(folder.saved_models, 1), epoch_path(folder.saved_models, 2)
    one_s, two_s = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_s), two.write_bytes(one_s)
    again = opened(root, "run")
    assert again.newest_good_checkpoint()[1]["epoch"] == 3
    assert again.load_usable(one) is None and again.load_usable(two) is None
    assert (
        "train_model_1.safetensors: not used, it holds epoch 2. Set aside as train_model_1.safetensors.foreign"
        in caplog.text
    )


@pytest.mark.parametrize("run_id", ["", 7, ["forged"], None])
def test_a_run_of_a_release_without_ids_gets_one_and_its_checkpoints_are_taken(root, opened, run_id):
    old = opened(root, "run")
    train(old, [1], run_id=run_id)
    stored = json.loads((old.path / "config.json").read_text())
    del stored["run_id"]
    (old.path / "config.json").write_text(json.dumps(stored))
    again = opened(root, "run")
    assert again.newest_good_checkpoint()[1]["epoch"] == 1 and len(again.run_id) == 32
    assert json.loads((old.path / "config.json").read_text())["run_id"] == again.run_id


def test_without_config_json_the_id_is_that_of_the_newest_checkpoint(root, opened):
    folder = opened(root, "run")
    train(folder, [1, 2])
    (folder.path / "config.json").unlink()
    assert opened(root, "run").run_id == folder.run_id


@pytest.mark.parametrize(
    "forged",
    [
        {"iteration": "8"},
        {"iteration": -5},
        {"iteration": True},
        {"config": "none"},
        {"rows": {}},
        {"epoch": 1.0},
        {"config": {"a": 1}},
        {"rows": [{"epoch": 1}]},
        {"rows": [None]},
        {"rows": [{"epoch": 1, "val_accuracy_mean": "x"}]},
        {"metrics_jsonl_bytes": 10**400},
        {"curves": [1]},
        {"automatic_choices": {"task_chunk_size": 0}},
        {"annealing_epochs": None},
        {"data": []},
        {"data": {"content_sha256": None, "splits": {"train": {"names": ["a"], "images": 3}}}},
        {"data_changes": 3},
        {"under_way": {"first_iteration": 4, "sums": {"loss": 3}, "interval": [], "time_s": 1, "data_time_s": 0}},
    ],
)
def test_a_state_that_no_run_has_written_is_damaged_whatever_its_digest(root, opened, caplog, forged):
    folder = opened(root, "run")
    train(folder, [1])
    train(folder, [2], **forged)
    assert opened(root, "run").newest_good_checkpoint()[1]["epoch"] == 1
    assert f"no checkpoint of a run, its state lacks a valid {next(iter(forged))}. Set aside as" in caplog.text


# --- what is not the run's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [["config.json", "logs/mine.txt"], ["notes.txt"], ["logs/run.log"], [".lock"]])
def test_a_folder_that_no_run_has_made_is_refused_and_stays_as_it_was(root, opened, files):
    for name in files:
        (root / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "mine" / name).write_text('{"color": "red"}')
    before = sorted((root / "mine").rglob("*"))
    for arguments in ({}, {"continue_from_epoch": "from_scratch"}):
        with pytest.raises(StorageError, match=r"mine: holds .*, but no run of this program: neither its config.json"):
            opened(root, "mine", **arguments)
    assert sorted((root / "mine").rglob("*")) == before
    assert all((root / "mine" / name).read_text() == '{"color": "red"}' for name in files)


def test_what_a_start_that_was_killed_early_has_left_is_no_obstacle(root, opened):
    (root / "run" / "saved_models").mkdir(parents=True)
    (root / "run" / "logs").mkdir()
    opened(root, "run").unlock()
    (root / "run" / "config.json").unlink()
    opened(root, "run")


@pytest.mark.parametrize("name", [".lock", "logs/run.log", "logs/metrics.jsonl"])
def test_nothing_is_written_through_a_link_or_a_pipe_in_a_run_folder(root, opened, tmp_path, name):
    folder = opened(root, "run")
    train(folder, [1])
    treasure, place = tmp_path / "treasure", folder.path / name
    treasure.write_text("gold")

    def start():
        again = opened(root, "run")
        with Console() as console:
            console.open_run_log(again.logs / "run.log")
        JsonLines(again.logs / "metrics.jsonl").open(0)

    place.unlink(missing_ok=True)
    place.symlink_to(treasure)
    with pytest.raises(
        StorageError, match=f"{name}: a symbolic link to {treasure}; inside a run folder nothing is written"
    ):
        start()
    assert treasure.read_text() == "gold"
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(StorageError, match=f"{name}: no regular file; inside a run folder nothing is written"):
        start()


@pytest.mark.parametrize("name", ["logs", "saved_models", "visual_outputs", "logs/tensorboard", "logs/wandb"])
def test_a_folder_inside_a_run_folder_that_leads_elsewhere_is_refused(root, opened, tmp_path, name):
    folder = opened(root, "run")
    folder.unlock()
    shutil.rmtree(folder.path / name, ignore_errors=True)
    (folder.path / name).symlink_to(tmp_path)
    with pytest.raises(StorageError, match=f"{name}: a symbolic link to {tmp_path};"):
        opened(root, "run")


def test_links_on_the_way_to_the_run_folder_are_followed(root, opened, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scratch").mkdir()
    (root / "run").symlink_to(tmp_path / "scratch")
    assert (opened(root, "run").path / "config.json").is_file()
    assert (tmp_path / "scratch" / "config.json").is_file()


def test_lines_of_metrics_that_are_gone_are_missed(root, opened, caplog):
    folder = opened(root, "run")
    train(folder, [1])
    records = RunRecords(opened(root, "run"))
    (folder.logs / "metrics.jsonl").write_text('{"a": 1}\n')
    records.open(17)
    records.close()
    assert "metrics.jsonl: 8 of its 17 bytes up to the checkpoint are gone" in caplog.text


def test_a_file_of_an_epoch_that_was_not_trained_stays(root, opened):
    folder = opened(root, "run")
    train(folder, [1, 2, 3, 4, 99])
    rows = [{"epoch": epoch, "val_accuracy_mean": epoch / 10} for epoch in (1, 2, 3, 4)]
    RunRecords(folder).write_epochs(rows, [], keep_best=1)
    assert list(list_epochs(folder.saved_models)) == [3, 4, 99]
