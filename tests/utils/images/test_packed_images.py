"""The packed file: decoded once, completely, made again when something changed, and never half there."""

import hashlib
import io
import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_dataset, draw_image
from tests.tools.fuzz import exif
from utils.errors import DataError, StorageError
from utils.images import packed as packed_images
from utils.images.decoding import DECODING_ERRORS, PixelFormat, decode_image, original_form
from utils.images.packed import load_or_pack

GREY = PixelFormat(14, 14, 1, "nearest")


@pytest.fixture
def dataset(tmp_path):
    return draw_dataset(tmp_path / "tiny", ["a/one", "a/two", "b/one"], images_per_class=4)


def index_of(packed):
    (index,) = packed.data_file.parent.glob(f"{packed.data_file.name.rsplit('.', 2)[0]}.json")
    return index


def decodes(monkeypatch):
    """A list that grows by one each time that images are decoded."""
    calls = []
    original = packed_images._decode_all
    monkeypatch.setattr(packed_images, "_decode_all", lambda *args: calls.append(1) or original(*args))
    return calls


def test_every_image_is_where_its_path_says(dataset):
    packed, _, problems = load_or_pack(dataset, GREY)
    assert not problems and packed.shape == (12, 1, 14, 14)
    for into_memory in (True, False):
        images = packed.read(into_memory)
        for rank in range(12):
            expected = np.asarray(Image.open(dataset / packed.image_path(rank)))
            assert np.array_equal(images[rank, 0], expected)
    assert packed.image_path(5) == "a/two/01.png"


def test_images_in_the_dataset_folder_itself_have_a_path(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    draw_image(0, 0).save(folder / "00.png")
    assert load_or_pack(folder, GREY)[0].image_path(0) == "00.png"


def test_decoding_in_processes_gives_the_same_file(dataset, monkeypatch):
    monkeypatch.setattr(packed_images, "FEWEST_IMAGES_PER_PROCESS", 2)
    monkeypatch.setattr(packed_images.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    (dataset / "a/two/x; touch 'y'.png").write_bytes(b"<html>")
    _, _, problems = load_or_pack(dataset, GREY, num_workers=2)
    assert len(problems) == 1 and "x; touch 'y'.png: not a readable image" in problems[0]
    (dataset / "a/two/x; touch 'y'.png").unlink()
    in_processes, _, problems = load_or_pack(dataset, GREY, num_workers=2)
    here, _, _ = load_or_pack(dataset, GREY, num_workers=0, rebuild=True)
    assert not problems and in_processes == here


def test_the_second_time_nothing_is_decoded(dataset, monkeypatch):
    calls = decodes(monkeypatch)
    first, _, _ = load_or_pack(dataset, GREY)
    second, folders, _ = load_or_pack(dataset, GREY)
    assert len(calls) == 1 and first == second and list(first.folders) == folders


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "decoder", "rebuild", "index", "data"])
def test_it_is_packed_again_when_something_changed(dataset, monkeypatch, change):
    packed, _, _ = load_or_pack(dataset, GREY)
    index = index_of(packed)
    calls = decodes(monkeypatch)
    if change == "add":
        draw_image(0, 99).save(dataset / "a/one/99.png")
    elif change == "remove":
        (dataset / "a/one/00.png").unlink()
    elif change == "rename":
        (dataset / "a/one").rename(dataset / "a/three")
    elif change == "new class":
        draw_dataset(dataset, ["b/new"], images_per_class=1)
    elif change == "decoder":
        monkeypatch.setattr(packed_images, "DECODER_VERSION", "another")
    elif change == "index":
        index.write_text(index.read_text()[:100])
    elif change == "data":
        os.truncate(packed.data_file, 100)
    again, _, problems = load_or_pack(dataset, GREY, rebuild=change == "rebuild")
    assert len(calls) == 1 and not problems
    images = again.read(False)
    for rank in range(len(images)):
        assert np.array_equal(images[rank, 0], np.asarray(Image.open(dataset / again.image_path(rank))))
    leftovers = {path.suffix for path in index.parent.iterdir()}
    assert leftovers == {".json", ".uint8", ".lock"} and len(list(index.parent.glob("*.uint8"))) == 1


