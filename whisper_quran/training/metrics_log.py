"""The metrics of a run, logged to ``metrics.jsonl``, and the table and plot made from them.

:mod:`..checkpoints.results` describes the rows and makes the table. In ``loss.png`` the background is white, and lines
differ in style and marker as well as in colour, so it is readable on a dark page and in greyscale. Epoch 3 ends at
x = 3, and the untouched model is at -1. The user's own matplotlib settings are ignored.
"""

import io
import json
import math
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints.results import Row, best_epoch, read_rows, results_table, valid_rows
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
        """Return the validation rows by epoch, then by reciter."""
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
        """Flush and close TensorBoard's writer."""
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
        """Remove every row, on disk too."""
        self.rows = []
        self.path.unlink(missing_ok=True)


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
