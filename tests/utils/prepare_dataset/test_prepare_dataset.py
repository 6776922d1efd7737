"""Datasets that make themselves, and what happens when a dataset cannot be had."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from utils.episodes.randomness import random_words, sample_without_replacement
from utils.errors import DataError
from utils.prepare_dataset import find_or_make_dataset
from utils.prepare_dataset.__main__ import main
from utils.prepare_dataset.datasets import omniglot
from utils.prepare_dataset.datasets.synthetic_strokes import draw_samples, draw_synthetic_strokes


@pytest.fixture(scope="module")
def strokes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "synthetic_strokes"
    draw_synthetic_strokes(folder)
    return folder


def test_synthetic_strokes_are_240_classes_of_20_grey_images(strokes):
    classes = sorted(path for path in strokes.glob("script_*/character_*"))
    assert len(classes) == 240
    for folder in classes[::30]:
        files = sorted(folder.iterdir())
        assert [file.name for file in files] == [f"{i:02}.png" for i in range(20)]
        with Image.open(files[3]) as image:
            assert image.size == (28, 28) and image.mode == "L"


def test_strokes_are_dark_ink_on_white_paper(strokes):
    pixels = np.stack([draw_samples(0, rank, 20) for rank in range(0, 240, 6)])
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255
    ink = (pixels < 128).mean(axis=(2, 3))
    assert ink.min() > 0.02 and ink.max() < 0.5
    with Image.open(strokes / "script_01/character_04/07.png") as image:
        assert np.array_equal(np.asarray(image), draw_samples(0, 24, 8)[7])


def test_strokes_depend_on_seed_class_and_sample_only():
    assert np.array_equal(draw_samples(0, 5, 3), draw_samples(0, 5, 20)[:3])
    drawings = [draw_samples(seed, rank, 2) for seed in (0, 1) for rank in (0, 1)]
    assert len({hashlib.sha256(image.tobytes()).hexdigest() for drawing in drawings for image in drawing}) == 8


def test_strokes_are_a_real_few_shot_problem():
    """5-way 1-shot by the nearest image in pixels: far above chance, far below what a learner reaches."""
    pixels = np.stack([draw_samples(0, rank, 6) for rank in range(240)]).reshape(240, 6, -1) / 255.0
    classes = sample_without_replacement(random_words(0, "test", range(400), 0, 5), np.full(400, 240))
    images = pixels[classes]  # (400, 5, 6, 784)
    support, query = images[:, :, 0], images[:, :, 1:].reshape(400, 25, -1)
    squares = (query**2).sum(-1)[:, :, None] + (support**2).sum(-1)[:, None] - 2 * query @ support.transpose(0, 2, 1)
    accuracy = (squares.argmin(-1) == np.repeat(np.arange(5), 5)).mean()
    assert 0.6 < accuracy < 0.8


def test_a_dataset_that_draws_itself_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.prepare_dataset.datasets.synthetic_strokes.N_SCRIPTS", 1)
    folder = tmp_path / "synthetic_strokes"
    find_or_make_dataset("synthetic_strokes", folder, tmp_path)
    made = folder / "script_00/character_00/00.png"
    time_made = made.stat().st_mtime_ns
    find_or_make_dataset("synthetic_strokes", folder, tmp_path)
    assert made.stat().st_mtime_ns == time_made and [path.name for path in tmp_path.iterdir()] == ["synthetic_strokes"]


def test_a_missing_dataset_says_which_file_to_put_where(tmp_path):
    with pytest.raises(DataError) as missing:
        find_or_make_dataset("birds", tmp_path / "birds", tmp_path)
    assert f"neither the folder {tmp_path}/birds nor an archive {tmp_path}/birds with one of .tar.bz2" in str(
        missing.value
    )
    assert "set DATASET_DIR to where it is" in str(missing.value)
    assert str(missing.value).endswith(
        "\n  python -m utils.prepare_dataset folder --from FOLDER_OR_ARCHIVE --name birds"
    )


def test_a_file_in_place_of_the_dataset_is_named(tmp_path):
    (tmp_path / "birds").touch()
    with pytest.raises(DataError, match=r"birds: a file, but the dataset must be a folder"):
        find_or_make_dataset("birds", tmp_path / "birds", tmp_path)


def test_omniglot_without_a_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(torchvision.datasets, "Omniglot", offline)
    with pytest.raises(DataError) as missing:
        find_or_make_dataset("omniglot_dataset", tmp_path / "omniglot_dataset", tmp_path)
    assert "cannot be fetched (no network here)" in str(missing.value)
    assert f"put omniglot_dataset.tar.bz2 or .zip into {tmp_path}" in str(missing.value)
    assert not list(tmp_path.iterdir())


def test_omniglot_is_fetched_with_torchvision_and_laid_out_as_folders(tmp_path, monkeypatch):
    import torchvision.datasets

    def fetch(root, background, download):
        assert download
        name = "images_background" if background else "images_evaluation"
        folder = tmp_path.joinpath(root, "omniglot-py", name, "Greek", f"character0{2 - background}")
        folder.mkdir(parents=True)
        Image.new("1", (105, 105)).save(folder / "0001_01.png")
        folder.parents[2].joinpath(f"{name}.zip").touch()

    monkeypatch.setattr(torchvision.datasets, "Omniglot", fetch)
    omniglot.fetch_omniglot(tmp_path / "omniglot_dataset")
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == [
        "omniglot_dataset/images_background/Greek/character01/0001_01.png",
        "omniglot_dataset/images_evaluation/Greek/character02/0001_01.png",
    ]


def test_the_command_makes_a_dataset_and_reports_errors_by_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.prepare_dataset.datasets.synthetic_strokes.N_SCRIPTS", 1)
    assert main(["synthetic_strokes", "--dataset_dir", str(tmp_path)]) == 0
    assert "synthetic_strokes: 400 images in 20 folders" in capsys.readouterr().out
    assert main(["birds", "--dataset_dir", str(tmp_path)]) == 2
    assert 'dataset "birds" not found' in capsys.readouterr().err
