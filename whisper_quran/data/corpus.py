"""The corpus: recordings and their texts.

Two sources: a folder in the layout of EveryAyah and of the published dataset (``DATA/audio/<Reciter>/SSSAAA.mp3`` or
``DATA/<Reciter>/SSSAAA.mp3``, with ``DATA/metadata/ayah_text_clear.csv``), or a manifest for anything else. Nothing
is dropped silently: everything that cannot be used is returned as :class:`Skipped`, with the reason.
"""

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainingConfig
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError, did_you_mean
from .text import recited, without_basmala

AUDIO_EXTENSIONS = frozenset(
    ".mp3 .wav .flac .ogg .oga .opus .m4a .m4b .mp4 .aac .wma .webm .aif .aiff .au .amr .3gp .mka".split()
)
EXPERIMENT_2A_TRAIN = (
    "Abdul_Basit_Murattal_192kbps",
    "Hudhaify_64kbps",
    "Husary_128kbps",
    "Mohammad_al_Tablaway_128kbps",
    "Muhammad_Jibreel_64kbps",
    "Ghamadi_40kbps",
)
EXPERIMENT_2A_VALID = ("Minshawy_Murattal_128kbps", "Yasser_Ad-Dussary_128kbps")
_AYAH_NAME = re.compile(r"([0-9]{3})([0-9]{3})")
_SURAH_NAME = re.compile(r"[0-9]{1,3}")
_SEPARATED_NAME = re.compile(r"[a-z]?([0-9]{1,3})[^0-9]{1,3}([0-9]{1,3})", re.IGNORECASE)
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
_MISSING = {"nan", "<na>", "#n/a", "null"}  # as programs write missing values
_ARCHIVES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar".split())
# Other tools' names of columns, by ours.
_OTHER_NAMES = {
    "audio": "file_name filename file path audio_path audio_filepath audio_file wav wav_path clip",
    "text": "transcription transcript sentence normalized_text label ayah_text",
    "sorah": "surah sura sura_number surah_number chapter",
    "ayah": "aya verse ayah_number aya_number verse_number",
}
# Columns that make a row a part of a recording.
_PART = re.compile(r"(start|begin|end|stop|offset|duration)([ _-]?(time|s|sec|seconds|ms))?")


@dataclass(frozen=True)
class Ayah:
    """One recording and its text, identified by ``surah`` and ``number``.

    A recording from a manifest has no surah, and its number counts the rows of its reciter.
    """

    reciter: str
    audio: Path
    text: str
    surah: int | None = None
    number: int = 0


