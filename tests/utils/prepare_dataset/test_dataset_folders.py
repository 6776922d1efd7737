"""A prepared dataset is whole or not there, goes on after a kill, is verified by the second run, and is never
overwritten.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from data import build_data
from tests.conftest import draw_dataset
from tests.tools.datasets import pixels
from utils.config import load_config
from utils.errors import ConfigError, DataError, StorageError
from utils.files.atomic_folders import folds_case, make_folder
from utils.known_datasets import KNOWN_DATASETS, Counts
from utils.machine.environment import describe_environment
from utils.paths import REPOSITORY_ROOT
from utils.prepare_dataset import class_sources, find_or_make_dataset
from utils.prepare_dataset.__main__ import parse_most_samples
from utils.prepare_dataset.catalogue import command_for
from utils.prepare_dataset.class_sources import SourceClass, limit_samples, safe_name
from utils.prepare_dataset.dataset_folders import read_record, verify_dataset, write_dataset
from utils.prepare_dataset.forms.from_dataset import prepare_from_dataset, to_pixels


def tree(folder):
    """Path -> bytes of every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def arrays(n_classes=3, n_images=4, fails_at=None):
    """Classes of small arrays; reading image `fails_at`, counted over all, raises."""

    def reader(k):
        def read(place):
            if fails_at == k * n_images + place:
                raise RuntimeError("stopped here")
            return pixels(k * n_images + place, 8)

        return read

    return [
        SourceClass("train", f"class_{k}", [f"{i}.png" for i in range(n_images)], reader(k)) for k in range(n_classes)
    ]


# Whole or not at all


