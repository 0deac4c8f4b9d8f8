"""Decode recordings of any length: those longer than Whisper's 30 seconds are cut where the reciter pauses.

A model fine-tuned without timestamps cannot say where in its 30-second window the text ended. ``whisper.transcribe``,
which moves its window by those timestamps, then skips or repeats audio. Here a long recording is cut at its quietest
points, and each piece is decoded the way the model was trained, in batches with the pieces of other recordings.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper.audio import N_SAMPLES, SAMPLE_RATE, TOKENS_PER_SECOND
from whisper.decoding import DecodingResult
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from ..data.batches import split
from ..data.encoder_cache import CachedFeatures, FrozenEncoder
from ..data.features import FRAME, collate, frame_energy
from ..runtime.console import Log
from ..runtime.errors import UserError
from .batch_decoder import BatchDecoder, is_looping
from .recognizer import Candidate, Recognizer
from .timestamps import Segment, read_segments
from .word_times import letter_times, token_starts, word_times

_WINDOW = 30  # frames: 300 ms of quiet are a pause, the closure of a stop consonant is shorter
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # whisper.transcribe's
_KEPT_BYTES = 10**9  # at most, of encoded pieces that will be decoded again
_SHORTEST = 10 * SAMPLE_RATE  # a piece is at least a phrase


@dataclass(frozen=True)
class Piece:
    """Samples ``start`` to ``end`` of a clip, its ``number``-th piece."""

    clip: int
    number: int
    start: int
    end: int


# Decodes pieces and yields (piece, result, is_last) as each ends; if not is_last, the piece is decoded again later.
_Decode = Callable[[Sequence[Piece]], Iterator[tuple[Piece, DecodingResult, bool]]]


@dataclass(frozen=True)
class _Decoded:
    """A piece's last text, the candidates of all its texts, and when each text's letters are said, if requested."""

    piece: Piece
    text: str
    temperature: float
    candidates: list[Candidate]
    letters: dict[str, list[tuple[str, float]]]


@dataclass(frozen=True)
class Heard:
    """The text of a piece from ``start`` to ``end`` (seconds), and the run of the closed text found in it, if any.

    If the piece was decoded several times, it is the text in which the run was found.

    ``times``, if the recognizer finds them: the start of each word of preface and run, and the end of the last.
    """

    start: float
    end: float
    text: str
    candidate: Candidate | None
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The text of a clip, and the highest temperature at which a piece of it was decoded (0: greedily)."""

    clip: int
    text: str
    temperature: float
    segments: tuple[Segment, ...] = ()  # if it was decoded with timestamps
    heard: tuple[Heard, ...] = ()  # if there was a recognizer

    @property
    def found(self) -> list[Candidate]:
        """The runs of the closed text found in its pieces, in order."""
        return [each.candidate for each in self.heard if each.candidate]