@dataclass(frozen=True)
class Skipped:
    """Something left out: the file (or place in a file), and why; both :func:`printable`."""

    file: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", printable(self.file))
        object.__setattr__(self, "reason", printable(self.reason))


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
            UserError: a reciter is not there (the message lists those that are, to be named with ``option``).
        """
        ayat, skipped = [], []
        for reciter in dict.fromkeys(printable(name) for name in reciters):
            if reciter not in self.reciters:
                raise UserError(self._unknown(reciter, option))
            recitations = self.reciters[reciter]
            if isinstance(recitations, Path):
                found, left_out = _scan(recitations, reciter, self.texts, self.surahs)
                ayat += found
                skipped += left_out
            else:
                ayat += recitations
        return ayat, skipped

    def surahs_of(self, reciter: str) -> str:
        """Return the surahs that have audio, as ranges: ``"1, 78:114"``."""
        recitations = self.reciters[printable(reciter)]
        numbers = (
            {key[0] for file in recitations.iterdir() if (key := ayah_of(file))}
            if isinstance(recitations, Path)
            else set()
        )
        starts = [n for n in sorted(numbers) if n - 1 not in numbers]
        ends = [n for n in sorted(numbers) if n + 1 not in numbers]
        return ", ".join(f"{a}:{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True)) or "none"

    def _unknown(self, reciter: str, option: str) -> str:
        names = [name for name in re.split(r"[,;\s]+", reciter) if name]
        if len(names) > 1 and any(printable(name) in self.reciters for name in names):
            return f"no reciter {reciter} in {self.source}: separate names by spaces: {option} {' '.join(names)}"
        there = list(self.reciters)
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        return (
            f"no reciter {reciter} in {self.source}: {did_you_mean(reciter, there)}"
            f"there are {', '.join(there[:20])}{more}: name some with {option}"
        )


def open_corpus(
    data: Path,
    text: Path | None = None,
    manifest: Path | None = None,
    surahs: str | None = None,
    log: Log = no_log,
) -> Corpus:
    """Find the reciters and read the text, in the folder ``data`` or, if given, in ``manifest``.

    What is changed in the texts, and what should be known about them, is logged.

    Raises:
        UserError: the folder, the text or the manifest is missing, or cannot be used; or ``surahs`` is no range.
    """
    if manifest is not None:
        if surahs is not None:
            raise UserError("--surahs does not apply to a --manifest: leave out one of them")
        return _open_manifest(manifest, log)
    chosen = parse_surahs(surahs)
    try:
        if not data.is_dir():
            raise UserError(f"--data {data}: {_no_folder(data)}")
        reciters = find_reciters(data)
        if not reciters:
            raise UserError(f"no recitations in {data}: {_no_recitations(data)}")
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from None
    if text is None and not default_text(data).exists() and default_text(data.parent).is_file():
        raise UserError(f"{data} has no text, but the folder it is in has: give --data {data.parent}")
    texts, skipped = read_text(text or default_text(data), log)
    return Corpus(data, dict(reciters), texts, chosen, skipped)


def _no_folder(data: Path) -> str:
    """Return what to do about a ``data`` that is no folder."""
    if data.suffix.lower() in _ARCHIVES:
        return "is an archive: unpack it, and give the folder that holds audio/<Reciter>/SSSAAA.mp3"
    if data.exists():
        return "is a file: give a folder that holds audio/<Reciter>/SSSAAA.mp3, or a table of recordings as --manifest"
    return "no folder of that name: give one that holds audio/<Reciter>/SSSAAA.mp3"


def _no_recitations(data: Path) -> str:
    """Return what to do about a folder without a reciter's folder of audio files SSSAAA."""
    if any(map(ayah_of, data.iterdir())):
        parent = data.absolute().parent
        return f"it holds the recordings themselves: give --data {parent.parent if parent.name == 'audio' else parent}"
    for folder in (data / "audio", data, *data.glob("audio/[!.]*"), *data.glob("[!.]*")):
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                if is_audio(file):
                    return f"{file} is {_misnamed(file)}"
                if file.suffix.lower() in _ARCHIVES:
                    return f"{file} is an archive: unpack it"
    return "expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3"


def default_text(data: Path) -> Path:
    """Return the path of the text in a folder of recitations."""
    return data / "metadata" / "ayah_text_clear.csv"


def select_ayat(config: TrainingConfig, log: Log = no_log) -> tuple[list[Ayah], list[Ayah], list[Skipped]]:
    """Return the ayat to train on, those to validate on, and the files that were left out; no audio is opened.

    The reciters are by default Experiment 2A's or, to train on, all others of a manifest.

    Raises:
        UserError: the corpus cannot be used, a reciter is not in it, or no ayah of a split has both audio and text.
    """
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs, log)
    manifest = config.manifest is not None
    valid = config.valid_reciters
    if valid is None:
        valid = () if manifest else EXPERIMENT_2A_VALID
    validating = {printable(reciter) for reciter in valid}
    train = config.train_reciters
    if train is None:
        train = tuple(each for each in corpus.reciters if each not in validating) if manifest else EXPERIMENT_2A_TRAIN
    if not train:
        raise UserError(f"no reciter to train on: name some of {', '.join(corpus.reciters)} with --train-reciters")
    for reciter in sorted(validating.intersection(map(printable, train))):
        log(f"warning    {reciter} is in both splits: its validation WER says nothing about a new reciter")
    train_ayat, skipped = corpus.select(train, "--train-reciters")
    valid_ayat, also_skipped = corpus.select(valid, "--valid-reciters")
    skipped = list(dict.fromkeys([*corpus.skipped, *skipped, *also_skipped]))
    for purpose, reciters, ayat in (("train", train, train_ayat), ("validate", valid, valid_ayat)):
        there = {ayah.reciter for ayah in ayat}
        empty = [
            f"{reciter} has surahs {corpus.surahs_of(reciter)}"
            for reciter in reciters
            if printable(reciter) not in there
        ]
        if reciters and not ayat:
            raise UserError(f"nothing left to {purpose} on in {corpus.source} ({'; '.join(empty)}): {summary(skipped)}")
        for each in empty:
            log(f"warning    nothing to {purpose} on: {each}")
    return train_ayat, valid_ayat, skipped


