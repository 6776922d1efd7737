"""Datasets drawn from fonts and icon sets: what is known, what is left out, and that the same comes out every time."""

import dataclasses
import hashlib
import io
import itertools
import json
import logging
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from tests.tools.datasets import pixels, write_image
from utils.config import check_config
from utils.data_sources.dataset_classes import find_classes
from utils.data_sources.task_lists import read_task_lists
from utils.data_sources.write_task_lists import domain_images
from utils.episodes.drawing import EpisodeShape, draw_episodes
from utils.errors import ConfigError, DataError
from utils.prepare_dataset.__main__ import main
from utils.prepare_dataset.glyphs import domains, preparation, sources
from utils.prepare_dataset.glyphs.benchmark import (
    OTHER_DOMAINS,
    SHAPES,
    TestImages,
    by_pixels,
    nearest_neighbour,
    small_pixels,
)
from utils.prepare_dataset.glyphs.drawing import FontFace, IconSet, affine_changes, picture, thumbnail
from utils.prepare_dataset.glyphs.preparation import GlyphRequest, prepare_glyphs
from utils.prepare_dataset.glyphs.selection import select

LATIN, HEBREW, THAI = (tuple(range(ord(first), ord(first) + 6)) for first in "aאก")
"""Train, val and test."""


def tiny_font(path, family, shapes, *, weight=0, fs_type=0):
    """A font of code point -> the places of bars in a comb; None: an empty glyph, "?": the one for missing ones."""
    names = {code: f"u{code:04X}" for code in shapes}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    drawn = {".notdef": comb((0, 3), weight), **{names[code]: comb(shape, weight) for code, shape in shapes.items()}}
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics(dict.fromkeys(drawn, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(fsType=fs_type)
    builder.setupPost()
    builder.font.recalcTimestamp = False
    builder.font["head"].created = builder.font["head"].modified = 0
    builder.save(path)


def comb(bars, weight):
    pen = TTGlyphPen(None)
    for left, bottom, width, height in (
        ()
        if bars is None
        else [
            (0, 0, 600, 60 + weight),
            *((100 * bar + 5, 0, 40 + weight, 300 + 10 * weight) for bar in ((0, 3) if bars == "?" else bars)),
        ]
    ):
        pen.moveTo((left, bottom))
        for x, y in ((left, bottom + height), (left + width, bottom + height), (left + width, bottom)):
            pen.lineTo((x, y))
        pen.closePath()
    return pen.glyph()


def short_os2(font):
    """A font whose table OS/2 is said to have ten bytes."""
    place = font.index(b"OS/2") + 12  # tag, checksum, offset, length
    return font[:place] + (10).to_bytes(4, "big") + font[place + 4 :]


def shapes_of(codes):
    """Three bars of six places, others for each character."""
    return dict(zip(codes, itertools.combinations(range(6), 3), strict=False))


@pytest.fixture
def fonts(tmp_path):
    """Five fonts of five weights, each with all of three scripts."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    for weight in range(5):
        tiny_font(folder / f"f{weight}.ttf", f"F{weight}", shapes_of(LATIN + HEBREW + THAI), weight=14 * weight)
    return folder


@pytest.fixture
def known(fonts, monkeypatch):
    """Those fonts, as the one known package; returns the function that says it again after a change."""
    monkeypatch.setattr(preparation, "available_cores", lambda: 1)

    def know(paths=None):
        files = [
            {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:32], "package": "fonts-tiny", "file": path.name}
            for path in sorted(paths or fonts.iterdir())
        ]
        package = {
            "name": "fonts-tiny", "version": "1.0-1", "registry": "debian", "licence": "OFL-1.1", "bytes": "1000000",
            "sha256": "0" * 64, "domains": "scripts print",
        }  # fmt: skip
        tables = {"packages.csv": [package], "files.csv": files}
        monkeypatch.setattr(sources, "_table", tables.__getitem__)

    know()
    return know


def prepared(tmp_path, location, domain="scripts", name="to", **options):
    request = GlyphRequest(domain, tmp_path / name, [str(location)], **options)
    prepare_glyphs(request)
    return request.dataset_root / request.folder_name


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def debian_package(path, files):
    """An ar of three members, the last one with the files, and a link as most packages have one."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/share/fonts/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/fonts/link.ttf")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(data.getvalue())}
    ar = b"!<arch>\n"
    for name, content in members.items():
        ar += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    path.write_bytes(ar)
    return path


def test_each_image_of_a_class_is_from_a_font_of_its_own_and_scripts_are_split(tmp_path, fonts, known):
    folder = prepared(tmp_path, fonts)
    classes = {p.relative_to(folder).as_posix(): sorted(f.name for f in p.iterdir()) for p in folder.glob("*/*")}
    assert set(classes) == {
        f"{split}/{script}_{code:04X}"
        for split, script, codes in (("train", "Latn", LATIN), ("val", "Hebr", HEBREW), ("test", "Thai", THAI))
        for code in codes
    }
    for files in classes.values():
        assert sorted(file.partition("_")[2] for file in files) == [f"f{weight}.png" for weight in range(5)]
    with Image.open(next(folder.glob("test/*/00_*.png"))) as image:
        assert image.size == (64, 64) and image.mode == "L" and np.asarray(image).min() < 60


