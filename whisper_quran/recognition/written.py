"""Recognised recordings as text: to read, and as subtitles."""

from pathlib import Path

from ..data.corpus import SURAHS
from ..runtime.console import Log, format_duration, percent, printable
from ..runtime.files import atomic_write
from .recitations import Recitation, Recognition


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
    """Return the ayat of a recording in the SubRip format."""
    ayat = [(each.surah, ayah) for each in recognition.recitations for ayah in each.ayat]
    blocks = []
    for number, (surah, ayah) in enumerate(ayat, 1):
        times = " --> ".join(_clock(time, whole=True).replace(".", ",") for time in (ayah.start, ayah.end))
        blocks.append(f"{number}\n{times}\n{ayah.text} ({surah}:{ayah.ayah})\n")
    return "\n".join(blocks)


def write_subtitles(recognition: Recognition, log: Log = print) -> None:
    """Write :func:`subtitles` beside the recording, as NAME.srt. An existing file is kept, and a line is logged."""
    path = Path(recognition.file).with_suffix(".srt")
    if path.exists():
        log(f"{printable(str(path))} is there already: not written")
        return
    with atomic_write(path) as file:
        file.write(subtitles(recognition))


def _clock(seconds: float, whole: bool = False) -> str:
    """Write a time as mm:ss.s, or ``whole`` as hh:mm:ss.mmm."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    if whole:
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
    return f"{minutes:02}:{rest // 1000:02}.{rest % 1000 // 100}"
