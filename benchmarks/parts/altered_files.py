"""Part of `reliability.py`: what is damaged, forged or exchanged behind a run's back: checkpoints, archives, packed
images, and the data of a run that pauses.
"""

import contextlib
import io
import json
import os
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from experiment_parts.runs.checkpoints import read_checkpoint_state
from utils.config import check_config
from utils.errors import StorageError, UserError


def measure_damage(checkpoint: Path, flips: int, truncations: int) -> list[str]:
    """Damage a real checkpoint in every way and read it."""
    data, copy, generator = checkpoint.read_bytes(), checkpoint.with_name("damaged"), random.Random(0)

    def is_found(damaged: bytes) -> bool:
        copy.write_bytes(damaged)
        try:
            read_checkpoint_state(copy)
        except StorageError:
            return True
        return False

    found = 0
    for _ in range(flips):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        found += is_found(damaged)
    cut = sum(is_found(data[: generator.randrange(len(data))]) for _ in range(truncations))
    copy.unlink()
    size = f"a checkpoint of {len(data) / 1024:.0f} KiB"
    return [
        f"| one flipped bit in {size} | {flips} | {found} found |",
        f"| {size} cut off anywhere | {truncations} | {cut} found |",
    ]


def hostile_archives(canary: Path) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Name -> members of archives that want to write elsewhere, or something that is no file."""

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
        entry, content = tarfile.TarInfo(name), b"x" if kind == tarfile.REGTYPE else b""
        entry.type, entry.linkname, entry.size = kind, link, len(content)
        return entry, content

    return {
        "parent": [member("../canary")],
        "deep parent": [member("a/../../canary")],
        "absolute": [member(str(canary))],
        "symbolic link": [member("l", tarfile.SYMTYPE, ".."), member("l/canary")],
        "hard link": [member("h", tarfile.LNKTYPE, "/etc/hostname")],
        "device": [member("d", tarfile.CHRTYPE)],
        "pipe": [member("p", tarfile.FIFOTYPE)],
        "twice": [member("a"), member("a")],
    }


def measure_hostile_files(folder: Path) -> list[str]:
    """Open archives and checkpoints that want to write elsewhere, fill the disk or run code."""
    from experiment_parts.runs.checkpoints import load_checkpoint
    from utils.files.archives import unpack_archive

    folder.mkdir()
    canary, target = folder / "canary", folder / "target"

    def is_refused(read: Callable[..., object], *arguments: Path) -> bool:
        try:
            read(*arguments)
        except UserError:
            return not canary.exists() and not target.exists()
        return False

    archives = hostile_archives(canary)
    refused = 0
    for name, members in archives.items():
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for entry, content in members:
                tar.addfile(entry, io.BytesIO(content))
        refused += is_refused(unpack_archive, path, target)
    checkpoints = {
        "pickle that makes a folder": f"cos\nmkdir\n(V{canary}\ntR.".encode(),
        "empty": b"",
        "giant header": b"\xff" * 8 + b"{}",
        "text": b"#!/bin/sh\n",
        "header beyond the end": (10**6).to_bytes(8, "little") + b"{}",
        "nested": (10**4).to_bytes(8, "little") + b"[" * 10**4,
    }
    for name, content in checkpoints.items():
        path = folder / name
        path.write_bytes(content)
        refused += is_refused(load_checkpoint, path)
    tried = len(archives) + len(checkpoints)
    return [
        f"| hostile archives and checkpoints | {tried} | {refused} refused, nothing written elsewhere, nothing run |"
    ]


def draw_images(folder: Path, seed: int, n_images: int = 4) -> None:
    """Draw four classes of noise in each split, 14 x 14 and grey."""
    generator = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for name in (f"{split}/{split}_{rank}" for rank in range(4)):
            (folder / name).mkdir(parents=True)
            for image in range(n_images):
                pixels = generator.integers(0, 256, (14, 14), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{image}.bmp")  # of one size, whatever it shows


def measure_altered_images(folder: Path, repetitions: int) -> list[str]:
    """Alter the packed images of a dataset and their index, a byte each time, and open them."""
    from utils.images.decoding import PixelFormat
    from utils.images.packed import load_or_pack

    draw_images(folder / "images", 0)
    generator, found, shape = random.Random(0), Counter(), PixelFormat(14, 14, 1, "nearest")
    packed, _, _ = load_or_pack(folder / "images", shape)
    right = packed.read(into_memory=True).tobytes(), [*packed.image_paths()]
    for kind in ("byte of the packed images", "byte of their index"):
        for _ in range(repetitions):
            packed, _, _ = load_or_pack(folder / "images", shape)
            (index,) = (folder / ".packed").glob("*.json")
            path = index if "index" in kind else packed.data_file
            data = bytearray(path.read_bytes())
            data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
            path.write_bytes(data)
            try:
                packed, _, _ = load_or_pack(folder / "images", shape)
                packed.verify()
                found[kind] += (packed.read(into_memory=True).tobytes(), [*packed.image_paths()]) == right
            except UserError:
                found[kind] += 1
    return [
        f"| an altered {kind} | {repetitions} | {n} times the right images, read anew |" for kind, n in found.items()
    ]


def measure_swapped_checkpoints(folder: Path) -> list[str]:
    """Put every epoch's checkpoint of a run, and of another one, in the place of each other epoch's."""
    import torch

    from experiment_parts.runs.checkpoints import epoch_path, save_checkpoint
    from experiment_parts.runs.run_folder import RUN_ID, RunFolder

    runs = []
    for run_id in "ab":
        config = check_config({"experiment_name": run_id}, "a run").to_json_dict()
        runs.append(RunFolder(folder / run_id))
        runs[-1].create()
        for epoch in range(1, 6):
            state = {"epoch": epoch, "iteration": epoch, "config": config, "rows": [], "curves": [], RUN_ID: run_id}
            state |= {"metrics_jsonl_bytes": 0, "automatic_choices": {}, "annealing_epochs": 0}
            save_checkpoint(epoch_path(runs[-1].saved_models, epoch), {"w": torch.ones(1)}, state)
        (folder / run_id / "config.json").write_text(json.dumps(config | {RUN_ID: run_id}))
    tried = caught = 0
    mine, other = (run.saved_models for run in runs)
    for place in range(1, 6):
        path, newest = epoch_path(mine, place), 5 - (place == 5)
        own = path.read_bytes()
        for source in (*(epoch_path(mine, n) for n in range(1, 6) if n != place), epoch_path(other, place)):
            shutil.copyfile(source, path)
            run = RunFolder(folder / "a")
            tried += 1
            caught += run.newest_good_checkpoint()[1]["epoch"] == newest and run.load_usable(path) is None
            path.write_bytes(own)
    return [f"| a checkpoint of another epoch or run under an epoch's name | {tried} | {caught} times not used |"]


def changed_data(dataset: Path, split: str) -> dict[str, Callable[[], object]]:
    """Return how the data of a started run may change, in one split."""
    picked, other = dataset / split / f"{split}_1", dataset / split / f"{split}_2"

    def replace_alike() -> None:
        """As rsync does: another picture of the same name, size and time."""
        path, new = picked / "1.bmp", picked / "new"
        shutil.copyfile(other / "1.bmp", new)
        shutil.copystat(path, new)
        new.rename(path)

    return {
        "a class is gone": lambda: shutil.rmtree(picked),
        "a class is new": lambda: shutil.copytree(other, picked.with_name("new")),
        "a class has another name": lambda: picked.rename(picked.with_name("new")),
        "an image is gone": (picked / "1.bmp").unlink,
        "an image is new": lambda: Image.new("L", (14, 14), 99).save(picked / "new.bmp"),
        "an image is another": replace_alike,
    }


def measure_changed_data(folder: Path) -> list[str]:
    """Change the data of a run after its first epoch and start it again, in every way and split."""
    from train_maml_system import main as train

    draw_images(folder / "before" / "noise", 1)
    config = {
        "experiment_name": "changed", "dataset_name": "noise", "sets_are_pre_split": True, "image_height": 14,
        "image_width": 14, "indexes_of_folders_indicating_class": [-2], "num_classes_per_set": 2,
        "num_target_samples": 1, "total_epochs": 2, "total_epochs_before_pause": 1, "total_iter_per_epoch": 2,
        "num_evaluation_tasks": 2, "cnn_num_filters": 4, "num_stages": 2, "gpu_to_use": "cpu", "report_every_s": 0,
    }  # fmt: skip
    (folder / "changed.json").write_text(json.dumps(config))
    places = {"DATASET_DIR": str(folder / "datasets"), "EXPERIMENTS_DIR": str(folder / "experiments")}
    before = {name: os.environ.get(name) for name in places}
    os.environ |= places

    def start() -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return train(["--name_of_args_json_file", str(folder / "changed.json")])

    def put_back() -> None:
        shutil.rmtree(folder / "datasets", ignore_errors=True)
        shutil.copytree(folder / "before", folder / "datasets", copy_function=shutil.copy2)

    put_back()
    codes, kinds = [start()], [*changed_data(folder, "train")]
    for split in ("train", "val", "test"):
        for kind in kinds:
            changed_data(folder / "datasets" / "noise", split)[kind]()
            codes.append(start())
            put_back()
    codes.append(start())
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    refused = codes[1:-1].count(2)
    ended = "and went on when they were back" if codes[0] == codes[-1] == 0 else f"but ended with {codes[-1]}"
    what = f"data that change while a run pauses ({len(kinds)} kinds in 3 splits)"
    return [f"| {what} | {len(codes) - 2} | {refused} refused with exit code 2, {ended} |"]
