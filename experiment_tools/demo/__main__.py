"""A page on which one draws examples of a few classes and watches the network learn them.

    python -m experiment_tools.demo --pretrained omniglot_5way_1shot
    python -m experiment_tools.demo --experiment NAME

It is served on this computer's loopback interface alone, loads nothing from anywhere and keeps nothing: drawings and
photographs stay in memory until they have not been used for an hour, or the demo ends (Ctrl-C).
"""

import argparse
import base64
import hashlib
import html
import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from experiment_tools.demo.network import DemoNetwork, description
from experiment_tools.demo.sessions import (
    LARGEST_DRAWING,
    LARGEST_UPLOAD,
    RefusedError,
    Session,
    Sessions,
    drawing,
    photograph,
)
from experiment_tools.parts import learned
from experiment_tools.parts.command import on_console
from experiment_tools.parts.pages import as_image, data_address
from utils.errors import ConfigError
from utils.files.reading import parse_json
from utils.paths import command

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent
LOOPBACK = "127.0.0.1"
JSON = "application/json"
MOST_EXAMPLES = 100
LARGEST_QUESTION = 100_000
"""Bytes."""
PHOTOGRAPHS_AT_ONCE = 4
"""Each may take hundreds of megabytes while it is decoded."""
WAIT_S = 10.0
"""Seconds that a visitor waits for a place among these."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Demo(ThreadingHTTPServer):
    """The server: its network, its visitors and its page.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, port: int, network: DemoNetwork, start: dict[str, Any]) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.network, self.start, self.sessions = network, start, Sessions()
        self._photographs = threading.BoundedSemaphore(PHOTOGRAPHS_AT_ONCE)
        self.hosts = [f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")]
        self._parts = {name: (FOLDER / f"demo.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{self.hosts[0]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break off."""
        log.debug("a connection broke off", exc_info=True)

    def page(self) -> tuple[str, str]:
        """Return the page for a new visitor, and its content security policy."""
        start = json.dumps(self.start | {"session": self.sessions.new_name()}, ensure_ascii=True)
        script, style = self._parts["js"], self._parts["css"]
        text = (
            self._parts["html"]
            .replace("{{ start }}", html.escape(start))
            .replace("{{ style }}", style)
            .replace("{{ script }}", script)
        )
        hashes = [
            "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"
            for part in (script, style)
        ]
        policy = (
            f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; img-src data: blob:; connect-src "
            "'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return text, policy

    @contextmanager
    def photograph_place(self) -> Iterator[None]:
        """Hold one of the few places of photographs.

        Raises:
            RefusedError: all are taken, and stay so for `WAIT_S`.
        """
        if not self._photographs.acquire(timeout=WAIT_S):
            raise RefusedError(503, f"{PHOTOGRAPHS_AT_ONCE} other pictures are on their way; try again in a moment")
        try:
            yield
        finally:
            self._photographs.release()

    def add_image(self, session: Session, image: np.ndarray) -> dict[str, Any]:
        """Keep a drawing or a photograph; returns its number and how the network sees it."""
        return {"image": session.add(image), "seen": data_address(as_image(image))}

    def classify(self, session: Session, body: bytes) -> dict[str, Any]:
        """Adapt to the examples of each class and classify the query: {"classes": [[image, ...], ...], "query": image}.

        Returns:
            {"steps": [[probability of each class] before adaptation and after each inner step], "milliseconds": ...}.
        Raises:
            RefusedError: a question that cannot be answered, or images that are not kept any more.
        """
        request = _object(body)
        classes = request.get("classes")
        if not isinstance(classes, list) or not all(isinstance(numbers, list) and numbers for numbers in classes):
            raise RefusedError(400, "classes are lists of one image or more")
        if not 2 <= len(classes) <= self.network.most_classes:
            raise RefusedError(
                400, f"{len(classes)} classes with examples; this network takes 2 to {self.network.most_classes}"
            )
        ranks = [rank for rank, numbers in enumerate(classes) for _ in numbers]
        if len(ranks) > MOST_EXAMPLES:
            raise RefusedError(413, f"{len(ranks)} examples; at most {MOST_EXAMPLES} are taken")
        support = np.stack([session.image(number) for numbers in classes for number in numbers])
        query = session.image(request.get("query"))
        key = hashlib.sha256(support.tobytes() + bytes(ranks)).digest()
        begin = time.perf_counter()
        steps = self.network.probabilities(key, support, ranks, query)
        return {"steps": steps.round(5).tolist(), "milliseconds": round(1000 * (time.perf_counter() - begin))}


class _Arriving(io.RawIOBase):
    """What comes in over a connection; nothing is waited for beyond a moment, however slowly it trickles in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._end_s = connection, 0.0

    def give(self, seconds: float) -> None:
        """Wait so long from now on."""
        self._end_s = time.monotonic() + seconds

    def readable(self) -> bool:
        """As `io.RawIOBase` has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, or wait for it; raises TimeoutError."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection. Only fixed paths are known: nothing that comes from outside is looked up on the disk."""

    server: Demo
    server_version, sys_version = "demo", ""
    protocol_version = "HTTP/1.1"
    timeout = 30.0
    """Seconds that a silent connection is kept, and in which the head of a request, its body and the answer must each
    have gone over.
    """

    def setup(self) -> None:
        """Read with a limit on the time of a whole request; the limit of sockets is on each piece of it."""
        super().setup()
        self.rfile.close()
        self._arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        self._arriving.give(self.timeout)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the head of a request, of which the first line is there."""
        self._arriving.give(self.timeout)
        return super().parse_request()

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answered(self._page)

    def do_POST(self) -> None:
        """Answer /image and /classify with JSON."""
        self._answered(self._post)

    def _page(self) -> None:
        if self.path != "/":
            raise RefusedError(404, f"there is only one page: {self.server.address}")
        text, policy = self.server.page()
        self._send(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _post(self) -> None:
        if self.path not in ("/image", "/classify"):
            raise RefusedError(404, "there is no such address")
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.server.hosts]:
            raise RefusedError(403, "only the demo's own page may ask")
        session, config = self.server.sessions.get(self.headers.get("X-Session", "")), self.server.network.config
        if self.path == "/classify":
            answer = self.server.classify(session, self._body(LARGEST_QUESTION))
        elif self.headers.get("Content-Type", "").partition(";")[0] == JSON:
            # Small: it needs no place, so that a drawing never waits for photographs.
            strokes = _object(self._body(LARGEST_DRAWING)).get("strokes")
            answer = self.server.add_image(session, drawing(strokes, config))
        else:
            with self.server.photograph_place():
                answer = self.server.add_image(session, photograph(self._body(LARGEST_UPLOAD), config))
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), JSON)

    def _body(self, largest: int) -> bytes:
        """Read the request's body; its size is judged first."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise RefusedError(411, "say how long the request is (Content-Length)")
        if len(length) > 12 or int(length) > largest:
            raise RefusedError(413, f"this is larger than {largest / 1e6:g} MB; make it smaller")
        self._arriving.give(self.timeout)
        try:
            body = self.rfile.read(int(length))
        except TimeoutError as error:
            raise RefusedError(408, f"the request took more than {self.timeout:g} s to arrive") from error
        if len(body) < int(length):
            raise RefusedError(400, "the request ended early")
        return body

    def _answered(self, answer: Any) -> None:
        try:
            if self.headers.get("Host") not in self.server.hosts:
                raise RefusedError(421, f"this demo is at {self.server.address}")
            answer()
        except RefusedError as error:
            self._refuse(HTTPStatus(error.status), str(error))
        except (TimeoutError, ConnectionError):
            self.close_connection = True
        except Exception as error:  # the visitor is told; the terminal has the traceback
            log.error("the demo could not answer %s", self.path[:100], exc_info=error)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the demo failed; its terminal says why")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # what of the body was not read must not become the next request
        self._send(status, json.dumps({"error": text}).encode(), JSON, {"Connection": "close"})

    def _send(self, status: HTTPStatus, body: bytes, content_type: str, more: dict[str, str] | None = None) -> None:
        self.connection.settimeout(self.timeout)
        self.send_response(status)
        for name, value in (
            HEADERS | (more or {}) | {"Content-Type": content_type, "Content-Length": str(len(body))}
        ).items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):  # the visitor has left
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing about each request."""


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = parse_json(body)
    except ValueError as error:
        raise RefusedError(400, "this is no JSON") from error
    if not isinstance(content, dict):
        raise RefusedError(400, "this is no JSON object")
    return content


def build_demo(options: argparse.Namespace) -> Demo:
    """Load the network and open the port.

    Raises:
        ConfigError: no such run or weights, or the port is taken.
    """
    name = learned.name_of(options)
    network = DemoNetwork(learned.classifier_of(options, gpu_to_use="cpu"), options.statistics, options.steps)
    try:
        return Demo(options.port, network, description(network, name))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise ConfigError(
            f"--port {options.port} cannot be opened ({reason}); give another one, or 0 for any that is free"
        ) from error


@on_console
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("demo"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    learned.add_options(parser)
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0: any that is free. Default 8000")
    parser.add_argument("--steps", type=int, help="inner steps; default: the run's")
    parser.add_argument(
        "--statistics",
        choices=("support", "transductive", "running", "episodic"),
        default="support",
        help="batch-norm statistics; default support: a drawing is normalised with the statistics of the examples, "
        "not with its own",
    )
    options = parser.parse_args(arguments)
    try:
        with build_demo(options) as demo:  # which closes its port
            log.info("Open %s in a browser of this computer. Ctrl-C ends the demo.", demo.address)
            demo.serve_forever()
    except KeyboardInterrupt:
        log.info("The demo has ended; nothing was kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
