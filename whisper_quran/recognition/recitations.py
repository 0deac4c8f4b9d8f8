"""Recognition of recordings: their place in the Qur'an, when each word is said, and what was heard differently.

for recognition in recognize(RecognitionConfig(files=("recording.mp3",), model="runs/mine/best.pt")):
    for each in recognition.recitations:
        print(each.surah, each.ayat[0].ayah, "to", each.ayat[-1].ayah, each.confidence)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from whisper.audio import CHUNK_LENGTH

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.names import check_model_source
from ..config import RecognitionConfig
from ..data.audio import NO_SPEECH, SAMPLE_RATE, AudioError, Decoded, decode_files, header_seconds
from ..data.corpus import is_audio, read_text
from ..data.text import normalize
from ..decoding.long_audio import Heard, Transcript, transcribe_clips
from ..decoding.nearest import letters
from ..decoding.quran import Quran
from ..decoding.recognizer import Candidate, Recognizer, joined
from ..decoding.word_times import alignment_heads
from ..evaluation.word_errors import align
from ..runtime.console import Log, printable
from ..runtime.device import choose_device, choose_precision
from ..runtime.errors import UserError

_NOT_SPOKEN = re.compile(r"\d+[.)]?|[.,:;!?،؛؟]")  # OpenAI's models write numbers of ayat, as books do
_MOST_LOST = 0.6  # nats a letter


@dataclass(frozen=True)
class RecitedWord:
    """A word of the text, said from ``start`` to ``end`` seconds; for one that was not heard they are the same."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class RecitedAyah:
    """An ayah, or its words ``first_word`` to ``last_word`` (from 1), said from ``start`` to ``end`` seconds."""

    ayah: int
    first_word: int
    last_word: int
    start: float
    end: float
    text: str
    words: tuple[RecitedWord, ...]


@dataclass(frozen=True)
class Recitation:
    """Consecutive ayat of a surah, and what was ``heard`` of them; ``preface`` is a basmala or isti'adha before them.

    ``edits`` turn its :attr:`words` into ``heard`` (:class:`..evaluation.word_errors.Alignment`), without diacritics,
    digits and punctuation; ``confidence`` is the share of the letters that were heard, 0 to 1.
    """

    surah: int
    preface: tuple[RecitedWord, ...]
    ayat: tuple[RecitedAyah, ...]
    heard: str
    edits: str
    confidence: float

    @property
    def words(self) -> list[RecitedWord]:
        """The words of the preface and of the ayat."""
        return [*self.preface, *(word for ayah in self.ayat for word in ayah.words)]


@dataclass(frozen=True)
class Other:
    """A piece, at most 30 s long, in which something else was ``heard``: from ``start`` to ``end`` seconds."""

    start: float
    end: float
    heard: str


@dataclass(frozen=True)
class Recognition:
    """A recording: its length, the text heard, and what was recited in it; nothing if it is not the Qur'an.

    ``damaged`` if the file is cut short or has broken parts. ``others`` are the parts that are not the Qur'an.
    """

    file: str
    seconds: float
    damaged: bool
    heard: str
    recitations: tuple[Recitation, ...]
    others: tuple[Other, ...] = ()


def recognize(config: RecognitionConfig, log: Log = print) -> Iterator[Recognition]:
    """Recognise the recordings of ``config``, in order; files that cannot be decoded are logged and left out.

    They are transcribed in groups, each of which fills a batch of pieces of 30 s.

    It prints and writes nothing: the command does what ``json``, ``srt`` and ``html`` ask for.

    Raises:
        UserError: a file, the text, the model or an option must be changed; or none of the files can be decoded.
    """
    files = _files(config.files)
    if not config.text.is_file():
        get = "python -m whisper_quran.download"
        raise UserError(f"no text {config.text}: give the whole Qur'an with --text FILE, or get it by {get}")
    check_model_source(config.model)
    device, _ = choose_device(config.device)
    model = load_checkpoint(config.model, device)
    text = Quran(read_text(config.text)[0])
    recognizer = Recognizer(text, device, alignment_heads(model))
    dtype = choose_precision(config.precision, device, model).dtype
    transcribe = partial(
        transcribe_clips, model, batch_size=config.batch_size, log=log, recognizer=recognizer, dtype=dtype,
        language=config.language, stop_loops=True,
    )  # fmt: skip
    none_decoded = True
    with closing(decode_files(files, config.workers)) as decoded:
        for group in _groups(zip(files, decoded, strict=True), config.batch_size * CHUNK_LENGTH):
            clips = [audio.samples for _, audio in group if not isinstance(audio, AudioError)]
            transcripts = iter(sorted(transcribe(clips), key=lambda each: each.clip))
            for file, audio in group:
                if not isinstance(audio, AudioError):
                    yield _recognition(file, audio, next(transcripts), recognizer, text)
                elif str(audio).startswith(NO_SPEECH):
                    yield Recognition(str(file), header_seconds(file) or 0.0, False, "", ())
                else:
                    log(f"{printable(str(file))}: left out: {audio}")
                    continue
                none_decoded = False
    if none_decoded:
        raise UserError("none of the recordings can be decoded: give other audio files")