def test_two_preparations_are_the_same_to_the_byte_from_a_package_as_from_a_folder(tmp_path, fonts, known):
    package = debian_package(tmp_path / "fonts-tiny_1.0-1_all.deb", {p.name: p.read_bytes() for p in fonts.iterdir()})
    assert contents(prepared(tmp_path, fonts)) == contents(prepared(tmp_path, package, name="again"))
    assert not (tmp_path / "again/.sources/unpacked").exists()


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, fonts, known, monkeypatch):
    whole = contents(prepared(tmp_path, fonts))
    drawn = []

    def picture_or_kill(ink, changes):
        drawn.append(1)
        if len(drawn) == 42:
            raise KeyboardInterrupt
        return picture(ink, changes)

    monkeypatch.setattr(preparation, "picture", picture_or_kill)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, fonts, name="killed")
    assert not (tmp_path / "killed/glyphs_scripts").exists()
    drawn.clear()
    monkeypatch.setattr(preparation, "picture", lambda ink, changes: drawn.append(1) or picture(ink, changes))
    assert contents(prepared(tmp_path, fonts, name="killed")) == whole
    assert len(drawn) == 90 - 40  # eight classes were whole


def test_a_second_run_verifies_and_one_class_less_is_noticed(tmp_path, fonts, known):
    folder = prepared(tmp_path, fonts)
    line = prepare_glyphs(GlyphRequest("scripts", tmp_path / "to"))
    assert line == f"{folder}: is there and verified, 90 images in 18 classes (train 6, val 6, test 6)"
    next(folder.glob("test/*/*.png")).unlink()
    with pytest.raises(DataError, match="has 4 images, 5 were written"):
        prepare_glyphs(GlyphRequest("scripts", tmp_path / "to"))


@pytest.mark.parametrize("shape", [None, "?"], ids=["empty", "sign for missing"])
def test_missing_glyphs_are_no_images(tmp_path, fonts, known, caplog, shape):
    tiny_font(fonts / "f0.ttf", "F0", shapes_of(LATIN + HEBREW + THAI) | {THAI[0]: shape})
    known()
    with caplog.at_level(logging.INFO):
        folder = prepared(tmp_path, fonts)
    files = [path.name for path in (folder / f"test/Thai_{THAI[0]:04X}").iterdir()]
    assert len(files) == 4 and not any("f0" in file for file in files)
    assert "left out: 1 drawings: missing: nothing, or the sign for it, is drawn" in caplog.messages
    assert "distinct sources per class: 4 to 5, median 5" in caplog.messages


def test_a_font_without_a_character_is_no_source_of_it_and_too_few_fonts_are_no_class(tmp_path, fonts, known, caplog):
    for weight in (0, 1):
        shapes = shapes_of(LATIN + HEBREW + THAI)
        del shapes[THAI[0]]
        tiny_font(fonts / f"f{weight}.ttf", f"F{weight}", shapes, weight=14 * weight)
    known()
    with caplog.at_level(logging.INFO):
        folder = prepared(tmp_path, fonts)
    assert len(list((folder / "test").iterdir())) == 5
    assert "left out: 1 class with another number of sources" in caplog.messages
    affine = prepared(tmp_path, fonts, "scripts_affine")
    assert [p.name for p in affine.glob("*/*")] == [f"Thai_{THAI[0]:04X}"]
    images = contents(affine / f"test/Thai_{THAI[0]:04X}")
    assert len(images) == len(set(images.values())) == 20 and {name[3:5] for name in images} == {"f2", "f3", "f4"}


def test_of_letters_with_few_fonts_those_that_most_fonts_draw_are_taken_from_each_script(monkeypatch):
    monkeypatch.setattr(preparation, "MOST_AFFINE", 2)
    n_fonts = {"Thai_01": 1, "Thai_02": 3, "Thai_03": 4, "Thai_04": 0, "Thai_05": 2, "Hebr_01": 1}
    kept = {name: [domains.Candidate(place, 1) for place in range(n)] for name, n in n_fonts.items()}
    assert preparation.few_of_each_script(kept) == {"Thai_02", "Thai_05", "Hebr_01"}


def test_a_copied_glyph_is_left_out_and_listed_on_the_card(tmp_path, fonts, known):
    shapes = shapes_of(LATIN + HEBREW + THAI)
    others = {code: shapes[code] for code in THAI[:1]}
    tiny_font(fonts / "copy.ttf", "Other", others, weight=14)  # as f1 draws it
    known()
    folder = prepared(tmp_path, fonts)
    assert len(list((folder / f"test/Thai_{THAI[0]:04X}").iterdir())) == 5
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "1 drawings: a copy of another image of its class" in card
    assert "copies of fonts-tiny" in card and "| fonts-tiny | 1.0-1 | OFL-1.1 |" in card


