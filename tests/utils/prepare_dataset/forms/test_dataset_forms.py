"""Each form in which a dataset circulates, written to disk exactly so, becomes the right images in the right classes
and splits.
"""

import io
import pickle
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.tools.datasets import (
    SMALL_COUNTS,
    content_of,
    expected_content,
    labelled_pickle,
    pixels,
    read,
    write_csvs,
    write_image,
)
from utils.errors import DataError
from utils.known_datasets import Counts
from utils.prepare_dataset.dataset_folders import read_record
from utils.prepare_dataset.forms.array_files import open_npz

MINI = {
    "train": ["n01532829", "n01558993", "n01704323"],
    "val": ["n01855672", "n02091244"],
    "test": ["n01930112", "n01981276"],
}
MINI_NUMBERS = {f"{split}/{c}": [int(c[5:]) * 10 + i for i in range(4)] for split in MINI for c in MINI[split]}


# mini-ImageNet


def mini_folders(source):
    for folder, numbers in MINI_NUMBERS.items():
        for i, n in enumerate(numbers):
            write_image(source / "mini_imagenet_full_size" / folder / f"{i}.jpg", pixels(n))
    return source


def mini_archive(source):
    mini_folders(source)
    path = source / "mini_imagenet_full_size.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        archive.add(source / "mini_imagenet_full_size", "mini_imagenet_full_size")
    return path


def ravi_rows():
    """Rows as Ravi and Larochelle have them: n0153282900000005.jpg is image 5 of its class, counted from 1."""
    return {split: [(f"{c}{2 * i + 1:08}.jpg", c) for c in MINI[split] for i in range(4)] for split in MINI}


def mini_csv(source):
    write_csvs(source, ravi_rows())
    for split, rows in ravi_rows().items():
        for place, (file, label) in enumerate(rows):
            write_image(source / "images" / file, pixels(MINI_NUMBERS[f"{split}/{label}"][place % 4]))
    return source


