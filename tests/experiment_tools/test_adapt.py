"""Class folders in, predictions and a contact sheet out."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment_tools.adapt import main, read_images, support_files_of
from few_shot_classifier import FewShotClassifier
from few_shot_classifier.arrays import say_once
from tests.tools.runs import run_tiny
from utils.images.decoding import PixelFormat


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A run called tiny, three class folders with one to three images, and six query images in folders of the
    classes.
    """
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    run_tiny(tmp_path / "experiments", total_epochs=1)
    generator = np.random.default_rng(0)
    for role, counts in (("support", (1, 2, 3)), ("query", (2, 2, 2))):
        for name, count in zip(("ant", "bee <b>", "cat"), counts, strict=True):
            folder = tmp_path / role / name
            folder.mkdir(parents=True)
            for rank in range(count):
                Image.fromarray(generator.integers(0, 256, (10, 10), dtype=np.uint8)).save(folder / f"{rank}.png")
    return tmp_path


def arguments(folders, **changes):
    options = {"experiment": "tiny", "support": folders / "support", "query": folders / "query"} | changes
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def test_predictions_are_those_of_the_classifier(folders, capsys):
    assert main(arguments(folders)) == 0
    rows = list(csv.DictReader((folders / "adapted_tiny" / "predictions.csv").open()))
    assert [row["file"] for row in rows] == [
        f"{name}/{rank}.png" for name in ("ant", "bee <b>", "cat") for rank in (0, 1)
    ]

    def read(role):
        files = sorted((folders / role).rglob("*.png"))
        return np.stack([np.asarray(Image.open(file)) for file in files]), [file.parent.name for file in files]

    fitted = FewShotClassifier.from_experiment("tiny").fit(*read("support"))
    expected = fitted.predict_proba(read("query")[0])
    found = [[float(row[f"p({name})"]) for name in ("ant", "bee <b>", "cat")] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    right = sum(row["prediction"] == row["folder"] for row in rows)
    said = capsys.readouterr().out
    assert f"{right} of 6 right" in said
    assert "adapted to 3 classes (ant: 1, bee <b>: 2, cat: 3 images)" in said
    assert (
        "the images to classify are normalised together (transductive batch-norm statistics); --statistics support "
        "would not" in said
    )
    assert main(arguments(folders, statistics="support", output=folders / "alone")) == 0
    assert "normalised together" not in capsys.readouterr().out


def test_weights_that_come_with_the_project_adapt_without_any_run(folders, capsys):
    shutil.rmtree(folders / "experiments")
    weights = ["--pretrained", "omniglot_5way_1shot", *arguments(folders)[2:], "--statistics", "support"]
    assert main(weights) == 0, capsys.readouterr().err
    rows = list(csv.DictReader((folders / "adapted_omniglot_5way_1shot" / "predictions.csv").open()))
    pixels = read_images(folders / "query", [Path(row["file"]) for row in rows], PixelFormat(28, 28, 1, "nearest"))
    files, labels = support_files_of(folders / "support")
    fitted = FewShotClassifier.from_pretrained("omniglot_5way_1shot", batch_norm_statistics="support")
    fitted.fit(read_images(folders / "support", files, PixelFormat(28, 28, 1, "nearest")), labels)
    assert [row["prediction"] for row in rows] == fitted.predict(pixels).tolist()
    for more, message in (
        (["--checkpoint", "3"], "--checkpoint 3 chooses among the epochs of a run, but --pretrained"),
        (["--pretrained", "omniglot"], 'no pretrained weights "omniglot"; '),
    ):
        assert main([*weights, *more]) == 1
        assert message in capsys.readouterr().err


def test_the_contact_sheet_is_one_file_that_loads_nothing_and_escapes_names(folders):
    assert main(arguments(folders)) == 0
    page = (folders / "adapted_tiny" / "contact_sheet.html").read_text()
    assert page.count("<img") == 6 + 6
    assert not re.search(r"(?:src|href)=\"(?!data:)(?!#)[^\"]", page), "the page loads nothing"
    assert "bee &lt;b&gt;" in page
    assert "bee <b>" not in page


def test_names_of_folders_are_no_escape_sequences_and_no_formulas(folders, capsys):
    for role in ("support", "query"):
        (folders / role / "ant").rename(folders / role / "=ant\x1b[2J")
        (folders / role / "cat").rename(folders / role / "-cat\x1b[31m")
    assert main(arguments(folders)) == 0
    out = folders / "adapted_tiny"
    printed, table = capsys.readouterr(), (out / "predictions.csv").read_text()
    assert "adapted to 3 classes (-cat\\x1b[31m: 3, =ant\\x1b[2J: 1, bee <b>: 2 images)" in printed.out
    written = (printed.out, printed.err, table, (out / "contact_sheet.html").read_text())
    assert not any("\x1b" in text for text in written)
    cells = [cell for row in csv.reader(table.splitlines()) for cell in row]
    assert "'=ant\\x1b[2J/0.png" in cells and "'-cat\\x1b[31m" in cells
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


def test_query_images_need_no_class_folders_and_results_are_not_replaced(folders, capsys):
    loose = folders / "loose"
    loose.mkdir()
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(loose / "a.png")
    assert main(arguments(folders, query=loose, steps=1, statistics="support", output=folders / "out")) == 0
    assert "1 image classified\n" in capsys.readouterr().out
    assert main(arguments(folders, query=loose, output=folders / "out")) == 1
    assert "predictions.csv: exists already and stays as it is; give another --output" in capsys.readouterr().err


def test_one_image_is_classified_by_fewer_classes_than_the_head_has_outputs_again_and_again(folders):
    shutil.rmtree(folders / "support" / "cat")
    image = folders / "query" / "ant" / "0.png"
    for name in ("adapted_tiny", "adapted_tiny-2", "adapted_tiny-3"):
        assert main(arguments(folders, query=image, statistics="support")) == 0
        (row,) = csv.DictReader((folders / name / "predictions.csv").open())
        assert row["file"] == "0.png" and row["prediction"] in ("ant", "bee <b>")
        assert float(row["p(ant)"]) + float(row["p(bee <b>)"]) == pytest.approx(1, abs=2e-6)
        assert sum(name.startswith("p(") for name in row) == 2


def test_a_name_that_is_empty_is_no_name(folders, capsys):
    assert main(["--pretrained", "", *arguments(folders)[2:]]) == 1
    assert 'there are no pretrained weights ""; ' in capsys.readouterr().err


def test_an_image_alone_and_lines_too_thin_for_the_nearest_pixel_are_warned_of(folders, capsys):
    say_once.cache_clear()
    image = folders / "query" / "ant" / "0.png"
    main(arguments(folders, query=image))
    assert "1 image in one call, of 3 classes: with transductive batch-norm" in (said := "".join(capsys.readouterr()))
    assert "lines thinner" not in said
    Image.open(image).resize((1000, 1000)).save(image)
    main(arguments(folders, query=image, statistics="support"))
    said = "".join(capsys.readouterr())
    assert "0.png: 1000 x 1000 pixels become 10 x 10 by taking the nearest one" in said
    assert "in one call" not in said


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            "a fourth class",
            1,
            "holds 4 classes, but the head that was learned tells 3 classes apart "
            '("num_classes_per_set"). Give 2 to 3, or take weights trained with "head" "zero" or "prototypes", '
            "which tell any number apart, as those of pretrained/ do whose names end in _fast",
        ),
        ("one class", 1, "holds 1 class; to tell classes apart takes two or more"),
        ("no such run", 1, "nowhere: no such run folder, neither as a path nor below"),
        ("no such folder", 2, "no such folder"),
        ("loose support", 2, "lies in no class folder; --support is one folder per class"),
        ("damaged image", 2, "1 image cannot be decoded"),
        ("no images", 2, "no image found (looked for .png,"),
        ("an empty class", 2, "support: no image in fox; give each class some, or take its folder out"),
    ],
)
def test_what_cannot_work_is_one_error(folders, capsys, change, code, message):
    changes = {}
    if change == "a fourth class":
        (folders / "support" / "dog").mkdir()
        (folders / "support" / "ant" / "0.png").rename(folders / "support" / "dog" / "0.png")
        Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(folders / "support" / "ant" / "0.png")
    elif change == "one class":
        shutil.rmtree(folders / "support" / "ant")
        shutil.rmtree(folders / "support" / "cat")
    elif change == "no such run":
        changes["experiment"] = "nowhere"
    elif change == "no such folder":
        changes["query"] = folders / "nothing"
    elif change == "loose support":
        (folders / "support" / "cat" / "0.png").rename(folders / "support" / "0.png")
    elif change == "damaged image":
        (folders / "query" / "cat" / "0.png").write_bytes(b"no image")
    elif change == "an empty class":
        (folders / "support" / "fox").mkdir()
    else:
        (folders / "empty").mkdir()
        changes["query"] = folders / "empty"
    assert main(arguments(folders, **changes)) == code
    assert message in capsys.readouterr().err
    assert not (folders / "adapted_tiny").exists()


