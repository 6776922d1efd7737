"""A finished run tested on datasets and task lists that it was not trained on."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import train_maml_system
from experiment_parts.evaluation.test_results import result_suffix
from tests.conftest import draw_dataset
from tests.tools.runs import other_task_sets
from utils.config import check_config
from utils.data_sources import write_task_lists as tasks_command
from utils.data_sources.dataset_classes import other_dataset
from utils.errors import ConfigError, DataError

CONFIG = {
    "experiment_name": "run", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
    "train_val_test_split": [0.34, 0.33], "num_classes_per_set": 3, "num_target_samples": 2, "cnn_num_filters": 3,
    "total_epochs": 1, "total_iter_per_epoch": 2, "batch_size": 2, "num_evaluation_tasks": 4, "gpu_to_use": "cpu",
    "number_of_training_steps_per_iter": 1, "report_every_s": 0,
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, tiny_dataset, monkeypatch):
    """A dataset to train on, "tiny"; "photos", larger and coloured, of classes alone; "split", pre-split with four
    test classes.
    """
    folder = tiny_dataset("tiny", n_classes=12)
    draw_dataset(folder.parent / "photos", [f"c{i}" for i in range(5)], images_per_class=4, side=30, channels=3)
    draw_dataset(
        folder.parent / "split", [f"{part}/c{i}" for part in ("Train", "Test") for i in range(4)], images_per_class=3
    )
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def main(workplace, capsys):
    """`main("--key", "value")` -> (exit code, everything printed)."""

    def run(*arguments):
        code = train_maml_system.main(["--name_of_args_json_file", str(workplace / "config.json"), *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.full
def test_several_datasets_give_one_grid_and_leave_the_runs_own_result_alone(workplace, main, capsys):
    assert main()[0] == 0
    logs = workplace / "experiments" / "run" / "logs"
    before = (logs / "test_summary.json").read_bytes()
    code, shown = main("--test_dataset_name", "photos", "split", "tiny", "--test_num_target_samples", "1", "2")
    assert code == 0
    with (logs / "test_summary_on_photos_split_tiny.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["queries"]) for row in rows] == [
        (name, queries) for name in ("photos", "split", "tiny") for queries in "12"
    ]  # fmt: skip
    assert [rows[i]["classes"] for i in (0, 2, 4)] == ["5 (all of them)", "4 (test split)", "4 (test split)"]
    assert [rows[i]["images"] for i in (0, 2, 4)] == [
        "resized from 30x30 to 14x14 (bicubic), colour made grey", "as they are", "as they are",
    ]  # fmt: skip
    assert "photos: classes: 5 (all of them); images: resized from 30x30 to 14x14" in shown
    table = shown[shown.index("95 % interval over 4 tasks each") :].splitlines()
    assert [line.split()[0] for line in table[1:8]] == [
        "dataset",
        *("photos", "photos", "split", "split", "tiny", "tiny"),
    ]
    assert (logs / "test_summary.json").read_bytes() == before
    own = json.loads(before)
    again = json.loads((logs / "test_summary_on_photos_split_tiny.json").read_text())["results"][-1]
    assert again["test_accuracy_mean"] == own["test_accuracy_mean"]
    assert again["task_list_digest"] == own["task_list_digest"]
    code, shown = main()
    assert code == 0 and "This experiment is finished" in shown and "other test keys" not in shown

    assert tasks_command.main(["--config", str(workplace / "config.json"), "--to", str(workplace / "t.json")]) == 0
    assert main("--task_list", str(workplace / "t.json"))[0] == 0
    listed = json.loads((logs / "test_summary_on_t.json").read_text())
    assert listed["test_accuracy_mean"] == own["test_accuracy_mean"]
    assert listed["task_list_digest"] == own["task_list_digest"] and listed["protocol"]["task_list"] == "t.json"


def test_a_run_that_has_no_model_yet_cannot_be_tested(main):
    code, shown = main("--test_dataset_name", "photos")
    assert code == 1 and "no checkpoint to test yet" in shown


def test_classes_that_are_too_few_are_named(workplace):
    config = check_config(CONFIG | {"test_dataset_name": ["split"], "num_target_samples": 3}, "test")
    with pytest.raises(
        DataError, match=r"have only 3 images, but num_samples_per_class 1 \+ num_target_samples 3 needs 4"
    ):
        other_task_sets(config)
    with pytest.raises(DataError, match='dataset "birds" not found'):
        other_task_sets(check_config(CONFIG | {"test_dataset_name": ["birds"]}, "test"))


def test_omniglot_has_its_published_test_classes(workplace):
    draw_dataset(
        workplace / "datasets" / "omniglot_dataset",
        [f"a{i % 3}/c{i:02}" for i in range(37)],
        images_per_class=3,
        side=5,
    )
    config = check_config(CONFIG | {"test_dataset_name": ["omniglot"], "on_bad_image": "skip"}, "test")
    (tasks,) = other_task_sets(config)
    assert tasks.protocol["classes"] == "10 (test split)"  # 37 - int(0.7399 * 37)
    assert other_dataset(config, "omniglot_dataset").resize_filter == "nearest"


def test_images_that_exif_turns_are_described_as_they_are_seen(workplace):
    folder = draw_dataset(workplace / "datasets" / "turned", ["a", "b", "c"], images_per_class=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 40, 3), np.uint8)).save(folder / "a" / "00.jpg", exif=exif)
    (folder / "a" / "00.png").unlink()
    (tasks,) = other_task_sets(check_config(CONFIG | {"test_dataset_name": ["turned"]}, "test"))
    assert tasks.protocol["images"] == "resized from 10x40 to 14x14 (bicubic), colour made grey"


def test_names_lead_nowhere_else():
    with pytest.raises(ConfigError, match=r'"test_dataset_name" is .* but must be: names of datasets'):
        check_config(CONFIG | {"test_dataset_name": ["../secrets"]}, "test")


def test_both_at_once_and_a_tag():
    with pytest.raises(ConfigError, match=r'"test_dataset_name" and "task_list" .x\.json. are two tests'):
        check_config(CONFIG | {"test_dataset_name": ["a"], "task_list": "x.json"}, "test")
    config = check_config(CONFIG | {"test_dataset_name": ["a b", "omniglot"], "tag": "t"}, "test")
    assert config.evaluate_on_test_set_only and config.test_dataset_name == ("a b", "omniglot_dataset")
    assert result_suffix("t", "", config.tested_elsewhere) == "_t"
    assert result_suffix("", "3", config.tested_elsewhere) == "_epoch_3_on_a_b_omniglot_dataset"
    assert config.to_json_dict()["test_dataset_name"] == [] and config.to_json_dict()["task_list"] == ""
