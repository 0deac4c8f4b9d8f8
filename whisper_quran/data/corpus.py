"""The corpus: recordings and their texts.

Two sources: a folder in the layout of EveryAyah and of the published dataset (``DATA/audio/<Reciter>/SSSAAA.mp3`` or
``DATA/<Reciter>/SSSAAA.mp3``, with ``DATA/metadata/ayah_text_clear.csv``), or a manifest for anything else. Nothing
is dropped silently: everything that cannot be used is returned as :class:`Skipped`, with the reason.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainingConfig
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError, did_you_mean
from .tables import AUDIO_EXTENSIONS, Skipped, read_table, summary
from .text import recited, without_basmala

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
) -> Corpus:
    """Find the reciters and read the text, in the folder ``data`` or, if given, in ``manifest``.

    What is changed in the texts, and which columns are not read, is logged.

    Raises:
        UserError: the folder, the text or the manifest is missing, or cannot be used; or ``surahs`` is no range.
    """
    if manifest is not None:
        if surahs is not None:
            raise UserError("--surahs does not apply to a --manifest: leave out one of them")
        return _open_manifest(manifest, log)
    chosen = parse_surahs(surahs)
    try:
        reciters = find_reciters(data)
        if not reciters:
            raise UserError(_no_recitations(data))
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from None
    if text is None and not default_text(data).exists() and default_text(data.parent).is_file():
        raise UserError(f"{data} has no text, but the folder it is in has: give --data {data.parent}")
    texts, skipped = read_text(text or default_text(data), log)
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
    return f"no recitations in {data}: {file} is {_misnamed(file)}"


def default_text(data: Path) -> Path:
    """Return the path of the text in a folder of recitations."""
    return data / "metadata" / "ayah_text_clear.csv"


def select_ayat(config: TrainingConfig, log: Log = no_log) -> tuple[list[Ayah], list[Ayah], list[Skipped]]:
    """Return the ayat to train on, those to validate on, and the files that were left out; no audio is opened.

    The reciters are by default Experiment 2A's or, to train on, all others of a manifest.

    Raises:
        UserError: the corpus cannot be used, or a reciter has no ayah with both audio and text.
    """
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs, log)
    train, valid = config.train_reciters, config.valid_reciters
    if valid is None:
        valid = EXPERIMENT_2A_VALID if config.manifest is None else ()
    validating = {printable(reciter) for reciter in valid}
    if train is None:
        train = EXPERIMENT_2A_TRAIN
        if config.manifest is not None:
            train = tuple(reciter for reciter in corpus.reciters if reciter not in validating)
    if not train:
        raise UserError(f"no reciter to train on: name some of {', '.join(corpus.reciters)} with --train-reciters")
    for reciter in sorted(validating.intersection(map(printable, train))):
        log(f"warning    {reciter} is in both splits: its validation WER says nothing about a new reciter")
    train_ayat, skipped = corpus.select(train, "--train-reciters")
    valid_ayat, also_skipped = corpus.select(valid, "--valid-reciters")
    return train_ayat, valid_ayat, list(dict.fromkeys([*corpus.skipped, *skipped, *also_skipped]))


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
        if os.path.isdir(parent):
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
    is_named = re.fullmatch("[0-9]{6}", file.stem) and is_audio(file)
    return (int(file.stem[:3]), int(file.stem[3:])) if is_named else None


def _misnamed(file: Path) -> str:
    """Return why audio is no ayah by its name."""
    numbers = re.findall("[0-9]+", file.stem)
    if file.stem in numbers and len(file.stem) <= 3:
        return "a whole surah: cut it into a file an ayah, named SSSAAA"
    if len(numbers) == 2 and max(map(len, numbers)) <= 3:
        return f"audio not named SSSAAA: rename it to {int(numbers[0]):03}{int(numbers[1]):03}{file.suffix}"
    return "audio not named SSSAAA"


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
    """Read a table with columns sorah, ayah, text into ``{(surah, ayah): text}``; see :func:`.tables.read_table`.

    Texts are as :func:`.text.recited`. If most first ayat begin with the basmala (those of surahs 1 and 9 aside), it is
    taken from them, since their recordings begin without it.

    Rows that cannot be used are returned as skipped. An empty text is kept, so that the ayah's audio is reported as
    lacking text.

    Raises:
        UserError: no such file, not UTF-8, a column is missing, or no row holds text.
    """
    texts: dict[tuple[int, int], str] = {}
    rows, skipped = read_table(path, ("sorah", "ayah", "text"), (), "--text", log)
    for place, row in rows:
        numbers = [_NUMBER.fullmatch(row[column]) for column in ("sorah", "ayah")]
        surah, ayah = (int(number[1]) if number else 0 for number in numbers)
        if not (1 <= surah <= len(SURAHS) and 1 <= ayah <= _LONGEST_SURAH):
            reason = f"no ayah has this sorah and ayah: {row['sorah']},{row['ayah']}"
        elif (surah, ayah) in texts:
            reason = "a second text for an ayah that has one already"
        else:
            texts[surah, ayah] = row["text"]
            continue
        skipped.append(Skipped(place, reason))
    texts = dict(zip(texts, _recited(texts.values(), path, log), strict=True))
    if not any(texts.values()):
        cause = f" (line by line: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} holds no text{cause}: give a CSV with the columns sorah,ayah,text")
    first = {key: text for key, text in texts.items() if text and key[1] == 1 and key[0] not in (1, 9)}
    stripped = {key: without_basmala(text) for key, text in first.items() if without_basmala(text) != text}
    if len(stripped) > len(first) / 2:
        texts |= stripped
        log(f"text       {len(stripped)} first ayat of {path} begin with the basmala: left out, as in the recordings")
    return texts, skipped


def _recited(texts: Iterable[str], path: Path, log: Log) -> list[str]:
    """Return the recited part of each text, and log how many were changed."""
    given = [unicodedata.normalize("NFC", " ".join(text.split())) for text in texts]
    found = [recited(text) for text in given]
    if changed := sum(before != after for before, after in zip(given, found, strict=True)):
        log(f"text       {changed:,} texts of {path} are read without signs that are not recited")
    return found


def _open_manifest(path: Path, log: Log) -> Corpus:
    reciters: dict[str, list[Ayah]] = {}
    table, skipped = read_table(path, ("audio", "text"), ("reciter",), "--manifest", log)
    texts = _recited([row["text"] for _, row in table], path, log)
    seen = set()
    rows = Counter[str]()
    for (place, row), text in zip(table, texts, strict=True):
        reciter = printable(row.get("reciter") or path.stem)
        rows[reciter] += 1
        audio, reason = _find_audio(path.parent, row["audio"])
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


def _find_audio(folder: Path, name: str) -> tuple[Path | None, str]:
    """Return the file that a manifest names, in any Unicode form; or None, and why there is none."""
    if not name:
        return None, "no audio is named"
    if "://" in name:
        return None, f"a URL, not a file: download {name}"
    if Path(name).name.startswith("."):
        return None, f"a hidden file, not a recording: {name}"
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        if os.path.isfile(folder / form):
            return folder / form, ""
    return None, f"no such file: {folder / name} (names are those on disk, in the same case and with /)"
