"""From a dataset on disk to episode batches: the laws of episodes, on pixels, and every bad dataset in one report."""

import hashlib
import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import NORMALISATIONS, Drawing, FewShotData, ImageClasses, Preprocessing, build_data, rotate_by_quarter_turns
from few_shot_classifier.datasets import SplitData
from tests.conftest import draw_dataset, draw_image
from utils.config import load_config
from utils.config.schema import ExperimentConfig
from utils.data_sources.dataset_classes import _fractions, other_dataset
from utils.episodes.drawing import EpisodeShape, split_classes
from utils.errors import ConfigError, DataError
from utils.images.decoding import PixelFormat, decode_image
from utils.images.folders import ImageFolder, group_into_classes, split_into_sets

OMNIGLOT_FRACTIONS = [0.70918052988, 0.03080714725, 0.2606284658]
OMNIGLOT_SPLIT_SHA256 = "28de3371d62b16489cd498a79ea8ee9e2c874f226ff06a56468ac0a49988b2fc"
"""Of {split: sorted class names}, computed with the reference's code on the index file in its repository."""


def config(**overrides):
    return load_config(
        None,
        {
            "experiment_name": "tiny",
            "dataset_name": "tiny",
            "image_height": 14,
            "image_width": 14,
            "num_stages": 2,
            "train_val_test_split": [0.4, 0.3, 0.3],
            "num_classes_per_set": 3,
            "num_samples_per_class": 2,
            "num_target_samples": 3,
            **overrides,
        },
    )