def test_what_was_written_before_an_interruption_is_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "data", arrays(fails_at=9), {"dataset": "x"})
    assert not (tmp_path / "data").exists()
    begun = tmp_path / ".data.unfinished" / "train"
    kept = {path: path.stat().st_mtime_ns for path in begun.glob("class_*/*.png")}
    assert len(kept) == 8 and not (begun / "class_2").exists()
    write_dataset(tmp_path / "data", arrays(), {"dataset": "x"})
    for path, written in kept.items():
        assert (tmp_path / "data" / path.relative_to(begun.parent)).stat().st_mtime_ns == written
    write_dataset(tmp_path / "other", arrays(), {"dataset": "x"})
    assert tree(tmp_path / "data") == tree(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other"]
    assert all(
        not path.name.startswith(".") or path.name == ".prepared.json" for path in (tmp_path / "data").rglob("*")
    )


def test_what_another_request_left_is_not_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "data", arrays(fails_at=9), {"dataset": "x", "seed": 0})
    write_dataset(tmp_path / "data", arrays(n_images=3), {"dataset": "x", "seed": 1})
    assert read_record(tmp_path / "data")["images_per_class"] == {f"train/class_{k}": 3 for k in range(3)}


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    """The last image is a pipe that nobody writes to, so the process is killed while it waits there."""
    source = draw_dataset(tmp_path / "birds", ["a", "b", "z"], images_per_class=3)
    (source / "z" / "02.png").rename(tmp_path / "last.png")
    os.mkfifo(source / "z" / "02.png")
    command = [
        sys.executable,
        "-m",
        "utils.prepare_dataset",
        "folder",
        "--from",
        str(source),
        "--to",
        str(tmp_path / "datasets"),
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = tmp_path / "datasets" / ".birds.unfinished"
    deadline = time.monotonic() + 60
    while not list(begun.glob(".z.begun/01.png")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "datasets" / "birds").exists()
    inodes = {path.name: path.stat().st_ino for path in (begun / "a").iterdir()}
    (source / "z" / "02.png").unlink()
    (tmp_path / "last.png").rename(source / "z" / "02.png")
    result = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    assert "birds: prepared, 9 images in 3 classes" in result.stdout
    dataset = tmp_path / "datasets" / "birds"
    assert {path.name: path.stat().st_ino for path in (dataset / "a").iterdir()} == inodes
    content = tree(dataset)
    del content[".prepared.json"]
    assert content == tree(source)


def test_a_folder_made_without_a_key_keeps_nothing_of_a_failed_attempt(tmp_path):
    def fill(folder):
        (folder / "half").touch()
        raise RuntimeError("stopped here")

    for key, left in ((None, []), ("k", [".data.unfinished"])):
        with pytest.raises(RuntimeError):
            make_folder(tmp_path / "data", fill, resume_key=key)
        assert [path.name for path in tmp_path.iterdir()] == left


def test_a_place_that_cannot_be_written_and_an_image_that_cannot_be_read_are_told_apart(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_dataset(tmp_path / "file" / "data", arrays(), {})


def test_all_images_that_cannot_be_read_are_listed_and_a_rerun_completes_the_dataset(tmp_path, prepare):
    source = draw_dataset(tmp_path / "birds", ["a", "b", "c"], images_per_class=2)
    broken = [source / "a" / "00.png", source / "c" / "01.png"]
    for path in broken:
        path.unlink()
        path.symlink_to(tmp_path / "gone.png")
    code, _, err = prepare("folder", "--from", source)
    assert code == 2 and "2 problems in this dataset" in err
    assert all(f"{path}: cannot be read (No such file or directory)" in err for path in broken)
    assert not (tmp_path / "datasets" / "birds").exists()
    for path in broken:
        path.unlink()
        Image.new("L", (4, 4)).save(path)
    Image.new("L", (4, 4), 7).save(source / "b" / "01.png")  # which had been copied already
    assert prepare("folder", "--from", source)[0] == 0
    assert {k: v for k, v in tree(tmp_path / "datasets/birds").items() if k != ".prepared.json"} == tree(source)


def test_names_with_spaces_quotes_newlines_and_undecodable_bytes_survive(tmp_path, prepare):
    source = draw_dataset(
        tmp_path / "birds", ["a b", 'it\'s "quoted"', "new\nline", os.fsdecode(b"caf\xe9")], images_per_class=2
    )
    (source / "a b" / "00.png").rename(source / "a b" / os.fsdecode(b"\xff \n'.png"))
    assert prepare("folder", "--from", source)[0] == 0
    code, out, _ = prepare("folder", "--from", source)
    assert code == 0 and "is there and verified, 8 images in 4 classes" in out
    assert {k: v for k, v in tree(tmp_path / "datasets/birds").items() if k != ".prepared.json"} == tree(source)


# The second run


def test_the_second_run_verifies_and_touches_nothing(tmp_path, prepare):
    source = draw_dataset(tmp_path / "birds", ["a", "b"], images_per_class=3)
    assert prepare("folder", "--from", source)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets").rglob("*")}
    code, out, _ = prepare("folder", "--from", source)
    assert code == 0 and out.endswith("birds: is there and verified, 6 images in 2 classes\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets").rglob("*")} == before
    assert tree(source) == {k: v for k, v in tree(tmp_path / "datasets" / "birds").items() if k != ".prepared.json"}


def test_another_source_under_the_name_of_a_dataset_is_refused(tmp_path, prepare, monkeypatch):
    source = draw_dataset(tmp_path / "birds", ["a", "b"], images_per_class=3)
    other = draw_dataset(tmp_path / "bees", ["c", "d"], images_per_class=3)
    assert prepare("folder", "--from", source, "--name", "mine")[0] == 0
    made = tree(tmp_path / "datasets" / "mine")
    code, out, err = prepare("folder", "--from", other, "--name", "mine")
    assert (code, out) == (1, "")
    assert f"mine: is there and verified, but made from {source}, not from {other}; give another name" in err
    assert tree(tmp_path / "datasets" / "mine") == made
    monkeypatch.chdir(tmp_path)
    code, out, _ = prepare("folder", "--from", "birds", "--name", "mine")  # the same folder in other words
    assert code == 0 and "is there and verified, 6 images in 2 classes" in out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "a/00.png").unlink(), 'class "a" has 2 images, 3 were written'),
        (lambda folder: draw_dataset(folder, ["c"], 1), 'class "c" has 1 images, 0 were written'),
        (
            lambda folder: (folder / "a/00.png").write_bytes(b"x"),
            "files have other names or sizes than when they were written",
        ),
        (lambda folder: (folder / "a/00.png").rename(folder / "a/99.png"), "files have other names or sizes"),
    ],
)
def test_a_dataset_that_changed_is_told_and_left_alone(tmp_path, prepare, damage, reason):
    source = draw_dataset(tmp_path / "birds", ["a", "b"], images_per_class=3)
    prepare("folder", "--from", source)
    damage(tmp_path / "datasets" / "birds")
    before = tree(tmp_path / "datasets" / "birds")
    code, _, err = prepare("folder", "--from", source)
    assert code == 2 and reason in err and "Nothing is overwritten: move the folder away" in err
    assert tree(tmp_path / "datasets" / "birds") == before


