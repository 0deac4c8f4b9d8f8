"""report.html: one file that shows where each model errs, word by word, and opens from disk.

It is made from the two other files of an evaluation, so it can be made again at any time:

    write_report("report.html", read_predictions("predictions.csv"), json.load(open("results.json")))

The page is a template (``report.html``, ``report.css`` and ``report.js`` beside this file) with a placeholder for the
data, as JSON: each reference once, however many models and reciters read it, and each hypothesis as its differences.
That is smaller than the text (a perfect ayah costs nothing), and it is the alignment whose errors were counted and
explained: the page aligns and classifies nothing itself. The Content-Security-Policy allows one script, by its SHA-256:
a browser runs no other and fetches nothing but the recordings, whatever a hypothesis or a name contains.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.files import atomic_write
from .listening import Recording
from .page_data import page_data
from .predictions import Key, Prediction


def write_report(
    path: str | os.PathLike[str],
    predictions: Iterable[Prediction],
    results: Mapping[str, Any],
    recordings: Mapping[Key, Recording] | None = None,
) -> None:
    """Write the report of one evaluation to ``path``.

    Args:
        predictions: ``sorah`` is blank if the recordings are not the Qur'an's, and ``ayah`` then names the recording.
        results: what results.json holds: ``rows`` and ``environment``; if present, also ``parameters`` (a count) in a
            row, ``normalization``, ``overall`` and ``differences`` (see chance.py), and ``skipped``, a list of
            ``{"file", "reason"}``. A rate without words is None.
        recordings: what there is to listen to, by the key of its predictions with a blank model.

    Raises:
        UserError: ``path`` cannot be written.
    """
    page, style, script = (_template(f"report.{suffix}") for suffix in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    values = {"style": style, "script": script, "script-hash": f"sha256-{digest}"}
    recordings = recordings or {}
    values["data"] = _json_for_html(page_data(predictions, results, recordings))
    sources = {
        "data:" if url.startswith("data:") else "'self' file:" for each in recordings.values() for url in each.addresses
    }
    values["audio-sources"] = " ".join(sorted(sources)) or "'none'"
    # All placeholders in one pass: what looks like one inside the data stays text.
    page = re.sub(r"\{\{([a-z-]+)\}\}", lambda placeholder: values[placeholder[1]], page)
    with atomic_write(path) as file:
        file.write(page)


def _template(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _json_for_html(data: Any) -> str:
    """``data`` as JSON that can stand inside a ``<script>`` element: nothing in it opens or closes a tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
