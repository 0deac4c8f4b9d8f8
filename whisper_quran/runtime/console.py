"""Console output: log lines, progress, sizes, rates and Markdown tables."""

import math
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence

from tqdm import tqdm

Log = Callable[[str], None]  # takes one line for the user; print is one
_SECONDS_BETWEEN_LINES = 30.0


def no_log(message: str) -> None:
    """Discard the line: the :data:`Log` for --quiet, and for every process but the main one."""


def progress_bar(total: int, unit: str, description: str, *, initial: int = 0, disable: bool = False) -> tqdm:
    """Make a progress bar on stderr; if that is not a terminal, it prints a line every 30 seconds instead."""
    options = {"total": total, "unit": unit, "desc": description, "initial": initial, "disable": disable}
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True)
    return tqdm(**options, mininterval=_SECONDS_BETWEEN_LINES / 30, file=_Lines(), leave=False)


class _Lines:
    """A file for a progress bar that prints, now and then, what is drawn as a line, without carriage returns."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def write(self, text: str) -> None:
        if text.strip() and time.monotonic() > self._printed + _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def printable(name: str) -> str:
    """Return a name in NFC, with characters that are not printable or not UTF-8 escaped: one form for every file.

    >>> printable("a\\u2028b\\udcff")
    'a\\\\u2028b\\\\udcff'
    """
    composed = unicodedata.normalize("NFC", name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in composed)


def format_size(size: float) -> str:
    """Format bytes: ``"2.3 GB"``, ``"140.0 MB"``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def format_duration(seconds: float) -> str:
    """Format seconds: ``"48 s"``, ``"13 min"``, ``"2 h 05 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def percent(rate: float | None) -> str:
    """Format a fraction as ``"12.34 %"``; a dash if it is unknown (None or NaN)."""
    return "–" if rate is None or math.isnan(rate) else f"{100 * rate:.2f} %"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table: the first column is text, the others are numbers, right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
