"""report.html: one file that shows where each model errs, word by word, and opens from disk.

It is made from the two other files of an evaluation, so it can be made again at any time:

    write_report("report.html", read_predictions("predictions.csv"), json.load(open("results.json")))

Its data (:mod:`.page_data`) has each reference once, however many models and reciters read it, and each hypothesis as
its differences. That is smaller than the text (a perfect ayah costs nothing), and it is the alignment whose errors were
counted and explained: the page aligns and classifies nothing itself.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .listening import Recording
from .page import write_page
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
        recordings: those that the page can play, by the key of their predictions with a blank model.

    Raises:
        UserError: ``path`` cannot be written.
    """
    recordings = recordings or {}
    data = page_data(predictions, results, recordings)
    write_page(path, Path(__file__).with_name("report.html"), data, recordings.values())
