"""Folders to classes and splits: both formats, any depth, and one report of every problem."""

import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.conftest import draw_dataset
from tests.tools.datasets import unpack
from utils.episodes.drawing import EpisodeShape
from utils.errors import ConfigError, DataError
from utils.images.folders import (
    ImageClass,
    ImageFolder,
    find_shortages,
    folders_inside_classes,
    group_into_classes,
    report_problems,
    scan,
    split_into_sets,
)
from utils.words import printable


def shapes(n_way, test=((1, 2),)):
    """One shot and two query images in training, `test` at the test."""
    in_training = [EpisodeShape(n_way, 1, 2)]
    return {"train": in_training, "val": in_training, "test": [EpisodeShape(n_way, *numbers) for numbers in test]}


def group(folders, indexes, pre_split=False, **options):
    return group_into_classes(folders, Path("birds"), indexes, pre_split, **options)


def names(classes):
    return [c.name for c in classes]


def test_images_are_found_at_any_depth_in_a_fixed_order(tmp_path):
    draw_dataset(tmp_path, ["b/x", "a/z/y", "a/y"], images_per_class=2)
    assert scan(tmp_path)[0] == [
        ImageFolder("a/y", ("00.png", "01.png")),
        ImageFolder("a/z/y", ("00.png", "01.png")),
        ImageFolder("b/x", ("00.png", "01.png")),
    ]


@pytest.mark.parametrize(
    "how",
    ["in place", "in place, its time put back", "renamed over it, times put back", "the same archive again", "moved"],
)
def test_the_fingerprint_sees_what_times_of_folders_do_not(tmp_path, how):
    folder = draw_dataset(tmp_path / "birds", ["a", "b"], images_per_class=2)
    file, times = folder / "a/00.png", os.stat(folder / "a")
    content = bytes(reversed(file.read_bytes()))  # of the same size
    with tarfile.open(tmp_path / "birds.tar", "w") as archive:
        archive.add(folder, "birds")
    shutil.rmtree(folder)
    unpack(tmp_path / "birds.tar", tmp_path)
    before = scan(folder)
    assert scan(folder) == before
    if how.startswith("in place"):
        time_ns = file.stat().st_mtime_ns
        file.write_bytes(content)
        if how != "in place":
            os.utime(file, ns=(time_ns, time_ns))
    elif how == "renamed over it, times put back":
        new = tmp_path / "new"
        new.write_bytes(content)
        os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        new.rename(file)
        os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    elif how == "moved":
        folder.rename(tmp_path / "other")
        folder = tmp_path / "other"
    else:
        shutil.rmtree(folder)
        unpack(tmp_path / "birds.tar", tmp_path)
    folders, fingerprint = scan(folder)
    assert folders == before[0] and fingerprint != before[1]