def imagenet_tree(folder):
    """Eight images per class with numbers out of order; the first, third, fifth and seventh by number are those of
    the rows.
    """
    for split in MINI:
        for c in MINI[split]:
            for place, number in enumerate([12, 3, 1000, 205, 9, 77, 10026, 18]):
                rank = sorted([12, 3, 1000, 205, 9, 77, 10026, 18]).index(number)
                image = pixels(MINI_NUMBERS[f"{split}/{c}"][rank // 2] if rank % 2 == 0 else 10**6 + place)
                write_image(folder / "ILSVRC" / "Data" / "CLS-LOC" / "train" / c / f"{c}_{number}.JPEG", image)


def mini_cache(source):
    for split in MINI:
        numbers = [n for c in MINI[split] for n in MINI_NUMBERS[f"{split}/{c}"]]
        order = np.random.default_rng(0).permutation(len(numbers))
        place = np.argsort(order)
        content = {
            "image_data": np.stack([pixels(numbers[i]) for i in order]),
            "class_dict": {c: [int(place[4 * k + i]) for i in range(4)] for k, c in enumerate(MINI[split])},
        }
        with open(source / f"mini-imagenet-cache-{split}.pkl", "wb") as file:
            pickle.dump(content, file, protocol=2)
    return source


@pytest.mark.parametrize("form", [mini_folders, mini_archive, mini_csv, mini_cache])
def test_mini_imagenet_from_each_form_with_class_names(source, prepare, tmp_path, small_counts, form, caplog):
    small_counts("mini_imagenet", SMALL_COUNTS)
    caplog.set_level("INFO")
    code, out, err = prepare("mini_imagenet", "--from", form(source))
    assert (code, err) == (0, "")
    assert "mini_imagenet_full_size: prepared, 28 images in 7 classes (train 3, val 2, test 2)" in out
    assert [line for line in caplog.messages if "non-commercial" in line and "imagenet_license.md" in line]
    assert content_of(tmp_path / "datasets" / "mini_imagenet_full_size") == expected_content(MINI_NUMBERS)


def test_mini_imagenet_from_an_imagenet_tree_and_the_csv_files(source, prepare, tmp_path, small_counts):
    small_counts("mini_imagenet", SMALL_COUNTS)
    imagenet_tree(source / "imagenet")
    write_csvs(source / "ravi", ravi_rows())
    code, _, err = prepare("mini_imagenet", "--from", source / "imagenet", "--splits", source / "ravi")
    assert (code, err) == (0, "")
    assert content_of(tmp_path / "datasets" / "mini_imagenet_full_size") == expected_content(MINI_NUMBERS)
    names = sorted(p.name for p in (tmp_path / "datasets/mini_imagenet_full_size/train/n01532829").iterdir())
    assert names == [f"n01532829{i:08}.jpeg" for i in (1, 3, 5, 7)]


@pytest.mark.parametrize("prefix", ["", "miniImageNet_category_split_"])
def test_mini_imagenet_from_the_pickles_of_data_and_labels(source, prepare, tmp_path, small_counts, prefix):
    small_counts("mini_imagenet", SMALL_COUNTS)
    numbers = {}
    for split, file, first, count in (
        ("train", "train_phase_train", 0, 3),
        ("val", "val", 64, 2),
        ("test", "test", 80, 2),
    ):
        labels = [first + i % count for i in range(4 * count)]
        labelled_pickle(source / f"{prefix}{file}.pickle", [100 * first + i for i in range(4 * count)], labels)
        for k in range(count):
            numbers[f"{split}/{split}_{first + k:03}"] = [100 * first + k + count * i for i in range(4)]
    labelled_pickle(source / f"{prefix}train_phase_val.pickle", [7, 8], [0, 1])  # other images of the training classes
    code, _, err = prepare("mini_imagenet", "--from", source)
    assert (code, err) == (0, "")
    assert content_of(tmp_path / "datasets" / "mini_imagenet_full_size") == expected_content(numbers)


def test_wrong_counts_are_told_before_anything_is_written_and_can_be_accepted(source, prepare, tmp_path):
    mini_cache(source)
    code, _, err = prepare("mini_imagenet", "--from", source)
    assert code == 2
    assert (
        "split train has 3 classes, 64 expected" in err and 'class "train/n01532829" has 4 images, 600 expected' in err
    )
    assert "Nothing was written" in err and "--accept_counts" in err
    assert not (tmp_path / "datasets" / "mini_imagenet_full_size").exists()
    code, out, _ = prepare("mini_imagenet", "--from", source, "--accept_counts")
    assert code == 0 and "28 images in 7 classes" in out
    assert (
        "split test has 2 classes, 20 expected"
        in read_record(tmp_path / "datasets/mini_imagenet_full_size")["accepted_deviations"]
    )


def test_a_hostile_pickle_is_refused_by_the_command(source, prepare, tmp_path):
    mini_cache(source)
    victim = tmp_path / "was_here"
    (source / "mini-imagenet-cache-val.pkl").write_bytes(b"cos\nsystem\n(Vtouch " + str(victim).encode() + b"\ntR.")
    code, _, err = prepare("mini_imagenet", "--from", source)
    assert code == 2 and not victim.exists()
    assert "mini-imagenet-cache-val.pkl: refused, because it asks for os.system" in err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], 'has no entry "image_data" (found: list)'),
        (
            {"image_data": np.zeros((2, 84, 84, 3)), "class_dict": {}},
            "images must be uint8 (images, height, width, 3), but are float64",
        ),
        (
            {"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [0, 5]}},
            "class a names images that are not there",
        ),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [0]}}, "1 images belong to no class"),
    ],
)
def test_a_cache_pickle_with_other_content_is_named(source, prepare, content, reason):
    mini_cache(source)
    (source / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content))
    code, _, err = prepare("mini_imagenet", "--from", source)
    assert code == 2 and "mini-imagenet-cache-train.pkl: " in err and reason in err


# tiered-ImageNet


def tiered(source, form, channels):
    """Three files per kind; images in the order of some program, names in label_specific_str."""
    numbers = {}
    names = {
        "train": ["Tibetan terrier, chrysanthemum dog", "Eskimo dog", "tench"],
        "val": ["crane", "crane"],
        "test": ["otter", "eel"],
    }
    for s, (split, words) in enumerate(names.items()):
        labels = np.repeat(np.arange(len(words)), 4).astype(np.int32)
        ranks = [1000 * s + i for i in range(len(labels))]
        stack = np.stack([pixels(n) for n in ranks])
        if form == "png":
            encoded = []
            for image in stack if channels == "rgb" else stack[..., ::-1]:
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                encoded.append(np.frombuffer(file.getvalue(), np.uint8).reshape(-1, 1))
            (source / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded, 2))
        else:
            save = np.savez if form == "npz" else np.savez_compressed
            save(source / f"{split}_images.npz", images=stack if channels == "rgb" else stack[..., ::-1])
        content = {
            "label_specific": labels,
            "label_general": labels * 0,
            "label_specific_str": words,
            "label_general_str": ["x"],
        }
        (source / f"{split}_labels.pkl").write_bytes(pickle.dumps(content, 2))
        for label, word in enumerate(words):
            folder = f"{split}_{label:03}_{word.split(',')[0].replace(' ', '_')}"
            numbers[f"{split}/{folder}"] = ranks[4 * label : 4 * label + 4]
    return numbers


