"""The metrics of a run: the rows of ``metrics.jsonl``, and the table made from them.

A row is one JSON object a line. ``{"event": "train", …}`` is an optimiser step, ``{"event": "valid", …}`` one reciter
after one epoch; the untouched model is epoch -1.
"""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..runtime.console import markdown_table, percent

Row = dict[str, Any]

_NUMBERS = {
    "train": ("step", "epoch", "loss", "lr", "grad_norm", "skipped", "clips_per_s", "data_wait"),
    "valid": ("step", "epoch", "loss", "wer", "cer", "words", "word_errors", "seconds"),
}


def valid_rows(rows: Iterable[Row]) -> dict[int, dict[str, Row]]:
    """Return the validation rows by epoch, then by reciter."""
    epochs: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row["event"] == "valid":
            epochs.setdefault(row["epoch"], {})[row["reciter"]] = row
    return epochs


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
        numbers = all(_is_number(value) for name, value in row.items() if name not in ("event", "reciter"))
        counts = ["step", "epoch"]
        is_row = True
        if row["event"] != "train":
            counts += ["words", "word_errors"]
            is_row = isinstance(row["reciter"], str)
        counted = all(isinstance(row[name], int) for name in counts)
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


def results_table(rows: Iterable[Row]) -> str:
    """Make Experiment 2A's table in Markdown: the vanilla model, then a row an epoch; per reciter loss, WER and CER.

    If the texts are vocalised, it also has the diacritic error rate (DER).
    """
    epochs = valid_rows(rows)
    reciters = list(dict.fromkeys(reciter for measured in epochs.values() for reciter in measured))
    rates = ["wer", "cer"]
    if any(row.get("der") is not None for measured in epochs.values() for row in measured.values()):
        rates.append("der")
    columns = ["loss", *map(str.upper, rates)]
    header = ["epoch", *(f"{reciter} {name}" for reciter in reciters for name in columns)]
    lines = []
    for epoch, measured in epochs.items():
        cells = ["vanilla" if epoch < 0 else str(epoch)]
        for reciter in reciters:
            row = measured.get(reciter, {})
            loss = row.get("loss")
            cells.append("–" if loss is None else f"{loss:.4f}")
            cells += [percent(row.get(rate)) for rate in rates]
        lines.append(cells)
    return markdown_table(header, lines)


def best_epoch(rows: Iterable[Row]) -> int | None:
    """Return the first epoch with the lowest WER over all words, which best.pt is from; None without validation."""
    wer = {epoch: corpus_wer(measured.values()) for epoch, measured in valid_rows(rows).items() if epoch >= 0}
    return min(wer, key=wer.__getitem__, default=None)