def test_a_folder_of_the_users_own_is_counted_and_never_touched(tmp_path, prepare, small_counts):
    folder = tmp_path / "datasets" / "cub"
    draw_dataset(folder, [f"{split}/{c}" for split in ("train", "val", "test") for c in "ab"], images_per_class=2)
    before = tree(folder)
    code, _, err = prepare("cub")
    assert (
        code == 2
        and "cub (not written by this command): not what the field knows" in err
        and "split train has 2 classes, 100 expected" in err
    )
    code, out, _ = prepare("cub", "--accept_counts")
    assert code == 0 and "cub: is there, 12 images in 6 folders" in out
    assert tree(folder) == before


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path):
    write_dataset(tmp_path / "data", arrays(), {})
    (tmp_path / "data" / ".prepared.json").write_text("{")
    assert read_record(tmp_path / "data") is None and verify_dataset(tmp_path / "data") is None


# Sources


def test_the_sources_of_an_archive_are_cleaned_up_and_the_archive_stays(tmp_path, prepare):
    source = draw_dataset(tmp_path / "birds", ["train/a", "val/b", "test/c"], images_per_class=2)
    subprocess.run(["tar", "-czf", "birds.tgz", "birds"], cwd=tmp_path, check=True)
    archive = (tmp_path / "birds.tgz").read_bytes()
    code, out, _ = prepare("folder", "--from", tmp_path / "birds.tgz")
    assert code == 0 and "birds: prepared, 6 images in 3 classes (train 1, val 1, test 1)" in out
    assert (tmp_path / "birds.tgz").read_bytes() == archive
    assert [path.name for path in (tmp_path / "datasets" / ".sources").iterdir()] == []
    assert {k: v for k, v in tree(tmp_path / "datasets/birds").items() if k != ".prepared.json"} == tree(source)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["folder"], 1, "folder: give --from (any tree of class folders"),
        (["folder", "--from", "gone"], 2, "gone: not found. --from is a folder, an archive"),
        (["mini_imagenet"], 2, "Say with --from where it is: folders train, val and test, or their archive; train.csv"),
        (["mini_imagenet", "--from", "empty"], 2, "empty: no form of mini_imagenet that is known here: folders train"),
        (["csv", "--from", "empty"], 2, "empty: no form of csv that is known here"),
        (["cub", "--from", "empty"], 2, "empty: neither CUB_200_2011.tgz nor its folder"),
        (
            ["omniglot", "--from", "empty"],
            2,
            "empty: neither images_background.zip and images_evaluation.zip nor folders",
        ),
        (["folder", "--from", "birds", "--sha256", "00"], 2, "--sha256 is of a file, but this is a folder"),
        (["folder", "--from", "file.zip", "--sha256", "00"], 2, "file.zip: wrong bytes: sha256 is "),
        (["folder", "--from", "file.zip"], 2, "file.zip: damaged or not an archive of this kind"),
        (
            ["folder", "--from", "flat"],
            2,
            "flat: has images of its own, such as 00.png; every image must be in the folder of its class",
        ),
        (
            ["birds", "--from", "birds"],
            1,
            '"birds" is not known here, so --from needs a form: csv, folder, with --name birds',
        ),
        (
            ["folder", "--from", "birds", "--name", "../birds"],
            1,
            '"../birds" cannot be the name of a dataset: letters, digits',
        ),
        (["folder", "--from", "what?.zip"], 1, '"what?" cannot be the name of a dataset'),
        (["folder", "--from", ".."], 1, '"" cannot be the name of a dataset'),
        (["folder", "--from", "birds", "--seed", "-1"], 1, "--seed -1: must be 0 to"),
        (["quickdraw", "--max_samples_per_class", "train=3"], 1, "quickdraw has one number for all splits"),
    ],
)
def test_what_cannot_work_is_told_with_the_fix(tmp_path, prepare, monkeypatch, arguments, code, reason):
    monkeypatch.chdir(tmp_path)
    draw_dataset(tmp_path / "birds", ["a"], 1)
    (tmp_path / "flat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "flat" / "00.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK no")
    found = prepare(*arguments)
    assert found[0] == code and reason in found[2]


@pytest.mark.parametrize("form", ["folder", "csv", "mini_imagenet"])
@pytest.mark.parametrize("name", ["birds.7z", "birds.rar", "birds.tar.zst", "birds.tar.lz4", "a bird.png", "birds.h5"])
def test_a_file_that_cannot_be_unpacked_makes_no_dataset_of_the_folder_around_it(tmp_path, prepare, form, name):
    draw_dataset(tmp_path / "downloads", ["holiday/a", "holiday/b"], 1)
    (tmp_path / "downloads" / name).write_bytes(b"7z\274\257\047\034")
    code, _, error = prepare(form, "--from", tmp_path / "downloads" / name, "--name", "birds")
    assert code == 2 and not (tmp_path / "datasets" / "birds").exists()
    assert f"{name}: no archive that can be unpacked here (.tar.bz2," in error
    assert ".zip): unpack it and give the folder." in error
    code, _, error = prepare(form, "--from", f"https://nowhere.invalid/{name}", "--name", "birds")
    assert code == 2 and "unpack it and give the folder" in error  # before it is fetched


def test_a_table_in_a_folder_of_images_does_not_make_class_folders_of_it(tmp_path, prepare):
    draw_dataset(tmp_path / "downloads", ["holiday"], 1)
    (tmp_path / "downloads" / "train.csv").write_text("a.png,0\n")
    code, _, error = prepare("folder", "--from", tmp_path / "downloads" / "train.csv", "--name", "birds")
    assert code == 2 and "train.csv: no archive that can be unpacked here" in error


def test_classes_and_images_that_differ_in_letter_case_alone_stay_apart(tmp_path, prepare, monkeypatch, caplog):
    source = draw_dataset(tmp_path / "letters", ["a", "A", "b"], images_per_class=2)
    (source / "b" / "01.PNG").write_bytes((source / "b" / "00.png").read_bytes())
    images = tree(source)
    assert prepare("folder", "--from", source)[0] == 0
    written = tmp_path / "datasets" / "letters"
    assert {k: v for k, v in tree(written).items() if k != ".prepared.json"} == images
    # a disk that does not tell letter case apart, as those of macOS and Windows
    monkeypatch.setattr(class_sources, "folds_case", lambda folder: True)
    caplog.set_level("INFO")
    assert prepare("folder", "--from", source, "--name", "folded")[0] == 0
    written = {k: v for k, v in tree(written.with_name("folded")).items() if k != ".prepared.json"}
    assert sorted(written.values()) == sorted(images.values()) and len({path.lower() for path in written}) == 7
    assert {path.split("/")[0] for path in written} == {"A", "a_2", "b"}  # sorted, capitals come first
    assert written["b/01_2.png"] == images["b/01.png"] and written["b/01.PNG"] == images["b/01.PNG"]
    assert "class folders are numbered where their names would be one: a is a_2" in caplog.text


def test_a_disk_that_folds_letter_case_is_known_by_trying(tmp_path):
    assert folds_case(tmp_path / "new") == (tmp_path / "NEW").exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_classes_whose_labels_are_symbols_get_folders_of_their_own_across_splits(tmp_path):
    def part(*labels):
        dataset = Labelled([pixels(rank, 8) for rank in range(len(labels))], list(range(len(labels))))
        dataset.classes = labels
        return dataset

    parts = {"train": part("+", "*", "/", "C", "C#"), "val": part("%"), "test": part("&")}
    folder = prepare_from_dataset(parts, "symbols", to=tmp_path)
    assert {path.name for path in folder.glob("*/*")} == {"+", "_", "__2", "C", "C_2", "__3", "__4"}
    with pytest.raises(DataError, match=r'two classes are called "train/crane"; give one of them another name'):
        prepare_from_dataset({"train": part("crane", "crane")}, "twice", to=tmp_path)
    with pytest.raises(DataError, match='class "C" is in train and val'):
        prepare_from_dataset({"train": part("C#", "C"), "val": part("C")}, "shared", to=tmp_path)


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_inside_a_class_is_no_class_of_its_own_unnoticed(tmp_path, prepare, split):
    others = ["val/c", "test/d"] if split else ["b"]
    source = draw_dataset(tmp_path / "birds", [f"{split}k0", f"{split}k0/winter", *others], images_per_class=2)
    code, _, error = prepare("folder", "--from", source)
    assert code == 2 and not (tmp_path / "datasets" / "birds").exists()
    assert "k0 has images of its own and in k0/winter; say by " in error
    shutil.rmtree(source / f"{split}k0" / "winter")
    assert prepare("folder", "--from", source)[0] == 0


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "valid", "testing")])
@pytest.mark.parametrize("above", ["", "birds/", "a/b/"])
def test_a_split_by_folders_is_found_at_any_depth_and_by_its_other_names(tmp_path, prepare, names, above):
    source = draw_dataset(tmp_path / "birds", [f"{above}{name}/k{rank}" for rank, name in enumerate(names)], 2)
    (source / "README.txt").write_text("a file beside the folder that wraps all others")
    assert prepare("folder", "--from", source)[0] == 0
    written = tmp_path / "datasets" / "birds"
    assert [path.relative_to(written).as_posix() for path in sorted(written.glob("*/*"))] == [
        "test/k2", "train/k0", "val/k1",
    ]  # fmt: skip


