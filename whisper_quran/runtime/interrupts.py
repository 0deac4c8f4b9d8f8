"""Ctrl-C, SIGTERM and SIGHUP: finish and save the current step, then exit with 130, 143 or 129."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .errors import Interrupted


class Interrupts:
    """Catches these signals inside a ``with`` block, and restores the handlers that were there before.

    By default a signal raises :class:`.errors.Interrupted` at once. Inside :meth:`deferred` the first one is only
    recorded in ``requested``, for the loop to act on, and raises at the end of the block at the latest; a second Ctrl-C
    raises at once. Inside :meth:`shielded` none raises.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferring = False
        self._shielded = False
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
        at_once = not self._deferring or (self.requested is not None and number == signal.SIGINT)
        if self.requested is None:
            self.requested = number
        if at_once and not self._shielded:
            raise Interrupted(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first signal: it is recorded, for the loop inside the block to act on."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.raise_requested()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Block signals; one that arrives raises at the end of the block, unless that is inside :meth:`deferred`."""
        outside, self._shielded = self._shielded, True
        try:
            yield
        finally:
            self._shielded = outside
        if not self._deferring:
            self.raise_requested()

    def raise_requested(self) -> None:
        """Raise :class:`.errors.Interrupted` if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)
