import json

import pytest
from PIL import Image

from data import build_data
from experiment_builder import build_experiment
from experiment_parts.runs.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from experiment_parts.runs.opening import open_run_folder
from experiment_parts.runs.run_folder import RunFolder
from experiment_parts.runs.same_data import data_changes, data_of, has_started_with_copies
from few_shot_learning_system import build_learner
from tests.tools.datasets import pixels, write_image
from tests.tools.runs import TINY
from utils.config import check_config
from utils.errors import DataError

OF_BIRDS = TINY | {
    "dataset_name": "birds", "sets_are_pre_split": True, "indexes_of_folders_indicating_class": [-2],
    "num_classes_per_set": 2, "total_iter_per_epoch": 2, "diagnostics_every_epochs": 0,
}  # fmt: skip


def write_classes(folder, n_classes):
    """Four grey images of 10 x 10 in each class; every picture of its own."""
    for c in range(n_classes):
        for i in range(4):
            image = pixels(1000 * len(folder.name) + 10 * c + i, side=10, channels=1)
            write_image(folder / f"{folder.name}_{c}" / f"{i}.png", image)


@pytest.fixture
def birds(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    folder = tmp_path / "datasets" / "birds"
    for split in ("train", "val", "test"):
        write_classes(folder / split, 4)
    return folder


def start(tmp_path, **changes):
    """One start as the program makes it; returns the summary of the test, if there was one."""
    config = check_config(OF_BIRDS | changes, "test")
    only_testing = config.evaluate_on_test_set_only
    run_folder = open_run_folder(
        tmp_path, "tiny", config.to_json_dict(), only_testing=only_testing, allowed_changes=config.allow_config_change
    )
    try:
        build_experiment(config, build_learner(config, "cpu"), build_data(config, "cpu"), [], run_folder).run()
    finally:
        run_folder.unlock()
    name = f"test_summary{f'_{config.tag}' if config.tag else ''}.json"
    return json.loads((run_folder.logs / name).read_text()) if (run_folder.logs / name).exists() else None


def test_a_run_does_not_go_on_without_one_of_its_classes(tmp_path, birds):
    start(tmp_path, total_epochs_before_pause=1)
    gone = min((birds / "val").iterdir())
    gone.rename(tmp_path / "kept")
    with pytest.raises(DataError) as raised:
        start(tmp_path)
    text = str(raised.value)
    assert 'experiment "tiny" has started with other data, which a started run cannot change:' in text
    assert f"\n  val: 4 classes before, 3 now; gone: {gone.name}\n" in text and "train" not in text.split("To go on")[0]
    assert "--allow_config_change data." in text and "--evaluate_on_test_set_only true --tag NAME" in text
    (tmp_path / "kept").rename(gone)
    assert "other_data_than_trained_on" not in start(tmp_path)


def test_a_picture_that_was_replaced_is_noticed_though_names_are_the_same(tmp_path, birds):
    start(tmp_path, total_epochs_before_pause=1)
    picture = min((birds / "train").rglob("*.png"))
    Image.open(picture).rotate(180).save(picture)
    with pytest.raises(DataError, match=r"the images themselves: content [0-9a-f]{12} before, [0-9a-f]{12} now"):
        start(tmp_path)
    result = start(tmp_path, allow_config_change=["data"])
    assert result["other_data_than_trained_on"][0].startswith("the images themselves: content ")


def test_a_test_on_other_data_says_so(tmp_path, birds):
    first = start(tmp_path, total_epochs=1)
    assert "other_data_than_trained_on" not in first
    write_classes(birds / "test", 5)
    result = start(tmp_path, total_epochs=1, evaluate_on_test_set_only=True, tag="again")
    assert result["other_data_than_trained_on"][0].startswith("test: 4 classes before, 5 now; new: ")
    digest = build_data(check_config(OF_BIRDS, "test"), "cpu").summary()["content_sha256"]
    assert result["content_sha256"] == digest != first["content_sha256"]


def test_a_checkpoint_without_a_record_of_the_data_is_taken_and_the_next_one_has_it(tmp_path, birds, caplog):
    caplog.set_level("INFO")
    start(tmp_path, total_epochs_before_pause=1)
    path = tmp_path / "tiny/saved_models/train_model_1.safetensors"
    tensors, state = load_checkpoint(path)
    recorded = state.pop("data")
    save_checkpoint(path, tensors, state)
    start(tmp_path)
    assert "This checkpoint is of a release that kept no record of the data; the next one has it." in caplog.text
    assert read_checkpoint(path.with_name("train_model_2.safetensors")).state["data"] == recorded


def test_what_differs_is_named_split_by_split(birds):
    config = check_config(OF_BIRDS, "test")
    before = data_of(build_data(config, "cpu"))
    assert data_changes(before, json.loads(json.dumps(before))) == []
    (min((birds / "train").rglob("*.png"))).rename(min((birds / "train").iterdir()) / "0_other.png")
    after = data_of(build_data(config, "cpu"))
    assert data_changes(before, after) == ["train: other image files in the same classes, 16 before, 16 now"]


def test_new_runs_leave_copies_out_and_a_started_one_keeps_them(tmp_path, birds, monkeypatch):
    """As the program does it: it asks the newest checkpoint before it builds the data."""
    for split in ("train", "val", "test"):
        first = min((birds / split).rglob("*.png"))
        (first.with_name("copy.png")).write_bytes(first.read_bytes())
    config = check_config(OF_BIRDS | {"total_epochs_before_pause": 1}, "test")
    with_copies = build_data(config, "cpu", keep_copies=True)
    assert data_of(build_data(config, "cpu"))["splits"]["train"]["images"] == 16
    assert data_of(with_copies)["splits"]["train"]["images"] == 17 and data_of(with_copies)["keeps_copies"]
    monkeypatch.setattr("tests.experiment_parts.runs.test_same_data.build_data", lambda *_: with_copies)
    start(tmp_path, total_epochs_before_pause=1)
    run_folder = RunFolder(tmp_path / "tiny")
    assert has_started_with_copies(run_folder)
    monkeypatch.undo()
    path = tmp_path / "tiny/saved_models/train_model_1.safetensors"
    tensors, state = load_checkpoint(path)
    for record, expected in ((None, True), (state["data"] | {"keeps_copies": False}, False)):
        save_checkpoint(path, tensors, state | {"data": record})
        assert has_started_with_copies(run_folder) is expected
    assert not has_started_with_copies(RunFolder(tmp_path / "new"))