@pytest.mark.parametrize("form", ["npz", "compressed npz", "png"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_tiered_imagenet_from_arrays_in_either_order_of_channels(
    source, prepare, tmp_path, small_counts, form, channels
):
    small_counts("tiered_imagenet", Counts({"train": 3, "val": 2, "test": 2}))
    numbers = tiered(source, form, channels)
    code, _, err = prepare("tiered_imagenet", "--from", source)
    assert (code, err) == (0, "")
    dataset = tmp_path / "datasets" / "tiered_imagenet"
    assert content_of(dataset) == expected_content(numbers)
    assert ("blue green red, which is mended" in read_record(dataset)["form"]) == (channels == "bgr")
    assert not (tmp_path / "datasets" / ".sources" / "unpacked").exists()


def test_the_order_of_channels_can_be_given(source, prepare, tmp_path, small_counts):
    small_counts("tiered_imagenet", Counts({"train": 3, "val": 2, "test": 2}))
    numbers = tiered(source, "npz", "rgb")
    assert prepare("tiered_imagenet", "--from", source, "--channels", "bgr")[0] == 0
    first = tmp_path / "datasets/tiered_imagenet/train/train_000_Tibetan_terrier/0000000.png"
    assert np.array_equal(read(first), pixels(numbers["train/train_000_Tibetan_terrier"][0])[..., ::-1])


def test_tiered_imagenet_with_labels_alone(source, prepare, tmp_path, small_counts):
    small_counts("tiered_imagenet", Counts({"train": 3, "val": 2, "test": 2}))
    tiered(source, "npz", "bgr")
    for split in ("train", "val", "test"):
        labels = np.repeat(np.arange(3 if split == "train" else 2), 4)
        (source / f"{split}_labels.pkl").write_bytes(pickle.dumps({"labels": labels.tolist()}))
    assert prepare("tiered_imagenet", "--from", source)[0] == 0
    assert sorted(p.name for p in (tmp_path / "datasets/tiered_imagenet/val").iterdir()) == ["val_000", "val_001"]
    (source / "val_labels.pkl").unlink()
    code, _, err = prepare("tiered_imagenet", "--from", source, "--name", "again")
    assert code == 2 and "val_labels.pkl: not there, but it holds the labels" in err


def test_arrays_of_objects_and_damaged_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="an array of objects, which would have to be unpickled"):
        open_npz(tmp_path / "objects.npz", "images", tmp_path)
    with pytest.raises(DataError, match='has no array "pictures"'):
        open_npz(tmp_path / "objects.npz", "pictures", tmp_path)
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match=r"damaged.npz: damaged"):
        open_npz(tmp_path / "damaged.npz", "images", tmp_path)


# CSV files, CUB


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("in_folders", [True, False])
def test_csv_splits_with_numbers_as_labels(source, prepare, tmp_path, header, in_folders):
    """As CUB and iNaturalist circulate: fs-splits/train.csv has lines "001.Albatross/a.jpg,0" for
    images/001.Albatross/a.jpg.
    """
    rows, numbers = {}, {}
    for s, split in enumerate(("train", "val", "test")):
        rows[split] = []
        for k in range(2):
            folder = f"{s:03}.Bird_{k}"
            for i in range(3):
                file = f"{folder}/{i}.jpg" if in_folders else f"{folder}_{i}.jpg"
                rows[split].append((file, k))
                write_image(source / "images" / file, pixels(100 * s + 10 * k + i))
            numbers[f"{split}/{folder if in_folders else f'{split}_{k:03}'}"] = [100 * s + 10 * k + i for i in range(3)]
    write_csvs(source / "fs-splits", rows, header)
    code, out, err = prepare("csv", "--from", source, "--name", "birds")
    assert (code, err) == (0, "") and "birds: prepared, 18 images in 6 classes (train 2, val 2, test 2)" in out
    assert content_of(tmp_path / "datasets" / "birds") == expected_content(numbers)


