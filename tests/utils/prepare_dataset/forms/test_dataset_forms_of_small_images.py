"""CIFAR-FS, FC100, Omniglot and Quick, Draw! from files written exactly as they circulate."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.datasets import SMALL_COUNTS, content_of, labelled_pickle, pixels, read, write_image
from utils.errors import DataError
from utils.known_datasets import KNOWN_DATASETS, Counts
from utils.prepare_dataset.dataset_folders import read_record
from utils.prepare_dataset.datasets import cifar, omniglot, quickdraw

# CIFAR-100


FINE = ["apple", "bee", "cloud", "dolphin", "elm", "fox", "gull"]
COARSE = {"plants": ["apple", "elm"], "animals": ["bee", "dolphin", "fox"], "sky": ["cloud", "gull"]}
CIFAR_LISTS = {"train": ["apple", "bee", "elm"], "val": ["cloud", "gull"], "test": ["dolphin", "fox"]}
CIFAR_NUMBERS = {
    f"{split}/{c}": [FINE.index(c) + 7 * i for i in range(4)] for split in CIFAR_LISTS for c in CIFAR_LISTS[split]
}


def cifar_python(folder):
    """cifar-100-python as it is: rows of 3072 numbers, channel after channel; three images of a class in train, one
    in test.
    """
    folder.mkdir(parents=True)
    coarse_names = list(COARSE)
    for name, ranks in (("train", range(21)), ("test", range(21, 28))):
        content = {
            "filenames": [f"image_{i}.png" for i in ranks],
            "batch_label": "training batch 1 of 1",
            "fine_labels": [i % 7 for i in ranks],
            "coarse_labels": [next(k for k, c in enumerate(coarse_names) if FINE[i % 7] in COARSE[c]) for i in ranks],
            "data": np.stack([pixels(i, 32).transpose(2, 0, 1).reshape(-1) for i in ranks]),
        }
        (folder / name).write_bytes(pickle.dumps(content, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE, "coarse_label_names": coarse_names}, 2))


def cifar_archive(folder):
    cifar_python(folder / "work" / "cifar-100-python")
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "work" / "cifar-100-python", "cifar-100-python")
    for path in sorted((folder / "work").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "work").rmdir()


def expected_cifar(numbers=None):
    numbers = CIFAR_NUMBERS if numbers is None else numbers
    return {folder: sorted(pixels(n, 32)[0].tobytes() for n in group) for folder, group in numbers.items()}


def write_lists(folder, lists, ending=".txt"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in lists.items():
        (folder / f"{split}{ending}").write_text(json.dumps(names) if ending == ".json" else "\n".join(names) + "\n")


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("kind", [".txt", ".json", "pairs"])
def test_cifar_fs_from_cifar_100_and_split_lists(source, prepare, tmp_path, small_counts, archived, kind):
    small_counts("cifar_fs", SMALL_COUNTS)
    cifar_archive(source) if archived else cifar_python(source / "cifar-100-python")
    superclass = {name: coarse for coarse, names in COARSE.items() for name in names}
    lists = (
        {split: [[superclass[n], n] for n in names] for split, names in CIFAR_LISTS.items()}
        if kind == "pairs"
        else CIFAR_LISTS
    )
    write_lists(source / "splits" / "bertinetto", lists, ".txt" if kind == ".txt" else ".json")
    code, _, err = prepare("cifar_fs", "--from", source)
    assert (code, err) == (0, "")
    assert content_of(tmp_path / "datasets" / "cifar_fs") == expected_cifar()
    assert read(tmp_path / "datasets/cifar_fs/train/apple/00007.png").shape == (32, 32, 3)
    assert np.array_equal(read(tmp_path / "datasets/cifar_fs/train/apple/00007.png"), pixels(7, 32))


def test_fc100_lists_may_name_superclasses(source, prepare, tmp_path, small_counts):
    small_counts("fc100", Counts({"train": 2, "val": 3, "test": 2}, 4))
    cifar_python(source / "cifar-100-python")
    write_lists(tmp_path / "lists", {"train": ["plants"], "val": ["animals"], "test": ["sky"]})
    code, _, err = prepare("fc100", "--from", source, "--splits", tmp_path / "lists")
    assert (code, err) == (0, "")
    numbers = {
        f"{split}/{c}": [FINE.index(c) + 7 * i for i in range(4)]
        for split, k in (("train", "plants"), ("val", "animals"), ("test", "sky"))
        for c in COARSE[k]
    }
    assert content_of(tmp_path / "datasets" / "fc100") == expected_cifar(numbers)


@pytest.mark.parametrize(("dataset", "prefix"), [("cifar_fs", "CIFAR_FS_"), ("fc100", "FC100_"), ("cifar_fs", "")])
def test_cifar_from_pickles_of_data_and_labels(source, prepare, tmp_path, small_counts, dataset, prefix):
    small_counts(dataset, SMALL_COUNTS)
    for first, (split, count) in zip((0, 3, 5), (("train", 3), ("val", 2), ("test", 2)), strict=True):
        ranks = [100 * first + i for i in range(4 * count)]
        labelled_pickle(
            source / f"{prefix}{split}.pickle", ranks, [first + i % count for i in range(4 * count)], side=32
        )
    assert prepare(dataset, "--from", source)[0] == 0
    numbers = {
        f"{split}/{split}_{first + k:03}": [100 * first + k + count * i for i in range(4)]
        for first, split, count in ((0, "train", 3), (3, "val", 2), (5, "test", 2))
        for k in range(count)
    }
    assert content_of(tmp_path / "datasets" / dataset) == expected_cifar(numbers)


def test_cifar_fs_from_class_folders_with_lists(source, prepare, tmp_path, small_counts):
    small_counts("cifar_fs", SMALL_COUNTS)
    for folder, numbers in CIFAR_NUMBERS.items():
        for n in numbers:
            write_image(source / "cifar100" / "data" / Path(folder).name / f"{n}.png", pixels(n, 32))
    write_lists(source / "cifar100" / "splits" / "bertinetto", CIFAR_LISTS)
    assert prepare("cifar_fs", "--from", source)[0] == 0
    assert content_of(tmp_path / "datasets" / "cifar_fs") == expected_cifar()


def test_cifar_without_lists_or_with_a_name_that_is_not_there_says_so(source, prepare, tmp_path):
    cifar_python(source / "cifar-100-python")
    code, _, err = prepare("cifar_fs", "--from", source)
    assert code == 2 and "no split lists train.txt, val.txt and test.txt (or .json)" in err and "--splits" in err
    write_lists(source, CIFAR_LISTS | {"val": ["cloud", "unicorn"]})
    code, _, err = prepare("cifar_fs", "--from", source)
    assert code == 2 and 'CIFAR-100 has no class "unicorn" (list of val)' in err


def test_cifar_100_is_fetched_and_its_digest_checked(source, prepare, tmp_path, small_counts, monkeypatch):
    small_counts("cifar_fs", SMALL_COUNTS)
    cifar_archive(source)
    asked = []

    def fetch(url, destination, *, digest, algorithm):
        asked.append((url, digest, algorithm))
        destination.parent.mkdir(parents=True)
        return (source / "cifar-100-python.tar.gz").rename(destination)

    monkeypatch.setattr("utils.prepare_dataset.workspace.fetch", fetch)
    write_lists(tmp_path / "lists", CIFAR_LISTS)
    assert prepare("cifar_fs", "--splits", tmp_path / "lists")[0] == 0
    assert asked == [(cifar.ADDRESS, cifar.MD5, "md5")]
    assert content_of(tmp_path / "datasets" / "cifar_fs") == expected_cifar()


def test_the_digests_are_those_of_torchvision():
    from torchvision.datasets import CIFAR100, Omniglot

    assert (CIFAR100.url, CIFAR100.tgz_md5, CIFAR100.filename) == (cifar.ADDRESS, cifar.MD5, cifar.ARCHIVE)
    assert {f"{name}.zip": md5 for name, md5 in Omniglot.zips_md5.items()} == omniglot.ZIP_MD5


# Omniglot


def omniglot_zips(source, monkeypatch):
    """images_background.zip and images_evaluation.zip with <folder>/<alphabet>/<character>/<file>.png of 1 bit."""
    digests = {}
    for name, alphabets in (("images_background", ["Greek", "Latin"]), ("images_evaluation", ["Tengwar"])):
        with zipfile.ZipFile(source / f"{name}.zip", "w") as archive:
            for alphabet in alphabets:
                for k in range(2):
                    for i in range(20):
                        file = io.BytesIO()
                        Image.fromarray(pixels(i, 105, 1) > 80).save(file, "PNG")
                        archive.writestr(f"{name}/{alphabet}/character{k + 1:02}/0{k}_{i + 1:02}.png", file.getvalue())
        digests[f"{name}.zip"] = omniglot.file_digest(source / f"{name}.zip", "md5")
    monkeypatch.setattr(omniglot, "ZIP_MD5", digests)


def test_omniglot_from_its_two_official_zips(source, prepare, tmp_path, small_counts, monkeypatch):
    small_counts("omniglot", Counts({None: 6}, 20))
    omniglot_zips(source, monkeypatch)
    code, out, err = prepare("omniglot", "--from", source)
    assert (code, err) == (0, "") and "omniglot_dataset: prepared, 120 images in 6 classes" in out
    image = Image.open(tmp_path / "datasets/omniglot_dataset/images_evaluation/Tengwar/character02/01_20.png")
    assert image.mode == "1" and image.size == (105, 105)


def test_an_omniglot_zip_with_other_bytes_is_refused(source, prepare, monkeypatch):
    omniglot_zips(source, monkeypatch)
    with open(source / "images_evaluation.zip", "ab") as file:
        file.write(b"x")
    code, _, err = prepare("omniglot", "--from", source)
    assert code == 2 and "images_evaluation.zip: wrong bytes: md5 is " in err


def test_omniglot_without_a_source_is_fetched_with_torchvision(prepare, tmp_path, small_counts, monkeypatch):
    import torchvision.datasets

    small_counts("omniglot", Counts({None: 2}, 20))

    def fetch(root, background, download):
        folder = (
            Path(root)
            / "omniglot-py"
            / ("images_background" if background else "images_evaluation")
            / "Greek"
            / "character01"
        )
        for i in range(20):
            write_image(folder / f"{i:02}.png", pixels(i, 8))

    monkeypatch.setattr(torchvision.datasets, "Omniglot", fetch)
    code, out, err = prepare("omniglot")
    assert (code, err) == (0, "") and "omniglot_dataset: prepared, 40 images in 2 classes" in out
    assert not list((tmp_path / "datasets" / ".sources").iterdir())


@pytest.mark.full
def test_the_counts_of_real_omniglot_are_those_that_are_expected(shared_data, tmp_path, prepare):
    shared_data("omniglot_dataset.tar.bz2")
    known = KNOWN_DATASETS["omniglot"].counts
    with tarfile.open(shared_data("omniglot_dataset.tar.bz2")) as archive:
        files = [name for name in archive.getnames() if name.endswith(".png")]
    classes = {name.rpartition("/")[0] for name in files}
    assert (len(classes), len(files)) == (known.classes[None], known.classes[None] * known.images_per_class)


# Quick, Draw!


def quickdraw_files(source, n_classes=10, prefix=""):
    rng = np.random.default_rng(0)
    names = ["aircraft carrier", "ant", "bee", "The Eiffel Tower", "yoga", "zebra", "cat", "dog", "eye", "fan"][
        :n_classes
    ]
    for k, name in enumerate(names):
        np.save(source / f"{prefix}{name}.npy", rng.integers(0, 255, (30 + k, 784), dtype=np.uint8))
    return names


@pytest.mark.parametrize("prefix", ["", "full_numpy_bitmap_"])
def test_quickdraw_is_split_and_sampled_by_the_published_rule(
    source, prepare, tmp_path, small_counts, monkeypatch, prefix
):
    """The rule written down once more: names sorted and shuffled, then N rows of each by the same generator."""
    small_counts("quickdraw", Counts({"train": 6, "val": 2, "test": 2}))
    monkeypatch.setattr(quickdraw, "N_CLASSES", 10)
    names = sorted(quickdraw_files(source, prefix=prefix))
    code, out, err = prepare("quickdraw", "--from", source, "--max_samples_per_class", 5, "--seed", 7)
    assert (code, err) == (
        0,
        "",
    ) and "quickdraw_5_samples_seed7: prepared, 50 images in 10 classes (train 6, val 2, test 2)" in out
    state = np.random.RandomState(7)
    state.shuffle(names)
    dataset = tmp_path / "datasets" / "quickdraw_5_samples_seed7"
    for place, name in enumerate(names):
        split = "train" if place < 6 else "val" if place < 8 else "test"
        bitmaps = np.load(source / f"{prefix}{name}.npy")
        rows = state.choice(len(bitmaps), 5, replace=False)
        folder = dataset / split / name.replace(" ", "_")
        assert sorted(p.name for p in folder.iterdir()) == sorted(f"{row:07}.png" for row in rows)
        for row in rows:
            assert np.array_equal(read(folder / f"{row:07}.png"), bitmaps[row].reshape(28, 28))
    record = read_record(dataset)
    assert record["max_samples_per_class"] == {"each split": 5} and record["seed"] == 7


def test_two_preparations_of_quickdraw_never_mix(source, prepare, tmp_path, small_counts, monkeypatch):
    small_counts("quickdraw", Counts({"train": 6, "val": 2, "test": 2}))
    monkeypatch.setattr(quickdraw, "N_CLASSES", 10)
    quickdraw_files(source)
    for samples, seed in ((3, 123), (4, 123), (3, 5)):
        assert prepare("quickdraw", "--from", source, "--max_samples_per_class", samples, "--seed", seed)[0] == 0
    made = sorted(p.name for p in (tmp_path / "datasets").iterdir() if not p.name.startswith("."))
    assert made == ["quickdraw_3_samples_seed123", "quickdraw_3_samples_seed5", "quickdraw_4_samples_seed123"]


BUCKET_LISTING = """<?xml version='1.0' encoding='UTF-8'?>
<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'><Name>quickdraw_dataset</Name>
<Contents><Key>full/numpy_bitmap/ant.npy</Key><ETag>"{md5}"</ETag><Size>1</Size></Contents>
<Contents><Key>full/numpy_bitmap/The Eiffel Tower.npy</Key><ETag>"composite-1"</ETag></Contents>
<Contents><Key>full/numpy_bitmap/</Key></Contents></ListBucketResult>"""


def test_missing_files_are_fetched_from_the_bucket_by_its_own_listing(
    source, prepare, tmp_path, small_counts, monkeypatch
):
    small_counts("quickdraw", Counts({"train": 1, "val": 0, "test": 1}))
    monkeypatch.setattr(quickdraw, "N_CLASSES", 2)
    np.save(source / "ant.npy", np.zeros((9, 784), np.uint8))
    asked = []

    def fetch(url, destination, *, digest=None, algorithm="sha256"):
        asked.append((url, digest))
        destination.parent.mkdir(parents=True, exist_ok=True)
        if "prefix" in url:
            destination.write_text(BUCKET_LISTING.format(md5="0" * 32))
        else:
            destination.write_bytes((source / "ant.npy").read_bytes())
        return destination

    monkeypatch.setattr("utils.prepare_dataset.workspace.fetch", fetch)
    assert prepare("quickdraw", "--from", source, "--max_samples_per_class", 2)[0] == 0
    base = "https://storage.googleapis.com/quickdraw_dataset"
    assert asked == [
        (f"{base}?prefix=full/numpy_bitmap/&list-type=2", None),
        (f"{base}/full/numpy_bitmap/The%20Eiffel%20Tower.npy", None),
    ]
    asked.clear()
    assert prepare("quickdraw", "--max_samples_per_class", 2, "--seed", 1)[0] == 0
    assert (f"{base}/full/numpy_bitmap/ant.npy", "0" * 32) in asked


def test_without_a_network_the_missing_files_are_counted_and_the_fix_is_named(source, prepare, monkeypatch):
    quickdraw_files(source, 3)

    def offline(url, *_, **__):
        raise DataError(f"{url}: cannot be fetched (no network).")

    monkeypatch.setattr("utils.prepare_dataset.workspace.fetch", offline)
    code, _, err = prepare("quickdraw", "--from", source, "--max_samples_per_class", 2)
    assert code == 2 and "3 of Quick, Draw!'s 345 files are here; the others cannot be fetched" in err
    assert "gs://quickdraw_dataset/full/numpy_bitmap/ (37 GB)" in err and "--accept_counts" in err
    assert prepare("quickdraw", "--from", source, "--max_samples_per_class", 2, "--accept_counts")[0] == 0


def test_files_that_are_no_bitmaps_or_too_few_drawings_are_named(source, prepare, monkeypatch):
    monkeypatch.setattr(quickdraw, "N_CLASSES", 1)
    np.save(source / "ant.npy", np.zeros((9, 784), np.uint8))
    code, _, err = prepare("quickdraw", "--from", source, "--max_samples_per_class", 10)
    assert code == 2 and "ant.npy: has 9 drawings, fewer than --max_samples_per_class 10" in err
    np.save(source / "ant.npy", np.zeros((9, 28, 28), np.uint8))
    code, _, err = prepare("quickdraw", "--from", source, "--max_samples_per_class", 2)
    assert code == 2 and "ant.npy: must be uint8 (images, 784), but is uint8 (9, 28, 28)" in err
    (source / "ant.npy").write_bytes(np.lib.format.magic(1, 0) + b"garbage")
    code, _, err = prepare("quickdraw", "--from", source, "--max_samples_per_class", 2)
    assert code == 2 and "ant.npy: no array that can be read" in err
