"""Cutting recitations longer than Whisper's 30 seconds where the reciter takes a breath.

A model fine-tuned without timestamps has nothing to say about where its 30-second window ended, so that
``whisper.transcribe``, which moves its window by them, skips or repeats audio. Here a long recording is cut at its
quietest points, and each piece is decoded the way the model was trained.
"""

import numpy as np
from whisper.audio import N_SAMPLES, SAMPLE_RATE

_FRAME = SAMPLE_RATE // 100  # energy is measured, and cuts are placed, every 10 ms
_SMOOTHING = 30  # frames: a cut wants 300 ms of quiet, more than the closure of a stop consonant lasts
_SHORTEST = 10 * SAMPLE_RATE  # no piece is shorter: the model should hear a phrase


def segments(samples: np.ndarray) -> list[tuple[int, int]]:
    """Cut ``samples`` (n,) at 16 kHz into pieces of at most 30 s: contiguous (start, end) that cover each sample once.

    What fits into 30 s is one piece. Otherwise every piece lasts 10 to 30 s and ends where the energy, smoothed over
    300 ms, is lowest.
    """
    if len(samples) <= N_SAMPLES:
        return [(0, len(samples))]
    quiet = _smoothed_energy(samples)
    pieces = []
    start = 0
    while len(samples) - start > N_SAMPLES:
        earliest = -(-(start + _SHORTEST) // _FRAME)
        latest = min(start + N_SAMPLES, len(samples) - _SHORTEST) // _FRAME
        end = (earliest + int(quiet[earliest : latest + 1].argmin())) * _FRAME
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(samples))]


def _smoothed_energy(samples: np.ndarray) -> np.ndarray:
    """Mean square of the 300 ms around each multiple of 10 ms; entry i is around sample 160 i."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float64)
    energy = np.square(frames).mean(axis=1)
    # Entry i averages frames i - 15 to i + 14, whose common edge is sample 160 i.
    padded = np.pad(energy, (_SMOOTHING // 2, _SMOOTHING // 2), mode="edge")
    total = np.concatenate([[0.0], np.cumsum(padded)])
    return (total[_SMOOTHING:] - total[:-_SMOOTHING]) / _SMOOTHING
