"""Hostile and damaged input, drawn at random: every reader of it answers with what it reads or with one of its own
errors, in seconds, and writes nowhere else.

    python tests/tools/fuzz.py [--seed 0] [--number 1000] [--kinds pickles zips tars json images command_lines]

Each kind is tried in a forked process, so that one that dies or never ends is found, too. An input that is answered in
another way is printed, in Python's notation, with what came of it; `--kinds KIND --input FILE` tries such a one again.
"""

import argparse
import ast
import bz2
import contextlib
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import struct
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image, PngImagePlugin

from experiment_parts.evaluation.test_results import stored_result
from experiment_parts.runs import checkpoints
from experiment_parts.runs.checkpoints import read_checkpoint
from experiment_parts.runs.opening import add_start, check_is_run_folder, open_run_folder
from experiment_parts.runs.run_folder import RunFolder
from utils.config import check_config, load_config
from utils.config.command_line import parse_command_line
from utils.config.schema import ExperimentConfig
from utils.data_sources.task_lists import read_task_lists
from utils.errors import UserError
from utils.files.archives import unpack_archive
from utils.files.reading import parse_json, parse_toml
from utils.images.decoding import DECODING_ERRORS, PixelFormat, decode_image, original_form
from utils.paths import REPOSITORY_ROOT
from utils.prepare_dataset.class_sources import FoundClasses
from utils.prepare_dataset.dataset_folders import read_record, verify_dataset
from utils.prepare_dataset.datasets.cifar import find_cifar
from utils.prepare_dataset.forms.array_files import find_cache_pickles, find_labelled_pickles, find_tiered
from utils.prepare_dataset.workspace import Workspace
from utils.ranks.launch import split_arguments

SECONDS = 30
"""That one input may take, on a busy machine."""
MEMORY_BYTES = 6 * 2**30
"""Of address space that a reader may take, beside what the process that is forked has."""
Draw = random.Random
Input = bytes | list[str]


@dataclass(frozen=True)
class Kind:
    """One kind of input: how it is drawn, and all that reads it, in an empty folder."""

    draw: Callable[[Draw], Input]
    read: Callable[[Input, Path], None]


# --- bytes ------------------------------------------------------------------------------------------------------------


def mutated(draw: Draw, data: bytes) -> bytes:
    """Change bytes here and there, cut, repeat or double a part, or change nothing."""
    changed = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 5, 20))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 100))
        match draw.randrange(6):
            case 0 | 1:
                changed[place : place + length] = draw.randbytes(length)
            case 2:
                changed[place : place + length] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5 if place:
                del changed[place:]
    return bytes(changed)


def name(draw: Draw) -> str:
    """Draw the name of a member of an archive."""
    part = draw.choice(["a", "train", "val", "1.png", "..", ".", "", "b" * 300, "\\", "C:", "é", "\x1b[2J", "a\n", " "])
    return part if draw.random() < 0.4 else f"{part}/{name(draw)}"


# --- pickles ----------------------------------------------------------------------------------------------------------


