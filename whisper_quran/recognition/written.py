"""Recognised recordings as text: to read, and as subtitles."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.corpus import SURAHS
from ..runtime.console import Log, format_duration, percent, printable
from ..runtime.files import atomic_write
from .recitations import Recitation, RecitedWord, Recognition

_CUE_SECONDS, _CUE_LINES, _CUE_WIDTH = 7.0, 2, 42  # at most: what can be read


def describe(recognition: Recognition) -> str:
    """Return the lines printed for a recording."""
    lines = [f"{printable(recognition.file)} ({format_duration(recognition.seconds)})"]
    for each in recognition.recitations:
        place = f"surah {each.surah}, ayah {ayah_numbers(each)}"
        lines.append(f"  سورة {SURAHS[each.surah - 1]}: {place}, confidence {percent(each.confidence)}")
        for ayah in each.ayat:
            lines.append(f"  {_clock(ayah.start)} – {_clock(ayah.end)}  {each.surah}:{ayah.ayah}  {ayah.text}")
        if each.edits:
            lines.append(f"  heard:  {each.heard}")
    if recognition.recitations:
        for other in recognition.others:
            lines.append(f"  {_clock(other.start)} – {_clock(other.end)}  not the Qur'an. Heard: {other.heard}")
    else:
        lines.append(f"  not the Qur'an. Heard: {recognition.heard or 'nothing'}")
    return "\n".join(lines)


def ayah_numbers(recitation: Recitation) -> str:
    """Return the numbers of its ayat: ``"1 to 4"``, or ``"255"``."""
    first, last = recitation.ayat[0].ayah, recitation.ayat[-1].ayah
    return f"{first} to {last}" if first < last else f"{first}"


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
    """Write :func:`subtitles` to ``path``, and log that. An existing file is kept, and a line is logged.

    Raises:
        UserError: it cannot be written.
    """
    name = printable(str(path))
    if path.exists():
        log(f"{name} is there already: not written")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(subtitles(recognition))
    log(f"subtitles: {name}")


def _clock(seconds: float, whole: bool = False) -> str:
    """Write a time as mm:ss.s, or ``whole`` as hh:mm:ss.mmm."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    if whole:
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
    return f"{minutes:02}:{rest // 1000:02}.{rest % 1000 // 100}"
