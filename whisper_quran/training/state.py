"""``state.pt``: all that a run needs to go on as if it had never stopped.

Two generations are kept, ``state.pt`` and ``state-previous.pt``. A new one is written beside them, flushed, and
renamed, so that whatever happens, SIGKILL or a full disk, a good one stays. One that is damaged all the same (each
tensor has a checksum in the file) is passed over for the one before it.

Saving costs the training a copy of the tensors to memory; a thread writes that copy while training goes on.
"""

import os
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.torch_zip import write_torch_file
from ..runtime.errors import UserError
from ..runtime.files import atomic_write

State = dict[str, Any]
_KEYS = frozenset("step epoch best_wer bad_steps precision dims data model optimizer scaler".split())
_NEWEST, _PREVIOUS = "state.pt", "state-previous.pt"


class StateWriter:
    """Writes the states of one run, one at a time, in the background."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds = 0.0  # what the last state took, from its copying until it was on disk
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: State) -> None:
        """Copy ``state`` and begin to write the copy; waits for a write that is still under way.

        Raises:
            UserError: the write before this one failed: the disk is full, or the folder cannot be written any more.
        """
        self.finish()
        start = time.monotonic()
        copy = to_memory(state)
        self._thread = threading.Thread(target=self._write, args=(copy, start))
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            UserError: see :meth:`save`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: State, start: float) -> None:
        try:
            newest = self.folder / _NEWEST
            with atomic_write(newest, "wb") as file:
                write_torch_file(state, file)
                file.flush()
                os.fsync(file.fileno())  # before the one on disk steps back
                if newest.exists():
                    newest.replace(self.folder / _PREVIOUS)
            self.seconds = time.monotonic() - start
        except BaseException as error:
            self._error = error


def to_memory(value: Any) -> Any:
    """A copy of nested dicts and lists with every tensor copied into main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_memory(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_memory(item) for item in value)
    return value


def has_state(folder: Path) -> bool:
    """Whether a run in ``folder`` has saved anything to go on from."""
    return any((folder / name).exists() for name in (_NEWEST, _PREVIOUS))


def find_state(folder: Path, say: Callable[[str], None]) -> Path:
    """The newest state in ``folder`` that is whole; says so where that is not the last one written.

    Raises:
        UserError: none is.
    """
    for name in (_NEWEST, _PREVIOUS):
        path = folder / name
        problem = _damage(path)
        if problem is None:
            return path
        say(f"warning    {path} cannot be used ({problem})" + ("; the one before it is" if name == _NEWEST else ""))
    raise UserError(f"no saved state in {folder} can be used: start again with another --out, from its best.pt or anew")


def _damage(path: Path) -> str | None:
    """What is wrong with a state file; None if its checksums are right and it reads as a state."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            return f"{broken} is damaged"
        missing = _KEYS - load_state(path).keys()
    except Exception as error:  # whatever a broken file makes of a reader
        return " ".join(str(error).split())[:200] or type(error).__name__
    return f"it lacks {', '.join(sorted(missing))}" if missing else None


def load_state(path: Path) -> State:
    """Read a state that :func:`find_state` found, mapped from disk: its tensors cost no memory until they are copied.

    Raises:
        UserError: it is not there, as on a machine that does not share the run's folder.
    """
    if not path.exists():
        raise UserError(f"{path} is not on this machine: all machines of a run must share its --out folder")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
