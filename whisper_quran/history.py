"""What a run has measured: ``metrics.jsonl``, and the table and picture made of it.

A row is one JSON object a line. ``{"event": "train", …}`` is an optimiser step, ``{"event": "valid", …}`` one reciter
after one epoch; the untouched model is epoch -1.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import atomic_write, storage_error

Row = dict[str, Any]


class History:
    """The rows of a run, kept in ``path`` as they come; a process that does not write only remembers them."""

    def __init__(self, path: Path, writes: bool = True):
        self.path = path
        self.writes = writes
        self.rows: list[Row] = []

    def append(self, row: Row) -> None:
        """Add a row, in memory and in the file; numbers that are not finite become null, since JSON has none."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.rows.append(row)
        if not self.writes:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise storage_error(error, self.path) from error

    def restore(self, step: int, epoch: int) -> None:
        """Go back to what was measured when ``step`` steps and ``epoch`` whole epochs were done."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be torn
            self.rows = [r for r in rows if (r["step"] <= step if r["event"] == "train" else r["epoch"] < epoch)]
        if not self.writes:
            return
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)

    def valid(self) -> dict[int, dict[str, Row]]:
        """The validation rows by epoch, then by reciter."""
        epochs: dict[int, dict[str, Row]] = {}
        for row in self.rows:
            if row["event"] == "valid":
                epochs.setdefault(row["epoch"], {})[row["reciter"]] = row
        return epochs


def corpus_rate(rows: Iterable[Row], errors: str, total: str) -> float:
    """Errors summed over reciters, divided by words (or characters) summed over reciters."""
    rows = list(rows)
    count = sum(row[total] for row in rows)
    return sum(row[errors] for row in rows) / count if count else float("nan")


def _percent(rate: float | None) -> str:
    return "–" if rate is None or math.isnan(rate) else f"{100 * rate:.2f} %"


def results_table(history: History) -> str:
    """Experiment 2A's table in Markdown: the vanilla model, then a row an epoch; per reciter loss, WER and CER."""
    epochs = history.valid()
    reciters = list(dict.fromkeys(reciter for rows in epochs.values() for reciter in rows))
    header = ["epoch", *(f"{reciter} {what}" for reciter in reciters for what in ("loss", "WER", "CER"))]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for epoch, rows in epochs.items():
        cells = ["vanilla" if epoch < 0 else str(epoch)]
        for reciter in reciters:
            row = rows.get(reciter)
            loss = "–" if row is None or row["loss"] is None else f"{row['loss']:.4f}"
            cells += [loss, _percent(row and row["wer"]), _percent(row and row["cer"])]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_results(history: History, folder: Path) -> None:
    """Write ``results.md``, and ``loss.png`` where matplotlib is installed."""
    with atomic_write(folder / "results.md") as file:
        file.write(results_table(history))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    with atomic_write(folder / "loss.png", "wb") as file:
        _draw(history, Figure(figsize=(8, 7), dpi=120, layout="constrained")).savefig(file, format="png")


def _draw(history: History, figure: Any) -> Any:
    """Losses above, word error rates below, over the epochs; vanilla stands at 0, epoch 0's end at 1."""
    steps = [row for row in history.rows if row["event"] == "train" and row["loss"] is not None]
    valid = history.valid()
    reciters = list(dict.fromkeys(reciter for rows in valid.values() for reciter in rows))
    upper, lower = figure.subplots(2, 1, sharex=True)
    styles = [("tab:blue", "-"), ("tab:orange", "--"), ("tab:green", "-."), ("tab:red", ":")]

    if steps:
        first = min(row["epoch"] for row in steps)
        per_epoch = max(row["step"] for row in steps if row["epoch"] == first) / (first + 1)
        x = [row["step"] / per_epoch for row in steps]
        loss = [row["loss"] for row in steps]
        upper.plot(x, loss, color="0.75", linewidth=0.8, label="training, each step")
        upper.plot(x, _smooth(loss), color="0.2", linewidth=1.6, label="training, smoothed")
    for index, reciter in enumerate(reciters):
        color, line = styles[index % len(styles)]
        rows = [(epoch + 1, row[reciter]) for epoch, row in valid.items() if reciter in row]
        style = {"color": color, "linestyle": line, "marker": "o", "markersize": 4}
        losses = [(epoch, row["loss"]) for epoch, row in rows if row["loss"] is not None]
        rates = [(epoch, 100 * row["wer"]) for epoch, row in rows if row["wer"] is not None]
        if losses:
            upper.plot(*zip(*losses, strict=True), label=reciter, **style)
        if rates:
            lower.plot(*zip(*rates, strict=True), label=reciter, **style)
            epoch, rate = rates[-1]
            lower.annotate(f"{rate:.1f} %", (epoch, rate), xytext=(6, 4), textcoords="offset points", color=color)
    upper.set_ylabel("loss (nats a token)")
    upper.set_yscale("log")
    lower.set_ylabel("word error rate (%)")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epochs done (0: the untouched model)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small")
    return figure


def _smooth(values: list[float], span: int = 50) -> list[float]:
    """Exponential moving average over about ``span`` values (fewer at the start), without the start-up bias."""
    decay = 1 - 1 / max(1, min(span, len(values) // 10))
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average = decay * average + (1 - decay) * value if decay else value
        weight = decay * weight + (1 - decay) if decay else 1.0
        smoothed.append(average / weight)
    return smoothed
