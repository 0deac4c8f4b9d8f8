"""Ayat, as tables list them: the table of texts, and a manifest of recordings or of pieces of them."""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError
from .audio import Part, as_part
from .segments import counts_of_words
from .tables import NAMES, Skipped, parse_columns, read_table
from .text import plain, recited, without_basmala

SURAHS = (
    "الفاتحة،البقرة،آل عمران،النساء،المائدة،الأنعام،الأعراف،الأنفال،التوبة،يونس،هود،يوسف،"
    "الرعد،إبراهيم،الحجر،النحل،الإسراء،الكهف،مريم،طه،الأنبياء،الحج،المؤمنون،النور،الفرقان،"
    "الشعراء،النمل،القصص،العنكبوت،الروم،لقمان،السجدة،الأحزاب،سبأ،فاطر،يس،الصافات،ص،الزمر،"
    "غافر،فصلت،الشورى،الزخرف،الدخان،الجاثية،الأحقاف،محمد،الفتح،الحجرات،ق،الذاريات،الطور،"
    "النجم،القمر،الرحمن،الواقعة،الحديد،المجادلة،الحشر،الممتحنة،الصف،الجمعة،المنافقون،التغابن،"
    "الطلاق،التحريم،الملك،القلم،الحاقة،المعارج،نوح،الجن،المزمل،المدثر،القيامة،الإنسان،"
    "المرسلات،النبأ،النازعات،عبس،التكوير،الانفطار،المطففين،الانشقاق،البروج،الطارق،الأعلى،"
    "الغاشية،الفجر،البلد،الشمس،الليل،الضحى،الشرح،التين،العلق،القدر،البينة،الزلزلة،العاديات،"
    "القارعة،التكاثر،العصر،الهمزة،الفيل،قريش،الماعون،الكوثر،الكافرون،النصر،المسد،الإخلاص،"
    "الفلق،الناس"
).split("،")
_LONGEST_SURAH = 286  # ayat
_NUMBER = re.compile(r"(\d{1,3})(?:\.0+)?")
_SECONDS = re.compile(r"\d*\.?\d+([eE]-?\d+)?")
_SHORTEST = 0.1  # seconds of a piece
_OVERLAP = 0.02  # seconds that pieces may have in common: times are rounded


@dataclass(frozen=True)
class Ayah:
    """One recording and its text, identified by ``surah`` and ``number``.

    A row of a manifest need not have a surah: its number then counts the rows of its reciter. It may also be another
    ``take`` of an ayah that the reciter has in an earlier row.
    """

    reciter: str
    audio: Path | Part
    text: str
    surah: int | None = None
    number: int = 0
    take: int = 1

    @property
    def place(self) -> tuple[int, int]:
        """Its surah and number, or 0 and its row in a manifest."""
        return self.surah or 0, self.number


def read_text(
    path: Path, log: Log = no_log, spelling: str = "as-it-is"
) -> tuple[dict[tuple[int, int], str], list[Skipped]]:
    """Read a table of surah (or sorah), ayah and text into ``{(surah, ayah): text}``; see :func:`.tables.read_table`.

    Texts are as :func:`.text.recited`. If most first ayat begin with the basmala (those of surahs 1 and 9 aside), it is
    taken from them, since their recordings begin without it.

    Rows that cannot be used are returned as skipped. An empty text is kept, so that the ayah's audio is reported as
    lacking text.

    Raises:
        UserError: the table cannot be read, a column is missing, or no row holds text.
    """
    texts: dict[tuple[int, int], str] = {}
    table = read_table(path, ("surah", "ayah", "text"), ("surah", "ayah", "text"), "--text")
    skipped = list(table.skipped)
    if table.unused:
        log(f"text       {path}: {table}")
    for place, row in table.rows:
        key = _key(row)
        if key is None:
            reason = f"no ayah has this surah and ayah: {row['surah']},{row['ayah']}"
        elif key in texts:
            reason = "a second text for an ayah that has one already"
        else:
            texts[key] = row["text"]
            continue
        skipped.append(Skipped(place, reason))
    texts = dict(zip(texts, _recited(texts.values(), path, spelling, log), strict=True))
    if not any(texts.values()):
        cause = f" (line by line: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} holds no text{cause}: give a CSV with the columns sorah,ayah,text")
    first = {key: text for key, text in texts.items() if text and key[1] == 1 and key[0] not in (1, 9)}
    stripped = {key: without_basmala(text) for key, text in first.items() if without_basmala(text) != text}
    if len(stripped) > len(first) / 2:
        texts |= stripped
        log(f"text       {len(stripped)} first ayat of {path} begin with the basmala: left out, as in the recordings")
    return texts, skipped