def honest_pickle(draw: Draw) -> bytes:
    """Draw content as datasets have it, in any protocol."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    content = draw.choice([
        {"data": images, "labels": [0, 0, 1, 1]},
        {"image_data": images, "class_dict": {"a": [0, 1], b"b": [2, 3]}},
        {"label_specific": np.arange(4), "label_specific_str": ["a", b"b", "c, d", "e"]},
        [np.frombuffer(b"\x89PNG" + draw.randbytes(20), np.uint8)],
        {"fine_label_names": ["a", "b"], "coarse_label_names": ["c"], "labels": (1, 2.5, None, True, 2**70)},
    ])  # fmt: skip
    return pickle.dumps(content, draw.randrange(6))


ONE_BYTE = [bytes([code]) for code in b"(0lt}])edusabR.NQ12\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x81\x97\x98"]
TEXTS = [b"a", b"data", b"labels", b"image_data", b"class_dict", b"latin1", b"u1", b"<", b"C", b"O", b"U1", b"V1", b""]
NAMES = [
    b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"cbuiltins\nbytes\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n", b"cos\nsystem\n",
]  # fmt: skip
DEEP = b"(" * 50_000 + b"t" * 50_000
"""A tuple whose hash needs more stack than there is."""
SHARED = b")q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00"
"""A tuple whose hash and text never end."""


def constant(draw: Draw) -> bytes:
    """Draw an instruction that makes a value."""
    text, number = draw.choice(TEXTS), draw.choice([0, 1, 2, 3, 4, 7, 255])
    length = struct.pack("<I", len(text))
    if draw.random() < 0.2:
        return draw.choice((DEEP, SHARED, b"h\x00", b"h\x01", b"\x8a" + bytes([number]) + b"\x7f" * number))
    return draw.choice([
        b"K" + bytes([number]), b"M\x10\x27", b"G" + draw.randbytes(8), b"I" + str(number).encode() + b"\n", b"N",
        b"\x88", b"X" + length + text, b"\x8c" + bytes([len(text)]) + text, b"T" + length + text,
        b"C" + bytes([len(text)]) + text,
        b"\x96" + struct.pack("<Q", len(text)) + text,
    ])  # fmt: skip


def value(draw: Draw, depth: int = 0) -> bytes:
    """Draw instructions that make a value, in which anything can be where anything should be."""
    if depth > 3 or draw.random() < 0.3:
        return constant(draw)

    def several(numbers: tuple[int, ...] = (0, 1, 2, 4)) -> bytes:
        return b"".join(value(draw, depth + 1) for _ in range(draw.choice(numbers)))

    one, other = value(draw, depth + 1), value(draw, depth + 1)
    dtype = b"cnumpy\ndtype\n(\x8c\x02" + draw.choice((b"u1", b"i8", b"U1", b"S1", b"f4")) + b"tR"
    state = [b"K\x01", b"(K\x01t", dtype, b"\x89", draw.choice((b"C\x01a", b"\x96\1\0\0\0\0\0\0\0a"))]
    if draw.random() < 0.4:
        state[draw.randrange(5)] = one
    named = draw.choice((b"", b"", b"q\x00", b"q\x01", b"\x94"))
    if draw.random() < 0.1:
        return draw.choice([one + b"(" + several() + b"e", one + other + b"b", one + other + b"R"]) + named
    made = draw.choice([
        b"(" + several() + b"t", b"(" + several() + b"l", b"(" + several((0, 2, 4)) + b"d", b"}" + one + other + b"s",
        b"}(" + several((0, 2, 4)) + b"u", b"]" + one + b"a", b"](" + several() + b"e",
        draw.choice(NAMES) + b"(" + several((1, 2, 3)) + b"tR",
        NAMES[4] + b"(" + NAMES[0] + b"(K\x00tC\x01btR(" + b"".join(state) + b"tb",
        NAMES[6] + b"(" + state[4] + state[2] + state[1] + draw.choice((b"\x8c\x01C", one)) + b"tR",
    ])  # fmt: skip
    return made + named


def draw_pickle(draw: Draw) -> bytes:
    """Draw a graph, any instructions, or an honest pickle with changes."""
    match draw.randrange(4):
        case 0:
            data = value(draw) + b"."
        case 1:
            data = b"}(X\4\0\0\0data" + value(draw) + b"X\6\0\0\0labels" + value(draw) + b"u."
        case 2:
            count = draw.choice((5, 30))
            data = b"".join(draw.choice([*ONE_BYTE, constant(draw), value(draw, 3)]) for _ in range(count))
        case _:
            data = honest_pickle(draw)
    return mutated(draw, data) if draw.random() < 0.3 else data


def read_pickle(data: bytes, folder: Path) -> None:
    """Read the same file as every form of pickles has it, and each image that is found."""
    lists = folder / "lists"
    lists.mkdir()
    for split in ("train", "val", "test"):
        (lists / f"{split}.txt").write_text("a\n")
        for file in ("{}.pickle", "mini-imagenet-cache-{}.pkl", "{}_images_png.pkl", "{}_labels.pkl"):
            (folder / file.format(split)).write_bytes(data)
    for file in ("train", "test", "meta"):
        (folder / file).write_bytes(data)
    finders: list[Callable[[], FoundClasses | None]] = [
        lambda: find_labelled_pickles(folder),
        lambda: find_cache_pickles(folder),
        lambda: find_tiered(folder, "auto", folder / "unpacked"),
        lambda: find_cifar(folder, lists, Workspace(folder)),
    ]
    for find in finders:
        with user_errors():
            found = find()
            for c in found.classes if found else ():
                for place in range(len(c.files)):
                    c.read(place)


# --- archives ---------------------------------------------------------------------------------------------------------


def draw_zip(draw: Draw) -> bytes:
    """Draw a zip of odd members, with changes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened, contextlib.suppress(UnicodeError):
        for _ in range(draw.choice((1, 2, 5))):
            member = zipfile.ZipInfo(name(draw) or "x")
            member.external_attr = draw.choice((0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)) << 16
            kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            opened.writestr(member, draw.randbytes(draw.choice((0, 10, 3000))), kind)
    data = bytearray(file.getvalue())
    for _ in range(draw.choice((0, 0, 1, 2))):  # fields of the records, which changes of single bytes rarely meet
        place = max(data.rfind(draw.choice((b"PK\1\2", b"PK\3\4", b"PK\5\6"))), 0) + draw.randrange(4, 46)
        data[place : place + 4] = draw.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", draw.randbytes(4)))
    return mutated(draw, bytes(data))


