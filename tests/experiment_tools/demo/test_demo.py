"""The demo's server: answers as the classifier does, keeps visitors apart and bounded, and refuses what is not for
it.
"""

import http.client
import io
import json
import re
import socket
import time

import numpy as np
import pytest
from PIL import Image

from experiment_tools.demo import __main__ as demo_module
from experiment_tools.demo import sessions as demo_sessions
from experiment_tools.demo.__main__ import Demo, build_demo, main
from experiment_tools.demo.drawn_images import draw_strokes
from experiment_tools.demo.network import DemoNetwork
from experiment_tools.demo.sessions import MOST_IMAGES, MOST_SESSIONS, RefusedError, Sessions
from few_shot_classifier import FewShotClassifier
from tests.tools.runs import run_tiny
from tests.tools.servers import served

STROKES = {
    "cross": [[0.2, 0.2, 0.8, 0.8], [0.8, 0.2, 0.2, 0.8]],
    "line": [[0.5, 0.1, 0.5, 0.9]],
    "roof": [[0.2, 0.8, 0.5, 0.2, 0.8, 0.8]],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("runs"), total_epochs=1, total_iter_per_epoch=2)


@pytest.fixture(scope="module")
def network(run_folder):
    return DemoNetwork(FewShotClassifier.from_experiment(run_folder, gpu_to_use="cpu"))


@pytest.fixture
def demo(network):
    server = Demo(0, network, {"run": "<b>&\"'"})
    with served(server):
        yield server


class Visitor:
    """What a page in a browser sends."""

    def __init__(self, demo):
        self.demo = demo
        status, page, _ = self.ask("GET", "/")
        assert status == 200
        self.name = json.loads(
            re.search(r'data-start="([^"]*)"', page.decode())
            .group(1)
            .replace("&quot;", '"')
            .replace("&lt;", "<")
            .replace("&amp;", "&")
            .replace("&#x27;", "'")
        )["session"]

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.demo.server_port, timeout=10)
        given = {"Host": self.demo.hosts[0]}
        if method == "POST":
            given |= {
                "Origin": f"http://{self.demo.hosts[0]}",
                "X-Session": getattr(self, "name", ""),
                "Content-Type": "application/json",
            }
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            given.setdefault("Content-Length", str(len(body)))
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content, answered = answer.read(), dict(answer.getheaders())
        connection.close()
        return answer.status, content, answered

    def post(self, path, body, **headers):
        status, content, _ = self.ask("POST", path, body, **headers)
        return status, json.loads(content)

    def draw(self, name):
        status, answer = self.post("/image", {"strokes": STROKES[name]})
        assert status == 200 and answer["seen"].startswith("data:image/png;base64,")
        return answer["image"]


def png(*size):
    file = io.BytesIO()
    Image.new("L", size, 128).save(file, "PNG")
    return file.getvalue()


def test_steps_are_those_of_the_classifier(demo, run_folder):
    visitor = Visitor(demo)
    numbers = [visitor.draw(name) for name in STROKES]
    status, answer = visitor.post(
        "/classify", {"classes": [[number] for number in numbers], "query": visitor.draw("line")}
    )
    assert status == 200
    images = [
        draw_strokes([list(zip(s[::2], s[1::2], strict=True)) for s in strokes], demo.network.config)
        for strokes in STROKES.values()
    ]
    classifier = FewShotClassifier.from_experiment(run_folder, batch_norm_statistics="support").fit(
        np.stack(images), ["a", "b", "c"]
    )
    np.testing.assert_allclose(
        answer["steps"], classifier.predict_proba(images[1][None], every_step=True)[:, 0], atol=1e-4
    )


def test_fewer_classes_than_a_learned_head_has_outputs_share_the_probability(demo):
    visitor = Visitor(demo)
    numbers = [visitor.draw("cross"), visitor.draw("line")]
    status, answer = visitor.post("/classify", {"classes": [[numbers[0]], [numbers[1]]], "query": numbers[0]})
    assert status == 200
    np.testing.assert_allclose(np.sum(answer["steps"], axis=1), 1, atol=1e-4)
    for classes in ([[numbers[0]]], [[numbers[0]]] * 4):
        status, answer = visitor.post("/classify", {"classes": classes, "query": numbers[0]})
        assert (status, answer["error"]) == (400, f"{len(classes)} classes with examples; this network takes 2 to 3")


def test_a_visitor_does_not_reach_the_images_of_another(demo):
    one, other = Visitor(demo), Visitor(demo)
    number = one.draw("cross")
    for classes in ([[number], [number]], [[number], [number + 1]]):
        status, answer = other.post("/classify", {"classes": classes, "query": number})
        assert status == 410 and "not kept" in answer["error"]
    assert other.draw("line") == number  # numbers are each visitor's own: they tell nothing of the others
    assert demo.sessions.get(one.name).images[number].tolist() != demo.sessions.get(other.name).images[number].tolist()


