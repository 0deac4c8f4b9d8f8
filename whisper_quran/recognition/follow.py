"""Follow a recitation while it goes on: a piece is told as soon as its place is certain, and nothing is taken back."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import numpy as np

from ..config import RecognitionConfig
from ..data.audio import SAMPLE_RATE, AudioError, decode_files
from ..data.features import FRAME
from ..decoding.long_audio import PAUSE, QUIET, RecognizedPiece, Transcript, smoothed_energy, transcribe_clips
from ..decoding.quran_search import Candidate, Recognizer
from ..runtime.console import Log, printable
from ..runtime.errors import UserError
from .recitations import DOUBTFUL, Recognition, is_likely, load, recognition_of

_STEP = 4000  # samples read at a time
_SHORTEST, _LONGEST = 3 * SAMPLE_RATE, 12 * SAMPLE_RATE  # of a piece that is heard
_LETTERS = 12  # as written; fewer are certain only where they follow what was told
_MOST_WAITING = 4  # pieces whose place is not certain


class _Recorder(Recognizer):
    """A recognizer that keeps the candidates of the pieces that it was last asked to choose for."""

    pieces: Sequence[Sequence[Candidate]] = ()

    def choose(self, pieces: Iterable[Sequence[Candidate]]) -> list[Candidate | None]:
        self.pieces = [*pieces]
        return super().choose(self.pieces)


def follow(config: RecognitionConfig, stream: BinaryIO | None = None, log: Log = print) -> Iterator[Recognition]:
    """Recognise one recording piece by piece, as it comes; yield what became certain, with times from its beginning.

    A piece ends at a pause after 3 s, or after 12. It is certain if it follows what was told last, or if its words are
    near to no other place; otherwise the pieces after it decide.

    Args:
        config: its ``files`` are one recording.
        stream: read in place of that: 16-bit PCM, mono at 16 kHz.

    Raises:
        UserError: the recording, the text or the model cannot be used.
    """
    model, recognizer, options = load(config, log, _Recorder)
    last: list[Candidate] = []  # what was told last, if anything was
    waiting: list[tuple[RecognizedPiece, Sequence[Candidate]]] = []
    for start, samples in _pieces(_read(stream) if stream else _decode(Path(config.files[0]))):
        begin, seconds = start / SAMPLE_RATE, (start + len(samples)) / SAMPLE_RATE
        (transcript,) = transcribe_clips(model, [samples], batch_size=1, log=log, recognizer=recognizer, **options)
        for piece, candidates in zip(transcript.pieces, recognizer.pieces, strict=True):
            if candidates:
                waiting.append((replace(piece, start=begin + piece.start, end=begin + piece.end), candidates))
        if not waiting:
            continue
        path = recognizer.choose([*([each] for each in last), *(each for _, each in waiting)])
        chosen = [each for each in path[len(last) :] if each]  # all, as none of those waiting lacks candidates
        if not _is_certain(chosen[-1], recognizer.words(chosen[-1]), waiting[-1][1], last):
            del waiting[:-_MOST_WAITING]
            continue
        told = tuple(replace(piece, candidate=each) for (piece, _), each in zip(waiting, chosen, strict=True))
        last, waiting = chosen[-1:], []
        text = " ".join(piece.text for piece in told)
        found = recognition_of(
            Path(config.files[0]), seconds, Transcript(0, text, 0.0, told), recognizer, DOUBTFUL[config.strictness]
        )
        if found.recitations:
            yield found


def _is_certain(
    chosen: Candidate, words: Sequence[str], candidates: Sequence[Candidate], last: Sequence[Candidate]
) -> bool:
    """Return whether what was chosen is likely, and goes on from the ``last``, or is the only place for its words."""
    if not is_likely(chosen):
        return False
    span = chosen.runs[0].span
    if last and span.follows(last[0].span):
        return True
    return len("".join(words)) >= _LETTERS and all(
        each.span.surah == span.surah and each.span.first <= span.last and span.first <= each.span.last
        for each in candidates
    )


def _pieces(chunks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Cut what comes in ``chunks`` at pauses; yield each piece with the number of its first sample."""
    start, samples = 0, np.zeros(0, np.int16)
    for chunk in chunks:
        samples = np.concatenate([samples, chunk])
        if len(samples) < _SHORTEST:
            continue
        energy = smoothed_energy(samples, PAUSE)
        first = _SHORTEST // FRAME - PAUSE
        at = first + int(energy[first:-PAUSE].argmin())
        if energy[at] < QUIET * energy.mean() or len(samples) >= _LONGEST:
            yield start, samples[: at * FRAME]
            start, samples = start + at * FRAME, samples[at * FRAME :]
    if len(samples):
        yield start, samples


def _decode(file: Path) -> Iterator[np.ndarray]:
    (audio,) = decode_files([file], 1)
    if isinstance(audio, AudioError):
        raise UserError(f"{printable(str(file))}: {audio}")
    yield from np.split(audio.samples, range(_STEP, len(audio.samples), _STEP))


def _read(stream: BinaryIO) -> Iterator[np.ndarray]:
    """Read PCM in a thread of its own, since whoever writes does not wait until a piece is heard."""
    chunks: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        try:
            while data := stream.read(2 * _STEP):
                chunks.put(data)
        finally:
            chunks.put(b"")

    threading.Thread(target=read, daemon=True).start()
    while data := chunks.get():
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2")
