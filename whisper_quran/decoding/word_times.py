"""When each token was said: read off the attention that the decoder pays to the audio (whisper's ``timing.py``).

Some heads of a Whisper attend to the place in the audio that they are writing down. Averaged, they give a matrix of
tokens by frames, and the cheapest way through it, forwards in both, says in which frames each token is.
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
    """Return (layer, head) of the heads that attend to what is being written.

    :func:`..checkpoints.checkpoint.load_checkpoint` sets those of a named size; Whisper's default is all heads of the
    upper half of the layers.
    """
    return [(layer, head) for layer, head in model.alignment_heads.indices().T.tolist()]


def token_starts(weights: Tensor, begin: int) -> list[float]:
    """Return when each token begins, in seconds, and when the last has ended.

    Args:
        weights: (n_heads, n, n_frames) each token's attention to the frames of 20 ms that hold audio.
        begin: of the n inputs, the one after which the first token is said.
    """
    weights = weights.cpu()
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    weights = median_filter((weights - mean) / deviation.clamp(min=1e-9), _FILTER)
    matrix = weights.mean(dim=0)[begin:].double().numpy()
    return [frame / TOKENS_PER_SECOND for frame in _first_frames(matrix)]


def _first_frames(matrix: np.ndarray) -> list[int]:
    """Cut the frames into one span after another for the rows of ``matrix`` (n, n_frames), so that the sum of what lies
    in them is largest; return where each begins. A row may have no frame if there are fewer frames than rows."""
    rows, frames = matrix.shape
    sums = np.concatenate([np.zeros((rows, 1)), matrix.cumsum(axis=1)], axis=1)  # of the frames before each
    best = np.zeros(frames + 1)  # of all rows so far, if they end before each frame
    best[1:] = -np.inf
    starts = np.zeros((rows, frames + 1), dtype=np.int64)
    for row in range(rows):
        gain = best - sums[row]
        largest = np.maximum.accumulate(gain)
        starts[row] = np.maximum.accumulate(np.where(gain == largest, np.arange(frames + 1), 0))
        best = largest + sums[row]
    ends, end = [], frames
    for row in reversed(range(rows)):
        end = int(starts[row, end])
        ends.append(end)
    return ends[::-1]


def letter_times(text: Sequence[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Spread pieces of text, each from when to when it is said, over the letters that :func:`letters` leaves."""
    times = []
    for piece, start, end in text:
        said = letters(piece)
        times += [(letter, start + (end - start) * i / len(said)) for i, letter in enumerate(said)]
    return times


def word_times(words: Sequence[str], said: Sequence[tuple[str, float]], end: float) -> list[float]:
    """Return when each of ``words`` begins, and when the last has ended: by the letters they are aligned with.

    ``said`` are the letters that were heard, each with when it begins; the last has ended at ``end``.
    """
    starts = [*accumulate((len(letters(word)) for word in words), initial=0)]
    heard, times = "".join(letter for letter, _ in said), [*(time for _, time in said), end]
    places: list[float] = []  # in what was heard, of each letter of the words
    for edit in Levenshtein.opcodes("".join(map(letters, words)), heard):
        count, length = edit.src_end - edit.src_start, edit.dest_end - edit.dest_start
        places += [edit.dest_start + length * i / count for i in range(count)]
    places.append(len(heard))
    return [float(np.interp(places[start], range(len(times)), times)) for start in starts]