def numbered_data(n_classes=6, n_images=5, side=4, channels=1, augmentation=(), **options):
    """Image i of class c has one bright corner pixel and the value 10 * c + i everywhere else."""
    images = torch.zeros(n_classes * n_images, channels, side, side, dtype=torch.uint8)
    for rank in range(len(images)):
        images[rank] = 10 * (rank // n_images) + rank % n_images
        images[rank, :, 0, 0] = 255
    classes = {f"c{c}": range(c * n_images, (c + 1) * n_images) for c in range(n_classes)}
    splits = ("train", "val", "test")
    drawing = Drawing(EpisodeShape(3, 2, 3), dict.fromkeys(splits, 0), **options)
    return FewShotData(
        ImageClasses(images, dict.fromkeys(splits, classes)), drawing, Preprocessing(augmentation=dict(augmentation))
    )


def values(images):
    """Number of each image of `numbered_data` (B, n)."""
    return (images[:, :, 0, 1, 1] * 255).round().int()


def test_an_episode_has_the_promised_shapes_types_and_order(tiny_dataset):
    tiny_dataset()
    data = build_data(config(), "cpu")
    batch = data.episodes("train", [0, 1, 2, 3])
    assert data.example_shape() == (1, 14, 14)
    assert batch.support_images.shape == (4, 6, 1, 14, 14) and batch.query_images.shape == (4, 9, 1, 14, 14)
    assert batch.support_images.dtype == batch.query_images.dtype == torch.float32
    assert batch.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 4
    assert batch.query_labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 4
    assert batch.seeds.shape == (4,) and batch.seeds.dtype == torch.int64 and len(set(batch.seeds.tolist())) == 4
    assert (batch.n_way, batch.n_shot, batch.n_query, batch.split, batch.indices) == (3, 2, 3, "train", (0, 1, 2, 3))
    assert batch.support_images.min() >= 0 and batch.support_images.max() <= 1
    assert build_data(config(), "cpu", dtype=torch.float64).episodes("val", [0]).query_images.dtype == torch.float64


def test_images_of_an_episode_are_those_of_its_classes_on_disk(tiny_dataset):
    folder = tiny_dataset(channels=3)
    data = build_data(config(image_channels=3, normalisation="imagenet"), "cpu")
    batch = data.episodes("val", [5])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for label, class_rank in enumerate(batch.class_ids[0]):
        files = sorted((folder / data.class_names["val"][class_rank]).iterdir())
        on_disk = [((np.asarray(Image.open(file)) / 255 - mean) / std).transpose(2, 0, 1) for file in files]
        images = torch.cat([batch.support_images[0][2 * label :][:2], batch.query_images[0][3 * label :][:3]])
        found = [
            next(i for i, pixels in enumerate(on_disk) if np.allclose(pixels, image, atol=1e-5)) for image in images
        ]
        assert len(set(found)) == 5


def test_support_and_query_never_share_an_image_and_labels_follow_classes():
    data = numbered_data()
    batch = data.episodes("train", range(100))
    for support, query, classes in zip(
        values(batch.support_images), values(batch.query_images), batch.class_ids, strict=True
    ):
        assert not set(support.tolist()) & set(query.tolist())
        assert (support // 10).tolist() == np.repeat(classes, 2).tolist()
        assert (query // 10).tolist() == np.repeat(classes, 3).tolist()


def test_the_same_index_gives_the_same_episode_alone_or_in_a_batch():
    data = numbered_data(class_rotation=True)
    batch = data.episodes("train", [4, 0, 77])
    again = numbered_data(class_rotation=True)
    for place, index in enumerate([4, 0, 77]):
        alone = again.episodes("train", [index])
        for name in ("support_images", "query_images", "support_labels", "query_labels", "seeds"):
            assert torch.equal(getattr(batch, name)[place], getattr(alone, name)[0])


def test_a_shape_can_be_asked_for_and_the_classes_stay_when_shots_and_queries_change():
    data = numbered_data()
    batch = data.episodes("val", [0, 1], EpisodeShape(4, 1, 2))
    assert batch.support_images.shape == (2, 4, 1, 4, 4) and batch.query_images.shape == (2, 8, 1, 4, 4)
    assert batch.support_labels.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.query_labels.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2
    assert (batch.n_way, batch.n_shot, batch.n_query) == (4, 1, 2)
    assert np.array_equal(data.episodes("val", [0, 1], EpisodeShape(4, 3, 1)).class_ids, batch.class_ids)
    assert data.episodes("val", [0, 1]).support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    digests = {
        data.task_list_digest("val", [0, 1], shape) for shape in (None, EpisodeShape(4, 1, 2), EpisodeShape(4, 2, 1))
    }
    assert len(digests) == 3


def test_a_pool_of_training_tasks_leaves_validation_and_test_alone():
    pool, endless = numbered_data(n_train_tasks=3), numbered_data()
    assert torch.equal(pool.episodes("train", [4]).support_images, endless.episodes("train", [1]).support_images)
    assert torch.equal(pool.episodes("val", [4]).support_images, endless.episodes("val", [4]).support_images)


def test_test_episodes_differ_from_validation_episodes_of_the_same_classes():
    data = numbered_data()
    assert not torch.equal(
        data.episodes("val", range(5)).support_images, data.episodes("test", range(5)).support_images
    )
    assert data.task_list_digest("val", range(5)) != data.task_list_digest("test", range(5))


def test_quarter_turns_are_those_of_numpy():
    images = torch.arange(4 * 2 * 3 * 3).reshape(4, 2, 3, 3)
    turned = rotate_by_quarter_turns(images, torch.arange(4).reshape(4, 1, 1, 1))
    for turns in range(4):
        assert np.array_equal(turned[turns], np.rot90(images[turns], turns, axes=(1, 2)))


def test_a_class_is_turned_as_a_whole_in_training_only():
    data = numbered_data(class_rotation=True)
    batch, drawn = data.episodes("train", range(30)), data.draw("train", range(30))
    corner = [(0, 0), (3, 0), (3, 3), (0, 3)]  # where numpy.rot90 brings the pixel (0, 0)
    for episode in range(30):
        for label, turns in enumerate(drawn.rotations[episode]):
            row, column = corner[turns]
            assert (batch.support_images[episode, 2 * label : 2 * label + 2, 0, row, column] == 1).all()
            assert (batch.query_images[episode, 3 * label : 3 * label + 3, 0, row, column] == 1).all()
    assert (data.episodes("val", range(30)).support_images[:, :, 0, 0, 0] == 1).all()
    assert (numbered_data().episodes("train", range(30)).support_images[:, :, 0, 0, 0] == 1).all()


def test_reversed_channels_swap_red_and_blue(tiny_dataset):
    tiny_dataset(channels=3)
    straight = build_data(config(image_channels=3), "cpu").episodes("train", [0])
    reverse = build_data(config(image_channels=3, reverse_channels=True), "cpu").episodes("train", [0])
    assert torch.equal(straight.query_images.flip(2), reverse.query_images)


def test_mapped_and_loaded_images_are_the_same(tiny_dataset):
    tiny_dataset()
    loaded, mapped = (build_data(config(load_into_memory=choice), "cpu") for choice in (True, False))
    assert torch.equal(loaded.episodes("test", [3]).query_images, mapped.episodes("test", [3]).query_images)


def test_rotation_and_normalisation_that_do_not_fit_are_config_errors():
    images = ImageClasses(torch.zeros(10, 1, 4, 5, dtype=torch.uint8), {})
    plain, turned = (Drawing(EpisodeShape(1, 1, 1), {}, class_rotation=rotation) for rotation in (False, True))
    with pytest.raises(
        ConfigError, match="class_rotation needs square images, but image_height is 4 and image_width 5"
    ):
        FewShotData(images, turned, Preprocessing())
    with pytest.raises(ConfigError, match='"imagenet" has 3 channels, but image_channels is 1'):
        FewShotData(images, plain, Preprocessing("imagenet"))


def test_every_normalisation_of_the_schema_brings_its_own_mean_to_zero_and_its_deviation_to_one():
    allowed = ExperimentConfig.model_fields["normalisation"].annotation.__args__
    assert set(NORMALISATIONS) == set(allowed) - {"auto"}
    grid = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for name, (mean, std) in NORMALISATIONS.items():
        images, drawing = (
            ImageClasses(torch.cat([grid, grid]), {"val": {"a": [0, 1]}}),
            Drawing(EpisodeShape(1, 1, 1), {"val": 0}),
        )
        data = FewShotData(images, drawing, Preprocessing(name, dtype=torch.float64))
        pixels = data.episodes("val", [0]).query_images[0, 0]  # (3, 16, 16)
        for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
            line = np.interp([m, m + s], np.arange(256) / 255, pixels[channel].flatten().numpy())
            assert np.allclose(line, [0, 1])


def test_classes_are_split_by_fractions_without_overlap(tiny_dataset):
    tiny_dataset()
    names = build_data(config(), "cpu").class_names
    assert {split: len(classes) for split, classes in names.items()} == {"train": 4, "val": 4, "test": 4}
    assert len({name for classes in names.values() for name in classes}) == 12
    other = build_data(config(class_split_seed=1), "cpu").class_names
    assert other != names and build_data(config(class_split_seed=0, val_seed=7), "cpu").class_names == names


def test_pre_split_folders_are_the_splits(tiny_dataset):
    folder = tiny_dataset(pre_split=True)
    (folder / "train").rename(folder / "Train")
    names = build_data(config(sets_are_pre_split=True), "cpu").class_names
    assert names["train"] == ["character_00", "character_03", "character_06", "character_09"]
    assert names["val"] == ["character_01", "character_04", "character_07", "character_10"]


def test_the_summary_and_the_digest_of_a_task_list_do_not_depend_on_the_place(tiny_dataset, tmp_path, monkeypatch):
    folder = tiny_dataset()
    data = build_data(config(), "cpu")
    summary = json.loads(json.dumps(data.summary()))
    assert summary["splits"]["train"] == {"classes": 4, "images": 24}
    assert summary["image_shape"] == [1, 14, 14] and summary["dataset_folder"] == str(folder)
    shutil.copytree(folder, tmp_path / "elsewhere" / "tiny")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "elsewhere"))
    copied = build_data(config(), "cpu")
    assert copied.summary()["content_sha256"] == summary["content_sha256"]
    assert copied.task_list_digest("test", range(9)) == data.task_list_digest("test", range(9))
    assert copied.task_list_digest("test", range(8)) != data.task_list_digest("test", range(9))


def test_data_are_known_by_their_pixels_classes_and_splits_wherever_they_lie(tiny_dataset, tmp_path, monkeypatch):
    folder = tiny_dataset()
    data = build_data(config(), "cpu")
    identity = json.loads(json.dumps(data.identity()))
    names = {split: sorted(data.class_sizes(split)) for split in ("train", "val", "test")}
    for split, of_split in identity["splits"].items():
        classes = [[name, [f"{name}/{rank:02}.png" for rank in range(6)]] for name in names[split]]
        digest = hashlib.sha256(json.dumps(classes).encode()).hexdigest()
        assert of_split == {"classes": 4, "images": 24, "sha256": digest}
    shutil.copytree(folder, tmp_path / "elsewhere" / "tiny")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "elsewhere"))
    assert build_data(config(), "cpu").identity() == identity
    other = build_data(config(class_split_seed=3), "cpu").identity()
    assert other["content_sha256"] == identity["content_sha256"] and other["splits"] != identity["splits"]
    one = tmp_path / "elsewhere" / "tiny" / names["val"][0]
    draw_image(99, 99).save(one / "00.png")
    replaced = build_data(config(), "cpu").identity()
    assert replaced["splits"] == identity["splits"] and replaced["content_sha256"] != identity["content_sha256"]
    (one / "00.png").rename(one / "99.png")
    renamed = build_data(config(), "cpu").identity()["splits"]
    assert [split for split in renamed if renamed[split] != identity["splits"][split]] == ["val"]
    assert numbered_data().identity() is None  # of images held in Python nobody has said what they are
    numbered_data().check_content()


