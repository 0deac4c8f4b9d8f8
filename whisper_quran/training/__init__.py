"""Training. Here: its command line and the checks of its options, without torch, which takes seconds to import."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checkpoints.names import check_model_source
from ..config import DEMO, TrainingConfig
from ..data.ayat import Ayah
from ..data.corpus import select_ayat
from ..data.tables import Skipped
from ..runtime.command_line import parse
from ..runtime.console import Log, no_log
from ..runtime.errors import UserError

STATES = ("state.pt", "state-previous.pt")
_NOT_RESUMED = {"out", "resume", "max_time"}


def parse_command_line(doc: str, argv: Sequence[str] | None = None) -> TrainingConfig:
    """Parse ``argv`` (``sys.argv`` by default); --resume takes options that are not given from ``config.json`` in OUT.

    Raises:
        UserError: see :func:`..runtime.command_line.parse`.
    """
    config = parse(TrainingConfig, doc, argv, presets={"demo": DEMO})
    if config.resume:
        config = parse(TrainingConfig, doc, argv, presets={"demo": DEMO, "resume": saved_options(config.out)})
    return config


def saved_options(out: Path) -> dict[str, Any]:
    """Return the options in ``config.json``; none if it is missing or damaged: then the user must give them again."""
    try:
        options = json.loads((out / "config.json").read_bytes())["config"]
        kept = {field.name for field in fields(TrainingConfig)} - _NOT_RESUMED
        options = {name: value for name, value in options.items() if name in kept}
        TrainingConfig(**options)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError):
        return {}
    return options


def check_inputs(config: TrainingConfig, log: Log = no_log) -> tuple[list[Ayah], list[Ayah], list[Skipped]]:
    """Check all that can be checked without opening audio; return what :func:`..data.corpus.select_ayat` does.

    Raises:
        UserError: there is no such model, reciter, path or surah.
    """
    if not (config.resume and has_state(config.out)):
        check_model_source(config.model)
    return select_ayat(config, log)


def has_state(out: Path) -> bool:
    return any((out / name).exists() for name in STATES)