def test_a_font_that_copies_another_is_left_out_as_a_whole(tmp_path, fonts, known):
    tiny_font(fonts / "twin.ttf", "Twin", shapes_of(LATIN + HEBREW + THAI), weight=28)
    known()
    folder = prepared(tmp_path, fonts)
    assert not list(folder.glob("*/*/*twin.png"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "- fonts-tiny twin.ttf: 18 of 18 drawings are those of fonts-tiny f2.ttf" in card


def test_one_drawing_for_two_characters_stands_for_the_first(tmp_path, fonts, known, caplog):
    shapes = shapes_of(LATIN + HEBREW + THAI)
    tiny_font(fonts / "f0.ttf", "F0", shapes | {THAI[1]: shapes[THAI[0]]})
    known()
    with caplog.at_level(logging.INFO):
        folder = prepared(tmp_path, fonts)
    assert [len(list((folder / f"test/Thai_{code:04X}").iterdir())) for code in THAI[:2]] == [5, 4]
    assert any("the same as a class before it" in message for message in caplog.messages)


def test_unknown_fonts_beside_all_known_ones_are_left_out_by_name_and_change_nothing(tmp_path, fonts, known, caplog):
    alone = contents(prepared(tmp_path, fonts, name="alone"))
    for place in range(7):
        tiny_font(fonts / f"new{place}.ttf", "New", shapes_of(LATIN), weight=90 + place)
    (fonts / "older").mkdir()
    tiny_font(fonts / "older" / "f0.ttf", "F0", shapes_of(LATIN + HEBREW + THAI), weight=3)
    icon_set(fonts, "set", ["home"])
    caplog.clear()
    assert contents(prepared(tmp_path, fonts)) == alone
    (line,) = (message for message in caplog.messages if "not known here" in message)
    assert line.startswith("left out: 9 sources not known here; the known ones make all that is asked for:\n")
    assert "/new0.ttf\n" in line and line.endswith("4 more") and "--any-version" not in line


def test_unknown_and_other_versions_are_refused_by_name(tmp_path, fonts, known):
    tiny_font(fonts / "f0.ttf", "F0", shapes_of(LATIN + HEBREW + THAI), weight=3)
    tiny_font(fonts / "new.ttf", "New", shapes_of(LATIN))
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, fonts)
    text = str(refused.value)
    assert text.startswith("scripts: 1 package (1 MB) not found among what was given. Fetch them into a folder:")
    assert "or draw what is there with --any-version.\n2 sources among what was given not known here, left out " in text
    assert f"{fonts}/f0.ttf: another version than that of fonts-tiny=1.0-1 (sha256 " in text
    assert f"{fonts}/new.ttf: sha256 " in text and "is in no package that is known here" in text
    folder = prepared(tmp_path, fonts, any_version=True)
    assert folder.name == "glyphs_scripts_any_version"  # never under the benchmark's name
    assert "licence not known here:\n\n- f0.ttf" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_is_missing_is_named_with_the_command_that_fetches_it(tmp_path, fonts, known):
    (fonts / "f3.ttf").unlink()
    with pytest.raises(DataError) as missing:
        prepared(tmp_path, fonts)
    assert "scripts: 1 package (1 MB) not found among what was given. Fetch them into a folder:" in str(missing.value)
    assert "\n  apt-get download fonts-tiny=1.0-1\n" in str(missing.value)


def test_a_folder_that_is_not_there_yet_lacks_everything_and_is_named(tmp_path, fonts, known):
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, tmp_path / "nowhere")
    first, *fetch = str(refused.value).splitlines()
    assert first.endswith("nowhere: not found. --from takes packages, fonts and folders of these.")
    assert "  apt-get download fonts-tiny=1.0-1" in fetch
    for any_version in (False, True):
        with pytest.raises(DataError) as refused:  # beside a folder that has all
            sources.find_sources([str(fonts), "nowhere"], ["scripts"], tmp_path, any_version=any_version)
        assert str(refused.value) == "nowhere: not found. --from takes packages, fonts and folders of these."


def test_an_unknown_font_that_may_not_be_embedded_is_not_drawn(tmp_path, fonts, known, caplog):
    tiny_font(fonts / "mine.ttf", "Mine", shapes_of(LATIN + THAI), weight=90, fs_type=2)
    folder = prepared(tmp_path, fonts, any_version=True)
    assert "left out: mine.ttf: its OS/2 fsType does not let it be embedded" in caplog.messages
    assert not list(folder.glob("*/*/*mine.png"))