def _recited(texts: Iterable[str], path: Path, spelling: str, log: Log) -> list[str]:
    """Return the recited part of each text in this spelling, and log how many were changed."""
    given = [unicodedata.normalize("NFC", " ".join(text.split())) for text in texts]
    found = [recited(text) for text in given]
    if changed := sum(before != after for before, after in zip(given, found, strict=True)):
        log(f"text       {changed:,} texts of {path} are read without signs that are not recited")
    if spelling == "as-it-is":
        return found
    spelled = [plain(text) for text in found]
    if changed := sum(before != after for before, after in zip(found, spelled, strict=True)):
        log(f"text       {changed:,} texts of {path} are put into plain spelling, without diacritics")
    return spelled


def _key(row: dict[str, Any]) -> tuple[int, int] | None:
    """Return the surah and ayah of a row of a table; None if there is no such ayah."""
    numbers = [_NUMBER.fullmatch(row.get(column, "")) for column in ("surah", "ayah")]
    surah, ayah = (int(number[1]) if number else 0 for number in numbers)
    return (surah, ayah) if 1 <= surah <= len(SURAHS) and 1 <= ayah <= _LONGEST_SURAH else None


def read_manifest(
    path: Path, text: Path, surahs: range | None, columns: str | None, spelling: str, log: Log
) -> tuple[dict[str, list[Ayah]], list[Skipped]]:
    """Read the tables of a manifest: the ayat of each reciter, and what was left out.

    Rows of a surah and ayah without a text get it from ``text``.

    Raises:
        UserError: a table cannot be read or lacks columns, or no row can be used.
    """
    named = parse_columns(columns)
    tables = [read_table(file, tuple(NAMES), ("audio",), "--manifest", named) for file in _tables_in(path)]
    for line in dict.fromkeys(map(str, tables)):
        log(f"manifest   {path}{f' ({len(tables)} tables)' if len(tables) > 1 else ''}: {line}")
    if not any("reciter" in table.columns for table in tables):
        log(f"manifest   no reciter is named: all rows are one voice, {printable(path.stem)}")
    for table in tables:
        if not {"surah", "ayah"} <= table.columns.keys() and (surahs or "text" not in table.columns):
            what = "surah and ayah, for --surahs" if surahs else f"text ({', '.join(NAMES['text'])}), or surah and ayah"
            raise UserError(f"{table.path} lacks columns of {what}")
    rows = [(table.path.parent, *row) for table in tables for row in table.rows]
    lacks_text = any("text" not in row and _key(row) for _, _, row in rows)
    quran, skipped = read_text(text, log, spelling) if lacks_text else ({}, [])
    skipped += [item for table in tables for item in table.skipped]
    texts = _recited([_text_of(row, quran) for _, _, row in rows], path, spelling, log)
    numbers, takes = Counter[str](), Counter[tuple[str, tuple[int, int] | None]]()
    found = []
    for (folder, place, row), words in zip(rows, texts, strict=True):
        key, reciter = _key(row), printable(row.get("reciter") or path.stem)
        numbers[reciter] += 1
        takes[reciter, key] += 1
        audio, reason = _find_recording(folder, row)
        if surahs and key and key[0] not in surahs:
            continue
        if key is None and (surahs or ("text" not in row and not words)):
            reason = f"no ayah has this surah and ayah: {row['surah']},{row['ayah']}"
        elif audio and not words:
            reason = "the text has no word" if row.get("text") else "there is no text"
        elif audio and row.get("words") and row["words"] not in map(str, counts_of_words(words)):
            reason = f"the times are of another number of words: {row['words']}, the text has {len(words.split())}"
        elif audio:
            number = (*key, takes[reciter, key]) if key else (None, numbers[reciter])
            found.append((place, Ayah(reciter, audio, words, *number)))
            continue
        skipped.append(Skipped(place, reason))
    ayat, overlapping = _without_overlaps(found)
    skipped += overlapping
    if not ayat:
        cause = f" (row by row: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} names no recording that can be used{cause}: give rows of audio,text[,reciter]")
    reciters: dict[str, list[Ayah]] = {}
    for ayah in ayat:
        reciters.setdefault(ayah.reciter, []).append(ayah)
    return reciters, skipped


