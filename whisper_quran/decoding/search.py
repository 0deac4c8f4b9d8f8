"""Which token comes next: the likeliest, or one sampled at a temperature. Beams are in :mod:`.beam_search`.

A search chooses for all slots of a :class:`.batch_decoder.BatchDecoder` at once, in tensor operations of fixed shapes
that a CUDA graph can replay.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_ODD = -0x61C8864680B583EB  # 2^64 over the golden ratio


class Hypotheses:
    """What has been said in each slot, in ``width`` ways: row ``slot * width + i`` is the i-th.

    A row without a clip, or whose clip has ended, goes on sampling eot at position 0.

    Attributes:
        tokens: (rows,) each row's next input.
        positions: (rows,) the position of that.
        sampled: (rows, last + 3) what was sampled, in the column of its position, from ``begin`` on; then eot.
        sum_logprobs: (rows,) the log-probability of that.
    """

    def __init__(self, rows: int, begin: int, last: int, eot: int, device: torch.device) -> None:
        self.begin, self.last, self.eot = begin, last, eot
        self.tokens = torch.full((rows,), eot, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.sampled = torch.full((rows, last + 3), eot, device=device)
        self.sum_logprobs = torch.zeros(rows, device=device)
        self.state: Sequence[Tensor] = (self.tokens, self.positions, self.sampled, self.sum_logprobs)

    def enter(self, rows: Tensor, token: Tensor) -> None:
        """Begin anew in ``rows`` (n,), after ``token``, the prompt's last."""
        self.tokens[rows] = token
        self.positions[rows] = self.begin - 1
        self.sampled[rows, self.begin] = self.eot
        self.sum_logprobs[rows] = 0.0

    def append(self, rows: Tensor, chosen: Tensor, ended: Tensor | bool = False) -> None:
        """Append the tokens ``chosen`` (n,) to ``rows`` (n,), but for those without a clip.

        Rows end with eot, at the limit, and if they have ``ended`` (n,) otherwise.
        """
        positions, absent = self.positions[rows], self.tokens[rows] == self.eot
        columns = (positions + 1).masked_fill(absent, self.last + 2)
        self.sampled[rows, columns] = chosen.masked_fill(absent, self.eot)
        self.sampled[rows, (columns + 1).clamp(max=self.last + 2)] = self.eot
        ended = ended | absent | (chosen == self.eot) | (positions >= self.last)
        self.tokens[rows] = chosen.masked_fill(ended, self.eot)
        self.positions[rows] = (positions + 1).masked_fill(ended, 0)

    def end(self, rows: Tensor) -> None:
        """End ``rows`` (n,) where they are."""
        self.tokens[rows] = self.eot
        self.positions[rows] = 0

    def text(self, sampled: list[int]) -> list[int]:
        """Return the tokens of a row's text, of the row of ``sampled``."""
        return sampled[self.begin : sampled.index(self.eot, self.begin)]


class Search(Protocol):
    """A way to choose tokens. ``state`` is what it remembers: tensors whose rows, or slots, move with the clips."""

    state: Sequence[Tensor]

    def enter(self, rows: Tensor) -> None:
        """Forget what was in ``rows`` (n,): clips have entered there."""

    def choose(self, logits: Tensor, logprobs: Tensor, rows: Tensor) -> Tensor | None:
        """Choose a token for each of ``rows`` (n,), all of them those of whole slots, and append it.

        Args:
            logits: (n, n_vocab), -inf where a token may not be chosen.
            logprobs: (n, n_vocab) how likely the model finds each token, whether or not it may be chosen.

        Returns:
            The row (n,) that each row now goes on from; None if each goes on from itself.
        """

    def results(self, slots: Tensor) -> list[tuple[list[int], float]]:
        """Return tokens (without eot) and their log-probability (with eot's) for each of ``slots`` (n,)."""


class GreedySearch:
    """The likeliest token (whisper's GreedyDecoder)."""

    def __init__(self, hypotheses: Hypotheses) -> None:
        self.hypotheses = hypotheses
        self.state: Sequence[Tensor] = ()

    def enter(self, rows: Tensor) -> None:
        """There is nothing to forget."""

    def choose(self, logits: Tensor, logprobs: Tensor, rows: Tensor) -> None:
        """masked_fill rather than where: a scalar given to where is copied to the GPU, which a capture forbids."""
        ended = self.hypotheses.tokens[rows] == self.hypotheses.eot
        chosen = self._scores(logits, rows).argmax(dim=-1)
        said = logprobs.gather(1, chosen[:, None]).squeeze(1)
        self.hypotheses.sum_logprobs[rows] += said.masked_fill(ended, 0.0)
        self.hypotheses.append(rows, chosen)

    def _scores(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits

    def results(self, slots: Tensor) -> list[tuple[list[int], float]]:
        sampled, sums = self.hypotheses.sampled[slots].tolist(), self.hypotheses.sum_logprobs[slots].tolist()
        return [(self.hypotheses.text(row), total) for row, total in zip(sampled, sums, strict=True)]


class Sampling(GreedySearch):
    """A sample of softmax(logits / temperature). It depends on the clip's seed, and not on its row or the device."""

    def __init__(self, hypotheses: Hypotheses) -> None:
        super().__init__(hypotheses)
        self.temperature = torch.ones((), device=hypotheses.tokens.device)
        self.seeds = torch.zeros_like(hypotheses.tokens)
        self.state = (self.seeds,)

    def _scores(self, logits: Tensor, rows: Tensor) -> Tensor:
        noise = _gumbel(self.seeds[rows], self.hypotheses.positions[rows], logits.shape[1])
        return logits / self.temperature + noise


def _gumbel(seeds: Tensor, positions: Tensor, n_vocab: int) -> Tensor:
    """Compute Gumbel noise (n, n_vocab) that is a hash (SplitMix64) of seed, position and token."""
    x = (seeds + positions * 0x5851F42D4C957F2D)[:, None] + torch.arange(n_vocab, device=seeds.device) * _ODD
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift)) * factor
    uniform = ((x >> 41) & 0x7FFFFF).float().add_(0.5).div_(2**23)
    return uniform.log_().neg_().log_().neg_()
