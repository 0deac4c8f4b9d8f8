"""The corpus: recordings and their texts.

Two sources: a folder in the layout of EveryAyah and of the published dataset (``DATA/audio/<Reciter>/SSSAAA.mp3`` or
``DATA/<Reciter>/SSSAAA.mp3``, with ``DATA/metadata/ayah_text_clear.csv``), or a manifest for anything else: a table of
recordings, or of pieces of them. Nothing is dropped silently: everything that cannot be used is returned as
:class:`Skipped`, with the reason.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainingConfig
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError, did_you_mean
from .audio import is_audio
from .ayat import SURAHS, Ayah, read_manifest, read_text
from .tables import Skipped, summary

EXPERIMENT_2A_TRAIN = (
    "Abdul_Basit_Murattal_192kbps",
    "Hudhaify_64kbps",
    "Husary_128kbps",
    "Mohammad_al_Tablaway_128kbps",
    "Muhammad_Jibreel_64kbps",
    "Ghamadi_40kbps",
)
EXPERIMENT_2A_VALID = ("Minshawy_Murattal_128kbps", "Yasser_Ad-Dussary_128kbps")
_MISNAMED = "audio not named SSSAAA: rename it or, if it is more than an ayah, list its pieces in a --manifest"


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
                more += f" (rows left out: {summary(self.skipped)})" if self.skipped and not self.texts else ""
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
        wanted = chosen if surahs else None
        reciters, skipped = read_manifest(manifest, text or default_text(data), wanted, columns, spelling, log)
        return Corpus(manifest, dict(reciters), {}, range(0), skipped)
    if columns:
        raise UserError(f"--columns {columns} names columns of a table: give --manifest FILE too")
    try:
        folders = find_reciters(data)
        if not folders:
            raise UserError(_no_recitations(data))
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from None
    if text is None and not default_text(data).exists() and default_text(data.parent).is_file():
        raise UserError(f"{data} has no text, but the folder it is in has: give --data {data.parent}")
    texts, skipped = read_text(text or default_text(data), log, spelling)
    return Corpus(data, dict(folders), texts, chosen, skipped)


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
