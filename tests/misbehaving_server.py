"""A real HTTP server on 127.0.0.1 that holds files and, on request, misbehaves as servers and networks do.

``server.faults[path]`` is a list of what goes wrong with the next requests for ``path``, one entry a request; when it
is used up, the file is served as it should be: HTTP/1.1, kept open. Every request is remembered.
"""

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    path: str
    headers: Message


class MisbehavingServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.connections = 0
        # While it is cleared, requests for paths that match `held` wait.
        self.open = threading.Event()
        self.open.set()
        self.held = re.compile(r"\.mp3$")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(request.path for request in self.requests)

    def close(self) -> None:
        self.open.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MisbehavingServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, self.headers))
        if self.server.held.search(self.path):
            self.server.open.wait()
        faults = self.server.faults.get(self.path)
        if faults:
            faults.pop(0)(self)
        elif self.path not in self.server.files:
            self.answer(404, b"<html>no such file</html>", {"Content-Type": "text/html"})
        else:
            self.answer(200, self.body)

    @property
    def body(self) -> bytes:
        return self.server.files.get(self.path, b"")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


Fault = Callable[[_Handler], None]


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """An error page."""
    return lambda handler: handler.answer(code, b"<html>something is wrong</html>", headers)


def other_body(body: bytes, headers: dict[str, str] | None = None) -> Fault:
    """200, with other bytes than the file's."""
    return lambda handler: handler.answer(200, body, headers)


def cut(handler: _Handler) -> None:
    """The length of the whole file is stated, half of it comes, and the connection is cut."""
    handler.answer(200, handler.body[: len(handler.body) // 2], {"Content-Length": str(len(handler.body))})
    hang_up(handler)


def hang_up(handler: _Handler) -> None:
    """No answer: the connection is closed."""
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)


def silence(handler: _Handler) -> None:
    """The connection stays open and nothing comes (until the client has gone)."""
    handler.close_connection = True
    handler.connection.settimeout(20)
    with suppress(OSError):
        handler.connection.recv(1)


def length(offset: int) -> Fault:
    """A Content-Length that is wrong by ``offset``; all the bytes come."""
    return lambda handler: (
        handler.answer(200, handler.body, {"Content-Length": str(len(handler.body) + offset)}),
        hang_up(handler),
    )


def no_length(handler: _Handler) -> None:
    """As an old server: the end of the connection is the end of the file, and half of it is missing."""
    handler.answer(200, handler.body[: len(handler.body) // 2], {"Content-Length": "", "Connection": "close"})
    hang_up(handler)


def chunked_cut(handler: _Handler) -> None:
    """A chunk of the file, its length not stated, and a cut before the next one."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"3e8\r\n%s\r\n" % handler.body[:1000])
    hang_up(handler)


def redirect(url: str) -> Fault:
    """302 to ``url``."""
    return lambda handler: handler.answer(302, b"", {"Location": url})
