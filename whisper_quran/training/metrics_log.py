"""The measurements of a run: ``metrics.jsonl``, and the table and picture made of it.

A row is one JSON object a line. ``{"event": "train", …}`` is an optimiser step, ``{"event": "valid", …}`` one reciter
after one epoch; the untouched model is epoch -1. ``{"event": "average", "epochs": […], …}`` is one reciter after the
run, by the mean of those epochs' weights.
"""

import json
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.console import markdown_table, percent
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, storage_error
from .plot import Row, draw

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_NUMBERS = {
    "train": ("step", "epoch", "loss", "lr", "grad_norm", "skipped", "clips_per_s", "data_wait"),
    "valid": ("step", "epoch", "loss", "wer", "cer", "words", "word_errors", "seconds"),
}
_NUMBERS["average"] = _NUMBERS["valid"]


class History:
    """The rows of a run, written to ``path`` as they come; a process that does not write only remembers them.

    With ``tensorboard`` their numbers also go to the folder ``tensorboard`` beside ``path``.
    """

    def __init__(self, path: Path, writes: bool = True, tensorboard: bool = False):
        self.path = path
        self.writes = writes
        self.tensorboard = tensorboard
        self.board: SummaryWriter | None = None
        self.first_step = 0  # TensorBoard drops what a run that was cut off wrote from here on
        self.rows: list[Row] = []

    def append(self, row: Row) -> None:
        """Add a row, in memory and in the file; numbers that are not finite become null, since JSON has none."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.rows.append(row)
        if not self.writes:
            return
        try:
            # A name that is not UTF-8 has surrogates, which become JSON's own escapes.
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if self.tensorboard:
                self._add_scalars(row)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def _add_scalars(self, row: Row) -> None:
        """``train/loss``, … and for each reciter ``valid_loss/<reciter>``, …, over the steps."""
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=self.first_step)
        if row["event"] == "train":
            tags = {name: f"train/{name}" for name in ("loss", "lr", "grad_norm", "clips_per_s", "data_wait")}
        else:
            tags = {name: f"{row['event']}_{name}/{row['reciter']}" for name in ("loss", "wer", "cer")}
        for name, tag in tags.items():
            if row[name] is not None:
                self.board.add_scalar(tag.encode(errors="backslashreplace").decode(), row[name], row["step"])

    def close(self) -> None:
        """Write what TensorBoard's writer still has in memory."""
        if self.board is not None:
            self.board.close()

    def restore(self, step: int, epoch: int) -> int:
        """Keep the rows that were there when ``step`` steps and ``epoch`` whole epochs were done.

        Return how many lines are lost because they cannot be read. A last line without an end does not count.
        """
        self.first_step = step + 1
        try:
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        except OSError as error:
            raise storage_error(error, self.path) from error
        rows = [row for row in map(_parse_row, lines) if row is not None]
        lost = sum(bool(line.strip()) for line in lines[:-1]) - len(rows)
        there = {
            "train": lambda row: row["step"] <= step,
            "valid": lambda row: row["epoch"] < epoch,
            "average": lambda row: row["epoch"] == epoch,
        }
        self.rows = [row for row in rows if there[row["event"]](row)]
        if self.writes:
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        return max(lost, 0)

    def clear(self) -> None:
        """Remove every row, on disk too."""
        self.rows = []
        self.path.unlink(missing_ok=True)

    def valid(self) -> dict[int, dict[str, Row]]:
        """Return the validation rows by epoch, then by reciter."""
        epochs: dict[int, dict[str, Row]] = {}
        for row in self.rows:
            if row["event"] == "valid":
                epochs.setdefault(row["epoch"], {})[row["reciter"]] = row
        return epochs

    def average(self) -> dict[str, Row]:
        """Return the rows of the averaged weights by reciter; none before the end of the run."""
        return {row["reciter"]: row for row in self.rows if row["event"] == "average"}


def _parse_row(line: bytes) -> Row | None:
    """Return the row in a line of metrics.jsonl; None if it is not one that :meth:`History.append` wrote."""
    try:
        row = json.loads(line)
        numbers = [row[name] for name in _NUMBERS[row["event"]]]
        is_row = row["event"] == "train" or isinstance(row["reciter"], str)
        counted = isinstance(row["step"], int) and isinstance(row["epoch"], int)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return row if is_row and counted and all(isinstance(x, int | float | None) for x in numbers) else None


def require_tensorboard() -> None:
    """Raise a :class:`..runtime.errors.UserError` if ``tensorboard`` is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--tensorboard: {error}; install it (pip install tensorboard, or this package with its extra "
            "[tensorboard]) or leave the option out"
        ) from None


def corpus_wer(rows: Collection[Row]) -> float:
    """Return the WER over the words of all reciters, from a row of each; NaN without any."""
    words = sum(row["words"] for row in rows)
    return sum(row["word_errors"] for row in rows) / words if words else math.nan


def results_table(history: History) -> str:
    """Make Experiment 2A's table in Markdown: the vanilla model, then a row an epoch; per reciter loss, WER and CER.

    If the texts are vocalised there is the diacritic error rate (DER) too.
    """
    named = {"vanilla" if epoch < 0 else str(epoch): rows for epoch, rows in history.valid().items()}
    if average := history.average():
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


def write_results(history: History, folder: Path) -> None:
    """Write ``results.md``, and ``loss.png`` if matplotlib is installed."""
    with atomic_write(folder / "results.md") as file:
        file.write(results_table(history))
    try:
        png = draw(history.rows, best_epoch(history))
    except ImportError:
        return
    except Exception as error:  # matplotlib's own troubles are not worth a run
        warnings.warn(f"{folder / 'loss.png'} could not be drawn: {error!r}", stacklevel=2)
        return
    with atomic_write(folder / "loss.png", "wb") as file:
        file.write(png)


def average_name(rows: Mapping[str, Row]) -> str:
    """Return what averaged weights are called in tables: ``"average of 2, 3, 5"``."""
    return "average of " + ", ".join(str(epoch) for epoch in next(iter(rows.values()))["epochs"])


def best_epochs(history: History) -> list[int]:
    """Return the epochs by their WER over all words, the lowest first; none without validation."""
    wer = {epoch: corpus_wer(rows.values()) for epoch, rows in history.valid().items() if epoch >= 0}
    return sorted(wer, key=wer.__getitem__)


def best_epoch(history: History) -> int | None:
    """Return the epoch with the lowest WER over all words, which best.pt is from; None without validation."""
    return next(iter(best_epochs(history)), None)
