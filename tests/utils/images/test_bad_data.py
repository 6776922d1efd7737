"""Everything that may be wrong with a dataset comes in one report with paths and exit code 2, or is left out on
request.
"""

import errno
import json
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

import train_maml_system
from data import build_data
from tests.conftest import draw_dataset, draw_image
from utils.config import check_config
from utils.errors import DataError
from utils.images import decoding as image_decoding
from utils.words import printable

CONFIG = {
    "experiment_name": "bad", "dataset_name": "tiny", "image_height": 14, "image_width": 14, "num_stages": 2,
    "num_classes_per_set": 2, "num_target_samples": 2, "sets_are_pre_split": True, "gpu_to_use": "cpu",
}  # fmt: skip
ODD_NAMES = [
    "with space",
    'it\'s "quoted"',
    "two\nlines",
    os.fsdecode(b"latin\xe9"),
    "$(touch x); `ls`",
    "-rf",
    "Ünïcode 字",
]


def build(**changes):
    return build_data(check_config(CONFIG | changes, "test"), "cpu")


def report_of(**changes) -> str:
    with pytest.raises(DataError) as error:
        build(**changes)
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.fixture
def folder(tiny_dataset):
    """Pre-split: four classes of six images in each split."""
    return tiny_dataset(pre_split=True)