def test_photographs_are_decoded_as_the_runs_own_and_bad_ones_are_refused(demo):
    visitor = Visitor(demo)
    kind = "application/octet-stream"
    assert visitor.post("/image", png(40, 30), Content_Type=kind)[0] == 200
    whole = png(40, 30)
    for bad in (
        b"",
        b"no image",
        whole[: len(whole) // 2],
        b"GIF89a" + bytes(50),
        b"%PDF-1.4",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ):
        status, answer = visitor.post("/image", bad, Content_Type=kind)
        assert status == 415 and "this is no image that can be read; PNG, JPEG, BMP and WebP are" in answer["error"]
    bomb = whole[:16] + (30_000).to_bytes(4, "big") * 2 + whole[24:]
    crc = __import__("zlib").crc32(bomb[12:29]).to_bytes(4, "big")
    status, answer = visitor.post("/image", bomb[:29] + crc + bomb[33:], Content_Type=kind)
    assert status == 413 and "too many pixels" in answer["error"]
    status, answer = visitor.post("/image", png(10_000, 5_001), Content_Type=kind)
    assert status == 413 and "10000 x 5001 pixels; at most 50 million" in answer["error"]


@pytest.mark.parametrize(
    "strokes",
    [
        None,
        [],
        [[]],
        [[0.1]],
        [[0.1, "a"]],
        [[0.1, None]],
        [[1e9, 0.1]],
        [[10**400, 0.1]],
        [[-(10**400), 0.1]],
        [[True, 0.1]],
        {"a": 1},
        [0.1, 0.2],
        "x",
    ],
    ids=str,
)
def test_malformed_drawings_are_refused(demo, strokes):
    status, answer = Visitor(demo).post("/image", {"strokes": strokes})
    assert status == 400 and "drawing" in answer["error"]


def test_a_coordinate_that_json_does_not_know_is_refused(demo):
    status, answer = Visitor(demo).post("/image", {"strokes": [[[float("nan"), 0.1]]]})
    assert (status, answer["error"]) == (400, "this is no JSON")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000], ids=lambda body: repr(body[:5]))
def test_malformed_json_is_refused(demo, body):
    visitor = Visitor(demo)
    for path in ("/image", "/classify"):
        status, answer = visitor.post(path, body)
        assert status in (400, 413) and answer["error"]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"classes": 3},
        {"classes": [[], []]},
        {"classes": [1, 2]},
        {"classes": [["../x"], ["b"]]},
        {"classes": [[True], [1.5]]},
        {"classes": [[1], [1]], "query": "1"},
    ],
    ids=str,
)
def test_malformed_questions_are_refused(demo, request_):
    visitor = Visitor(demo)
    visitor.draw("cross")
    status, answer = visitor.post("/classify", request_)
    assert status == 400 and answer["error"]


def test_an_oversized_upload_is_refused_before_it_is_read(demo):
    visitor = Visitor(demo)
    begin = time.perf_counter()
    status, answer = visitor.post(
        "/image", None, Content_Length="12000001", Content_Type="application/octet-stream"
    )  # nothing is sent: who reads first would wait
    assert status == 413 and "larger than 12 MB; make it smaller" in answer["error"]
    assert visitor.post("/image", None, Content_Length="9" * 30)[0] == 413
    status, answer = visitor.post("/image", None, Content_Length="1000001")
    assert status == 413 and "larger than 1 MB" in answer["error"]
    for length in (None, "-1", "1e3", "x", "٣"):
        status, answer = visitor.post("/image", None, Content_Length=length and length.encode().decode("latin-1"))
        assert status == 411
    assert visitor.post("/image", None, Transfer_Encoding="chunked")[0] == 411
    assert time.perf_counter() - begin < 5
    points = [[0.5, 0.5] * 20_001]
    status, answer = visitor.post("/image", {"strokes": points})
    assert status == 413 and "more than 20000 points" in answer["error"]