def test_an_archive_may_hold_several_fonts_of_one_name_and_several_sets(tmp_path, fonts, known):
    package = debian_package(
        tmp_path / "p.deb",
        {f"{path.stem}/Same.ttf": path.read_bytes() for path in fonts.iterdir()},
    )
    digests = {hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in fonts.iterdir()}
    found = sources.find_sources([str(package)], ["scripts"], tmp_path / "unpacked", any_version=False)
    assert {one.sha256 for one in found} == digests
    with zipfile.ZipFile(tmp_path / "sets.zip", "w") as archive:
        for name in ("first", "second"):
            for file in icon_set(tmp_path, name, ["home", name]).iterdir():
                archive.write(file, f"{name}/{file.name}")
    found = sources.find_sources([str(tmp_path / "sets.zip")], ["icons"], tmp_path / "unpacked", any_version=True)
    assert {one.name: IconSet(one.path).keys for one in found} == {
        name: {"home", name, "bin"} for name in ("first", "second")
    }


def test_what_is_given_with_from_twice_is_taken_twice(tmp_path, fonts, known, monkeypatch):
    (tmp_path / "more").mkdir()
    (fonts / "f4.ttf").rename(tmp_path / "more/f4.ttf")
    taken = []
    monkeypatch.setattr(preparation, "prepare_glyphs", lambda request: taken.append(request.locations) or "done")
    for domain in ("scripts", "glyphs_scripts"):  # of the domain, and of its folder
        main(["glyphs", "--domain", domain, "--from", str(fonts), "--from", str(tmp_path / "more")])
    assert taken == [[str(fonts), str(tmp_path / "more")]] * 2


def test_no_name_of_the_benchmark_and_no_path_is_the_name_of_another_drawing(tmp_path, fonts, known):
    for name, options in (("glyphs_scripts", {"any_version": True}), ("glyphs_icons", {}), ("omniglot_dataset", {})):
        with pytest.raises(ConfigError, match=f"--name {name}: is of the benchmark"):
            prepare_glyphs(GlyphRequest("scripts", tmp_path / "to", [str(fonts)], name=name, **options))
    with pytest.raises(ConfigError, match="cannot be the name of a dataset"):
        prepare_glyphs(GlyphRequest("scripts", tmp_path / "to", [str(fonts)], name="../out"))


def test_another_drawing_under_a_name_that_is_taken_is_refused(tmp_path, fonts, known):
    request = GlyphRequest("scripts", tmp_path / "to", [str(fonts)], any_version=True, name="mine")
    prepare_glyphs(request)
    assert "is there and verified" in prepare_glyphs(request)
    with pytest.raises(ConfigError, match="its domain are not those"):
        prepare_glyphs(dataclasses.replace(request, domain="scripts_affine"))
    with pytest.raises(ConfigError, match="its seed are not those"):
        prepare_glyphs(dataclasses.replace(request, seed=1))
    tiny_font(fonts / "new.ttf", "New", shapes_of(LATIN), weight=99)
    with pytest.raises(ConfigError, match=r"its sources are not those that are asked for\. Nothing was drawn"):
        prepare_glyphs(request)
    assert not (tmp_path / "to/.sources/unpacked").exists()


def test_names_of_fonts_may_be_anything(tmp_path, fonts, known):
    for place, name in enumerate(["a\n| b.ttf", "\udcff.TTF", "x" * 250 + ".ttf", "漢" * 80 + ".otf", "-.ttf"]):
        (fonts / f"f{place}.ttf").rename(fonts / name)
        tiny_font(fonts / f"copy{place}.ttf", f"C{place}", {LATIN[0]: shapes_of(LATIN)[LATIN[0]]}, weight=14 * place)
    folder = prepared(tmp_path, fonts, any_version=True)
    assert len(list((folder / f"test/Thai_{THAI[0]:04X}").iterdir())) == 5
    assert "\\n" in (folder / "README.md").read_text(encoding="utf-8")