def summary(skipped: Iterable[Skipped]) -> str:
    """Count the skipped files by reason, the most common first."""
    reasons = Counter(item.reason.split(":")[0] for item in skipped)
    return " · ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing was left out"


def parse_surahs(text: str | None) -> range:
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
    raise UserError(f"--surahs {text}: give a range A:B with 1 <= A <= B <= {len(SURAHS)}, such as 78:114")


def find_reciters(data: Path) -> dict[str, Path]:
    """Return the reciters' folders by name: those in ``data/audio``, or in ``data``, that hold audio named SSSAAA."""
    for parent in (data / "audio", data):
        if parent.is_dir():
            folders = sorted(each for each in parent.iterdir() if each.is_dir() and not each.name.startswith("."))
            found = {printable(folder.name): folder for folder in folders if any(map(ayah_of, folder.iterdir()))}
            if found:
                return found
    return {}


def is_audio(file: Path) -> bool:
    """Return True if a file's name is that of a recording. Hidden files are none: ``._001001.mp3`` is a Mac's own."""
    return file.suffix.lower() in AUDIO_EXTENSIONS and not file.name.startswith(".")


def ayah_of(file: Path) -> tuple[int, int] | None:
    """Return the surah and ayah in an audio file's name; None for any other file."""
    match = _AYAH_NAME.fullmatch(file.stem)
    return (int(match[1]), int(match[2])) if match and is_audio(file) else None


def _misnamed(file: Path) -> str:
    """Return why audio is no ayah by its name."""
    if _SURAH_NAME.fullmatch(file.stem):
        return "a whole surah: cut it into a file an ayah, named SSSAAA"
    if match := _SEPARATED_NAME.fullmatch(file.stem):
        return f"audio not named SSSAAA: rename it to {int(match[1]):03}{int(match[2]):03}{file.suffix}"
    return "audio not named SSSAAA"


def _scan(
    folder: Path, reciter: str, texts: dict[tuple[int, int], str], surahs: range
) -> tuple[list[Ayah], list[Skipped]]:
    """Pair the audio files of one reciter's folder with their texts."""
    ayat: dict[tuple[int, int], Ayah] = {}
    skipped = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.is_dir():
            continue
        key = ayah_of(file)
        if file.name.startswith("000"):
            reason = "not an ayah: one of EveryAyah's own files (000*)"
        elif key is None:
            reason = _misnamed(file) if is_audio(file) else "not audio"
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


def read_text(path: Path, log: Log = no_log) -> tuple[dict[tuple[int, int], str], list[Skipped]]:
    """Read a table with columns sorah, ayah, text into ``{(surah, ayah): text}``; see :func:`_read_table`.

    Texts are as :func:`.text.recited`. If most first ayat begin with the basmala (those of surahs 1 and 9 aside), it is
    taken from them, since their recordings begin without it.

    Rows that cannot be used (no numbers, a second text for an ayah) are returned as skipped. An empty text is kept, so
    that the ayah's audio is reported as lacking text.

    Raises:
        UserError: no such file, not UTF-8, a column is missing, or no row holds text.
    """
    texts: dict[tuple[int, int], str] = {}
    skipped: list[Skipped] = []
    for place, row in _read_table(path, ("sorah", "ayah", "text"), "--text", skipped, log):
        numbers = [_NUMBER.fullmatch(row[column]) for column in ("sorah", "ayah")]
        surah, ayah = (int(number[1]) if number else 0 for number in numbers)
        if not all(numbers):
            reason = "sorah and ayah are not numbers"
        elif not (1 <= surah <= len(SURAHS) and 1 <= ayah <= _LONGEST_SURAH):
            reason = f"there is no ayah {surah}:{ayah}"
        elif (surah, ayah) in texts:
            reason = "a second text for an ayah that has one already"
        else:
            texts[surah, ayah] = row["text"]
            continue
        skipped.append(Skipped(place, reason))
    texts = dict(zip(texts, _recited(texts.values(), path, log), strict=True))
    _strip_basmala(texts, path, log)
    if not any(texts.values()):
        cause = f" (line by line: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} holds no text{cause}: give a CSV with the columns sorah,ayah,text")
    return texts, skipped


