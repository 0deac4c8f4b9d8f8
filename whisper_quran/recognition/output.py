"""Recognised recordings as text, as subtitles, and as a page that plays them and marks the word being recited.

The page is built like the report of an evaluation (:mod:`..evaluation.pages`), with ``page.html``, ``page.css`` and
``page.js`` beside this file.
"""

import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config import RecognitionConfig
from ..data.audio import AudioError, decode_files
from ..data.ayat import SURAHS
from ..data.text import normalize
from ..evaluation import pages
from ..evaluation.error_kinds import KINDS, Step, explain_steps
from ..evaluation.pages import data_address, embedded_size, relative_address, short_names, short_parts
from ..runtime import __version__
from ..runtime.console import Log, format_duration, format_size, percent, printable
from ..runtime.files import atomic_write, make_folder, writing
from .recitations import Recitation, RecitedWord, Recognition

_CUE_SECONDS, _CUE_LINES, _CUE_WIDTH = 7.0, 2, 42  # of a subtitle, at most
_SOUND_ALIKE = ("marks", "spelling")  # kinds of error that do not change the sound


def describe(recognition: Recognition) -> str:
    """Return the lines printed for a recording."""
    lines = [f"{printable(recognition.file)} ({format_duration(recognition.seconds)})"]
    for each, again in zip(recognition.recitations, said_again(recognition.recitations), strict=True):
        place = f"surah {each.surah}, ayah {ayah_numbers(each)}{', again' * again}"
        lines.append(f"  سورة {SURAHS[each.surah - 1]}: {place}, confidence {percent(each.confidence)}")
        for ayah in each.ayat:
            lines.append(f"  {_clock(ayah.start)} – {_clock(ayah.end)}  {each.surah}:{ayah.ayah}  {ayah.text}")
        if differences := ", ".join(_difference(word) for word in each.words if word.verdict != "said" or word.added):
            lines.append(f"  heard differently: {differences}")
    if recognition.recitations:
        for other in recognition.others:
            lines.append(f"  {_clock(other.start)} – {_clock(other.end)}  not the Qur'an. Heard: {other.heard}")
    else:
        lines.append(f"  not the Qur'an. Heard: {recognition.heard or 'nothing'}")
    return "\n".join(lines)


def _difference(word: RecitedWord) -> str:
    """Write what was heard of a word: ``"الصمد (الصامت)"``, ``"يلد (left out)"``, ``"أحد (then الله)"``."""
    parts = [word.heard or "left out"] if word.verdict != "said" else []
    return f"{word.text} ({'; '.join(parts + [f'then {word.added}'] * bool(word.added))})"


def ayah_numbers(recitation: Recitation) -> str:
    """Return the numbers of its ayat: ``"1 to 4"``, or ``"255"``."""
    first, last = recitation.ayat[0].ayah, recitation.ayat[-1].ayah
    return f"{first} to {last}" if first < last else f"{first}"


def said_again(recitations: Sequence[Recitation]) -> Iterator[bool]:
    """Yield of each whether one of its words was said in a recitation before it."""
    said: set[tuple[int, int, int]] = set()
    for each in recitations:
        words = {(each.surah, a.ayah, word) for a in each.ayat for word in range(a.first_word, a.last_word + 1)}
        yield not words.isdisjoint(said)
        said |= words


def subtitles(recognition: Recognition) -> str:
    """Return the ayat of a recording in the SubRip format; an ayah has several cues if it is long."""
    blocks: list[str] = []
    for recitation in recognition.recitations:
        for ayah in recitation.ayat:
            place = f"({recitation.surah}:{ayah.ayah})"
            for words in _cues(ayah.words, place):
                start, end = words[0].start, min(words[-1].end, words[0].start + _CUE_SECONDS)
                times = " --> ".join(_clock(time, whole=True).replace(".", ",") for time in (start, end))
                blocks.append(f"{len(blocks) + 1}\n{times}\n" + "\n".join(_wrapped(words, place)) + "\n")
    return "\n".join(blocks)


def _cues(words: Sequence[RecitedWord], place: str) -> Iterator[list[RecitedWord]]:
    """Divide ``words`` into cues, with as many words as fit into the time and the lines of each."""
    cue: list[RecitedWord] = []
    for word in words:
        longer = [*cue, word]
        if cue and (word.end - cue[0].start > _CUE_SECONDS or len(_wrapped(longer, place)) > _CUE_LINES):
            yield cue
            longer = [word]
        cue = longer
    yield cue


def _wrapped(words: Sequence[RecitedWord], place: str) -> list[str]:
    return textwrap.wrap(" ".join([*(word.text for word in words), place]), _CUE_WIDTH)


def write_subtitles(recognition: Recognition, path: Path, log: Log = print) -> None:
    """Write :func:`subtitles` to ``path``, unless the file is there already; log either.

    Raises:
        UserError: it cannot be written.
    """
    name = printable(str(path))
    with writing(path):
        if path.exists():
            log(f"{name} is there already, and kept: remove it to have it written anew")
            return
        make_folder(path.parent)
        with atomic_write(path) as file:
            file.write(subtitles(recognition))
    log(f"subtitles: {name}")


