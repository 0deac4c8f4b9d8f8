"""HTTP with retries, by requests: a body that passes its check, or the reason why there is none."""

import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests

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


def open_session() -> requests.Session:
    """Return a session that follows redirects within a host only."""
    session = requests.Session()
    session.headers["User-Agent"] = "whisper-quran"
    session.max_redirects = 5
    session.hooks["response"].append(_refuse_other_hosts)
    return session


def _refuse_other_hosts(response: requests.Response, **options: Any) -> None:
    target = urlsplit(urljoin(response.url, response.headers.get("Location", ""))).netloc
    if response.is_redirect and target != urlsplit(response.url).netloc:
        raise FetchError(f"redirects to another host ({target}), which is not followed")


def fetch(session: requests.Session, url: str, parse: Callable[[requests.Response], T]) -> T:
    """Return ``parse(response)``; try again after a broken connection, 408, 429 (by its Retry-After), 5xx, a body that
    breaks off, and one for which ``parse`` raises a :class:`FetchError`.

    Raises:
        FetchError: every attempt failed; it has the reason of the last one.
    """
    failure, pause = FetchError("no attempt was made"), 0.0
    for attempt in range(ATTEMPTS):
        time.sleep(pause)
        pause = BACKOFF * 2**attempt
        try:
            with session.get(url, stream=True, timeout=TIMEOUT) as response:
                status = response.status_code
                if status == 200:
                    return parse(response)
        except FetchError as error:
            failure = error
        except (requests.RequestException, ValueError) as error:  # ValueError: what is redirected to is no address
            failure = FetchError(_reason(error))
        else:
            kind = Unavailable if status in (404, 410) else FetchError
            failure = kind(f"answered {status} {response.reason}".strip())
            if status < 500 and status not in (408, 429):
                break
            asked = response.headers.get("Retry-After", "")
            pause = min(float(asked), LONGEST_PAUSE) if asked.isdecimal() else pause
    raise failure


def _reason(error: Exception) -> str:
    """Return the innermost message of the errors of requests and urllib3, without the objects that they name."""
    while inner := [e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)]:
        error = inner[0]
    return " ".join(str(error).split()).rpartition(": ")[2]
