"""Recordings of whole surahs, and when each ayah and word is said: JSON as others publish it, read as rows of a table.

- QUL: ``{"1:1": {"segments": [[word, start, end], …], "timestamp_from": 0, "timestamp_to": 4100}, …}``
- api.quran.com, and ``recognize --segments``: ``{"audio_files": [{"audio_url": …, "verse_timings": [{"verse_key":
  "1:1", "timestamp_from": …, "timestamp_to": …, "segments": …}, …]}, …]}``; or one ``audio_file``, or ``timestamps``
- quran-align: ``[{"surah": 1, "ayah": 1, "segments": [[first word from 0, one after the last, start, end], …]}, …]``

Times are milliseconds. The recordings are beside the file, or in its folder ``audio``: the one of ``audio_url``, or
``SSS.mp3``, or ``SSSAAA.mp3`` if an ayah has no times of its own.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .audio import is_audio

TIMED = "words timed"  # the column of how many words have a time
_MOST_WORDS = 200  # of an ayah; 2:282 has 129
_KEY = re.compile(r"\d{1,3}:\d{1,3}")
# Written as words of their own, but joined to the next word in Uthmani spelling, whose words others count.
_JOINED = {"يا", "ويا", "ها"}


def counts_of_words(text: str) -> set[int]:
    """Return how many words ``text`` may have: as it is written here, and in Uthmani spelling."""
    words = text.split()
    return {len(words), len(words) - sum(word in _JOINED for word in words)}


def rows_of_segments(document: Any, path: Path) -> list[tuple[str, dict[str, Any] | str]] | None:
    """Return the ayat in a ``document`` read from ``path``, each with its place: a row, or why it has none.

    None if the document has none of these shapes.
    """
    entries = list(_entries(document))
    if not entries:
        return None
    beside = [file for where in (path.parent / "audio", path.parent) if where.is_dir() for file in where.iterdir()]
    files = {file.stem: file for file in sorted(beside) if is_audio(file)}
    rows: list[tuple[str, dict[str, Any] | str]] = []
    for key, entry, url in entries:
        try:
            rows.append((key, _row(key, entry, url, files, path.parent)))
        except (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError):
            rows.append((key, "it has no times, or they are written in none of the known shapes"))
    return rows


def _entries(document: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield surah:ayah, what is known of the ayah, and the address of its recording, if there is one."""
    if isinstance(document, list):
        is_timed = [isinstance(each, dict) and {"surah", "ayah", "segments"} <= each.keys() for each in document]
        for number, (each, timed) in enumerate(zip(document, is_timed, strict=True), start=1) if any(is_timed) else ():
            if timed:
                yield f"{each['surah']}:{each['ayah']}", each, ""
            else:
                yield f"item {number}", {}, ""  # is listed among those without times
    elif isinstance(document, dict):
        recordings = document.get("audio_files", [document.get("audio_file", document)])
        for recording in recordings if isinstance(recordings, list) else ():
            if isinstance(recording, dict):
                timings = recording.get("verse_timings", recording.get("timestamps"))
                for each in timings if isinstance(timings, list) else ():
                    if isinstance(each, dict) and "verse_key" in each:
                        yield str(each["verse_key"]), each, str(recording.get("audio_url") or "")
        for key, entry in document.items():
            if _KEY.fullmatch(key) and isinstance(entry, dict) and "segments" in entry:
                yield key, entry, str(entry.get("audio_url") or "")


def _row(key: str, entry: dict[str, Any], url: str, files: dict[str, Path], folder: Path) -> dict[str, Any]:
    surah, ayah = map(int, key.split(":"))
    given = entry.get("segments") or []
    if not isinstance(given, list) or not all(isinstance(each, list) for each in given):
        raise TypeError
    segments = [[float(number) for number in each] for each in given if each]
    words = [(int(each[0]), int(each[1] if len(each) == 4 else each[0] + 1)) for each in segments]
    timed = {word for first, after in words for word in range(first, min(after, first + _MOST_WORDS))}
    row: dict[str, Any] = {"surah": surah, "ayah": ayah, TIMED: len(timed) or ""}
    audio, name = files.get(f"{surah:03}{ayah:03}"), f"{surah:03}{ayah:03}.mp3"
    if "timestamp_from" in entry or not any(len(stem) == 6 and stem.isdigit() for stem in files):
        named = folder / url if url and (folder / url).is_file() else None
        audio, name = named or files.get(f"{surah:03}", files.get(str(surah))), f"{surah:03}.mp3"
        spans = [each[-2:] for each in segments if len(each) > 2]
        start = entry["timestamp_from"] if "timestamp_from" in entry else min(span[0] for span in spans)
        end = entry["timestamp_to"] if "timestamp_from" in entry else max(span[1] for span in spans)
        row |= {"start": float(start) / 1000, "end": float(end) / 1000}
    path = Path(os.path.abspath(audio or folder / name))
    reciter = path.parent.parent if path.parent.name == "audio" else path.parent
    return row | {"audio": str(path), "reciter": reciter.name}
