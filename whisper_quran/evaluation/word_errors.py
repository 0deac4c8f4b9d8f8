"""Word and character errors: the alignment of one ayah, and sums of its counts for a corpus.

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
        """Word error rate as a fraction; NaN without reference words. Can exceed 1 (insertions)."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.words if self.words else float("nan")

    @property
    def cer(self) -> float:
        """Character error rate as a fraction (spaces between words count); NaN without reference characters."""
        return self.character_errors / self.characters if self.characters else float("nan")


@dataclass(frozen=True)
class Alignment:
    """What separates a hypothesis from its reference.

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
    if not reference:
        heard = hypothesis.split()
        errors = ErrorCounts(insertions=len(heard), character_errors=len(hypothesis))
        return Alignment(errors, " ".join("+" + word for word in heard))
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    errors = ErrorCounts(
        words=words.hits + words.substitutions + words.deletions,
        hits=words.hits,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        characters=characters.hits + characters.substitutions + characters.deletions,
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
    )
    return Alignment(errors, _edits(words))


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors of :func:`align`."""
    return align(reference, hypothesis).errors


def _edits(output: jiwer.WordOutput) -> str:
    tokens: list[str] = []
    for chunk in output.alignments[0]:
        heard = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            tokens.append(f"={len(heard)}")
        elif chunk.type == "delete":
            tokens.append(f"-{chunk.ref_end_idx - chunk.ref_start_idx}")
        else:
            tokens.extend(("~" if chunk.type == "substitute" else "+") + word for word in heard)
    if tokens and tokens[-1].startswith("="):
        tokens.pop()
    return " ".join(tokens)