def _recited(texts: Iterable[str], path: Path, log: Log) -> list[str]:
    """Return the recited part of each text, and log what was changed."""
    given = [unicodedata.normalize("NFC", " ".join(text.split())) for text in texts]
    found = [recited(text) for text in given]
    if changed := sum(before != after for before, after in zip(given, found, strict=True)):
        before, after = (Counter(sign for text in texts for sign in {*text} - {" "}) for texts in (given, found))
        signs = " ".join(f"U+{ord(sign):04X}" for sign, _ in (before - after).most_common(8))
        log(f"text       {changed:,} texts of {path} are read as they are recited: {signs} left out or written plainly")
    return found


def _strip_basmala(texts: dict[tuple[int, int], str], path: Path, log: Log) -> None:
    first = {key: text for key, text in texts.items() if text and key[1] == 1 and key[0] not in (1, 9)}
    stripped = {key: without_basmala(text) for key, text in first.items() if without_basmala(text) != text}
    if len(stripped) > len(first) / 2:
        texts |= stripped
        log(f"text       {len(stripped)} first ayat of {path} begin with the basmala: left out, as in the recordings")


def _open_manifest(path: Path, log: Log) -> Corpus:
    reciters: dict[str, list[Ayah]] = {}
    skipped: list[Skipped] = []
    table = list(_read_table(path, ("audio", "text"), "--manifest", skipped, log, optional=("reciter",)))
    texts = _recited([row["text"] for _, row in table], path, log)
    seen = set()
    rows = Counter[str]()
    listings: dict[Path, dict[str, str]] = {}
    for (place, row), text in zip(table, texts, strict=True):
        reciter = printable(row.get("reciter") or path.stem)
        rows[reciter] += 1
        audio, reason = _find_audio(path.parent, row["audio"], listings)
        if audio and not text:
            reason = "the text has no word" if row["text"] else "the text is empty"
        elif audio in seen:
            reason = f"named a second time: {audio}"
        elif audio:
            seen.add(audio)
            reciters.setdefault(reciter, []).append(Ayah(reciter, audio, text, number=rows[reciter]))
            continue
        skipped.append(Skipped(place, reason))
    if not reciters:
        cause = f" (line by line: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} names no recording that can be used{cause}: give rows of audio,text[,reciter]")
    return Corpus(path, dict(reciters), {}, range(0), skipped)


def _find_audio(folder: Path, name: str, listings: dict[Path, dict[str, str]]) -> tuple[Path | None, str]:
    """Return the file that a manifest names, in any Unicode form; or None, and why there is none.

    ``listings`` keeps the folders that were listed for names that are not found at once.
    """
    if not name:
        return None, "no audio is named"
    if "://" in name:
        return None, f"a URL, not a file: download {name}"
    path = folder / name
    try:
        similar = path if path.is_file() else _similar_file(folder, name.replace("\\", "/"), listings)
    except (OSError, ValueError):  # the name is too long or contains a NUL
        similar = None
    if similar is None:
        return None, f"no such file: {path}"
    if similar.name.startswith("."):
        return None, f"a hidden file, not a recording: {path}"
    if unicodedata.normalize("NFC", str(similar)) != unicodedata.normalize("NFC", str(path)):
        return None, f"no file is named exactly so: for {name}, write {os.path.relpath(similar, folder)}"
    return similar, ""


