"""HTTP as a good guest: few connections, kept open; patience with a server in trouble; nothing half-received in use.

A body counts only when it is as long as its server said and when the caller's own check takes it. What may pass (a cut
or silent connection, 408, 429, any 5xx, a body that fails its check) is tried again after a pause that doubles each
time, jittered so that threads do not come back all at once, and never shorter than the server's Retry-After; a server
that asks for a pause gets it from every thread. What will not pass (404, 403, a redirect to another host) is not tried
again. Only the standard library: ``http.client`` keeps a connection open over many small files, which
``urllib.request`` cannot; the system's proxy settings are followed as that module follows them.
"""

import base64
import contextlib
import email.utils
import http.client
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from ..runtime.errors import UserError
from ..runtime.files import storage_error

T = TypeVar("T")

_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and how long is waited: all times in seconds."""

    attempts: int = 5
    backoff: float = 1.0  # before the second attempt; doubled before each further one
    longest: float = 60.0  # of the pauses that double
    longest_asked: float = 300.0  # of those that a server asks for: beyond it the user decides
    timeout: float = 30.0  # without a byte, or with fewer than 1,000 bytes a second


PATIENCE = Patience()


class Failed(Exception):
    """A request gave nothing usable. ``again``: another attempt may; ``wait``: seconds that the server asks for."""

    def __init__(self, reason: str, again: bool = True, wait: float | None = None, gained: bool = False):
        super().__init__(reason)
        self.again = again
        self.wait = wait
        self.gained = gained


class Absent(Failed):
    """The server has no such file."""


def cannot_fetch(url: str, failure: Failed) -> UserError:
    """What to raise where nothing can go on without ``url``."""
    return UserError(f"cannot fetch {url} ({failure}): check the connection and run the same command again")


class Stopped(Exception):
    """The client was stopped while a thread was using it."""


class Client:
    """One for all threads: each thread gets its own connection, and all of them keep the pauses.

    ``tell`` is called with a line for the user when something has to wait.
    """

    def __init__(self, user_agent: str, patience: Patience, tell: Callable[[str], None]):
        self.user_agent = user_agent
        self.patience = patience
        self.tell = tell
        self._mine = threading.local()
        self._connections: set[http.client.HTTPConnection] = set()
        self._stop = threading.Event()
        self._resume_at = 0.0
        self._told_at = float("-inf")

    def fetch(self, url: str, use: Callable[[bytes], T], limit: int, sized: bool = True) -> T:
        """Return ``use(body)`` for the body at ``url``, of at most ``limit`` bytes.

        ``use`` raises :class:`Failed` for a body that is not what it should be. ``sized=False`` takes a body whose
        length no one states, which only ``use`` can then tell from one that was cut off.

        Raises:
            Failed: every attempt failed; the last one's reason.
            UserError: the server asks for a pause longer than anyone would sit through.
        """

        def attempt() -> T:
            response = self._open(url)
            self._require(response, (200,))
            return use(self._read(response, limit, sized))

        return self._persist(url, attempt)

    def save(self, url: str, path: Path, progress: Callable[[int, int | None], None]) -> None:
        """Download ``url`` to ``path``, going on from what ``path`` holds already where the server can.

        ``progress(bytes so far, bytes in all or None)`` is called as they come. A download that gains ground is never
        given up, however often it is cut.

        Raises:
            Failed: too many attempts in a row gained nothing.
            UserError: as :meth:`fetch`, or ``path`` cannot be written.
        """

        def attempt() -> None:
            have = path.stat().st_size if path.exists() else 0
            response = self._open(url, start=have)
            self._require(response, (200, 206, 416) if have else (200,))
            span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.getheader("Content-Range", ""))
            if response.status != 200 and not (span and int(span[1] or span[2]) == have):
                self._drop()
                path.unlink()
                raise Failed("the part downloaded before does not fit the file that is there now")
            if response.status == 416:
                self._drain(response)
                return
            start, total = (have, int(span[2])) if response.status == 206 else (0, response.length)
            try:
                with open(path, "ab" if start else "wb") as file:
                    size = start
                    for chunk in self._chunks(response):
                        file.write(chunk)
                        size += len(chunk)
                        progress(size, total)
            except _Cut as cut:
                raise Failed(str(cut), gained=size > have) from cut
            except OSError as error:
                raise storage_error(error, path) from error
            if size != (size if total is None else total):
                raise Failed(f"cut off after {size:,} of {total:,} bytes", gained=size > have)

        self._persist(url, attempt)

    def stop(self) -> None:
        """Make every thread that is waiting or receiving give up now, with :class:`Stopped`."""
        self._stop.set()
        for connection in list(self._connections):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for bytes; close() does not

    def _persist(self, url: str, attempt: Callable[[], T]) -> T:
        host, tries = urlsplit(url).netloc, 0
        while True:
            while (delay := self._resume_at - time.monotonic()) > 0:
                self._sleep(delay)
            self._sleep(0)
            try:
                return attempt()
            except Failed as failure:
                problem = failure
            except (_Cut, OSError, http.client.HTTPException) as error:
                problem = Failed(_reason(error))
                self._drop()
            self._sleep(0)  # a connection that stop() closed is no failure of the server
            tries = 1 if problem.gained else tries + 1
            if not problem.again or tries >= self.patience.attempts:
                raise problem
            self._pause(host, problem, tries)

    def _pause(self, host: str, problem: Failed, tries: int) -> None:
        delay = min(self.patience.backoff * 2 ** (tries - 1), self.patience.longest) * random.uniform(0.5, 1.5)
        if problem.wait is not None:
            if problem.wait > self.patience.longest_asked:
                raise UserError(f"{host} asks for a pause of {problem.wait:.0f} s: run the same command after it")
            delay = max(delay, problem.wait)
            self._resume_at = max(self._resume_at, time.monotonic() + delay)
        if delay >= 1 and time.monotonic() - self._told_at > 10:
            self._told_at = time.monotonic()
            self.tell(f"{host}: {problem}; trying again in {delay:.0f} s")
        self._sleep(delay)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Stopped

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        """Send a GET, follow redirects within the host, and return the response, its body unread."""
        for _ in range(5):
            here = urlsplit(url)
            response = self._send(here, {"Range": f"bytes={start}-"} if start else {})
            if response.status not in _REDIRECTS:
                return response
            self._drain(response)
            try:
                url = urljoin(url, response.getheader("Location", ""))
                there = split_url(url)
            except ValueError as error:
                raise Failed(f"redirects to what is no address: {error}", again=False) from error
            upgraded = (here.scheme, there.scheme, here.hostname) == ("http", "https", there.hostname)
            if (here.scheme, here.netloc) != (there.scheme, there.netloc) and not upgraded:
                raise Failed(f"redirects to another host ({there.netloc}), which is not followed", again=False)
        raise Failed("redirects in circles", again=False)

    def _send(self, url: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        place = url.scheme, url.netloc
        connection, kept_place = getattr(self._mine, "connection", (None, None))
        kept = connection is not None and kept_place == place
        if not kept:
            self._drop()
            connection = _connect(url, self.patience.timeout)
            self._connections.add(connection)
            self._mine.connection = connection, place
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        if _proxy(url) and url.scheme == "http":
            target = f"http://{url.netloc}{target}"
            headers = {**headers, **_proxy_credentials(url)}
        try:
            connection.request("GET", target, headers={"User-Agent": self.user_agent, **headers})
            return connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            # A server may close a connection that was kept open, and say so only by this.
            if not kept:
                raise
            self._drop()
            self._sleep(0)  # or stop() closed it
            return self._send(url, headers)

    def _require(self, response: http.client.HTTPResponse, statuses: tuple[int, ...]) -> None:
        status = response.status
        if status in statuses:
            return
        self._drain(response)
        answer = f"answered {status} {response.reason}".strip()
        if status in (404, 410):
            raise Absent(answer, again=False)
        wait = _retry_after(response.getheader("Retry-After")) if status in (429, 503) else None
        raise Failed(answer, again=status in (408, 429) or status >= 500, wait=wait)

    def _read(self, response: http.client.HTTPResponse, limit: int, sized: bool) -> bytes:
        length = response.length
        if sized and length is None and not response.chunked:
            self._drop()
            raise Failed("does not say how long the file is, so a cut could not be told from its end")
        body = bytearray()
        for chunk in self._chunks(response):
            body += chunk
            if len(body) > limit:
                self._drop()
                raise Failed(f"sends more than {limit:,} bytes", again=False)
        if length is not None and len(body) != length:
            raise Failed(f"cut off after {len(body):,} of {length:,} bytes")
        return bytes(body)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield the body as it comes; raise :class:`_Cut` where the connection breaks or has all but stopped."""
        started, received = time.monotonic(), 0
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                raise _Cut(_reason(error)) from error
            if not chunk:
                response.close()  # gives the connection back, which read1 does not
                return
            yield chunk
            received += len(chunk)
            elapsed = time.monotonic() - started
            if elapsed > self.patience.timeout and received < 1000 * elapsed:
                self._drop()
                raise _Cut(f"too slow ({received:,} bytes in {elapsed:.0f} s)")

    def _drain(self, response: http.client.HTTPResponse) -> None:
        """Read the rest of a short body, so that its connection can be used again; else close the connection."""
        response.read(_CHUNK)
        if not response.isclosed():
            self._drop()

    def _drop(self) -> None:
        connection, _ = getattr(self._mine, "connection", (None, None))
        if connection is not None:
            connection.close()
            self._connections.discard(connection)
            self._mine.connection = None, None


def split_url(url: str) -> SplitResult:
    """The parts of ``url``. Raises ValueError for what is no complete http or https address in ASCII."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch("[!-~]+", url):
        raise ValueError(f"{url!r} is no http or https address")
    _ = parts.port  # raises for a port that is none
    return parts


class _Cut(Exception):
    """The connection broke while a body was coming."""


def _connect(url: SplitResult, timeout: float) -> http.client.HTTPConnection:
    """A connection for requests to ``url``, through the system's proxy where there is one."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    proxy = _proxy(url)
    if proxy is None:
        return kind(url.hostname, url.port, timeout=timeout)
    connection = kind(proxy.hostname, proxy.port, timeout=timeout)
    if url.scheme == "https":
        connection.set_tunnel(url.hostname, url.port, headers=_proxy_credentials(url))
    return connection


def _proxy(url: SplitResult) -> SplitResult | None:
    address = getproxies().get(url.scheme)
    if not address or proxy_bypass(url.netloc):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def _proxy_credentials(url: SplitResult) -> dict[str, str]:
    proxy = _proxy(url)
    if not proxy or not proxy.username:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def _retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for; it holds seconds or a date."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "cut the connection"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
