"""Word and character errors: the alignment of one ayah, and sums of its counts for a corpus.

Rates over a corpus are sums over sums (errors of all ayat, divided by words of all ayat), never means of rates:
a mean would let a three-word ayah weigh as much as Ayat al-Kursi.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

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
    def word_errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; NaN without reference words. Can exceed 1 (insertions)."""
        return self.word_errors / self.words if self.words else float("nan")

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
    tokens: list[str] = []
    for kind, group in groupby(_steps(reference.split(), hypothesis.split()), key=lambda step: step[0]):
        words = [word for _, word in group]
        tokens += [f"{kind}{len(words)}"] if kind in "=-" else [kind + word for word in words]
    if tokens and tokens[-1].startswith("="):
        tokens.pop()
    return Alignment(count_errors(reference, hypothesis), " ".join(tokens))


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
    pairs = ([letters_of(word) for word in text.split()] for text in (reference, hypothesis))
    expected, heard = ([pair for pair in each if pair[0]] for each in pairs)  # a mark alone is no word
    compared, errors, i, j = 0, 0, 0, 0
    for kind, _ in _steps([letters for letters, _ in expected], [letters for letters, _ in heard]):
        if kind == "=":
            marks, heard_marks = expected[i][1], heard[j][1]
            compared += len(marks)
            errors += sum(a != b for a, b in zip(marks, heard_marks, strict=True))
        i += kind != "+"
        j += kind != "-"
    return ErrorCounts(letters=compared, diacritic_errors=errors)


def _steps(reference: list[str], heard: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the steps (kind, word heard) of jiwer's alignment, with adjacent errors paired by :func:`_pair`."""
    at = heard_at = 0
    if reference:
        (chunks,) = jiwer.process_words(" ".join(reference), " ".join(heard)).alignments
        for chunk in chunks:
            if chunk.type == "equal":
                yield from _pair(reference[at : chunk.ref_start_idx], heard[heard_at : chunk.hyp_start_idx])
                yield from (("=", "") for _ in range(chunk.ref_start_idx, chunk.ref_end_idx))
                at, heard_at = chunk.ref_end_idx, chunk.hyp_end_idx
    yield from _pair(reference[at:], heard[heard_at:])


_MOST_CELLS = 300_000  # of the table in _pair: less than a second


def _pair(expected: list[str], heard: list[str]) -> list[tuple[str, str]]:
    """Return the steps between two texts without a common word: of the fewest errors, those of the nearest letters.

    Every word of the shorter text is paired with one of the longer, and the longer's other words are left alone. (If
    the table were too large, these are its last words.)
    """
    shorter, longer, alone = (expected, heard, "+") if len(expected) <= len(heard) else (heard, expected, "-")
    spare = len(longer) - len(shorter)
    single = [(alone, word if alone == "+" else "") for word in longer]
    if len(shorter) * spare > _MOST_CELLS:
        return [("~", word) for word in heard[: len(shorter)]] + single[len(shorter) :]
    # cost[i][k] is the distance in letters when i words of the shorter are paired and k of the longer left alone.
    cost = [[0] * (spare + 1)]
    for i, word in enumerate(shorter):
        row: list[int] = []
        for k in range(spare + 1):
            paired = cost[i][k] + Levenshtein.distance(word, longer[i + k])
            row.append(min(paired, row[-1]) if row else paired)
        cost.append(row)
    steps, i, k = [], len(shorter), spare
    while i or k:
        if k and cost[i][k] == cost[i][k - 1]:
            k -= 1
            steps.append(single[i + k])
        else:
            i -= 1
            steps.append(("~", heard[i + k] if alone == "+" else heard[i]))
    return steps[::-1]
