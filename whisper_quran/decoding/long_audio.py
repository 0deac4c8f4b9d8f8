"""Decode recordings of any length: those longer than Whisper's 30 seconds are cut where the reciter pauses.

A model fine-tuned on single ayat was not taught the timestamps by which ``whisper.transcribe`` moves its 30-second
window. Here a long recording is cut at its quietest points, and each piece is decoded the way the model was trained,
in batches with the pieces of other recordings.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from whisper.audio import N_SAMPLES, SAMPLE_RATE
from whisper.decoding import DecodingResult
from whisper.model import Whisper

from ..data.batches import split
from ..data.features import FRAME, AudioFeatures, FrozenEncoder, collate, context_of, frame_energy
from ..runtime.console import Log
from ..runtime.errors import UserError
from .batch_decoder import BatchDecoder, is_looping
from .quran_search import Candidate, Recognizer
from .word_times import LetterTime

PAUSE = 30  # frames: 300 ms of quiet are a pause, the closure of a stop consonant is shorter
QUIET = 0.02  # of the mean energy
# Speech that was not heard: between pauses of 150 ms, at least 0.8 s of it, with few letters a second beside the rest
# of its piece. It is heard again, and that counts if more than so many letters more are found.
_SHORT_PAUSE, _SPOKEN, _UNHEARD, _MORE = 15, 80, 0.4, 3
_GAP, _NEAR = 150, 60  # loud frames between two letters; and within how many it is cut there
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # whisper.transcribe's
_SHORTEST = 10 * SAMPLE_RATE  # a piece is at least a phrase


@dataclass(frozen=True)
class Piece:
    """Samples ``start`` to ``end`` of a clip, one of ``count`` such pieces."""

    clip: int
    start: int
    end: int
    count: int


@dataclass(frozen=True)
class RecognizedPiece:
    """The text of a piece from ``start`` to ``end`` (seconds), and the span of the Qur'an found in it, if any.

    If the piece was decoded several times, it is the text in which the span was found.
    """

    start: float
    end: float
    text: str
    candidate: Candidate | None


@dataclass(frozen=True)
class Transcript:
    """The text of a clip, and the highest temperature at which a piece of it was decoded (0: greedily)."""

    clip: int
    text: str
    temperature: float
    pieces: tuple[RecognizedPiece, ...] = ()  # if there was a recognizer

    @property
    def found(self) -> list[Candidate]:
        """The spans of the Qur'an found in its pieces, in order."""
        return [run for piece in self.pieces if piece.candidate for run in piece.candidate.runs]


def decode_clips(
    model: Whisper, clips: Sequence[np.ndarray], *, batch_size: int, log: Log = print, **options: Any
) -> Iterator[tuple[int, str]]:
    """Decode any number of recordings of any length greedily; yield (index, text) as :func:`transcribe_clips` does."""
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
    context: str = "natural",
    **options: Any,
) -> Iterator[Transcript]:
    """Decode any number of recordings of any length; yield their texts as they end, roughly the longest first.

    A recording over 30 s is cut at its quietest points. The pieces of all recordings share batches, and their texts are
    joined in order with a space.

    Args:
        model: the model, or its encoder in the ``dtype`` of the options, to reuse it.
        clips: int16 (n,) at 16 kHz each. Every clip is read once beforehand to find its pieces, and again when they are
            decoded, so that reading one should be cheap, as it is from a memory map. None is kept.
        batch_size: pieces decoded at a time. If they do not fit into the GPU's memory it is halved, a line is logged,
            and decoding continues with the pieces not done yet.
        fallback: decode pieces that :func:`needs_fallback` again at rising temperatures, in batches, and drop the texts
            of silence (:func:`is_silent`), as ``whisper.transcribe`` does one by one.
        recognizer: also finds the spans of the Qur'an that were said.
        context: "natural" encodes each piece at its own length (:func:`..data.features.context_of`), "full" in
            whisper's 30 s.
        options: as :class:`BatchDecoder` takes them.

    Raises:
        UserError: the GPU's memory does not hold even one piece beside the model.
        ValueError: there is no such context.
    """
    if context not in ("natural", "full"):
        raise ValueError(f"context is natural or full, not {context}")
    if isinstance(model, Whisper):
        model = FrozenEncoder(model, options.get("dtype") or model.decoder.token_embedding.weight.dtype)
    return _transcribe(_PieceDecoder(model, clips, batch_size, fallback, recognizer, context == "full", log, options))


_Decoded = tuple[Piece, DecodingResult, list[Candidate]]


