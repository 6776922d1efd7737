"""Everything that may be wrong with a dataset comes in one report with paths and exit code 2, or is left out on
request.
"""

import errno
import json
import logging
import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train_maml_system
from data import build_data
from tests.conftest import draw_dataset, draw_image
from utils import known_datasets
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
    assert (
        f"left out that are in their class already, as the same file: 1: {pair(folder, '04', 'again')}" in caplog.text
    )
    assert "on_bad_image skip: images left out that are in a later split, too: 2" in caplog.text
    assert data.class_sizes("train")["character_00"] == 6 and data.class_sizes("val")["character_01"] == 6
    assert data.class_sizes("test")["character_02"] == 6


def test_images_of_equal_pixels_in_other_files_are_a_note_with_counts_and_stay(folder, caplog):
    caplog.set_level(logging.INFO)
    build()
    assert "equal pixels" not in caplog.text
    for original, copy in (("test/character_02/03", "train/character_00/x"), ("val/character_01/00",) * 2):
        with Image.open(folder / f"{original}.png") as image:
            image.convert("L").save(folder / f"{copy}.bmp")
    for _ in ("decoded now", "read from the index"):
        caplog.clear()
        data = build()
        (note,) = [record.getMessage() for record in caplog.records if "equal pixels" in record.getMessage()]
        assert note == (
            f"note: {folder}: images with equal pixels, though not equal files: 1 in two splits, 1 in one class twice, "
            "such as train/character_00/x.bmp = test/character_02/03.png. They stay; at this size different pictures "
            "may look alike."
        )
        assert data.class_sizes("train")["character_00"] == 7 and data.class_sizes("val")["character_01"] == 7


def pair(folder, one, again):
    return f"test/character_02/{one}.png = test/character_02/{again}.png"


def test_copies_within_a_class_are_left_out_unless_a_run_has_started_with_them(folder, caplog):
    one = folder / "test" / "character_02"
    for name in ("00 (1)", "00 (2)", "zz"):
        shutil.copy(one / ("03.png" if name == "zz" else "00.png"), one / f"{name}.png")
    data = build()
    assert data.class_sizes("test")["character_02"] == 6
    assert [data.image_path(rank) for rank in data.tables["test"].images[:6]] == [
        f"test/character_02/{name}.png" for name in ("00 (1)", "01", "02", "03", "04", "05")
    ]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        f"{folder}: images left out that are in their class already, as the same file: 3: "
        "test/character_02/00 (1).png = test/character_02/00 (2).png = test/character_02/00.png, "
        + pair(folder, "03", "zz")
    )
    caplog.clear()
    caplog.set_level(logging.INFO)
    kept = build_data(check_config(CONFIG, "test"), "cpu", keep_copies=True)
    assert kept.class_sizes("test")["character_02"] == 9 and "left out" not in caplog.text
    assert "images that are in their class more than once: 3, which stay: this run has started with them" in caplog.text
    assert kept.identity()["content_sha256"] == data.identity()["content_sha256"]
    assert kept.identity()["splits"]["train"] == data.identity()["splits"]["train"]
    assert kept.identity()["splits"]["test"] != data.identity()["splits"]["test"]


def test_a_class_that_is_too_small_without_its_copies_is_a_problem(folder, caplog):
    one = folder / "train" / "character_00"
    for rank in (0, 1, 2):
        shutil.copy(one / f"{rank:02}.png", one / f"{rank + 3:02}.png")
    text = report_of(num_samples_per_class=2)
    assert 'class "character_00" (train) has 3 images, but num_samples_per_class 2 + num_target_samples 2' in text
    assert "as the same file: 3: train/character_00/00.png = train/character_00/03.png" in caplog.text


def test_an_image_in_two_classes_of_a_split_is_named(folder, caplog):
    shutil.copy(folder / "val" / "character_01" / "03.png", folder / "val" / "character_04" / "x.png")
    assert build().class_sizes("val")["character_04"] == 7
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        f"{folder}: images that are in two classes, of which one must be wrong: 1: "
        "val/character_01/03.png = val/character_04/x.png"
    )


