"""A closed text: it is known in advance, and a recording is a run of consecutive words of one of its passages.

A run consists of whole words and does not cross from one passage to the next. One of the text's *prefaces* may come
before it (for the Qur'an: the basmala, the isti'adha, or both).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.text import normalize
from ..runtime.errors import UserError


@dataclass(frozen=True, order=True)
class Run:
    """Words ``first`` to ``last`` of a passage, counted from 0, both included."""

    passage: int
    first: int
    last: int

    def follows(self, before: "Run") -> bool:
        """Return whether it starts where ``before`` ends."""
        return (before.passage, before.last + 1) == (self.passage, self.first)


class ClosedText:
    """A closed text of ``passages``.

    Attributes:
        passages: the words of each passage.
        verses: the verse of each word of each passage; a passage is one verse unless a subclass divides it.
        spoken: runs that are not pronounced as they are written, and the words that are heard instead.
        prefaces: phrases that may be said before a run.
        apart: phrases that are often said as well, but are not part of the text.
    """

    def __init__(self, passages: Iterable[str], prefaces: Iterable[str] = ()) -> None:
        self.passages = [words for text in passages if (words := _words(text))]
        self.verses = [[0] * len(words) for words in self.passages]
        self.spoken: list[tuple[Run, list[str]]] = []
        self.prefaces = [" ".join(_words(preface)) for preface in prefaces]
        self.apart: Sequence[str] = ()
        self._spaced = [f" {' '.join(words)} " for words in self.passages]

    def locate(self, words: Sequence[str]) -> list[Run]:
        """Return every run of these ``words``, in the order of the text."""
        if not words:
            return []
        phrase, found = f" {' '.join(words)} ", []
        for passage, text in enumerate(self._spaced):
            at = text.find(phrase)
            while at >= 0:
                first = text.count(" ", 0, at)
                found.append(Run(passage, first, first + len(words) - 1))
                at = text.find(phrase, at + 1)
        return found

    def describe(self, run: Run) -> str:
        """Write ``run`` as its first and its last word, each as passage:word, counted from 1."""
        return f"{run.passage + 1}:{run.first + 1}-{run.passage + 1}:{run.last + 1}"

    def words(self, run: Run) -> list[str]:
        """Return the words of ``run``."""
        return self.passages[run.passage][run.first : run.last + 1]

    def breaks(self, run: Run) -> int:
        """Count the ends of ``run`` that are inside a verse: 0, 1 or 2. Most recitations are of whole verses."""
        verses = self.verses[run.passage]
        before, after = verses[max(0, run.first - 1) : run.first], verses[run.last + 1 : run.last + 2]
        return before.count(verses[run.first]) + after.count(verses[run.last])


def read_closed_text(path: Path) -> list[str]:
    """Read the passages of a UTF-8 text file, one a line; empty lines are left out.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give a text file with one passage a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8, one passage a line") from None
    passages = [line.strip() for line in text.split("\n") if line.strip()]
    if not passages:
        raise UserError(f"{path} holds no text: give one passage a line")
    return passages


def _words(text: str) -> list[str]:
    return normalize(text, "none").split()
