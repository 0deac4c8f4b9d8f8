"""Times of tokens and words, from the decoder's attention to the audio (as in whisper's ``timing.py``).

Some cross-attention heads attend to the audio of the token that is being written. Their average is a matrix of tokens
by frames, and the best monotonic path through it gives the frames of each token.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from whisper.audio import TOKENS_PER_SECOND
from whisper.model import Whisper
from whisper.timing import median_filter

from .nearest import letters

_FILTER = 7  # frames, whisper's median filter


def alignment_heads(model: Whisper) -> list[tuple[int, int]]:
    """Return (layer, head) of the heads that attend to the audio of the token being written.

    :func:`..checkpoints.checkpoint.load_checkpoint` sets those of a named size; Whisper's default is all heads of the
    upper half of the layers.
    """
    return [(layer, head) for layer, head in model.alignment_heads.indices().T.tolist()]


def token_starts(weights: Tensor, begin: int) -> list[float]:
    """Return the start of each token, and the end of the last, in seconds.

    Args:
        weights: (n_heads, n, n_frames) each token's attention to the frames of 20 ms that hold audio.
        begin: the index among the n inputs of the one that predicts the first token.
    """
    weights = weights.cpu()
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    weights = median_filter((weights - mean) / deviation.clamp(min=1e-9), _FILTER)
    matrix = weights.mean(dim=0)[begin:].double().numpy()
    return [frame / TOKENS_PER_SECOND for frame in _first_frames(matrix)]


def _first_frames(matrix: np.ndarray) -> list[int]:
    """Cut the frames into consecutive spans, one for each row of ``matrix`` (n, n_frames), so that the sum of the
    values in them is largest; return the first frame of each. With fewer frames than rows, spans may be empty."""
    rows, frames = matrix.shape
    sums = np.concatenate([np.zeros((rows, 1)), matrix.cumsum(axis=1)], axis=1)  # of the frames before each
    best = np.zeros(frames + 1)  # sum of the rows so far, if they end before each frame
    best[1:] = -np.inf
    starts = np.zeros((rows, frames + 1), dtype=np.int64)
    for row in range(rows):
        gain = best - sums[row]
        largest = np.maximum.accumulate(gain)
        starts[row] = np.maximum.accumulate(np.where(gain == largest, np.arange(frames + 1), 0))
        best = largest + sums[row]
    first_frames, end = [], frames
    for row in reversed(range(rows)):
        end = int(starts[row, end])
        first_frames.append(end)
    return first_frames[::-1]


def letter_times(text: Sequence[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Spread the time of each piece of ``text`` (piece, start, end) evenly over its :func:`letters`."""
    times = []
    for piece, start, end in text:
        spelled = letters(piece)
        times += [(letter, start + (end - start) * i / len(spelled)) for i, letter in enumerate(spelled)]
    return times


def word_times(words: Sequence[str], heard: Sequence[tuple[str, float]], end: float) -> list[float]:
    """Return the start of each of ``words``, and the end of the last, by the letters they are aligned with.

    ``heard`` are the letters that were heard, each with its start; the last ends at ``end``.
    """
    starts = [*accumulate((len(letters(word)) for word in words), initial=0)]
    text, times = "".join(letter for letter, _ in heard), [*(time for _, time in heard), end]
    places: list[float] = []  # for each letter of the words, its position in what was heard
    for edit in Levenshtein.opcodes("".join(map(letters, words)), text):
        count, length = edit.src_end - edit.src_start, edit.dest_end - edit.dest_start
        places += [edit.dest_start + length * i / count for i in range(count)]
    places.append(len(heard))
    return [float(np.interp(places[start], range(len(times)), times)) for start in starts]
