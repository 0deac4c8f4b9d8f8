"""Which ayah is this? Where in the Qur'an recordings are, when each ayah is said, and what was heard differently.

  python -m whisper_quran.recognize recording.mp3                    OpenAI's base, the text of data/metadata
  python -m whisper_quran.recognize folder --model runs/mine/best.pt --text ayah_text_clear.csv
  python -m whisper_quran.recognize lecture.m4a --json --srt

A recording may begin and end anywhere, and be of any length: it is cut at pauses, and the search follows the text from
piece to piece. What is printed as heard differently is what the model heard: a mistake of the reciter's, or its own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path

from .checkpoints.checkpoint import load_checkpoint
from .checkpoints.dims import tokenizer_for
from .checkpoints.names import check_model_source
from .config import RecognitionConfig
from .data.audio import SAMPLE_RATE, AudioError, decode_files
from .data.corpus import AUDIO_EXTENSIONS, SURAHS, read_text
from .data.text import normalize
from .decoding.long_audio import Heard, transcribe_clips
from .decoding.nearest import letters
from .decoding.quran import Quran
from .decoding.recognizer import Candidate, Recognizer, joined
from .decoding.word_times import alignment_heads
from .evaluation.word_errors import align
from .runtime.command_line import parse
from .runtime.console import Log, format_duration, percent, printable
from .runtime.device import choose_device, choose_precision
from .runtime.errors import UserError, run_command
from .runtime.files import atomic_write


@dataclass(frozen=True)
class RecitedAyah:
    """An ayah, or its words ``first_word`` to ``last_word`` (from 1), said from ``start`` to ``end`` seconds."""

    ayah: int
    first_word: int
    last_word: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Recitation:
    """Consecutive ayat of a surah, and what was ``heard`` of them.

    ``edits`` turn the text into it (:class:`.evaluation.word_errors.Alignment`); ``confidence`` is the share of the
    text's letters that were heard, 0 to 1.
    """

    surah: int
    ayat: tuple[RecitedAyah, ...]
    heard: str
    edits: str
    confidence: float

    @property
    def text(self) -> str:
        return " ".join(ayah.text for ayah in self.ayat)


@dataclass(frozen=True)
class Recognition:
    """A recording: its length, the text heard, and what was recited in it; nothing if it is not the Qur'an."""

    file: str
    seconds: float
    heard: str
    recitations: tuple[Recitation, ...]


def recognize(config: RecognitionConfig, log: Log = print) -> Iterator[Recognition]:
    """Recognise the recordings of ``config``, one after another; what cannot be decoded is logged and left out.

    Raises:
        UserError: a file, the text, the model or an option must be changed.
    """
    files = _files(config.files)
    if not config.text.is_file():
        get = "python -m whisper_quran.download"
        raise UserError(f"no text {config.text}: give the whole Qur'an with --text FILE, or get it by {get}")
    check_model_source(config.model)
    device, _ = choose_device(config.device)
    model = load_checkpoint(config.model, device)
    text = Quran(read_text(config.text)[0], tokenizer_for(model.dims, config.language))
    recognizer = Recognizer(text, device, alignment_heads(model))
    dtype = choose_precision(config.precision, device, model).dtype
    with closing(decode_files(files, config.workers)) as decoded:
        for file, audio in zip(files, decoded, strict=True):
            if isinstance(audio, AudioError):
                log(f"{printable(str(file))}: left out: {audio}")
                continue
            (transcript,) = transcribe_clips(
                model, [audio.samples], batch_size=config.batch_size, log=log, recognizer=recognizer, dtype=dtype,
                language=config.language, stop_loops=True,
            )  # fmt: skip
            found = tuple(_recitations(transcript.heard, recognizer, text))
            yield Recognition(printable(str(file)), len(audio.samples) / SAMPLE_RATE, transcript.text, found)


def _files(names: Sequence[str]) -> list[Path]:
    """Return the files, and the audio files in the folders, of ``names``."""
    files: list[Path] = []
    for path in map(Path, names):
        if not path.exists():
            raise UserError(f"no file or folder {path}: give recordings, or folders of them")
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        files += [each for each in found if each == path or each.suffix.lower() in AUDIO_EXTENSIONS]
    if not files:
        raise UserError(f"no recordings in {', '.join(names)}: give audio files, or folders of them")
    return files


