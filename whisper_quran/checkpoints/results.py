"""The metrics of a run: the rows of ``metrics.jsonl``, and the table made from them.

A row is one JSON object a line. ``{"event": "train", …}`` is an optimiser step, ``{"event": "valid", …}`` one reciter
after one epoch; the untouched model is epoch -1. ``{"event": "average", "epochs": […], …}`` is one reciter after the
run, with the mean of those epochs' weights.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..runtime.console import markdown_table, percent

Row = dict[str, Any]

_NUMBERS = {
    "train": ("step", "epoch", "loss", "lr", "grad_norm", "skipped", "clips_per_s", "data_wait"),
    "valid": ("step", "epoch", "loss", "wer", "cer", "words", "word_errors", "seconds"),
}
_NUMBERS["average"] = _NUMBERS["valid"]
_OTHERS = {"event", "reciter", "epochs"}  # all other values in a row are numbers


class Results:
    """The rows of a run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def valid(self) -> dict[int, dict[str, Row]]:
        """Return the validation rows by epoch, then by reciter."""
        epochs: dict[int, dict[str, Row]] = {}
        for row in self.rows:
            if row["event"] == "valid":
                epochs.setdefault(row["epoch"], {})[row["reciter"]] = row
        return epochs

    def average(self) -> dict[str, Row]:
        """Return the rows of the averaged weights by reciter; empty before the end of the run."""
        return {row["reciter"]: row for row in self.rows if row["event"] == "average"}


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Read the rows in ``path``; none if it does not exist.

    Also return the number of lines that cannot be read, without a last line that is incomplete.

    Raises:
        OSError: the file cannot be read.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = [row for row in map(_parse_row, lines) if row is not None]
    return rows, max(sum(bool(line.strip()) for line in lines[:-1]) - len(rows), 0)


def _parse_row(line: bytes) -> Row | None:
    """Parse a line of metrics.jsonl; return None if it is not a row that a run wrote."""
    try:
        row = json.loads(line)
        complete = row.keys() >= {*_NUMBERS[row["event"]]}
        numbers = all(_is_number(value) for name, value in row.items() if name not in _OTHERS)
        counts = ["step", "epoch"]
        is_row = True
        if row["event"] != "train":
            counts += ["words", "word_errors"]
            is_row = isinstance(row["reciter"], str)
        counted = all(isinstance(row[name], int) for name in counts)
        if row["event"] == "average":
            is_row = is_row and bool(row["epochs"]) and all(isinstance(epoch, int) for epoch in row["epochs"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return row if complete and numbers and counted and is_row else None


def _is_number(value: object) -> bool:
    """Return True for a finite number, or None, which a run writes for one that was not finite."""
    return value is None or (isinstance(value, int | float) and abs(value) < 1e100)


def corpus_wer(rows: Collection[Row]) -> float:
    """Return the WER over the words of all reciters, from one row of each; NaN if there are none."""
    words = sum(row["words"] for row in rows)
    return sum(row["word_errors"] for row in rows) / words if words else math.nan


def results_table(results: Results) -> str:
    """Make Experiment 2A's table in Markdown: the vanilla model, then a row an epoch; per reciter loss, WER and CER.

    If the texts are vocalised, it also has the diacritic error rate (DER).
    """
    named = {"vanilla" if epoch < 0 else str(epoch): rows for epoch, rows in results.valid().items()}
    if average := results.average():
        named[average_name(average)] = average
    reciters = list(dict.fromkeys(reciter for rows in named.values() for reciter in rows))
    rates = ["wer", "cer"]
    if any(row.get("der") is not None for rows in named.values() for row in rows.values()):
        rates.append("der")
    columns = ["loss", *map(str.upper, rates)]
    header = ["epoch", *(f"{reciter} {name}" for reciter in reciters for name in columns)]
    lines = []
    for name, rows in named.items():
        cells = [name]
        for reciter in reciters:
            row = rows.get(reciter, {})
            loss = row.get("loss")
            cells.append("–" if loss is None else f"{loss:.4f}")
            cells += [percent(row.get(rate)) for rate in rates]
        lines.append(cells)
    return markdown_table(header, lines)


def average_name(rows: Mapping[str, Row]) -> str:
    """Return the name of averaged weights in tables: ``"average of 2, 3, 5"``."""
    return "average of " + ", ".join(str(epoch) for epoch in next(iter(rows.values()))["epochs"])


def best_epochs(results: Results) -> list[int]:
    """Return the epochs by their WER over all words, the lowest first; none without validation."""
    wer = {epoch: corpus_wer(rows.values()) for epoch, rows in results.valid().items() if epoch >= 0}
    return sorted(wer, key=wer.__getitem__)


def best_epoch(results: Results) -> int | None:
    """Return the epoch with the lowest WER over all words, which best.pt is from; None without validation."""
    return next(iter(best_epochs(results)), None)
