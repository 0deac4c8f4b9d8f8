"""The folder of a run: who may write there, what it will hold, and whether there is room for it."""

import csv
import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import whisper

from ..config import TrainingConfig
from ..data.corpus import Skipped
from ..runtime.command_line import to_json
from ..runtime.distributed import World
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder
from .state import has_state


def claim(config: TrainingConfig, world: World) -> bool:
    """Make ``config.out`` this run's folder; return whether there is a saved state to go on from.

    A run that torchrun started again is resumed without being told. Files that a killed run left half-written go.

    Raises:
        UserError: a run is there already and --resume was not asked for, or --resume would continue it with options
            that change what the run means.
    """
    out = make_folder(config.out)
    path = out / "config.json"
    if not config.resume and not world.restarts:
        if any(out.glob("*.pt")):
            raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
        return False
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    if not has_state(out):
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        then, global_batch = before["config"], before["global_batch"]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read ({error}), so the run in {out} cannot be resumed: restore it") from None
    now = to_json(config)
    changed = [
        f"--{field.name.replace('_', '-')} was {then.get(field.name)}, is {now[field.name]}"
        for field in fields(config)
        if field.metadata.get("fixed") and then.get(field.name) != now[field.name]
    ]
    if global_batch != global_batch_of(config, world.size):
        changed.append(f"clips a step were {global_batch}, are {global_batch_of(config, world.size)}")
    if changed:
        raise UserError(f"{out} cannot be resumed as another run ({'; '.join(changed)}): use what it had")
    return True


def global_batch_of(config: TrainingConfig, world_size: int) -> int:
    """Clips an optimiser step. How batch size, accumulation and processes come to it does not matter to the result."""
    return config.batch_size * config.accumulate * world_size


def write_config(config: TrainingConfig, world_size: int, chosen: dict[str, Any]) -> None:
    """Write ``config.json``: the options, what ``auto`` stood for, and the versions that ran."""
    content = {
        "config": to_json(config),
        "global_batch": global_batch_of(config, world_size),
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
