"""HTTP client with retries: returns a complete body or raises, with few connections and no redirects to other hosts.

Temporary errors are retried with exponential backoff (a broken or silent connection, 408, 429, any 5xx, a body that
fails its check); permanent ones (404, 403, a redirect to another host) are not. A Retry-After applies to every thread.
:class:`_LimitedReader` limits the size and duration of every response, headers included.
"""

import http.client
import io
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions

from ..runtime.console import Log
from ..runtime.errors import UserError

T = TypeVar("T")
_MAX_BYTES = 64 << 20  # three times the longest ayah of the slowest reciter
_deadline: ContextVar[float] = ContextVar("deadline")  # of the current file of this thread


@dataclass(frozen=True)
class Limits:
    """The limits of retries and time; all times in seconds."""

    attempts: int = 5
    backoff: float = 1.0  # times 2, 4, 8 before the third and later attempts
    longest_pause: float = 300.0  # if a server asks for a longer one, stop with an error
    timeout: float = 30.0  # without a byte, or with fewer than 1,000 bytes a second
    total: float = 900.0  # for one file with its attempts and redirects, without the pauses


LIMITS = Limits()


class FetchError(Exception):
    """A failed request. ``retry``: another attempt may succeed; ``pause``: seconds that the server asks for."""

    def __init__(self, reason: str, retry: bool = True, pause: float = 0.0):
        super().__init__(reason)
        self.retry = retry
        self.pause = pause


class NotFound(FetchError):
    """The server has no such file."""


def cannot_fetch(url: str, error: FetchError) -> UserError:
    """Return the error for a file without which the download cannot continue."""
    return UserError(f"cannot fetch {url} ({error}): check the connection and run the same command again")


class Client:
    """HTTP client for up to ``connections`` threads. ``log`` gets a line when a request has to wait."""

    def __init__(self, limits: Limits, connections: int, log: Log):
        self.limits = limits
        self.log = log
        headers = {"User-Agent": "whisper-quran"}
        self._options: dict[str, Any] = {
            "timeout": limits.timeout,
            "maxsize": connections,
            "block": True,
            "headers": headers,
        }
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._resume_at = 0.0
        self._logged_at = float("-inf")

    def fetch(self, url: str, parse: Callable[[bytes], T], sized: bool = True) -> T:
        """Return ``parse(body)`` for the body at ``url``.

        ``parse`` raises :class:`FetchError` for an invalid body. ``sized=False`` accepts a body of no stated length:
        then only ``parse`` can detect that it was truncated.

        Raises:
            FetchError: every attempt failed; it has the reason of the last one.
            UserError: the server asks for too long a pause.
        """
        retries = urllib3.Retry(self.limits.attempts - 1, backoff_factor=self.limits.backoff)
        deadline = time.monotonic() + self.limits.total
        while True:
            time.sleep(max(0.0, self._resume_at - time.monotonic()))
            _deadline.set(deadline)
            started = time.monotonic()
            try:
                return parse(self._get(url, sized))
            except FetchError as error:
                failure = error
            except exceptions.HTTPError as error:
                # An invalid address (the proxy's, too) is a permanent error.
                failure = FetchError(_reason(error), retry=not isinstance(error, exceptions.LocationValueError))
            if not failure.retry or time.monotonic() > deadline:
                raise failure
            try:
                retries = retries.increment("GET", url)
            except exceptions.MaxRetryError:
                raise failure from None
            pause = max(failure.pause, retries.get_backoff_time())
            deadline += pause
            self._pause(urlsplit(url).netloc, failure, pause, time.monotonic() - started)

    def _pause(self, host: str, failure: FetchError, seconds: float, waited: float) -> None:
        if failure.pause > self.limits.longest_pause:
            raise UserError(f"{host} asks for a pause of {failure.pause:.0f} s: run the same command after it")
        now = time.monotonic()
        if failure.pause:
            self._resume_at = max(self._resume_at, now + seconds)
        if seconds + waited > 1 and now > self._logged_at + 10:
            self._logged_at = now
            self.log(f"{host}: {failure}; trying again" + (f" in {seconds:.0f} s" if seconds else ""))
        time.sleep(seconds)

    def _get(self, url: str, sized: bool) -> bytes:
        """Return the body at ``url``, following redirects within the host."""
        for _ in range(5):
            response = self._manager(urlsplit(url)).request(
                "GET", url, redirect=False, retries=False, preload_content=False
            )
            try:
                location = response.get_redirect_location()
                if not location:
                    _require_ok(response, sized)
                    return b"".join(response.stream(1 << 16, decode_content=False))
            except (ValueError, OverflowError) as error:  # raised by http.client for an invalid chunk
                raise FetchError(f"sends what is no HTTP ({error})") from error
            finally:
                response.close()  # the page of an error is not read, so its connection cannot be reused
                response.release_conn()
            url = _redirect(urlsplit(url), location)
        raise FetchError("redirects in circles", retry=False)

    def _manager(self, url: SplitResult) -> urllib3.PoolManager:
        """Return the pool manager for ``url``, with the system's proxy if there is one."""
        proxy = "" if proxy_bypass(url.netloc) else getproxies().get(url.scheme, "")
        if proxy not in self._managers:
            manager = urllib3.PoolManager(**self._options)
            if proxy:
                address = proxy if "://" in proxy else f"http://{proxy}"
                login = unquote(urllib3.util.parse_url(address).auth or "") or None
                proxy_headers = urllib3.make_headers(proxy_basic_auth=login and login.encode().decode("latin-1"))
                manager = urllib3.ProxyManager(address, proxy_headers=proxy_headers, **self._options)
            manager.pool_classes_by_scheme = _limited_pools(self.limits.timeout)
            self._managers[proxy] = manager
        return self._managers[proxy]


