"""Archives: every kind is unpacked whole, nothing hostile gets out, nothing of the user's is touched."""

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from utils.errors import DataError, StorageError
from utils.files import archives, atomic_folders
from utils.files.archives import find_archive, unpack_archive
from utils.paths import REPOSITORY_ROOT

FILES = {
    "birds/train/robin/1.png": b"robin",
    "birds/train/wren/1.png": b"wren",
    "birds/val/magpie/1.png": b"m" * 40_000,
}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o4777
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tar_with(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_bytes(files: dict[str, bytes], mode: int = 0o100644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            opened.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def many_streams(data: bytes) -> bytes:
    """As pbzip2 writes: one bzip2 stream per block, one after the other."""
    return b"".join(bz2.compress(data[start : start + 10_000]) for start in range(0, len(data), 10_000))


PACKERS = {
    ".tar.bz2": bz2.compress,
    ".tbz2": many_streams,
    ".pbzip2": many_streams,
    ".pbzip": many_streams,
    ".tar.gz": lambda data: gzip.compress(data[:10_000]) + gzip.compress(data[10_000:]),
    ".tar.xz": lzma.compress,
    ".tar": bytes,
}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(tmp_path: Path, data: bytes, extension: str = ".tar") -> str:
    """The text of the refusal; checks that nothing is left anywhere."""
    archive = tmp_path / "datasets" / f"birds{extension}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as refusal:
        unpack_archive(archive, archive.parent / "birds")
    assert sorted(tmp_path.rglob("*")) == before and archive.read_bytes() == data
    assert str(archive) in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("extension", [*PACKERS, ".zip"])
def test_every_kind_is_found_and_unpacked_through_one_wrapping_folder(tmp_path, extension):
    data = zip_bytes(FILES) if extension == ".zip" else PACKERS[extension](tar_bytes(FILES))
    (tmp_path / f"birds{extension}").write_bytes(data)
    archive = find_archive("birds", tmp_path)
    unpack_archive(archive, tmp_path / "other name")
    assert tree(tmp_path / "other name") == {name.removeprefix("birds/"): content for name, content in FILES.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"birds{extension}", "other name"]
    mode = (tmp_path / "other name/train/robin/1.png").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_IXUSR)


def test_without_an_archive_nothing_is_found(tmp_path):
    (tmp_path / "birds.rar").touch()
    (tmp_path / "birds.tar").mkdir()
    assert find_archive("birds", tmp_path) is None


def test_wrapping_folders_are_looked_through_once_and_splits_are_no_wrapper(tmp_path):
    cases = {"a/b/1.png": "b/1.png", "train/robin/1.png": "train/robin/1.png"}
    for number, (inside, outside) in enumerate(cases.items()):
        archive = tmp_path / f"{number}.zip"
        archive.write_bytes(zip_bytes({inside: b"x", "__MACOSX/._1.png": b"y", ".DS_Store": b""}))
        unpack_archive(archive, tmp_path / str(number))
        assert outside in tree(tmp_path / str(number))


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_members_that_lead_outside_are_refused(tmp_path, name):
    assert "would be written outside the dataset folder" in refused(tmp_path, tar_bytes({"a/ok.png": b"1", name: b"2"}))
    assert "would be written outside the dataset folder" in refused(
        tmp_path, zip_bytes({"a.png": b"", name: b""}), ".zip"
    )


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("a/link.png")
    member.type, member.linkname = kind, "../../secret"
    assert 'member "a/link.png" is a link, a device or a sparse file' in refused(tmp_path, tar_with(member))


def test_links_and_encrypted_members_of_zip_files_are_refused(tmp_path):
    assert "is a link or a device" in refused(tmp_path, zip_bytes({"a.png": b"/etc/passwd"}, 0o120777), ".zip")
    encrypted = bytearray(zip_bytes({"a.png": b"abc"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    assert 'member "a.png" is encrypted' in refused(tmp_path, bytes(encrypted), ".zip")


def test_the_same_name_twice_is_refused(tmp_path):
    data = tar_bytes({"a/1.png": b"1", "a//1.png": b"2"})
    assert 'member "a//1.png" is in it twice' in refused(tmp_path, data)


def test_a_file_where_a_folder_is_wanted_is_refused(tmp_path):
    assert "and another one are the same file" in refused(tmp_path, tar_bytes({"a/1.png": b"1", "a": b"2"}))
    assert "and another one are the same file" in refused(tmp_path, tar_bytes({"a": b"1", "a/1.png": b"2"}))


def test_decompression_bombs_stop_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALLEST_SIZE_LIMIT", 2**20)
    zeros = b"\0" * 2**24
    for extension in (".tar.bz2", ".tar.xz", ".tar.gz"):
        text = refused(tmp_path / extension, PACKERS[extension](tar_bytes({"a.png": zeros})), extension)
        assert "a decompression bomb?" in text
    assert "a decompression bomb?" in refused(tmp_path / "zip", zip_bytes({"a.png": zeros}), ".zip")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    assert "more than 2 files" in refused(tmp_path / "many", tar_bytes(FILES))


@pytest.mark.parametrize("extension", [*PACKERS, ".zip"])
def test_damaged_archives_are_named_and_leave_nothing(tmp_path, extension):
    files = {f"a/{i}.png": os.urandom(5000) for i in range(20)}
    data = zip_bytes(files) if extension == ".zip" else PACKERS[extension](tar_bytes(files))
    garbled = bytearray(data)
    garbled[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    for number, bad in enumerate((data[: len(data) * 2 // 3], b"<html>not found</html>" * 30, b"")):
        assert "damaged or not an archive of this kind" in refused(tmp_path / str(number), bad, extension)
    if extension != ".tar":  # a plain tar holds no check sum of its contents
        assert "damaged or not an archive of this kind" in refused(tmp_path / "3", bytes(garbled), extension)


def test_an_archive_without_files_is_refused(tmp_path):
    assert "no file in it" in refused(tmp_path, zip_bytes({}), ".zip")


def test_what_a_user_has_in_the_folder_stays(tmp_path):
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/mine.png").write_text("mine")
    unpack_archive(archive, tmp_path / "birds")
    assert tree(tmp_path / "birds") == {"mine.png": b"mine"}


def test_an_empty_folder_is_filled_and_rubbish_of_a_killed_run_removed(tmp_path):
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))
    (tmp_path / "birds").mkdir()
    (tmp_path / ".birds.unfinished/train").mkdir(parents=True)
    unpack_archive(archive, tmp_path / "birds")
    assert len(tree(tmp_path / "birds")) == 3 and not (tmp_path / ".birds.unfinished").exists()


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/birds: cannot be written"):
        unpack_archive(archive, tmp_path / "file/birds")


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", no_space)
    with pytest.raises(StorageError, match=r"No space left on device.*MiB free"):
        unpack_archive(archive, tmp_path / "birds")
    assert [path.name for path in tmp_path.iterdir()] == ["birds.tar"]


def test_two_processes_unpack_once_and_a_killed_one_is_made_good(tmp_path):
    """The lock ends with its process; the folder appears whole or not at all."""
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))
    program = (
        "import sys, time; from pathlib import Path; from utils.files import archives; sys.argv[2] == 'slow' and"
        " setattr(archives.shutil, 'copyfileobj', lambda *_: (print('in', flush=True), time.sleep(60)));"
        " archives.unpack_archive(Path(sys.argv[1]), Path(sys.argv[1]).parent / 'birds')"
    )
    slow = subprocess.Popen(
        [sys.executable, "-c", program, str(archive), "slow"], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert slow.stdout.readline() == "in\n"
    others = [
        subprocess.Popen([sys.executable, "-c", program, str(archive), "quick"], cwd=REPOSITORY_ROOT) for _ in range(2)
    ]
    time.sleep(0.7)
    assert not (tmp_path / "birds").exists() and all(process.poll() is None for process in others)
    slow.kill()
    slow.communicate()
    assert [process.wait(timeout=20) for process in others] == [0, 0]
    assert len(tree(tmp_path / "birds")) == 3 and not (tmp_path / ".birds.unfinished").exists()


def test_where_a_file_system_has_no_locks_it_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic_folders.fcntl, "flock", no_locks)
    archive = tmp_path / "birds.tar"
    archive.write_bytes(tar_bytes(FILES))
    unpack_archive(archive, tmp_path / "birds")
    assert len(tree(tmp_path / "birds")) == 3