def trickle(demo, visitor, kind, length=1000):
    """A connection that has sent the head of a request and the first byte of its body."""
    head = {
        "Host": demo.hosts[0], "Origin": f"http://{demo.hosts[0]}", "X-Session": visitor.name, "Content-Type": kind,
        "Content-Length": length,
    }  # fmt: skip
    connection = socket.create_connection(("127.0.0.1", demo.server_port), timeout=10)
    lines = ["POST /image HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", "x"]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def test_uploads_that_trickle_in_keep_nobody_waiting(demo, monkeypatch):
    """A byte now and then is within every limit on a single piece; the limit is on the whole request."""
    monkeypatch.setattr(demo_module.Handler, "timeout", 1.2)
    monkeypatch.setattr(demo_module, "WAIT_S", 0.2)
    visitor = Visitor(demo)
    slow = [trickle(demo, visitor, "application/octet-stream") for _ in range(demo_module.PHOTOGRAPHS_AT_ONCE)]
    begin = time.perf_counter()
    while demo._photographs._value:
        time.sleep(0.01)
    visitor.draw("line")  # drawings have no need of a place
    status, answer = visitor.post("/image", png(40, 30), Content_Type="application/octet-stream")
    assert status == 503 and "4 other pictures are on their way; try again in a moment" in answer["error"]
    assert time.perf_counter() - begin < 1.0
    ends = []
    while len(ends) < len(slow):
        for connection in set(slow) - set(ends):
            try:
                connection.sendall(b"x")
                connection.settimeout(0.02)
                assert b"408" in connection.recv(4096).split(b"\r\n")[0]
                ends.append(connection)
            except TimeoutError:
                continue
    assert time.perf_counter() - begin < 5
    assert visitor.post("/image", png(40, 30), Content_Type="application/octet-stream")[0] == 200
    for connection in slow:
        connection.close()


def test_a_head_that_trickles_in_is_not_waited_for(demo, monkeypatch):
    monkeypatch.setattr(demo_module.Handler, "timeout", 0.3)
    with socket.create_connection(("127.0.0.1", demo.server_port), timeout=0.05) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        begin, ended = time.perf_counter(), False
        while not ended:
            assert time.perf_counter() - begin < 5
            try:
                connection.sendall(b"x")
                ended = connection.recv(100) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", "", None],
)
def test_another_host_is_refused_so_that_no_name_can_be_bound_to_this_address(demo, host):
    visitor = Visitor(demo)
    host = host and host.format(port=demo.server_port)
    for method, path, body in (("GET", "/", None), ("POST", "/image", {"strokes": STROKES["line"]})):
        status, content, _ = visitor.ask(method, path, body, Host=host)
        assert status == 421 and demo.address in json.loads(content)["error"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", None]
)
def test_another_origin_is_refused(demo, origin):
    visitor = Visitor(demo)
    status, answer = visitor.post(
        "/image", {"strokes": STROKES["line"]}, Origin=origin and origin.format(port=demo.server_port)
    )
    assert (status, answer["error"]) == (403, "only the demo's own page may ask")
    assert len(demo.sessions) == 0


def test_a_made_up_session_is_refused(demo):
    visitor = Visitor(demo)
    for name in ("", "x", "a.b", visitor.name[:-1], visitor.name + "x", "é." + visitor.name.partition(".")[2]):
        status, answer = visitor.post("/image", {"strokes": STROKES["line"]}, X_Session=name)
        assert status == 403 and "reload it" in answer["error"]
    assert len(demo.sessions) == 0


@pytest.mark.parametrize(
    "path", ["/x", "/../demo.py", "/%2e%2e/README.md", "/index.html", "/?x", "http://evil.example/", "/image"]
)
def test_there_is_one_page_and_nothing_of_the_disk(demo, path):
    status, content, _ = Visitor(demo).ask("GET", path)
    assert status == 404 and b"there is only one page" in content
    assert Visitor(demo).post("/etc/passwd", {})[0] == 404