def _groups(decoded: Iterable[tuple[Path, Decoded | AudioError]], seconds: float) -> Iterator[list[Any]]:
    """Group the decoded files: ``seconds`` of audio or a little more in each group, the rest in the last."""
    group, length = [], 0.0
    for file, audio in decoded:
        group.append((file, audio))
        length += 0 if isinstance(audio, AudioError) else len(audio.samples) / SAMPLE_RATE
        if length >= seconds:
            yield group
            group, length = [], 0.0
    yield group


def _files(names: Sequence[str]) -> list[Path]:
    """Return the files, and the audio files in the folders, of ``names``."""
    files: list[Path] = []
    for path in map(Path, names):
        if not path.exists():
            raise UserError(f"no file or folder {path}: give recordings, or folders of them")
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        files += [each for each in found if each == path or is_audio(each)]
    if not files:
        raise UserError(f"no recordings in {', '.join(names)}: give audio files, or folders of them")
    return files


def is_likely(candidate: Candidate, text: str) -> bool:
    """Return whether ``text``, the words of ``candidate``, is more than a chance match.

    Less than half of its letters are wrong, and if other texts were as near, the model finds it hardly less likely than
    what it heard. This accepts 93 % of 486 ayat heard by OpenAI's ``base``; with a text that lacks their surahs, 5 % of
    494.
    """
    count = len(letters(text))
    lost = candidate.free_log_probability - candidate.log_probability
    return candidate.distance <= (count - 1) / 2 and lost < _MOST_LOST * count


def _recognition(
    file: Path, audio: Decoded, transcript: Transcript, recognizer: Recognizer, text: Quran
) -> Recognition:
    """Join pieces that follow each other in the text into recitations; pieces that match no run are the others."""
    groups: list[list[tuple[Heard, Candidate]]] = []
    others: list[Other] = []
    for piece in transcript.heard:
        candidate = piece.candidate
        if candidate is None or not is_likely(candidate, " ".join(recognizer.words(candidate))):
            if piece.text:
                others.append(Other(round(piece.start, 2), round(piece.end, 2), piece.text))
            continue
        if not groups or candidate.preface or not candidate.run.follows(groups[-1][-1][1].run):
            groups.append([])
        groups[-1].append((piece, candidate))
    found = tuple(_recitation(pieces, text) for pieces in groups)
    seconds = len(audio.samples) / SAMPLE_RATE
    return Recognition(str(file), seconds, audio.damaged, transcript.text, found, tuple(others))


def _recitation(pieces: Sequence[tuple[Heard, Candidate]], text: Quran) -> Recitation:
    (run,) = joined(candidate.run for _, candidate in pieces)
    preface = pieces[0][1].preface.split()
    times = [time for piece, _ in pieces for time in pairwise(piece.times)]
    words = [
        RecitedWord(word, round(start, 2), round(end, 2))
        for word, (start, end) in zip([*preface, *text.words(run)], times, strict=True)
    ]
    numbers = text.numbers[run.passage][run.first : run.last + 1]
    ayat = []
    for ayah, group in groupby(zip(numbers, words[len(preface) :], strict=True), key=lambda each: each[0][0]):
        places, its_words = zip(*group, strict=True)
        start, end, ayah_text = its_words[0].start, its_words[-1].end, " ".join(word.text for word in its_words)
        ayat.append(RecitedAyah(ayah, places[0][1], places[-1][1], start, end, ayah_text, its_words))
    whole, heard = " ".join(word.text for word in words), " ".join(piece.text for piece, _ in pieces)
    edits = align(normalize(whole, "diacritics"), normalize(_NOT_SPOKEN.sub(" ", heard), "diacritics")).edits
    confidence = round(confidence_of([candidate for _, candidate in pieces], whole), 3)
    surah = text.surahs[run.passage]
    return Recitation(surah, tuple(words[: len(preface)]), tuple(ayat), heard, edits, confidence)


def confidence_of(found: Sequence[Candidate], text: str) -> float:
    """Return the share of the letters of ``text``, the words of all ``found``, that were heard; 0 if there are none."""
    if not found:
        return 0.0
    return max(0.0, 1 - sum(each.distance for each in found) / max(1, len(letters(text))))