def draw_tar(draw: Draw) -> bytes:
    """Draw a tar of odd members, compressed or not, with changes before or after."""
    file = io.BytesIO()
    kinds = (
        [tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE] * 2 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, b"S", b"V"]
    )
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    with tarfile.open(fileobj=file, mode="w", format=draw.choice(formats)) as tar:
        for _ in range(draw.choice((1, 2, 5))):
            member = tarfile.TarInfo(name(draw))
            member.type, member.linkname, member.size = draw.choice(kinds), name(draw), draw.choice((0, 10, 3000))
            if draw.random() < 0.3:
                member.pax_headers = {
                    draw.choice(("path", "size", "GNU.sparse.major", "comment", "hdrcharset")): name(draw)
                }
            with contextlib.suppress(ValueError):
                tar.addfile(member, io.BytesIO(draw.randbytes(member.size)))
    data = bytearray(file.getvalue())
    for _ in range(draw.choice((0, 0, 1))):  # a header that is whole, and says what it should not
        header = tarfile.TarInfo("x")
        header.type = draw.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE))
        header.size = draw.choice((0, 512, 2**30, 2**40))
        place = draw.randrange(len(data) // 512 + 1) * 512
        data[place:place] = header.tobuf(tarfile.GNU_FORMAT) * draw.choice((1, 400))
    pack = draw.choice((bytes, gzip.compress, bz2.compress, lzma.compress))
    return mutated(draw, pack(mutated(draw, bytes(data))))


def read_archive(data: bytes, folder: Path) -> None:
    """Unpack the file as every kind of archive; beside the target nothing may be there afterwards."""
    extensions = (".zip",) if b"PK" in data else (".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
    for extension in extensions:
        archive = folder / "datasets" / f"birds{extension}"
        archive.parent.mkdir()
        archive.write_bytes(data)
        with user_errors():
            unpack_archive(archive, archive.parent / "birds")
        rest = {path.name for path in archive.parent.iterdir()} - {archive.name, "birds"}
        links = [path for path in folder.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        assert not rest and not links and archive.read_bytes() == data, (rest, links)
        shutil.rmtree(archive.parent)


# --- JSON, TOML, run folders ------------------------------------------------------------------------------------------

CONFIG = {"experiment_name": "x", "total_epochs": 2, "frozen_layers": ["block0"], "num_classes_per_set": [5, 3]}
TASKS = {
    "format": "few-shot task list",
    "version": 1,
    "dataset": "d",
    "classes": ["a", "b"],
    "images": ["1", "2", "3", "4"],
    "lists": [{"n_way": 2, "n_shot": 1, "n_query": 1, "tasks": [[[0, [0], [1]], [1, [2], [3]]]]}],
}
RECORD = {"version": 1, "images_per_class": {"a": 1}, "names_and_sizes_sha256": "0"}
ROW = {"epoch": 1, "val_accuracy_mean": 0.5, "val_accuracy_std": 0.1, "val_tasks": 3}
STATE = {
    "epoch": 1,
    "iteration": 5,
    "rows": [ROW],
    "curves": [],
    "metrics_jsonl_bytes": 0,
    "automatic_choices": {"task_chunk_size": 2},
    "annealing_epochs": 2,
    "config": CONFIG,
    "run_id": "a" * 32,
}
SUMMARY = {
    "selection": "best", "epochs_trained": 1, "results": [{"protocol": {"dataset": "d"}, "test_accuracy_mean": 0.5}],
    "ensemble": {"models": 1}, "models": [{"epoch": 1, "file": "f", "val_accuracy": 0.5}],
}  # fmt: skip
CONTENTS = (CONFIG, TASKS, RECORD, STATE, SUMMARY, {"starts": [{"device": "cpu"}]})


def strange(draw: Draw) -> Any:
    """Draw a value that does not belong there."""
    deep: Any = 1
    for _ in range(draw.choice((3, 99, 150))):
        deep = [deep] if draw.random() < 0.7 else {"a": deep}
    values = [
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e308,
        "",
        "x" * 5000,
        "\ud800",
        "\udcff",
        "\x1b[2J\x07",
        "..",
        "a/b",
        [],
        {},
    ]
    return draw.choice([*values, [[]], {"a": None}, ["a"] * 300, deep, "9" * 5000, "\0", float("nan"), float("inf")])


def changed(draw: Draw, content: Any) -> Any:
    """Change a value somewhere in a JSON content."""
    if draw.random() < 0.25 or not isinstance(content, dict | list) or not content:
        return strange(draw)
    content = content.copy()
    place = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
    if draw.random() < 0.1:
        del content[place]
    else:
        content[place] = changed(draw, content[place])
    return content


def draw_json(draw: Draw) -> bytes:
    """Draw a JSON file of ours with another value somewhere, a repeated key, or other bytes."""
    content = draw.choice(CONTENTS)
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        content = changed(draw, content)
    text = json.dumps(content, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        text = text.replace(b"{", b'{"epoch": 1, "epoch": 2, ', 1)
    if draw.random() < 0.1:
        text = draw.choice((b"[", b'{"a":')) * 10**5 + text
    return mutated(draw, text) if draw.random() < 0.4 else text


def read_json_file(data: bytes, folder: Path) -> None:
    """Take the file for each that the program reads."""
    file = folder / "file.json"
    file.write_bytes(data)
    for read in (load_config, read_task_lists, lambda path: parse_toml(data.decode()), lambda path: parse_json(data)):
        with user_errors(ValueError):
            read(file)
    (folder / "dataset").mkdir()
    shutil.copy(file, folder / "dataset" / ".prepared.json")
    (folder / "dataset" / "a.png").touch()
    with user_errors():
        read_record(folder / "dataset")
        verify_dataset(folder / "dataset")
    run = folder / "runs" / "x"
    for sub in ("saved_models", "logs"):
        (run / sub).mkdir(parents=True)
    (run / "saved_models" / "train_model_1.safetensors").write_bytes(forged_checkpoint(data))
    for path in ("config.json", "environment.json", "logs/test_summary.json"):
        shutil.copy(file, run / path)
    with user_errors():
        read_checkpoint(run / "saved_models" / "train_model_1.safetensors")
    with user_errors():
        check_is_run_folder(run)
        add_start(run / "environment.json", {"device": "cpu"})
    with user_errors():
        stored_result(RunFolder(run), 1, [{"dataset": "d"}], 1, with_curve=False, patience=1)
    with user_errors():
        config = check_config({"experiment_name": "x"}, "test")
        open_run_folder(folder / "runs", "x", config.to_json_dict()).unlock()


def forged_checkpoint(data: bytes) -> bytes:
    """Return a checkpoint with this text as its state and a right digest."""
    text = data.decode("utf-8", "surrogateescape")
    metadata = '{"format_version": 1, "sha256": "' + checkpoints.NO_DIGEST + '", "state": ' + text + "}"
    header = json.dumps({"__metadata__": {checkpoints.METADATA_KEY: metadata}}).encode()
    return checkpoints._with_digest(len(header).to_bytes(8, "little") + header)


# --- images -----------------------------------------------------------------------------------------------------------


def exif(draw: Draw) -> bytes:
    """Draw EXIF entries of any kind, count and content."""
    tags = (0x0112, 0x011A, 0x0100, 0x8769, 0x8825, 0x927C, 0x010F, 0x9003, draw.randrange(65536))
    entries = [
        struct.pack("<HHL", draw.choice(tags), draw.randrange(14), draw.choice((0, 1, 2, 100, 2**31)))
        + draw.choice((b"\6\0\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x08\0\0\0", draw.randbytes(4)))
        for _ in range(draw.choice((0, 1, 3, 10)))
    ]
    count = struct.pack("<H", draw.choice((len(entries), 0, 65535)))
    end = draw.choice((b"\0\0\0\0", b"\x08\0\0\0", b"")) + draw.randbytes(draw.choice((0, 30)))
    return (
        b"Exif\0\0" + draw.choice((b"II*\0", b"MM\0*", b"II")) + struct.pack("<L", 8) + count + b"".join(entries) + end
    )


def draw_image(draw: Draw) -> bytes:
    """Draw an image with odd metadata, with changes."""
    kinds = {
        "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
        "JPEG": ["L", "RGB", "CMYK"],
        "WEBP": ["RGB", "RGBA"],
        "BMP": ["1", "L", "RGB"],
    }
    kind = draw.choice(list(kinds))
    image = Image.new(draw.choice(kinds[kind]), (draw.choice((1, 9, 28)), draw.choice((1, 8, 28))))
    options: dict[str, Any] = {}
    if kind != "BMP" and draw.random() < 0.7:
        options["exif"] = exif(draw)
    if draw.random() < 0.3 and kind != "BMP":
        options["icc_profile"] = draw.randbytes(draw.choice((1, 128, 3000)))
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        for _ in range(draw.choice((0, 1, 3))):
            info.add_text(
                draw.choice(("XML:com.adobe.xmp", "a", "Raw profile type exif")), "0a" * draw.choice((0, 9, 9999))
            )
        if draw.random() < 0.1:
            info.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
        options |= (
            {"pnginfo": info, "transparency": draw.choice((0, 255))} if image.mode in "1LP" else {"pnginfo": info}
        )
    file = io.BytesIO()
    image.save(file, kind, **options)
    return mutated(draw, file.getvalue())


def read_image(data: bytes, folder: Path) -> None:
    """Decode the file, grey and in colour."""
    path = folder / "a.png"
    path.write_bytes(data)
    for channels in (1, 3):
        with user_errors(*DECODING_ERRORS):
            pixels = decode_image(path, PixelFormat(14, 14, channels, "bicubic"))
            assert pixels.shape == (channels, 14, 14) and pixels.dtype == np.uint8
        with user_errors(*DECODING_ERRORS):
            original_form(path)


# --- command lines ----------------------------------------------------------------------------------------------------


KEYS = [*ExperimentConfig.model_fields, "task_learning_rate", "num_of_gpus", "nnodes", "rdzv_conf", "x"]
VALUES = [
    "1", "2", "3", "0", "-1", "5.5", "0.1", "1e400", "nan", "inf", "0,1", "-3,-2", "²", "٣", "9" * 5000, "true",
    "false", "none", "null", "auto", "latest", "", " ", "[]", "[1, 2]", "{}", '"', "a", "adam", "x" * 5000, "[" * 3000,
    "\udcff", "\x1b[2J", "a=b", "~", "~x", "..", "\0",
]  # fmt: skip


def words(draw: Draw) -> list[str]:
    """Draw a key with its values, or words that do not belong together."""
    key, values = draw.choice(KEYS), [draw.choice(VALUES) for _ in range(draw.choice((0, 1, 1, 1, 2, 3)))]
    if draw.random() < 0.3 and key in ExperimentConfig.model_fields:
        default = ExperimentConfig.model_fields[key].default
        values = [str(part) for part in (default if isinstance(default, tuple) else [default])]
    if draw.random() < 0.9:
        return [f"--{key}", *values] if draw.random() < 0.8 else [f"--{key}={value}" for value in values]
    return draw.choice([["--"], [f"-{key}"], [key], values])


def draw_command_line(draw: Draw) -> list[str]:
    """Draw the arguments of a run."""
    drawn = [word for _ in range(draw.choice((1, 1, 2, 4))) for word in words(draw)]
    return drawn if draw.random() < 0.2 else ["--experiment_name", "x", *drawn]


def read_command_line(given: list[str], folder: Path) -> None:
    """Go from arguments to a config, which is the same when it is read again."""
    with user_errors():
        _, arguments = split_arguments(given)
        path, overrides = parse_command_line(arguments)
        overrides.pop("plugin", None)  # a file that is executed
        config = load_config(REPOSITORY_ROOT / "experiment_config" / "quickstart.json", overrides)
        again = check_config(config.to_json_dict(), "again")
        assert again.to_json_dict() == config.to_json_dict(), path


KINDS = {
    "pickles": Kind(draw_pickle, read_pickle),
    "zips": Kind(draw_zip, read_archive),
    "tars": Kind(draw_tar, read_archive),
    "json": Kind(draw_json, read_json_file),
    "images": Kind(draw_image, read_image),
    "command_lines": Kind(draw_command_line, read_command_line),
}


# --- trying -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def user_errors(*expected: type[BaseException]) -> Iterator[None]:
    """Let through what a user can mend, where it is short enough to be read, and what a reader is allowed to raise."""
    try:
        yield
    except UserError as error:
        assert len(str(error)) < 20_000, f"{len(str(error))} letters: {error}"[:500]
    except expected:
        pass


def try_one(kind: Kind, given: Input) -> str:
    """Return what went wrong with one input; empty: nothing."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        folder = Path(name) / "inside"
        folder.mkdir()
        before = os.getcwd()
        os.chdir(folder)
        try:
            kind.read(given, folder)
            return f"wrote {os.listdir(name)}" if os.listdir(name) != ["inside"] else ""
        except Exception:  # noqa: BLE001 -- this is what is looked for
            return traceback.format_exc(limit=-6)
        finally:
            os.chdir(before)


def fuzz(name: str, seed: int, number: int, given: Input | None = None) -> list[tuple[Input, str]]:
    """Try `number` inputs of a kind in forked processes; returns those that were not answered as they should be."""
    found: list[tuple[Input, str]] = []
    done = 0
    with tempfile.TemporaryFile() as notes:
        while done < number:  # a process that died is followed by one that goes on after the input it died of
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    _try_all(name, seed, range(done, number), given, notes.fileno())
                    code = 0
                os._exit(code)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            notes.seek(0)
            lines = [ast.literal_eval(line) for line in notes.read().decode("utf-8", "surrogatepass").splitlines()]
            notes.truncate(0)
            notes.seek(0)
            found += [(tried, reason) for _, tried, reason in lines if reason]
            if ended and not lines:
                raise RuntimeError(f"a process ended with {ended} before it tried an input")
            done = lines[-1][0] + 1
            if ended:
                how = signal.Signals(-ended).name if ended < 0 else f"an error of {Path(__file__).name}"
                found.append((lines[-1][1], f"ended by {how}" + (f", after {SECONDS} s" if how == "SIGALRM" else "")))
    return found


def _try_all(name: str, seed: int, numbers: range, given: Input | None, notes: int) -> None:
    """Write a line before an input is tried, and one after it if it failed, so that it is known whatever comes."""
    if sys.platform == "linux":  # a process that has run other tests may have more than the limit by itself
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        tried = KINDS[name].draw(random.Random(f"{name} {seed} {number}")) if given is None else given
        os.write(notes, f"{(number, tried, '')!r}\n".encode("utf-8", "surrogatepass"))
        signal.alarm(SECONDS)
        reason = try_one(KINDS[name], tried)
        signal.alarm(0)
        if reason:
            os.write(notes, f"{(number, tried, reason)!r}\n".encode("utf-8", "surrogatepass"))


def main() -> int:
    """Try all kinds, print what was found; returns the number of inputs that were not answered as they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--input", type=Path, help="a file with one input, as this program prints it")
    options = parser.parse_args()
    given = ast.literal_eval(options.input.read_text()) if options.input else None
    logging.disable()
    count = 0
    for name in options.kinds:
        found = fuzz(name, options.seed, options.number if given is None else 1, given)
        count += len(found)
        print(
            f"{name}: {len(found)} of {options.number if given is None else 1} not answered as they should be",
            flush=True,
        )
        for tried, reason in found:
            print(f"{name} {tried!r}\n{reason}", flush=True)
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
