"""Pages of one file that open from disk: a template, its data and its script, and recordings that play.

A page is a frame (``page.html``, ``page.css`` and ``page.js`` beside this file) around a template of the same three
kinds of file, such as ``report.html``. Its data is JSON in a ``<script>`` element, which the page's script draws. The
Content-Security-Policy allows that one script, by its SHA-256: a browser runs no other and fetches nothing but
recordings, whatever the data contains.

The report of an evaluation is made from its two other files, so it can be made again at any time:

    write_report("report.html", read_predictions(Path("predictions.csv")), json.load(open("results.json")))
"""

import base64
import hashlib
import html
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np

from ..data.audio import SAMPLE_RATE, as_part
from ..data.ayat import SURAHS
from ..runtime.console import format_duration
from ..runtime.errors import UserError
from ..runtime.files import atomic_write
from .chance import differences_table, plus_minus, share
from .error_kinds import KINDS, Part, explain, letters_confused
from .predictions import Key, Prediction

FRAME = Path(__file__).with_name("page.html")
BIT_RATE = 28_000
EMBEDDED_BYTES = 5_200  # a second of audio, with its container and as base64
COMPARED = {
    "diacritics": "without diacritics",
    "full": "without diacritics, marks and variants of letters",
    "none": "as they are",
}


def write_page(path: str | os.PathLike[str], template: Path, data: Mapping[str, Any]) -> None:
    """Write the page of ``template`` (its .html, beside which are its .css and .js) to ``path``.

    ``data`` is what the template's script draws; its "title" is the page's name.

    Raises:
        UserError: ``path`` cannot be written.
    """
    style, script = (
        "\n".join(file.with_suffix(suffix).read_text(encoding="utf-8") for file in (FRAME, template))
        for suffix in (".css", ".js")
    )
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    values = {"style": style, "script": script, "script-hash": f"sha256-{digest}"}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in the data opens or closes a tag.
    values |= {"title": html.escape(data["title"]), "data": text.replace("<", "\\u003c")}
    values["body"] = template.read_text(encoding="utf-8")
    # All placeholders in one pass: text in the data that looks like one is not replaced.
    page = re.sub(r"\{\{([a-z-]+)\}\}", lambda placeholder: values[placeholder[1]], FRAME.read_text(encoding="utf-8"))
    with atomic_write(path) as file:
        file.write(page)


def relative_address(audio: os.PathLike[str], folder: Path) -> str:
    """Return the address of ``audio``, a file or a piece of one, for a page in ``folder``: both can be moved."""
    part = as_part(audio)
    return quote(os.fsencode(os.path.relpath(os.path.abspath(part.path), os.path.abspath(folder)))) + part.fragment


def data_address(samples: np.ndarray) -> str:
    """Encode ``samples``, int16 (n,) at 16 kHz, as Opus in WebM, into an address that holds them.

    Browsers play it, and what is after a jump, sample for sample in time. MP3 would begin 69 ms late, and in Chromium
    be up to 0.1 s off after a jump.

    Raises:
        UserError: the PyAV that is installed cannot write Opus.
    """
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="webm") as container:
            stream = container.add_stream("libopus", SAMPLE_RATE, layout="mono", format="s16", bit_rate=BIT_RATE)
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"--embed-audio needs a PyAV that writes Opus ({error}): leave it out") from error
    return "data:audio/webm;base64," + base64.b64encode(file.getvalue()).decode()


def embedded_size(seconds: float) -> float:
    """Return the bytes that ``seconds`` of audio take as :func:`data_address`."""
    return seconds * EMBEDDED_BYTES


