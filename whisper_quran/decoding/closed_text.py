"""Decoding restricted to a closed text: every hypothesis is a run of consecutive words of one of its passages.

A run begins and ends at a word, and does not cross from a passage to the next. Before it may stand one of the text's
*prefaces*, in full, or a preface may be all that is said (of the Qur'an: the basmala, the isti'adha, or both).

Whisper's tokenizer splits text into words, each with the space before it, and encodes every one by itself. So the
tokens of a passage are those of its words one after another, and a word begins at each token that begins with a space.

A decoder that can only say this text cannot hear that something else was said. How likely the model itself finds what
it says is left as it is (:class:`.batch_decoder.BatchDecoder` takes log-probabilities before the constraint), so that
it can be compared with what the model says when it is free.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from ..data.text import normalize
from ..runtime.errors import UserError
from .text_index import SEPARATOR, TextIndex

_ROOT = 1  # of the tree of prefaces; 0 is for hypotheses that have left it


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
    """The text of ``passages``, tokenised and indexed: a second or two for the whole Qur'an.

    Attributes:
        passages: the words of each passage.
        verses: which verse of its passage each word is of; a passage is one, unless a subclass knows better.
        spoken: runs that are not spoken as they are written, and the words that are heard in their place.
        prefaces: what may be said before a run.
        apart: what is often said, too, and is nothing of the text.
        tokens: (n_symbols,) the token of each symbol of the index; that of the separator is eot.
        begins: (n_symbols,) whether a word begins with the symbol.
    """

    def __init__(self, passages: Iterable[str], tokenizer: Tokenizer, prefaces: Iterable[str] = ()) -> None:
        self.passages = [words for text in passages if (words := _words(text))]
        self.spoken: list[tuple[Run, list[str]]] = []
        self.verses = [[0] * len(words) for words in self.passages]
        preface_words = [_words(text) for text in prefaces]
        self.prefaces = [" ".join(words) for words in preface_words]
        self.apart: Sequence[str] = ()
        self.encoded: dict[str, list[int]] = {}  # the tokens of each word
        for word in {word for words in [*self.passages, *preface_words] for word in words}:
            self.encoded[word] = tokenizer.encode(" " + word, disallowed_special=())
        self.eot = tokenizer.eot
        self.tokens = [self.eot, *sorted({token for tokens in self.encoded.values() for token in tokens})]
        self.symbols = {token: symbol for symbol, token in enumerate(self.tokens)}
        spelled = {word: [self.symbols[token] for token in tokens] for word, tokens in self.encoded.items()}
        starts = {symbols[0] for symbols in spelled.values()}
        self.begins = torch.tensor([symbol in starts for symbol in range(len(self.tokens))])
        self.preface_symbols = sorted(
            ([symbol for word in words for symbol in spelled[word]] for words in preface_words), key=len
        )
        self.index = TextIndex(
            [[symbol for word in words for symbol in spelled[word]] for words in self.passages], len(self.tokens)
        )
        begins = self.begins.numpy()[self.index.text]
        self.word_starts = np.flatnonzero(begins)  # in the indexed text, of all words of all passages
        self.first_words = np.cumsum([0, *map(len, self.passages)])  # of each passage, among all words

    def locate(self, tokens: Sequence[int]) -> list[Run]:
        """Return every run that ``tokens`` (without eot) may be, in the order of the text.

        None, if they are no run of whole words, or a preface alone. Where a preface is also a part of the text, the
        runs that it is a part of come first, and then those that begin after it.
        """
        symbols = [self.symbols.get(token, SEPARATOR) for token in tokens]
        spoken = [len(preface) for preface in self.preface_symbols if symbols[: len(preface)] == preface]
        return [run for start in dict.fromkeys([0, *spoken]) for run in self._runs(symbols[start:])]

    def _runs(self, symbols: Sequence[int]) -> list[Run]:
        if not symbols or not self.begins[symbols[0]]:
            return []
        ends = self.index.find(symbols)
        after = self.index.text[ends + 1]
        ends = ends[(after == SEPARATOR) | self.begins.numpy()[after]]
        first = np.searchsorted(self.word_starts, ends - len(symbols) + 1)
        last = np.searchsorted(self.word_starts, ends, side="right") - 1
        passage = np.searchsorted(self.first_words, first, side="right") - 1
        offset = self.first_words[passage]
        return [Run(*run) for run in np.stack([passage, first - offset, last - offset], axis=1).tolist()]

    def describe(self, run: Run) -> str:
        """Say where ``run`` is: its first and its last word, each as passage:word, counted from 1."""
        return f"{run.passage + 1}:{run.first + 1}-{run.passage + 1}:{run.last + 1}"

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the tokens of ``words`` of the text, or of its prefaces."""
        return [token for word in words for token in self.encoded[word]]

    def words(self, run: Run) -> list[str]:
        """Return the words of ``run``."""
        return self.passages[run.passage][run.first : run.last + 1]

    def breaks(self, run: Run) -> int:
        """Count the ends of ``run`` that are inside a verse: 0, 1 or 2. People recite whole verses, most often."""
        verses = self.verses[run.passage]
        before, after = verses[max(0, run.first - 1) : run.first], verses[run.last + 1 : run.last + 2]
        return before.count(verses[run.first]) + after.count(verses[run.last])

    def decoding_options(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the options of Whisper under which nothing of the text is suppressed.

        By default Whisper never says symbols such as brackets or notes, and never begins with a bare space.
        """
        suppressed = [token for token in tokenizer.non_speech_tokens if token not in self.symbols]
        (space,) = tokenizer.encode(" ")
        return {"suppress_tokens": suppressed, "suppress_blank": space not in self.symbols}


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


class ClosedTextConstraint:
    """A :class:`.batch_decoder.LogitFilter` that leaves the tokens with which a closed text can go on.

    A hypothesis may be read in several ways: as a run from its first token, or, for each preface that it begins with,
    as that preface and a run after it. There are never more of them than prefaces that begin one another, and each
    is an interval of the index. A run that has not begun yet has the interval of all the text.
    """

    def __init__(self, text: ClosedText, rows: int, device: torch.device) -> None:
        self.index = text.index.to(device)
        self.columns = torch.tensor(text.tokens, device=device)
        self.begins = text.begins.to(device)
        self.ends = self.begins.clone()  # the symbols before which a run may end
        self.ends[SEPARATOR] = True
        self.symbols = torch.full((text.eot + 1,), SEPARATOR, device=device)
        self.symbols[self.columns] = torch.arange(len(text.tokens), device=device)
        children, readings = _preface_tree(text.preface_symbols, len(text.tokens))
        self.children, self.readings = children.to(device), readings.to(device)
        self.reading = torch.arange(int(readings.max()) + 1, device=device)

        self.intervals = torch.zeros((rows, len(self.reading), 2), dtype=torch.long, device=device)
        self.node = torch.full((rows,), _ROOT, device=device)  # in the tree of prefaces
        self.state: Sequence[Tensor] = (self.intervals, self.node)

    def __call__(self, logits: Tensor, rows: Tensor, last: Tensor | None) -> None:
        if last is None:
            self._begin(rows)
        else:
            self._extend(rows, self.symbols[last.clamp(max=len(self.symbols) - 1)])
        allowed = self._following(rows)
        kept = logits[:, self.columns].masked_fill_(~allowed, -torch.inf)
        logits.fill_(-torch.inf).index_copy_(1, self.columns, kept)

    def _begin(self, rows: Tensor) -> None:
        self.node[rows] = _ROOT
        self.intervals[rows] = 0
        self.intervals[rows, 0, 1] = self.index.length

    def _extend(self, rows: Tensor, symbols: Tensor) -> None:
        intervals = self.intervals[rows]
        extended = self.index.extend(intervals, symbols[:, None].expand(intervals.shape[:2]))
        outside = self._not_begun(intervals) & ~self.begins[symbols][:, None]
        node = self.children[self.node[rows], symbols]
        begun = extended.masked_fill(outside[..., None], 0)
        complete = (self.reading == self.readings[node][:, None]) & (self.reading > 0)
        begun[..., 0].masked_fill_(complete, 0)
        begun[..., 1].masked_fill_(complete, self.index.length)
        self.intervals[rows], self.node[rows] = begun, node

    def _not_begun(self, intervals: Tensor) -> Tensor:
        return (intervals[..., 1] - intervals[..., 0]) == self.index.length

    def _following(self, rows: Tensor) -> Tensor:
        """Return which symbols may follow: (n, n_symbols). The column of the separator is that of eot."""
        intervals, node = self.intervals[rows], self.node[rows]
        follows = self.index.count_following(intervals) > 0
        can_end = (follows & self.ends).any(dim=-1).any(dim=-1) & (node != _ROOT)
        follows &= self.begins | ~self._not_begun(intervals)[..., None]
        allowed = follows.any(dim=1) | (self.children[node] > 0)
        allowed[:, SEPARATOR] = can_end
        return allowed


def _preface_tree(prefaces: Sequence[Sequence[int]], n_symbols: int) -> tuple[Tensor, Tensor]:
    """Make a tree of ``prefaces``, the shortest first.

    Returns the child of each node by symbol (nodes, n_symbols), 0 if there is none, and for each node (nodes,) at
    which a preface is complete, how many prefaces are complete on the way to it; 0 for other nodes.
    """
    children: list[dict[int, int]] = [{}, {}]
    readings = [0, 0]
    for preface in prefaces:
        node, complete = _ROOT, 0
        for symbol in preface:
            if symbol not in children[node]:
                children[node][symbol] = len(children)
                children.append({})
                readings.append(0)
            node = children[node][symbol]
            complete = max(complete, readings[node])
        readings[node] = readings[node] or complete + 1
    table = torch.zeros((len(children), n_symbols), dtype=torch.long)
    for node, following in enumerate(children):
        for symbol, child in following.items():
            table[node, symbol] = child
    return table, torch.tensor(readings)


def _words(text: str) -> list[str]:
    return normalize(text, "none").split()