def test_broken_files_are_named(tmp_path, fonts, known, caplog):
    whole = (fonts / "f0.ttf").read_bytes()
    (fonts / "broken.ttf").write_bytes(whole[:300])
    (fonts / "empty.ttf").write_bytes(b"")
    (fonts / "short.ttf").write_bytes(short_os2(whole))
    prepared(tmp_path, fonts, any_version=True)
    for name in ("broken", "empty", "short"):
        text = f"left out: {name}.ttf: {fonts}/{name}.ttf: a font that cannot be read"
        assert any(text in message for message in caplog.messages)
    package = debian_package(tmp_path / "cut.deb", {"f0.ttf": (fonts / "f0.ttf").read_bytes()})
    package.write_bytes(package.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cut.deb: damaged or not an archive of this kind: .*Fetch it again"):
        prepared(tmp_path, package)
    (tmp_path / "back.deb").write_bytes(b"!<arch>\n" + f"{'back':48}{-60:<10}`\n".encode())
    with pytest.raises(DataError, match=r"back.deb: damaged .*no data.tar.xz in it"):
        prepared(tmp_path, tmp_path / "back.deb")
    (tmp_path / "none.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(DataError, match=r"none.deb: damaged .*no data.tar.xz in it"):
        prepared(tmp_path, tmp_path / "none.deb")


def test_print_and_handwriting_have_the_same_classes_in_the_same_splits(tmp_path, fonts, known, monkeypatch):
    hands = tmp_path / "hands"
    hands.mkdir()
    letters = tuple(map(ord, "abcdefghijäÄA7"))
    for folder, shift in ((fonts, 0), (hands, 7)):
        for weight in range(5):
            shapes = {code: shapes_of(letters)[code] for code in letters[: 14 - (folder == hands)]}
            tiny_font(folder / f"f{weight}.ttf", f"F{weight + shift}", shapes, weight=14 * weight + shift)
    known([*fonts.iterdir(), *hands.iterdir()])
    tables = {name: sources._table(name) for name in ("packages.csv", "files.csv")}
    hand_digests = {hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in hands.iterdir()}
    for row in tables["files.csv"]:
        row["package"] = "fonts-hand" if row["sha256"] in hand_digests else "fonts-tiny"
    tables["packages.csv"].append(tables["packages.csv"][0] | {"name": "fonts-hand", "domains": "handwriting"})
    classes = {}
    for domain in ("print", "handwriting"):
        request = GlyphRequest(domain, tmp_path / "to", [str(fonts), str(hands)])
        prepare_glyphs(request)
        folder = tmp_path / "to" / request.folder_name
        classes[domain] = {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
    assert classes["print"] == classes["handwriting"] and len(classes["print"]) == 13  # without 7, which no hand has
    split_of = {name.partition("/")[2]: name.partition("/")[0] for name in classes["print"]}
    assert split_of["0061"] == split_of["0041"] == split_of["00E4"] == split_of["00C4"]  # a A ä Ä


def icon_set(folder, prefix, names, licence="MIT", shift=0):
    """Each icon a bar and a square at a place of its own; `shift` makes a set another one."""
    folder = folder / prefix
    folder.mkdir(parents=True)
    icons = {
        name: {"body": f'<path fill="currentColor" d="M0 0h{4 + shift}v2H0zM{2 * place} {6 + shift}h3v3h-3z"/>'}
        for place, name in enumerate(names)
    }
    icons["gone"] = {"body": "", "hidden": True}
    content = {"prefix": prefix, "icons": icons, "aliases": {"bin": {"parent": names[0]}}, "width": 16, "height": 16}
    (folder / "icons.json").write_text(json.dumps(content))
    (folder / "info.json").write_text(json.dumps({"license": {"spdx": licence}}))
    return folder


def test_an_icon_means_what_its_name_says_without_its_style():
    names = {"home-outline": "home", "house": "home", "baseline-home": "home", "trash-can-filled": "trash", "o": "o"}
    assert {name: domains.concept(name) for name in names} == names
    assert domains.concept("arrow-left-bold-16") == "arrow-left" and domains.concept("zoom-in") == "zoom-in"


def test_test_concepts_are_drawn_by_sets_of_their_own(tmp_path):
    names = [f"thing{letter}-outline" for letter in "abcdefghijklmnop"] + ["twitter", "brand-x"]
    sets = [IconSet(icon_set(tmp_path, f"set{i}", names) / "icons.json") for i in range(10)]
    proposals = domains.icon_classes(sets, seed=0)
    assert {p.name for p in proposals} == {f"thing{letter}" for letter in "abcdefghijklmnop"} | {"trash"}
    used = {
        split: {c.source for p in proposals if p.split == split for c in p.candidates}
        for split in ("train", "val", "test")
    }
    assert len(used["train"]) == 6 and used["val"] == used["train"] and used["test"] == set(range(10)) - used["train"]
    assert "gone" not in sets[0].keys and "bin" in sets[0].keys


def test_emoji_are_matched_by_code_point_and_by_name(tmp_path):
    first = icon_set(tmp_path, "first", ["grinning-face", "dog", "thumbs-up", "family"])
    table = {"1f600": "grinning-face", "1f436": "dog", "1f44d-1f3fb": "thumbs-up", "1f468-200d-1f469": "family"}
    (first / "chars.json").write_text(json.dumps(table))
    second = icon_set(tmp_path, "second", ["dogface", "grinning-face-2"])
    sets = [IconSet(first / "icons.json"), IconSet(second / "icons.json")]
    proposals = domains.emoji_classes(sets, [first / "chars.json", None], seed=0)
    found = {p.name: [(c.source, c.key) for c in p.candidates] for p in proposals}
    assert found == {
        "1f436_dog_face": [(0, "dog"), (1, "dogface")],
        "1f600_grinning_face": [(0, "grinning-face"), (1, "grinning-face-2")],
    }


def test_a_set_that_is_no_json_is_left_out_by_name_and_so_is_a_table_of_characters(tmp_path, known, caplog):
    pytest.importorskip("resvg_py")
    for place in range(4):
        icon_set(tmp_path / "sets", f"set{place}", ["dog", "thumbs-up"], shift=place)
    (icon_set(tmp_path / "sets", "broken", ["dog"]) / "icons.json").write_text('{"icons"')
    nothing = "emoji: nothing is drawn by 4 of 4 sources, each in a way of its own"
    with pytest.raises(DataError, match=nothing):  # icons of sets without a table are no emoji
        prepared(tmp_path, tmp_path / "sets", "emoji", any_version=True)
    assert any("left out: broken: " in message for message in caplog.messages)
    (tmp_path / "sets/set0/chars.json").write_text('{"1f436": 5, "1f44d": "thumbs-up"}')
    assert domains._single_emoji(tmp_path / "sets/set0/chars.json") == {"1f44d": "thumbs-up"}
    (tmp_path / "sets/set0/chars.json").write_text("[]")
    with pytest.raises(DataError, match=r"chars\.json: no table of an icon set's characters"):
        prepared(tmp_path, tmp_path / "sets", "emoji", any_version=True)


def test_two_sets_with_the_same_chars_json_keep_their_packages(tmp_path, monkeypatch):
    rows = []
    for name in ("first", "second"):
        folder = icon_set(tmp_path / "sets", name, ["home", "tree"])
        (folder / "chars.json").write_text("{}")
        for file in ("chars.json", "icons.json"):
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()[:32]
            rows.append({"sha256": digest, "package": name, "file": file})
    package = {"version": "1", "registry": "npm", "bytes": "1", "sha256": "0" * 64, "domains": "emoji"}
    packages = [package | {"name": name, "licence": f"of {name}"} for name in ("first", "second")]
    monkeypatch.setattr(sources, "_table", {"packages.csv": packages, "files.csv": rows}.__getitem__)
    found = sources.find_sources([str(tmp_path / "sets")], ["emoji"], tmp_path, any_version=False)
    assert [(one.name, one.package.licence) for one in found] == [("first", "of first"), ("second", "of second")]


def test_an_icon_set_without_a_free_licence_is_refused_even_so(tmp_path, known):
    for place in range(10):
        icon_set(
            tmp_path / "sets", f"set{place}", ["home", "tree"], licence="proprietary" if place == 3 else "CC-BY-4.0"
        )
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, tmp_path / "sets", "icons", any_version=True)
    text = "set3: an icon set whose info.json states no free licence (it says proprietary)"
    assert text in str(refused.value) and "set2" not in str(refused.value)


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("MIT", True), ("Apache-2.0", True), ("CC-BY-SA-4.0", True), ("GPL-2.0-or-later", True), ("OFL-1.1-RFN", True),
        ("CC-BY-NC-4.0", False), ("CC-BY-ND-4.0", False), ("CC-BY-NC-SA-4.0", False), ("CC-BY-SA-NC-4.0", False),
        ("MIT\n", False), ("None", False), ("MIT OR proprietary", False), ("", False),
    ],
)  # fmt: skip
def test_a_licence_that_forbids_trade_or_changes_is_not_free(licence, free):
    assert bool(sources.FREE.fullmatch(licence)) == free


