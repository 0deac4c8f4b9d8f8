"""HTTP with retries, by requests: a body that passes its check, or the reason why there is none."""

import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter, Retry

T = TypeVar("T")
CONNECTIONS = 6
ATTEMPTS = 5
BACKOFF = 1.0  # seconds before the second attempt, doubled for each later one
TIMEOUT = 30.0  # seconds without a byte
LONGEST_PAUSE = 60.0  # seconds, if a server asks for more
CHECK_CONNECTION = "check the connection and run the same command again"


class FetchError(Exception):
    """A file could not be fetched; the message says why."""


class Unavailable(FetchError):
    """The server does not have the file, or not the one that its checksum list has: trying again would not help."""


class _Retry(Retry):
    def get_retry_after(self, response: Any) -> float:
        return min(super().get_retry_after(response) or 0.0, LONGEST_PAUSE)


def open_session() -> requests.Session:
    """Return a session that repeats requests after broken connections, 408, 429 (by its Retry-After) and 5xx."""
    session = requests.Session()
    session.headers["User-Agent"] = "whisper-quran"
    session.max_redirects = 5
    session.hooks["response"].append(_refuse_other_hosts)
    retries = _Retry(
        ATTEMPTS - 1, backoff_factor=BACKOFF, status_forcelist=[408, 429, *range(500, 600)], raise_on_status=False
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=retries))
    return session


def _refuse_other_hosts(response: requests.Response, **options: Any) -> None:
    target = urlsplit(urljoin(response.url, response.headers.get("Location", ""))).netloc
    if response.is_redirect and target != urlsplit(response.url).netloc:
        raise FetchError(f"redirects to another host ({target}), which is not followed")


def fetch(session: requests.Session, url: str, parse: Callable[[requests.Response], T]) -> T:
    """Return ``parse(response)``; if the body breaks off, or ``parse`` raises a :class:`FetchError`, fetch it again.

    Raises:
        FetchError: every attempt failed; it has the reason of the last one.
    """
    failure = FetchError("no attempt was made")
    for attempt in range(ATTEMPTS):
        time.sleep(BACKOFF * (2**attempt - 1))
        try:
            response = session.get(url, stream=True, timeout=TIMEOUT)
        except (requests.RequestException, ValueError) as error:  # ValueError: what is redirected to is no address
            raise FetchError(_reason(error)) from error
        with response:
            if response.status_code != 200:
                kind = Unavailable if response.status_code in (404, 410) else FetchError
                raise kind(f"answered {response.status_code} {response.reason}".strip())
            try:
                return parse(response)
            except FetchError as error:
                failure = error
            except requests.RequestException as error:
                failure = FetchError(_reason(error))
    raise failure


def _reason(error: Exception) -> str:
    """Return the innermost message of the errors of requests and urllib3, without the objects that they name."""
    while inner := [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)]:
        error = inner[0]
    return " ".join(str(error).split()).rpartition(": ")[2]