def decode_clips(
    model: Whisper,
    clips: Sequence[np.ndarray],
    *,
    batch_size: int,
    language: str = "ar",
    dtype: torch.dtype | None = None,
    log: Log = print,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """Decode any number of recordings of any length greedily; yield (index, text) as :func:`transcribe_clips` does."""
    options |= {"language": language, "dtype": dtype}
    for transcript in transcribe_clips(model, clips, batch_size=batch_size, log=log, fallback=False, **options):
        yield transcript.clip, transcript.text


def transcribe_clips(
    model: Whisper | FrozenEncoder,
    clips: Sequence[np.ndarray],
    *,
    batch_size: int,
    log: Log = print,
    fallback: bool = True,
    recognizer: Recognizer | None = None,
    **options: Any,
) -> Iterator[Transcript]:
    """Decode any number of recordings of any length; yield their texts as they end, roughly the longest first.

    A recording over 30 s is cut at its quietest points. The pieces of all recordings share batches, and their texts are
    joined in order with a space.

    With ``timestamps`` among the options, each window begins where the last complete text ended, as in
    ``whisper.transcribe``, and the transcripts have ``segments``; this needs a model trained with timestamps. The
    first windows of all recordings share batches, then the second, and so on. The text before a window is not its
    prompt (``condition_on_previous_text=False``).

    Args:
        model: the model, or its encoder in the ``dtype`` of the options, to use the encoder's cache or to reuse it.
        clips: int16 (n,) at 16 kHz each. Every clip is read once beforehand to find its pieces, and again when they are
            decoded, so that reading one should be cheap, as it is from a memory map. None is kept.
        batch_size: pieces decoded at a time. If they do not fit into the GPU's memory it is halved, a line is logged,
            and decoding continues with the pieces not done yet.
        fallback: decode pieces that :func:`needs_fallback` again at rising temperatures, in batches, and drop the texts
            of silence (:func:`is_silent`), as ``whisper.transcribe`` does one by one.
        recognizer: also finds the runs of its text that were said; not with ``timestamps``.
        options: as :class:`BatchDecoder` takes them.

    Raises:
        UserError: the GPU's memory does not hold even one piece beside the model.
    """
    if isinstance(model, Whisper):
        model = FrozenEncoder(model, options.get("dtype") or model.decoder.token_embedding.weight.dtype)
    source, whisper = _Pieces(clips, model), model.model
    decode = partial(source.decode_all, batch_size=batch_size, fallback=fallback, log=log, **options)
    if not options.get("timestamps"):
        return _transcribe_pieces(source, decode, fallback, recognizer)
    tokenizer = get_tokenizer(
        whisper.is_multilingual, num_languages=whisper.num_languages, language=options.get("language", "ar")
    )
    return _transcribe_windows(clips, decode, fallback, tokenizer)


def _transcribe_pieces(
    source: "_Pieces", decode: _Decode, fallback: bool, recognizer: Recognizer | None
) -> Iterator[Transcript]:
    waiting = pieces(source.clips)
    count = Counter(piece.clip for piece in waiting)
    candidates: dict[Piece, list[Candidate]] = defaultdict(list)  # of all texts of a piece
    letters: dict[Piece, dict[str, list[tuple[str, float]]]] = defaultdict(dict)
    decoded: dict[int, list[_Decoded]] = defaultdict(list)  # of each clip
    for piece, result, is_last in decode(waiting):
        text = "" if fallback and is_silent(result) else result.text
        if recognizer:
            log_probability = result.avg_logprob * (len(result.tokens) + 1)
            alone = count[piece.clip] == 1
            found = recognizer.candidates(text, log_probability, source.log_probabilities, alone)
            candidates[piece] += found
            if found and recognizer.heads:
                letters[piece][text] = source.letter_times(piece, result.tokens, recognizer.heads)
        if not is_last:
            continue
        parts = decoded[piece.clip]
        found, times = candidates.pop(piece, []), letters.pop(piece, {})
        parts.append(_Decoded(piece, text, result.temperature, found, times))
        if len(parts) == count[piece.clip]:
            yield _join_pieces(decoded.pop(piece.clip), recognizer)


def _transcribe_windows(
    clips: Sequence[np.ndarray], decode: _Decode, fallback: bool, tokenizer: Tokenizer
) -> Iterator[Transcript]:
    decoded: dict[int, list[Segment]] = defaultdict(list)
    temperatures: dict[int, float] = defaultdict(float)  # the highest of each clip
    windows = [Piece(clip, 0, 0, min(len(clips[clip]), N_SAMPLES)) for clip in range(len(clips))]
    while windows:
        next_windows = []
        for window, result, is_last in decode(windows):
            if not is_last:
                continue
            clip, start = window.clip, window.start / SAMPLE_RATE
            seconds = (window.end - window.start) / SAMPLE_RATE
            segments, reached = read_segments(result.tokens, tokenizer, seconds)
            if fallback and is_silent(result):
                segments, reached = [], seconds
            decoded[clip] += [Segment(start + each.start, start + each.end, each.text) for each in segments]
            temperatures[clip] = max(temperatures[clip], result.temperature)
            begin, length = window.start + round(reached * SAMPLE_RATE), len(clips[clip])
            if begin < length:
                next_windows.append(Piece(clip, window.number + 1, begin, min(length, begin + N_SAMPLES)))
            else:
                clip_segments = decoded.pop(clip)
                text = " ".join(each.text for each in clip_segments)
                yield Transcript(clip, text, temperatures[clip], tuple(clip_segments))
        windows = next_windows


def _join_pieces(parts: list[_Decoded], recognizer: Recognizer | None) -> Transcript:
    """Join all pieces of a clip into one transcript."""
    parts.sort(key=lambda part: part.piece.number)
    heard: tuple[Heard, ...] = ()
    if recognizer:
        chosen = recognizer.choose(part.candidates for part in parts)
        heard = tuple(_heard(part, each, recognizer) for part, each in zip(parts, chosen, strict=True))
    text = " ".join(part.text for part in parts if part.text)
    return Transcript(parts[0].piece.clip, text, max(part.temperature for part in parts), heard=heard)


def _heard(part: _Decoded, candidate: Candidate | None, recognizer: Recognizer) -> Heard:
    start, end = part.piece.start / SAMPLE_RATE, part.piece.end / SAMPLE_RATE
    if candidate is None:
        return Heard(start, end, part.text, None)
    times: list[float] = []
    if recognizer.heads:
        letters = part.letters[candidate.heard]
        times = [start + time for time in word_times(recognizer.words(candidate), letters, end - start)]
    return Heard(start, end, candidate.heard, candidate, tuple(times))


def needs_fallback(result: DecodingResult) -> bool:
    """Return whether a text fails the tests of ``whisper.transcribe`` (its thresholds), or ends in a loop."""
    if is_silent(result):
        return False  # a higher temperature does not make it likelier
    return result.avg_logprob < -1.0 or result.compression_ratio > 2.4 or is_looping(result.tokens)


def is_silent(result: DecodingResult) -> bool:
    """Return whether ``whisper.transcribe`` would treat the audio as silence and the text as hallucinated."""
    return result.no_speech_prob > 0.6 and result.avg_logprob < -1.0


class _Pieces:
    """Encoding and decoding of pieces. The encoder's output for those to be decoded again is kept, up to a limit."""

    def __init__(self, clips: Sequence[np.ndarray], encoder: FrozenEncoder):
        self.clips, self.encoder = clips, encoder
        self.device = encoder.model.device
        self.kept: dict[Piece, Tensor] = {}
        self.decoder: BatchDecoder | None = None  # while it decodes

    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """Return the log-probability of each of ``texts`` for the piece last decoded."""
        assert self.decoder
        return self.decoder.log_probabilities(texts)

    def letter_times(
        self, piece: Piece, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> list[tuple[str, float]]:
        """Return the letters of ``tokens`` (:func:`.nearest.letters`), with their starts in the piece last decoded.

        A text without an end exceeds the context by one token, which is left out.
        """
        assert self.decoder
        tokens = tokens[: self.encoder.model.dims.n_text_ctx - self.decoder.begin]
        frames = max(1, (piece.end - piece.start) * TOKENS_PER_SECOND // SAMPLE_RATE)
        starts = token_starts(self.decoder.attention(tokens, heads, frames), self.decoder.begin - 1)
        texts, groups = self.decoder.task.tokenizer.split_tokens_on_unicode([*tokens])
        ends = [*accumulate(map(len, groups))]
        return letter_times([(text, starts[end - len(group)], starts[end])
                             for text, group, end in zip(texts, groups, ends, strict=True)])  # fmt: skip

    def keep(self, piece: Piece, features: Tensor) -> None:
        if not self.encoder.cache and len(self.kept) * features.nbytes < _KEPT_BYTES:
            self.kept[piece] = features.to("cpu", copy=True)

    def decode_all(
        self, pieces: Sequence[Piece], batch_size: int, fallback: bool, log: Log, **options: Any
    ) -> Iterator[tuple[Piece, DecodingResult, bool]]:
        """Decode ``pieces``, longest first; with ``fallback``, decode those that need it again, at higher temperatures.

        Yield each with its result, and whether that is the last of the piece.
        """
        waiting = list(pieces)
        for temperature in _TEMPERATURES if fallback else (0.0,):
            waiting.sort(key=lambda piece: piece.start - piece.end)
            again: list[Piece] = []
            while waiting:
                slots, done = min(batch_size, len(waiting)), set[int]()
                try:
                    for index, result in self.decode(waiting, slots, temperature, **options):
                        done.add(index)
                        piece = waiting[index]
                        is_last = not fallback or temperature == _TEMPERATURES[-1] or not needs_fallback(result)
                        if not is_last:
                            again.append(piece)
                            self.keep(piece, result.audio_features)
                        yield piece, result, is_last
                except torch.OutOfMemoryError as error:
                    if slots == 1:
                        raise UserError(
                            f"the memory of {self.device} does not hold one clip beside this model: "
                            "choose a smaller model, --precision fp16, or --device cpu"
                        ) from error
                    batch_size = slots // 2
                    log(f"out of memory on {self.device}: going on with --batch-size {batch_size}")
                waiting = [piece for index, piece in enumerate(waiting) if index not in done]
            waiting = again

    def decode(
        self, pieces: Sequence[Piece], slots: int, temperature: float, **options: Any
    ) -> Iterator[tuple[int, DecodingResult]]:
        """Decode ``pieces``, encoded in batches of a quarter of the slots; the decoder's memory is freed at the end."""
        self.decoder = BatchDecoder(self.encoder.model, slots, **options)
        seeds: list[int] = []  # from a piece's samples and the temperature, so that a text can be reproduced

        def encoded() -> Iterator[Tensor]:
            for batch in split(pieces, max(1, slots // 4)):
                clips = [self.clips[piece.clip][piece.start : piece.end] for piece in batch]
                seeds.extend(zlib.crc32(clip.tobytes()) * 16 + round(10 * temperature) for clip in clips)
                yield self._encode(batch, clips)

        try:
            yield from self.decoder.decode(encoded(), temperature, seeds)
        finally:
            self.decoder = None

    def _encode(self, batch: Sequence[Piece], clips: Sequence[np.ndarray]) -> Tensor:
        pin = self.device.type == "cuda"
        cached = self.encoder.find(clips, pin)
        rows = tuple(row for row, piece in enumerate(batch) if piece in self.kept)
        if rows:
            cached = CachedFeatures((), rows, torch.stack([self.kept[batch[row]] for row in rows]))
        audio = collate(clips, pin).to(self.device, non_blocking=True)
        return self.encoder(audio, cached.to(self.device) if cached else None)


def pieces(clips: Sequence[np.ndarray]) -> list[Piece]:
    """Cut all ``clips`` into pieces, in order. Every clip is read once, and none is kept."""
    return [
        Piece(clip, number, start, end)
        for clip in range(len(clips))
        for number, (start, end) in enumerate(segments(clips[clip]))
    ]


def segments(samples: np.ndarray) -> list[tuple[int, int]]:
    """Cut ``samples`` (n,) at 16 kHz into contiguous spans (start, end) of at most 30 s that hold every sample once.

    Up to 30 s are one span. Otherwise each lasts 10 to 30 s and ends where the audio in that range is quietest.
    """
    spans = []
    start = 0
    if len(samples) > N_SAMPLES:
        energy = _smoothed_energy(samples)
    while len(samples) - start > N_SAMPLES:
        earliest = -(-(start + _SHORTEST) // FRAME)
        latest = min(start + N_SAMPLES, len(samples) - _SHORTEST) // FRAME
        end = (earliest + int(energy[earliest : latest + 1].argmin())) * FRAME
        spans.append((start, end))
        start = end
    return [*spans, (start, len(samples))]


def _smoothed_energy(samples: np.ndarray) -> np.ndarray:
    """Compute the mean square over 300 ms around sample 160 i, for every i. At the ends, over what exists of them."""
    energy = frame_energy(samples)
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    edges = np.arange(len(sums))
    before, after = (np.clip(edges + shift, 0, len(energy)) for shift in (-_WINDOW // 2, _WINDOW // 2))
    return (sums[after] - sums[before]) / (after - before)