def is_likely(distance: int, text: str) -> bool:
    """Return whether ``text`` with so many letters wrong is more than a chance: under half of them, less two.

    A few letters are near to some words of the Qur'an whatever they are.
    """
    return distance <= len(letters(text)) / 2 - 2


def _recitations(pieces: Sequence[Heard], recognizer: Recognizer, text: Quran) -> Iterator[Recitation]:
    """Yield what the pieces of a recording recite, those that go on where the one before ended together."""
    together: list[tuple[Heard, Candidate]] = []
    for piece in pieces:
        candidate = piece.candidate
        if candidate is None or not is_likely(candidate.distance, " ".join(recognizer.words(candidate))):
            continue
        if together and not candidate.run.follows(together[-1][1].run):
            yield _recitation(together, text)
            together = []
        together.append((piece, candidate))
    if together:
        yield _recitation(together, text)


def _recitation(pieces: Sequence[tuple[Heard, Candidate]], text: Quran) -> Recitation:
    (run,) = joined(candidate.run for _, candidate in pieces)
    words = [time for piece, candidate in pieces for time in pairwise(piece.times[len(candidate.preface.split()) :])]
    said = zip(text.numbers[run.passage][run.first : run.last + 1], text.words(run), words, strict=True)
    ayat = []
    for ayah, group in groupby(said, key=lambda each: each[0][0]):
        its = list(group)
        first, last = its[0], its[-1]
        start, end = round(first[2][0], 2), round(last[2][1], 2)
        ayat.append(RecitedAyah(ayah, first[0][1], last[0][1], start, end, " ".join(word for _, word, _ in its)))
    whole, heard = " ".join(text.words(run)), " ".join(piece.text for piece, _ in pieces)
    prefaced = " ".join(candidate.preface for _, candidate in pieces) + " " + whole
    edits = align(normalize(prefaced, "diacritics"), normalize(heard, "diacritics")).edits
    distance = sum(candidate.distance for _, candidate in pieces)
    confidence = max(0.0, 1 - distance / max(1, len(letters(prefaced))))
    return Recitation(text.surahs[run.passage], tuple(ayat), heard, edits, round(confidence, 3))


def describe(recognition: Recognition) -> str:
    """Return what is printed of a recording."""
    lines = [f"{recognition.file} ({format_duration(recognition.seconds)})"]
    for each in recognition.recitations:
        numbers = f"{each.ayat[0].ayah}" + (f" to {each.ayat[-1].ayah}" if len(each.ayat) > 1 else "")
        name = SURAHS[each.surah - 1]
        lines.append(f"  سورة {name}: surah {each.surah}, ayah {numbers}, confidence {percent(each.confidence)}")
        for ayah in each.ayat:
            lines.append(f"  {_clock(ayah.start)} – {_clock(ayah.end)}  {each.surah}:{ayah.ayah}  {ayah.text}")
        if each.edits:
            lines.append(f"  heard:  {each.heard}")
    if not recognition.recitations:
        lines.append(f"  not the Qur'an. Heard: {recognition.heard or 'nothing'}")
    return "\n".join(lines)


def subtitles(recognition: Recognition) -> str:
    """Return the ayat of a recording in the SubRip format."""
    ayat = [(each.surah, ayah) for each in recognition.recitations for ayah in each.ayat]
    blocks = []
    for number, (surah, ayah) in enumerate(ayat, 1):
        times = " --> ".join(_clock(time, whole=True).replace(".", ",") for time in (ayah.start, ayah.end))
        blocks.append(f"{number}\n{times}\n{ayah.text} ({surah}:{ayah.ayah})\n")
    return "\n".join(blocks)


def _clock(seconds: float, whole: bool = False) -> str:
    """Write a time as mm:ss.s, or ``whole`` as hh:mm:ss.mmm."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    if whole:
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
    return f"{minutes:02}:{rest // 1000:02}.{rest % 1000 // 100}"


def main() -> None:
    config = parse(RecognitionConfig, __doc__, sys.argv[1:], "python -m whisper_quran.recognize")
    for recognition in recognize(config, log=lambda line: print(line, file=sys.stderr)):
        print(json.dumps(asdict(recognition), ensure_ascii=False) if config.json else describe(recognition), flush=True)
        if config.srt and recognition.recitations:
            path = Path(recognition.file).with_suffix(".srt")
            with atomic_write(path) as file:
                file.write(subtitles(recognition))


if __name__ == "__main__":
    run_command(main)
