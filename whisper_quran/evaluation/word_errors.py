"""Counting errors: jiwer's counts for one ayah, and sums of them for a corpus.

Rates over a corpus are sums over sums (errors of all ayat, divided by words of all ayat), never means of rates:
a mean would let a three-word ayah weigh as much as Ayat al-Kursi.
"""

from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """Word and character errors of one ayah, or, added up, of many; ``words`` and ``characters`` of the reference."""

    words: int = 0
    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    characters: int = 0
    character_errors: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; NaN where there are no reference words. Can exceed 1 (insertions)."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.words if self.words else float("nan")

    @property
    def cer(self) -> float:
        """Character error rate as a fraction (spaces between words count); NaN without reference characters."""
        return self.character_errors / self.characters if self.characters else float("nan")


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Align ``hypothesis`` with ``reference`` (both normalised already) and count the errors.

    An empty hypothesis is all deletions. An empty reference makes every hypothesis word an insertion.
    """
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
