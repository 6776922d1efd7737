"""Downloads from a server on the loopback interface that breaks off, serves wrong bytes, changes its mind, or is not
there.
"""

import hashlib
import io
import re
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.conftest import draw_dataset
from tests.tools.servers import served
from utils.errors import DataError, StorageError
from utils.prepare_dataset import downloads
from utils.prepare_dataset.__main__ import main
from utils.prepare_dataset.downloads import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; what else happens is set on the server."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if content is None or server.status:
            self.send_error(server.status.pop(0) if server.status else 404)
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(match[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        sent = content[start:]
        if server.chunked:  # the length is not announced
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (sent[:1000], sent[1000:])))
            self.wfile.write(b"" if server.breaks and server.breaks.pop() else b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if server.breaks:
            sent = sent[: server.breaks.pop(0)]
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.breaks, server.status = {"/data.bin": CONTENT}, [], [], []
    server.chunked = False
    server.ranges, server.etag = True, '"one"'
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    with served(server):
        yield server


def test_a_file_is_fetched_once_and_leaves_nothing_beside_it(server, tmp_path):
    for _ in range(2):
        path = fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256.upper())
        assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".data.bin.lock", "data.bin"]


def test_a_broken_connection_is_gone_on_with_in_the_same_run(server, tmp_path):
    server.breaks = [100_000, 50_000]
    fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_server_that_keeps_breaking_off_is_told_and_a_rerun_goes_on_where_it_was(server, tmp_path):
    server.breaks = [100_000, 10, 10]
    with pytest.raises(DataError) as broken:
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    assert "cannot be fetched (the connection broke off after 100020 of 300000 bytes)" in str(broken.value)
    assert f"100020 bytes are in {tmp_path}/data.bin.partial; the same command goes on there" in str(broken.value)
    assert not (tmp_path / "data.bin").exists()
    fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=100020-"


@pytest.mark.parametrize("change", ["another file", "no ranges", "no etag"])
def test_a_part_of_another_file_is_never_continued(server, tmp_path, change):
    if change == "no etag":
        server.etag = ""
    server.breaks = [100_000, 0, 0]
    with pytest.raises(DataError):
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin")
    if change == "another file":
        server.etag, server.files["/data.bin"] = '"two"', CONTENT[::-1]
    server.ranges = change != "no ranges"
    fetch(f"{server.address}/data.bin", tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == server.files["/data.bin"]


def test_an_end_without_the_last_chunk_is_a_broken_connection(server, tmp_path):
    server.chunked, server.breaks, server.ranges = True, [True] * 3, False
    with pytest.raises(DataError, match=r"cannot be fetched \(IncompleteRead"):
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin")
    assert fetch(f"{server.address}/data.bin", tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_part_that_is_already_the_whole_is_recognised(server, tmp_path):
    server.breaks = [100_000, 0, 0]
    with pytest.raises(DataError):
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    (tmp_path / "data.bin.partial").write_bytes(CONTENT)  # killed between the last byte and the renaming
    fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    assert server.requests[-1][1] == "bytes=300000-"


def test_wrong_bytes_are_told_removed_and_fetched_anew(server, tmp_path):
    server.files["/data.bin"] = b"<html>please log in</html>"
    with pytest.raises(DataError) as wrong:
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    found = hashlib.sha256(server.files["/data.bin"]).hexdigest()
    assert f"wrong bytes: sha256 is {found}, expected {SHA256}. What came was removed" in str(wrong.value)
    assert [path.name for path in tmp_path.iterdir()] == [".data.bin.lock"]
    server.files["/data.bin"] = CONTENT
    assert fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256).read_bytes() == CONTENT


def test_a_missing_page_is_told_at_once_and_a_busy_server_is_asked_again(server, tmp_path):
    with pytest.raises(
        DataError, match=r"cannot be fetched \(the server answers 404 Not Found\)\. Run the same command again, or"
    ):
        fetch(f"{server.address}/gone.bin", tmp_path / "gone.bin")
    assert len(server.requests) == 1
    server.status = [503, 429]
    fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)
    assert len(server.requests) == 4


def test_a_server_that_is_not_there_is_told(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        DataError,
        match=r"data.bin: cannot be fetched \(Connection refused\)\. Run the same command again, or fetch it by other",
    ):
        fetch(f"{server.address}/data.bin", tmp_path / "data.bin", digest=SHA256)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gs://bucket/x"])
def test_other_kinds_of_addresses_are_refused(tmp_path, address):
    with pytest.raises(DataError, match="only http and https addresses can be fetched"):
        fetch(address, tmp_path / "x")


def test_a_folder_that_cannot_be_written_is_a_storage_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        fetch(f"{server.address}/data.bin", tmp_path / "file" / "data.bin")


# The command


@pytest.fixture
def archive(tmp_path):
    """A zip of a tree of class folders."""
    folder = draw_dataset(tmp_path / "birds", ["robin", "wren"], images_per_class=2)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        for path in sorted(folder.rglob("*.png")):
            opened.write(path, path.relative_to(folder.parent))
    return data.getvalue()


@pytest.mark.parametrize("trouble", ["breaks off", "wrong bytes", "not there"])
def test_each_trouble_is_a_message_with_exit_code_2_and_a_rerun_works(server, archive, tmp_path, capsys, trouble):
    sha256 = hashlib.sha256(archive).hexdigest()
    command = [
        "folder",
        "--from",
        f"{server.address}/birds.zip",
        "--sha256",
        sha256,
        "--to",
        str(tmp_path / "datasets"),
    ]
    server.files["/birds.zip"] = archive
    if trouble == "breaks off":
        server.breaks = [len(archive) // 2, 0, 0]
    elif trouble == "wrong bytes":
        server.files["/birds.zip"] = archive[::-1]
    else:
        del server.files["/birds.zip"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert {
        "breaks off": "the connection broke off after",
        "wrong bytes": "wrong bytes: sha256",
        "not there": "answers 404",
    }[trouble] in message
    assert not (tmp_path / "datasets" / "birds").exists()
    server.files["/birds.zip"] = archive
    assert main(command) == 0
    assert "birds: prepared, 4 images in 2 classes" in capsys.readouterr().out
    assert main(command) == 0
    assert "birds: is there and verified, 4 images in 2 classes" in capsys.readouterr().out
    assert server.requests[-1][1] == (f"bytes={len(archive) // 2}-" if trouble == "breaks off" else None)
