"""The corpus: recordings and their texts.

Two sources: a folder in the layout of EveryAyah and of the published dataset (``DATA/audio/<Reciter>/SSSAAA.mp3`` or
``DATA/<Reciter>/SSSAAA.mp3``, with ``DATA/metadata/ayah_text_clear.csv``), or a manifest for anything else: a table of
recordings, or of pieces of them. Nothing is dropped silently: everything that cannot be used is returned as
:class:`Skipped`, with the reason.
"""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import TrainingConfig
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError, did_you_mean
from .audio import Part, as_part, is_audio
from .segments import counts_of_words
from .tables import NAMES, Skipped, parse_columns, read_table, summary
from .text import plain, recited, without_basmala

EXPERIMENT_2A_TRAIN = (
    "Abdul_Basit_Murattal_192kbps",
    "Hudhaify_64kbps",
    "Husary_128kbps",
    "Mohammad_al_Tablaway_128kbps",
    "Muhammad_Jibreel_64kbps",
    "Ghamadi_40kbps",
)
EXPERIMENT_2A_VALID = ("Minshawy_Murattal_128kbps", "Yasser_Ad-Dussary_128kbps")
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
_MISNAMED = "audio not named SSSAAA: rename it or, if it is more than an ayah, list its pieces in a --manifest"
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


@dataclass(frozen=True)
class Corpus:
    """The available recitations. ``reciters`` maps each name to its folder, or to its ayat in a manifest."""

    source: Path
    reciters: dict[str, Path | list[Ayah]]
    texts: dict[tuple[int, int], str]
    surahs: range
    skipped: list[Skipped]

    def select(self, reciters: Iterable[str], option: str = "--reciters") -> tuple[list[Ayah], list[Skipped]]:
        """Return the ayat of ``reciters``, in the order of the mushaf, and the files that were left out.

        Raises:
            UserError: a reciter is not there, or has no ayah; ``option`` is the one that chooses them.
        """
        ayat, skipped = [], []
        for reciter in dict.fromkeys(printable(name) for name in reciters):
            if reciter not in self.reciters:
                there = list(self.reciters)
                more = f" and {len(there) - 20} more" if len(there) > 20 else ""
                raise UserError(
                    f"no reciter {reciter} in {self.source}: {did_you_mean(reciter, there)}there are "
                    f"{', '.join(there[:20])}{more}: name some with {option}, separated by spaces"
                )
            recitations = self.reciters[reciter]
            if not isinstance(recitations, Path):
                ayat += recitations
                continue
            found, left_out = _scan(recitations, reciter, self.texts, self.surahs)
            if not found:
                surahs = sorted({key[0] for key in map(ayah_of, recitations.iterdir()) if key})
                raise UserError(
                    f"no ayah of {reciter} in {self.source} ({summary(left_out)}): it has surahs "
                    f"{', '.join(map(str, surahs))}; choose another --surahs, or others with {option}"
                )
            ayat += found
            skipped += left_out
        return ayat, skipped


def open_corpus(
    data: Path,
    text: Path | None = None,
    manifest: Path | None = None,
    surahs: str | None = None,
    log: Log = no_log,
    columns: str | None = None,
    spelling: str = "as-it-is",
) -> Corpus:
    """Find the reciters and read the text, in the folder ``data`` or, if given, in ``manifest`` with its ``columns``.

    The texts are in the ``spelling`` that they have, or in "plain" spelling (:func:`.text.plain`).

    What is changed in the texts, and which columns are not read, is logged.

    Raises:
        UserError: the folder, the text or the manifest is missing, or cannot be used; or ``surahs`` is no range.
    """
    chosen = parse_surahs(surahs)
    if manifest is not None:
        return _open_manifest(manifest, text or default_text(data), chosen if surahs else None, columns, spelling, log)
    if columns:
        raise UserError(f"--columns {columns} names columns of a table: give --manifest FILE too")
    try:
        reciters = find_reciters(data)
        if not reciters:
            raise UserError(_no_recitations(data))
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from None
    if text is None and not default_text(data).exists() and default_text(data.parent).is_file():
        raise UserError(f"{data} has no text, but the folder it is in has: give --data {data.parent}")
    texts, skipped = read_text(text or default_text(data), log, spelling)
    return Corpus(data, dict(reciters), texts, chosen, skipped)


def _no_recitations(data: Path) -> str:
    """Return what to do about a path without a reciter's folder of audio files SSSAAA."""
    layout = "audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3"
    if not os.path.isdir(data):
        return f"no folder {data}: --data takes a folder that holds {layout}; unpack an archive"
    patterns = ("*", "[!.]*/*", "audio/[!.]*/*")
    file = next((file for pattern in patterns for file in sorted(data.glob(pattern)) if is_audio(file)), None)
    if file is None:
        return f"no recitations in {data}: expected {layout}"
    if ayah_of(file):
        above = data.absolute().parent
        return f"{data} is the folder of one reciter: give --data {above.parent if above.name == 'audio' else above}"
    return f"no recitations in {data}: {file} is {_MISNAMED}"


def default_text(data: Path) -> Path:
    """Return the path of the text in a folder of recitations."""
    return data / "metadata" / "ayah_text_clear.csv"


