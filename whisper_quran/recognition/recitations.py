"""Recognition of recordings: their place in the Qur'an, when each word is said, and what was heard differently.

for recognition in recognize(RecognitionConfig(files=("recording.mp3",), model="runs/mine/best.pt")):
    for each in recognition.recitations:
        print(each.surah, each.ayat[0].ayah, "to", each.ayat[-1].ayah, each.confidence)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, TypeVar

from whisper.audio import CHUNK_LENGTH
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import tokenizer_for
from ..config import RecognitionConfig
from ..data.audio import NO_SPEECH, SAMPLE_RATE, AudioError, Decoded, decode_files, header_seconds
from ..data.ayat import read_text
from ..data.features import cast
from ..data.tables import summary
from ..data.text import letters, normalize, quran_text
from ..decoding.long_audio import RecognizedPiece, Transcript, transcribe_clips
from ..decoding.quran_search import Candidate, Quran, Recognizer
from ..decoding.word_times import alignment_heads, word_times
from ..evaluation.error_kinds import steps_of
from ..evaluation.word_errors import align
from ..runtime.console import Log, printable
from ..runtime.device import choose_device, choose_precision
from ..runtime.errors import UserError
from . import check_inputs

R = TypeVar("R", bound=Recognizer)
_NOT_SPOKEN = re.compile(r"\d+[.)]?|[.,:;!?،؛؟]")  # OpenAI's models write numbers of ayat, as books do
DOUBTFUL = {"lenient": 15.0, "usual": 9.0, "strict": 0.0}  # nats: 3, 8 and 38 % of words said right have more
_LOST, _MOST_LOST = 0.25, 0.82  # letters that a nat counts as, and a letter may cost


@dataclass(frozen=True)
class RecitedWord:
    """A word of the text, said from ``start`` to ``end`` seconds; for one that was not heard they are the same.

    The ``verdict`` is "said", or "differently" or "left out", with what was ``heard`` in its place; ``added`` are words
    heard after it. Both need a ``doubt`` (:class:`..decoding.quran_search.Candidate`) that is large enough.
    """

    text: str
    start: float
    end: float
    verdict: str = "said"
    heard: str = ""
    added: str = ""
    doubt: float = 0.0


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
    digits and punctuation; ``confidence`` is the share of the letters that were heard, less what was heard besides,
    0 to 1.
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
class OtherSpeech:
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
    others: tuple[OtherSpeech, ...] = ()


def recognize(config: RecognitionConfig, log: Log = print) -> Iterator[Recognition]:
    """Recognise the recordings of ``config``, in order; files that cannot be decoded are logged and left out.

    They are transcribed in groups, each of which fills a batch of pieces of 30 s. Nothing is written: the command does
    what ``json``, ``srt`` and ``html`` ask for.

    Raises:
        UserError: a file, the text, the model or an option must be changed; or none of the files can be decoded.
    """
    files = check_inputs(config)
    model, recognizer, options = load(config, log, Recognizer)
    none_decoded = True
    with closing(decode_files(files, config.workers)) as decoded:
        for group in _groups(zip(files, decoded, strict=True), config.batch_size * CHUNK_LENGTH):
            speech = [(file, audio) for file, audio in group if isinstance(audio, Decoded)]
            transcripts = transcribe_clips(
                model, [audio.samples for _, audio in speech], batch_size=config.batch_size, log=log,
                recognizer=recognizer, **options,
            )  # fmt: skip
            heard: dict[Path, Recognition] = {}
            try:
                for transcript in transcripts:
                    file, audio = speech[transcript.clip]
                    seconds, doubtful = len(audio.samples) / SAMPLE_RATE, DOUBTFUL[config.strictness]
                    heard[file] = recognition_of(file, seconds, transcript, recognizer, doubtful, audio.damaged)
            finally:  # an error is raised after what was done
                for file, audio in group:
                    if file in heard:
                        yield heard[file]
                    elif isinstance(audio, AudioError) and str(audio).startswith(NO_SPEECH):
                        yield Recognition(str(file), header_seconds(file) or 0.0, False, "", ())
                    elif isinstance(audio, AudioError):
                        log(f"{printable(str(file))}: left out: {audio}")
                        continue
                    none_decoded = False
    if none_decoded:
        raise UserError("none of the recordings can be decoded: give other audio files")


def load(config: RecognitionConfig, log: Log, kind: type[R]) -> tuple[Whisper, R, dict[str, Any]]:
    """Return the model, a recognizer of this kind, and the options with which pieces are decoded."""
    texts, skipped = read_text(config.text, log) if config.text else (quran_text(), [])
    if skipped:
        log(f"left out of the text: {summary(skipped)}")
    quran = Quran(texts)
    device, _ = choose_device(config.device)
    model = load_checkpoint(config.model, device)
    tokenizer_for(model.dims, config.language)  # says that the model does not know the language
    dtype = choose_precision(config.precision, device, model).dtype
    cast(model, dtype)  # or encoder and decoder would hold copies
    recognizer = kind(quran, device, alignment_heads(model))
    return model, recognizer, {"dtype": dtype, "language": config.language, "stop_loops": True}


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


def is_likely(candidate: Candidate) -> bool:
    """Return whether the words are near to what was heard, and the model finds them hardly less likely than that.

    Chosen so that, of pieces of three words and more that are not the Qur'an or that its text was left without,
    1 % pass (docs/recognition.md).
    """
    lost = candidate.free_log_probability - candidate.log_probability
    return candidate.cost + _LOST * lost < _MOST_LOST * sum(map(len, candidate.letters))


def recognition_of(
    file: Path,
    seconds: float,
    transcript: Transcript,
    recognizer: Recognizer,
    doubtful: float = 0.0,
    damaged: bool = False,
) -> Recognition:
    """Join pieces that follow each other in the text into recitations; pieces that match no span are the others."""
    groups: list[list[tuple[RecognizedPiece, Candidate]]] = []
    others: list[OtherSpeech] = []
    for piece in transcript.pieces:
        if piece.candidate is None or not is_likely(piece.candidate):
            if piece.text:
                others.append(OtherSpeech(round(piece.start, 2), round(piece.end, 2), piece.text))
            continue
        for run in piece.candidate.runs:
            if not groups or run.preface or not run.span.follows(groups[-1][-1][1].span):
                groups.append([])
            groups[-1].append((piece, run))
    found = tuple(_recitation(pieces, recognizer, doubtful) for pieces in groups)
    return Recognition(str(file), seconds, damaged, transcript.text, found, tuple(others))


def _recitation(
    pieces: Sequence[tuple[RecognizedPiece, Candidate]], recognizer: Recognizer, doubtful: float = 0.0
) -> Recitation:
    words: list[RecitedWord] = []
    heard: list[str] = []
    for piece, candidate in pieces:
        its_words = recognizer.words(candidate)
        doubts = candidate.doubts or [0.0] * len(its_words)
        times = word_times(candidate.letters, candidate.times)
        for word, (start, end), doubt in zip(its_words, times, doubts, strict=True):
            start, end = (round(piece.start + time, 2) for time in (start, end))
            words.append(RecitedWord(word, start, end, doubt=doubt))
        heard.append(_as_written(_NOT_SPOKEN.sub(" ", candidate.heard), its_words, candidate.letters))
    whole = " ".join(word.text for word in words)
    edits = align(normalize(whole, "diacritics"), normalize(" ".join(heard), "diacritics")).edits
    words = judge(words, edits, doubtful)
    first, last = pieces[0][1], pieces[-1][1]
    preface = len(first.preface.split())
    places = recognizer.quran.places[first.span.surah][first.span.first : last.span.last + 1]
    ayat = []
    for ayah, group in groupby(zip(places, words[preface:], strict=True), key=lambda each: each[0][0]):
        numbers, ayah_words = zip(*group, strict=True)
        start, end, text = ayah_words[0].start, ayah_words[-1].end, " ".join(word.text for word in ayah_words)
        ayat.append(RecitedAyah(ayah, numbers[0][1], numbers[-1][1], start, end, text, ayah_words))
    confidence = round(confidence_of([candidate for _, candidate in pieces]), 3)
    text = " ".join(candidate.heard for _, candidate in pieces)
    return Recitation(first.span.surah, tuple(words[:preface]), tuple(ayat), text, edits, confidence)


def judge(words: Sequence[RecitedWord], edits: str, doubtful: float) -> list[RecitedWord]:
    """Return ``words`` with the verdicts that follow from ``edits``, where their doubt is above ``doubtful`` nats."""
    judged = [*words]
    at = 0  # of the next word
    for expected, heard in steps_of([normalize(word.text, "diacritics") for word in words], edits):
        at += expected is not None
        word = judged[max(0, at - 1)]  # what is added is after this one, or after the first
        if expected == heard or word.doubt <= doubtful:
            continue
        if expected is None:
            word = replace(word, added=f"{word.added} {heard}".strip())
        else:
            word = replace(word, verdict="differently" if heard else "left out", heard=heard or "")
        judged[max(0, at - 1)] = word
    return judged


def _as_written(heard: str, words: Sequence[str], pronounced: Sequence[str]) -> str:
    """Write the names of the letters that open some surahs as these letters where they were heard."""
    said = heard.split()
    for word, spelled in zip(words, pronounced, strict=True):
        if letters(word) != spelled:
            for first, last in combinations(range(len(said) + 1), 2):
                if letters("".join(said[first:last])).replace("ء", "") == spelled:
                    said[first:last] = [word]
                    break
    return " ".join(said)


def confidence_of(found: Sequence[Candidate]) -> float:
    """Return the share of the letters of all ``found`` that were heard, less what was heard besides; 0 without any."""
    count = sum(len(word) for each in found for word in each.letters)
    return max(0.0, 1 - sum(each.distance for each in found) / count) if count else 0.0
