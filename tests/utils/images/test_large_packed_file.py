"""A packed file of the size of tiered-ImageNet opens at once and takes no memory; a thread reads its pixels.

The file is sparse: all holes, and black.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from utils.config import check_config
from utils.images.decoding import PixelFormat
from utils.images.folders import scan
from utils.images.packed import PackedImages, _data_file, _fingerprint, _write_index
from utils.paths import REPOSITORY_ROOT

CLASSES = {"train": 351, "val": 97, "test": 160}
IMAGES_PER_CLASS = 139
SIDE = 252
"""Larger images than tiered-ImageNet's, and fewer: there are as many files to make, and to remove."""
CONFIG = {
    "experiment_name": "large",
    "dataset_name": "tiered",
    "sets_are_pre_split": True,
    "image_height": SIDE,
    "image_width": SIDE,
    "image_channels": 3,
    "num_samples_per_class": 5,
    "batch_size": 2,
}

FIRST_EPISODE = """
import json, sys, time
from pathlib import Path
import torch
from data import build_data
from utils.config import check_config

start = time.thread_time()  # of this thread: another one reads the file
data = build_data(check_config(json.loads(sys.argv[1]), "test"), "cpu")
batch = data.episodes("train", [0, 1])
seconds = time.thread_time() - start
# Not getrusage's: that one begins with the memory of the process that started this one.
peak_kib = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps({
    "cpu_s": seconds, "peak_kib": peak_kib, "shape": batch.query_images.shape,
    "ahead": data.meta_batches_ahead, "counts": data.summary()["splits"], "sum": float(batch.query_images.abs().sum()),
}))
"""


@pytest.fixture
def large_dataset(tmp_path):
    """DATASET_DIR with 608 folders of empty files and a packed file of 16.1 GB, of which the disk holds nothing."""
    folder, packed = tmp_path / "tiered", tmp_path / ".packed"
    names = [f"{split}/n{number:08}" for split, count in CLASSES.items() for number in range(count)]
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            (folder / name / f"{number:04}.JPEG").touch()
    packed.mkdir()
    pixel_format = PixelFormat(SIDE, SIDE, 3, check_config(CONFIG, "test").resize_filter)
    folders, files_digest = scan(folder)
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    index_file = packed / f"tiered.{where}.{SIDE}x{SIDE}x3.{pixel_format.resize_filter}.json"
    shape = (len(names) * IMAGES_PER_CLASS, *pixel_format.shape)
    images = PackedImages(_data_file(index_file, "0" * 64), shape, tuple(folders), "0" * 64)
    _write_index(index_file, _fingerprint(files_digest, pixel_format), images)
    with open(images.data_file, "wb") as file:
        try:
            os.truncate(file.fileno(), images.n_bytes)
        except OSError as error:  # FAT, or a quota
            pytest.skip(f"no sparse file of 16 GB can be made here: {error.strerror}")
        if os.fstat(file.fileno()).st_blocks > 1000:
            pytest.skip("files on this disk are not sparse")
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.full
def test_sixteen_gigabytes_open_in_two_seconds_and_one_gigabyte_of_memory(large_dataset):
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_EPISODE, json.dumps(CONFIG)], cwd=REPOSITORY_ROOT, text=True, capture_output=True,
        env=os.environ | {"DATASET_DIR": str(large_dataset)}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["counts"]["train"] == {"classes": 351, "images": 351 * IMAGES_PER_CLASS}
    assert found["shape"] == [2, 75, 3, SIDE, SIDE] and found["sum"] == 0 and found["ahead"] == 2
    assert found["cpu_s"] < 2, found
    assert found["peak_kib"] < 10**6, found
