"""Which ayah is this? Where in the Qur'an recordings are, when each word is said, and what was heard differently.

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
from ..data.corpus import AUDIO_EXTENSIONS, read_text
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

_UNSAID = re.compile(r"\d+[.)]?|[.,:;!?،؛؟]")  # an untouched model writes numbers of ayat, as books do
_LOST = 0.6  # nats a letter


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

    ``edits`` turn its :attr:`words` into it (:class:`..evaluation.word_errors.Alignment`), without
    diacritics, digits and punctuation;
    ``confidence`` is the share of the letters that were heard, 0 to 1.
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
    """Where something was ``heard`` that is not the Qur'an, to half a minute: from ``start`` to ``end`` seconds."""

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
    """Recognise the recordings of ``config``, in order; what cannot be decoded is logged and left out.

    They are heard in groups, as many as fill a batch of 30 s each.

    It prints and writes nothing: what ``json``, ``srt`` and ``html`` ask for is left to the command.

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
    hear = partial(
        transcribe_clips, model, batch_size=config.batch_size, log=log, recognizer=recognizer, dtype=dtype,
        language=config.language, stop_loops=True,
    )  # fmt: skip
    none = True
    with closing(decode_files(files, config.workers)) as decoded:
        for group in _groups(zip(files, decoded, strict=True), config.batch_size * CHUNK_LENGTH):
            clips = [audio.samples for _, audio in group if not isinstance(audio, AudioError)]
            transcripts = iter(sorted(hear(clips), key=lambda each: each.clip))
            for file, audio in group:
                if not isinstance(audio, AudioError):
                    yield _recognition(file, audio, next(transcripts), recognizer, text)
                elif str(audio).startswith(NO_SPEECH):
                    yield Recognition(str(file), header_seconds(file) or 0.0, False, "", ())
                else:
                    log(f"{printable(str(file))}: left out: {audio}")
                    continue
                none = False
    if none:
        raise UserError("none of the recordings can be decoded: give other audio files")


def _groups(read: Iterable[tuple[Path, Decoded | AudioError]], seconds: float) -> Iterator[list[Any]]:
    """Cut what was read into groups that are heard together, of so many seconds or a little more."""
    group, length = [], 0.0
    for file, audio in read:
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
        files += [each for each in found if each == path or each.suffix.lower() in AUDIO_EXTENSIONS]
    if not files:
        raise UserError(f"no recordings in {', '.join(names)}: give audio files, or folders of them")
    return files


def is_likely(candidate: Candidate, text: str) -> bool:
    """Return whether ``text``, which the candidate says, is more than a chance.

    Less than half of its letters are wrong, and if other texts were as near, the model finds it hardly less likely than
    what it heard. Of 486 ayat
    that untouched ``base`` heard these were 93 %; of 494 with a text that lacks their surahs, 5 %.
    """
    count = len(letters(text))
    lost = candidate.free_log_probability - candidate.log_probability
    return candidate.distance <= (count - 1) / 2 and lost < _LOST * count


def _recognition(
    file: Path, audio: Decoded, transcript: Transcript, recognizer: Recognizer, text: Quran
) -> Recognition:
    """Make of what was heard recitations, each of pieces that go on where the one before ended, and the rest."""
    together: list[list[tuple[Heard, Candidate]]] = []
    others: list[Other] = []
    for piece in transcript.heard:
        candidate = piece.candidate
        if candidate is None or not is_likely(candidate, " ".join(recognizer.words(candidate))):
            if piece.text:
                others.append(Other(round(piece.start, 2), round(piece.end, 2), piece.text))
            continue
        if not together or candidate.preface or not candidate.run.follows(together[-1][-1][1].run):
            together.append([])
        together[-1].append((piece, candidate))
    found = tuple(_recitation(pieces, text) for pieces in together)
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
        start, end, said = its_words[0].start, its_words[-1].end, " ".join(word.text for word in its_words)
        ayat.append(RecitedAyah(ayah, places[0][1], places[-1][1], start, end, said, its_words))
    whole, heard = " ".join(word.text for word in words), " ".join(piece.text for piece, _ in pieces)
    edits = align(normalize(whole, "diacritics"), normalize(_UNSAID.sub(" ", heard), "diacritics")).edits
    confidence = round(confidence_of([candidate for _, candidate in pieces], whole), 3)
    surah = text.surahs[run.passage]
    return Recitation(surah, tuple(words[: len(preface)]), tuple(ayat), heard, edits, confidence)


def confidence_of(found: Sequence[Candidate], text: str) -> float:
    """Return the share of the letters of ``text``, which these say together, that were heard; 0 if none are there."""
    if not found:
        return 0.0
    return max(0.0, 1 - sum(each.distance for each in found) / max(1, len(letters(text))))