def test_other_sizes_and_filters_have_files_of_their_own(dataset, monkeypatch):
    calls = decodes(monkeypatch)
    formats = [
        GREY,
        PixelFormat(7, 14, 1, "nearest"),
        PixelFormat(14, 14, 3, "nearest"),
        PixelFormat(7, 14, 1, "bicubic"),
    ]
    for pixel_format in formats * 2:
        assert load_or_pack(dataset, pixel_format)[0].shape[1:] == pixel_format.shape
    assert len(calls) == 4


def test_an_unfinished_pack_leaves_the_old_one_and_no_rubbish(dataset, monkeypatch):
    packed, _, _ = load_or_pack(dataset, GREY)
    draw_image(0, 99).save(dataset / "a/one/99.png")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_images.image_decoding.os, "pwrite", no_space)
    with pytest.raises(StorageError, match=r"No space left on device.*MiB free"):
        load_or_pack(dataset, GREY)
    assert packed.data_file.exists() and not list(packed.data_file.parent.glob("*.unfinished"))


def test_a_dataset_beside_which_nothing_can_be_written_is_packed_in_the_cache(dataset, tmp_path, monkeypatch):
    (dataset.parent / ".packed").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed, _, _ = load_or_pack(dataset, GREY)
    assert tmp_path / "cache" in packed.data_file.parents
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "a/one/00.png"))
    with pytest.raises(StorageError, match=r"no place for the packed images of .*tiny.*XDG_CACHE_HOME"):
        load_or_pack(dataset, GREY)


def test_a_packed_file_that_is_there_is_read_even_where_nothing_can_be_written(dataset, monkeypatch):
    first, _, _ = load_or_pack(dataset, GREY)
    monkeypatch.setattr(packed_images.os, "access", lambda *_: False)
    assert load_or_pack(dataset, GREY)[0] == first


