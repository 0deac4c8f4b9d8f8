"""The runs of a closed text whose letters are nearest to what a model heard, wherever they begin and end.

A free decoder is mostly right in its letters, and wrong in many words. So its text is laid against every part of the
closed text at once (Sellers, "The theory and computation of evolutionary distances", 1980): the fewest letters to
change, to leave out or to put in, for each place where a run may end. Spaces count for nothing: words that were joined
or split cost nothing. Letters are compared as ``normalize(…, "full")`` writes them.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from ..data.text import normalize
from .closed_text import ClosedText, Run

_FAR = 10_000  # a distance that nothing has
_SHIFTS = (1, 2, 4, 8, 16)  # so that 31 letters of the text may be missing in one place
_BETWEEN = "\n" * (sum(_SHIFTS) + 1)  # what separates passages is more, so that no run crosses it
BREAK = 5  # letters: a run of whole verses is preferred to another that is so much nearer
_ENDS = 256  # of the places where runs end, the nearest, which are looked at more closely


@dataclass(frozen=True)
class Nearest:
    """A run, the preface that was said before it ("" if none), and how many letters separate them from what was heard.

    ``cost`` is this distance, and BREAK letters more for each of its ends that is inside a verse.
    """

    run: Run
    preface: str
    distance: int
    cost: int


class LetterIndex:
    """The letters of a closed text, one after another, on ``device``: a second for the whole Qur'an."""

    def __init__(self, text: ClosedText, device: torch.device) -> None:
        self.closed_text = text
        self.prefaces = {letters(preface): preface for preface in ("", *text.prefaces)}
        self.apart = [letters(each) for each in text.apart]
        spelled, length = [], 0
        self.words: list[tuple[int, int]] = []  # of each word its passage, and its number there
        self.first: list[int] = []  # the first word of those that can be in one run with it
        self.starts, self.ends = [], []  # where its letters begin, and where they have ended
        written = [(Run(i, 0, len(words) - 1), words) for i, words in enumerate(text.passages)]
        for run, words in [*written, *text.spoken]:
            spelled.append(_BETWEEN)
            length += len(_BETWEEN)
            first = len(self.words)
            for number, word in enumerate(words, run.first):
                spelled.append(letters(word))
                self.words.append((run.passage, number))
                self.first.append(first)
                self.starts.append(length)
                length += len(spelled[-1])
                self.ends.append(length)
        self.text = "".join(spelled)
        self.alphabet = {*self.text}.union(*self.prefaces) - {"\n"}  # others, such as digits, are not compared
        codes = torch.from_numpy(np.frombuffer(self.text.encode("utf-32-le"), dtype=np.int32).copy())
        self.codes = codes.to(device)
        # Place i is after i letters. No run goes through those between two passages.
        separators = codes == ord("\n")
        between = torch.zeros(len(codes) + 1, dtype=torch.int16)
        between[1:-1] = (separators[:-1] & separators[1:]).short() * _FAR
        self.between = between.to(device)
        self.run_begins = torch.full_like(self.between, _FAR)
        self.run_begins[self.starts] = 0
        self._leave_out(self.run_begins)
        self.end_places = torch.tensor(self.ends, device=device)
        breaks = [text.breaks(Run(passage, 0, number)) for passage, number in self.words]
        self.end_costs = torch.tensor(breaks, device=device, dtype=torch.int16) * BREAK

    def nearest(self, heard: str, margin: int = 0) -> list[Nearest]:
        """Return the runs nearest to ``heard``, and those that cost up to ``margin`` letters more, the nearest first.

        There are none if nothing has a letter in common with it, or if what is nothing of the text is as near. Equals
        come in the order of the text; of what stands in more than 256 places some are left out.
        """
        said = "".join(letter for letter in letters(heard) if letter in self.alphabet)
        if not said:
            return []
        costs = self._distances(said)[self.end_places] + self.end_costs
        least, lasts = (each.tolist() for each in costs.topk(min(_ENDS, len(costs)), largest=False))
        limit = min([len(said), *(Levenshtein.distance(each, said) for each in self.apart)]) - 1
        runs: list[Nearest] = []
        for cost, last in zip(least, lasts, strict=True):
            if cost > limit:
                break
            found = list(self._runs_to(last, said, limit))
            runs += found
            limit = min([limit, *(run.cost + margin for run in found)])
        runs.sort(key=lambda each: (each.cost, each.run))
        # What is written and spoken differently is found twice.
        return list({each.run: each for each in reversed(runs) if each.cost <= limit}.values())[::-1]

    def _distances(self, said: str) -> Tensor:
        """Compute, for each place of the text, the distance of ``said`` to the nearest run that ends there."""
        row = self.run_begins.clone()
        following, changed = torch.empty_like(row), torch.empty_like(row)
        for count, (letter, prefaced) in enumerate(zip(said, self._preface_distances(said), strict=True), 1):
            torch.ne(self.codes, ord(letter), out=changed[1:])
            changed[1:] += row[:-1]
            torch.add(row, 1, out=following)
            torch.minimum(following[1:], changed[1:], out=following[1:])
            if prefaced < count:
                torch.add(self.run_begins, prefaced, out=changed)
                torch.minimum(following, changed, out=following)
            self._leave_out(following, changed)
            row, following = following, row
        return row

    def _leave_out(self, row: Tensor, spare: Tensor | None = None) -> None:
        """Lower the distances in ``row`` to those of leaving out letters of the text before each place."""
        spare = torch.empty_like(row) if spare is None else spare
        for shift in _SHIFTS:
            torch.add(row[:-shift], shift, out=spare[shift:])
            torch.minimum(row[shift:], spare[shift:], out=row[shift:])
        torch.maximum(row, self.between, out=row)

    def _preface_distances(self, said: str) -> list[int]:
        """Return, for each beginning of ``said``, its distance to the nearest preface; beyond all of them _FAR."""
        lengths = range(1, len(said) + 1)
        longest = 2 * max(map(len, self.prefaces))
        near = [min(Levenshtein.distance(said[:i], each) for each in self.prefaces) for i in lengths[:longest]]
        return [*near, *[_FAR] * (len(said) - len(near))]

    def _runs_to(self, last: int, said: str, limit: int) -> Iterator[Nearest]:
        """Yield the runs up to the word ``last`` that cost at most ``limit``."""
        end, (passage, number) = self.ends[last], self.words[last]
        earliest = bisect_left(self.starts, end - len(said) - limit)
        for first in range(max(earliest, self.first[last]), last + 1):
            text = self.text[self.starts[first] : end]
            each = {p: Levenshtein.distance(p + text, said, score_cutoff=limit) for p in self.prefaces}
            preface = min(each, key=each.__getitem__)
            run = Run(passage, self.words[first][1], number)
            cost = each[preface] + BREAK * self.closed_text.breaks(run)
            if cost <= limit:
                yield Nearest(run, self.prefaces[preface], each[preface], cost)


def letters(text: str) -> str:
    """Return ``text`` as it is compared here: its letters alone."""
    return normalize(text, "full").replace(" ", "")
