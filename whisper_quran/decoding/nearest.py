"""Search for the runs of a closed text whose letters are nearest to what a model heard, wherever they begin and end.

An unconstrained decoder gets most letters right, and many words wrong. So its text is matched with every part of the
closed text at once (Sellers, "The theory and computation of evolutionary distances", 1980): for each place where a run
may end, the smallest edit distance to a run that ends there. Spaces are ignored: words that were joined or split cost
nothing. Letters are compared as ``normalize(…, "full")`` writes them.
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

_FAR = 10_000  # more than any distance
_SHIFTS = (1, 2, 4, 8, 16)  # their sum, 31, is how many letters of the text may be missing in one place
_SEPARATOR = "\n" * (sum(_SHIFTS) + 1)  # passages are separated by more than that, so that no run crosses it
BREAK = 5  # letters: the cost of an end inside a verse, so that runs of whole verses are preferred
_MOST_ENDS = 256  # places where runs end, the nearest, whose runs are compared


@dataclass(frozen=True)
class Nearest:
    """A run, the preface that was said before it ("" if none), and their edit distance (letters) to what was heard.

    ``cost`` is this distance, plus BREAK for each end of the run that is inside a verse.
    """

    run: Run
    preface: str
    distance: int
    cost: int


class LetterIndex:
    """An index of the letters of a closed text on ``device``; for the whole Qur'an it takes a second."""

    def __init__(self, text: ClosedText, device: torch.device) -> None:
        self.closed_text = text
        self.prefaces = {letters(preface): preface for preface in ("", *text.prefaces)}
        self.apart = [letters(each) for each in text.apart]
        spelled, length = [], 0
        self.words: list[tuple[int, int]] = []  # each word's passage, and its number there
        self.first: list[int] = []  # for each word, the first that can be in one run with it
        self.starts, self.ends = [], []  # each word's first letter, and the one after its last
        written = [(Run(i, 0, len(words) - 1), words) for i, words in enumerate(text.passages)]
        for run, words in [*written, *text.spoken]:
            spelled.append(_SEPARATOR)
            length += len(_SEPARATOR)
            first = len(self.words)
            for number, word in enumerate(words, run.first):
                spelled.append(letters(word))
                self.words.append((run.passage, number))
                self.first.append(first)
                self.starts.append(length)
                length += len(spelled[-1])
                self.ends.append(length)
        self.text = "".join(spelled)
        self.alphabet = {*self.text}.union(*self.prefaces) - {"\n"}  # other characters, such as digits, are ignored
        codes = torch.from_numpy(np.frombuffer(self.text.encode("utf-32-le"), dtype=np.int32).copy())
        self.codes = codes.to(device)
        # Place i is after i letters. No run passes through the places between two passages.
        separators = codes == ord("\n")
        between = torch.zeros(len(codes) + 1, dtype=torch.int16)
        between[1:-1] = (separators[:-1] & separators[1:]).short() * _FAR
        self.between = between.to(device)
        self.run_begins = torch.full_like(self.between, _FAR)
        self.run_begins[self.starts] = 0
        self._allow_deletions(self.run_begins)
        self.end_places = torch.tensor(self.ends, device=device)
        breaks = [text.breaks(Run(passage, 0, number)) for passage, number in self.words]
        self.end_costs = torch.tensor(breaks, device=device, dtype=torch.int16) * BREAK

    def nearest(self, heard: str, margin: int = 0) -> list[Nearest]:
        """Return the runs nearest to ``heard``, and those that cost up to ``margin`` letters more, the nearest first.

        There are none if no run has a letter in common with it, or if a phrase outside the text is as near. Runs of
        equal cost are in the order of the text; if words occur in more than 256 places, some are left out.
        """
        query = "".join(letter for letter in letters(heard) if letter in self.alphabet)
        if not query:
            return []
        costs = self._distances(query)[self.end_places] + self.end_costs
        least, lasts = (each.tolist() for each in costs.topk(min(_MOST_ENDS, len(costs)), largest=False))
        limit = min([len(query), *(Levenshtein.distance(each, query) for each in self.apart)]) - 1
        runs: list[Nearest] = []
        for cost, last in zip(least, lasts, strict=True):
            if cost > limit:
                break
            found = list(self._runs_to(last, query, limit))
            runs += found
            limit = min([limit, *(run.cost + margin for run in found)])
        runs.sort(key=lambda each: (each.cost, each.run))
        # A run that is not pronounced as it is written may be found twice.
        return list({each.run: each for each in reversed(runs) if each.cost <= limit}.values())[::-1]

    def _distances(self, query: str) -> Tensor:
        """Compute, for each place of the text, the distance of ``query`` to the nearest run that ends there."""
        row = self.run_begins.clone()
        next_row, changed = torch.empty_like(row), torch.empty_like(row)
        for count, (letter, prefaced) in enumerate(zip(query, self._preface_distances(query), strict=True), 1):
            torch.ne(self.codes, ord(letter), out=changed[1:])
            changed[1:] += row[:-1]
            torch.add(row, 1, out=next_row)
            torch.minimum(next_row[1:], changed[1:], out=next_row[1:])
            if prefaced < count:
                torch.add(self.run_begins, prefaced, out=changed)
                torch.minimum(next_row, changed, out=next_row)
            self._allow_deletions(next_row, changed)
            row, next_row = next_row, row
        return row

    def _allow_deletions(self, row: Tensor, spare: Tensor | None = None) -> None:
        """Lower the distances in ``row`` by deletions of letters of the text before each place."""
        spare = torch.empty_like(row) if spare is None else spare
        for shift in _SHIFTS:
            torch.add(row[:-shift], shift, out=spare[shift:])
            torch.minimum(row[shift:], spare[shift:], out=row[shift:])
        torch.maximum(row, self.between, out=row)

    def _preface_distances(self, query: str) -> list[int]:
        """Return, for each prefix of ``query``, its distance to the nearest preface; _FAR if it is longer than all."""
        lengths = range(1, len(query) + 1)
        longest = 2 * max(map(len, self.prefaces))
        near = [min(Levenshtein.distance(query[:i], each) for each in self.prefaces) for i in lengths[:longest]]
        return [*near, *[_FAR] * (len(query) - len(near))]

    def _runs_to(self, last: int, query: str, limit: int) -> Iterator[Nearest]:
        """Yield the runs up to the word ``last`` that cost at most ``limit``."""
        end, (passage, number) = self.ends[last], self.words[last]
        earliest = bisect_left(self.starts, end - len(query) - limit)
        for first in range(max(earliest, self.first[last]), last + 1):
            text = self.text[self.starts[first] : end]
            each = {p: Levenshtein.distance(p + text, query, score_cutoff=limit) for p in self.prefaces}
            preface = min(each, key=each.__getitem__)
            run = Run(passage, self.words[first][1], number)
            cost = each[preface] + BREAK * self.closed_text.breaks(run)
            if cost <= limit:
                yield Nearest(run, self.prefaces[preface], each[preface], cost)


def letters(text: str) -> str:
    """Return the letters of ``text``, normalised for comparison."""
    return normalize(text, "full").replace(" ", "")