def test_a_dataset_of_the_field_stays_as_it_is_with_one_line_or_names_classes_of_another_size(
    tiny_dataset, caplog, monkeypatch
):
    omniglot = tiny_dataset("omniglot_dataset", images_per_class=20)
    counts = known_datasets.Counts({None: 12}, 20)
    known = known_datasets.KNOWN_DATASETS
    monkeypatch.setitem(known, "omniglot", replace(known["omniglot"], counts=counts))
    changes = {"dataset_name": "omniglot", "sets_are_pre_split": False, "train_val_test_split": [0.4, 0.3]}
    one = omniglot / "alphabet_0" / "character_00"
    shutil.copy(one / "00.png", one / "19.png")
    caplog.set_level(logging.INFO)
    data = build(**changes)
    assert {count["images"] for count in data.summary()["splits"].values()} == {80}
    assert "more than once: 1, which stay: a dataset of the field stays as it is" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    small = omniglot / "images_background_small1"
    shutil.copytree(omniglot / "alphabet_0", small / "alphabet_0")
    text = report_of(**changes)
    assert "4 classes have not the 20 images expected: alphabet_0/character_00 (40: alphabet_0/character_00, " in text
    assert "images_background_small1/alphabet_0/character_00), " in text and "classes found" not in text
    assert build(**changes, on_bad_image="skip").summary()["splits"]["test"]["classes"] == 4


def corner_alone(pixels):
    """A stroke so thin that halving the image loses it."""
    image = np.zeros_like(pixels)
    image[0, 0] = 1 + pixels.sum() % 255
    return Image.fromarray(image)


BLANK = {
    "16-bit grey below 256": lambda pixels: Image.fromarray(pixels.astype(np.uint16)),
    "transparent": lambda pixels: Image.fromarray(np.stack([pixels] * 3 + [pixels * 0], -1), "RGBA"),
    "so is the file": lambda pixels: Image.new("L", (14, 14), int(pixels[0, 0])),
    "lost at this size": corner_alone,
}
"""Reason -> an image of 14 x 14 pixels to one that is of one colour at 7 x 7."""


@pytest.mark.parametrize("reason", BLANK)
def test_images_of_one_colour_are_a_problem_when_they_are_a_class_or_many(folder, reason, caplog):
    one = folder / "train" / "character_00"
    for path in one.iterdir():
        BLANK[reason](np.asarray(Image.open(path))).save(path)
    size = {"image_height": 7, "image_width": 7, "resize_filter": "nearest", "num_stages": 1}
    text = report_of(**size)
    assert f"6 of 72 images are of one colour after decoding, such as train/character_00/00.png ({reason}), " in text
    assert "; all images of 1 classes: character_00. Save them with 8 bits" in text
    (one / "00.png").unlink()
    build(**size, on_bad_image="skip")
    assert "on_bad_image skip: " in caplog.text and "5 of 71 images are of one colour" in caplog.text


def test_a_few_blank_images_are_said_and_a_tenth_of_all_is_a_problem(folder, caplog):
    for rank, path in enumerate(sorted(folder.glob("*/*/00.png"))[:7]):
        Image.new("L", (14, 14), 20 * rank).save(path)
    build()
    assert "7 of 72 images are of one colour after decoding, such as test/character_02/00.png (so is the file)" in (
        caplog.text
    )
    Image.new("L", (14, 14), 200).save(sorted(folder.glob("*/*/00.png"))[7])
    assert "8 of 72 images are of one colour" in report_of()


@pytest.mark.parametrize("indexes", [[-2], [-3, -2]])
def test_a_folder_inside_a_class_is_a_problem_unless_it_is_wanted(folder, indexes, caplog):
    one = folder / "train" / "character_00"
    (one / "winter").mkdir()
    for rank in (3, 4, 5):
        (one / f"{rank:02}.png").rename(one / "winter" / f"{rank:02}.png")
    changes = {"indexes_of_folders_indicating_class": indexes, "num_target_samples": 1}
    assert (
        "train/character_00 has images of its own and in train/character_00/winter; say by "
        "indexes_of_folders_indicating_class or by moving them what is one class" in report_of(**changes)
    )
    assert build(**changes, on_bad_image="skip").summary()["splits"]["train"]["classes"] == 5
    assert "on_bad_image skip: " in caplog.text and "train/character_00/winter; say by" in caplog.text


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