def split_url(url: str) -> SplitResult:
    """Split ``url`` into its parts. Raise ValueError unless it is a complete http or https address in ASCII."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch("[!-~]+", url):
        raise ValueError(f"{url!r} is no http or https address")
    _ = parts.port  # raises for an invalid port
    return parts


def _redirect(here: SplitResult, location: str) -> str:
    """Resolve ``location`` against ``here``. Raise :class:`FetchError` if it is on another host."""
    try:
        url = urljoin(here.geturl(), location)
        target = split_url(url)
    except ValueError as error:
        raise FetchError(f"redirects to what is no address: {error}", retry=False) from error
    upgraded = (here.scheme, target.scheme, here.hostname) == ("http", "https", target.hostname)
    if (here.scheme, here.netloc) != (target.scheme, target.netloc) and not upgraded:
        raise FetchError(f"redirects to another host ({target.netloc}), which is not followed", retry=False)
    return url


def _require_ok(response: urllib3.BaseHTTPResponse, sized: bool) -> None:
    status = response.status
    reason = f"answered {status} {http.client.responses.get(status, '')}".strip()
    if status in (404, 410):
        raise NotFound(reason, retry=False)
    if status != 200:
        pause = None
        with suppress(exceptions.InvalidHeader, ValueError, OverflowError):  # neither seconds nor a date
            pause = urllib3.Retry().get_retry_after(response) if status in (429, 503) else None
        raise FetchError(reason, retry=status in (408, 429) or status >= 500, pause=min(pause or 0.0, 1e6))
    if sized and response.length_remaining is None and not response.chunked:
        raise FetchError("does not say how long the file is, so a cut could not be told from its end")


def _reason(error: Exception) -> str:
    if isinstance(error, exceptions.ProxyError):
        return f"proxy: {_reason(error.original_error)}"
    if isinstance(error, exceptions.NameResolutionError):
        return "its name cannot be resolved"
    if strerror := getattr(error.__cause__, "strerror", None):
        return strerror
    if isinstance(error, exceptions.TimeoutError):
        return "does not answer"
    if isinstance(error, exceptions.ProtocolError):
        return "cut the connection"
    return " ".join(str(error).split())


class _LimitedReader(io.RawIOBase):
    """A reader of one response that limits size, speed and total time; a socket's timeout only limits silence."""

    def __init__(self, file: io.BufferedReader, timeout: float):
        self._file = file
        self._timeout = timeout
        self._started = time.monotonic()
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto1(buffer)
        self._received += count
        now = time.monotonic()
        seconds = now - self._started
        if now > _deadline.get():
            raise FetchError("takes too long", retry=False)
        if self._received > _MAX_BYTES:
            raise FetchError(f"sends more than {_MAX_BYTES:,} bytes", retry=False)
        if seconds > self._timeout and self._received < 1000 * seconds:
            raise FetchError(f"too slow ({self._received:,} bytes in {seconds:.0f} s)")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _limited_pools(timeout: float) -> dict[str, type]:
    """Return urllib3's pool classes, with connections that read through :class:`_LimitedReader`."""

    class Response(http.client.HTTPResponse):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.fp = io.BufferedReader(_LimitedReader(self.fp, timeout))

    def limited(pool: Any) -> type:
        connection = type("Connection", (pool.ConnectionCls,), {"response_class": Response})
        return type("Pool", (pool,), {"ConnectionCls": connection})

    return {"http": limited(urllib3.HTTPConnectionPool), "https": limited(urllib3.HTTPSConnectionPool)}
