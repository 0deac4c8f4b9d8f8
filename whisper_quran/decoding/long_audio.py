"""Cutting recitations longer than Whisper's 30 seconds where the reciter pauses.

A model fine-tuned without timestamps cannot say where in its 30-second window the text ended. ``whisper.transcribe``,
which moves its window by those timestamps, then skips or repeats audio. Here a long recording is cut at its quietest
points, and each piece is decoded the way the model was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from whisper.audio import N_SAMPLES, SAMPLE_RATE

_FRAME = SAMPLE_RATE // 100  # energy is measured, and cuts are placed, every 10 ms
_WINDOW = 30  # frames: 300 ms of quiet are a pause, the closure of a stop consonant is shorter
_SHORTEST = 10 * SAMPLE_RATE  # a piece is a phrase at least


@dataclass(frozen=True)
class Piece:
    """Samples ``start`` to ``end`` of a clip, its ``number``-th piece."""

    clip: int
    number: int
    start: int
    end: int


def pieces(clips: Sequence[np.ndarray]) -> list[Piece]:
    """The pieces of all ``clips``, in order. Every clip is looked at once, and none is kept."""
    return [
        Piece(clip, number, start, end)
        for clip in range(len(clips))
        for number, (start, end) in enumerate(segments(clips[clip]))
    ]


def segments(samples: np.ndarray) -> list[tuple[int, int]]:
    """Cut ``samples`` (n,) at 16 kHz into contiguous spans (start, end) of at most 30 s that hold every sample once.

    What fits into 30 s is one span. Otherwise each lasts 10 to 30 s and ends where the audio between is quietest.
    """
    spans = []
    start = 0
    if len(samples) > N_SAMPLES:
        energy = _smoothed_energy(samples)
    while len(samples) - start > N_SAMPLES:
        earliest = -(-(start + _SHORTEST) // _FRAME)
        latest = min(start + N_SAMPLES, len(samples) - _SHORTEST) // _FRAME
        end = (earliest + int(energy[earliest : latest + 1].argmin())) * _FRAME
        spans.append((start, end))
        start = end
    return [*spans, (start, len(samples))]


def _smoothed_energy(samples: np.ndarray) -> np.ndarray:
    """The mean square over 300 ms around sample 160 i, for every i. At the ends, over what is there of the 300 ms."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    energy = np.square(frames, dtype=np.float64).mean(axis=1)
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    edges = np.arange(len(sums))
    before, after = (np.clip(edges + shift, 0, len(energy)) for shift in (-_WINDOW // 2, _WINDOW // 2))
    return (sums[after] - sums[before]) / (after - before)