def test_the_page_loads_nothing_and_its_policy_allows_nothing_else(demo):
    _, page, headers = Visitor(demo).ask("GET", "/")
    text, policy = page.decode(), headers["Content-Security-Policy"]
    assert not re.search(r"https?://|@import|url\(|\bsrc=|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert "{{" not in text and "<b>&" not in text
    assert (
        policy.startswith("default-src 'none'")
        and "unsafe" not in policy
        and "connect-src 'self'" in policy
        and "frame-ancestors 'none'" in policy
    )
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_sessions_are_bounded_and_forgotten_when_idle():
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    names = [sessions.new_name() for _ in range(MOST_SESSIONS + 3)]
    assert len(sessions) == 0 and len(set(names)) == len(names)
    for name in names:
        sessions.get(name).add(np.zeros((1, 2, 2), np.uint8))
    assert len(sessions) == MOST_SESSIONS
    session = sessions.get(names[-1])
    for _ in range(MOST_IMAGES + 5):
        newest = session.add(np.zeros((1, 2, 2), np.uint8))
    assert len(session.images) == MOST_IMAGES and session.image(newest).shape == (1, 2, 2)
    with pytest.raises(RefusedError, match="not kept any more"):
        session.image(1)
    now[0] = demo_sessions.IDLE_S + 1
    assert not sessions.get(names[0]).images and len(sessions) == 1
    with pytest.raises(RefusedError, match="earlier start"):
        Sessions().get(names[0])


def test_what_fails_inside_is_told_and_the_server_goes_on(demo, monkeypatch, caplog):
    visitor = Visitor(demo)
    number = visitor.draw("cross")
    with monkeypatch.context() as patch:
        patch.setattr(demo.network, "probabilities", lambda *_: 1 / 0)
        status, answer = visitor.post("/classify", {"classes": [[number], [number]], "query": number})
    assert (status, answer["error"]) == (500, "the demo failed; its terminal says why")
    assert "ZeroDivisionError" in caplog.text
    assert visitor.post("/classify", {"classes": [[number], [number]], "query": number})[0] == 200


def test_it_listens_on_the_loopback_interface_alone_and_ends_with_one_line(run_folder, monkeypatch, capsys):
    seen = []

    def serve(server, *_):
        seen.append(server.socket.getsockname())
        raise KeyboardInterrupt

    monkeypatch.setattr(Demo, "serve_forever", serve)
    assert main(["--experiment", str(run_folder), "--port", "0"]) == 0
    assert seen[0][0] == "127.0.0.1"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"Open http://127.0.0.1:{seen[0][1]}/ in a browser of this computer. Ctrl-C ends the demo.",
        "The demo has ended; nothing was kept.",
    ]


def test_a_port_that_is_taken_and_a_run_that_is_not_there_are_one_error(run_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--experiment", str(run_folder), "--port", str(port)]) == 1
    assert f"--port {port} cannot be opened (Address already in use); give another one, or 0" in capsys.readouterr().err
    assert main(["--experiment", str(run_folder), "--port", "70000"]) == 1
    assert "no such port" in capsys.readouterr().err
    assert main(["--experiment", "nowhere"]) == 1
    assert "nowhere: no such run folder" in capsys.readouterr().err


@pytest.mark.parametrize(("dataset", "side"), [("omniglot_dataset", 28), ("synthetic_strokes", 28)])
def test_a_drawing_is_dark_ink_on_white_of_the_datasets_pen(dataset, side):
    config = {
        "dataset_name": dataset,
        "image_height": side,
        "image_width": side,
        "image_channels": 1,
        "resize_filter": "nearest",
    }
    lines = [draw_strokes([[(0.1, y), (0.9, y)]], config) for y in np.linspace(0.3, 0.7, 21)]
    image = lines[0]
    assert image.shape == (1, side, side) and image[0, 0, 0] == 255
    share = {"omniglot_dataset": 5 / 105, "synthetic_strokes": 0.065}[dataset]
    ink = 1 - np.mean([line[0, :, side // 4 : -side // 4] for line in lines]) / 255
    assert ink == pytest.approx(share, rel=0.12)  # of a line right across, wherever it is
    assert set(np.unique(image)) == {0, 255} if dataset == "omniglot_dataset" else len(np.unique(image)) > 2


def test_omniglots_own_pictures_have_the_same_pen(shared_data):
    """As many ink pixels around each point of a stroke in Omniglot's pictures as in drawn ones: 5 across."""
    import tarfile

    widths = []
    with tarfile.open(shared_data("omniglot_dataset.tar.bz2")) as archive:
        for member in archive:
            if len(widths) == 40:
                break
            if member.name.endswith(".png"):
                ink = np.asarray(Image.open(archive.extractfile(member)).convert("L")) < 128
                assert ink.shape == (105, 105) and 0.01 < ink.mean() < 0.3  # dark ink on white
                widths.append(_typical_run(ink))
    drawn = draw_strokes(
        [[(0.3, 0.2), (0.3, 0.8)], [(0.3, 0.5), (0.8, 0.5)]],
        {
            "dataset_name": "omniglot_dataset",
            "image_height": 105,
            "image_width": 105,
            "image_channels": 1,
            "resize_filter": "nearest",
        },
    )
    assert np.median(widths) == _typical_run(drawn[0] < 128)


def _typical_run(ink):
    """The most frequent number of ink pixels side by side, in rows and columns."""
    lengths = []
    for lines in (ink, ink.T):
        padded = np.pad(lines.astype(int), ((0, 0), (1, 1)))
        change = np.diff(padded, axis=1)
        lengths += list(np.nonzero(change == -1)[1] - np.nonzero(change == 1)[1])
    return np.bincount(lengths).argmax()


def test_a_regression_is_refused(tmp_path):
    import argparse

    from tests.tools.runs import SINUSOID

    folder = run_tiny(tmp_path, **SINUSOID, total_epochs=1, total_iter_per_epoch=1)
    options = argparse.Namespace(
        plugin=None,
        experiment=str(folder),
        pretrained=None,
        checkpoint="best",
        statistics="support",
        steps=None,
        port=0,
    )
    with pytest.raises(demo_module.ConfigError, match="regression"):
        build_demo(options)
