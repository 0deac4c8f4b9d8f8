"""How near is what a model heard to parts of a text, if letters that sound alike are near and vowels are easily lost?

``letter_costs.csv`` has the costs of differences, in quarters of a letter: a row for each letter of a text, a column
for each that may be heard in its place; the last column is of letters that are not heard, the last row of those that
are heard besides. They were estimated as in ``benchmarks/letters.py``, from 590 ayat heard by OpenAI's ``base``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LETTER = 4  # a cost of one letter
FAR = 10_000  # more than any cost
AGAIN = 3  # the cost of going back, in letters
_SHIFTS = (1, 2, 4, 8, 16)
MOST_LEFT_OUT = sum(_SHIFTS)  # letters of a text in one place


class LetterCosts:
    """The costs, on ``device``, for letters as :func:`..data.text.letters` writes them; of others, those of ``text``.

    Attributes:
        changed: (heard, text), of a letter for another.
        left_out: (text,), of each letter that is not heard.
        added: (heard,), of each letter that is heard besides.
    """

    def __init__(self, text: str, device: torch.device) -> None:
        table = Path(__file__).with_name("letter_costs.csv").read_text(encoding="utf-8")
        (_, *known, _), *rows = (line.split(",") for line in table.splitlines())
        costs = np.array([row[1:] for row in rows], dtype=np.int16)
        others = sorted({*text}.difference(known))
        count, size = len(known), len(known) + len(others) + 1  # the last is any letter that is not in the text
        self.numbers = {letter: number for number, letter in enumerate([*known, *others])}
        changed = LETTER * (1 - np.eye(size, dtype=np.int16))
        changed[-1, -1] = LETTER
        left_out, added = np.full((2, size), LETTER, dtype=np.int16)
        changed[:count, :count], left_out[:count], added[:count] = costs[:-1, :-1].T, costs[:-1, -1], costs[-1, :-1]
        self.changed, self.left_out, self.added = (torch.tensor(x, device=device) for x in (changed, left_out, added))

    def encode(self, text: str) -> Tensor:
        """Return the number of each letter of ``text``."""
        numbers = [self.numbers.get(letter, len(self.numbers)) for letter in text]
        return torch.tensor(numbers, dtype=torch.long, device=self.changed.device)


class Places:
    """The places of a text, or of texts of one length, given by their ``codes`` (…, n): place i is after i letters.

    ``least`` (…, n + 1) are costs that no place has less than, such as FAR for places that are in no text.
    """

    def __init__(self, costs: LetterCosts, codes: Tensor, least: Tensor) -> None:
        self.changed, self.added, self.least = costs.changed[:, codes], costs.added.tolist(), least
        sums = torch.nn.functional.pad(costs.left_out[codes].cumsum(-1, dtype=torch.int32), (1, 0))
        shifts = [shift for shift in _SHIFTS if shift < sums.shape[-1]]
        self.left_out = [(shift, (sums[..., shift:] - sums[..., :-shift]).short()) for shift in shifts]

    def costs(self, heard: Sequence[int], begins: Tensor, entries: Sequence[int] = ()) -> Iterator[Tensor]:
        """Yield the costs (…, n + 1) of having heard 0, 1, … all letters of ``heard`` in the text up to each place.

        Args:
            begins: the costs of beginning at each place.
            entries: of beginning only after 1, 2, … letters were heard, if that is not beyond all cost.
        """
        begins = self._leave_out(begins.clone())
        row = begins
        yield row
        spare = torch.empty_like(row[..., 1:])
        for number, letter in enumerate(heard):
            torch.add(row[..., :-1], self.changed[letter], out=spare)
            row = row + self.added[letter]
            torch.minimum(row[..., 1:], spare, out=row[..., 1:])
            if number < len(entries) and entries[number] < FAR:
                torch.minimum(row, begins + entries[number], out=row)
            yield self._leave_out(row)

    def _leave_out(self, row: Tensor) -> Tensor:
        """Lower the costs in ``row`` by leaving out letters of the text before each place."""
        for shift, cost in self.left_out:
            row[..., shift:] = torch.minimum(row[..., shift:], row[..., :-shift] + cost)
        return torch.maximum(row, self.least, out=row)


def find_passes(
    costs: LetterCosts, heard: str, words: Sequence[str], first_costs: Sequence[int], last_costs: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """Find where a reciter goes back and says words again: align what was heard with a stretch of the text, as for an
    edit distance, but the alignment may go back, from the end of any word to the beginning of it or of one before.

    Return the passes of least cost: first and last word, first letter heard, that after the last. One may be empty, its
    last word before its first, if no letter heard is near to a word.

    Args:
        costs: of differences between letters.
        heard: the letters heard, at least one.
        words: the letters of each word of the stretch.
        first_costs: of a pass that begins with each of the words; ``last_costs`` of one that ends with it; in letters.
    """
    text, query = (costs.encode(letters).cpu() for letters in ("".join(words), heard))
    changed, left_out = costs.changed.cpu()[query][:, text].numpy(), costs.left_out.cpu()[text].numpy()
    added = costs.added.cpu()[query].tolist()
    edges = np.cumsum([0, *map(len, words)])
    begin, end = (np.full(len(text) + 1, FAR) for _ in range(2))  # the costs of a pass from, and to, each place
    begin[edges[:-1]], end[edges[1:]] = (LETTER * np.array(each) for each in (first_costs, last_costs))
    skipped = np.append(0, left_out.cumsum())

    def with_deletions(row: np.ndarray) -> np.ndarray:
        return np.minimum.accumulate(row - skipped) + skipped

    # After each letter heard, at each place: the least cost without going back there, of having done so, and of both.
    onward, back = [np.full(len(text) + 1, FAR)], [begin]
    rows = [with_deletions(begin)]
    for besides, instead in zip(added, changed, strict=True):
        row = rows[-1] + besides
        row[1:] = np.minimum(row[1:], rows[-1][:-1] + instead)
        onward.append(with_deletions(row))
        ending = np.minimum.accumulate((onward[-1] + end)[::-1])[::-1]  # there, or after it
        back.append(ending + begin + LETTER * AGAIN)
        rows.append(with_deletions(np.minimum(onward[-1], back[-1])))

    passes: list[tuple[int, int, int, int]] = []
    last = place = int((rows[-1] + end).argmin())
    count = stop = len(heard)
    while True:  # backwards along the way of that cost
        if rows[count][place] < onward[count][place]:  # the pass begins here, or with letters that were left out
            while rows[count][place] != back[count][place]:
                place -= 1
            passes.append((int(edges.searchsorted(place)), int(edges.searchsorted(last)) - 1, count, stop))
            if not count:
                return passes[::-1]
            stop, last = count, place + int((onward[count] + end)[place:].argmin())
            place = last
        while place and onward[count][place] == onward[count][place - 1] + left_out[place - 1]:
            place -= 1
        count -= 1
        if place and onward[count + 1][place] == rows[count][place - 1] + changed[count, place - 1]:
            place -= 1
