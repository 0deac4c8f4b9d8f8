"""A text that is known beforehand: what is said is a run of consecutive words of one of its passages.

A run begins and ends at a word, and does not cross from a passage to the next. Before it may stand one of the text's
*prefaces* (of the Qur'an: the basmala, the isti'adha, or both).
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
        """Return whether it goes on where ``before`` ends."""
        return (before.passage, before.last + 1) == (self.passage, self.first)


class ClosedText:
    """The text of ``passages``.

    Attributes:
        passages: the words of each passage.
        verses: which verse of its passage each word is of; a passage is one, unless a subclass knows better.
        spoken: runs that are not spoken as they are written, and the words that are heard in their place.
        prefaces: what may be said before a run.
        apart: what is often said, too, and is nothing of the text.
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
        said, found = f" {' '.join(words)} ", []
        for passage, text in enumerate(self._spaced):
            at = text.find(said)
            while at >= 0:
                first = text.count(" ", 0, at)
                found.append(Run(passage, first, first + len(words) - 1))
                at = text.find(said, at + 1)
        return found

    def describe(self, run: Run) -> str:
        """Say where ``run`` is: its first and its last word, each as passage:word, counted from 1."""
        return f"{run.passage + 1}:{run.first + 1}-{run.passage + 1}:{run.last + 1}"

    def words(self, run: Run) -> list[str]:
        """Return the words of ``run``."""
        return self.passages[run.passage][run.first : run.last + 1]

    def breaks(self, run: Run) -> int:
        """Count the ends of ``run`` that are inside a verse: 0, 1 or 2. People recite whole verses, most often."""
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