def test_images_beside_a_split_and_a_split_without_val_are_told(tmp_path, prepare, caplog):
    source = draw_dataset(tmp_path / "birds", ["x/train/a", "x/val/b", "x/test/c", "y/d"], 2)
    code, _, error = prepare("folder", "--from", source)
    assert code == 2 and "birds: has x/train, x/val, x/test and images beside them, in y/d; move these" in error
    shutil.rmtree(source / "x" / "val")
    assert prepare("folder", "--from", source)[0] == 0
    assert f"{source / 'x'}: has folders train and test but none for val" in caplog.text


# Limits


def test_a_limit_is_drawn_by_seed_recorded_and_part_of_the_name(tmp_path, prepare):
    source = draw_dataset(tmp_path / "birds", ["train/a", "train/b", "val/c", "test/d"], images_per_class=10)
    drawn = {}
    for seed in (0, 1):
        code, out, _ = prepare("folder", "--from", source, "--max_samples_per_class", "train=3,test=20", "--seed", seed)
        name = f"birds_train3_test20_samples_seed{seed}"
        assert code == 0 and f"{name}: prepared, 26 images" in out
        record = read_record(tmp_path / "datasets" / name)
        assert record["images_per_class"] == {"test/d": 10, "train/a": 3, "train/b": 3, "val/c": 10}
        assert record["max_samples_per_class"] == {"train": 3, "test": 20} and record["seed"] == seed
        drawn[seed] = {
            c: sorted(p.name for p in (tmp_path / "datasets" / name / c).iterdir()) for c in ("train/a", "train/b")
        }
    assert drawn[0] != drawn[1] and drawn[0]["train/a"] != drawn[0]["train/b"]