def test_icons_of_unknown_sets_become_a_dataset(tmp_path, known):
    pytest.importorskip("resvg_py")
    names = [f"thing{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    for place in range(14):
        icon_set(tmp_path / "sets", f"set{place:02}", names, shift=place / 2)
    icon_set(tmp_path / "sets", "twin", names, shift=3)
    folder = prepared(tmp_path, tmp_path / "sets", "icons", any_version=True)
    assert contents(folder) == contents(prepared(tmp_path, tmp_path / "sets", "icons", "again", any_version=True))
    sets = {split: {f.name[3:] for f in folder.glob(f"{split}/*/*.png")} for split in ("train", "val", "test")}
    assert sets["test"] and not sets["test"] & (sets["train"] | sets["val"])
    assert (
        ": 1"
        not in (folder / "README.md").read_text(encoding="utf-8").partition("## Left out")[0].partition("source")[0]
    )


def test_one_drawing_of_two_sets_stands_for_the_first_of_two_concepts(tmp_path):
    """As byte-equal images of two splits, it would be refused by the first run on the dataset."""
    images = np.zeros((3, 28, 28), np.uint8)
    for place in range(3):
        images[place, place, :9] = 255
    bar, cross, circle = images
    proposals = [
        domains.Proposal("minus", "test", (domains.Candidate(0, "minus"), domains.Candidate(1, "minus"))),
        domains.Proposal("subtract", "train", (domains.Candidate(0, "subtract"), domains.Candidate(1, "subtract"))),
    ]
    drawn = [{"minus": bar, "subtract": cross}, {"minus": circle, "subtract": bar}]
    kept, left_out = select(proposals, drawn, ["one", "other"])
    assert [len(kept[name]) for name in ("minus", "subtract")] == [2, 1]
    assert left_out.counts == {"the same as a class before it": 1}
    letters = [
        dataclasses.replace(one, candidates=tuple(domains.Candidate(c.source, ord(c.key[0])) for c in one.candidates))
        for one in proposals
    ]
    kept, _ = select(letters, [{ord(name[0]): image for name, image in one.items()} for one in drawn], ["one", "other"])
    assert [len(kept[name]) for name in ("minus", "subtract")] == [2, 2]  # a font's T is another's capital tau


def test_a_broken_set_is_named_and_a_broken_drawing_is_none(tmp_path):
    pytest.importorskip("resvg_py")
    folder = icon_set(tmp_path, "one", ["home"])
    content = json.loads((folder / "icons.json").read_text())
    content["icons"]["home"]["body"] = "<path d='"
    (folder / "icons.json").write_text(json.dumps(content))
    assert IconSet(folder / "icons.json").ink("home") is None
    Image.new("L", (24, 24)).save(tmp_path / "photograph.png")
    content["icons"]["home"]["body"] = f'<image width="24" height="24" xlink:href="{tmp_path}/photograph.png"/>'
    (folder / "icons.json").write_text(json.dumps(content))
    assert IconSet(folder / "icons.json").ink("home") is None
    content["icons"]["home"]["body"] = "<path d='M0 0h8v8z'/>"
    for size in (
        {"width": 1, "height": 10**9}, {"width": 0}, {"height": -3}, {"width": "1"}, {"width": None},
        {"width": f'16"><image width="24" height="24" href="{tmp_path}/photograph.png"/><g a="'},
        {"left": f'0 0 16 16"><image width="24" height="24" href="{tmp_path}/photograph.png"/><g a="'},
        {"body": "<g>" * 900 + "<path d='M0 0h8v8z'/>" + "</g>" * 900},  # of which the renderer would crash
        {"body": "&a;"}, {"body": "</svg><svg>"}, {"body": "<!DOCTYPE a><path d='M0 0h8v8z'/>"}, {"body": "\udc80"},
    ):  # fmt: skip
        (folder / "icons.json").write_text(
            json.dumps(content | {"icons": {"home": content["icons"]["home"] | size, "odd": {"body": 5}}})
        )
        assert IconSet(folder / "icons.json").ink("home") is None and "odd" not in IconSet(folder / "icons.json").keys
    (folder / "icons.json").write_text('{"icons": []}')
    with pytest.raises(DataError, match=r"icons\.json: an icon set that cannot be read"):
        IconSet(folder / "icons.json")


def test_ink_is_centred_and_small_changes_keep_it_inside(fonts):
    ink = FontFace(fonts / "f2.ttf").ink(THAI[2])
    plain = picture(ink)
    rows, columns = np.nonzero(plain < 128)
    assert abs(rows.min() + rows.max() - 63) <= 2 and abs(columns.min() + columns.max() - 63) <= 2
    for number in range(20):
        changed = picture(ink, affine_changes(0, [str(number)])[0])
        assert changed[[0, -1]].min() > 200 and changed[:, [0, -1]].min() > 200 and not np.array_equal(changed, plain)
    assert thumbnail(None).max() == 0 and thumbnail(ink).max() > 200


def test_nearest_neighbour_is_what_it_says(tmp_path, fonts, known):
    folder = prepared(tmp_path, fonts)
    images, shape = TestImages.of_folder(folder), EpisodeShape(3, 1, 2)
    tasks = draw_episodes(
        seed=0, split="test", indices=range(5), class_sizes=images.table(shape).sizes, shape=shape, rotate=False
    )
    found = nearest_neighbour(small_pixels(folder, images), images.table(shape), shape, tasks)
    for task, ranks in enumerate(images.table(shape).ranks(tasks)):
        small = [[box_of(folder / images.paths[rank]) for rank in row] for row in ranks]
        right = [
            min(range(3), key=lambda other: ((small[other][0] - small[label][query]) ** 2).sum()) == label
            for label in range(3)
            for query in (1, 2)
        ]
        assert found[task] == pytest.approx(np.mean(right))


def box_of(path):
    with Image.open(path) as image:
        return np.asarray(image.resize((28, 28), Image.Resampling.BOX), float)


def test_fixed_tasks_are_written_from_the_seed_and_never_share_a_font(tmp_path, fonts, known, monkeypatch, capsys):
    prepared(tmp_path, fonts)
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "to"))
    assert main(["tasks", "--domain", "scripts"]) == 0
    folder = tmp_path / "to/glyphs_scripts_tasks"
    assert sorted(path.name for path in folder.iterdir()) == ["5way_1shot.tasks.json", "varying.tasks.json"]
    (lists,) = read_task_lists(folder / "5way_1shot.tasks.json").lists
    assert lists.shape == SHAPES["5way_1shot"] and len(lists.tasks) == 1000
    for _, paths in (entry for task in lists.tasks for entry in task):
        assert len({path.partition("_f")[2] for path in paths}) == 4
    assert "digest" in capsys.readouterr().out
    assert main(["tasks", "--domain", "glyphs_scripts", "--to", str(tmp_path / "again")]) == 0
    whole = contents(tmp_path / "again")
    assert contents(folder) == whole
    (folder / "varying.tasks.json").unlink()  # as if it had been killed before
    assert main(["tasks", "--domain", "scripts"]) == 0
    assert contents(folder) == whole
    varying = read_task_lists(folder / "varying.tasks.json").lists
    assert [one.shape for one in varying] == [EpisodeShape(way, 5, 1, least_shot=1) for way in (5, 6)]
    counts = {}
    for name, paths in (entry for one in varying for task in one.tasks for entry in task):
        counts.setdefault(name, set()).add(len(paths))
    for name, found in counts.items():  # every number of shots up to the images of the class but its query
        n_images = len(list((tmp_path / "to/glyphs_scripts" / name).iterdir()))
        assert found == set(range(2, min(n_images, 6) + 1)), name
    (folder / "varying.tasks.json").write_bytes(whole["5way_1shot.tasks.json"])
    assert main(["tasks", "--domain", "scripts"]) == 1
    assert "varying.tasks.json: is there already, with other tasks; nothing is overwritten" in capsys.readouterr().err


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """Forty classes of four images in a folder that is not split."""
    monkeypatch.setenv("DATASET_DIR", str(tmp_path))
    for number in range(160):
        write_image(tmp_path / f"own/alphabet{number % 2}/c{number % 40:02}/{number}.png", pixels(number, 28, 1))
    return tmp_path / "own"