def _tables_in(path: Path) -> list[Path]:
    """Return the tables of a manifest: the file itself, or those of a folder; raise a UserError if it has none."""
    if not path.is_dir():
        return [path]
    for pattern in ("metadata.csv", "metadata.jsonl", "**/*.parquet", "**/*.json"):
        found = sorted(path.glob(pattern))
        if pattern.endswith(".json"):  # data sets have others beside them
            found = [file for file in found if b'"segments"' in file.read_bytes()]
        if found:
            return found
    raise UserError(f"{path} holds no metadata.csv, metadata.jsonl, *.parquet or *.json: name a table with --manifest")


def _text_of(row: dict[str, Any], quran: dict[tuple[int, int], str]) -> str:
    """Return the text of a row: its own, or that of its ayah. Some tables have that in place of the ayah's number."""
    if "text" in row:
        return row["text"]
    return row["ayah"] if any(map(str.isalpha, row["ayah"])) else quran.get(_key(row) or (0, 0), "")


def _find_recording(folder: Path, row: dict[str, Any]) -> tuple[Path | Part | None, str]:
    """Return the recording, or the piece of one, that a row of a manifest names; or None, and why there is none."""
    audio = row["audio"]
    if not isinstance(audio, Part):
        audio, reason = _find_audio(folder, audio)
        if audio is None:
            return None, reason
    times = {}
    for name in [name for name in ("start", "end", "duration") if name in row]:
        if not _SECONDS.fullmatch(seconds := row[name].replace(",", ".")):
            return None, f"the {name} is not a time in seconds: {seconds or 'it is empty'}"
        times[name] = float(seconds)
    if not times:
        return audio, ""
    length = times.get("duration", math.inf)
    start = times.get("start", times.get("end", 0.0) - length if "duration" in times else 0.0)
    end = times.get("end", start + length)
    if not 0 <= start <= end - _SHORTEST:
        return None, f"no piece of {_SHORTEST} s or more: from {start} to {end} s"
    return replace(as_part(audio), start=round(start, 5), end=round(end, 5)), ""


def _without_overlaps(found: list[tuple[str, Ayah]]) -> tuple[list[Ayah], list[Skipped]]:
    """Leave out recordings, and pieces, that have audio in common with one that begins before."""
    ends: dict[Part, float] = {}
    overlapping = {}
    for place, ayah in sorted(found, key=lambda each: as_part(each[1].audio).start):
        part = as_part(ayah.audio)
        if part.start >= ends.get(part.whole, 0.0) - _OVERLAP:
            ends[part.whole] = part.end
        else:
            reason = "named a second time" if part == part.whole else "the piece overlaps with one before it"
            overlapping[place] = Skipped(place, f"{reason}: {part}")
    return [ayah for place, ayah in found if place not in overlapping], list(overlapping.values())


def _find_audio(folder: Path, name: str) -> tuple[Path | None, str]:
    """Return the file that a manifest names, in any Unicode form; or None, and why there is none."""
    if not name:
        return None, "no audio is named"
    if "://" in name:
        return None, f"a URL, not a file: download {name}"
    if Path(name).name.startswith("."):
        return None, f"a hidden file, not a recording: {name}"
    for written in (name, name.replace("\\", "/")):
        for form in (written, unicodedata.normalize("NFC", written), unicodedata.normalize("NFD", written)):
            if os.path.isfile(folder / form):
                return folder / form, ""
    return None, f"no such file: {folder / name} (names are those on disk, in the same case)"