def test_packed_images_that_changed_are_an_error_before_the_first_result(tiny_dataset, monkeypatch):
    tiny_dataset()
    monkeypatch.setattr("utils.images.packed.LARGEST_CHECKED_AT_ONCE", 0)
    build_data(config(), "cpu").check_content()
    packed_file = Path(build_data(config(), "cpu").summary()["packed_file"])
    packed_file.write_bytes(bytes(packed_file.stat().st_size))
    data = build_data(config(), "cpu")
    with pytest.raises(DataError, match="changed since it was packed"):
        data.check_content()
    with pytest.raises(DataError, match="changed since it was packed"):
        SplitData({"train": numbered_data(), "val": data}).check_content()


def test_an_archive_is_unpacked_by_itself(tiny_dataset):
    folder = tiny_dataset()
    shutil.make_archive(str(folder), "bztar", folder.parent, folder.name)
    expected = build_data(config(), "cpu").episodes("train", [0])
    shutil.rmtree(folder)
    assert torch.equal(build_data(config(), "cpu").episodes("train", [0]).query_images, expected.query_images)


def test_an_archive_that_is_newer_than_its_folder_is_said_and_the_folder_stays(tiny_dataset, caplog):
    """Whoever puts a new release of a dataset in place of the old archive would train on the old one unawares."""
    folder = tiny_dataset()
    archive = Path(shutil.make_archive(str(folder), "tar", folder.parent, folder.name))
    caplog.set_level("INFO")
    for seconds, is_said in ((-9, False), (9, True)):
        os.utime(archive, ns=(0, folder.stat().st_mtime_ns + seconds * 10**9))
        build_data(config(), "cpu")
        assert (
            f"note: {archive} is newer than the folder {folder}, which is used; to have it" in caplog.text
        ) == is_said