def test_the_draw_of_a_class_depends_on_nothing_but_its_name_size_and_the_seed():
    classes = arrays(n_classes=3, n_images=50)
    alone = limit_samples(classes[1:2], {None: 5}, 3)[0]
    among = limit_samples(classes, {"train": 5}, 3)[1]
    assert alone.files == among.files and len(set(alone.files)) == 5
    for place, file in enumerate(alone.files):
        assert np.array_equal(alone.read(place), pixels(50 + int(file.removesuffix(".png")), 8))
    counts = np.zeros(50)
    for seed in range(400):
        counts[[int(file.removesuffix(".png")) for file in limit_samples(classes[:1], {None: 5}, seed)[0].files]] += 1
    assert counts.sum() == 2000 and counts.min() > 15 and counts.max() < 70  # 40 each, six standard deviations


def test_limits_are_read_from_text():
    assert parse_most_samples(None) == {} and parse_most_samples("20") == {None: 20}
    assert parse_most_samples("train=20,val=100") == {"train": 20, "val": 100}
    for text in ("0", "x", "train=", "train=0", "dev=3", "3,4", "3,train=4", "train=1,train=2", "=3"):
        with pytest.raises(ConfigError, match="--max_samples_per_class"):
            parse_most_samples(text)


def test_names_that_are_no_folders_become_some():
    assert [safe_name(n) for n in ("a/b", "..", ".hidden", "", " x y ", "Tibetan terrier", "日本", 7)] == [
        "a_b", "_..", "_.hidden", "_", "x_y", "Tibetan_terrier", "日本", "7",
    ]  # fmt: skip