def test_a_dataset_that_is_not_split_has_the_test_classes_of_a_run_on_it(characters, monkeypatch, capsys):
    keys = {"sets_are_pre_split": False, "train_val_test_split": [0.6, 0.15, 0.25]}
    monkeypatch.setitem(OTHER_DOMAINS, "own", keys)
    assert main(["tasks", "--domain", "own"]) == 0
    folder = characters.with_name("own_tasks")
    assert sorted(path.name for path in folder.iterdir()) == ["5way_1shot.tasks.json", "varying.tasks.json"]
    (lists,) = read_task_lists(folder / "5way_1shot.tasks.json").lists
    names = {name for task in lists.tasks for name, _ in task}
    config = check_config({"experiment_name": "x", "dataset_name": "own", "num_target_samples": 3} | keys, "test")
    classes = find_classes(config, {"test": [EpisodeShape(5, 1, 3)]}).classes["test"]
    assert names == set(classes) and len(names) == 10
    for name, paths in (entry for task in lists.tasks for entry in task):
        assert len(set(paths)) == 4 and all((characters / path).is_file() for path in paths)
        assert {str(Path(path).parent) for path in paths} == {name.replace("|", "/")}
    small = {
        path: box_of(characters / path)
        for path in {path for task in lists.tasks for _, paths in task for path in paths}
    }
    right = [
        min(range(5), key=lambda other: ((small[task[other][1][0]] - small[path]) ** 2).sum()) == label
        for task in lists.tasks
        for label, (_, paths) in enumerate(task)
        for path in paths[1:]
    ]
    ((mean, ci95),) = by_pixels(characters, domain_images(characters)).values()
    assert mean == pytest.approx(np.mean(right))
    assert (
        f"nearest neighbour on pixels, 5way_1shot: {100 * mean:.1f} ± {100 * ci95:.1f} %\n" in capsys.readouterr().out
    )


def test_a_folder_of_ones_own_is_a_domain_once_it_is_split(characters, capsys):
    assert main(["tasks", "--domain", "own"]) == 2
    assert "own: no classes below a folder test; a domain is split already" in capsys.readouterr().err
    (characters / "alphabet0").rename(characters / "test")
    assert main(["tasks", "--domain", "own"]) == 0
    (lists,) = read_task_lists(characters.with_name("own_tasks") / "5way_1shot.tasks.json").lists
    assert all(path.startswith("test/") for task in lists.tasks for _, paths in task for path in paths)
    assert "digest" in capsys.readouterr().out


def test_every_known_file_belongs_to_a_package_with_a_licence():
    packages = sources.known_packages()
    rows = sources._table("files.csv")
    assert {row["package"] for row in rows} == set(packages) and len({row["sha256"] for row in rows}) > 1000
    for package in packages.values():
        assert package.licence and len(package.sha256) == 64 and set(package.domains) <= set(domains.DOMAINS)
        assert package.registry in ("debian", "npm") and package.version and package.bytes > 0