@pytest.mark.parametrize("folders", [["images"] * 3, ["train", "val", "test"]])
def test_csv_splits_with_numbers_as_labels_of_images_that_lie_together(source, prepare, tmp_path, folders):
    rows, numbers = {}, {}
    for s, (split, folder) in enumerate(zip(("train", "val", "test"), folders, strict=True)):
        images = [(k, 100 * s + 10 * k + i) for k in range(2) for i in range(3)]
        rows[split] = [(f"{folder}/{n}.png", 10 * s + k) for k, n in images]
        for file, (_, n) in zip(rows[split], images, strict=True):
            write_image(source / file[0], pixels(n))
        numbers |= {f"{split}/{split}_{10 * s + k:03}": [n for c, n in images if c == k] for k in range(2)}
    write_csvs(source, rows)
    (source / "train.csv").write_bytes(b"\xef\xbb\xbf" + (source / "train.csv").read_bytes())  # as of Excel
    code, out, err = prepare("csv", "--from", source, "--name", "numbers")
    assert (code, err) == (0, "") and "18 images in 6 classes (train 2, val 2, test 2)" in out
    assert content_of(tmp_path / "datasets" / "numbers") == expected_content(numbers)


def test_csv_labels_that_are_symbols_and_images_of_one_name_stay_apart(source, prepare, tmp_path):
    rows = {"train": [], "val": [], "test": []}
    for rank, (split, label) in enumerate([("train", "*"), ("train", "#"), ("val", "%"), ("test", "@")]):
        for session in (1, 2):
            rows[split].append((f"{rank}/session{session}/0001.png", label))
            write_image(source / rows[split][-1][0], pixels(10 * rank + session))
    write_csvs(source, rows)
    assert prepare("csv", "--from", source, "--name", "symbols")[0] == 0
    found = content_of(tmp_path / "datasets" / "symbols")
    folders = ["train/_", "train/__2", "val/__3", "test/__4"]
    assert found == expected_content({folder: [10 * rank + 1, 10 * rank + 2] for rank, folder in enumerate(folders)})


def test_all_bad_rows_are_listed_together(source, prepare):
    mini_csv(source)
    with open(source / "val.csv", "a") as file:
        file.write("n0185567299999999.jpg,n01855672\n" + f"{ravi_rows()['train'][0][0]},n01532829\n")
        file.write("new.jpg,\nnew_too.jpg, \nother.jpg,../..\n")
    code, _, err = prepare("csv", "--from", source)
    assert code == 2 and "5 problems" in err
    assert "val.csv: image new.jpg has no label" in err and "val.csv: image new_too.jpg has no label" in err
    assert "val.csv: image other.jpg of class ../.. is not there" in err
    assert "val.csv: image n0185567299999999.jpg of class n01855672 is not there" in err
    assert f"val.csv: image {ravi_rows()['train'][0][0]} is in train.csv already" in err


@pytest.mark.parametrize("label", ["../outside", "{tmp_path}/outside"])
def test_a_label_that_is_no_name_of_a_folder_leads_to_none(source, prepare, tmp_path, label):
    """A label may be any text, such as a symbol: it names a folder of images only where it stays among them."""
    write_image(tmp_path / "outside" / "1.png", pixels(0))
    write_csvs(source, {split: [("1.png", label.format(tmp_path=tmp_path))] for split in MINI})
    code, _, err = prepare("csv", "--from", source)
    assert code == 2 and "train.csv: its image 1.png is not in" in err


def test_a_class_in_two_splits_is_named(source, prepare):
    rows = ravi_rows()
    moved = rows["train"].pop(0)
    rows["test"].append(moved)
    mini_csv(source)
    write_csvs(source, rows)
    code, _, err = prepare("csv", "--from", source)
    assert code == 2 and 'class "n01532829" is in train and test' in err and "classes never seen in training" in err
    code, out, _ = prepare("csv", "--from", source, "--accept_counts")
    assert code == 0 and "28 images in 8 classes (train 3, val 2, test 3)" in out


@pytest.mark.parametrize("row", ["../../etc/passwd,a", "/etc/passwd,a"])
def test_a_row_that_leads_out_of_the_folder_is_refused(source, prepare, row):
    mini_csv(source)
    (source / "test.csv").write_text(row + "\n")
    code, _, err = prepare("csv", "--from", source)
    assert code == 2 and "leads out of the images folder" in err


