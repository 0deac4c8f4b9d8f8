"""report.html: one file that shows where each model errs, word by word, and opens from disk.

It is a function of the two other files an evaluation writes (``predictions.csv`` and ``results.json``), so a report
can be made again from them at any time:

    write_report("report.html", csv.DictReader(open("predictions.csv")), json.load(open("results.json")))

The page is a template (``report.html``, ``report.css`` and ``report.js`` beside this file) with a hole for the data,
as JSON: each reference once, however many models and reciters read it, and each hypothesis as its edits to the
reference. That is smaller than the text (a perfect ayah costs nothing), and it is the alignment that jiwer counted:
the page aligns nothing itself, so what it shows cannot disagree with the figures. The Content-Security-Policy allows
one script, by its SHA-256: a browser runs no other and fetches nothing, whatever a hypothesis, a model's name or a
reason contains.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jiwer

from ..runtime.files import atomic_write


def write_report(
    path: str | os.PathLike[str], predictions: Iterable[Mapping[str, Any]], results: Mapping[str, Any]
) -> None:
    """Write the report of one evaluation to ``path``.

    Args:
        predictions: the rows of predictions.csv, values as text or as numbers. ``reference`` and ``hypothesis`` are
            as they were compared (normalised); ``sorah`` is blank where the recordings are not the Qur'an's, and
            ``ayah`` then names the recording.
        results: what results.json holds. ``rows`` and ``environment`` as the design has them; shown besides where
            present: ``parameters`` (a count) in a row, ``normalization``, and ``skipped``, a list of
            ``{"file", "reason"}``. A rate of NaN or None is one that has no words to count.

    Raises:
        ValueError: a prediction's counts are not those of its texts.
        UserError: ``path`` cannot be written.
    """
    page, style, script = (_beside(f"report.{suffix}") for suffix in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    holes = {"style": style, "script": script, "script-hash": f"sha256-{digest}"}
    holes["data"] = _json_for_html(_page_data(predictions, results))
    # All holes in one pass: what looks like a hole inside the data stays text.
    page = re.sub(r"\{\{([a-z-]+)\}\}", lambda hole: holes[hole[1]], page)
    with atomic_write(path) as file:
        file.write(page)


def word_edits(reference: str, hypothesis: str) -> str:
    """Return what turns ``reference`` into ``hypothesis``, aligned as jiwer aligns them: tokens joined by spaces.

    ``=3`` three words alike, ``~word`` the next word was heard as this one, ``-2`` the next two words were deleted,
    ``+word`` this word was inserted. Words alike at the end are left out, so a perfect hypothesis is the empty string.
    """
    if reference == hypothesis:
        return ""
    if not reference:
        return " ".join("+" + word for word in hypothesis.split())
    output = jiwer.process_words(reference, hypothesis)
    words = output.hypotheses[0]
    tokens = []
    for chunk in output.alignments[0]:
        heard = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            tokens.append(f"={len(heard)}")
        elif chunk.type == "delete":
            tokens.append(f"-{chunk.ref_end_idx - chunk.ref_start_idx}")
        else:
            tokens.extend(("~" if chunk.type == "substitute" else "+") + word for word in heard)
    if tokens and tokens[-1].startswith("="):
        tokens.pop()
    return " ".join(tokens)


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _page_data(predictions: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    """The page's data: names and ayat once each, and ``rows`` of [model, reciter, ayah, seconds, edits] by index."""
    models = _numbered(row["model"] for row in results["rows"])
    reciters = _numbered(row["reciter"] for row in results["rows"])
    ayat: dict[tuple[int, str, str], int] = {}
    rows = []
    for row in predictions:
        reference = row["reference"]
        edits = word_edits(reference, row["hypothesis"])
        counted = sum(int(row[kind]) for kind in ("substitutions", "deletions", "insertions"))
        if _errors(edits) != counted:
            raise ValueError(
                f"{row['model']}, {row['reciter']}, {row['sorah']}:{row['ayah']}: counted {counted} errors, "
                f"but the texts differ by {_errors(edits)}"
            )
        ayah = ayat.setdefault((int(row["sorah"] or 0), str(row["ayah"]), reference), len(ayat))
        seconds = round(float(row["duration"]), 1)
        rows.append([models[row["model"]], reciters[row["reciter"]], ayah, seconds, edits])
    return {
        "models": list(models),
        "reciters": list(reciters),
        "ayat": list(ayat),
        "rows": rows,
        "results": results["rows"],
        "skipped": results.get("skipped", []),
        "normalization": results.get("normalization"),
        "environment": results["environment"],
    }


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Each name once, in the order of its first appearance, with its place in it."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def _errors(edits: str) -> int:
    return sum(int(edit[1:]) if edit[0] == "-" else edit[0] != "=" for edit in edits.split())


def _json_for_html(data: Any) -> str:
    """``data`` as JSON that can stand inside a ``<script>`` element: nothing in it opens or closes a tag."""
    text = json.dumps(_without_nan(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _without_nan(data: Any) -> Any:
    """JSON has no NaN: None stands for a rate without words."""
    if isinstance(data, Mapping):
        return {name: _without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