def select_ayat(config: TrainingConfig, log: Log = no_log) -> tuple[list[Ayah], list[Ayah], list[Skipped]]:
    """Return the ayat to train on, those to validate on, and the files that were left out; no audio is opened.

    The reciters are by default Experiment 2A's or, to train on, all others of a manifest; for surahs that are only
    validated on, they may be the same.

    Raises:
        UserError: the corpus cannot be used, a reciter has no ayah with both audio and text, or a split has none.
    """
    held_out = parse_surahs(config.valid_surahs, "--valid-surahs") if config.valid_surahs else range(0)
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs, log, config.columns, config.spelling)
    train, valid = config.train_reciters, config.valid_reciters
    if valid is None:
        valid = EXPERIMENT_2A_VALID if config.manifest is None and not held_out else ()
    validating = {printable(reciter) for reciter in valid}
    if train is None:
        train = EXPERIMENT_2A_TRAIN
        if config.manifest is not None:
            train = tuple(reciter for reciter in corpus.reciters if reciter not in validating)
    if not train:
        raise UserError(f"no reciter to train on: name some of {', '.join(corpus.reciters)} with --train-reciters")
    if held_out and not valid:
        valid = train
    for reciter in sorted(validating.intersection(map(printable, train))) if not held_out else ():
        log(f"warning    {reciter} is in both splits: its validation WER says nothing about a new reciter")
    train_ayat, skipped = corpus.select(train, "--train-reciters")
    valid_ayat, also_skipped = corpus.select(valid, "--valid-reciters")
    if held_out:
        if any(ayah.surah is None for ayah in (*train_ayat, *valid_ayat)):
            raise UserError(f"--valid-surahs needs columns of surah and ayah, with numbers: see {corpus.source}")
        train_ayat = [ayah for ayah in train_ayat if ayah.surah not in held_out]
        valid_ayat = [ayah for ayah in valid_ayat if ayah.surah in held_out]
        if not train_ayat or not valid_ayat:
            purpose = "validate" if train_ayat else "train"
            raise UserError(f"--valid-surahs {config.valid_surahs} leaves no ayah to {purpose} on: choose other surahs")
    return train_ayat, valid_ayat, list(dict.fromkeys([*corpus.skipped, *skipped, *also_skipped]))


def parse_surahs(text: str | None, option: str = "--surahs") -> range:
    """Parse a range of surahs: ``"2:4"`` is 2, 3 and 4, ``"2"`` is 2, and None is all.

    Raises:
        UserError: not such a range, or outside 1 to 114.
    """
    if text is None:
        return range(1, len(SURAHS) + 1)
    match = re.fullmatch(r"([0-9]{1,3})(?::([0-9]{1,3}))?", text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= len(SURAHS):
            return range(first, last + 1)
    raise UserError(f"{option} {text}: give a range A:B with 1 <= A <= B <= {len(SURAHS)}, such as 78:114")


def find_reciters(data: Path) -> dict[str, Path]:
    """Return the reciters' folders by name: those in ``data/audio``, or in ``data``, that hold audio named SSSAAA."""
    for parent in (data / "audio", data):
        if os.path.isdir(parent):
            folders = sorted(each for each in parent.iterdir() if each.is_dir() and not each.name.startswith("."))
            found = {printable(folder.name): folder for folder in folders if any(map(ayah_of, folder.iterdir()))}
            if found:
                return found
    return {}


def ayah_of(file: Path) -> tuple[int, int] | None:
    """Return the surah and ayah in an audio file's name; None for any other file."""
    is_named = re.fullmatch("[0-9]{6}", file.stem) and is_audio(file)
    return (int(file.stem[:3]), int(file.stem[3:])) if is_named else None


def _scan(
    folder: Path, reciter: str, texts: dict[tuple[int, int], str], surahs: range
) -> tuple[list[Ayah], list[Skipped]]:
    """Pair the audio files of one reciter's folder with their texts."""
    ayat: dict[tuple[int, int], Ayah] = {}
    skipped = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix == ".srt" or file.is_dir():  # recognition puts subtitles there
            continue
        key = ayah_of(file)
        if file.name.startswith("000"):
            reason = "not an ayah: one of EveryAyah's own files (000*)"
        elif key is None:
            reason = _MISNAMED if is_audio(file) else "not audio"
        elif key[0] not in surahs and key[0] <= len(SURAHS):
            continue
        elif key[1] == 0:
            reason = "not an ayah: a basmala (SSS000)"
        elif not texts.get(key):
            reason = "no text for this ayah"
        elif key in ayat:
            reason = "a second file for an ayah that is there already"
        else:
            ayat[key] = Ayah(reciter, file, texts[key], *key)
            continue
        skipped.append(Skipped(str(file), reason))
    for surah, number in sorted(texts):
        if surah in surahs and (surah, number) not in ayat:
            skipped.append(Skipped(str(folder / f"{surah:03}{number:03}.*"), "text without audio"))
    return list(ayat.values()), skipped


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


def _open_manifest(
    path: Path, text: Path, surahs: range | None, columns: str | None, spelling: str, log: Log
) -> Corpus:
    """Read the tables of a manifest. Rows of a surah and ayah without a text get it from ``text``."""
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
    return Corpus(path, dict(reciters), {}, range(0), skipped)


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
    for name in {"start", "end", "duration"} & row.keys():
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
