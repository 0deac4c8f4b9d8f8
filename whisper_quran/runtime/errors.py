"""Errors that are not bugs, interruptions, and the function that turns both into exit codes."""

import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import IO, Any, NoReturn


class UserError(Exception):
    """Something the user must change: the message is one line that says what is wrong, where, and how to fix it."""

    already_reported = False  # True if another process of the run prints it


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP, by signal number. Like KeyboardInterrupt, ``except Exception`` does not catch it."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by signal {number}")
        self.signal = number


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``"did you mean A or B? "``, names of ``known`` that are like ``name`` or contain it; ``""`` if none is.

    ``sudais`` finds ``Abdurrahmaan_As-Sudais_64kbps``.
    """
    near = difflib.get_close_matches(name, known, cutoff=0.81)
    near = near or [each for each in known if name.lower().strip("-") in each.lower()]
    return f"did you mean {' or '.join(near[:3])}? " if near else ""


class Interrupts:
    """Catches Ctrl-C, SIGTERM and SIGHUP inside a ``with`` block, and restores the handlers that were there before.

    By default a signal raises :class:`Interrupted` at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._delay = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        # Only the main thread may set handlers, and only it receives signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: the run is to survive its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM may come twice, from torchrun and from whoever stopped it; only a second Ctrl-C raises at once.
        repeated = self.requested is not None and number == signal.SIGINT
        self.requested = self.requested or number
        if not self._delay or (self._delay == "deferred" and repeated):
            raise Interrupted(number)

    def shielded(self) -> AbstractContextManager[None]:
        """Record signals, however many arrive; the first raises at the end of the outermost block."""
        return self.deferred("shielded")

    @contextmanager
    def deferred(self, delay: str = "deferred") -> Iterator[None]:
        """Record a signal in ``requested``, for the loop inside the block; a second Ctrl-C raises at once."""
        outside, self._delay = self._delay, delay
        try:
            yield
        finally:
            self._delay = outside
        if not outside and self.requested is not None:
            raise Interrupted(self.requested)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command line and exit: with 0; with 2 and one line after a :class:`UserError` or an OSError (a full disk);
    or with 128 + the number of the signal that interrupted it. Any other exception is a bug and keeps its traceback.
    """
    for number in range(3):  # a closed one would be opened as a file of the run, which printed output would end up in
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_LenientStream(stream) for stream in streams)  # type: ignore[assignment]
    code = 0
    try:
        main()
    except UserError as error:
        code = 2
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        code = 2
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        code = 128 + number
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would change the exit code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
    distributed = sys.modules.get("torch.distributed")
    if code and distributed and distributed.is_available() and distributed.is_initialized():
        os._exit(code)  # otherwise gloo may abort at exit, as the other processes leave
    sys.exit(code)


class _LenientStream:
    """A standard stream that tolerates a closed pipe, a closed terminal and an encoding that lacks characters."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable, *arguments: str) -> None:
        """After an error, redirect the stream to /dev/null, so that Python's own flush at exit does not fail either."""
        try:
            call(*arguments)
        except (OSError, ValueError):  # ValueError: the file object is closed
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
