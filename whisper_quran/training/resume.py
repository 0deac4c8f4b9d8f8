"""The folder of a run, and ``state.pt``: all that a run needs to go on as if it had never stopped.

Two generations of the state are kept, ``state.pt`` and ``state-previous.pt``. A new one is written beside them,
flushed, and renamed, so that a good one stays after a SIGKILL or on a full disk. One that is damaged all the same (each
tensor has a checksum in the file) is passed over for the one before it.

Saving costs the training a copy of the tensors to memory; a thread writes that copy while training goes on.
"""

import csv
import json
import os
import platform
import shutil
import threading
import time
import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor

from ..checkpoints.torch_zip import write_torch_file
from ..config import TrainingConfig
from ..data.corpus import Skipped
from ..runtime.command_line import to_json
from ..runtime.console import Log
from ..runtime.distributed import World
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder

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
        """Copy ``state`` and begin to write the copy; wait first for a write that is still under way.

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
    """Copy nested dicts and lists, with every tensor copied into main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_memory(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_memory(item) for item in value)
    return value


def find_state(folder: Path, log: Log) -> Path:
    """Return the newest state in ``folder`` that is whole; log it if that is not the last one written.

    Raises:
        UserError: none is.
    """
    for name in (_NEWEST, _PREVIOUS):
        path = folder / name
        problem = _damage(path)
        if problem is None:
            return path
        log(f"warning    {path} cannot be used ({problem})" + ("; the one before it is" if name == _NEWEST else ""))
    raise UserError(f"no saved state in {folder} can be used: start again with another --out, from its best.pt or anew")


def _damage(path: Path) -> str | None:
    """Return what is wrong with a state file; None if its checksums are right and it reads as a state."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            return f"{broken} is damaged"
        missing = _KEYS - load_state(path).keys()
    except Exception as error:  # a broken file makes readers fail in many ways
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


def acquire(config: TrainingConfig, world: World) -> bool:
    """Make ``config.out`` this run's folder; return True if there is a saved state to go on from.

    A run that torchrun started again resumes even without --resume. Files that a killed run left half-written go.

    Raises:
        UserError: a run is there already and --resume was not asked for, or --resume would continue it with options
            that change what the run means.
    """
    out = make_folder(config.out)
    if not config.resume and not world.restarts:
        if any(out.glob("*.pt")):
            raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
        return False
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    if not any((out / name).exists() for name in (_NEWEST, _PREVIOUS)):
        return False
    _check_options(config, clips_per_step(config, world.size))
    return True


def _check_options(config: TrainingConfig, clips: int) -> None:
    """Raise a :class:`UserError` unless ``config`` continues the run that ``config.json`` describes."""
    path = config.out / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        then, clips_then = before["config"], before["global_batch"]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), so the run in {config.out} cannot be resumed: restore it"
        ) from None
    now = to_json(config)
    changed = [
        f"--{field.name.replace('_', '-')} was {then.get(field.name)}, is {now[field.name]}"
        for field in fields(config)
        if field.metadata.get("fixed") and then.get(field.name) != now[field.name]
    ]
    if clips_then != clips:
        changed.append(f"clips a step were {clips_then}, are {clips}")
    if changed:
        raise UserError(f"{config.out} cannot be resumed as another run ({'; '.join(changed)}): use what it had")


def clips_per_step(config: TrainingConfig, world_size: int) -> int:
    """Return the clips of an optimiser step; how they are cut into micro-batches and processes changes no result."""
    return config.batch_size * config.accumulate * world_size


def write_config(config: TrainingConfig, world_size: int, chosen: dict[str, Any]) -> None:
    """Write ``config.json``: the options, what ``auto`` stood for, and the versions that ran."""
    content = {
        "config": to_json(config),
        "global_batch": clips_per_step(config, world_size),
        "chosen": chosen,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "whisper": whisper.__version__},
    }
    with atomic_write(config.out / "config.json") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write ``skipped.csv``: each file that is left out, and why."""
    with atomic_write(folder / "skipped.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows((item.file, item.reason) for item in skipped)


def check_space(folder: Path, state_bytes: int, checkpoint_bytes: int, checkpoints: int) -> int:
    """Return the bytes a run will need at most: three states (two kept, one being written) and its checkpoints.

    What the run has written already, it need not find room for again.

    Raises:
        UserError: there is less free.
    """
    needed = 3 * state_bytes + checkpoints * checkpoint_bytes
    written = sum(path.stat().st_size for path in folder.glob("*.pt"))
    free = shutil.disk_usage(folder).free
    if needed - written > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and this run needs {(needed - written) / 1e9:.1f} GB: "
            "free some, choose another --out, or --keep best"
        )
    return needed