def write_segments(path: Path, found: Sequence[Recognition], log: Log = print) -> None:
    """Write when each ayah, and each word that was heard, is said, as :mod:`..data.segments` reads it.

    Raises:
        UserError: the file cannot be written.
    """
    folder = make_folder(path.parent)
    recordings = [
        {
            "audio_url": os.path.relpath(each.file, folder).replace(os.sep, "/"),
            "duration": _milliseconds(each.seconds),
            "verse_timings": [
                {
                    "verse_key": f"{recitation.surah}:{ayah.ayah}",
                    "timestamp_from": _milliseconds(ayah.start),
                    "timestamp_to": _milliseconds(ayah.end),
                    "segments": [
                        [number, _milliseconds(word.start), _milliseconds(word.end)]
                        for number, word in enumerate(ayah.words, start=ayah.first_word)
                        if word.end > word.start
                    ],
                }
                for recitation in each.recitations
                for ayah in recitation.ayat
            ],
        }
        for each in found
    ]
    with writing(path), atomic_write(path) as file:
        json.dump({"whisper_quran": __version__, "audio_files": recordings}, file)  # the first key is the mark of ours
    log(f"times of ayat and words: {printable(str(path))}")


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, whole: bool = False) -> str:
    """Write a time as mm:ss.s, or ``whole`` as hh:mm:ss.mmm."""
    milliseconds = _milliseconds(seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    if whole:
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
    return f"{minutes:02}:{rest // 1000:02}.{rest % 1000 // 100}"


def write_page(config: RecognitionConfig, found: Sequence[Recognition], log: Log = print) -> None:
    """Write the page ``config.html`` of the recordings ``found``, with links to their audio, or the audio embedded.

    Raises:
        UserError: the page cannot be written, or the audio cannot be embedded.
    """
    assert config.html is not None
    folder = make_folder(config.html.parent)
    if config.embed_audio:
        size = format_size(embedded_size(sum(each.seconds for each in found)))
        log(f"putting the audio into {config.html}: {size}")
        decoded = decode_files([each.file for each in found], config.workers)
        # One that is silent, or no longer there, has none.
        addresses = ["" if isinstance(each, AudioError) else data_address(each.samples) for each in decoded]
    else:
        addresses = [relative_address(Path(each.file), folder) for each in found]
    pages.write_page(config.html, Path(__file__).with_name("page.html"), _data(config, found, addresses))
    log(f"to look into, and to listen to: {config.html}")


def _data(config: RecognitionConfig, found: Sequence[Recognition], addresses: Sequence[str]) -> dict[str, Any]:
    """Arrange the recordings for the page: a recitation has lines of [surah:ayah, words, parts (:func:`.short_parts`)],
    the first without a number if it is the preface."""
    names = [printable(each.file) for each in found]
    seconds = format_duration(sum(each.seconds for each in found))
    return {
        "title": "Which ayat are these?",
        "subtitle": [f"{len(found):,}\u00a0recording{'s' * (len(found) != 1)}", f"{seconds} of audio"],
        "recordings": [
            {
                **asdict(replace(each, file=name, recitations=())),
                "name": short,
                "duration": format_duration(each.seconds),
                "address": address,
                "recitations": [
                    {
                        "surah": recitation.surah,
                        "name": SURAHS[recitation.surah - 1],
                        "ayat": f"{ayah_numbers(recitation)}{', again' * again}",
                        "confidence": percent(recitation.confidence),
                        "lines": _lines(recitation),
                    }
                    for recitation, again in zip(each.recitations, said_again(each.recitations), strict=True)
                ],
            }
            for name, short, each, address in zip(names, short_names(names), found, addresses, strict=True)
        ],
        "kinds": list(KINDS.items()),
        "facts": {
            "model": printable(config.model),
            "text": printable(str(config.text or "the Tanzil Project's, https://tanzil.net")),
            "marked": f"what the model heard differently, if it is sure enough (--strictness {config.strictness}): a "
            "mistake of the reciter's, or its own. Not marked are other spellings of the same sound",
            "confidence": "how many of the letters were heard, less what was heard besides",
            "times": "from the attention that the model pays to the audio; press a word to hear it",
            "whisper_quran": __version__,
        },
    }


def _lines(recitation: Recitation) -> list[list[Any]]:
    """Cut a recitation, with what was heard differently, into lines: the preface, if there is one, and the ayat."""
    lines: list[tuple[str, Sequence[RecitedWord]]] = [("", recitation.preface)] if recitation.preface else []
    lines += [(f"{recitation.surah}:{ayah.ayah}", ayah.words) for ayah in recitation.ayat]
    drawn = []
    for number, words in lines:
        parts = explain_steps([step for word in words for step in _steps(word)])
        audible = [replace(each, kind="") if each.kind in _SOUND_ALIKE and each.expected else each for each in parts]
        drawn.append([number, [[word.text, word.start, word.end] for word in words], short_parts(audible)])
    return drawn


def _steps(word: RecitedWord) -> Iterator[Step]:
    written = normalize(word.text, "diacritics")
    yield written, written if word.verdict == "said" else word.heard or None
    yield from ((None, added) for added in word.added.split())
