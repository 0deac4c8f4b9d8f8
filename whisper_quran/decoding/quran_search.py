"""Where in the Qur'an is what a model heard? The spans of words nearest to it, and which of them it finds likely.

An unconstrained decoder gets most letters right, and many words wrong. So its text is matched with every part of the
Qur'an at once (Sellers, "The theory and computation of evolutionary distances", 1980): for each place where a span may
end, the least cost of a span that ends there (:mod:`.letter_costs`). Spaces are ignored: words that were joined or
split cost nothing. Letters are compared as ``normalize(…, "full")`` writes them.

A recording over 30 s is decoded in pieces, each with several candidates. The Viterbi algorithm chooses one for each
piece: a path's score is the model's log-probability of the words, less costs for letters that differ from those heard,
for ends inside ayat, and for jumps in the text from one piece to the next. So words that occur in several places are
distinguished by their context.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from ..data.text import letters, normalize
from .batch_decoder import DecodedClip
from .letter_costs import AGAIN, FAR, LETTER, MOST_LEFT_OUT, LetterCosts, Places, find_passes
from .word_times import LetterTime, letter_times

_ISTIADHA = "أعوذ بالله من الشيطان الرجيم"
_AYAT_WITH_ISTIADHA_WORDS = ((16, 98), (113, 1), (114, 1))
# Phrases that are also said after a recitation, or in prayer.
_OTHER_PHRASES = ("صدق الله العظيم", "الله أكبر", "سمع الله لمن حمده", "سبحان ربي العظيم", "سبحان ربي الأعلى", "آمين",
          "السلام عليكم ورحمة الله")  # fmt: skip
# The disconnected letters (muqatta'at) that open some surahs are pronounced as the names of the letters.
_OPENINGS = set("الم المص الر المر كهيعص طه طسم طس يس ص حم عسق ق ن".split())
_NAMES = dict(zip("المصركهيعطسحقن", "الف لام ميم صاد را كاف ها يا عين طا سين حا قاف نون".split(), strict=True))
_OPENING_WORDS = 60  # of a surah, indexed with these letters as pronounced

# The search; costs are in letters.
_SEPARATOR = "\n" * (MOST_LEFT_OUT + 2)  # between surahs, so that no span crosses it
BREAK = 5  # the cost of an end inside an ayah, so that spans of whole ayat are preferred
_MOST_ENDS = 256  # places where spans end, the nearest, whose spans are compared
_LONG = 100  # letters of a text that a model may have made up
_MOST_LETTERS = 1000  # of a text that are compared: 30 s of recitation are 400 at most
_MARGIN = 2  # a span that costs this much more than the nearest, at most, is a candidate
_SCORED = 12  # texts at most that the model scores
_CLEAR = 0.3  # of the letters: what costs no more needs no score, if nothing else is near
_PASS_BREAK = 2  # the cost of an end inside an ayah where a reciter goes back: after a breath, often
_REPEATED = 1 / 12  # of the letters: with fewer wrong, nothing is looked for that was said again
_UNSURE = 0.4  # of the letters: if more differ, what was said again may be in another place

# The path from piece to piece; costs are in nats.
_LETTER = 3.0
_JUMP, _JUMPED_WORD, _ELSEWHERE = 6.0, 0.1, 12.0  # a jump, each word of it, and at most: the Qur'an has 78,000 words


@dataclass(frozen=True, order=True)
class Span:
    """Words ``first`` to ``last`` of a surah, counted from 0 in the surah, both included."""

    surah: int
    first: int
    last: int

    def follows(self, before: "Span") -> bool:
        """Return whether it starts where ``before`` ends."""
        return (before.surah, before.last + 1) == (self.surah, self.first)


class Quran:
    """The Qur'an, or a part of it, from its ``texts`` by (surah, ayah).

    Attributes:
        surahs: the words of each surah.
        places: the (ayah, word of the ayah from 1) of each word of each surah.
        prefaces: phrases that may be said before any span: the isti'adha, the basmala, or both.
        apart: phrases that are often said as well, but are not part of the Qur'an (the basmala is an ayah).
    """

    def __init__(self, texts: Mapping[tuple[int, int], str]) -> None:
        self.surahs: dict[int, list[str]] = {}
        self.places: dict[int, list[tuple[int, int]]] = {}
        for (surah, ayah), text in sorted(texts.items()):
            if words := normalize(text, "none").split():
                self.surahs.setdefault(surah, []).extend(words)
                self.places.setdefault(surah, []).extend((ayah, word) for word in range(1, len(words) + 1))
        self.prefaces = _prefaces(texts)
        self.apart = (self.prefaces[0], *_OTHER_PHRASES)
        self._spaced = {surah: f" {' '.join(words)} " for surah, words in self.surahs.items()}

    def words(self, span: Span) -> list[str]:
        """Return the words of ``span``."""
        return self.surahs[span.surah][span.first : span.last + 1]

    def ayat(self, span: Span) -> list[tuple[int, int]]:
        """Return the (surah, ayah) of every ayah that ``span`` has words of."""
        places = self.places[span.surah]
        return [(span.surah, ayah) for ayah in range(places[span.first][0], places[span.last][0] + 1)]

    def describe(self, span: Span) -> str:
        """Write ``span`` as its first and its last word, each as surah:ayah:word."""
        (ayah, word), (last_ayah, last_word) = (self.places[span.surah][each] for each in (span.first, span.last))
        return f"{span.surah}:{ayah}:{word}-{span.surah}:{last_ayah}:{last_word}"

    def locate(self, words: Sequence[str]) -> list[Span]:
        """Return every span of these ``words``, in the order of the text."""
        if not words:
            return []
        phrase, found = f" {' '.join(words)} ", []
        for surah, text in self._spaced.items():
            at = text.find(phrase)
            while at >= 0:
                first = text.count(" ", 0, at)
                found.append(Span(surah, first, first + len(words) - 1))
                at = text.find(phrase, at + 1)
        return found

    def is_inside(self, surah: int, number: int) -> bool:
        """Return whether the ayah of the word before the ``number``-th of a surah goes on with it."""
        places = self.places.get(surah, ())
        return number < len(places) and places[number][1] > 1


def _pronounced(word: str) -> str:
    spelled = letters(word)
    return "".join(_NAMES[letter] for letter in spelled) if spelled in _OPENINGS else word


def _spelled(heard: str) -> str:
    """Return the letters of what was heard, without digits, which number ayat."""
    return "".join(filter(str.isalpha, letters(heard)))


def _prefaces(texts: Mapping[tuple[int, int], str]) -> list[str]:
    """Return the isti'adha, the basmala, and both, in the spelling of ``texts``.

    The isti'adha's words are spelled as in the ayat of ``texts`` that contain them, if there are any.
    """
    spelled = {letters(word): word for word in _ISTIADHA.split()}
    known = [word for ayah in _AYAT_WITH_ISTIADHA_WORDS for word in texts.get(ayah, "").split()]
    spelled |= {letters(word): word for word in known if letters(word) in spelled}
    istiadha, basmala = (normalize(text, "none") for text in (" ".join(spelled.values()), texts.get((1, 1), "")))
    return [istiadha, basmala, f"{istiadha} {basmala}"] if basmala else [istiadha]


@dataclass(frozen=True)
class Candidate:
    """A span that may have been said, after a preface ("" if none), and how near it is to what was heard.

    A text sampled at a high temperature is near to short spans by chance, so it counts as evidence of them only as far
    as it is likely.

    Attributes:
        letters: of each word of the preface and the span, as it is pronounced.
        distance: the edit distance of these letters to what was heard.
        cost: that of the differences (:mod:`.letter_costs`), in letters, plus BREAK for each end of the span that is
            inside an ayah.
        heard: the text decoded without constraint.
        log_probability: the model's, of the words of the span.
        free_log_probability: the model's, of what was heard.
        times: when the letters that were heard were said, if the recognizer finds that.
        doubts: of each word of the preface and the span, by how many nats the model prefers what it heard, there and up
            to the next word that both have, to what is written; 0 where it heard that. Not without alignment heads.
        passes: if the reciter went back, the runs of words that were said one after the other, as candidates; their
            letters, distance and cost are together those above, and the span is that of the last.
    """

    span: Span
    preface: str
    letters: tuple[str, ...]
    distance: int
    cost: float
    heard: str
    log_probability: float = 0.0
    free_log_probability: float = 0.0
    times: tuple[LetterTime, ...] = ()
    doubts: tuple[float, ...] = ()
    passes: tuple["Candidate", ...] = ()

    @property
    def runs(self) -> tuple["Candidate", ...]:
        """The passes, or itself."""
        return self.passes or (self,)

    @property
    def weight(self) -> float:
        """Its score without regard to the pieces before and after it."""
        return self.log_probability + self.free_log_probability - _LETTER * self.cost


class Recognizer:
    """A finder of spans of ``quran``, on ``device``; for the whole Qur'an its index of letters takes a second to make.

    With the model's alignment ``heads``, what was heard is timed, too (:mod:`.word_times`).
    """

    def __init__(self, quran: Quran, device: torch.device, heads: Sequence[tuple[int, int]] = ()) -> None:
        self.quran, self.heads = quran, heads
        self.prefaces = {letters(preface): preface for preface in ("", *quran.prefaces)}
        pronounced = (
            (surah, [*map(_pronounced, words[:2]), *words[2:_OPENING_WORDS]])
            for surah, words in quran.surahs.items()
            if _pronounced(words[0]) != words[0]
        )
        apart = [(0, [phrase]) for phrase in quran.apart]
        spelled, length = [], 0
        self.numbers: list[tuple[int, int]] = []  # each word's surah, and its number there; surah 0 are phrases apart
        self.first: list[int] = []  # for each word, the first that can be in one span with it
        self.starts, self.ends = [], []  # each word's first letter, and the one after its last
        begin_breaks, end_breaks = [], []
        for surah, words in [*quran.surahs.items(), *pronounced, *apart]:
            spelled.append(_SEPARATOR)
            length += len(_SEPARATOR)
            first = len(self.numbers)
            for number, word in enumerate(words):
                spelled.append(letters(word))
                self.numbers.append((surah, number))
                self.first.append(first)
                self.starts.append(length)
                length += len(spelled[-1])
                self.ends.append(length)
                begin_breaks.append(quran.is_inside(surah, number))
                end_breaks.append(quran.is_inside(surah, number + 1))
        self.text = "".join(spelled)
        self.word_at = {start: word for word, start in enumerate(self.starts)}
        self.costs = LetterCosts(self.text, device)
        self.codes = self.costs.encode(self.text)
        # No span passes through the places between two surahs.
        separators = self.codes == self.costs.numbers["\n"]
        between = torch.zeros(len(self.codes) + 1, dtype=torch.int16, device=device)
        between[1:-1] = (separators[:-1] & separators[1:]).short() * FAR
        self.places = Places(self.costs, self.codes, between)
        self.begins = torch.full_like(between, FAR)
        self.begins[self.starts] = torch.tensor(begin_breaks, device=device, dtype=torch.int16) * (BREAK * LETTER)
        self.end_places = torch.tensor(self.ends, device=device)
        self.end_costs = torch.tensor(end_breaks, device=device, dtype=torch.int16) * (BREAK * LETTER)

    def nearest(self, heard: str, margin: int = 0) -> list[Candidate]:
        """Return the spans nearest to ``heard``, and those that cost up to ``margin`` letters more, the nearest first.

        Letters that the Qur'an has not count as heard, too; digits do not: they number ayat. There are none if no span
        has a letter in common with what was heard, if a phrase outside the Qur'an is as near, or if more than half of
        a long text differs. Spans of equal cost are in the order of the text; if words occur in more than 256 places,
        some are left out.
        """
        said = _spelled(heard)[:_MOST_LETTERS]
        if not said:
            return []
        query = self.costs.encode(said).tolist()
        prefaces = self._preface_costs(query)
        entries = [*(cost for cost, _ in prefaces[:-1]), FAR]  # something was said after a preface
        costs = self._end_costs(query, entries)
        least, lasts = (each.tolist() for each in costs.topk(min(_MOST_ENDS, len(costs)), largest=False))
        if len(query) > _LONG and least[0] > LETTER * len(query) / 2:
            return []  # text at random would be as near
        nothing = sum(self.places.added[letter] for letter in query)
        apart = int(costs[-len(self.quran.apart) :].min())
        limit = min(nothing - 1, apart - 1, least[0] + margin * LETTER)
        lasts = [last for cost, last in zip(least, lasts, strict=True) if cost <= limit]
        if not lasts:
            return []
        found: dict[Span, Candidate] = {}  # one that is not pronounced as it is written may be found twice
        for first, last, cost, split in self._spans_to(lasts, query, entries, limit):
            (surah, number), (_, last_number) = self.numbers[first], self.numbers[last]
            span, preface = Span(surah, number, last_number), prefaces[split - 1][1] if split else ""
            words = [self.text[self.starts[word] : self.ends[word]] for word in range(first, last + 1)]
            spelled = (*map(letters, preface.split()), *words)
            if span not in found or cost / LETTER < found[span].cost:
                distance = Levenshtein.distance("".join(spelled), said)
                found[span] = Candidate(span, preface, spelled, distance, cost / LETTER, heard)
        return sorted(found.values(), key=lambda each: (each.cost, each.span))

    def _end_costs(self, query: Sequence[int], entries: Sequence[int] = ()) -> Tensor:
        """Return the cost of the nearest span to each word."""
        *_, row = self.places.costs(query, self.begins, entries)
        return row[self.end_places] + self.end_costs

    def _spans_to(
        self, lasts: Sequence[int], query: Sequence[int], entries: Sequence[int], limit: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield the spans that end with one of the words ``lasts`` and cost at most ``limit``: their first and last
        word, the cost, and how many letters of ``query`` are those of a preface. Everything is read backwards."""
        back = torch.arange(2 * len(query) + MOST_LEFT_OUT + 1, device=self.codes.device)
        at = (self.end_places[lasts][:, None] - back).clamp(min=0)
        places = Places(self.costs, self.codes[(at[:, :-1] - 1).clamp(min=0)], self.places.least[at])
        least = torch.full_like(places.least, FAR)
        splits = torch.zeros_like(least)
        rows = places.costs(query[::-1], least.masked_fill(back == 0, 0))
        for row, split, entry in zip(rows, range(len(query), -1, -1), [*entries[::-1], 0], strict=True):
            if entry < FAR:
                row = row + entry
                splits.masked_fill_(row < least, split)
                least = torch.minimum(least, row)
        costs = least + self.begins[at] + self.end_costs[lasts][:, None]
        costs[:, 0] = FAR  # no word at all
        for row, column in (costs <= limit).nonzero().tolist():
            yield self.word_at[int(at[row, column])], lasts[row], int(costs[row, column]), int(splits[row, column])

    def _costs_of(self, text: str, query: Sequence[int]) -> list[int]:
        """Return the costs of having heard the first 0, 1, … letters of ``query`` in place of ``text``."""
        codes = self.costs.encode(text)
        begins = torch.full((len(codes) + 1,), FAR, dtype=torch.int16, device=codes.device)
        begins[0] = 0
        rows = Places(self.costs, codes, torch.zeros_like(begins)).costs(query, begins)
        return torch.stack([row[-1] for row in rows]).tolist()

    def _preface_costs(self, query: Sequence[int]) -> list[tuple[int, str]]:
        """Return, for each beginning of ``query``, the nearest preface and its cost; FAR if none is near."""
        nearest, besides = [(FAR, "")] * len(query), 0
        for preface in self.quran.prefaces:
            spelled = letters(preface)
            costs = self._costs_of(spelled, query[: 2 * len(spelled)])[1:]
            nearest = [*map(min, nearest, [(cost, preface) for cost in costs]), *nearest[len(costs) :]]
        for number, letter in enumerate(query):
            besides += self.places.added[letter]
            if nearest[number][0] >= besides:  # no nearer than words that are in no text
                nearest[number] = FAR, ""
        return nearest

    def candidates(self, clip: DecodedClip, seconds: float, alone: bool = True) -> list[Candidate]:
        """Return the spans that may have been said in the ``clip``, of so many ``seconds``, that was just decoded.

        Words that occur in several places are as many candidates. There are none if no span is near. If only the same
        words are near, and clearly, they are taken to be as likely as what was heard. Unless the clip is ``alone``, the
        margin allows for two ends inside ayat, which cost nothing if its neighbours continue there.
        """
        heard, log_probability = clip.result.text, clip.result.avg_logprob * (len(clip.result.tokens) + 1)
        nearest = self.nearest(heard, _MARGIN if alone else _MARGIN + 2 * BREAK)
        if again := self.repeated(heard, nearest):
            nearest.insert(0, again)
        if not nearest:
            return []
        texts = [self.join_words([each]) for each in nearest]
        distinct = list(dict.fromkeys(texts))[:_SCORED]
        said = [word for word in normalize(heard, "none").split() if _spelled(word)]
        if self.heads:
            of_heard, *of_texts = clip.word_log_probabilities([" ".join(said), *distinct])
            scores = [sum(each) for each in of_texts]
        else:
            unclear = len(distinct) > 1 or again or nearest[0].cost > _CLEAR * sum(map(len, nearest[0].letters))
            scores = clip.log_probabilities(distinct) if unclear else [log_probability]
        score_of = dict(zip(distinct, scores, strict=True))
        times = tuple(letter_times(clip, self.heads, seconds)) if self.heads else ()
        found = []
        for each, text in zip(nearest, texts, strict=True):
            if text in score_of:
                score = {"log_probability": score_of[text], "free_log_probability": log_probability}
                each = replace(each, **score, times=times)
                if self.heads:
                    of_words = of_texts[distinct.index(text)]
                    each = replace(each, doubts=_doubts(self.words(each), each.letters, of_words, said, of_heard))
                found.append(_divided(each))
        return found

    def repeated(self, heard: str, nearest: Sequence[Candidate]) -> Candidate | None:
        """Return what was ``heard`` as several passes, if that is nearer to the text than the ``nearest`` span is."""
        query = _spelled(heard)[:_MOST_LETTERS]
        if not query or (nearest and nearest[0].distance <= _REPEATED * len(query)):
            return None
        # A preface, even if its end was not heard.
        cuts = ((each, end) for each in self.prefaces for end in range(len(each) + 1))
        preface, begin = min(cuts, key=lambda cut: Levenshtein.distance(cut[0], query[: cut[1]]) - len(cut[0]) / 3)
        lasts = {self.numbers.index((each.span.surah, each.span.last)) for each in nearest[:1]}
        if not nearest or nearest[0].cost > _UNSURE * len(query):
            # The halves of a text that is said several times are nearer to it than the whole.
            half = (begin + len(query)) // 2
            parts = filter(None, (query[begin:half], query[half:]))
            costs = (self._end_costs(self.costs.encode(part).tolist()) for part in parts)
            lasts |= {int(each[: -len(self.quran.apart)].argmin()) for each in costs}
        found = [self._passes_near(last, heard, query, preface, begin) for last in lasts]
        best = min((each for each in found if each), key=lambda each: each.cost, default=None)
        return best if best and best.cost < (nearest[0].cost if nearest else len(query) / 2) else None

    def _passes_near(self, last: int, heard: str, query: str, preface: str, begin: int) -> Candidate | None:
        """Return the passes of least cost, two or more, through the words around ``last``, after a ``preface``.

        The preface is before the letter ``begin``.
        """
        first, after = self.first[last], bisect_right(self.first, self.first[last])  # of its surah
        first = max(first, bisect_left(self.starts, self.ends[last] - 2 * len(query), first, after))
        after = bisect_right(self.starts, self.ends[last] + len(query), first, after)
        words = [self.text[self.starts[each] : self.ends[each]] for each in range(first, after)]
        surah, number = self.numbers[first]
        costs = [_PASS_BREAK * self.quran.is_inside(surah, number + index) for index in range(len(words) + 1)]
        passes = find_passes(self.costs, query[begin:], words, costs[:-1], costs[1:]) if query[begin:] else []
        passes = [each for each in passes if each[0] <= each[1]]
        if len(passes) < 2:
            return None
        said: list[list[str]] = [[] for _ in passes]  # the words heard in each pass
        ends = [begin + each[3] for each in passes[:-1]]
        count = 0
        for word in heard.split():
            length = len(_spelled(word))
            said[bisect_left(ends, count + (length + 1) / 2)].append(word)
            count += length
        runs: list[Candidate] = []
        for (start, stop, *_), its in zip(passes, said, strict=True):
            its_preface = "" if runs else self.prefaces[preface]
            its_letters = (*map(letters, its_preface.split()), *words[start : stop + 1])
            spelled, its_query = "".join(its_letters), _spelled(" ".join(its))
            cost = self._costs_of(spelled, self.costs.encode(its_query).tolist())[-1] / LETTER
            cost, span = cost + costs[start] + costs[stop + 1], Span(surah, number + start, number + stop)
            distance = Levenshtein.distance(spelled, its_query)
            runs.append(Candidate(span, its_preface, its_letters, distance, cost, " ".join(its)))
        return Candidate(
            runs[-1].span,
            runs[0].preface,
            tuple(word for run in runs for word in run.letters),
            sum(run.distance for run in runs),
            sum(run.cost for run in runs) + AGAIN * (len(runs) - 1),
            heard,
            passes=tuple(runs),
        )

    def choose(self, pieces: Iterable[Sequence[Candidate]]) -> list[Candidate | None]:
        """Choose a candidate for each of the ``pieces`` of a recording, in order; None for those that have none."""
        paths: list[tuple[float, list[Candidate | None]]] = [(0.0, [])]  # the best to each last candidate
        for candidates in pieces:
            if not candidates:
                paths = [(weight, [*path, None]) for weight, path in paths]
                continue
            extended = []
            for candidate in candidates:
                reached = ((w - self._transition(path, candidate), path) for w, path in paths)
                weight, path = max(reached, key=lambda each: each[0])
                extended.append((weight + candidate.weight, [*path, candidate]))
            paths = extended
        return max(paths, key=lambda each: each[0])[1]

    def _transition(self, path: Sequence[Candidate | None], candidate: Candidate) -> float:
        """Return the cost of ``candidate`` after the last span of ``path``."""
        before = next((each.span for each in reversed(path) if each), None)
        if before is None:
            return 0.0
        span = candidate.runs[0].span
        if span.follows(before):
            places = self.quran.places[span.surah]
            inside = places[before.last][0] == places[span.first][0]
            return -2 * _LETTER * BREAK * inside  # not an end: both pieces are refunded its cost
        if before.surah != span.surah:
            return _ELSEWHERE
        return min(_ELSEWHERE, _JUMP + _JUMPED_WORD * abs(span.first - before.last - 1))

    def words(self, candidate: Candidate) -> list[str]:
        """Return the words of ``candidate``, its preface's first."""
        return [word for run in candidate.runs for word in (*run.preface.split(), *self.quran.words(run.span))]

    def join_words(self, found: Iterable[Candidate]) -> str:
        """Return the words of all ``found``, joined by spaces."""
        return " ".join(word for each in found for word in self.words(each))


