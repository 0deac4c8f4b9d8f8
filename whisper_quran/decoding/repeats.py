"""Passes through a text: where a reciter goes back and says words again.

What was heard is aligned with a stretch of the text as for an edit distance, but the alignment may go back, from the
end of any word to the beginning of it or of one before. So it falls into passes, each a run of words.
"""

from collections.abc import Sequence

import numpy as np

from .letter_costs import FAR, LETTER, LetterCosts

AGAIN = 3  # the cost of going back, in letters


def find_passes(
    costs: LetterCosts, heard: str, words: Sequence[str], first_costs: Sequence[int], last_costs: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """Return the passes of least cost: first and last word, first letter heard, that after the last.

    One may be empty, its last word before its first, if no letter heard is near to a word.

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