# The command for a dataset that is missing


@pytest.mark.parametrize(
    ("dataset_name", "command"),
    [
        ("mini_imagenet_full_size", "mini_imagenet --from PATH_OR_ADDRESS"),
        ("omniglot_dataset", "omniglot"),
        ("cub_seed3", "cub --from PATH_OR_ADDRESS --seed 3"),
        ("quickdraw_20_samples_seed123", "quickdraw --max_samples_per_class 20 --seed 123"),
        (
            "cifar_fs_train20_val100_samples_seed0",
            "cifar_fs --from PATH_OR_ADDRESS --max_samples_per_class train=20,val=100 --seed 0",
        ),
        ("glyphs_print", "glyphs --domain print --from PACKAGES"),
        ("my photos", "folder --from FOLDER_OR_ARCHIVE --name 'my photos'"),
    ],
)
def test_a_run_without_its_dataset_names_the_command_that_prepares_it(tmp_path, dataset_name, command):
    assert command_for(dataset_name) == f"python -m utils.prepare_dataset {command}"
    if dataset_name != "omniglot_dataset":  # which is fetched instead
        with pytest.raises(DataError) as missing:
            find_or_make_dataset(dataset_name, tmp_path / dataset_name, tmp_path)
        assert str(missing.value).endswith(
            f"prepare it from what you have:\n  python -m utils.prepare_dataset {command}"
        )


def test_the_named_command_makes_the_folder_that_was_missing(tmp_path, prepare, small_counts):
    small_counts("cub", Counts({}))
    source = draw_dataset(tmp_path / "birds", ["train/a", "val/b", "test/c"], images_per_class=3)
    command = command_for("cub_2_samples_seed5").split()[3:]
    command[command.index("PATH_OR_ADDRESS")] = str(source)
    assert prepare(*command)[0] == 0
    assert (tmp_path / "datasets" / "cub_2_samples_seed5" / "train").is_dir()


def test_every_known_dataset_has_forms_in_words_and_imagenets_terms_where_they_hold():
    assert {name for name, known in KNOWN_DATASETS.items() if not known.forms} == {"sinusoid", "synthetic_strokes"}
    assert {name for name, known in KNOWN_DATASETS.items() if known.terms} == {"mini_imagenet", "tiered_imagenet"}


# From Python


class Labelled:
    """A dataset of (image, label) without any attribute."""

    def __init__(self, images, labels):
        self.images, self.labels_ = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels_[index]


