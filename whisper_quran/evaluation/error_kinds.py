"""Kinds of word errors: each error of an alignment is assigned the one kind that explains it best.

    for part in explain(row.reference, row.alignment.edits):
        print(part.kind, part.expected, "heard as", part.heard, "times", part.times)

The kinds are the keys of :data:`KINDS`. An error is a word; a part may be several words that belong together (two heard
as one), and the parts of a recording add up to its word errors.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rapidfuzz.distance import Levenshtein

from ..data.text import ONE_HAMZA, SEATS
from .predictions import Prediction

KINDS = {
    "repeat": "Repeated or looping",
    "foreign": "Digits and other scripts",
    "marks": "Vowel signs or punctuation alone",
    "spelling": "Hamza, ta marbuta or ya alone",
    "letter": "One letter",
    "joined": "Words joined or split",
    "end": "The end left out",
    "word": "Another word",
    "missing": "Word left out",
    "extra": "Word added",
}
EXAMPLES = 5  # of each kind, in results.json
LOOP = 3  # a phrase heard this many times in a row, or more, is a loop
LONGEST_PHRASE = 8  # words that repeat together
_MARKS = re.compile(r"[^\w\s]|[_\u0640]")  # vowel signs, tatweel and punctuation
_ARABIC = re.compile(r"[\u0600-\u06ff]")
_NOT_ARABIC = re.compile(r"\d|[^\W_\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff]")


@dataclass(frozen=True)
class Part:
    """Neighbouring words: ``expected`` of the reference, ``heard`` of the hypothesis, ``times`` in a row.

    ``kind`` is one of :data:`KINDS`, or "" for right words, which are in ``expected`` alone.
    """

    kind: str
    expected: tuple[str, ...]
    heard: tuple[str, ...] = ()
    times: int = 1

    @property
    def errors(self) -> int:
        return max(len(self.expected), len(self.heard) * self.times) if self.kind else 0


# A word of the reference and the word heard for it: (word, None) if it was left out, (None, word) if it was added.
Step = tuple[str | None, str | None]


def explain(reference: str, edits: str) -> list[Part]:
    """Return the parts, in reading order, of the alignment of ``reference`` by ``edits`` (of :class:`.Alignment`)."""
    return explain_steps(list(steps_of(reference.split(), edits)))


def explain_steps(steps: list[Step]) -> list[Part]:
    """Explain an alignment, or a part of one, that is already cut into steps."""
    repeated = _repeated(steps)
    arabic = any(expected and _ARABIC.search(expected) for expected, _ in steps)

    def group_of(number: int) -> str:
        expected, heard = steps[number]
        return "" if expected == heard else "repeat" if number in repeated else "error"

    parts: list[Part] = []
    for group, numbers in groupby(range(len(steps)), key=group_of):
        some = [steps[number] for number in numbers]
        if group == "":
            parts.append(Part("", tuple(expected for expected, _ in some if expected)))
        elif group == "repeat":
            parts += _repeats(some)
        else:
            parts += _merged(_explain_neighbours(some, arabic))
    if parts and parts[-1].kind == "missing" and any(heard for _, heard in steps):
        parts[-1] = Part("end", parts[-1].expected)
    return parts


def count_kinds(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Count, for each model, the word errors of each kind with the commonest examples, and the letters confused.

    ``errors`` counts words and adds up to the errors of the word error rate; ``times`` counts parts.
    """
    errors: defaultdict[tuple[str, str], Counter[Part]] = defaultdict(Counter)
    letters: Counter[tuple[str, ...]] = Counter()
    for row in predictions:
        for part in explain(row.reference, row.alignment.edits):
            if part.kind:
                errors[row.model, part.kind][part] += 1
            if part.kind == "letter":
                letters[(row.model, *letters_confused(part))] += 1
    kinds = []
    for model, kind in sorted(errors, key=lambda each: (each[0], list(KINDS).index(each[1]))):
        parts = errors[model, kind]
        examples = [
            {"expected": " ".join(part.expected), "heard": " ".join(part.heard), "repeated": part.times, "times": times}
            for part, times in parts.most_common(EXAMPLES)
        ]
        total = sum(part.errors * times for part, times in parts.items())
        kinds.append({"model": model, "kind": kind, "errors": total, "times": parts.total(), "examples": examples})
    confused = [{"model": m, "expected": a, "heard": b, "times": times} for (m, a, b), times in letters.most_common()]
    return {"kinds": kinds, "letters": confused}


