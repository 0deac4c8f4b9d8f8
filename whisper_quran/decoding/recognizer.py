"""Recognition of runs of a closed text: those near to a model's unconstrained text, and likely to the model itself.

A recording over 30 s is decoded in pieces, each with several candidates (:mod:`.nearest`). The Viterbi algorithm
chooses one for each piece: a path's score is the model's log-probability of the words, less costs for letters that
differ from those heard, for ends inside verses, and for jumps in the text from one piece to the next. So words that
occur in several places are distinguished by their context.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from .closed_text import ClosedText, Run
from .nearest import BREAK, LetterIndex, Nearest

# In nats.
_LETTER = 3.0
_JUMP, _JUMPED_WORD, _ELSEWHERE = 6.0, 0.1, 12.0  # a jump, each word of it, and at most: the Qur'an has 78,000 words
_MARGIN = 2  # letters: a run that costs this much more than the nearest, at most, is a candidate
_SCORED = 12  # texts at most that the model scores

Score = Callable[[Sequence[str]], list[float]]  # texts -> the model's log-probability of each


@dataclass(frozen=True)
class Candidate(Nearest):
    """A run that may have been said.

    ``heard`` is the text decoded without constraint, ``free_log_probability`` the model's log-probability of it, and
    ``log_probability`` that of the run's words. A text sampled at a high temperature is near to short runs by chance,
    so it counts as evidence of them only as far as it is likely.
    """

    heard: str
    log_probability: float
    free_log_probability: float

    @property
    def weight(self) -> float:
        """Its score without regard to the pieces before and after it."""
        return self.log_probability + self.free_log_probability - _LETTER * self.cost


class Recognizer:
    """A finder of runs of ``text``, on ``device``; with the model's alignment ``heads`` their words are timed, too
    (:mod:`.word_times`)."""

    def __init__(self, text: ClosedText, device: torch.device, heads: Sequence[tuple[int, int]] = ()) -> None:
        self.text, self.letters, self.heads = text, LetterIndex(text, device), heads

    def candidates(self, heard: str, log_probability: float, score: Score, alone: bool = True) -> list[Candidate]:
        """Return the runs that may have been said in a piece where a model heard ``heard``, with that log-probability.

        Words that occur in several places are as many candidates. There are none if no run is near. If only the same
        words are near, they are taken to be as likely as what was heard. Unless the piece is ``alone``, the margin
        allows for two ends inside verses, which cost nothing if its neighbours continue there.
        """
        nearest = self.letters.nearest(heard, _MARGIN if alone else _MARGIN + 2 * BREAK)
        texts = [self.join_words([each]) for each in nearest]
        distinct = list(dict.fromkeys(texts))[:_SCORED]
        scores = score(distinct) if len(distinct) > 1 else [log_probability] * len(distinct)
        score_of = dict(zip(distinct, scores, strict=True))
        return [
            Candidate(each.run, each.preface, each.distance, each.cost, heard, score_of[text], log_probability)
            for each, text in zip(nearest, texts, strict=True)
            if text in score_of
        ]

    def choose(self, pieces: Iterable[Sequence[Candidate]]) -> list[Candidate | None]:
        """Choose a candidate for each of the ``pieces`` of a recording, in order; None for those that have none."""
        paths: list[tuple[float, list[Candidate | None]]] = [(0.0, [])]  # the best to each last candidate
        for candidates in pieces:
            if not candidates:
                paths = [(weight, [*path, None]) for weight, path in paths]
                continue
            extended = []
            for candidate in candidates:
                reached = ((w - self._transition(path, candidate), path) for w, path in paths)
                weight, path = max(reached, key=lambda each: each[0])
                extended.append((weight + candidate.weight, [*path, candidate]))
            paths = extended
        return max(paths, key=lambda each: each[0])[1]

    def _transition(self, path: Sequence[Candidate | None], candidate: Candidate) -> float:
        """Return the cost of ``candidate`` after the last run of ``path``."""
        before = next((each.run for each in reversed(path) if each), None)
        if before is None:
            return 0.0
        run = candidate.run
        if run.follows(before):
            verses = self.text.verses[run.passage]
            inside = verses[before.last] == verses[run.first]
            return -2 * _LETTER * BREAK * inside  # not an end: both pieces are refunded its cost
        if before.passage != run.passage:
            return _ELSEWHERE
        return min(_ELSEWHERE, _JUMP + _JUMPED_WORD * abs(run.first - before.last - 1))

    def words(self, nearest: Nearest) -> list[str]:
        """Return the words of ``nearest``, its preface's first."""
        return [*nearest.preface.split(), *self.text.words(nearest.run)]

    def join_words(self, found: Iterable[Nearest]) -> str:
        """Return the words of all ``found``, joined by spaces."""
        return " ".join(word for each in found for word in self.words(each))


def joined(runs: Iterable[Run]) -> list[Run]:
    """Join each run with the one before if it follows that."""
    whole: list[Run] = []
    for run in runs:
        if whole and run.follows(whole[-1]):
            whole[-1] = replace(whole[-1], last=run.last)
        else:
            whole.append(run)
    return whole