def _doubts(
    words: Sequence[str],
    spelled: Sequence[str],
    of_words: Sequence[float],
    heard: Sequence[str],
    of_heard: Sequence[float],
) -> tuple[float, ...]:
    """Compute the doubts of ``words`` and their letters, from the log-probabilities of both texts, word by word."""
    edits = Levenshtein.opcodes(*([normalize(word, "diacritics") for word in each] for each in (words, heard)))
    doubts = [0.0] * len(words)
    for same, group in groupby(edits, key=lambda edit: edit.tag == "equal"):
        differing = list(group)
        first, after = differing[0].src_start, differing[-1].src_end
        first_heard, after_heard = differing[0].dest_start, differing[-1].dest_end
        if not same and "".join(spelled[first:after]) != _spelled(" ".join(heard[first_heard:after_heard])):
            doubt = sum(of_heard[first_heard : after_heard + 1]) - sum(of_words[first : after + 1])
            for word in range(max(0, min(first, after - 1)), after):  # what is added, of the word before it
                doubts[word] = round(doubt, 2)
    return tuple(doubts)


def _divided(candidate: Candidate) -> Candidate:
    """Give the passes of ``candidate`` their part of its times and doubts."""
    letter, word, passes = 0, 0, []
    times = [time for time in candidate.times if time[0].isalpha()]
    for run in candidate.passes:
        letters_end, words_end = letter + len(_spelled(run.heard)), word + len(run.letters)
        passes.append(replace(run, times=tuple(times[letter:letters_end]), doubts=candidate.doubts[word:words_end]))
        letter, word = letters_end, words_end
    return replace(candidate, passes=tuple(passes))


def joined(spans: Iterable[Span]) -> list[Span]:
    """Join each span with the one before if it follows that."""
    whole: list[Span] = []
    for span in spans:
        if whole and span.follows(whole[-1]):
            whole[-1] = replace(whole[-1], last=span.last)
        else:
            whole.append(span)
    return whole
