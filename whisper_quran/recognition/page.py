"""The page of recognised recordings: each with its ayat; it plays them and marks the word being recited.

It is built like the report of an evaluation (:mod:`..evaluation.pages`), with ``page.html``, ``page.css`` and
``page.js`` beside this file.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config import RecognitionConfig
from ..data.audio import AudioError, decode_file
from ..data.corpus import SURAHS
from ..data.text import normalize
from ..evaluation.error_kinds import KINDS, Part, Step, explain_steps, steps_of
from ..evaluation.pages import data_address, embedded_size, relative_address, short_names, short_parts, write_page
from ..runtime import __version__
from ..runtime.console import Log, format_duration, format_size, percent, printable
from ..runtime.files import make_folder
from .recitations import Recitation, RecitedWord, Recognition
from .written import ayah_numbers

_SOUND_ALIKE = ("marks", "spelling")  # kinds of error that do not change the sound


def write_recitations(config: RecognitionConfig, found: Sequence[Recognition], log: Log = print) -> None:
    """Write the page ``config.html`` of the recordings ``found``, with links to their audio, or the audio embedded.

    Raises:
        UserError: the page cannot be written, or the audio cannot be embedded.
    """
    assert config.html is not None
    folder = make_folder(config.html.parent)
    if config.embed_audio:
        size = format_size(embedded_size(sum(each.seconds for each in found)))
        log(f"putting the audio into {config.html}: {size}")
        addresses = [_embedded(each.file) for each in found]
    else:
        addresses = [[relative_address(Path(each.file), folder)] for each in found]
    write_page(config.html, Path(__file__).with_name("page.html"), _data(config, found, addresses))
    log(f"to look into, and to listen to: {config.html}")


def _embedded(file: str) -> list[str]:
    try:
        return [data_address(decode_file(file).samples)]
    except AudioError:  # it is silent, or is no longer there
        return []


def _data(config: RecognitionConfig, found: Sequence[Recognition], addresses: Sequence[list[str]]) -> dict[str, Any]:
    """Arrange the recordings for the page: a recitation has lines of [surah:ayah, words, parts (:func:`.short_parts`)],
    the first without a number if it is the preface."""
    names = [printable(each.file) for each in found]
    seconds = format_duration(sum(each.seconds for each in found))
    return {
        "title": "Which ayat are these?",
        "subtitle": [f"{len(found):,}\u00a0recording{'s' * (len(found) != 1)}", f"{seconds} of audio"],
        "recordings": [
            {
                "file": name,
                "name": short,
                "duration": format_duration(each.seconds),
                "heard": each.heard,
                "addresses": urls,
                "damaged": each.damaged,
                "others": [[other.start, other.heard] for other in each.others],
                "recitations": [
                    {
                        "surah": recitation.surah,
                        "name": SURAHS[recitation.surah - 1],
                        "ayat": ayah_numbers(recitation),
                        "confidence": percent(recitation.confidence),
                        "lines": _lines(recitation),
                    }
                    for recitation in each.recitations
                ],
            }
            for name, short, each, urls in zip(names, short_names(names), found, addresses, strict=True)
        ],
        "kinds": list(KINDS.items()),
        "facts": {
            "model": printable(config.model),
            "text": printable(str(config.text)),
            "marked": "what the model heard differently: a mistake of the reciter's, or its own. Not marked are other "
            "spellings of the same sound",
            "confidence": "how many of the letters were heard, less what was heard besides",
            "times": "from the attention that the model pays to the audio; press a word to hear it",
            "whisper_quran": __version__,
        },
    }


def _lines(recitation: Recitation) -> list[list[Any]]:
    """Cut a recitation, with what was heard differently, into lines: the preface, if there is one, and the ayat."""
    lines: list[tuple[str, Sequence[RecitedWord]]] = [("", recitation.preface)] if recitation.preface else []
    lines += [(f"{recitation.surah}:{ayah.ayah}", ayah.words) for ayah in recitation.ayat]
    ends = list(accumulate(len(words) for _, words in lines))
    steps: list[list[Step]] = [[] for _ in lines]
    count = 0  # of the words of the text so far
    for step in steps_of([normalize(word.text, "diacritics") for word in recitation.words], recitation.edits):
        count += step[0] is not None
        steps[bisect_left(ends, count)].append(step)  # an added word is in the line of the one before it
    return [
        [number, [[word.text, word.start, word.end] for word in words], short_parts(_audible(explain_steps(edits)))]
        for (number, words), edits in zip(lines, steps, strict=True)
    ]


def _audible(parts: Sequence[Part]) -> list[Part]:
    """Mark the parts that sound as they are written as right."""
    return [replace(part, kind="") if part.kind in _SOUND_ALIKE and part.expected else part for part in parts]
