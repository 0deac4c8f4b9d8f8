"""Which recordings there are, and the text of each.

Two sources: a folder in the layout of EveryAyah and of the published dataset (``DATA/audio/<Reciter>/SSSAAA.mp3`` or
``DATA/<Reciter>/SSSAAA.mp3``, with ``DATA/metadata/ayah_text_clear.csv``), or a manifest for anything else. Nothing
is dropped in silence: whatever cannot be used comes back as :class:`Skipped`, with the reason.
"""

import csv
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import UserError

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
_SURAHS = 114


@dataclass(frozen=True)
class Ayah:
    """One recording and its text. ``surah`` and ``number`` are None where a manifest names the recording."""

    reciter: str
    audio: Path
    text: str
    surah: int | None = None
    number: int | None = None


@dataclass(frozen=True)
class Skipped:
    """Something left out: the file (or place in a file), and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """Where the recitations are. ``reciters`` maps each name to its folder, or to the ayat a manifest gives it."""

    source: Path
    reciters: dict[str, Path | list[Ayah]]
    texts: dict[tuple[int, int], str]
    surahs: range
    skipped: list[Skipped]

    def select(self, reciters: Iterable[str]) -> tuple[list[Ayah], list[Skipped]]:
        """Return the ayat of ``reciters``, in the order of the mushaf, and what had to be left out.

        Raises:
            UserError: a reciter is not there (the message lists those that are).
        """
        ayat, skipped = [], []
        for reciter in dict.fromkeys(reciters):
            if reciter not in self.reciters:
                raise UserError(self._unknown(reciter))
            place = self.reciters[reciter]
            if isinstance(place, Path):
                found, left_out = _scan(place, reciter, self.texts, self.surahs)
                ayat += found
                skipped += left_out
            else:
                ayat += place
        return ayat, skipped

    def _unknown(self, reciter: str) -> str:
        near = difflib.get_close_matches(reciter, self.reciters, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"no reciter {reciter} in {self.source}: {hint}there are {', '.join(self.reciters)}"


def open_corpus(
    data: Path, text: Path | None = None, manifest: Path | None = None, surahs: str | None = None
) -> Corpus:
    """Find the reciters and read the text: of the folder ``data``, or of ``manifest`` where one is given.

    Raises:
        UserError: the folder, the text or the manifest is missing, or cannot be used; or ``surahs`` is no range.
    """
    if manifest is not None:
        if surahs is not None:
            raise UserError("--surahs does not apply to a --manifest: leave out one of them")
        return _open_manifest(manifest)
    chosen = parse_surahs(surahs)
    if not data.is_dir():
        raise UserError(f"no folder {data}: point --data at a folder that holds audio/<Reciter>/SSSAAA.mp3")
    try:
        reciters = find_reciters(data)
    except PermissionError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from None
    if not reciters:
        raise UserError(f"no recitations in {data}: expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3")
    texts, skipped = read_text(text or data / "metadata" / "ayah_text_clear.csv")
    return Corpus(data, dict(reciters), texts, chosen, skipped)


def parse_surahs(text: str | None) -> range:
    """``"2:4"`` is surahs 2, 3 and 4; ``"2"`` is surah 2; None is all of them.

    Raises:
        UserError: not such a range, or outside 1 to 114.
    """
    if text is None:
        return range(1, _SURAHS + 1)
    match = re.fullmatch(r"([0-9]{1,3})(?::([0-9]{1,3}))?", text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= _SURAHS:
            return range(first, last + 1)
    raise UserError(f"--surahs {text}: give a range A:B with 1 <= A <= B <= {_SURAHS}, such as 78:114")


def find_reciters(data: Path) -> dict[str, Path]:
    """The reciters' folders, by name: those under ``data/audio``, or under ``data``, that hold audio named SSSAAA."""
    for parent in (data / "audio", data):
        if parent.is_dir():
            folders = sorted(folder for folder in parent.iterdir() if folder.is_dir())
            found = {f.name: f for f in folders if any(_ayah_of(file) for file in f.iterdir())}
            if found:
                return found
    return {}