def _broken_files(folder):
    """Name -> what the report says about it."""
    good = folder / "00.png"
    data = good.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    photo = folder / "good.jpg"
    draw_image(0, 0, side=64).convert("RGB").save(photo)
    frames = [draw_image(0, i) for i in range(2)]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    contents = {
        "truncated.png": data[: len(data) // 2],
        "flipped.png": bytes(flipped),
        "cut.jpg": photo.read_bytes()[:-300],
        "empty.png": b"",
        "page.jpg": b"<html><body>404</body></html>",
        "gif in disguise.png": _gif(),
        "bomb.png": _png_header(60_000, 60_000),
        "photograph.png": _png_header(12_032, 9_024),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to("nowhere.png")
    return {*contents, "animated.png", "link.png"}


def _gif():
    file = io.BytesIO()
    draw_image(0, 0).save(file, format="GIF")
    return file.getvalue()


def _png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_every_broken_file_is_listed_with_path_and_reason_and_nothing_is_stored(dataset):
    broken = _broken_files(dataset / "b/one")
    packed, _, problems = load_or_pack(dataset, GREY)
    assert packed is None
    listed = {problem.split(": ")[0].split("/")[-1]: problem.split(": ", 1)[1] for problem in problems}
    assert set(listed) == broken
    assert all(str(dataset / "b/one") in problem for problem in problems)
    assert listed["page.jpg"] == listed["gif in disguise.png"] == "not a readable image (PNG, JPEG, BMP, WEBP are)"
    assert listed["animated.png"] == "animated image"
    assert listed["link.png"] == "No such file or directory"
    assert (
        listed["bomb.png"]
        == listed["photograph.png"]
        == (
            "more than 89 million pixels, as of a decompression bomb. If it is a photograph, make it smaller: "
            f"{GREY.width} x {GREY.height} pixels of it are used"
        )
    )
    assert not list((dataset.parent / ".packed").glob("*.uint8"))


def test_bad_images_may_be_left_out_and_the_rest_is_as_without_them(dataset, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(packed_images, "IMAGES_MOVED_AT_ONCE", 2)
    bad = ["a/one/00.png", "a/two/03.png", "b/one/00.png", "b/one/01.png"]
    good = draw_dataset(tmp_path / "good", ["a/one", "a/two", "b/one"], images_per_class=4)
    for name in bad:
        (dataset / name).write_bytes((dataset / name).read_bytes()[:50])
        (good / name).unlink()
    packed, folders, problems = load_or_pack(dataset, GREY, skip_bad=True)
    expected, expected_folders, _ = load_or_pack(good, GREY)
    assert (problems, folders, packed.shape) == ([], expected_folders, expected.shape)
    assert np.array_equal(packed.read(True), expected.read(True))
    assert packed.content_sha256 == expected.content_sha256
    assert [packed.image_path(rank) for rank in range(8)] == [expected.image_path(rank) for rank in range(8)]
    assert "on_bad_image skip: 4 images cannot be decoded and are left out:" in caplog.text
    assert all(f"{dataset / name}: " in caplog.text for name in bad)
    caplog.clear()
    calls = decodes(monkeypatch)
    assert load_or_pack(dataset, GREY, skip_bad=True)[0] == packed
    assert not calls and "4 images cannot be decoded" in caplog.text
    assert len(load_or_pack(dataset, GREY)[2]) == 4  # without leave to skip they are problems again


def test_a_folder_of_bad_images_and_a_dataset_of_them(dataset):
    for path in (dataset / "a" / "two").iterdir():
        path.write_bytes(b"")
    packed, folders, _ = load_or_pack(dataset, GREY, skip_bad=True)
    assert [folder.path for folder in folders] == ["a/one", "b/one"] and packed.shape[0] == 8
    for path in dataset.rglob("*.png"):
        path.write_bytes(b"")
    assert len(load_or_pack(dataset, GREY, skip_bad=True, rebuild=True)[2]) == 12


def test_names_that_are_not_utf8_are_packed_and_listed(dataset):
    name = os.fsdecode(b"\xff\n.png")
    draw_image(0, 5).save(dataset / "a/one" / name)
    packed, _, problems = load_or_pack(dataset, GREY)
    assert not problems and packed.image_path(4) == f"a/one/{name}"
    assert load_or_pack(dataset, GREY)[0] == packed
    (dataset / "a/one" / name).write_bytes(b"")
    _, _, problems = load_or_pack(dataset, GREY, rebuild=True)
    assert problems[0].split("/")[-1].startswith("\\udcff\\n.png: ")


def test_one_bit_images_become_0_and_255_as_in_the_reference(tmp_path):
    """Pillow resizes mode "1" with NEAREST whatever is asked for; the reference asked for LANCZOS."""
    pixels = np.random.default_rng(0).integers(0, 2, (105, 105)).astype(bool)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    reference = np.array(Image.open(tmp_path / "x.png").resize((28, 28), Image.Resampling.LANCZOS), np.float32)
    ours = decode_image(tmp_path / "x.png", PixelFormat(28, 28, 1, "nearest"))
    assert ours.dtype == np.uint8 and np.array_equal(ours[0] / np.float32(255), reference)


def test_height_and_width_are_not_mixed_up_and_exif_turns_images(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: then the upper half is white
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    plain = decode_image(tmp_path / "plain.png", PixelFormat(4, 8, 3, "nearest"))
    assert plain.shape == (3, 4, 8) and plain[:, :, :4].min() == 255 and plain[:, :, 4:].max() == 0
    turned = decode_image(tmp_path / "turned.png", PixelFormat(16, 8, 1, "nearest"))
    assert turned.shape == (1, 16, 8) and turned[:, :8].min() == 255 and turned[:, 8:].max() == 0


def decoded(data):
    return decode_image(io.BytesIO(data), PixelFormat(8, 8, 3, "nearest"))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_exif_stops_a_good_image_or_does_more_than_turn_it(kind):
    """Entries of any kind, count and content: values out of range, texts for numbers, places behind the end."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    plain = decoded(saved(image, kind))
    turns = [np.rot90(side, k, axes=(1, 2)).tobytes() for side in (plain, plain[:, :, ::-1]) for k in range(4)]
    draw = random.Random(0)
    found = [decoded(saved(image, kind, exif=exif(draw))).tobytes() for _ in range(300)]
    assert set(found) <= set(turns) and found.count(plain.tobytes()) > 250
    assert decoded(saved(image, kind, exif=b"no EXIF at all")).tobytes() == plain.tobytes()


def test_the_orientation_is_read_beside_entries_that_cannot_be_written_again():
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 3, b"72\0\0")]  # XResolution as text
    parts = b"".join(struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in entries)
    data = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + parts + bytes(4)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        found, plain = decoded(saved(image, kind, exif=data)), decoded(saved(image, kind))
        assert np.array_equal(found, np.rot90(plain, -1, axes=(1, 2)))
        assert original_form(io.BytesIO(saved(image.crop((0, 0, 8, 4)), kind, exif=data))) == (4, 8, "colour")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"zTXt", b"a\0\7of no known compression"),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"pHYs", b"\0"),
        chunk(b"cHRM", b"")[:-4] + b"\0\0\0\0",
    ],
    ids=["text that is a bomb", "unknown compression", "profile that is a bomb", "too short", "wrong checksum"],
)
def test_a_png_is_read_whatever_is_beside_its_picture_and_still_not_when_that_is_damaged(metadata):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 4), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 8
    data = saved(image, "PNG", exif=turned)
    first, last = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    for place in (first, last):
        with_metadata = data[:place] + metadata + data[place:]
        assert np.array_equal(decoded(with_metadata), decoded(data))
        assert original_form(io.BytesIO(with_metadata)) == (4, 8, "colour")
        inside = with_metadata.index(b"IDAT") + 20
        for broken in (with_metadata[:inside], with_metadata[:inside] + bytes(9) + with_metadata[inside + 9 :]):
            with pytest.raises(DECODING_ERRORS):
                decoded(broken)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.full((2, 2), 0x80FF, dtype=np.uint16)), 0x80),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), 255),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 255)), 0),
        (Image.new("LA", (2, 2), (7, 255)), 7),
        (Image.new("RGB", (2, 2), (9, 9, 9)), 9),
        (Image.new("L", (2, 2), 33).convert("P"), 33),
    ],
    ids=["16 bit", "transparent is white", "opaque", "grey with alpha", "rgb", "palette"],
)
def test_kinds_of_pixels(tmp_path, image, expected):
    image.save(tmp_path / "x.png")
    for channels in (1, 3):
        assert (decode_image(tmp_path / "x.png", PixelFormat(2, 2, channels, "bilinear")) == expected).all()


def test_cmyk_photographs_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "x.jpg")
    assert decode_image(tmp_path / "x.jpg", PixelFormat(4, 4, 3, "lanczos")).min() > 250


def test_the_index_is_json_without_absolute_paths(dataset):
    packed, _, _ = load_or_pack(dataset, GREY)
    text = index_of(packed).read_text()
    assert str(dataset.parent) not in text and json.loads(text)["format_version"] == 2


def alter_pixels(path):
    content = bytearray(path.read_bytes())
    content[::50] = bytes(255 - value for value in content[::50])
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_pixels_that_were_changed_are_decoded_again_and_never_used(dataset, monkeypatch, caplog):
    packed, _, _ = load_or_pack(dataset, GREY)
    pixels, calls = packed.read(into_memory=True), decodes(monkeypatch)
    assert packed.content_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    alter_pixels(packed.data_file)
    again, _, _ = load_or_pack(dataset, GREY)
    assert len(calls) == 1 and again == packed and np.array_equal(again.read(into_memory=True), pixels)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith(f"{packed.data_file.name} is not what was packed), decoding again")


def test_pixels_of_a_large_file_are_checked_behind_the_scenes_before_a_result(dataset, monkeypatch):
    monkeypatch.setattr(packed_images, "LARGEST_CHECKED_AT_ONCE", 100)
    packed, _, _ = load_or_pack(dataset, GREY)
    packed.verify()
    opened, _, _ = load_or_pack(dataset, GREY)
    opened.verify()
    alter_pixels(packed.data_file)
    opened, _, _ = load_or_pack(dataset, GREY)
    with pytest.raises(DataError, match=r"uint8: changed since it was packed; it is made again with --reset_stored_fi"):
        opened.verify()
    load_or_pack(dataset, GREY, rebuild=True)[0].verify()
    monkeypatch.setattr(packed_images.hashlib, "file_digest", lambda *_: os.read(-1, 1))
    with pytest.raises(StorageError, match="uint8: cannot be read: Bad file descriptor"):
        load_or_pack(dataset, GREY)[0].verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [11, 1, 14, 14]},
        {"shape": [-12, 1, 14, 14]},
        {"shape": [12, 1, 7, 28]},
        {"left_out": [["a/one/00.png", "no image"]]},
        {"content_sha256": "0" * 64},
        {"one_colour": [12]},
        {"identical": [[0, -1]]},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_an_index_that_was_changed_is_not_trusted(dataset, monkeypatch, changes, is_signed):
    packed, _, _ = load_or_pack(dataset, GREY, skip_bad=True)
    index_file, calls = index_of(packed), decodes(monkeypatch)
    index = json.loads(index_file.read_text()) | changes
    if is_signed:  # as if it had been written so
        del index["sha256"]
        index["sha256"] = packed_images._digest_of_index(index)
    index_file.write_text(json.dumps(index))
    assert load_or_pack(dataset, GREY, skip_bad=True)[0] == packed and len(calls) == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"sha256": 3}', "[" * 100_000, "\ud800", "\0"])
def test_rubbish_in_place_of_an_index_is_decoded_again(dataset, text):
    packed, _, _ = load_or_pack(dataset, GREY)
    index_of(packed).write_text(text, errors="surrogatepass")
    assert load_or_pack(dataset, GREY)[0] == packed


def test_links_to_folders_of_one_name_have_files_of_their_own(tmp_path, monkeypatch):
    for disk in ("disk1", "disk2"):
        draw_dataset(tmp_path / disk / "images", ["a", "b"] if disk == "disk1" else ["b", "a"], images_per_class=2)
        for path in sorted((tmp_path / disk).rglob("*"), reverse=True):
            os.utime(path, (0, 0))
        (tmp_path / f"link to {disk}").symlink_to(tmp_path / disk / "images")
    one, other = (load_or_pack(tmp_path / f"link to {disk}", GREY)[0] for disk in ("disk1", "disk2"))
    assert one.folders == other.folders and one.content_sha256 != other.content_sha256
    assert one.data_file.parent == other.data_file.parent
    calls = decodes(monkeypatch)
    assert load_or_pack(tmp_path / "link to disk1", GREY)[0] == one
    assert load_or_pack(tmp_path / "link to disk2", GREY)[0] == other and not calls


def test_a_link_that_leads_elsewhere_now_is_another_dataset(tmp_path):
    for name in ("one", "two"):
        draw_dataset(tmp_path / name / "images", ["a"] if name == "one" else ["a", "b"], images_per_class=2)
    link = tmp_path / "link"
    for name, n_images in (("one", 2), ("two", 4), ("one", 2)):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / name / "images")
        assert load_or_pack(link, GREY)[0].shape[0] == n_images


def test_what_earlier_versions_packed_is_decoded_again_once_and_removed(dataset, monkeypatch, caplog):
    old = dataset.parent / ".packed"
    old.mkdir()
    (old / "tiny.14x14x1.nearest.json").write_text('{"format_version": 1, "data_file": "tiny.14x14x1.nearest.a.uint8"}')
    for name in ("tiny.14x14x1.nearest.0123456789ab.uint8", "tiny.14x14x1.nearest.lock", "tiny.7x7x1.nearest.json"):
        (old / name).write_bytes(bytes(12 * 14 * 14))
    caplog.set_level("INFO")
    calls = decodes(monkeypatch)
    packed, _, _ = load_or_pack(dataset, GREY)
    assert "tiny.14x14x1.nearest: packed by an earlier version, decoding again, once" in caplog.text
    assert load_or_pack(dataset, GREY)[0] == packed and len(calls) == 1
    new = index_of(packed).stem
    assert {path.name for path in old.iterdir()} == {
        f"{new}.json", f"{new}.lock", packed.data_file.name, "tiny.7x7x1.nearest.json",
    }  # fmt: skip


def test_images_of_one_colour_are_known(dataset):
    for channels, name in ((1, "a/one/00.png"), (3, "b/one/03.png")):
        Image.new("L" if channels == 1 else "RGB", (14, 14), 9 if channels == 1 else (1, 2, 3)).save(dataset / name)
    pixels = np.zeros((14, 14, 3), np.uint8)
    pixels[13, 13, 2] = 1
    Image.fromarray(pixels).save(dataset / "a/two/00.png")
    colour = PixelFormat(14, 14, 3, "nearest")
    assert load_or_pack(dataset, colour)[0].one_colour == load_or_pack(dataset, colour)[0].one_colour == (0, 11)
