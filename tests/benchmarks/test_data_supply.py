"""The benchmark of the data supply: what it needs is said, and it prints its rows."""

import subprocess
import sys
import tarfile

import pytest

from benchmarks import data_supply
from tests.conftest import draw_dataset
from utils.paths import REPOSITORY_ROOT


def run(*arguments):
    command = [sys.executable, str(REPOSITORY_ROOT / "benchmarks" / "data_supply.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_without_an_archive_it_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["data_supply.py", "--data", str(tmp_path)])
    assert data_supply.main() == 1
    message = "--data: give a folder that holds omniglot_dataset.tar.bz2 or grocery_few_shot.tar.gz\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.full
def test_every_table_has_its_row(tmp_path):
    folder = draw_dataset(
        tmp_path / "grocery_few_shot",
        # As many classes as the dataset of that name has, by which it is known.
        [f"{split}/c{i}" for split, n_classes in (("train", 50), ("val", 12), ("test", 19)) for i in range(n_classes)],
        images_per_class=20,
    )
    with tarfile.open(tmp_path / "grocery_few_shot.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    result = run("--data", str(tmp_path), "--seconds", "0.1", "--workers", "1", "--only", "start", "supply")
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith(("| grocery", "| photographs"))]
    assert [len(row) for row in rows] == [4, 6] and rows[0][1] == "1620"
    assert (tmp_path / "grocery_few_shot.tar.gz").is_file()