def test_only_image_files_count_in_any_letter_case_and_hidden_ones_do_not(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("1.PNG", "2.Jpeg", "3.jpg", "notes.png.txt", ".4.png", "readme", "._5.jpg"):
        (folder / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "6.png").touch()
    (folder / "folder.png").mkdir()
    assert scan(tmp_path)[0] == [
        ImageFolder("c", ("1.PNG", "2.Jpeg", "3.jpg")),
    ]


def test_images_of_formats_that_are_not_read_are_counted(tmp_path, caplog):
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("1.png", "2.gif", "3.GIF", "4.tif", "notes.txt"):
        (folder / name).touch()
    assert scan(tmp_path)[0] == [ImageFolder("c", ("1.png",))]
    assert f"{tmp_path}: images of other formats are left out: 2 .gif, 1 .tif. Read are .png .jpg" in caplog.text


def test_what_would_be_missing_silently_is_kept_to_be_reported(tmp_path):
    draw_dataset(tmp_path, ["a/one"], images_per_class=1)
    (tmp_path / "a/one/link.png").symlink_to("nowhere.png")
    (tmp_path / "a/empty").mkdir()
    (tmp_path / "notes").mkdir()
    assert scan(tmp_path)[0] == [ImageFolder("a/empty", ()), ImageFolder("a/one", ("00.png", "link.png"))]


def test_linked_folders_are_followed_once(tmp_path, caplog):
    draw_dataset(tmp_path / "data", ["a/one"], images_per_class=1)
    draw_dataset(tmp_path / "elsewhere", ["two"], images_per_class=1)
    (tmp_path / "data/a/two").symlink_to(tmp_path / "elsewhere/two")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data/a/one")
    assert [folder.path for folder in scan(tmp_path / "data")[0]] == ["a/again", "a/two"]  # the first by name
    assert (
        f"{tmp_path / 'data'}: links to folders that are in the dataset already are left out: a/loop, a/one; copy such"
        in caplog.text
    )


def test_links_that_lead_nowhere_are_no_folders_and_no_obstacle(tmp_path):
    draw_dataset(tmp_path / "data", ["a"], images_per_class=1)
    for name, target in (("itself", "itself"), ("through a file", "a/00.png/x"), ("nowhere", "nothing"), ("b", "c")):
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "data" / "c").symlink_to("b")
    assert [folder.path for folder in scan(tmp_path / "data")[0]] == ["a"]
    (tmp_path / "data" / "a" / "circle.png").symlink_to("circle.png")
    assert scan(tmp_path / "data")[0][0].files == ("00.png", "circle.png"), "kept, to be reported as unreadable"


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no image found \(looked for \.png, \.jpg"):
        scan(tmp_path)


def test_class_names_are_the_indicated_path_parts_and_parts_between_are_merged():
    folders = [
        ImageFolder("images_background/Greek/alpha", ("1", "2")),
        ImageFolder("images_evaluation/Greek/alpha", ("1",)),
    ]
    classes, problems = group(folders, [-3, -2])
    assert classes == [ImageClass("Greek/alpha", None, (0, 1, 2), tuple(folder.path for folder in folders))]
    assert not problems
    assert names(group(folders, [-2])[0]) == ["alpha"]
    assert names(group(folders, [-2, -3])[0]) == ["alpha/Greek"]


def test_flat_class_folders_work_with_two_indexes_as_the_dataset_folder_is_a_part():
    assert names(group([ImageFolder("robin", ("1",))], [-3, -2])[0]) == ["birds/robin"]


def test_not_deep_enough_folders_are_a_problem_each():
    classes, problems = group([ImageFolder("robin", ("1",)), ImageFolder("x/wren", ("1",))], [-4, -2])
    assert names(classes) == ["birds/wren"]
    assert problems == [
        "birds/robin: not deep enough for indexes_of_folders_indicating_class [-4, -2]. Move its images, such as 1, "
        "into class folders, or change that key"
    ]


@pytest.mark.parametrize("indexes", [[-1], [-2, -1], []])
def test_indexes_that_name_no_folder_are_refused(indexes):
    with pytest.raises(ConfigError, match=r"must name folders; -1 is the image file itself"):
        group([ImageFolder("robin", ("1",))], indexes)


@pytest.mark.parametrize("indexes", [[-3, -2], [-2]])
def test_pre_split_folders_in_any_letter_case(indexes):
    folders = [ImageFolder("TEST/wren", ("1",)), ImageFolder("Train/robin", ("1",)), ImageFolder("val/magpie", ("1",))]
    classes, problems = group(folders, indexes, pre_split=True)
    assert [(c.split, c.name) for c in classes] == [("test", "wren"), ("train", "robin"), ("val", "magpie")]
    assert not problems
    sets = split_into_sets(classes, [0.1, 0.1, 0.8], 0)
    assert {split: names(members) for split, members in sets.items()} == {
        "train": ["robin"],
        "val": ["magpie"],
        "test": ["wren"],
    }


def test_a_class_may_be_called_like_a_split_and_lie_deeper():
    folders = [ImageFolder("train/Greek/test", ("1",))]
    assert [(c.split, c.name) for c in group(folders, [-4, -3, -2], pre_split=True)[0]] == [("train", "Greek/test")]


def test_pre_split_without_split_folders_is_a_problem():
    _, problems = group([ImageFolder("robin", ("1",)), ImageFolder("train", ("1",))], [-2], pre_split=True)
    assert "no folder above these images is named train, val or test" in problems[0]
    assert "names no class folder below the split" in problems[1]


def test_plain_class_folders_read_as_pre_split_are_one_problem_with_the_key_to_change():
    _, problems = group([ImageFolder(name, ("1",)) for name in ("jay", "robin", "wren")], [-2], pre_split=True)
    assert problems == [
        "birds: sets_are_pre_split is true, but no folder in it is named train, val or test."
        ' Set "sets_are_pre_split" to false to have its classes split, or sort them into such folders.'
    ]


def test_a_split_folder_by_another_name_is_told_once_with_the_name_to_give_it():
    names_given = ("Validation/wren", "Validation/robin", "images/training/jay", "odd/magpie", "odd/rook")
    _, problems = group([ImageFolder(name, ("1",)) for name in names_given], [-2], pre_split=True)
    told = "sets_are_pre_split is true, but no folder above these images is named train, val or test"
    assert problems == [
        f"birds/Validation: {told} (2 folders). Rename Validation to val.",
        f"birds/images/training: {told}. Rename training to train.",
        f"birds/odd: {told} (2 folders)",
    ]


def test_whole_number_labels_are_sorted_as_numbers():
    folders = [ImageFolder(name, ("1",)) for name in ("10", "9", "ten")]
    classes, problems = group(folders, [-2], labels_as_int=True)
    assert names(classes) == ["9", "10"]
    assert problems == ['birds/ten: class name "ten" is no whole number, but labels_as_int is true']


def test_two_spellings_of_one_whole_number_are_a_problem_and_a_class_in_two_places_is_none():
    folders = [ImageFolder(path, ("1",)) for path in ("01", "1", "x/1")]
    _, problems = group(folders, [-2], labels_as_int=True)
    assert problems == [
        'birds/1: with labels_as_int "1" is the class 1, as "01" is. Rename one, or set labels_as_int to false',
        'birds/x/1: with labels_as_int "1" is the class 1, as "01" is. Rename one, or set labels_as_int to false',
    ]
    assert group(folders[1:], [-2], labels_as_int=True)[1] == []


def inside(paths, indexes, pre_split=False):
    folders = [ImageFolder(path, ("1",)) for path in sorted(paths)]
    classes, _ = group(folders, indexes, pre_split)
    return folders_inside_classes(folders, {path: (c.split, c.name) for c in classes for path in c.folders}.get)


SAY = "say by indexes_of_folders_indicating_class or by moving them what is one class"


@pytest.mark.parametrize("indexes", [[-2], [-3, -2]])
def test_a_folder_inside_a_class_that_would_be_another_class_is_a_problem(indexes):
    assert inside(["k0", "k0/winter", "k1"], indexes) == [f"k0 has images of its own and in k0/winter; {SAY}"]
    assert inside(["Greek", "Greek/alpha", "Greek/beta"], indexes) == [
        f"Greek has images of its own and in Greek/alpha, Greek/beta; {SAY}"
    ]
    paths = ["train/a", *(f"train/a/{number}" for number in range(5)), "val/b", "test/c"]
    assert inside(paths, indexes, pre_split=True) == [
        f"train/a has images of its own and in train/a/0, train/a/1, train/a/2 and 2 more; {SAY}"
    ]
    many = [path for number in range(12) for path in (f"k{number:02}", f"k{number:02}/x{number}/y")]
    problems = inside(many, indexes)
    assert len(problems) == 11 and problems[-1] == "so have 2 more folders"


def test_images_beside_the_class_folders_are_a_problem_too():
    assert inside(["", "k0"], [-2]) == [f"the dataset folder itself has images of its own and in k0; {SAY}"]


@pytest.mark.parametrize(
    ("paths", "indexes", "pre_split"),
    [
        (["k0", "k1"], [-2], False),
        ([""], [-2], False),
        (["images_background/Greek/alpha", "images_evaluation/Greek/alpha"], [-3, -2], False),
        (["train/a", "val/b", "test/c"], [-2], True),
        (["train/train", "val/b", "test/c"], [-3, -2], True),
        (["k0", "k0/winter", "k1"], [1], False),  # the uppermost folder is the class, whatever lies in it
        (["k0/k0", "k0"], [-2], False),
    ],
)
def test_folders_of_one_class_may_lie_in_each_other_and_no_layout_of_classes_is_a_problem(paths, indexes, pre_split):
    assert inside(paths, indexes, pre_split) == []


def test_every_shortage_is_listed_with_its_fix():
    sets = {
        "train": [ImageClass("robin", None, (0, 1), ("robin",)), ImageClass("wren", None, (2, 3, 4), ("wren",))],
        "val": [ImageClass("magpie", None, (5, 6, 7), ("magpie",))],
        "test": [],
    }
    problems = find_shortages(sets, Path("birds"), shapes(2), pre_split=False)
    assert problems == [
        'class "robin" (train) has 2 images, but num_samples_per_class 1 + num_target_samples 2 needs 3: birds/robin.'
        " Add images, lower num_target_samples or take the folder out.",
        "split val has 1 class, but num_classes_per_set is 2. No fractions give all splits enough: there are 3 classes,"
        " and 2 + 2 + 2 are needed. Add classes or lower num_classes_per_set.",
        "split test has no class. No fractions give all splits enough: there are 3 classes, and 2 + 2 + 2 are needed."
        " Add classes.",
    ]
    assert find_shortages(sets, Path("birds"), shapes(1), pre_split=True)[1] == (
        "split test has no class. Put class folders into birds/test."
    )


def test_the_fix_of_a_split_without_enough_classes_works_as_printed():
    """Also where the test has more ways than the training; where no fractions do, the ways that do are named."""
    classes = [ImageClass(f"c{rank:02}", None, (0, 1, 2), (f"c{rank:02}",)) for rank in range(24)]
    wanted = shapes(5) | {"test": [EpisodeShape(12, 1, 2)]}

    def shortages(fractions, wanted):
        return find_shortages(split_into_sets(classes, fractions, 0), Path("birds"), wanted, pre_split=False)

    (problem,) = shortages((0.7, 0.2), wanted)
    assert problem.startswith("split test has 3 classes, but test_num_classes_per_set is 12. Raise its fraction in ")
    fractions = re.search(r"as in --train_val_test_split ([\d. ]+) or lower test_num_classes_per_set\.$", problem)
    assert shortages([float(word) for word in fractions[1].split()], wanted) == []
    (problem,) = shortages((0.5, 0.2), shapes(5) | {"val": [EpisodeShape(6, 1, 2)]})
    assert problem.startswith("split val has 4 classes, but val_num_classes_per_set is 6. Raise its fraction in ")
    text = "\n".join(shortages((0.7, 0.2), shapes(9)))
    assert "--train_val_test_split" not in text and "or lower num_classes_per_set to 8." in text
    problems = find_shortages(split_into_sets(classes[:12], (0.5, 0.0), 0), Path("birds"), shapes(5), pre_split=False)
    assert problems == [
        "split val has no class. No fractions give all splits enough: there are 12 classes, and 5 + 5 + 5 are needed."
        " Add classes or lower num_classes_per_set to 4."
    ]


def test_the_largest_shape_counts_and_a_shape_of_the_test_alone_blames_its_own_keys():
    sets = {split: [ImageClass(split, None, tuple(range(6)), (split,))] for split in ("train", "val", "test")}
    assert find_shortages(sets, Path("birds"), shapes(1, test=[(5, 1), (1, 2)]), pre_split=False) == []
    assert find_shortages(sets, Path("birds"), shapes(1, test=[(1, 1), (5, 2), (2, 2)]), pre_split=False) == [
        'class "test" (test) has 6 images, but test_num_samples_per_class 5 + test_num_target_samples 2 needs 7: '
        "birds/test."
        " Add images, lower test_num_target_samples or take the folder out."
    ]


def test_folders_are_named_as_they_are_spelled(tmp_path):
    (tmp_path / "TEST").mkdir()
    sets = {"train": [], "val": [ImageClass("wren", "val", (0, 1, 2), ("Val/wren",))], "test": []}
    problems = find_shortages(sets, tmp_path, shapes(2), pre_split=True)
    assert [line.split("Put class folders into ")[1] for line in problems] == [
        f"{tmp_path}/train.", f"{tmp_path}/Val or lower num_classes_per_set.", f"{tmp_path}/TEST.",
    ]  # fmt: skip


def test_many_classes_that_are_too_small_are_one_problem():
    train = [ImageClass(f"c{i:02}", None, tuple(range(4 + i % 2)), (f"c{i:02}",)) for i in range(12)]
    val = [ImageClass(f"v{i}", None, tuple(range(9 if i < 2 else 3)), (f"v{i}",)) for i in range(6)]
    large = {split: [EpisodeShape(5, 1, 8)] for split in ("train", "val")}
    problems = find_shortages({"train": train, "val": val}, Path("birds"), large, pre_split=False)
    needed = (
        "but num_samples_per_class 1 + num_target_samples 8 needs 9. Add images, lower num_target_samples or take these"
    )
    named = ", ".join(f"c{i:02} ({4 + i % 2})" for i in range(10))
    assert problems == [
        f"split train: 12 of its 12 classes have only 4 to 5 images, {needed} folders out: {named} and 2 more.",
        f"split val: 4 of its 6 classes have only 3 images, {needed} folders out: v2 (3), v3 (3), v4 (3), v5 (3).",
    ]


def test_one_error_lists_all_problems():
    error = report_problems(Path("birds"), [f"image {i}" for i in range(1005)])
    lines = str(error).split("\n")
    assert lines[0] == "birds: 1005 problems in this dataset:"
    assert lines[-1].strip() == "... and 5 more" and len(lines) == 1002
    assert error.exit_code == 2


def test_paths_are_printed_on_one_line_whatever_their_bytes():
    assert printable(os.fsdecode(b"bad\xff\nname\x1b[31m")) == "bad\\udcff\\nname\\x1b[31m"
    assert printable("Übung ñ") == "Übung ñ"