def test_a_run_of_a_plugin_is_given_its_file(folders, capsys):
    words = ["--experiment", "tiny", "--support", str(folders / "support"), "--query", str(folders / "query")]
    assert main([*words, "--plugin", "nowhere.py"]) == 1
    assert "--plugin nowhere.py cannot be read" in capsys.readouterr().err


def test_what_is_hidden_is_no_class_and_links_are_followed_as_in_datasets(folders):
    support = folders / "support"
    before = support_files_of(support)
    shutil.copytree(support / "ant", support / ".ipynb_checkpoints")
    shutil.copytree(support / "ant", support / "__MACOSX")
    (support / "ant" / "._0.png").write_bytes(b"rubbish")
    (support / "cat").rename(folders / "elsewhere")
    (support / "cat").symlink_to(folders / "elsewhere")
    assert support_files_of(support) == before
    (support / "bee <b>" / "more").mkdir()
    shutil.copy(support / "ant" / "0.png", support / "bee <b>" / "more" / "0.png")
    files, labels = support_files_of(support)
    assert len(files) == 7 and labels.count("bee <b>") == 3
    assert main(arguments(folders, query=support, output=folders / "out")) == 0
    rows = list(csv.DictReader((folders / "out" / "predictions.csv").open()))
    assert [row["file"] for row in rows] == [file.as_posix() for file in files]


def test_support_images_of_one_colour_are_named(folders, capsys):
    Image.fromarray(np.full((10, 10), 200, np.uint16)).save(folders / "support" / "ant" / "0.png")
    assert main(arguments(folders)) == 0
    text = "1 of 6 images are of one colour after decoding, such as ant/0.png (16-bit grey below 256)"
    assert f"{folders / 'support'}: {text}" in "".join(capsys.readouterr())