def test_all_kinds_of_bad_files_are_listed_together(folder, tmp_path, monkeypatch, capfd):
    one = folder / "train" / "character_00"
    good = (one / "00.png").read_bytes()
    (one / "cut.png").write_bytes(good[: len(good) // 2])
    (one / "empty.jpg").write_bytes(b"")
    (one / "page.webp").write_text("<html>404</html>")
    (one / "broken link.png").symlink_to("nowhere")
    os.mkfifo(one / "pipe.png")
    frames = [draw_image(0, rank) for rank in range(2)]
    frames[0].save(one / "moving.png", save_all=True, append_images=frames[1:])
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    shutil.copy(tmp_path / "float.tiff", one / "a tiff by another name.png")
    (folder / "val" / "character_99").mkdir()
    shutil.copy(folder / "test" / "character_02" / "00.png", folder / "val" / "character_01" / "stolen.png")
    text = report_of()
    for name, reason in (
        ("cut.png", ""),
        ("empty.jpg", "not a readable image"),
        ("page.webp", "not a readable image"),
        ("broken link.png", "No such file"),
        ("moving.png", "animated image"),
        ("pipe.png", "no regular file"),
        ("a tiff by another name.png", "not a readable image"),
    ):
        assert f"{one / name}: {reason}" in text
    assert 'class "character_99" (val) has 0 images' in text
    assert "8 problems in this dataset" in text
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    assert train_maml_system.main(["--name_of_args_json_file", str(tmp_path / "config.json")]) == 2
    assert f"{one / 'moving.png'}: animated image" in capfd.readouterr().err


def test_files_without_permission_are_listed(folder, monkeypatch):
    path = folder / "train" / "character_00" / "00.png"
    path.chmod(0)
    if os.geteuid() == 0:  # who may read every file
        opened = Image.open

        def refuse(file, **options):
            if file == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return opened(file, **options)

        monkeypatch.setattr(image_decoding.Image, "open", refuse)
    text = report_of()
    assert f"{path}: Permission denied" in text and "1 problem in this dataset" in text


def test_an_image_in_two_splits_is_named_with_both_paths_or_left_in_the_later_one(folder, caplog):
    stolen = shutil.copy(folder / "test" / "character_02" / "03.png", folder / "train" / "character_00" / "extra.png")
    shutil.copy(folder / "test" / "character_02" / "03.png", folder / "val" / "character_01" / "extra.png")
    shutil.copy(folder / "test" / "character_02" / "04.png", folder / "test" / "character_02" / "again.png")
    original, second = folder / "test" / "character_02" / "03.png", folder / "val" / "character_01" / "extra.png"
    text = report_of()
    assert "1 problem in this dataset" in text
    assert (
        f"the same image in two splits: {stolen} (train), {second} (val), {original} (test). Take it out of one" in text
    )
    caplog.set_level(logging.INFO)
    data = build(on_bad_image="skip")
    assert "images that are there more than once within a split: 1" in caplog.text
    assert "on_bad_image skip: images left out that are in a later split, too: 2" in caplog.text
    assert data.class_sizes("train")["character_00"] == 6 and data.class_sizes("val")["character_01"] == 6
    assert data.class_sizes("test")["character_02"] == 7


def test_images_that_look_alike_at_a_small_size_are_no_leak(folder):
    """Equal pixels after the resize, but other files."""
    for split in ("train", "val"):
        one = next((folder / split).iterdir())
        pixels = np.zeros((14, 14), np.uint8)
        pixels[0, 0] = 1 if split == "val" else 0
        Image.fromarray(pixels).save(one / "dark.png")
    assert (
        build(image_height=7, image_width=7, resize_filter="nearest", num_stages=1).summary()["splits"]["train"][
            "images"
        ]
        == 25
    )


def test_names_of_any_bytes_are_classes_and_files_like_others(tiny_dataset, tmp_path):
    folder = tmp_path / "datasets" / "odd"
    draw_dataset(
        folder, [f"{split}/{name}" for split in ("train", "val", "test") for name in ODD_NAMES], images_per_class=0
    )
    for rank, path in enumerate(sorted(folder.glob("*/*"))):
        for image_rank, name in enumerate(ODD_NAMES):
            draw_image(rank, image_rank).save(path / f"{name}.png")
    tiny_dataset()  # sets DATASET_DIR
    data = build(dataset_name="odd")
    assert sorted(data.class_names["train"]) == sorted(ODD_NAMES)
    assert data.summary()["splits"]["test"] == {"classes": len(ODD_NAMES), "images": len(ODD_NAMES) ** 2}
    bad = folder / "train" / "two\nlines" / os.fsdecode(b"bad\xff\n.png")
    bad.write_bytes(b"x")
    text = report_of(dataset_name="odd")
    assert f"{printable(bad)}: not a readable image" in text and len(text.splitlines()) == 3
    assert text.endswith("\nRepair or remove files that cannot be read, or leave them out with --on_bad_image skip")
    assert list(tmp_path.glob("x")) == []


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("16 bit", lambda pixels: Image.fromarray(pixels.astype(np.uint16) * 256)),
        ("palette", lambda pixels: Image.fromarray(pixels).convert("P")),
        ("cmyk", lambda pixels: Image.fromarray(np.stack([pixels * 0] * 3 + [255 - pixels], -1), "CMYK")),
    ],
)
def test_other_kinds_of_pixels_become_the_grey_ones_that_they_show(folder, kind, make):
    pixels = np.full((14, 14), 90, np.uint8)
    pixels[:7] = 200
    path = folder / "train" / "character_00" / ("kind.jpg" if kind == "cmyk" else "kind.png")
    make(pixels).save(path, **({"quality": 100} if kind == "cmyk" else {}))
    data = build()
    table, row = data.tables["train"], data.class_names["train"].index("character_00")
    rank = table.images[table.starts[row] + table.sizes[row] - 1]
    assert data.image_path(rank).endswith(path.name)
    assert np.abs(data._images[rank, 0].numpy().astype(int) - pixels).max() <= 2


def test_an_archive_that_was_cut_is_named_and_unpacked_when_it_is_whole(folder):
    whole = folder.parent / "tiny.tar.gz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(folder, "tiny")
    shutil.rmtree(folder)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert "tiny.tar.gz: damaged or not an archive of this kind" in report_of() and not folder.exists()
    whole.write_bytes(content)
    assert build().summary()["splits"]["train"]["images"] == 24


def test_a_known_dataset_with_another_number_of_classes_is_an_error_unless_it_is_wanted(folder, caplog):
    folder.rename(folder.parent / "mini_imagenet_full_size")
    changes = {"dataset_name": "mini_imagenet", "normalisation": "none"}
    text = report_of(**changes)
    for split, count in (("train", 64), ("val", 16), ("test", 20)):
        assert (
            f"split {split}: 4 classes found, {count} expected. Run: python -m utils.prepare_dataset mini_imagenet"
            in text
        )
    assert "100 expected" in report_of(**changes, sets_are_pre_split=False, train_val_test_split=[0.4, 0.3])
    build(**changes, on_bad_image="skip")
    assert "on_bad_image skip: " in caplog.text and "split val: 4 classes found, 16 expected" in caplog.text