def test_any_dataset_of_images_and_labels_becomes_class_folders(tmp_path):
    images = [pixels(i, 8) for i in range(6)]
    for form, convert in {
        "array": lambda x: x,
        "pil": Image.fromarray,
        "channels first": lambda x: x.transpose(2, 0, 1),
        "floats": lambda x: (x / 255).transpose(2, 0, 1),
    }.items():
        folder = prepare_from_dataset(
            Labelled([convert(x) for x in images], [5, 0, 5, 0, 5, 0]), f"as {form}", to=tmp_path
        )
        assert folder == tmp_path / f"as {form}"
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["000", "005"]
        for i, image in enumerate(images):
            with Image.open(folder / ("000" if i % 2 else "005") / f"{i:07}.png") as opened:
                assert np.array_equal(np.asarray(opened), image)


def test_splits_class_names_limits_and_the_second_call(tmp_path):
    parts = {
        split: Labelled([pixels(10 * s + i, 8) for i in range(8)], [s] * 8)
        for s, split in enumerate(("train", "val", "test"))
    }
    arguments = {"class_names": ["a b", "c", "d"], "to": tmp_path, "max_samples_per_class": 2, "seed": 4}
    folder = prepare_from_dataset(parts, "mine", **arguments)
    assert folder.name == "mine_2_samples_seed4"
    record = json.loads((folder / ".prepared.json").read_text())
    assert record["images_per_class"] == {"test/d": 2, "train/a_b": 2, "val/c": 2} and record["seed"] == 4
    assert prepare_from_dataset(None, "mine", **arguments) == folder  # is there and verified: nothing is read
    next((folder / "val" / "c").iterdir()).unlink()
    with pytest.raises(DataError, match='class "val/c" has 1 images, 2 were written'):
        prepare_from_dataset(None, "mine", **arguments)


