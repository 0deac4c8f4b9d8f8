"""Hypotheses of a decoder's slots: how their next tokens are sampled, also at a temperature.

Everything is done for all slots at once, in tensor operations of fixed shapes that a CUDA graph can replay.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2^64 over the golden ratio


class Hypotheses:
    """The tokens sampled in each slot. A slot without a clip, or whose clip has ended, repeats eot at position 0.

    Attributes:
        tokens: (slots,) each slot's next input.
        positions: (slots,) the position of that input.
        sampled: (slots, last + 3) the sampled tokens, in the columns of their positions, from ``begin`` on; then eot.
        sum_logprobs: (slots,) the sum of their log-probabilities.
        seeds: (slots,) the seeds of sampling at a temperature.
    """

    def __init__(self, slots: int, begin: int, last: int, eot: int, device: torch.device) -> None:
        self.begin, self.last, self.eot = begin, last, eot
        self.tokens = torch.full((slots,), eot, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.sampled = torch.full((slots, last + 3), eot, device=device)
        self.sum_logprobs = torch.zeros(slots, device=device)
        self.seeds = torch.zeros_like(self.tokens)
        self.state: Sequence[Tensor] = (self.tokens, self.positions, self.sampled, self.sum_logprobs, self.seeds)

    def enter(self, slots: Tensor, token: Tensor, seeds: Tensor) -> None:
        """Start new hypotheses in ``slots`` (n,), after ``token``, the prompt's last, with their ``seeds`` (n,)."""
        self.tokens[slots] = token
        self.positions[slots] = self.begin - 1
        self.sampled[slots, self.begin] = self.eot
        self.sum_logprobs[slots] = 0.0
        self.seeds[slots] = seeds

    def sample(self, logits: Tensor, slots: Tensor, temperature: Tensor | None) -> None:
        """Append a token to each of the ``slots`` (n,) that have a clip: the likeliest of ``logits`` (n, n_vocab), or
        a sample at ``temperature`` ().

        A text ends with eot, or at the limit. masked_fill rather than torch.where, because a scalar given to where is
        copied to the GPU, which is forbidden during capture.
        """
        positions, inactive = self.positions[slots], self.tokens[slots] == self.eot
        scores = logits
        if temperature is not None:
            scores = logits / temperature + gumbel(self.seeds[slots], positions, logits.shape[1])
        chosen = scores.argmax(dim=-1)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, chosen[:, None]).squeeze(1)
        columns = (positions + 1).masked_fill(inactive, self.last + 2)
        self.sampled[slots, columns] = chosen.masked_fill(inactive, self.eot)
        self.sampled[slots, (columns + 1).clamp(max=self.last + 2)] = self.eot
        self.sum_logprobs[slots] += logprobs.masked_fill(inactive, 0.0)
        ended = inactive | (chosen == self.eot) | (positions >= self.last)
        self.tokens[slots] = chosen.masked_fill(ended, self.eot)
        self.positions[slots] = (positions + 1).masked_fill(ended, 0)

    def end(self, slots: Tensor) -> None:
        """End the hypotheses in ``slots`` (n,)."""
        self.tokens[slots] = self.eot
        self.positions[slots] = 0

    def texts(self, slots: Tensor) -> list[list[int]]:
        """Return the tokens (without eot) of ``slots`` (n,)."""
        return [row[self.begin : row.index(self.eot, self.begin)] for row in self.sampled[slots].tolist()]


def gumbel(seeds: Tensor, positions: Tensor, n_vocab: int) -> Tensor:
    """Compute Gumbel noise (n, n_vocab) from a hash (SplitMix64) of a row's seed, its position, and the token.

    The argmax of logits / temperature + noise is a sample of softmax(logits / temperature). So a text depends
    on its clip's seed, and not on its slot, its neighbours or the device.
    """
    x = (seeds + positions * 0x5851F42D4C957F2D)[:, None] + torch.arange(n_vocab, device=seeds.device) * _GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift)) * factor
    uniform = ((x >> 41) & 0x7FFFFF).float().add_(0.5).div_(2**23)
    return uniform.log_().neg_().log_().neg_()