def steps_of(words: Sequence[str], edits: str) -> Iterator[Step]:
    """Yield the steps of ``edits`` for the reference ``words``, with every word expected and every word heard."""
    remaining = iter(words)
    for edit in edits.split():
        sign, rest = edit[0], edit[1:]
        if sign == "+":
            yield None, rest
        elif sign == "~":
            yield next(remaining), rest
        else:
            for _ in range(int(rest)):
                word = next(remaining)
                yield word, word if sign == "=" else None
    yield from ((word, word) for word in remaining)


def _repeated(steps: list[Step]) -> set[int]:
    """Find the steps that repeat what was heard: all within a loop, otherwise the added words of a repeated phrase."""
    heard = [number for number, (_, word) in enumerate(steps) if word]
    words = [steps[number][1] for number in heard]
    found: set[int] = set()
    for period in range(1, LONGEST_PHRASE + 1):
        same = [words[at] == words[at - period] for at in range(period, len(words))]
        start = 0
        for is_same, group in groupby(same):
            length = len(list(group))
            if is_same and length >= period:
                stretch = heard[start : start + length + period]
                loop = length >= (LOOP - 1) * period
                found.update(number for number in stretch if loop or steps[number][0] is None)
            start += length
    return found


def _repeats(steps: list[Step]) -> Iterator[Part]:
    """Make parts of repeated words; added words are one phrase, with how many times it is repeated."""
    for added, group in groupby(steps, key=lambda step: step[0] is None):
        some = list(group)
        if not added:
            yield from (Part("repeat", (expected,), (heard,)) for expected, heard in some if expected and heard)
            continue
        words = tuple(heard for _, heard in some if heard)
        period = next(p for p in range(1, len(words) + 1) if words[p:] == words[:-p])
        times, rest = divmod(len(words), period)
        yield Part("repeat", (), words[:period], times)
        if rest:
            yield Part("repeat", (), words[:rest])


def _explain_neighbours(steps: list[Step], arabic: bool) -> Iterator[Part]:
    """Explain adjacent errors: first as words joined, split or with other boundaries, then one by one."""
    at = 0
    while at < len(steps):
        size = next((n for n in (2, 3, 4) if at + n <= len(steps) and _is_joined(steps[at : at + n])), 1)
        some = steps[at : at + size]
        expected, heard = (tuple(step[side] or "" for step in some if step[side]) for side in (0, 1))
        yield Part("joined" if size > 1 else _kind_of(some[0], arabic), expected, heard)
        at += size


def _is_joined(steps: list[Step]) -> bool:
    """Return whether the steps differ in word boundaries alone; in one letter, too, if the numbers of words differ."""
    expected = [word.translate(SEATS) for word, _ in steps if word]
    heard = [word.translate(SEATS) for _, word in steps if word]
    if not expected or not heard or expected == heard:
        return False
    tolerated = int(len(expected) != len(heard))
    return Levenshtein.distance("".join(expected), "".join(heard), score_cutoff=tolerated) <= tolerated


def _kind_of(step: Step, arabic: bool) -> str:
    expected, heard = (word or "" for word in step)
    if arabic and _NOT_ARABIC.search(heard):
        return "foreign"
    bare, bare_heard = _MARKS.sub("", expected), _MARKS.sub("", heard)
    if bare == bare_heard:
        return "marks"
    if not heard:
        return "missing"
    if not expected:
        return "extra"
    if any(bare.translate(fold) == bare_heard.translate(fold) for fold in (SEATS, ONE_HAMZA)):
        return "spelling"
    return "letter" if letters_confused(Part("", (expected,), (heard,))) else "word"


def letters_confused(part: Part) -> tuple[str, ...]:
    """Return the letter expected and the letter heard ("" if it is missing or added) of a part of the kind "letter".

    It is the only one that differs, ignoring marks, or else marks and spelling; nothing if there are more.
    """
    bare, bare_heard = (_MARKS.sub("", word) for word in (*part.expected, *part.heard))
    for a, b in ((bare, bare_heard), (bare.translate(SEATS), bare_heard.translate(SEATS))):
        edits = list(Levenshtein.editops(a, b))
        if len(edits) == 1:
            kind, at, heard_at = edits[0].tag, edits[0].src_pos, edits[0].dest_pos
            return a[at] if kind != "insert" else "", b[heard_at] if kind != "delete" else ""
    return ()


def _merged(parts: Iterable[Part]) -> Iterator[Part]:
    """Join adjacent parts of one kind that were all added, or all left out."""
    for (kind, both), group in groupby(parts, key=lambda part: (part.kind, bool(part.expected and part.heard))):
        some = list(group)
        if both:
            yield from some
        else:
            yield Part(kind, sum((part.expected for part in some), ()), sum((part.heard for part in some), ()))