def test_a_second_call_with_other_images_or_into_a_folder_of_the_users_is_refused_and_writes_nothing(tmp_path):
    images = [pixels(i, 8) for i in range(6)]

    def prepare(images, labels, name="mine"):
        return prepare_from_dataset(Labelled(images, labels), name, to=tmp_path)

    folder = prepare(images, [0, 0, 0, 1, 1, 1])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert prepare(images, [0, 0, 0, 1, 1, 1]) == folder
    for others, labels, difference in (
        ([*images[:4], 255 - images[4], images[5]], [0, 0, 0, 1, 1, 1], "001/0000004.png is another image"),
        (images, [0, 0, 1, 1, 0, 1], "000/0000004.png is another image"),
        (images[:5], [0, 0, 0, 1, 1], "6 images in 2 classes there, 5 images in 2 classes given; 001: 3 and 2 images"),
        (images, [0, 0, 0, 2, 2, 2], "; 001: 3 and 0 images"),
    ):
        with pytest.raises(DataError) as refused:
            prepare(others, labels)
        assert f"{folder}: there already, and made of other images (" in str(refused.value)
        assert difference in str(refused.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(
        DataError, match=r"holds notes\.txt, but no dataset that was prepared here\. Nothing was written"
    ):
        prepare(images, [0] * 6, "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="nothing: not prepared yet"):
        prepare_from_dataset(None, "nothing", to=tmp_path)


def test_images_that_are_others_whenever_they_are_read_cannot_be_compared_and_it_says_so(tmp_path, caplog):
    class Augmented(Labelled):
        def __getitem__(self, index):
            return pixels(next(draws), 8), 0

    draws = itertools.count()
    folder = prepare_from_dataset(Augmented([0] * 2, [0] * 2), "mine", to=tmp_path)
    assert prepare_from_dataset(Augmented([0] * 2, [0] * 2), "mine", to=tmp_path) == folder
    assert f"{folder}: is there, and whether it is of these images is not known" in caplog.text


@pytest.mark.parametrize("name", ["../up", "/abs/path", "a/b", ".hid", "..", ".", "", "a\nb"])
def test_a_name_is_that_of_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be the name of a dataset: letters, digits, spaces and _ \+"):
        prepare_from_dataset(Labelled([pixels(0, 8)], [0]), name, to=tmp_path / "datasets")
    assert not any(tmp_path.iterdir())


def test_a_class_of_torchvision_datasets(tmp_path):
    from torchvision.datasets import FakeData, ImageFolder
    from torchvision.transforms import ToTensor

    source = draw_dataset(tmp_path / "birds", ["robin", "wren"], images_per_class=2, channels=3)
    folder = prepare_from_dataset(ImageFolder(source, transform=ToTensor()), "birds2", to=tmp_path)
    for c in ("robin", "wren"):
        made, drawn = (sorted((base / c).iterdir()) for base in (folder, source))
        assert all(np.array_equal(Image.open(a), Image.open(b)) for a, b in zip(made, drawn, strict=True))
    fake = prepare_from_dataset(FakeData(size=12, image_size=(3, 6, 6), num_classes=2), "fake", to=tmp_path)
    assert sum(path.suffix == ".png" for path in fake.rglob("*")) == 12


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((2, 5, 6, 3), np.uint8), "its shape (2, 5, 6, 3) is neither (H, W) nor (H, W, 3) nor (3, H, W)"),
        (np.full((4, 4), -0.5), "values -0.5 to -0.5, but floats must be 0 to 1. Leave Normalize out"),
        (np.full((4, 4), np.nan), "floats must be 0 to 1"),
        (np.zeros((4, 4), np.int32), "pixels are int32"),
        (np.ma.masked_equal(np.eye(4), 1), "holds masked values; fill them"),
    ],
)
def test_images_of_another_kind_are_refused_with_their_number(tmp_path, image, reason):
    with pytest.raises(DataError) as refused:
        prepare_from_dataset(Labelled([image], [0]), "odd", to=tmp_path)
    assert "image 0: " in str(refused.value) and reason in str(refused.value)


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="Labelled: labels hold masked values"):
        prepare_from_dataset(Labelled([pixels(0, 8)], [np.ma.masked]), "odd", to=tmp_path)
    with pytest.raises(DataError, match="Labelled: each label must be one whole number, but they are float64"):
        prepare_from_dataset(Labelled([pixels(0, 8)], [0.5]), "odd", to=tmp_path)


def test_grey_and_black_and_white_images_keep_one_channel():
    assert (
        to_pixels(Image.new("1", (4, 3), 1), "x").shape == (3, 4)
        and to_pixels(np.ones((1, 3, 4), bool), "x").max() == 255
    )


# In a run


def test_a_prepared_dataset_is_ready_to_train_on_and_its_limit_is_in_the_records_of_the_run(
    tmp_path, prepare, monkeypatch
):
    source = draw_dataset(
        tmp_path / "birds", [f"{s}/{s}_{k}" for s in ("train", "val", "test") for k in range(3)], images_per_class=6
    )
    assert prepare("folder", "--from", source, "--max_samples_per_class", 4, "--seed", 2)[0] == 0
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    keys = {
        "experiment_name": "x",
        "dataset_name": "birds_4_samples_seed2",
        "sets_are_pre_split": True,
        "image_height": 14,
        "image_width": 14,
        "indexes_of_folders_indicating_class": [-3, -2],
        "num_classes_per_set": 2,
        "num_samples_per_class": 1,
        "num_target_samples": 3,
        "num_stages": 2,
        "num_dataprovider_workers": 0,
    }
    data = build_data(load_config(None, keys), "cpu")
    assert data.episodes("test", [0]).query_images.shape == (1, 6, 1, 14, 14)
    summary = data.summary()
    assert summary["splits"]["train"] == {"classes": 3, "images": 12}
    facts = {
        "dataset": "folder",
        "form": "pre-split image folders",
        "max_samples_per_class": {"each split": 4},
        "seed": 2,
    }
    recorded = describe_environment(torch.device("cpu"), summary)["data"]["prepared"]
    assert recorded == facts | {"accepted_deviations": []}
