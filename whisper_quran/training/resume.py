"""The folder of a run, and ``state.pt``: everything that a run needs to resume exactly where it stopped.

Two generations of the state are kept, ``state.pt`` and ``state-previous.pt``. A new one is written to a temporary file,
flushed and renamed, so that a valid one remains after a SIGKILL or on a full disk. If the newest is damaged all the
same, the previous one is used.
"""

import csv
import json
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import nn

from ..checkpoints.torch_file import write_torch_file
from ..config import TrainingConfig
from ..data.tables import Skipped
from ..runtime import __version__
from ..runtime.command_line import to_json
from ..runtime.console import Log, format_size
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, check_outputs, lock_folder, sync
from . import STATES, has_state

State = dict[str, Any]
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of atomic_write, if a run is killed
# By its beginning a file of an earlier run is distinguished from one that is not ours.
_BEGINNINGS = {"config.json": b'"config"', "metrics.jsonl": b'"event"', "results.md": b"| epoch |"}
_BEGINNINGS |= {"skipped.csv": b"file,reason"}
_FIXED = {field.name for field in fields(TrainingConfig) if field.metadata.get("fixed")}
# The defaults of options that runs may have been begun with and that are gone.
_GONE = {"average": None, "prompt": 0.0, "patience": None, "pack": 0.0, "timestamps": 0.0}
_CHECKPOINTS_KEPT = {"last": 4, "best": 2}  # at most, with the one being written; "all" depends on the epochs


def enter_folder(config: TrainingConfig, lock: ExitStack, log: Log) -> Path | None:
    """Lock the folder of a run until ``lock`` is closed; return the state to resume from, None for a new run.

    Temporary files of a killed run are removed.

    Raises:
        UserError: the folder holds a run that is not to be resumed, or has no state that can be, or a file that is not
            a run's has the name of one that is to be written.
    """
    out = config.out
    lock.enter_context(lock_folder(out, "training"))
    checkpoints = [path for path in (out / "best.pt", *sorted(out.glob("epoch-*.pt"))) if path.exists()]
    if not config.resume and (checkpoints or has_state(out)):
        raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
    if checkpoints and not has_state(out):
        raise UserError(
            f"{out} holds checkpoints, but no state.pt to continue from: start from a checkpoint, with "
            f"--model {checkpoints[0]} and another --out"
        )
    state = find_state(out, log) if has_state(out) else None
    if state is None:
        inputs = [path for path in (config.manifest, config.text, config.model) if path is not None]
        for name, beginning in _BEGINNINGS.items():
            check_outputs([out / name], inputs, mark=beginning)
    for path in out.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink()
    return state


def find_state(folder: Path, log: Log) -> Path:
    """Return the newest valid state in ``folder``; log a warning if that is not the last one written.

    The damaged one is renamed, so that the next save does not replace the valid one by it.

    Raises:
        UserError: none is valid.
    """
    newest, previous = (folder / name for name in STATES)
    problem = _problem(newest)
    if problem is None:
        return newest
    log(f"warning    {newest} cannot be used ({problem}); the one before it is")
    if problem := _problem(previous):
        raise UserError(
            f"no saved state in {folder} can be used (nor {previous.name}: {problem}): start again with another --out, "
            "from its best.pt or anew"
        )
    with suppress(OSError):
        newest.replace(folder / f"damaged-{newest.name}")
    return previous