def test_all_problems_of_a_dataset_come_in_one_report(tiny_dataset):
    folder = tiny_dataset(n_classes=9)
    classes = sorted(folder.glob("*/*"))
    (classes[0] / "00.png").write_bytes(b"<html>")
    (classes[1] / "01.png").write_bytes((classes[1] / "01.png").read_bytes()[:60])
    for file in list(classes[2].iterdir())[:3]:
        file.unlink()
    for file in classes[3].iterdir():
        file.unlink()
    with pytest.raises(DataError) as report:
        build_data(config(train_val_test_split=[0.6, 0.0, 0.4], num_classes_per_set=5), "cpu")
    text = str(report.value)
    assert f"{folder}: 6 problems in this dataset:" in text
    assert f"{classes[0]}/00.png: not a readable image" in text
    assert f"{classes[1]}/01.png: " in text
    for rank, n_images in ((2, 3), (3, 0)):
        assert (
            f"has {n_images} images, but num_samples_per_class 2 + num_target_samples 3 needs 5: {classes[rank]}"
            in text
        )
    assert (
        "split val has no class. No fractions give all splits enough: there are 9 classes, and 5 + 5 + 5 are needed. "
        "Add classes or lower num_classes_per_set to 3." in text
    )
    assert "split test has 4 classes, but num_classes_per_set is 5." in text


def test_a_repaired_dataset_is_read_at_the_next_start(tiny_dataset):
    folder = tiny_dataset()
    broken = sorted(folder.glob("*/*"))[0] / "00.png"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match="1 problem in this dataset"):
        build_data(config(), "cpu")
    draw_image(0, 0).save(broken)
    build_data(config(), "cpu")