def write_report(
    path: str | os.PathLike[str],
    predictions: Iterable[Prediction],
    results: Mapping[str, Any],
    recordings: Mapping[Key, tuple[str, bool]] | None = None,
) -> None:
    """Write the report of one evaluation to ``path``: names and ayat once each, and by their indices its rows.

    Args:
        results: what results.json holds: ``rows`` and ``environment``, and possibly the rest.
        recordings: those that the page can play, by the key of their predictions with a blank model: the address
            that is played, and whether the audio is damaged.

    Raises:
        UserError: ``path`` cannot be written.
    """
    models, reciters = (list(dict.fromkeys(row[name] for row in results["rows"])) for name in ("model", "reciter"))
    ayat: dict[tuple[int, str, str], int] = {}
    rows: list[list[Any]] = []
    heard: dict[tuple[int, int], list[Any]] = {}
    right = Counter[str]()
    for row in predictions:
        ayah = ayat.setdefault((int(row.sorah or 0), row.ayah, row.reference), len(ayat))
        reciter, errors = reciters.index(row.reciter), row.alignment.errors
        counts = [errors.substitutions, errors.deletions, errors.insertions]
        parts = short_parts(explain(row.reference, row.alignment.edits))
        rows.append([models.index(row.model), reciter, ayah, counts, parts])
        right[row.model] += not any(counts)
        audio = (recordings or {}).get(("", *row.key[1:]), ())
        heard[reciter, ayah] = [reciter, ayah, round(row.duration, 1), *audio]
    places = list(ayat)
    in_order = sorted(heard.values(), key=lambda each: (places[each[1]][0], _natural(places[each[1]][1]), each[0]))
    compared = COMPARED.get(results.get("normalization") or "")
    numbers = {"model": len(models), "reciter": len(reciters), "recording": len(in_order)}
    subtitle = [f"{number:,}\u00a0{noun}{'s' * (number != 1)}" for noun, number in numbers.items()]
    subtitle.append(f"{format_duration(sum(recording[2] for recording in in_order))} of audio")
    skipped = [[item["file"], item["reason"]] for item in results.get("skipped", [])]
    different = differences_table(results.get("differences", []))
    data = {
        "title": f"What the model{'s' * (len(models) > 1)} heard",
        "subtitle": subtitle + ([f"words compared {compared}"] if compared else []),
        "unfolded": [
            ["novelty", "Voices and texts that the run was trained on, and new ones", results.get("novelty", [])],
            ["differences", "Is a difference chance? Two models on the same recordings", different[1:] and different],
            ["skipped", f"{len(skipped):,} left out and counted nowhere, with the reasons", skipped],
        ],
        "facts": {
            "models": ", ".join(models),
            "rates": "errors of the whole column divided by the words (CER: characters) of its references",
            "±": "half of the interval that the rate is in at 95 %, were other recordings drawn",
            "p": "how likely a difference as large is if there is none",
            **results["environment"],
        },
        "models": [{"name": name, "short": short} for name, short in zip(models, short_names(models), strict=True)],
        "table": _table(models, reciters, results, right),
        "reciters": reciters,
        "ayat": places,
        "surahs": {surah: SURAHS[surah - 1] for surah, *_ in sorted(places) if 1 <= surah <= len(SURAHS)},
        "rows": rows,
        "recordings": in_order,
        "kinds": list(KINDS.items()),
    }
    write_page(path, Path(__file__).with_name("report.html"), data)


def _table(
    models: list[str], reciters: list[Any], results: Mapping[str, Any], right: Mapping[str, int]
) -> dict[str, Any]:
    """Arrange the table: for each model its rates, reciter by reciter, and facts: a text each, and a small one."""
    rates = {(row["model"], row["reciter"]): row for row in results["rows"]}
    rates |= {(row["model"], None): row for row in results.get("overall", [])}
    columns = [*reciters, None] if len(reciters) > 1 else reciters
    known = {key: row["wer"] for key, row in rates.items() if row["wer"] is not None}
    highest = max(known.values(), default=0) or 1
    lines = []
    for model in models:
        cells = []
        for column in columns:
            row = rates.get((model, column), {})
            wer, lowest = row.get("wer"), min((rate for key, rate in known.items() if key[1] == column), default=None)
            cell = {name: plus_minus(row.get(name), row.get(f"{name}_interval")) for name in ("wer", "cer")}
            place = {"reciter": column, "width": 100 * (wer or 0) / highest}
            cells.append(cell | place | {"best": len(models) > 1 and wer is not None and wer == lowest})
        rows = [row for row in results["rows"] if row["model"] == model]
        lines.append({"cells": cells, "facts": _facts(rows, right[model])})
    heads = ["word error rate", *("all reciters" if column is None else column for column in columns)]
    return {"heads": [*heads, "substituted", "deleted", "inserted", "all right", "parameters", "RTF"], "lines": lines}


def _facts(rows: Sequence[Mapping[str, Any]], right: int) -> list[list[str]]:
    def total(name: str) -> float:
        return sum(row[name] for row in rows)

    words, recordings = total("words"), sum(row["ayat"] for row in rows)
    kinds = [total(name) / words if words else None for name in ("substitutions", "deletions", "insertions")]
    parameters = rows[0].get("parameters")
    rtf = total("wall_s") / total("audio_s") if total("audio_s") else 0
    faster = f"{1 / rtf:,.0f}" if 0 < rtf < 0.1 else f"{1 / rtf:.1f}" if rtf else ""
    return [
        *([plus_minus(rate, None)] for rate in kinds),
        share(right, recordings).rstrip(")").split(" (") if recordings else ["–"],
        [f"{parameters / 1e6:.{int(parameters < 1e7)}f} M" if parameters else "–"],
        [f"{rtf:.2g}", f"{faster}×"] if rtf else ["–"],
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


def short_names(names: Sequence[str]) -> list[str]:
    """Cut paths to their last components: as few as keep them distinct."""
    parts = [name.split("/") for name in names]
    for length in range(1, max(map(len, parts), default=0)):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by value: 2 before 10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split("([0-9]+)", name) if piece]