def _problem(path: Path) -> str | None:
    """Return what is wrong with a state file; None if its checksums match and it can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load does not compare the checksums
        read_state(path)["model"]
    except Exception as error:  # a damaged file can raise almost anything
        return " ".join(str(error).split())[:200] or type(error).__name__
    return f"{broken} is damaged" if broken else None


def read_state(path: Path) -> State:
    """Read a state, memory-mapped: its tensors take no memory until they are copied."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def load_state(path: Path, config: TrainingConfig, world_size: int) -> tuple[State, TrainingConfig]:
    """Read a state that :func:`enter_folder` found; return it, and ``config`` with the rate and warmup of its run.

    Raises:
        UserError: the file is not on this machine, or the state is of a run with other options.
    """
    if not path.exists():
        raise UserError(f"{path} is not on this machine: all machines of a run must share its --out folder")
    state = read_state(path)
    saved, defaults = state["config"], {field.name: field.default for field in fields(TrainingConfig)}
    chosen = {name: saved.get(name) for name in ("lr", "warmup_steps") if getattr(config, name) is None}
    config = replace(config, **chosen)
    changed = []
    for name, given in to_json(config).items():
        before = saved.get(name, defaults[name])  # an option that the run did not know has its default
        if name in _FIXED and before != given:
            changed.append(f"--{name.replace('_', '-')} was {before}, is {given}")
    clips = clips_per_step(config, world_size)
    if state["clips_per_step"] != clips:
        changed.append(f"clips a step were {state['clips_per_step']}, are {clips}")
    if changed:
        raise UserError(
            f"{config.out} cannot be resumed as another run ({'; '.join(changed)}): use what it had, or leave it out"
        )
    for name, default in _GONE.items():
        if saved.get(name, default) != default:
            raise UserError(
                f"{config.out} was begun with --{name.replace('_', '-')} {saved[name]}, which is gone: resume it with "
                "the version that began it, or start again with another --out"
            )
    return state, config


def save_state(folder: Path, state: State) -> None:
    """Write ``state`` as the newest one, and keep the one before it.

    Raises:
        UserError: the disk is full, or the folder can no longer be written.
    """
    newest, previous = (folder / name for name in STATES)
    with atomic_write(newest, "wb") as file:
        write_torch_file(state, file)
        file.flush()
        os.fsync(file.fileno())  # before the one on disk becomes the previous one
        sync(folder / "metrics.jsonl")  # the rows that this state relies on,
        sync(folder)  # and the names of its checkpoints
        if newest.exists():
            newest.replace(previous)


def clips_per_step(config: TrainingConfig, world_size: int) -> int:
    """Return the clips per optimiser step; how they are split into micro-batches and processes changes no result."""
    return config.batch_size * config.accumulate * world_size


def write_description(config: TrainingConfig, skipped: Iterable[Skipped], found: dict[str, Any]) -> None:
    """Write ``skipped.csv``, the files left out and why, and ``config.json``: the options, ``found`` and versions."""
    with atomic_write(config.out / "skipped.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows((item.file, item.reason) for item in skipped)
    versions = {
        "whisper_quran": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "whisper": whisper.__version__,
    }
    with atomic_write(config.out / "config.json") as file:
        json.dump({"config": to_json(config), **found, "versions": versions}, file, indent=2, ensure_ascii=False)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def space_needed(config: TrainingConfig, model: nn.Module, epochs: int) -> int:
    """Return the bytes that a run has yet to write at most: three states (one being written) and its checkpoints."""
    parameters, trained = count_parameters(model)
    checkpoints = _CHECKPOINTS_KEPT.get(config.keep, epochs + 2)
    # fp32 weights and two moments for each trained one; checkpoints are fp16.
    needed = 3 * (4 * parameters + 8 * trained) + checkpoints * 2 * parameters
    return max(0, needed - sum(path.stat().st_size for path in config.out.glob("*.pt")))


def check_space(config: TrainingConfig, model: nn.Module, epochs: int, log: Log) -> None:
    """Log the disk space that the run needs.

    Raises:
        UserError: there is less free.
    """
    needed, free = space_needed(config, model, epochs), shutil.disk_usage(config.out).free
    if needed > free:
        raise UserError(
            f"{config.out} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB: "
            "free some, choose another --out, or --keep best"
        )
    log(f"disk       at most {format_size(needed)} in {config.out}, where {format_size(free)} are free")
