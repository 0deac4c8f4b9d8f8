"""The folder of a run: who may write there, and the state that a run continues from."""

import csv
import json
import platform
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import whisper

from .config import TrainingConfig, to_json
from .corpus import Skipped
from .errors import UserError
from .files import atomic_write, make_folder

State = dict[str, Any]


def claim(config: TrainingConfig) -> State | None:
    """Make ``config.out`` this run's folder; return the saved state to continue from, None to start afresh.

    Raises:
        UserError: a run is there already and --resume was not asked for, or --resume would continue it with options
            that change what the run means.
    """
    out = make_folder(config.out)
    state = out / "state.pt"
    if not config.resume:
        if (out / "config.json").exists() or state.exists():
            raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
        return None
    if not state.exists():
        return None
    saved = json.loads((out / "config.json").read_text(encoding="utf-8"))["config"]
    now = to_json(config)
    changed = [
        f"--{field.name.replace('_', '-')} was {saved.get(field.name)}, now {now[field.name]}"
        for field in fields(config)
        if field.metadata["fixed"] and saved.get(field.name) != now[field.name]
    ]
    if changed:
        raise UserError(f"{out} cannot be resumed with other options ({'; '.join(changed)}): use those it had")
    return torch.load(state, map_location="cpu", weights_only=True)


def save_state(folder: Path, state: State) -> None:
    """Write ``state.pt`` whole, or leave the one before it."""
    with atomic_write(folder / "state.pt", "wb") as file:
        torch.save(state, file)


def write_config(config: TrainingConfig, chosen: dict[str, str]) -> None:
    """Write ``config.json``: the options, what ``auto`` stood for, and the versions that ran."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "whisper": whisper.__version__}
    with atomic_write(config.out / "config.json") as file:
        json.dump({"config": to_json(config), "chosen": chosen, "versions": versions}, file, indent=2)


def write_skipped(folder: Path, skipped: Iterable[Skipped]) -> None:
    """Write ``skipped.csv``: each file that is left out, and why."""
    with atomic_write(folder / "skipped.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows((item.file, item.reason) for item in skipped)
