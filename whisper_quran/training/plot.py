"""loss.png: the losses of a run, and the word error rates on its validation reciters.

The background is white, and lines differ in style and marker as well as in colour, so the plot is readable on a dark
page and in greyscale. Epoch 3 ends at x = 3, and the untouched model is at -1. The user's own matplotlib settings are
ignored.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checkpoints.results import Row

COLORS = ("#0067a5", "#c04f00", "#00805c", "#9e4a84", "#7a6400")  # distinguishable by the colour-blind
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v")  # 20 combinations
SETTINGS = {
    "font.size": 12,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.fontsize": "small",
    "agg.path.chunksize": 10000,  # matplotlib fails on a line of 20,000 steps drawn in one piece
}


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
