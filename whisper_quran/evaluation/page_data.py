"""The data of the report's page, precomputed as far as its filters allow."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.corpus import SURAHS
from .chance import SECOND_BINS, WORD_BINS, differences_table, plus_minus
from .error_kinds import KINDS, Part, explain, letters_confused
from .listening import Recording
from .predictions import Key, Prediction

COMPARED = {
    "diacritics": "without diacritics",
    "full": "without diacritics, marks and variants of letters",
    "none": "as they are",
}


def page_data(
    predictions: Iterable[Prediction], results: Mapping[str, Any], recordings: Mapping[Key, Recording]
) -> dict[str, Any]:
    """Arrange one evaluation for the page: names and ayat once each, and by their indices

    - ``rows`` of [model, reciter, ayah, [substitutions, deletions, insertions], parts (:func:`short_parts`)],
    - ``recordings`` of [reciter, ayah, seconds], and if there is audio, its addresses and if it is damaged.
    """
    models = _numbered(row["model"] for row in results["rows"])
    reciters = _numbered(row["reciter"] for row in results["rows"])
    ayat: dict[tuple[int, str, str], int] = {}
    rows: list[list[Any]] = []
    heard: dict[tuple[int, int], list[Any]] = {}
    right = dict.fromkeys(models, 0)
    for row in predictions:
        ayah = ayat.setdefault((int(row.sorah or 0), row.ayah, row.reference), len(ayat))
        reciter, errors = reciters[row.reciter], row.alignment.errors
        counts = [errors.substitutions, errors.deletions, errors.insertions]
        rows.append(
            [models[row.model], reciter, ayah, counts, short_parts(explain(row.reference, row.alignment.edits))]
        )
        right[row.model] += not any(counts)
        audio = recordings.get(("", *row.key[1:]))
        heard[reciter, ayah] = [
            reciter,
            ayah,
            round(row.duration, 1),
            *([audio.addresses, audio.damaged] if audio else []),
        ]
    places = list(ayat)
    in_order = sorted(heard.values(), key=lambda each: (places[each[1]][0], _natural(places[each[1]][1]), each[0]))
    return {
        **_headings(list(models), list(reciters), in_order, results),
        "models": [
            {"name": name, "short": short} for name, short in zip(models, short_names(list(models)), strict=True)
        ],
        "table": _table(list(models), list(reciters), results, right),
        "reciters": list(reciters),
        "ayat": places,
        "surahs": {surah: SURAHS[surah - 1] for surah, *_ in sorted(places) if 1 <= surah <= len(SURAHS)},
        "rows": rows,
        "recordings": in_order,
        "kinds": list(KINDS.items()),
        "bins": {"words": WORD_BINS, "seconds": SECOND_BINS},
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Cut paths to their last components: as few as keep them distinct."""
    parts = [name.split("/") for name in names]
    for length in range(1, max(map(len, parts), default=0)):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _headings(
    models: Sequence[str], reciters: Sequence[str], heard: Sequence[list[Any]], results: Mapping[str, Any]
) -> dict[str, Any]:
    """Make what concerns the whole evaluation: title, subtitle, tables to unfold and facts."""
    seconds = sum(recording[2] for recording in heard)
    audio = f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
    compared = COMPARED.get(results.get("normalization") or "")
    counts = [(len(models), "model"), (len(reciters), "reciter"), (len(heard), "recording")]
    skipped = [[item["file"], item["reason"]] for item in results.get("skipped", [])]
    different = differences_table(results.get("differences", []))
    return {
        "title": f"What the model{'s' * (len(models) > 1)} heard",
        "subtitle": [*(f"{n:,}\u00a0{noun}{'s' * (n != 1)}" for n, noun in counts), f"{audio} of audio"]
        + ([f"words compared {compared}"] if compared else []),
        "unfolded": [
            [
                "differences",
                "Is a difference chance? Any two models on the same recordings",
                different[1:] and different,
            ],
            ["skipped", f"{len(skipped):,} left out and counted nowhere, with the reasons", skipped],
        ],
        "facts": {
            "models": ", ".join(models),
            "rates": "errors of the whole column divided by the words (CER: characters) of its references",
            "±": "half of the interval that the rate is in at 95 %, were other recordings drawn (bootstrap)",
            "p": "how likely a difference as large is if there is none (paired bootstrap)",
            **results["environment"],
        },
    }


def _table(
    models: Sequence[str], reciters: Sequence[str], results: Mapping[str, Any], right: Mapping[str, int]
) -> dict[str, Any]:
    """Arrange the table: for each model its rates, reciter by reciter, and facts: a text each, and a small one."""
    rates = {(row["model"], row["reciter"]): row for row in results["rows"]}
    rates |= {(row["model"], None): row for row in results.get("overall", []) if row["by"] is None}
    columns = [*reciters, None] if len(reciters) > 1 else list(reciters)
    known = {key: row["wer"] for key, row in rates.items() if row["wer"] is not None}
    highest = max(known.values(), default=0) or 1
    lines = []
    for model in models:
        cells = []
        for column in columns:
            row = rates.get((model, column), {})
            others = [rate for (_, reciter), rate in known.items() if reciter == column]
            cells.append({"reciter": column, "width": 100 * (row.get("wer") or 0) / highest})
            cells[-1] |= {name: plus_minus(row.get(name), row.get(f"{name}_interval")) for name in ("wer", "cer")}
            cells[-1]["best"] = len(models) > 1 and others != [] and row.get("wer") == min(others)
        lines.append(
            {"cells": cells, "facts": _facts([row for row in results["rows"] if row["model"] == model], right[model])}
        )
    heads = ["word error rate", *("all reciters" if column is None else column for column in columns)]
    return {"heads": [*heads, "substituted", "deleted", "inserted", "all right", "parameters", "RTF"], "lines": lines}


def _facts(rows: Sequence[Mapping[str, Any]], right: int) -> list[list[str]]:
    def total(name: str) -> float:
        return sum(row[name] for row in rows)

    shares = [(total(name), total("words")) for name in ("substitutions", "deletions", "insertions")]
    shares.append((right, sum(row.get("passages", row["ayat"]) for row in rows)))
    parameters = rows[0].get("parameters")
    rtf = total("wall_s") / total("audio_s") if total("audio_s") else 0
    faster = f"{1 / rtf:,.0f}" if 0 < rtf < 0.1 else f"{1 / rtf:.1f}" if rtf else ""
    return [
        *([plus_minus(part / whole if whole else None, None)] for part, whole in shares),
        [f"{parameters / 1e6:.{int(parameters < 1e7)}f} M" if parameters else "–"],
        [f"{rtf:.2g}", f"{faster}× real time"] if rtf else ["–"],
    ]


def short_parts(explained: Iterable[Part]) -> list[Any]:
    """Write an alignment for a page: a number of right words, or [kind, words expected, words heard, times, letters].

    What is right at the end is left out, as are ``times`` of 1 and ``letters`` ("ص>س") of other kinds than "letter".
    """
    parts: list[Any] = []
    for part in explained:
        if not part.kind:
            parts.append(len(part.expected))
            continue
        parts.append([list(KINDS).index(part.kind), len(part.expected), " ".join(part.heard)])
        if part.kind == "letter":
            parts[-1] += [1, ">".join(letters_confused(part))]
        elif part.times > 1:
            parts[-1].append(part.times)
    return parts[:-1] if parts and isinstance(parts[-1], int) else parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by value: 2 before 10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split("([0-9]+)", name) if piece]


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Number the distinct names in the order of their first appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}
