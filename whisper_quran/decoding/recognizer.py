"""Which runs of a closed text were said: near to what a model heard when it was free, and likely to the model itself.

A recording over 30 s is heard in pieces, each of which has several candidates (:mod:`.nearest`). Of all ways to choose
one for each piece the best is taken (Viterbi): the model's log-probability of the words, less a cost for the letters in
which they differ from those heard and for ends inside verses, and for going on elsewhere in the text than after the
piece before. So the same words in several places are told apart by what comes before and after them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from .closed_text import ClosedText, Run
from .nearest import BREAK, LetterIndex, Nearest

# In nats.
_LETTER = 3.0
_AWAY, _AWORD, _ELSEWHERE = 6.0, 0.1, 12.0  # going on so many words away, or anywhere: there are 78,000 in the Qur'an
_MARGIN = 2  # letters: what costs more than the nearest candidate and this is none
_SCORED = 12  # texts at most whose log-probability the model is asked for

Score = Callable[[Sequence[str]], list[float]]  # from texts to how likely the model finds each


@dataclass(frozen=True)
class Candidate(Nearest):
    """A run that may have been said.

    ``heard`` is the text that the model chose when free, ``free_log_probability`` how likely it finds that, and
    ``log_probability`` how likely the run's words. The text of a high temperature is near to short runs by chance: it
    is evidence of them only as far as it is likely.
    """

    heard: str
    log_probability: float
    free_log_probability: float

    @property
    def weight(self) -> float:
        """How much speaks for it, whatever comes before and after it."""
        return self.log_probability + self.free_log_probability - _LETTER * self.cost


class Recognizer:
    """Finds runs of ``text``, on ``device``, and when their words are said if it is given the model's alignment
    ``heads`` (:mod:`.word_times`)."""

    def __init__(self, text: ClosedText, device: torch.device, heads: Sequence[tuple[int, int]] = ()) -> None:
        self.text, self.letters, self.heads = text, LetterIndex(text, device), heads

    def candidates(self, heard: str, log_probability: float, score: Score, alone: bool = True) -> list[Candidate]:
        """Return what may have been said in a piece where a model heard ``heard``, which it finds that likely.

        Words that stand in several places are as many candidates. There are none if nothing is near. If no other words
        are, these are taken to be as likely as what was heard. Unless the piece is ``alone``, it may begin and end
        inside verses for nothing, if its neighbours go on there.
        """
        nearest = self.letters.nearest(heard, _MARGIN if alone else _MARGIN + 2 * BREAK)
        said = [" ".join(self.words(each)) for each in nearest]
        texts = list(dict.fromkeys(said))[:_SCORED]
        scores = score(texts) if len(texts) > 1 else [log_probability] * len(texts)
        likely = dict(zip(texts, scores, strict=True))
        return [
            Candidate(each.run, each.preface, each.distance, each.cost, heard, likely[text], log_probability)
            for each, text in zip(nearest, said, strict=True)
            if text in likely
        ]

    def choose(self, pieces: Iterable[Sequence[Candidate]]) -> list[Candidate | None]:
        """Choose a candidate for each of the ``pieces`` of a recording, in order; None for those that have none."""
        ways: list[tuple[float, list[Candidate | None]]] = [(0.0, [])]  # the best to each candidate of the last piece
        for candidates in pieces:
            if not candidates:
                ways = [(weight, [*way, None]) for weight, way in ways]
                continue
            following = []
            for candidate in candidates:
                weight, way = max(((w - self._step(way, candidate), way) for w, way in ways), key=lambda each: each[0])
                following.append((weight + candidate.weight, [*way, candidate]))
            ways = following
        return max(ways, key=lambda each: each[0])[1]

    def _step(self, way: Sequence[Candidate | None], candidate: Candidate) -> float:
        """Return what it costs to go on with ``candidate`` after the last run of ``way``."""
        before = next((each.run for each in reversed(way) if each), None)
        if before is None:
            return 0.0
        run = candidate.run
        if run.follows(before):
            verses = self.text.verses[run.passage]
            inside = verses[before.last] == verses[run.first]
            return -2 * _LETTER * BREAK * inside  # it is no end: what it cost both is given back
        if before.passage != run.passage:
            return _ELSEWHERE
        return min(_ELSEWHERE, _AWAY + _AWORD * abs(run.first - before.last - 1))

    def words(self, nearest: Nearest) -> list[str]:
        """Return the words of ``nearest``, its preface's first."""
        return [*nearest.preface.split(), *self.text.words(nearest.run)]


def joined(runs: Iterable[Run]) -> list[Run]:
    """Join the runs that go on where the one before ended."""
    whole: list[Run] = []
    for run in runs:
        if whole and run.follows(whole[-1]):
            whole[-1] = replace(whole[-1], last=run.last)
        else:
            whole.append(run)
    return whole