def test_a_missing_dataset_is_a_data_error(tiny_dataset):
    tiny_dataset()
    with pytest.raises(DataError, match='dataset "other" not found'):
        build_data(config(dataset_name="other"), "cpu")


def test_classes_in_two_splits_are_mentioned(tiny_dataset, caplog):
    folder = tiny_dataset(pre_split=True)
    draw_dataset(folder, ["val/character_00"], side=9)
    build_data(config(sets_are_pre_split=True), "cpu")
    assert "1 class names are in train and in val, such as character_00" in caplog.text


def test_a_split_of_folders_that_is_not_used_is_told(tiny_dataset, caplog):
    folder = tiny_dataset(n_classes=9)
    build_data(config(), "cpu")
    assert "split anew" not in caplog.text
    classes = sorted(folder.glob("*/*"))
    for rank, path in enumerate(classes):
        target = folder / ("train", "VAL", "test")[rank % 3]
        target.mkdir(exist_ok=True)
        path.rename(target / path.name)
    build_data(config(), "cpu")
    assert f'{folder}: has folders train and val and test, but "sets_are_pre_split" is false' in caplog.text
    (folder / "VAL").rename(folder / "Validation")
    folder.rename(folder.with_name("inside"))
    (folder / "any").mkdir(parents=True)
    (folder / "README.txt").write_text("a file beside the folder that wraps all others")
    inside = folder.with_name("inside").rename(folder / "any" / "how")
    build_data(config(), "cpu")
    assert f'{inside}: has folders train and validation and test, but "sets_are_pre_split" is false' in caplog.text


def test_a_dataset_to_test_on_keeps_its_split_inside_a_folder_that_wraps_all_others(tiny_dataset):
    split, plain = tiny_dataset("split", pre_split=True), tiny_dataset("plain")
    assert other_dataset(config(), "split").sets_are_pre_split
    assert not other_dataset(config(), "plain").sets_are_pre_split
    for folder in (split, plain):
        inside = folder.rename(folder.with_name("inside"))
        folder.mkdir()
        (folder / "LICENSE").write_text("a file beside it")
        inside.rename(folder / "wrapper")
    assert other_dataset(config(), "split").sets_are_pre_split
    assert not other_dataset(config(), "plain").sets_are_pre_split


@pytest.mark.parametrize("n_classes", [15, 24, 81])
def test_class_folders_are_split_so_that_each_split_has_its_ways(tiny_dataset, caplog, n_classes):
    """Without a word about it in the config: 24 classes had none in val, 81 had 2, by the fractions of Omniglot."""
    tiny_dataset(n_classes=n_classes, images_per_class=2, side=8)
    caplog.set_level("INFO")
    small = {"num_samples_per_class": 1, "num_target_samples": 1, "num_classes_per_set": 5, "image_height": 8}
    sizes = {
        split: len(names)
        for split, names in build_data(
            config(**small, image_width=8, num_stages=1, train_val_test_split="auto"), "cpu"
        ).class_names.items()
    }
    assert sizes["train"] >= 5 and sizes["val"] >= 5 and sizes["test"] >= 5 and sum(sizes.values()) == n_classes
    said = re.search(
        r"train_val_test_split auto: (\d+) train, (\d+) val, (\d+) test of (\d+) classes \(fractions ([\d. ]+)\)",
        caplog.text,
    )
    assert [*map(int, said.groups()[:4])] == [sizes["train"], sizes["val"], sizes["test"], n_classes]
    fractions = [*map(float, said[5].split())]
    again = config(**small, image_width=8, num_stages=1, train_val_test_split=fractions)
    assert {split: len(names) for split, names in build_data(again, "cpu").class_names.items()} == sizes


def test_too_few_classes_for_the_ways_are_an_error_with_the_ways_that_there_are(tiny_dataset):
    tiny_dataset(n_classes=14)
    with pytest.raises(
        DataError, match=r"14 classes, and 5 \+ 5 \+ 5 are needed\. Add classes or lower num_classes_per_set to 4\."
    ):
        build_data(config(num_classes_per_set=5, train_val_test_split="auto"), "cpu")


