"""Times of letters and words, from the decoder's attention to the audio (as in whisper's ``timing.py``).

Some cross-attention heads attend to the audio of the token that is being written. Their average is a matrix of tokens
by frames, and the best monotonic path through it gives the frames of each token. The path begins one input before that
of the first token, which takes the silence before it, and ends with that of eot, which takes the silence at the end.
"""

import codecs
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from whisper.audio import TOKENS_PER_SECOND
from whisper.model import Whisper

from ..data.text import letters
from .batch_decoder import DecodedClip

LetterTime = tuple[str, float, float]  # a letter, its start and its end in seconds

# A selection network: after these exchanges of the smaller and the larger of two, the middle one of 7 values is the
# median. It is what whisper's median filter computes by sorting, in a hundredth of the time.
_MEDIAN_OF_7 = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))


def alignment_heads(model: Whisper) -> list[tuple[int, int]]:
    """Return (layer, head) of the heads that attend to the audio of the token being written; those of the upper half of
    the layers, unless :func:`..checkpoints.checkpoint.load_checkpoint` knows those of a named size."""
    return [(layer, head) for layer, head in model.alignment_heads.indices().T.tolist()]


def token_starts(weights: Tensor, begin: int) -> list[float]:
    """Return the start of each token, and the end of the last, in seconds.

    Args:
        weights: (n_heads, n, n_frames) each token's attention to the frames of 20 ms that hold audio.
        begin: the index among the n inputs of the one that predicts the first token; not 0.
    """
    weights = weights.cpu()
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    weights = median_filter((weights - mean) / deviation.clamp(min=1e-9))
    matrix = weights.mean(dim=0)[begin - 1 :].double().numpy()
    return [frame / TOKENS_PER_SECOND for frame in _first_frames(matrix)[1:]]


def median_filter(x: Tensor) -> Tensor:
    """Replace each value of the last dimension by the median of the 7 around it, as ``whisper.timing`` does."""
    length = x.shape[-1]
    if length <= 3:
        return x
    padded = F.pad(x, (3, 3), mode="reflect")
    shifted = [padded[..., shift : shift + length] for shift in range(7)]
    for one, other in _MEDIAN_OF_7:
        smaller, larger = torch.minimum(shifted[one], shifted[other]), torch.maximum(shifted[one], shifted[other])
        shifted[one], shifted[other] = smaller, larger
    return shifted[3]


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


def letter_times(clip: DecodedClip, heads: Sequence[tuple[int, int]], seconds: float) -> list[LetterTime]:
    """Return when the :func:`letters` of the text of ``clip``, of so many ``seconds``, are said.

    A text that exceeds the context, or ends inside a character, loses its end.
    """
    tokenizer, begin = clip.decoder.task.tokenizer, clip.decoder.begin
    tokens = clip.result.tokens[: len(clip.decoder.positional_embedding) - begin]
    frames = max(1, int(seconds * TOKENS_PER_SECOND))
    starts = token_starts(clip.attention(tokens, heads, frames), begin - 1)
    times: list[LetterTime] = []
    decode = codecs.getincrementaldecoder("utf-8")("ignore").decode
    character_start = starts[0]
    for token, end in zip(tokens, starts[1:], strict=True):
        text = decode(tokenizer.encoding.decode_single_token_bytes(token)) if token < tokenizer.eot else ""
        if text:  # or the token ends inside a character
            spelled = letters(text)
            edges = np.linspace(character_start, end, len(spelled) + 1).tolist()
            times += zip(spelled, edges, edges[1:], strict=False)
            character_start = end
    return times


def word_positions(words: Sequence[str], heard: str) -> list[float]:
    """Return where each of ``words`` begins in the letters ``heard``, and where the last ends, both as letters."""
    positions: list[float] = []  # of each letter of the words
    for edit in Levenshtein.opcodes("".join(words), heard):
        count, length = edit.src_end - edit.src_start, edit.dest_end - edit.dest_start
        positions += [edit.dest_start + length * i / count for i in range(count)]
    positions.append(len(heard))
    return [positions[first] for first in accumulate(map(len, words), initial=0)]


def word_times(words: Sequence[str], heard: Sequence[LetterTime]) -> list[tuple[float, float]]:
    """Return the start and end of each of ``words``, given by their letters, in seconds.

    They are those of the letters that a word is aligned with in ``heard``. A word that was not heard has no length.
    """
    if not heard:
        return [(0.0, 0.0)] * len(words)
    edges = [*(start for _, start, _ in heard), heard[-1][2]]
    positions = word_positions(words, "".join(letter for letter, *_ in heard))
    return [*pairwise(np.interp(positions, range(len(edges)), edges).tolist())]
