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
import tracemalloc
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


@pytest.mark.parametrize("extension", [".ZIP", ".TGZ", ".Tar.Gz", ".TAR.BZ2", ".tar.XZ", ".TAR"])
def test_capitals_in_the_name_of_an_archive_are_as_good(tmp_path, extension):
    packer = {".zip": zip_bytes, ".tgz": lambda files: gzip.compress(tar_bytes(files))}.get(extension.lower())
    (tmp_path / f"Birds{extension}").write_bytes(
        packer(FILES) if packer else PACKERS[extension.lower()](tar_bytes(FILES))
    )
    assert find_archive("birds", tmp_path) is None
    unpack_archive(find_archive("Birds", tmp_path), tmp_path / "birds")
    assert len(tree(tmp_path / "birds")) == 3


def test_backslashes_in_a_zip_are_separators(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes({"x\\train\\robin\\1.png": b"1", "x\\train\\wren\\": b""}))
    unpack_archive(tmp_path / "a.zip", tmp_path / "birds")
    assert tree(tmp_path / "birds") == {"train/robin/1.png": b"1"} and (tmp_path / "birds/train/wren").is_dir()


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


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("a/link.png")
    member.type, member.linkname = kind, "../../secret"
    assert 'member "a/link.png" is a link, a device or a sparse file' in refused(tmp_path, tar_with(member))


def test_a_hard_link_becomes_a_copy_of_the_member_it_names(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1.png").write_bytes(b"robin" * 1000)
    os.link(tmp_path / "c/1.png", tmp_path / "c/2.png")
    with tarfile.open(tmp_path / "birds.tar", "w") as tar:
        tar.add(tmp_path / "c", "birds/c")
        assert [member.islnk() for member in tar.getmembers()].count(True) == 1
    unpack_archive(tmp_path / "birds.tar", tmp_path / "birds")
    assert tree(tmp_path / "birds") == {"c/1.png": b"robin" * 1000, "c/2.png": b"robin" * 1000}
    assert (tmp_path / "birds/c/1.png").stat().st_nlink == 1


@pytest.mark.parametrize("linkname", ["b/nothing.png", "../../secret", "/etc/passwd", "a/link.png", ""])
def test_a_hard_link_to_what_is_not_unpacked_is_refused(tmp_path, linkname):
    member = tarfile.TarInfo("a/link.png")
    member.type, member.linkname = tarfile.LNKTYPE, linkname
    text = refused(tmp_path, tar_with(member))
    assert "is no file before it in the archive" in text or "would be written outside the dataset folder" in text


def test_hard_links_count_as_what_they_unpack_to(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALLEST_SIZE_LIMIT", 2**20)
    monkeypatch.setattr(archives, "LARGEST_RATIO", 1)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(20):
            member = tarfile.TarInfo(f"a/{number}.png")
            member.type, member.linkname = (tarfile.LNKTYPE, "a/0.png") if number else (tarfile.REGTYPE, "")
            member.size = 0 if number else 10**5
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    assert "a decompression bomb?" in refused(tmp_path, file.getvalue())


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


@pytest.mark.parametrize("extension", [".tar", ".zip"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/" * 2000 + "1.png", "more than 50 folders in each other"),
        ("a/" + "b" * 300 + "/1.png", "has a name that is too long for this file system"),
        ("c" * 300 + ".png", "has a name that is too long for this file system"),
    ],
)
def test_folders_too_deep_and_names_too_long_are_refused(tmp_path, extension, name, reason):
    assert reason in refused(tmp_path, (zip_bytes if extension == ".zip" else tar_bytes)({name: b""}), extension)


def test_too_many_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FOLDERS", 10)
    files = {f"a/{number}/": b"" for number in range(20)}
    assert "more than 10 folders" in refused(tmp_path, zip_bytes(files), ".zip")
    assert "more than 10 folders" in refused(tmp_path, tar_bytes({f"{name}x": b"" for name in files}))


def with_long_header(kind: bytes, says: int, has: int) -> bytes:
    """A tar whose first member has a header before it (a long name, or pax) that says it is so long."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, says
    return header.tobuf(tarfile.GNU_FORMAT) + b"1" * has + tar_bytes({"a/1.png": b"1"})


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_long_header_of_a_tar_is_not_read_into_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "MOST_HEADER_BYTES", 2**16)
    data = gzip.compress(with_long_header(kind, 2**30, 2**24))
    tracemalloc.start()
    text = refused(tmp_path, data, ".tar.gz")
    assert "the header of a member has more than 64.0 KiB" in text
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_chain_of_headers_is_refused(tmp_path):
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    assert "damaged" in refused(tmp_path, header.tobuf() * 5000 + tar_bytes({"a/1.png": b"1"}))


def test_a_long_list_of_names_of_a_zip_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_DIRECTORY_BYTES", 2000)
    data = zip_bytes({f"a/{number}.png": b"" for number in range(100)})
    assert "a list of names of more than 2.0 KiB" in refused(tmp_path, data, ".zip")


@pytest.mark.parametrize("place", ["header", "name", "cut in a header", "cut between members", "rest"])
def test_a_tar_that_ends_too_early_is_damaged(tmp_path, place):
    """tarfile takes what is no header for the end, and the members behind it would be missed without a word."""
    data = tar_bytes({f"a/{number}.png": b"x" * 512 for number in range(30)})  # two blocks each
    bad = {
        "header": data[:10240] + b"\xff" * 512 + data[10752:],
        "name": data[:10240] + b"b" + data[10241:],
        "cut in a header": data[: 10240 + 100],
        "cut between members": data[:10240],
        "rest": data[: 10240 + 600],
    }[place]
    assert "damaged" in refused(tmp_path, bad)


def damaged_zips() -> dict[str, bytes]:
    """Zips that zipfile answers with errors of other kinds than its own."""
    data = zip_bytes({"a/1.png": b"x" * 2000})
    central = data.index(b"PK\x01\x02")
    utf8 = bytearray(data.replace(b"a/1.png", b"a/\xff.png"))
    utf8[7] |= 0x08
    utf8[central + 9] |= 0x08
    version, method, patched = bytearray(data), bytearray(data), bytearray(data)
    version[central + 6] = 99
    method[8] = method[central + 10] = 77
    patched[central + 8] |= 0x20
    patched[6] |= 0x20
    return {"name": bytes(utf8), "version": bytes(version), "method": bytes(method), "patched": bytes(patched)}


@pytest.mark.parametrize("name", damaged_zips())
def test_zips_that_zipfile_cannot_read_are_refused(tmp_path, name):
    refused(tmp_path, damaged_zips()[name], ".zip")


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "birds.tar")
    with pytest.raises(DataError, match=r"birds\.tar: no file"):
        unpack_archive(tmp_path / "birds.tar", tmp_path / "birds")


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
