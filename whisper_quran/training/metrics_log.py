"""The metrics of a run, logged to ``metrics.jsonl``, and the table and plot made from them.

A row is one JSON object a line. ``{"event": "train", …}`` is an optimiser step, ``{"event": "valid", …}`` one reciter
after one epoch; the untouched model is epoch -1.

In ``loss.png`` the background is white, and lines differ in style and marker as well as in colour, so it is readable on
a dark page and in greyscale. Epoch 3 ends at x = 3, and the untouched model is at -1. The user's own matplotlib
settings are ignored.
"""

import io
import json
import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.console import markdown_table, percent
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]

# What no row can do without.
_NAMES = {
    "train": {"step", "epoch", "loss", "lr", "grad_norm", "skipped", "clips_per_s", "data_wait"},
    "valid": {"step", "epoch", "reciter", "loss", "wer", "cer", "words", "word_errors", "seconds"},
}
COLORS = ("#0067a5", "#c04f00", "#00805c", "#9e4a84", "#7a6400")  # distinguishable by the colour-blind
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v")  # 20 combinations
SETTINGS = {
    "font.size": 12,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.fontsize": "small",
    "agg.path.chunksize": 10000,  # matplotlib fails on a line of 20,000 steps drawn in one piece
}


class History:
    """The rows of a run, in memory and, if ``writes``, appended to ``path``.

    With ``tensorboard`` their numbers are also written to the folder ``tensorboard`` beside ``path``.
    """

    def __init__(self, path: Path, writes: bool = True, tensorboard: bool = False):
        self.path = path
        self.rows: list[Row] = []
        self.writes = writes
        self.tensorboard = tensorboard
        self.board: SummaryWriter | None = None
        self.first_step = 0  # TensorBoard discards what an interrupted run logged from this step on

    def append(self, row: Row) -> None:
        """Add a row, in memory and in the file; numbers that are not finite become null, as JSON has no NaN."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.rows.append(row)
        if not self.writes:
            return
        with writing(self.path):
            # Surrogates in a name that is not UTF-8 are written as JSON escapes.
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if self.tensorboard:
                self._add_scalars(row)

    def _add_scalars(self, row: Row) -> None:
        """Log scalars by step: ``train/loss``, … and, for each reciter, ``valid_loss/<reciter>``, …"""
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

    def valid(self) -> dict[int, dict[str, Row]]:
        return valid_rows(self.rows)

    def write_results(self, in_training: Collection[str] = ()) -> None:
        """Write ``results.md``, and ``loss.png`` if matplotlib is installed.

        ``in_training`` names the validation reciters that are in the training data too.
        """
        if not self.writes:
            return
        with atomic_write(self.path.with_name("results.md")) as file:
            file.write(results_table(self.rows))
            for reciter in in_training:
                file.write(f"\n{reciter} is in the training data too: its WER says nothing about a new reciter.\n")
        picture = self.path.with_name("loss.png")
        try:
            png = draw(self.rows, best_epoch(self.rows))
        except ImportError:
            return
        except Exception as error:  # a plot that fails must not end a run
            warnings.warn(f"{picture} could not be drawn: {error!r}", stacklevel=2)
            return
        with atomic_write(picture, "wb") as file:
            file.write(png)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def restore(self, step: int, epoch: int) -> int:
        """Restore the rows from the file as of ``step`` steps and ``epoch`` whole epochs.

        Return the number of lines that could not be read.
        """
        self.first_step = step + 1
        rows, lost = read_rows(self.path)
        is_current = {
            "train": lambda row: row["step"] <= step,
            "valid": lambda row: row["epoch"] < epoch,
        }
        self.rows = [row for row in rows if is_current[row["event"]](row)]
        if self.writes:
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        return lost

    def clear(self) -> None:
        self.rows = []
        self.path.unlink(missing_ok=True)


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
        is_row = row.keys() >= _NAMES[row["event"]] and isinstance(row.get("reciter", ""), str)
        is_row &= all(isinstance(row.get(name, 0), int) for name in ("step", "epoch", "words", "word_errors"))
        # None is written for a number that is not finite.
        numbers = (value for name, value in row.items() if name not in ("event", "reciter") and value is not None)
        return row if is_row and all(abs(number) < 1e100 for number in numbers) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


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


def require_tensorboard() -> None:
    """Raise a :class:`..runtime.errors.UserError` if ``tensorboard`` is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--tensorboard: {error}; install it (pip install tensorboard, or this package with its extra "
            "[tensorboard]) or leave the option out"
        ) from None


def draw(rows: Sequence[Row], best: int | None) -> bytes:
    """Draw the rows of metrics.jsonl as a PNG; ``best`` is the epoch that best.pt is from, if there is one.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    steps = [row for row in rows if row["event"] == "train" and row["loss"] is not None]
    valid: dict[str, list[Row]] = {}
    for row in rows:
        if row["event"] == "valid":
            valid.setdefault(row["reciter"], []).append(row)
    panels = 2 if valid else 1
    with matplotlib.style.context(["default", SETTINGS]):
        figure = Figure(figsize=(9, 3.5 * panels + 0.12 * len(valid)), dpi=150, layout="constrained", facecolor="white")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        _draw_steps(axes[0], steps)
        for index, (reciter, points) in enumerate(valid.items()):
            color, line, marker = (choices[index % len(choices)] for choices in (COLORS, LINES, MARKERS))
            style = {"color": color, "linestyle": line, "marker": marker, "label": reciter}
            for panel, name, factor in zip(axes, ("loss", "wer"), (1, 100), strict=True):
                measured = [row for row in points if row[name] is not None]
                panel.plot([row["epoch"] for row in measured], [factor * row[name] for row in measured], **style)
        losses = [row["loss"] for row in rows if row["loss"]]
        if losses and max(losses) > 4 * min(losses):
            axes[0].set_yscale("log")
            axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("loss (nats a token)")
        if valid:
            rates = [100 * row["wer"] for points in valid.values() for row in points if row["wer"] is not None]
            # The untouched model may insert without end, which would flatten the other curves.
            top = min(max(rates, default=1), max(100, 1.5 * min(rates, default=1))) or 1
            axes[1].set_ylim(-0.03 * top, 1.08 * top)  # so that a marker at 0 is not clipped
            axes[1].set_ylabel("validation WER (%)")
        if best is not None:
            for panel in axes:
                panel.axvline(best, color="black", linewidth=0.8, linestyle=":", label="best.pt", zorder=0)
        axes[-1].set_xlabel("epoch (-1: the untouched model)")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _draw_steps(axes: Any, steps: Sequence[Row]) -> None:
    """Draw the loss of each step, pale, and their moving average."""
    if not steps:
        return
    first = [row["step"] for row in steps if row["epoch"] == steps[0]["epoch"]]
    per_epoch = max(first) / (steps[0]["epoch"] + 1)
    x = [row["step"] / per_epoch - 1 for row in steps]
    loss = [row["loss"] for row in steps]
    # Unlike a running average, the mean of the steps around each does not lag behind.
    window = np.ones(min(len(loss), max(5, len(loss) // 50)))
    smooth = np.convolve(loss, window, "same") / np.convolve(np.ones(len(loss)), window, "same")
    axes.plot(
        x, loss, color="#b8b8b8", linewidth=0.8, marker="." if len(loss) < 50 else None, label="training, each step"
    )
    axes.plot(x, smooth, color="black", linewidth=1.8, label="training, smoothed")
