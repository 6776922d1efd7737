"""Fixtures that several test files share: tiny datasets drawn on the spot, and where real data may lie."""

import os
from collections.abc import Callable
from pathlib import Path

# Tiny tensors: a second thread only waits. Before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from utils.paths import REPOSITORY_ROOT

SHARED_DATA = REPOSITORY_ROOT.parent / "shared" / "data"


def draw_image(class_rank: int, image_rank: int, side: int = 14, channels: int = 1) -> Image.Image:
    """An image of its class: one of a few bars, whose place tells the class, with noise that tells the image."""
    generator = np.random.default_rng([class_rank, image_rank])
    pixels = generator.integers(0, 60, (side, side, channels), dtype=np.uint8)
    place = 1 + class_rank % (side - 3)
    if class_rank // (side - 3) % 2:
        pixels[place : place + 2] += 150
    else:
        pixels[:, place : place + 2] += 150
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def draw_dataset(
    folder: Path, class_folders: list[str], images_per_class: int = 6, side: int = 14, channels: int = 1
) -> Path:
    """Class folders (POSIX paths below `folder`) with PNG images 00.png, 01.png, ..."""
    for class_rank, class_folder in enumerate(class_folders):
        path = folder / class_folder
        path.mkdir(parents=True)
        for image_rank in range(images_per_class):
            draw_image(class_rank, image_rank, side, channels).save(path / f"{image_rank:02}.png")
    return folder


@pytest.fixture
def tiny_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`tiny_dataset(name="tiny", n_classes=12, images_per_class=6, pre_split=False, side=14, channels=1)` -> folder.

    In a DATASET_DIR of its own. Classes are alphabet_<n>/character_<nn>, three alphabets; pre-split they are dealt to
    train, val and test in turn, as <split>/character_<nn>.
    """
    dataset_root = tmp_path / "datasets"
    dataset_root.mkdir()
    monkeypatch.setenv("DATASET_DIR", str(dataset_root))

    def draw(
        name: str = "tiny",
        n_classes: int = 12,
        images_per_class: int = 6,
        pre_split: bool = False,
        side: int = 14,
        channels: int = 1,
    ) -> Path:
        parents = ("train", "val", "test") if pre_split else ("alphabet_0", "alphabet_1", "alphabet_2")
        class_folders = [f"{parents[rank % 3]}/character_{rank:02}" for rank in range(n_classes)]
        return draw_dataset(dataset_root / name, class_folders, images_per_class, side, channels)

    return draw


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("omniglot_dataset.tar.bz2")` -> path of real data beside the checkout; skips where there is none."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_file():
            pytest.skip(f"real data are not beside this checkout: {path} does not exist")
        return path

    return find


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder for what a dataset is to be prepared from."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """`prepare("cub", "--seed", 1)`: the preparation command with datasets in tmp_path / "datasets" -> (exit code,
    output, errors).
    """
    from utils.prepare_dataset.__main__ import main

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--to", str(tmp_path / "datasets")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """`small_counts("cub", Counts(...))`: what the preparation expects of a dataset whose test data are small."""
    from dataclasses import replace

    from utils.prepare_dataset import preparation

    def expect(name: str, counts: object) -> None:
        monkeypatch.setitem(preparation.KNOWN_DATASETS, name, replace(preparation.KNOWN_DATASETS[name], counts=counts))

    return expect


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test has logged may hold names that no encoding has, and one test process hands them on to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
