"""Word and character errors: the alignment of one ayah, and sums of its counts for a corpus.

Rates over a corpus are sums over sums (errors of all ayat, divided by words of all ayat), never means of rates:
a mean would let a three-word ayah weigh as much as Ayat al-Kursi.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jiwer
from rapidfuzz.distance import Levenshtein

from ..data.text import letters_of


@dataclass(frozen=True)
class ErrorCounts:
    """Word and character errors of one ayah, or, added up, of many; ``words`` and ``characters`` of the reference.

    ``letters`` are those whose diacritics were compared (:func:`count_diacritic_errors`).
    """

    words: int = 0
    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    characters: int = 0
    character_errors: int = 0
    letters: int = 0
    diacritic_errors: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; NaN without reference words. Can exceed 1 (insertions)."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.words if self.words else float("nan")

    @property
    def cer(self) -> float:
        """Character error rate as a fraction (spaces between words count); NaN without reference characters."""
        return self.character_errors / self.characters if self.characters else float("nan")

    @property
    def der(self) -> float:
        """Diacritic error rate as a fraction of the letters compared; NaN without any."""
        return self.diacritic_errors / self.letters if self.letters else float("nan")


@dataclass(frozen=True)
class Alignment:
    """The differences between a hypothesis and its reference.

    ``edits`` turns the reference into the hypothesis, as tokens joined by spaces: ``=3`` three words are right,
    ``~word`` the next word was heard as this one, ``-2`` the next two words were deleted, ``+word`` this word was
    inserted. Right words at the end are left out, so that a perfect hypothesis is the empty string.
    """

    errors: ErrorCounts
    edits: str


def align(reference: str, hypothesis: str) -> Alignment:
    """Align ``hypothesis`` with ``reference`` (both normalised already), word by word.

    An empty hypothesis is all deletions. An empty reference makes every hypothesis word an insertion.
    """
    errors = count_errors(reference, hypothesis)
    if not reference:
        return Alignment(errors, " ".join("+" + word for word in hypothesis.split()))
    return Alignment(errors, _edits(reference.split(), hypothesis.split(), errors))


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors of :func:`align`, without the alignment, which validation does not need."""
    if not reference:
        return ErrorCounts(insertions=len(hypothesis.split()), character_errors=len(hypothesis))
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return ErrorCounts(
        words=words.hits + words.substitutions + words.deletions,
        hits=words.hits,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        characters=characters.hits + characters.substitutions + characters.deletions,
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
    )


def count_diacritic_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the letters whose diacritics are wrong, in the words whose letters are all right.

    Neither text is normalised. Words are aligned by their letters alone; a word that was heard as another, or not at
    all, is a word error and is not counted here. A missing diacritic is an error like a wrong one.
    """
    expected, heard = ([letters_of(word) for word in text.split()] for text in (reference, hypothesis))
    words, heard_words = ([letters for letters, _ in each] for each in (expected, heard))
    compared, errors, i, j = 0, 0, 0, 0
    for kind, _ in _nearest(words, heard_words, count_errors(" ".join(words), " ".join(heard_words))):
        if kind == "=":
            marks, heard_marks = expected[i][1], heard[j][1]
            compared += len(marks)
            errors += sum(a != b for a, b in zip(marks, heard_marks, strict=True))
        i += kind != "+"
        j += kind != "-"
    return ErrorCounts(letters=compared, diacritic_errors=errors)


def _edits(reference: list[str], heard: list[str], counts: ErrorCounts) -> str:
    """Return the edits of :func:`_nearest`, as :class:`Alignment` writes them."""
    tokens: list[str] = []
    for kind, group in groupby(_nearest(reference, heard, counts), key=lambda step: step[0]):
        words = [word for _, word in group]
        tokens += [f"{kind}{len(words)}"] if kind in "=-" else [kind + word for word in words]
    if tokens and tokens[-1].startswith("="):
        tokens.pop()
    return " ".join(tokens)


_MOST_CELLS = 100_000  # of the dynamic program in _nearest: about a second

_Path = tuple[int, Any, tuple[str, str]]  # cost so far, the path before the last step, the last step
_Cell = dict[int, _Path]  # the cheapest path to a place in both texts, for each number of right words


def _nearest(reference: list[str], heard: list[str], counts: ErrorCounts) -> list[tuple[str, str]]:
    """Return, of the alignments with these ``counts``, that of the nearest substitutes: steps (kind, word heard).

    jiwer returns any of them. This one has the smallest letter distance between words and their substitutes; for very
    long texts, such as a hundred ayat joined, it is jiwer's.
    """
    if len(reference) * (counts.deletions + counts.insertions + 1) > _MOST_CELLS:
        return _jiwer_steps(reference, heard)
    error = 1 + sum(map(len, reference)) + sum(map(len, heard))  # more than all letters cost together
    cells: dict[tuple[int, int], _Cell] = {}
    for i in range(len(reference) + 1):
        # Other cells need more deletions, or insertions, than were counted.
        for j in range(max(0, i - counts.deletions), min(len(heard), i + counts.insertions) + 1):
            cell: _Cell = {} if i or j else {0: (0, None, ("", ""))}
            if i and j and reference[i - 1] == heard[j - 1]:
                _extend(cell, cells[i - 1, j - 1], ("=", ""), 0)
            elif i and j:
                letters = Levenshtein.distance(reference[i - 1], heard[j - 1])
                _extend(cell, cells[i - 1, j - 1], ("~", heard[j - 1]), error + letters)
            _extend(cell, cells.get((i - 1, j), {}), ("-", ""), error)
            if j:
                _extend(cell, cells.get((i, j - 1), {}), ("+", heard[j - 1]), error)
            # A path with more errors than another to the same place is part of no best alignment.
            fewest = min(path[0] for path in cell.values()) // error
            cells[i, j] = {hits: path for hits, path in cell.items() if path[0] // error == fewest}
    steps = []
    path = cells[len(reference), len(heard)][counts.hits]
    while path[1] is not None:
        steps.append(path[2])
        path = path[1]
    return steps[::-1]


def _jiwer_steps(reference: list[str], heard: list[str]) -> list[tuple[str, str]]:
    """Return the steps of jiwer's alignment."""
    (parts,) = jiwer.process_words(" ".join(reference), " ".join(heard)).alignments
    steps: list[tuple[str, str]] = []
    for part in parts:
        words = heard[part.hyp_start_idx : part.hyp_end_idx]
        if part.type in ("substitute", "insert"):
            steps += [("~" if part.type == "substitute" else "+", word) for word in words]
        else:
            kind = "=" if part.type == "equal" else "-"
            steps += [(kind, "")] * (part.ref_end_idx - part.ref_start_idx)
    return steps


def _extend(cell: _Cell, before: _Cell, step: tuple[str, str], cost: int) -> None:
    """Extend the paths of the cell ``before`` by ``step`` into ``cell``, if they are cheaper."""
    for hits, path in before.items():
        total = hits + (step[0] == "=")
        if total not in cell or path[0] + cost < cell[total][0]:
            cell[total] = (path[0] + cost, path, step)
