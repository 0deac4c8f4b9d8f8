"""The folder of a run, and ``state.pt``: everything that a run needs to resume exactly where it stopped.

Two generations of the state are kept, ``state.pt`` and ``state-previous.pt``. A new one is written to a temporary file,
flushed and renamed, so that a valid one remains after a SIGKILL or on a full disk. If the newest is damaged all the
same (each tensor has a checksum in the file), the previous one is used.

Saving delays the training by a copy of the tensors to memory; a thread writes that copy while training continues.
"""

import csv
import json
import os
import platform
import re
import shutil
import time
import zipfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor

from ..checkpoints.torch_file import write_torch_file
from ..config import TrainingConfig
from ..data.corpus import Skipped
from ..runtime.command_line import to_json
from ..runtime.console import Log
from ..runtime.device import DTYPES
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, check_folder, sync
from ..runtime.version import __version__
from .inputs import STATES, has_state

State = dict[str, Any]
_KEYS = {"step", "epoch", "bad_steps", "precision", "config", "clips_per_step", "dims", "data", "model"}
_KEYS |= {"optimizer", "scaler"}
# Temporary files of atomic_write, left behind if a run is killed.
_LEFTOVER = re.compile(
    r"\.(state\.pt|best\.pt|epoch-\d{3,}\.pt|config\.json|metrics\.jsonl|results\.md|loss\.png|skipped\.csv)"
    r"\.[0-9a-f]{8}\.tmp"
)


class StateWriter:
    """Writes the states of one run, one at a time, in the background."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds = 0.0  # duration of the last save, from the copy to memory until it was on disk
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, state: State) -> None:
        """Copy ``state`` and start writing the copy; wait first for a write that is still in progress.

        Raises:
            UserError: the previous write failed: the disk is full, or the folder can no longer be written.
        """
        self.finish()
        start = time.monotonic()
        self._pending = self._thread.submit(self._write, to_memory(state), start)

    def finish(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            UserError: see :meth:`save`.
        """
        if self._pending is not None:
            wait([self._pending])  # a signal may interrupt this: then finish() can be called again
            written, self._pending = self._pending, None
            written.result()

    def _write(self, state: State, start: float) -> None:
        newest, previous = (self.folder / name for name in STATES)
        with atomic_write(newest, "wb") as file:
            write_torch_file(state, file)
            file.flush()
            os.fsync(file.fileno())  # before the one on disk becomes the previous one
            sync(self.folder / "metrics.jsonl")  # the rows that this state relies on,
            sync(self.folder)  # and the names of its checkpoints
            if newest.exists():
                newest.replace(previous)
        self.seconds = time.monotonic() - start


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
    """Return the newest valid state in ``folder``; log a warning if that is not the last one written.

    The damaged one is renamed, so that the next save does not replace the valid one by it.

    Raises:
        UserError: none is valid.
    """
    newest, previous = (folder / name for name in STATES)
    problem = _damage(newest)
    if problem is None:
        return newest
    log(f"warning    {newest} cannot be used ({problem}); the one before it is")
    problem = _damage(previous)
    if problem is not None:
        log(f"warning    {previous} cannot be used ({problem})")
        raise UserError(
            f"no saved state in {folder} can be used: start again with another --out, from its best.pt or anew"
        )
    with suppress(OSError):
        newest.replace(folder / f"damaged-{newest.name}")
    return previous


def _damage(path: Path) -> str | None:
    """Return what is wrong with a state file; None if its checksums match and it holds a whole state."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            return f"{broken} is damaged"
        state = load_state(path)
        missing = _KEYS - state.keys()
        if not missing and not (isinstance(state["config"], dict) and state["precision"] in DTYPES):
            return "it was edited"
    except Exception as error:  # a damaged file can raise almost anything
        return " ".join(str(error).split())[:200] or type(error).__name__
    return f"it lacks {', '.join(sorted(missing))}" if missing else None


def load_state(path: Path) -> State:
    """Read a state that :func:`find_state` found, memory-mapped: its tensors take no memory until they are copied.

    Raises:
        UserError: it is missing, as on a machine that does not share the run's folder.
    """
    if not path.exists():
        raise UserError(f"{path} is not on this machine: all machines of a run must share its --out folder")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def enter_folder(out: Path, resume: bool, restarts: int) -> bool:
    """Prepare the locked folder of a run; return True if there is a saved state to resume from.

    A run that torchrun has restarted (``restarts`` > 0) resumes what it began itself even without --resume.
    Temporary files of a killed run are removed.

    Raises:
        UserError: see :func:`can_resume`.
    """
    torchrun = f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.getppid()}"
    mark = out / ".lock"
    resume = resume or (restarts > 0 and mark.read_text(errors="replace") == torchrun)
    mark.write_text("")  # if this attempt is refused, so is torchrun's next one
    resuming = can_resume(out, resume)
    mark.write_text(torchrun)
    for path in out.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink()
    return resuming


def can_resume(out: Path, resume: bool) -> bool:
    """Return True if there is a saved state in ``out`` to resume from.

    Raises:
        UserError: ``out`` holds a run and ``resume`` is False, or it holds checkpoints without a state.
    """
    checkpoints = [path for path in (out / "best.pt", *sorted(out.glob("epoch-*.pt"))) if path.exists()]
    if not resume and (checkpoints or has_state(out)):
        raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
    if checkpoints and not has_state(out):
        raise UserError(
            f"{out} holds checkpoints, but no state.pt to continue from: start from a checkpoint, with "
            f"--model {checkpoints[0]} and another --out"
        )
    return has_state(out)


def check_options(config: TrainingConfig, state: State, world_size: int) -> None:
    """Raise a :class:`UserError` if a fixed option or the clips per step differ from those of the run in ``state``."""
    saved, given = state["config"], to_json(config)
    changed = [
        f"--{field.name.replace('_', '-')} was {saved.get(field.name)}, is {given[field.name]}"
        for field in fields(config)
        if field.metadata.get("fixed") and saved.get(field.name) != given[field.name]
    ]
    clips = clips_per_step(config, world_size)
    if state["clips_per_step"] != clips:
        changed.append(f"clips a step were {state['clips_per_step']}, are {clips}")
    if changed:
        raise UserError(
            f"{config.out} cannot be resumed as another run ({'; '.join(changed)}): use what it had, or leave it out"
        )


def clips_per_step(config: TrainingConfig, world_size: int) -> int:
    """Return the clips per optimiser step; how they are split into micro-batches and processes changes no result."""
    return config.batch_size * config.accumulate * world_size


def write_config(config: TrainingConfig, world_size: int, found: dict[str, Any]) -> None:
    """Write ``config.json``: the options, ``found`` (what ``auto`` resolved to, the data), and the versions."""
    content = {
        "config": to_json(config),
        "global_batch": clips_per_step(config, world_size),
        **found,
        "versions": {
            "whisper_quran": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "whisper": whisper.__version__,
        },
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
    """Return the bytes a run needs at most: three states (two kept, one being written) and its checkpoints.

    Files that the run has written already are subtracted from what must be free.

    Raises:
        UserError: there is less free.
    """
    needed = 3 * state_bytes + checkpoints * checkpoint_bytes
    written = sum(path.stat().st_size for path in folder.glob("*.pt"))
    free = shutil.disk_usage(check_folder(folder)).free
    if needed - written > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and this run needs {(needed - written) / 1e9:.1f} GB: "
            "free some, choose another --out, or --keep best"
        )
    return needed