@dataclass
class _PieceDecoder:
    """Encoding and decoding of pieces of ``clips``, in batches that fit into the memory."""

    encoder: FrozenEncoder
    clips: Sequence[np.ndarray]
    batch_size: int
    fallback: bool
    recognizer: Recognizer | None
    full_context: bool
    log: Log
    options: dict[str, Any]

    def decode(self, pieces: Sequence[Piece]) -> Iterator[_Decoded]:
        """Decode ``pieces``, longest first; with fallback, decode those that need it again, at higher temperatures.

        Yield each with its last result, which is empty if it is silent, and the candidates of all its texts.
        """
        candidates: dict[Piece, list[Candidate]] = defaultdict(list)
        waiting = list(pieces)
        for temperature in _TEMPERATURES if self.fallback else (0.0,):
            waiting.sort(key=lambda piece: piece.start - piece.end)
            again: list[Piece] = []
            while waiting:
                done = set[Piece]()
                slots = min(self.batch_size, len(waiting))
                try:
                    for piece, result, found in self._decode_once(waiting, slots, temperature):
                        done.add(piece)
                        candidates[piece] += found
                        if self.fallback and temperature < _TEMPERATURES[-1] and needs_fallback(result):
                            again.append(piece)
                            continue
                        if self.fallback and is_silent(result):
                            result = replace(result, text="", tokens=[])
                        yield piece, result, candidates.pop(piece)
                except torch.OutOfMemoryError as error:
                    device = self.encoder.model.device
                    if slots == 1:
                        raise UserError(
                            f"the memory of {device} does not hold one clip beside this model: "
                            "choose a smaller model, --precision fp16, or --device cpu"
                        ) from error
                    self.batch_size = slots // 2
                    self.log(f"out of memory on {device}: going on with --batch-size {self.batch_size}")
                waiting = [piece for piece in waiting if piece not in done]
            waiting = again

    def _decode_once(self, pieces: Sequence[Piece], slots: int, temperature: float) -> Iterator[_Decoded]:
        """Decode ``pieces``, encoded in batches of a quarter of the slots, and find candidates.

        The decoder's memory is freed at the end.
        """
        decoder = BatchDecoder(self.encoder.model, slots, **self.options)
        for clip in decoder.decode(self._encoded(pieces, max(1, slots // 4), temperature), temperature):
            piece, found = pieces[clip.index], list[Candidate]()
            if self.recognizer and not (self.fallback and is_silent(clip.result)):
                found = self.recognizer.candidates(clip, (piece.end - piece.start) / SAMPLE_RATE, piece.count == 1)
            yield piece, replace(clip.result, audio_features=torch.empty(0)), found  # an hour's would be 400 MB

    def _encoded(self, pieces: Sequence[Piece], batch_size: int, temperature: float) -> Iterator[AudioFeatures]:
        """Yield batches of encoded pieces; their seeds are of samples and temperature, so texts can be reproduced."""
        device = self.encoder.model.device
        pin = device.type == "cuda"
        for batch in split(pieces, batch_size):
            clips = [self.clips[piece.clip][piece.start : piece.end] for piece in batch]
            seeds = [zlib.crc32(clip.tobytes()) * 16 + round(10 * temperature) for clip in clips]
            contexts = [context_of(len(clip), self.full_context) for clip in clips]
            audio = collate(clips, pin).to(device, non_blocking=True)
            yield replace(self.encoder(audio, contexts), seeds=seeds)


def _transcribe(decoder: _PieceDecoder) -> Iterator[Transcript]:
    spans = [cut_at_pauses(decoder.clips[clip]) for clip in range(len(decoder.clips))]
    pieces = [Piece(clip, start, end, len(its)) for clip, its in enumerate(spans) for start, end in its]
    waiting = [len(its) for its in spans]  # pieces of each clip that are not decoded yet
    decoded: dict[int, list[_Decoded]] = defaultdict(list)  # of each clip
    in_part: list[tuple[_Decoded, list[Piece]]] = []  # pieces with speech that was not heard, and parts of them

    def settle(each: _Decoded) -> Iterator[Transcript]:
        piece, _, candidates = each
        cuts: list[int] = []
        if candidates and candidates[-1].times:
            cuts = cuts_around_unheard(decoder.clips[piece.clip][piece.start : piece.end], candidates[-1].times)
        if cuts:
            edges = [piece.start, *(piece.start + cut for cut in cuts), piece.end]
            in_part.append((each, [Piece(piece.clip, *edge, piece.count + len(cuts)) for edge in pairwise(edges)]))
        else:
            yield from take(each)

    def take(each: _Decoded) -> Iterator[Transcript]:
        clip = each[0].clip
        decoded[clip].append(each)
        waiting[clip] -= 1
        if not waiting[clip]:
            yield _transcript(decoded.pop(clip), decoder.recognizer)

    for each in decoder.decode(pieces):
        yield from settle(each)
    while in_part:
        unsettled = [*in_part]
        in_part.clear()
        heard = {each[0]: each for each in decoder.decode([part for _, parts in unsettled for part in parts])}
        for whole, parts in unsettled:
            again = [heard[part] for part in parts]
            if sum(map(_letters_found, again)) > _letters_found(whole) + _MORE:
                waiting[whole[0].clip] += len(parts) - 1
                for each in again:
                    yield from settle(each)
            else:
                yield from take(whole)


def _letters_found(each: _Decoded) -> float:
    """Return the letters of its nearest candidate less what differs; 0 if that is half, or the text unlikely."""
    lengths = ((sum(map(len, found.letters)), found.cost) for found in each[2] if not needs_fallback(each[1]))
    return max((length - cost for length, cost in lengths if cost < length / 2), default=0.0)


def _transcript(parts: list[_Decoded], recognizer: Recognizer | None) -> Transcript:
    """Join the pieces of a clip."""
    parts.sort(key=lambda part: part[0].start)
    found: list[RecognizedPiece] = []
    if recognizer:
        chosen = recognizer.choose(candidates for *_, candidates in parts)
        for (piece, result, _), candidate in zip(parts, chosen, strict=True):
            heard = candidate.heard if candidate else result.text
            found.append(RecognizedPiece(piece.start / SAMPLE_RATE, piece.end / SAMPLE_RATE, heard, candidate))
    text = " ".join(result.text for _, result, _ in parts if result.text)
    return Transcript(parts[0][0].clip, text, max(result.temperature for _, result, _ in parts), pieces=tuple(found))


def needs_fallback(result: DecodingResult) -> bool:
    """Return whether a text fails the tests of ``whisper.transcribe`` (its thresholds), or ends in a loop."""
    if is_silent(result):
        return False  # a higher temperature does not make it likelier
    return result.avg_logprob < -1.0 or result.compression_ratio > 2.4 or is_looping(result.tokens)


def is_silent(result: DecodingResult) -> bool:
    """Return whether ``whisper.transcribe`` would treat the audio as silence and the text as hallucinated."""
    return result.no_speech_prob > 0.6 and result.avg_logprob < -1.0


def cut_at_pauses(samples: np.ndarray) -> list[tuple[int, int]]:
    """Cut ``samples`` (n,) at 16 kHz into contiguous spans (start, end) of at most 30 s that hold every sample once.

    Up to 30 s are one span. Otherwise each lasts 10 to 30 s and ends where the audio in that range is quietest.
    """
    spans = []
    start = 0
    if len(samples) > N_SAMPLES:
        energy = smoothed_energy(samples, PAUSE)
    while len(samples) - start > N_SAMPLES:
        earliest = -(-(start + _SHORTEST) // FRAME)
        latest = min(start + N_SAMPLES, len(samples) - _SHORTEST) // FRAME
        end = (earliest + int(energy[earliest : latest + 1].argmin())) * FRAME
        spans.append((start, end))
        start = end
    return [*spans, (start, len(samples))]


def cuts_around_unheard(samples: np.ndarray, times: Sequence[LetterTime]) -> list[int]:
    """Return where to cut ``samples`` (n,), in the pauses around speech of which too few letters were heard.

    Models skip what is said a second time, and end before some of what follows a pause.
    """
    if len(samples) < 2 * _SPOKEN * FRAME:
        return []
    energy = smoothed_energy(samples, _SHORT_PAUSE)
    loud = energy >= QUIET * energy.mean()
    edges = np.flatnonzero(np.diff(loud, prepend=True, append=True)).tolist()
    pauses = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= _SHORT_PAUSE]
    middles = np.array([(start + end) / 2 for _, start, end in times]) * SAMPLE_RATE / FRAME
    for before, after in pairwise([0, *middles.astype(int).tolist(), len(energy)]):
        if loud[before:after].sum() > _GAP:  # there need be no pauses around what was not heard
            for first in (before, max(0, after - _NEAR)):
                at = first + int(energy[first : first + _NEAR].argmin())
                if all(at < a - _NEAR or b + _NEAR < at for a, b in pauses):
                    pauses.append((at, at))
    ends = [0, *(edge for pause in sorted(pauses) for edge in pause), len(energy)]
    spoken = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if b - a >= _SPOKEN]
    rates = [((a <= middles) & (middles < b)).sum() / (b - a) for a, b in spoken]
    unheard = [rate < _UNHEARD * max(rates) for rate in rates]
    return [
        (this[1] + following[0]) // 2 * FRAME
        for (this, following), (one, other) in zip(pairwise(spoken), pairwise(unheard), strict=True)
        if one != other
    ]


def smoothed_energy(samples: np.ndarray, frames: int) -> np.ndarray:
    """Compute the mean square over so many frames around sample 160 i, for every i; at the ends over what is there."""
    energy = frame_energy(samples)
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    edges = np.arange(len(sums))
    before, after = (np.clip(edges + shift, 0, len(energy)) for shift in (-frames // 2, frames // 2))
    return (sums[after] - sums[before]) / (after - before)