def caltech(source):
    """CUB_200_2011.tgz: the folder, and attributes.txt beside it."""
    folder = source / "work"
    for k in range(8):
        for i in range(3):
            write_image(
                folder / "CUB_200_2011" / "images" / f"{k + 1:03}.Bird_{k}" / f"Bird_{k}_{i}.jpg", pixels(10 * k + i)
            )
    (folder / "CUB_200_2011" / "classes.txt").write_text("".join(f"{k + 1} {k + 1:03}.Bird_{k}\n" for k in range(8)))
    (folder / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return folder


def test_cub_from_the_archive_of_caltech_with_a_seeded_split(source, prepare, tmp_path, small_counts):
    small_counts("cub", Counts({"train": 4, "val": 2, "test": 2}))
    folder = caltech(source)
    with tarfile.open(source / "CUB_200_2011.tgz", "w:gz") as archive:
        for path in folder.iterdir():
            archive.add(path, path.name)
    splits = {}
    for seed, name in ((0, "cub"), (1, "cub_seed1")):
        code, _, err = prepare("cub", "--from", source / "CUB_200_2011.tgz", "--seed", seed)
        assert (code, err) == (0, "")
        content = content_of(tmp_path / "datasets" / name)
        splits[seed] = {
            split: {c.split("/")[1] for c in content if c.startswith(split)} for split in ("train", "val", "test")
        }
        assert {c.split("/")[1]: images for c, images in content.items()} == {
            f"{k + 1:03}.Bird_{k}": sorted(pixels(10 * k + i)[0].tobytes() for i in range(3)) for k in range(8)
        }
    assert splits[0] != splits[1]
    assert prepare("cub", "--from", folder, "--name", "again")[0] == 0  # unpacked, default seed
    assert {p.name for p in (tmp_path / "datasets/again/train").iterdir()} == splits[0]["train"]


def test_cub_from_csv_files(source, prepare, tmp_path, small_counts):
    small_counts("cub", SMALL_COUNTS)
    mini_csv(source)
    assert prepare("cub", "--from", source)[0] == 0
    assert content_of(tmp_path / "datasets" / "cub") == expected_content(MINI_NUMBERS)


# groceries


def shop(folder, n_products=27):
    """A clone's folder dataset: parts that share their products, the iconic pictures beside them."""
    for product in range(n_products):
        for part, count in (("train", 2), ("val", product % 2), ("test", 1)):
            for i in range(count):
                seed = 100 * product + 10 * len(part) + i
                wide = (
                    np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
                )
                path = folder / part / "Fruit" / f"Kind {product % 3}" / f"Product-{product}" / f"x_{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(wide).save(path)
        write_image(folder / "iconic-images-and-descriptions" / "Fruit" / f"Product-{product}" / "icon.jpg", pixels(1))
    (folder / "classes.csv").write_text("Class Name\n")
    return folder


def test_groceries_are_squares_of_all_parts_and_split_by_product(source, prepare, tmp_path, small_counts):
    small_counts("groceries", Counts({"train": 17, "val": 4, "test": 6}))
    shop(source / "GroceryStoreDataset" / "dataset")
    assert prepare("groceries", "--from", source / "GroceryStoreDataset")[0] == 0
    folder = tmp_path / "datasets" / "grocery_few_shot"
    order = sorted(f"Product-{product}" for product in range(27))
    random.Random(0).shuffle(order)
    found = {split: {path.name for path in (folder / split).iterdir()} for split in ("train", "val", "test")}
    assert found == {"train": set(order[:17]), "val": set(order[17:21]), "test": set(order[21:])}
    (of_one,) = folder.glob("*/Product-5")
    assert sorted(path.name for path in of_one.iterdir()) == [f"00{n}.png" for n in range(4)]  # 2 + 1 + 1
    shown = Image.open(source / "GroceryStoreDataset/dataset/val/Fruit/Kind 2/Product-5/x_000.png")
    square = shown.crop((20, 0, 100, 80)).resize((96, 96), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(Image.open(of_one / "002.png")), np.asarray(square))
    assert prepare("groceries", "--from", source / "GroceryStoreDataset", "--seed", 1)[0] == 0
    assert (tmp_path / "datasets" / "grocery_few_shot_seed1").is_dir()


def test_what_is_no_shop_and_a_photograph_that_is_damaged_are_named(source, prepare, small_counts):
    small_counts("groceries", Counts({"train": 17, "val": 4, "test": 6}))
    (source / "empty").mkdir()
    code, _, err = prepare("groceries", "--from", source / "empty")
    assert code == 2 and "no folder with classes.csv, train, val and test; give a clone of https://github.com/" in err
    (path := next(shop(source / "shop").glob("val/Fruit/*/Product-7/x_000.png"))).write_bytes(b"no image")
    code, _, err = prepare("groceries", "--from", source / "shop")
    assert code == 2 and f"{path}: cannot be decoded" in err
