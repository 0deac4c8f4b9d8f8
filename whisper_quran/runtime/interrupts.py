"""Ctrl-C and SIGTERM: the step at hand is finished and saved, then the run ends with 130 or 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted


class Interrupts:
    """Catches both signals for the time of a ``with`` block, and restores what was there before.

    Where nothing can be lost a signal raises :class:`.errors.Interrupted` at once. Inside :meth:`deferred` the first
    one is only noted in ``requested``, for the loop to act on, and raises at the end of the block at the latest; a
    second Ctrl-C raises at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferring = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        # Only the main thread may, and in another one signals do not arrive.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM may well come twice, from torchrun and from whoever stopped it; only Ctrl-C again means at once.
        if not self._deferring or (self.requested is not None and number == signal.SIGINT):
            raise Interrupted(number)
        self.requested = number

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block in which the first signal waits to be asked for."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested is not None:
            raise Interrupted(self.requested)
