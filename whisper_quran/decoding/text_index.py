"""An index over token sequences that answers, for many hypotheses at once: which token may come next?

It is an FM-index (Ferragina and Manzini, "Opportunistic data structures with applications", 2000) of the reversed text.
The places where a hypothesis stands in the text are then an interval (low, high) of a sorted list, whatever its length;
appending a token maps the interval to another with two look-ups, and the tokens that follow somewhere are those that
are counted between low and high. All of it is tensor arithmetic of fixed shapes, which a CUDA graph can replay.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SEPARATOR = 0  # the symbol that stands before, between and after passages
_BLOCK = 64  # symbols from one stored count to the next; those between are counted when asked for


class TextIndex:
    """The index of ``passages``, each of symbols from 1 to ``n_symbols`` - 1.

    Attributes:
        length: of the indexed text, separators included; (0, length) is the interval of the empty hypothesis.
        text: (length,) the passages, in order, each between separators.
    """

    def __init__(self, passages: Sequence[Sequence[int]], n_symbols: int) -> None:
        parts = [[SEPARATOR, *passage] for passage in passages]
        self.text = np.array([*(symbol for part in parts for symbol in part), SEPARATOR], dtype=np.int64)
        self.length = len(self.text)
        reverse = self.text[::-1]
        order = _suffix_array(reverse)
        self.places = self.length - 1 - order  # where in the text each suffix of its reverse begins
        following = reverse[order - 1]  # the symbol after each place; order - 1 is -1, a separator, at the text's end

        blocks = self.length // _BLOCK + 1
        padded = np.full(blocks * _BLOCK, SEPARATOR)
        padded[: self.length] = following
        counts = np.zeros((blocks, n_symbols), dtype=np.int32)
        np.add.at(counts, (np.arange(self.length) // _BLOCK, following), 1)
        self.following = torch.from_numpy(padded.reshape(blocks, _BLOCK))
        self.counts = torch.from_numpy(np.cumsum(counts, axis=0, dtype=np.int32) - counts)  # before each block
        totals = np.bincount(self.text, minlength=n_symbols)
        self.smaller = torch.from_numpy(np.cumsum(totals) - totals)  # how many symbols of the text are below each
        self.columns = torch.arange(_BLOCK)

    def to(self, device: torch.device) -> "TextIndex":
        """Return the index with its tensors on ``device``."""
        moved = object.__new__(TextIndex)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    def extend(self, intervals: Tensor, symbols: Tensor) -> Tensor:
        """Append ``symbols`` (...) to the hypotheses of ``intervals`` (..., 2); return the new intervals.

        That of a hypothesis that stands nowhere in the text is empty: its low is its high. None crosses a separator.
        """
        blocks = intervals // _BLOCK
        before = self.columns < (intervals % _BLOCK)[..., None]
        inside = ((self.following[blocks] == symbols[..., None, None]) & before).sum(dim=-1)
        symbols = symbols[..., None]
        extended = self.smaller[symbols] + self.counts[blocks, symbols] + inside
        return extended.masked_fill(symbols == SEPARATOR, 0)

    def count_following(self, intervals: Tensor) -> Tensor:
        """Count how often each symbol follows the hypotheses of ``intervals`` (..., 2): int32 (..., n_symbols)."""
        blocks = intervals // _BLOCK
        before = self.columns < (intervals % _BLOCK)[..., None]
        low, high = self.counts[blocks].scatter_add_(-1, self.following[blocks], before.int()).unbind(dim=-2)
        return high - low

    def find(self, symbols: Sequence[int]) -> np.ndarray:
        """Return where in the text ``symbols`` end, in order: the positions of their last symbol."""
        interval = torch.tensor([0, self.length], device=self.smaller.device)
        for symbol in symbols:
            interval = self.extend(interval, torch.tensor(symbol, device=interval.device))
        low, high = interval.tolist()
        return np.sort(self.places[low:high])


def _suffix_array(text: np.ndarray) -> np.ndarray:
    """Sort the suffixes of ``text`` (n,) by doubling the length they are compared at (Manber and Myers, 1993)."""
    ranks = np.unique(text, return_inverse=True)[1]
    length, compared = len(text), 1
    while True:
        second = np.zeros(length, dtype=np.int64)  # of suffixes that end there: before all others
        second[: length - compared] = ranks[compared:] + 1
        keys = ranks * (length + 1) + second
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        ranks = np.empty(length, dtype=np.int64)
        ranks[order] = np.concatenate([[0], np.cumsum(keys[1:] != keys[:-1])])
        compared *= 2
        if ranks[order[-1]] == length - 1 or compared >= length:
            return order
