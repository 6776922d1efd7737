"""Pictures of episodes as the learner gets them, and a table of classes and counts."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from data import build_data
from experiment_tools.show_data import GAP, HEADING, MARGIN, TEXT_WIDTH, main
from tests.tools.runs import SINUSOID
from utils.config import check_config

CONFIG = {
    "experiment_name": "tiny",
    "dataset_name": "tiny",
    "image_height": 14,
    "image_width": 14,
    "num_stages": 2,
    "train_val_test_split": [0.4, 0.3, 0.3],
    "num_classes_per_set": 3,
    "num_samples_per_class": 2,
    "num_target_samples": 3,
}


@pytest.fixture
def show(tiny_dataset, tmp_path, capsys, monkeypatch):
    """`show(changes, *arguments)` -> (exit code, everything printed), of the command in `tmp_path`."""
    tiny_dataset(channels=3)
    monkeypatch.chdir(tmp_path)

    def run(changes=None, *arguments):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | (changes or {})))
        code = main(["config.json", *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_rotation": True, "image_channels": 3, "normalisation": "imagenet", "reverse_channels": True},
        {"image_channels": 3, "support_augmentation": ["color"], "query_augmentation": ["resize"]},
    ],
)
def test_a_picture_holds_the_very_pixels_that_the_learner_gets(show, tmp_path, changes):
    code, shown = show(changes, "--to", "pictures", "--episodes", "2")
    assert code == 0 and "pictures: train.png, val.png, test.png, classes.csv" in shown
    data = build_data(check_config(CONFIG | changes, "test"), "cpu")
    factor, side = 4, 56  # 14 pixels, at least 48
    for split in ("train", "val", "test"):
        picture = np.asarray(Image.open(tmp_path / "pictures" / f"{split}.png"))
        batch = data.episodes(split, [0, 1])
        for episode in range(2):
            support, query = (data.as_pixels(images[episode]) for images in (batch.support_images, batch.query_images))
            top = episode * picture.shape[0] // 2 + MARGIN + HEADING
            for row in range(3):
                images = [*support[2 * row : 2 * row + 2], *query[3 * row : 3 * row + 3]]
                for column, image in enumerate(images):
                    left = MARGIN + TEXT_WIDTH + column * (side + GAP) + (3 * GAP if column >= 2 else 0)
                    y, x = top + row * (side + GAP), left
                    found = picture[y : y + side : factor, x : x + side : factor]
                    assert np.array_equal(found, np.broadcast_to(image.permute(1, 2, 0).numpy(), found.shape))


def test_classes_and_counts_are_a_table(show, tmp_path):
    code, shown = show()
    assert code == 0
    assert [line.split() for line in shown.splitlines() if line.startswith(("train ", "val ", "test "))] == [
        [split, "4", "24", "6", "6", "6"] for split in ("train", "val", "test")
    ]
    with (tmp_path / "tiny_data" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = build_data(check_config(CONFIG, "test"), "cpu").class_names
    assert [(row["split"], row["class"]) for row in rows] == [(split, name) for split in names for name in names[split]]
    assert {row["images"] for row in rows} == {"6"}


def test_pictures_are_made_again_but_nothing_else_is_replaced(show, tmp_path):
    assert show()[0] == 0 and show()[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.png").write_text("holiday")
    code, shown = show({}, "--to", "mine")
    assert code == 1 and "mine: has other content; give another folder with --to" in shown
    assert (tmp_path / "mine" / "train.png").read_text() == "holiday"


def test_mistakes_have_their_exit_codes(show):
    code, shown = show({}, "--episodes", "0")
    assert code == 1 and "--episodes is 0, but must be 1 to 100" in shown
    code, shown = show({"num_target_samples": 30})
    assert code == 2 and "needs 32" in shown
    code, shown = show({}, "--to")
    assert code == 1 and "--to needs one folder" in shown


def test_a_regression_has_nothing_to_show(show):
    code, text = show(SINUSOID | {"class_rotation": False})
    assert code == 1 and "points of waves are no pictures" in text


def test_many_query_images_and_odd_names_fit(show, tiny_dataset, tmp_path):
    folder = tmp_path / "datasets" / "tiny"
    (folder / "alphabet_0").rename(folder / ("ü" * 60 + '\n"x"'))
    code, _ = show(
        {"num_samples_per_class": 1, "num_target_samples": 5, "train_val_test_split": [0.34, 0.33]},
        "--image_channels",
        "3",
    )
    assert code == 0
    assert Image.open(tmp_path / "tiny_data" / "train.png").width == 2 * MARGIN + TEXT_WIDTH + 6 * (56 + GAP) + 3 * GAP