def test_a_run_from_before_auto_keeps_its_classes(tiny_dataset):
    """Where the default of then could train and validate, whatever is asked of the test, auto is the same split."""
    for n_classes, ways in ((163, 5), (1623, 20), (33, 1), (400, [5, 12]), (1200, [20, 5])):
        for test_ways in (None, 2, 50):
            keys = {"num_classes_per_set": ways, "test_num_classes_per_set": test_ways, "head": "zero"}
            if ways == 1:
                keys = {"loss": "mean_squared_error"}
            auto = config(**keys, train_val_test_split="auto")
            assert list(_fractions(auto, n_classes)) == OMNIGLOT_FRACTIONS
    sizes = split_classes(range(100), _fractions(config(num_classes_per_set=5, train_val_test_split="auto"), 100), 0)
    assert [len(names) for names in sizes.values()] == [64, 16, 20]


def test_a_known_dataset_is_in_one_folder_under_both_its_names(tmp_path, monkeypatch):
    """One that is not known to be made, so that nothing is fetched: its archive is unpacked once."""
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    class_folders = [f"{split}/c{rank}" for split in ("train", "val", "test") for rank in range(3)]
    source = draw_dataset(tmp_path / "source", class_folders)
    shutil.make_archive(str(tmp_path / "mini_imagenet_full_size"), "tar", source)
    keys = {"dataset_name": "mini_imagenet", "sets_are_pre_split": True, "on_bad_image": "skip", "image_channels": 3}
    first = build_data(config(**keys, dataset_path="mini_imagenet"), "cpu").summary()
    assert build_data(config(**keys), "cpu").summary() == first
    assert first["dataset_folder"] == str(tmp_path / "mini_imagenet_full_size")
    assert not (tmp_path / "mini_imagenet").exists()
    shutil.copytree(source, tmp_path / "mini_imagenet")  # a folder of the user's own is what the config says
    own = build_data(config(**keys, dataset_path="mini_imagenet"), "cpu").summary()
    assert own["dataset_folder"] == str(tmp_path / "mini_imagenet")


@pytest.mark.full  # the tasks of the published weights, whose digest is checked at every change, follow from this split
def test_omniglot_classes_are_split_as_the_reference_splits_them(shared_data):
    """On the paths in the real archive."""
    with tarfile.open(shared_data("omniglot_dataset.tar.bz2")) as archive:
        paths = [name.partition("omniglot_dataset/")[2] for name in archive.getnames() if name.endswith(".png")]
    files: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        files.setdefault(folder, []).append(name)
    folders = [ImageFolder(folder, tuple(sorted(files[folder]))) for folder in sorted(files)]
    classes, problems = group_into_classes(folders, Path("omniglot_dataset"), [-3, -2], sets_are_pre_split=False)
    sets = split_into_sets(classes, OMNIGLOT_FRACTIONS, class_split_seed=0)
    names = {split: sorted(c.name for c in members) for split, members in sets.items()}
    assert not problems and {len(c.images) for c in classes} == {20}
    assert {split: len(members) for split, members in names.items()} == {"train": 1150, "val": 50, "test": 423}
    assert hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest() == OMNIGLOT_SPLIT_SHA256


@pytest.mark.full
def test_omniglot_goes_from_its_archive_to_the_reference_s_pixels_and_starts_quickly_again(
    shared_data, tmp_path, monkeypatch
):
    archive = shared_data("omniglot_dataset.tar.bz2")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    (tmp_path / archive.name).symlink_to(archive)
    omniglot = config(dataset_name="omniglot", image_height=28, image_width=28, train_val_test_split=OMNIGLOT_FRACTIONS)
    data = build_data(omniglot, "cpu")
    for path in sorted((tmp_path / "omniglot_dataset").glob("*/*/*/*_07.png")):
        with Image.open(path) as image:  # as the reference loads it
            reference = np.array(image.resize((28, 28), resample=Image.Resampling.LANCZOS), np.float32)
        ours = decode_image(path, PixelFormat(28, 28, 1, "nearest"))[0] / np.float32(255)
        assert np.array_equal(ours, reference)
    assert data.episodes("test", [0]).query_images.unique().tolist() == [0, 1]
    names = {split: sorted(classes) for split, classes in data.class_names.items()}
    assert hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest() == OMNIGLOT_SPLIT_SHA256
    started = time.perf_counter()
    build_data(omniglot, "cpu").episodes("train", range(8))
    assert time.perf_counter() - started < 2
