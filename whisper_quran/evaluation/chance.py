"""Chance: 95 % intervals of error rates and shares, and of the difference between two models.

The unit is the recording: another sample would have other recordings, and errors crowd in some of them. Two models are
compared on the recordings that both heard, each with itself, so that an ayah that is hard for both favours neither.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import erfc, sqrt
from typing import Any

import numpy as np

from .predictions import Prediction
from .word_errors import ErrorCounts

Z = 1.96  # standard errors from the middle of an interval of 95 % to its ends


def rates_of(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Return WER, CER and DER of ``rows`` with their intervals: fractions, None where nothing was counted."""
    counts = {
        "wer": ("word_errors", "words"),
        "cer": ("character_errors", "characters"),
        "der": ("diacritic_errors", "letters"),
    }
    rates: dict[str, Any] = {}
    for name, pair in counts.items():
        wrong, of = (np.array([getattr(row.errors, count) for row in rows], np.float64) for count in pair)
        rates[name] = float(wrong.sum() / of.sum()) if of.sum() else None
        rates[f"{name}_interval"] = rate_interval(wrong, of)
    return rates


def rate_interval(errors: np.ndarray, words: np.ndarray) -> list[float] | None:
    """Return the score interval of sum(errors) / sum(words) over recordings; None if it is unknown.

    Where a variance proportional to the rate r is c r / Z², it is r + c/2 ± sqrt(c r + c²/4): near zero it is lopsided,
    and without an error it is 0 to c. The variance is that of a ratio estimator, with how much the recordings differ,
    and at least that of words which are wrong independently of each other.
    """
    total = words.sum()
    if not total or (len(errors) < 2 and errors.any()):
        return None
    rate = errors.sum() / total
    variance = max(_variance(errors, words), rate / total)
    c = Z**2 * (variance / rate if rate else 1 / total)
    half = sqrt(c * rate + c**2 / 4)
    return [max(0.0, rate + c / 2 - half), rate + c / 2 + half]


def share(part: int, whole: int) -> str:
    """Write a share of recordings, or the like, with Wilson's score interval: ``"98.4 % (91.7 to 99.7 %)"``."""
    rate, c = part / whole, Z**2 / whole
    middle, half = rate + c / 2, sqrt(c * rate * (1 - rate) + c**2 / 4)
    low, high = max(0.0, (middle - half) / (1 + c)), min(1.0, (middle + half) / (1 + c))
    return f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def plus_minus(rate: float | None, interval: Sequence[float] | None, unit: str = "%") -> str:
    """Write a rate in percent with half the width of its interval: ``"52.4 ± 3.1 %"``; a dash if it is unknown.

    Of no errors the upper bound is given. With the unit "points", for a difference, it has a sign.
    """
    if rate is None:
        return "–"
    number = f"{100 * rate:{'+' if unit == 'points' else ''}.1f}"
    if interval is None:
        return f"{number} {unit}"
    if unit == "%" and rate == 0:
        return f"{number} % (at most {100 * interval[1]:.1f} %)"
    return f"{number} ± {50 * (interval[1] - interval[0]):.1f} {unit}"


def overall(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Return the rates of each model over all reciters."""
    models: defaultdict[str, list[Prediction]] = defaultdict(list)
    for row in predictions:
        models[row.model].append(row)
    return [{"model": model, "recordings": len(rows), **rates_of(rows)} for model, rows in models.items()]


def differences(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Compare every two models on each reciter, and on all (``reciter`` None), by the recordings that both heard.

    ``wer`` is the first model's rate minus the second's, ``interval`` the normal interval around it, and ``p`` the
    two-sided p-value of the score test: if there is no difference, each recording's has either sign. It is therefore
    never small for a few recordings.
    """
    models: defaultdict[str, dict[tuple[str, ...], ErrorCounts]] = defaultdict(dict)
    for row in predictions:
        models[row.model][row.key[1:]] = row.errors
    found = []
    for first, second in combinations(models, 2):
        both = [(key[0], a, models[second][key]) for key, a in models[first].items() if key in models[second]]
        reciters = list(dict.fromkeys(reciter for reciter, *_ in both))
        for reciter in [*reciters, None] if len(reciters) > 1 else reciters:
            pairs = [(a, b) for its_reciter, a, b in both if reciter in (its_reciter, None)]
            more = np.array([a.word_errors - b.word_errors for a, b in pairs], np.float64)
            words = np.array([a.words for a, _ in pairs], np.float64)
            if len(pairs) < 2 or not words.any():
                continue
            wer = float(more.sum() / words.sum())
            half = Z * sqrt(_variance(more, words)) if more.any() else Z**2 / words.sum()
            p = erfc(abs(more.sum()) / sqrt(2 * (more**2).sum())) if more.any() else 1.0
            which = {"models": [first, second], "reciter": reciter, "recordings": len(pairs)}
            found.append(which | {"wer": wer, "interval": [wer - half, wer + half], "p": p})
    return found


def differences_table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Arrange :func:`differences` as a table, its header first: pairs of models down, reciters across."""
    reciters = list(dict.fromkeys(each["reciter"] for each in found))
    lines: defaultdict[str, dict[str | None, str]] = defaultdict(dict)
    for each in found:
        p = f"p = {each['p']:.3f}" if each["p"] >= 0.0005 else "p < 0.001"
        cell = f"{plus_minus(each['wer'], each['interval'], 'points')} ({p})"
        lines[" − ".join(each["models"])][each["reciter"]] = cell
    header = ["difference in WER", *(name or "all reciters" for name in reciters)]
    return [header, *([pair, *(cells.get(name, "–") for name in reciters)] for pair, cells in lines.items())]


def _variance(errors: np.ndarray, words: np.ndarray) -> float:
    """Estimate the variance of sum(errors) / sum(words) from how the recordings differ."""
    n, total = len(errors), words.sum()
    spread = ((errors - errors.sum() / total * words) ** 2).sum()
    return float(spread * n / max(1, n - 1) / total**2)
