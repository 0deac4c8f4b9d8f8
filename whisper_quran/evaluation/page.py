"""Pages of one file that open from disk: a template, its data and its script, and recordings that play.

A page is a frame (``page.html``, ``page.css`` and ``page.js`` beside this file) around a template of the same three
kinds of file. Its data is JSON in a ``<script>`` element, which the page's script draws. The Content-Security-Policy
allows that one script, by its SHA-256: a browser runs no other and fetches nothing but the recordings, whatever the
data contains.
"""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.files import atomic_write
from .listening import Recording

FRAME = Path(__file__).with_name("page.html")


def write_page(
    path: str | os.PathLike[str], template: Path, data: Mapping[str, Any], recordings: Iterable[Recording]
) -> None:
    """Write the page of ``template`` (its .html, beside which are its .css and .js) to ``path``.

    Args:
        data: what the template's script draws; "title" is the page's name.
        recordings: all that it plays.

    Raises:
        UserError: ``path`` cannot be written.
    """
    style, script = (
        "\n".join(file.with_suffix(suffix).read_text(encoding="utf-8") for file in (FRAME, template))
        for suffix in (".css", ".js")
    )
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    values = {"style": style, "script": script, "script-hash": f"sha256-{digest}"}
    values |= {"title": html.escape(data["title"]), "data": _json_for_html(data)}
    values["body"] = template.read_text(encoding="utf-8")
    sources = {"data:" if url.startswith("data:") else "'self' file:" for each in recordings for url in each.addresses}
    values["audio-sources"] = " ".join(sorted(sources)) or "'none'"
    # All placeholders in one pass: text in the data that looks like one is not replaced.
    page = re.sub(r"\{\{([a-z-]+)\}\}", lambda placeholder: values[placeholder[1]], FRAME.read_text(encoding="utf-8"))
    with atomic_write(path) as file:
        file.write(page)


def _json_for_html(data: Any) -> str:
    """Write ``data`` as JSON that is safe in a ``<script>`` element: nothing in it opens or closes a tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
