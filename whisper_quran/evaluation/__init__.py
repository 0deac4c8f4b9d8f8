"""Evaluation of checkpoints. Here: its command line and the checks of its options, without torch, which takes seconds
to import."""

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..checkpoints.names import check_model_source
from ..config import EvaluationConfig, TrainingConfig
from ..data.ayat import read_text
from ..data.corpus import EXPERIMENT_2A_VALID, Corpus, default_text, open_corpus, select_ayat
from ..data.text import letters, quran_text
from ..runtime.command_line import parse
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError
from ..runtime.files import check_outputs

# The files that are written, with what is in each of ours and in no other.
OUTPUTS = {
    "predictions.csv": b"hypothesis",
    "results.json": b'"rows"',
    "results.md": b"| model |",
    "report.html": b'content="whisper_quran"',
}


def parse_command_line(doc: str, argv: Sequence[str]) -> EvaluationConfig:
    """Read the command line and check its values.

    Raises:
        UserError: an option, a model, a reciter or the data must be changed.
    """
    try:
        config = parse(EvaluationConfig, doc, argv)
    except UserError as error:
        if "required: MODEL" not in str(error):
            raise
        # An option with several values takes a model after it for one of them.
        raise UserError("no MODEL given: models come first, as in evaluate.py small --reciters NAME") from None
    check_inputs(config)
    return config


def check_inputs(config: EvaluationConfig, log: Log = no_log) -> tuple[Corpus, list[str]]:
    """Check every path, and return the corpus and the reciters to evaluate on; no audio is opened, nothing written.

    Raises:
        UserError: a model, a reciter, the data or an output must be changed.
    """
    for source in config.models:
        check_model_source(source)
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs, log, config.columns, config.spelling)
    if config.constrain:
        text_of(config)
    chosen = config.reciters
    if chosen is None:
        chosen = EXPERIMENT_2A_VALID if config.manifest is None else tuple(corpus.reciters)
    if not chosen:
        raise UserError(f"no reciter to evaluate on: name some of {', '.join(corpus.reciters)} with --reciters")
    reciters = list(dict.fromkeys(map(printable, chosen)))
    corpus.select(reciters)
    inputs = [*map(Path, config.models), corpus.source, config.text or default_text(config.data)]
    for name, mark in OUTPUTS.items():
        check_outputs([config.out / name], inputs, mark)
    return corpus, reciters


def heard_by(run: Path) -> tuple[set[str], set[str]]:
    """Return the reciters, and the letters of the texts, that the training run in the folder ``run`` was trained on.

    Raises:
        UserError: there is no such run, or its data is no longer where it was.
    """
    try:
        options = json.loads((run / "config.json").read_bytes())["config"]
        with open(run / "skipped.csv", encoding="utf-8", newline="") as file:
            skipped = {file for file, _ in csv.reader(file)}
        known = {field.name for field in fields(TrainingConfig)}  # older runs have options that are gone
        config = TrainingConfig(**{name: value for name, value in options.items() if name in known})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"--trained {run} is no folder that train.py wrote ({error})") from None
    ayat = [ayah for ayah in select_ayat(config)[0] if printable(str(ayah.audio)) not in skipped]
    return {ayah.reciter for ayah in ayat}, {letters(ayah.text) for ayah in ayat}


def text_of(config: EvaluationConfig) -> dict[tuple[int, int], str]:
    """Return the text that recordings are searched for in, by (surah, ayah): the package's own unless one is given."""
    return read_text(config.text)[0] if config.text else quran_text()