def _ayah_of(file: Path) -> tuple[int, int] | None:
    """Surah and ayah that an audio file's name states; None for any other file."""
    match = _AYAH_NAME.fullmatch(file.stem)
    if match and file.suffix.lower() in AUDIO_EXTENSIONS:
        return int(match[1]), int(match[2])
    return None


def _scan(
    folder: Path, reciter: str, texts: dict[tuple[int, int], str], surahs: range
) -> tuple[list[Ayah], list[Skipped]]:
    """Pair the audio files of one reciter's folder with their texts."""
    ayat: dict[tuple[int, int], Ayah] = {}
    skipped = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.is_dir():
            continue
        key = _ayah_of(file)
        if file.name.startswith("000"):
            reason = "not an ayah: one of EveryAyah's own files (000*)"
        elif key is None:
            audio = file.suffix.lower() in AUDIO_EXTENSIONS
            reason = "audio not named SSSAAA" if audio else "not audio"
        elif key[0] not in surahs and key[0] <= _SURAHS:
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


def read_text(path: Path) -> tuple[dict[tuple[int, int], str], list[Skipped]]:
    """Read a CSV with columns sorah, ayah, text into ``{(surah, ayah): text}``.

    Rows that cannot be used (no numbers, a second text for an ayah) come back as skipped; an ayah whose text is empty
    is kept with its empty text, for the audio that then has none to be named.

    Raises:
        UserError: no such file, not UTF-8, a column is missing, or no row holds text.
    """
    texts: dict[tuple[int, int], str] = {}
    skipped = []
    for line, row in _read_csv(path, ("sorah", "ayah", "text"), "--text"):
        try:
            key = int(row["sorah"]), int(row["ayah"])
        except ValueError:
            skipped.append(Skipped(f"{path}, line {line}", "sorah and ayah are not numbers"))
            continue
        if key in texts:
            skipped.append(Skipped(f"{path}, line {line}", "a second text for an ayah that has one already"))
        else:
            texts[key] = row["text"].strip()
    if not any(texts.values()):
        raise UserError(f"{path} holds no text: give a CSV with the columns sorah,ayah,text")
    return texts, skipped


def _open_manifest(path: Path) -> Corpus:
    reciters: dict[str, list[Ayah]] = {}
    skipped = []
    seen = set()
    for line, row in _read_csv(path, ("audio", "text"), "--manifest"):
        place = f"{path}, line {line}"
        audio = path.parent / row["audio"].strip()
        if not row["audio"].strip():
            skipped.append(Skipped(place, "no audio is named"))
        elif not _is_file(audio):
            skipped.append(Skipped(place, f"no such file: {audio}"))
        elif not row["text"].strip():
            skipped.append(Skipped(place, "the text is empty"))
        elif audio in seen:
            skipped.append(Skipped(place, f"named a second time: {audio}"))
        else:
            seen.add(audio)
            reciter = (row.get("reciter") or "").strip() or path.stem
            reciters.setdefault(reciter, []).append(Ayah(reciter, audio, row["text"].strip()))
    if not reciters:
        cause = f" (line by line: {skipped[0].reason}, …)" if skipped else ""
        raise UserError(f"{path} names no recording that can be used{cause}: give rows of audio,text[,reciter]")
    return Corpus(path, dict(reciters), {}, range(0), skipped)


def _is_file(path: Path) -> bool:
    """Path.is_file, where what stands in a manifest may be too long for a file's name, or hold a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_csv(path: Path, columns: Sequence[str], name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a UTF-8 CSV, with or without BOM, that has at least ``columns``.

    ``name`` is the option that names the file, for the messages.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: name a CSV with the columns {','.join(columns)} with {name}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                header = ",".join(reader.fieldnames or ()) or "nothing"
                raise UserError(
                    f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
                    f"its first line must name {','.join(columns)}; it reads {header[:80]!r}"
                )
            for row in reader:
                yield reader.line_num, row
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8 and try again") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV that can be read ({error}): save it as UTF-8 CSV") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
