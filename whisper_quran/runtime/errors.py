"""Errors that are not bugs, and the function that turns them into exit codes."""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any, NoReturn


class UserError(Exception):
    """Something the user must change.

    The message is one line that says what is wrong, where, and how to fix it. ``already_reported`` is True if another
    process of the run prints it.
    """

    already_reported = False


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP, by signal number. Like KeyboardInterrupt, ``except Exception`` does not catch it."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by signal {number}")
        self.signal = number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean A or B? "``, the names of ``known`` most similar to ``name``, or ``""`` if none is.

    If no whole name is similar, a part may be: ``sudais`` finds ``Abdurrahmaan_As-Sudais_64kbps``.
    """

    def similarity(word: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), word.lower()).ratio()

    known = list(known)
    whole = {each: similarity(each) for each in known}
    parts = {each: max(map(similarity, re.split("[_-]", each))) for each in known}
    for similarities in (whole, parts):
        best = max(similarities.values(), default=0.0)
        if best > 0.75:
            near = [each for each in known if similarities[each] > best - 0.05]
            return f"did you mean {' or '.join(near[:3])}? "
    return ""


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command line and exit.

    The exit code is 0 on success; 2 after a :class:`UserError` or an OSError (a full disk, a removed folder), with one
    line on stderr; and 128 + the signal's number after Ctrl-C, SIGTERM or SIGHUP. Any other exception is a bug and
    keeps its traceback. Output that can no longer be written is discarded.
    """
    _open_standard_files()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_LenientStream(stream) for stream in streams)  # type: ignore[assignment]
    try:
        code = _exit_code(main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
    sys.exit(code)


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
    except UserError as error:
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would change the exit code
        return 130
    except Interrupted as error:
        signal.signal(error.signal, signal.SIG_IGN)
        return 128 + error.signal
    return 0


class _LenientStream:
    """A standard stream that tolerates a closed pipe, a closed terminal and an encoding that lacks characters."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the file object is closed
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        """Redirect the stream to /dev/null, so that Python's own flush at exit does not fail either."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_standard_files() -> None:
    """Open file descriptors 0, 1 and 2 if closed, or a file of the run could get the number and the printed output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
