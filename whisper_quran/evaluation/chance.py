"""Bootstrap over recordings: 95 % intervals of error rates, and of the difference between two models.

Recordings are drawn with replacement, as many as there are, 2000 times; an interval holds the middle 95 % of the
rates. The draws depend on the number of recordings alone. So they are the same each time, and the same for two models
that heard the same recordings: the comparison is paired, and an ayah that is hard for both favours neither.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from .predictions import Prediction

DRAWS = 2000
WORD_BINS = (1, 4, 7, 11, 16, 21, 31, 51)  # lower bounds of the groups of lengths
SECOND_BINS = (0, 5, 10, 15, 20, 30, 60, 120)


def resample(counts: np.ndarray) -> np.ndarray:
    """Return sums (DRAWS, k) of ``counts`` (n, k) over n recordings drawn with replacement."""
    generator = np.random.default_rng(0)
    n, k = counts.shape
    chunk = max(1, 1_000_000 // (n * k))  # draws in a chunk: one of the whole Qur'an by two models has 50,000 numbers
    sizes = [min(chunk, DRAWS - start) for start in range(0, DRAWS, chunk)]
    return np.concatenate([counts[generator.integers(n, size=(size, n))].sum(axis=1) for size in sizes])


def rates_of(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Return WER and CER of ``rows`` with their intervals: fractions, None if there are no words, or no two rows."""
    counts = _counts(rows)
    errors, words, character_errors, characters = counts.sum(axis=0).tolist()
    drawn = resample(counts)
    return {
        "wer": errors / words if words else None,
        "wer_interval": _interval(drawn[:, 0], drawn[:, 1]) if len(rows) > 1 else None,
        "cer": character_errors / characters if characters else None,
        "cer_interval": _interval(drawn[:, 2], drawn[:, 3]) if len(rows) > 1 else None,
    }


def plus_minus(rate: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """Return a rate in percent with half the width of its interval: ``"52.4 ± 3.1 %"``; a dash if it is unknown."""
    if rate is None:
        return "–"
    half = 50 * (interval[1] - interval[0]) if interval else 0
    return f"{100 * rate:{sign}.1f}" + (f" ± {half:.1f} %" if half else " %")


def overall(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Return the rates of each model over all reciters, and by surah, words and seconds (``by`` and ``group``)."""
    found = []
    for model, rows in _grouped(predictions, lambda row: row.model).items():
        groups: list[tuple[str | None, int | None, list[Prediction]]] = [(None, None, rows)]
        for name, group_of in GROUPS.items():
            groups += [(name, group, members) for group, members in sorted(_grouped(rows, group_of).items())]
        for by, group, members in groups:
            found.append({"model": model, "by": by, "group": group, "recordings": len(members), **rates_of(members)})
    return found


def differences(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Compare every two models on each reciter, and on all (``reciter`` None), by the recordings that both heard.

    ``wer`` is the first model's rate minus the second's, and ``p`` the two-sided p-value of the difference, which is at
    least 2 / (DRAWS + 1).
    """
    by_model = {
        model: {row.key[1:]: row for row in rows}
        for model, rows in _grouped(predictions, lambda row: row.model).items()
    }
    found = []
    for first, second in combinations(by_model, 2):
        both = [key for key in by_model[first] if key in by_model[second]]
        reciters = list(dict.fromkeys(key[0] for key in both))
        for reciter in [*reciters, None] if len(reciters) > 1 else reciters:
            keys = [key for key in both if reciter in (key[0], None)]
            pair = [_counts([by_model[model][key] for key in keys]) for model in (first, second)]
            if len(keys) > 1 and (compared := _compare(*pair)):
                found.append({"models": [first, second], "reciter": reciter, "recordings": len(keys), **compared})
    return found


def differences_table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Arrange :func:`differences` as a table, its header first: pairs of models down, reciters across."""
    reciters = list(dict.fromkeys(each["reciter"] for each in found))
    lines: dict[str, dict[str | None, str]] = {}
    for each in found:
        cell = f"{plus_minus(each['wer'], each['interval'], '+')} (p = {each['p']:.3f})"
        lines.setdefault(" − ".join(each["models"]), {})[each["reciter"]] = cell
    header = ["difference in WER", *(name or "all reciters" for name in reciters)]
    return [header, *([pair, *(cells.get(name, "–") for name in reciters)] for pair, cells in lines.items())]


def _compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any] | None:
    counts = np.column_stack([first[:, 0] - second[:, 0], first[:, 1]])  # both read the same words
    more, words = counts.sum(axis=0).tolist()
    drawn = resample(counts)
    interval = _interval(drawn[:, 0], drawn[:, 1])
    if interval is None:
        return None
    other_side = min(np.count_nonzero(drawn[:, 0] <= 0), np.count_nonzero(drawn[:, 0] >= 0))
    return {"wer": more / words, "interval": interval, "p": min(1.0, 2 * (1 + int(other_side)) / (1 + DRAWS))}


def _counts(rows: Sequence[Prediction]) -> np.ndarray:
    """Return int64 (n, 4): word errors, words, character errors, characters."""
    errors = [row.alignment.errors for row in rows]
    counts = [(e.substitutions + e.deletions + e.insertions, e.words, e.character_errors, e.characters) for e in errors]
    return np.array(counts, np.int64)


def _interval(errors: np.ndarray, words: np.ndarray) -> list[float] | None:
    """Return the bounds of the middle 95 % of the rates; None if some draws have no words."""
    return np.quantile(errors / words, (0.025, 0.975)).tolist() if words.all() else None


def _grouped(rows: Iterable[Prediction], key: Callable[[Prediction], Any]) -> dict[Any, list[Prediction]]:
    groups: dict[Any, list[Prediction]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _bin_of(bins: Sequence[int], length: float) -> int:
    """Return the lower bound of the bin that ``length`` is in."""
    return bins[max(0, bisect_right(bins, length) - 1)]


GROUPS: dict[str, Callable[[Prediction], int]] = {
    "surah": lambda row: int(row.sorah or 0),
    "words": lambda row: _bin_of(WORD_BINS, row.alignment.errors.words),
    "seconds": lambda row: _bin_of(SECOND_BINS, row.duration),
}