def _similar_file(folder: Path, name: str, listings: dict[Path, dict[str, str]]) -> Path | None:
    """Return the file of ``name``, in ``folder``, but for letter case and Unicode form; None if there is none."""
    path = folder
    for part in Path(name).parts:
        if not (path / part).exists():
            if path not in listings:
                listings[path] = {_folded(each): each for each in os.listdir(path)} if path.is_dir() else {}
            part = listings[path].get(_folded(part), part)
        path /= part
    return path if path.is_file() else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _read_table(
    path: Path,
    columns: Sequence[str],
    option: str,
    skipped: list[Skipped],
    log: Log,
    optional: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read a UTF-8 table separated by comma, tab or semicolon: (place, stripped cells by column) for each row.

    Each line is one row, so that a stray quote affects only its own line. A line with an open quote, with more or fewer
    fields than the header, or with a missing value is added to ``skipped``. Column names are case-insensitive; those
    of columns that are not used are logged.
    """
    lines = _read_lines(path, columns, option)
    candidates = [(d, [name.lower() for name in _fields(lines[0], d) or []]) for d in ",\t;"]
    separator, header = max(
        candidates, key=lambda candidate: len(candidate[1]) + 99 * len({*candidate[1]} & {*columns})
    )
    missing = [column for column in columns if column not in header]
    if missing:
        renamed = [f"{name} to {ours}" for ours in missing for name in header if name in _OTHER_NAMES[ours].split()]
        rename = f": rename {', '.join(renamed)}" if renamed else ""
        plural = "s" if len(missing) > 1 else ""
        raise UserError(
            f"{path} lacks the column{plural} {', '.join(missing)}: its first line must name {','.join(columns)}; "
            f"it reads {printable(lines[0][:80]) or 'nothing'!r}{rename}"
        )
    named = [name for name in header if name]  # a spreadsheet may write empty columns at the end
    if len({*named}) < len(named):
        raise UserError(f"{path} names a column twice in its first line ({', '.join(header)}): rename one of them")
    unused = [printable(name) for name in named if name not in (*columns, *optional)]
    if "audio" in columns and (parts := [name for name in unused if _PART.fullmatch(name)]):
        raise UserError(
            f"{path} has {', '.join(parts)}: rows that are parts of a recording are not read. Cut each part into a "
            "file of its own; or remove these columns, if every row is a whole file"
        )
    if unused:
        log(f"text       {path}: only {', '.join((*columns, *optional))} are read, not {', '.join(unused)}")
    for number, line in enumerate(lines[1:], start=2):
        place, fields = f"{path}, line {number}", _fields(line, separator)
        row = dict(zip(header, fields or [], strict=False))
        missing = [name for name in (*columns, *optional) if row.get(name, "").lower() in _MISSING]
        if fields is None:
            reason = "a quote is not closed in this line (a field must not go on in the next one)"
        elif not line.strip():
            continue
        elif len(fields) != len(header):
            reason = f"{len(fields)} fields, where the first line has {len(header)}"
        elif missing:
            reason = f"the {missing[0]} is {row[missing[0]]}, which stands for a missing value"
        else:
            yield place, row
            continue
        skipped.append(Skipped(place, reason))


def _fields(line: str, separator: str) -> list[str] | None:
    """Split a line of a table into its fields, stripped; None if a quote is not closed."""
    if line.count('"') % 2:
        return None
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return None


def _read_lines(path: Path, columns: Sequence[str], option: str) -> list[str]:
    """Read the lines (at least one) of a UTF-8 text, with or without BOM.

    Raises:
        UserError: it is missing, unreadable, audio, or not UTF-8.
    """
    names = ",".join(columns)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: {option} takes a CSV with the columns {names}, --data a folder")
        if not path.is_file():
            raise UserError(f"no file {path}: name a CSV with the columns {names} with {option}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    suffix = path.suffix.lower()
    if suffix in AUDIO_EXTENSIONS or content.startswith((b"ID3", b"RIFF", b"fLaC", b"OggS", b"\xff\xfb")):
        raise UserError(f"{path} is audio: {option} takes a CSV with the columns {names}")
    if suffix in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{path} is a spreadsheet: save it as CSV (UTF-8) with the columns {names}")
    if suffix in _ARCHIVES or content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        raise UserError(f"{path} is an archive: unpack it, and give the CSV with the columns {names} as {option}")
    if suffix in (".json", ".jsonl") or content.lstrip(b"\xef\xbb\xbf \n")[:1] in (b"{", b"["):
        raise UserError(f"{path} is JSON: {option} takes a CSV: write its values into one with the columns {names}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        raise UserError(f"{path} is not UTF-8 but UTF-16 or binary: save it as UTF-8 and try again")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): save it as UTF-8 and try again") from None
    # Not splitlines, which also splits at U+2028 and other characters that may be inside a text.
    return re.split(r"\r\n|\n|\r", text)
