"""loss.png: a run at a glance.

The losses above, each step's pale and their moving average dark; below, where there was validation, the word error
rates. Both stand over the epochs done: the untouched model at 0, the end of epoch 0 at 1.

It is meant to be read anywhere: on a dark page (the background is always drawn, and white), on grey paper (lines and
markers differ as well as colours, which are ones that the colour-blind tell apart), at half its size, and without a
legend to look up (labels stand at the ends of their lines). No setting of the user's matplotlib changes it.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]

INK, PALE, GRID = "#222222", "#b8b8b8", "#e4e4e4"
COLORS = ("#0067a5", "#c04f00", "#00805c", "#9e4a84", "#7a6400")
LINES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"))
SETTINGS = {
    "font.size": 13,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "lines.markersize": 6.5,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "agg.path.chunksize": 10000,  # matplotlib gives up on a line of 20,000 steps drawn in one piece
}


class End(NamedTuple):
    """Where a line ends, and what to write there."""

    x: float
    y: float
    text: str
    color: str


def draw(steps: Sequence[Row], valid: Sequence[Sequence[Row]], best: int | None) -> bytes:
    """Draw a run as a PNG.

    Args:
        steps: the rows of training steps.
        valid: the rows of each validation reciter, epoch by epoch.
        best: the epoch that best.pt is from, where there is one.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    per_epoch = 1.0
    if steps:
        first = steps[0]["epoch"]
        per_epoch = max(row["step"] for row in steps if row["epoch"] == first) / (first + 1)
    vanilla = any(row["epoch"] < 0 for rows in valid for row in rows)
    with matplotlib.style.context(["default", SETTINGS]):
        panel = max(3.5, 0.62 * (len(valid) + 1))  # inches: high enough for the labels
        size = (9, 2 * panel if valid else 4)
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
        panels = figure.subplots(2 if valid else 1, 1, sharex=True, squeeze=False)[:, 0]
        if not steps:
            panels[0].set_xlim(-0.02, 1)
        panels[0].set_title("Loss (nats a token)")
        _scale(panels[0], [row["loss"] for rows in (steps, *valid) for row in rows if row["loss"] is not None])
        ends = _training(panels[0], steps, per_epoch)
        _label(panels[0], ends + _validation(panels[0], valid, per_epoch, "loss", "{:.3f}"))
        if valid:
            panels[1].set_title("Word error rate on validation reciters (%)")
            ends = _validation(panels[1], valid, per_epoch, "wer", "{:.2f} %", factor=100)
            rates = [100 * row["wer"] for rows in valid for row in rows if row["wer"] is not None]
            # A model that knows nothing may insert without end, and would press everything else to the ground.
            top = min(max(rates, default=1), max(100, 1.5 * min(rates, default=1)))
            panels[1].set_ylim(-0.03 * top, 1.08 * top or 1)  # a marker at 0 is seen whole
            _label(panels[1], ends)
        if best is not None:
            x = next(row["step"] for rows in valid for row in rows if row["epoch"] == best) / per_epoch
            for axes in panels:
                axes.axvline(x, color=INK, linewidth=0.8, dashes=(2, 3), zorder=0)
            offset, side = ((6, 0), "left") if x < panels[1].get_xlim()[1] / 2 else ((-6, 0), "right")
            panels[1].annotate(
                "best.pt", (x, 1), offset, xycoords=("data", "axes fraction"), textcoords="offset points",
                ha=side, va="top", fontsize=12,
            )  # fmt: skip
        panels[-1].set_xlabel("epochs done (0: the untouched model)" if vanilla else "epochs done")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _scale(axes: Any, values: list[float]) -> None:
    """A logarithmic scale with plain numbers, unless all values are near each other."""
    from matplotlib.ticker import LogLocator, NullLocator

    if values and min(values) > 0 and max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def _training(axes: Any, steps: Sequence[Row], per_epoch: float) -> list[End]:
    """Draw the loss of each step and their moving average."""
    finite = [row for row in steps if row["loss"] is not None]
    if not finite:
        return []
    x = [row["step"] / per_epoch for row in finite]
    loss = [row["loss"] for row in finite]
    if len(finite) < 50:
        axes.plot(x, loss, color=INK, linewidth=1.8, marker=".")
        return [End(x[-1], loss[-1], "training, each step", INK)]
    smooth = _smoothed(loss, span=max(5, len(loss) // 50))
    axes.plot(x, loss, color=PALE, linewidth=0.8)
    axes.plot(x, smooth, color=INK, linewidth=1.8)
    return [End(x[-1], smooth[-1], "training, smoothed\n(pale: each step)", INK)]


def _validation(
    axes: Any, valid: Sequence[Sequence[Row]], per_epoch: float, what: str, form: str, factor: float = 1
) -> list[End]:
    """Draw ``factor`` times ``what`` of each reciter over the epochs."""
    ends = []
    for index, rows in enumerate(valid):
        color, (line, marker) = COLORS[index % len(COLORS)], LINES[index % len(LINES)]
        measured = [row for row in rows if row[what] is not None]
        if measured:
            x = [row["step"] / per_epoch for row in measured]
            y = [factor * row[what] for row in measured]
            axes.plot(x, y, color=color, linestyle=line, linewidth=1.8, marker=marker)
            values = form.format(y[-1]) if len(y) == 1 else f"{form.format(y[0])} → {form.format(y[-1])}"
            ends.append(End(x[-1], y[-1], f"{values}\n{rows[0]['reciter']}", color))
    return ends


def _label(axes: Any, ends: list[End]) -> None:
    """Write each label right of the axes, level with the end of its line, but clear of the other labels."""
    if not ends:
        return
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end.y)
    apart = min(0.19, 1 / len(ends))
    heights = [to_axes.transform((end.x, end.y))[1] for end in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    heights[-1] = min(heights[-1], 1)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - apart)
    for end, height in zip(ends, heights, strict=True):
        axes.annotate(
            end.text, (end.x, end.y), (1.03, height), textcoords=axes.transAxes, color=end.color, va="center",
            fontsize=12,
            arrowprops={"arrowstyle": "-", "color": end.color, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkB": 5},
        )  # fmt: skip


def _smoothed(values: Sequence[float], span: int) -> np.ndarray:
    """The mean of ``span`` values around each (fewer at both ends): unlike a running average it does not lag behind."""
    window = np.ones(span)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
