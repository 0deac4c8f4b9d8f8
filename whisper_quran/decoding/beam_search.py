"""Beam search for all slots at once: the tokens of whisper's BeamSearchDecoder, ranked by its ranker.

Each slot has ``width`` hypotheses. In every step the likeliest continuations of all of them are taken in order until
``width`` go on; those on the way that end with eot are finished. A clip has ended when ``width`` times ``patience``
are finished.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from whisper.decoding import SequenceRanker

from .search import Hypotheses


class BeamSearch:
    """A :class:`.search.Search` with ``width`` hypotheses a slot, in the order of their log-probability.

    A hypothesis that no token may follow has the log-probability -inf from then on, and is never a result. If
    ``only_finished``, neither is one that is at the limit without having ended, unless there is no other.
    """

    def __init__(
        self, hypotheses: Hypotheses, width: int, patience: float, ranker: SequenceRanker, only_finished: bool
    ) -> None:
        self.hypotheses, self.width, self.ranker, self.only_finished = hypotheses, width, ranker, only_finished
        self.most = round(width * patience)  # finished hypotheses; what does not fit goes to a column after them
        device, (rows, length) = hypotheses.tokens.device, hypotheses.sampled.shape
        slots = rows // width
        self.finished = torch.zeros((slots, self.most + 1, length), dtype=torch.long, device=device)
        self.finished_sums = torch.zeros((slots, self.most + 1), device=device)
        self.count = torch.zeros(slots, dtype=torch.long, device=device)
        self.beams = torch.arange(width, device=device)
        self.state: Sequence[Tensor] = (self.finished, self.finished_sums, self.count)

    def enter(self, rows: Tensor) -> None:
        """Begin with one hypothesis: the others would say the same."""
        beams = rows.view(-1, self.width)
        self.hypotheses.sum_logprobs[beams[:, 1:]] = -torch.inf
        self.count[beams[:, 0] // self.width] = 0

    def choose(self, logits: Tensor, logprobs: Tensor, rows: Tensor) -> Tensor:
        hypotheses, beams = self.hypotheses, rows.view(-1, self.width)
        ended = hypotheses.tokens[beams] == hypotheses.eot  # (slots, width): all of a slot's or none
        likeliest, tokens = logprobs.masked_fill(logits == -torch.inf, -torch.inf).topk(self.width + 1)
        # Of each slot, all candidates (slots, width * (width + 1)) in order; equals stay in whisper's order.
        sums = (hypotheses.sum_logprobs[rows][:, None] + likeliest).view(len(beams), -1)
        sums, order = sums.sort(dim=-1, descending=True, stable=True)
        tokens, parents = tokens.view(len(beams), -1).gather(1, order), order // (self.width + 1)
        self._finish(beams, tokens, parents, sums.masked_fill(ended[:, :1], -torch.inf))

        go_on = (tokens == hypotheses.eot).int().argsort(dim=-1, stable=True)[:, : self.width]
        parents = parents.gather(1, go_on).where(~ended, self.beams)
        sums = sums.gather(1, go_on).where(~ended, hypotheses.sum_logprobs[beams])
        sources = (beams[:, :1] + parents).view(-1)
        hypotheses.sampled[rows] = hypotheses.sampled[sources]
        hypotheses.sum_logprobs[rows] = sums.view(-1)
        enough = (self.count[beams[:, :1] // self.width] >= self.most) | (sums[:, :1] == -torch.inf)
        hypotheses.append(rows, tokens.gather(1, go_on).view(-1), enough.expand_as(beams).reshape(-1))
        return sources

    def _finish(self, beams: Tensor, tokens: Tensor, parents: Tensor, sums: Tensor) -> None:
        """Keep the hypotheses that eot ends, of the candidates (slots, n) in order, before ``width`` others go on."""
        slots, is_eot = beams[:, 0] // self.width, tokens == self.hypotheses.eot
        finishes = is_eot & ((~is_eot).cumsum(dim=-1) < self.width) & (sums > -torch.inf)
        count = self.count[slots][:, None] + finishes.cumsum(dim=-1)
        columns = (count - 1).masked_fill(~finishes, self.most).clamp(max=self.most)
        self.finished_sums[slots[:, None], columns] = sums
        column = torch.full_like(beams, self.most).scatter_reduce(1, parents, columns, "amin")  # of each parent
        self.finished[slots[:, None], column] = self.hypotheses.sampled[beams]
        self.count[slots] = count[:, -1].clamp(max=self.most)

    def results(self, slots: Tensor) -> list[tuple[list[int], float]]:
        """Rank what is finished and, if that is too little, what is not (whisper's ``finalize``)."""
        beams = slots[:, None] * self.width + self.beams
        finished = (self.finished[slots], self.finished_sums[slots], self.count[slots])
        unfinished = (self.hypotheses.sampled[beams], self.hypotheses.sum_logprobs[beams])
        results = []
        for texts, sums, count, *others in zip(*(each.tolist() for each in (*finished, *unfinished)), strict=True):
            candidates = list(zip(texts, sums, strict=True))[:count]
            if not (candidates and self.only_finished):
                alive = [(text, total) for text, total in zip(*others, strict=True) if total > -torch.inf]
                candidates += alive[: max(0, self.width - count)]
            results.append(self._best([(self.hypotheses.text(text), total) for text, total in candidates]))
        return results

    def _best(self, candidates: list[tuple[list[int], float]]) -> tuple[list[int], float]:
        if not candidates:
            return [], -torch.inf
        tokens, sums = zip(*candidates, strict=True)
        (best,) = self.ranker.rank([tokens], [sums])
        return candidates[best]
