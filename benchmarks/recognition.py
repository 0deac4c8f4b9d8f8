"""Which ayah is this? How often it is found, of what recordings, and what that takes beside hearing them freely.

  python benchmarks/recognition.py --data DIR --model base.pt [--reciters R...] [--surahs A:B] [--parts ayat cut ...]

Parts: ``ayat``, whole ayat up to 30 s, against the whole ayah that is nearest to what was heard by edit distance (which
knows that it is one ayah, as the recognizer does not); ``cut``, ayat cut in two at their quietest place; ``long``, five
minutes of consecutive ayat as one recording; ``follow``, the same as it comes; ``words``, ayat in which a word is
replaced by another of the same reciter's, left out or said twice, found by the model's doubt of it; ``lookalikes``,
ayat that go on as another after three words or more that both have; ``repeats``, ayat of which some are said again;
``others``, what the text does not have: ayat without whose surahs it is searched, and the same backwards.

The nearest ayah is that to the greedy text: what is decoded again at a high temperature has fewer of its letters.

Times are of the same pass: what finding takes, against all the rest.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations, takewhile
from pathlib import Path

import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein

from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.config import RecognitionConfig
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.data.ayat import Ayah, read_text
from whisper_quran.data.corpus import default_text, open_corpus
from whisper_quran.data.features import FRAME, frame_energy
from whisper_quran.data.text import letters, normalize
from whisper_quran.decoding.long_audio import Transcript, transcribe_clips
from whisper_quran.decoding.quran_search import Candidate, Quran, Recognizer, joined
from whisper_quran.decoding.word_times import alignment_heads, word_times
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors
from whisper_quran.recognition.follow import follow
from whisper_quran.recognition.recitations import DOUBTFUL, is_likely, recognize
from whisper_quran.runtime.console import markdown_table, percent
from whisper_quran.runtime.device import choose_device, choose_precision

LONG = 300  # seconds
NEAR = 1.0  # seconds between a boundary and where it was found
QUIET = 0.02  # of the mean energy: what is below it is a pause
FEW = 5  # words of a piece
SHORT = 0.15  # seconds of a word that no mistake is made of
MISTAKES = ("replaced", "left out", "said twice")
FALSE_ALARMS = (0.05, 0.01)
REPEATS = ("none", "an ayah twice, the next", "an ayah three times", "two twice, the next", "after a breath")


class TimedRecognizer(Recognizer):
    """A recognizer that knows how long it took to find candidates."""

    seconds = 0.0

    def candidates(self, *args) -> list[Candidate]:
        start = time.perf_counter()
        found = super().candidates(*args)
        self.seconds += time.perf_counter() - start
        return found


class Bench:
    """The model, the text and the recordings."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.device, _ = choose_device(args.device)
        self.model = load_checkpoint(args.model, self.device)
        self.dtype = choose_precision(args.precision, self.device, self.model).dtype
        self.text_file = default_text(args.data)
        self.texts = read_text(self.text_file)[0]
        self.text = Quran(self.texts)

    def ayat(self, reciter: str) -> tuple[list[Ayah], AudioCache]:
        """Return the ayat of ``reciter`` that can be decoded, and their audio."""
        ayat = open_corpus(self.args.data, None, None, self.args.surahs).select([reciter])[0]
        cache = prepare_audio({reciter: [ayah.audio for ayah in ayat]}, self.folder / "cache", 2)
        return [ayah for ayah in ayat if ayah.audio in cache], cache

    def hear(self, clips: Sequence[np.ndarray], recognizer: Recognizer | None = None, **options) -> list[Transcript]:
        """Transcribe ``clips``, and with a ``recognizer`` find where they are."""
        options |= {"batch_size": self.args.batch_size, "dtype": self.dtype, "stop_loops": True}
        heard = transcribe_clips(self.model, clips, recognizer=recognizer, **options)
        return sorted(heard, key=lambda each: each.clip)


def errors(reference: str, hypothesis: str) -> ErrorCounts:
    return count_errors(normalize(reference, "diacritics"), normalize(hypothesis, "diacritics"))


def whole_ayat(bench: Bench) -> None:
    """Print the table of whole ayat."""
    recognizer = TimedRecognizer(bench.text, bench.device)
    verses = {key: letters(text) for key, text in bench.texts.items()}
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        ayat = [ayah for ayah in ayat if cache.length(ayah.audio) <= 30 * SAMPLE_RATE][: bench.args.limit]
        clips = [cache.read(ayah.audio) for ayah in ayat]
        recognizer.seconds, start = 0.0, time.perf_counter()
        heard = bench.hear(clips, recognizer)
        seconds = time.perf_counter() - start
        greedy = bench.hear(clips, fallback=False)
        free, nearest, constrained, found_nearest, found = ErrorCounts(), ErrorCounts(), ErrorCounts(), 0, 0
        for ayah, each, first in zip(ayat, heard, greedy, strict=True):
            said = letters(first.text)
            key = min(verses, key=lambda key: Levenshtein.distance(verses[key], said))
            free += errors(ayah.text, each.text)
            nearest += errors(ayah.text, bench.texts[key])
            constrained += errors(ayah.text, recognizer.join_words(each.found))
            found_nearest += key == (ayah.surah, ayah.number)
            places = dict.fromkeys(key for run in each.found for key in bench.text.ayat(run.span))  # said once or again
            found += list(places) == [(ayah.surah, ayah.number)]
        rates = [percent(each.wer) for each in (free, nearest, constrained)]
        shares = [percent(count / len(ayat)) for count in (found_nearest, found)]
        took = percent(recognizer.seconds / (seconds - recognizer.seconds))
        lines.append([reciter, str(len(ayat)), *rates, *shares, took])
        print(f"{reciter}: done in {seconds:.0f} s", flush=True)
    header = [
        "ayat up to 30 s",
        "",
        "free WER",
        "nearest ayah",
        "constrained",
        "found: nearest",
        "found",
        "time on top",
    ]
    print(f"\n{markdown_table(header, lines)}", flush=True)


def cut_in_two(clip: np.ndarray) -> int:
    """Return the sample in the middle half of ``clip`` where it is quietest; 0 if there is no pause."""
    smooth = np.convolve(frame_energy(clip), np.ones(30) / 30, "same")
    first, last = len(smooth) // 4, 3 * len(smooth) // 4
    quietest = first + int(smooth[first:last].argmin())
    return quietest * FRAME if smooth[quietest] < QUIET * smooth.mean() else 0


def split_words(words: Sequence[str], heard: Sequence[str]) -> int:
    """Return after how many of ``words``, which were said in two pieces, the first ends, by what was ``heard``."""
    spelled, first, second = list(map(letters, words)), *map(letters, heard)

    def distance(count: int) -> int:
        before, after = "".join(spelled[:count]), "".join(spelled[count:])
        return Levenshtein.distance(before, first) + Levenshtein.distance(after, second)

    return min(range(1, len(words)), key=distance)


def cut_ayat(bench: Bench) -> None:
    """Print the table of ayat cut in two. Which words are in a piece is told by what is heard, the ayah being known."""
    recognizer = Recognizer(bench.text, bench.device)
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        halves: list[tuple[Ayah, np.ndarray, np.ndarray]] = []
        for ayah in ayat:
            clip = np.array(cache.read(ayah.audio))
            if 8 * SAMPLE_RATE < len(clip) <= 60 * SAMPLE_RATE and len(ayah.text.split()) > 1:
                at = cut_in_two(clip)
                if at and max(at, len(clip) - at) <= 30 * SAMPLE_RATE:
                    halves.append((ayah, clip[:at], clip[at:]))
        halves = random.Random(0).sample(halves, min(len(halves), bench.args.limit or len(halves)))
        heard = bench.hear([half for _, *both in halves for half in both], recognizer)
        counts = np.zeros((2, 3), dtype=int)  # of pieces of few words, of more: all, found, found to the word
        for number, (ayah, *_) in enumerate(halves):
            words, pair = ayah.text.split(), heard[2 * number : 2 * number + 2]
            middle = split_words(words, [each.text for each in pair])
            for each, first, last in ((pair[0], 1, middle), (pair[1], middle + 1, len(words))):
                # By its words: the same may stand in several places.
                exact = recognizer.join_words(each.found) == " ".join(words[first - 1 : last])
                right = exact or any(
                    bench.text.ayat(span) == [(ayah.surah, ayah.number)]
                    and bench.text.places[span.surah][span.first][1] <= last
                    and bench.text.places[span.surah][span.last][1] >= first
                    for span in joined(found.span for found in each.found)
                )
                counts[int(last - first + 1 >= FEW)] += [1, right, exact]
        cells = [f"{found} of {all_}, {exact} to the word" for all_, found, exact in counts.tolist()]
        lines.append([reciter, str(len(halves)), *cells])
    header = ["ayat cut in two", "", f"pieces of under {FEW} words: found", f"of {FEW} and more: found"]
    print(f"\n{markdown_table(header, lines)}", flush=True)


def consecutive(bench: Bench, reciter: str) -> tuple[list[tuple[int, int]], list[float], Path]:
    """Return five minutes of consecutive ayat: their surahs and numbers, where they end, and one recording of them."""
    ayat, cache = bench.ayat(reciter)
    clips, ends, length = [], [], 0
    for ayah in ayat:
        if length > LONG * SAMPLE_RATE:
            break
        clips.append(np.array(cache.read(ayah.audio)))
        length += len(clips[-1])
        ends.append(length / SAMPLE_RATE)
    file = bench.folder / f"{reciter}.wav"
    soundfile.write(file, np.concatenate(clips), SAMPLE_RATE)
    return [(ayah.surah, ayah.number) for ayah in ayat[: len(clips)]], ends, file


def followed(bench: Bench) -> None:
    """Print the table of five minutes of consecutive ayat, followed: how much is told, and is right, and when."""
    lines = []
    for reciter in bench.args.reciters:
        keys, ends, file = consecutive(bench, reciter)
        config = RecognitionConfig(
            files=(str(file),), model=bench.args.model, text=bench.text_file, precision=bench.args.precision
        )
        spans = dict(zip(keys, zip([0.0, *ends], ends, strict=False), strict=True))
        words = right = 0
        first, waits, begun = 0.0, [], time.perf_counter()
        for told in follow(config):
            for ayah in (ayah for part in told.recitations for ayah in part.ayat):
                start, end = spans.get((told.recitations[0].surah, ayah.ayah), (0.0, 0.0))
                count = len(ayah.words)
                is_right = start - NEAR <= ayah.start and ayah.end <= end + NEAR
                words, right = words + count, right + count * is_right
                if is_right:
                    first = first or told.seconds
                    waits.append(told.seconds - ayah.end)
        seconds = time.perf_counter() - begun
        said = sum(len(bench.texts[key].split()) for key in keys)
        lines.append([reciter, f"{ends[-1]:.0f}", f"{right} of {words}", percent(right / said), f"{first:.1f}"])
        lines[-1] += [f"{np.median(waits):.1f}", f"{seconds:.0f}"]
    header = ["followed", "seconds", "words told right", "of those said", "first place, s", "median wait, s", "took, s"]
    print(f"\n{markdown_table(header, lines)}", flush=True)


def long_recordings(bench: Bench) -> None:
    """Print the table of five minutes of consecutive ayat: how many are found, and how near their boundaries."""
    lines = []
    for reciter in bench.args.reciters:
        keys, ends, file = consecutive(bench, reciter)
        start = time.perf_counter()
        config = RecognitionConfig(
            files=(str(file),), model=bench.args.model, text=bench.text_file, precision=bench.args.precision
        )
        (recognition,) = recognize(config)
        seconds = time.perf_counter() - start
        found = {(part.surah, each.ayah): each for part in recognition.recitations for each in part.ayat}
        others = sum(len(part.ayat) for part in recognition.recitations) - sum(key in found for key in keys)
        away = [
            min(abs(found[this].end - end), abs(found[following].start - end))
            for this, following, end in zip(keys, keys[1:], ends, strict=False)
            if this in found and following in found
        ]
        near = sum(each <= NEAR for each in away) / (len(keys) - 1)
        names = f"{keys[0][0]}:{keys[0][1]} to {keys[-1][0]}:{keys[-1][1]}"
        share = f"{sum(key in found for key in keys)} of {len(keys)}"
        lines.append([reciter, names, f"{ends[-1]:.0f}", share, str(others), percent(near)])
        lines[-1] += [f"{np.median(away):.2f}", f"{seconds:.0f}"]
    header = ["one recording", "ayat", "seconds", "found", "others found", f"boundaries within {NEAR:.0f} s"]
    print(f"\n{markdown_table([*header, 'median, s', 'took, s'], lines)}", flush=True)


def mistakes(bench: Bench) -> None:
    """Print how many of the words that are replaced, left out or said twice are found, at rates of false alarms."""
    recognizer = Recognizer(bench.text, bench.device, alignment_heads(bench.model))
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        ayat = [ayah for ayah in ayat if 3 * SAMPLE_RATE < cache.length(ayah.audio) <= 25 * SAMPLE_RATE]
        ayat = random.Random(0).sample(ayat, min(len(ayat), bench.args.limit or len(ayat)))
        clips = [np.array(cache.read(ayah.audio)) for ayah in ayat]
        heard = bench.hear(clips, recognizer)
        timed = [timed_words(each, recognizer) for each in heard]
        # Mistakes are made where the times of the words are known, and false alarms counted in the same ayat.
        texts = [normalize(ayah.text, "none") for ayah in ayat]
        whole = [recognizer.join_words(each.found) == text for each, text in zip(heard, texts, strict=True)]
        found_right = [run for each, good in zip(heard, whole, strict=True) if good for run in each.found]
        right = np.array([doubt for run in found_right for doubt in run.doubts])
        wrong: list[tuple[int, int, np.ndarray]] = []  # kind, word, audio
        for number, its in enumerate(timed):
            draw = random.Random(number)
            others = [(n, w) for n, words in enumerate(timed) if n != number for w in words if w[2] - w[1] > SHORT]
            places = [n for n, (_, start, end) in enumerate(its) if end - start > SHORT][1:-1]
            for kind in range(len(MISTAKES)) if whole[number] and places and others else ():
                at, (there, (other, a, b)) = draw.choice(places), draw.choice(others)
                word, start, end = its[at]
                before, said, after = np.split(clips[number], [int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)])
                if kind or letters(word) != letters(other):
                    put = (clips[there][int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)], said[:0], np.tile(said, 2))[kind]
                    wrong.append((kind, at, np.concatenate([before, put, after])))
        found: list[list[float]] = [[] for _ in MISTAKES]
        for (kind, at, _), each in zip(wrong, bench.hear([clip for *_, clip in wrong], recognizer), strict=True):
            doubts = [doubt for run in each.found for doubt in run.doubts]
            found[kind].append(doubts[at] if len(each.found) == 1 and at < len(doubts) else float("inf"))
        for name, limit in limits(right).items():
            shares = [f"{percent(marked(each, limit))} of {len(each)}" for each in found if each]
            alarms = f"{percent(marked(right, limit))} of {len(right)}"
            lines.append([f"{reciter}, {name}", alarms, f"{limit:.1f}", *shares])
    print(f"\n{markdown_table(['', 'false alarms a word', 'nats', *MISTAKES], lines)}", flush=True)


def limits(right: np.ndarray) -> dict[str, float]:
    """Return limits of doubt in nats, by name: quantiles of ``right`` at :data:`FALSE_ALARMS`, and DOUBTFUL."""
    return {f"at {percent(rate)}": float(np.quantile(right, 1 - rate)) for rate in FALSE_ALARMS} | DOUBTFUL


def marked(doubts: Sequence[float] | np.ndarray, limit: float) -> float:
    """Return the share of words that are doubted by more than ``limit``."""
    return float(np.mean(np.asarray(doubts) > limit))


def likely(transcript: Transcript) -> list[Candidate]:
    """Return what is found in the pieces of a clip and is not said to be other speech."""
    return [each.candidate for each in transcript.pieces if each.candidate and is_likely(each.candidate)]


def timed_words(transcript: Transcript, recognizer: Recognizer) -> list[tuple[str, float, float]]:
    """Return the words that were found in a clip of one piece, and when each is said."""
    return [
        (word, start, end)
        for found in transcript.found
        for word, (start, end) in zip(recognizer.words(found), word_times(found.letters, found.times), strict=True)
    ]


def lookalikes(bench: Bench) -> None:
    """Print whether it is noticed that an ayah, after words that another has too, goes on as the other."""
    recognizer = Recognizer(bench.text, bench.device, alignment_heads(bench.model))
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        ayat = [ayah for ayah in ayat if cache.length(ayah.audio) <= 15 * SAMPLE_RATE]
        texts = [normalize(ayah.text, "none").split() for ayah in ayat]
        pairs = confusable(texts, bench.args.limit or len(ayat))
        used = sorted({number for one, _, other, _ in pairs for number in (one, other)})
        clips = {number: np.array(cache.read(ayat[number].audio)) for number in used}
        # As in mistakes(): the times of the words must be known, and false alarms are counted in the same ayat.
        heard = zip(used, bench.hear([clips[number] for number in used], recognizer), strict=True)
        whole = {number: each for number, each in heard if recognizer.join_words(each.found).split() == texts[number]}
        starts = {number: [start for _, start, _ in timed_words(each, recognizer)] for number, each in whole.items()}
        right = np.array([doubt for each in whole.values() for run in each.found for doubt in run.doubts])
        pairs = [pair for pair in pairs if pair[0] in whole and pair[2] in whole]
        if not pairs:
            print(f"{reciter}: no two ayat with three words in common are found", flush=True)
            continue
        spliced = []
        for one, word, other, its_word in pairs:
            end, start = (int(starts[n][at] * SAMPLE_RATE) for n, at in ((one, word), (other, its_word)))
            spliced.append(np.concatenate([clips[one][:end], clips[other][start:]]))
        doubts: list[float] = []
        nothing = named = written = 0
        for (one, word, other, its_word), each in zip(pairs, bench.hear(spliced, recognizer), strict=True):
            runs = [run for candidate in likely(each) for run in candidate.runs]
            said = {
                (run.span.surah, *place): doubt
                for run in runs
                for place, doubt in zip(
                    bench.text.places[run.span.surah][run.span.first : run.span.last + 1],
                    run.doubts[len(run.preface.split()) :],
                    strict=True,
                )
            }
            nothing += not runs
            named += any((ayat[other].surah, ayat[other].number) in bench.text.ayat(run.span) for run in runs)
            if runs:  # the first word that was not said: doubted, or not among what is found at all
                doubts.append(said.get((ayat[one].surah, ayat[one].number, word + 1), float("inf")))
            as_written, as_said = texts[one], [*texts[one][:word], *texts[other][its_word:]]
            distances = [
                Levenshtein.distance(letters("".join(its)), letters(each.text)) for its in (as_written, as_said)
            ]
            written += distances[0] < distances[1]
        for name, limit in limits(right).items():
            cells = [f"{limit:.1f}", f"{percent(marked(right, limit))} of {len(right)}"]
            cells += [f"{percent(marked(doubts, limit))} of {len(doubts)}", f"{named}", f"{written}"]
            lines.append([f"{reciter}, {name}", *cells, f"{nothing}"])
    header = ["goes on as another", "nats", "false alarms a word", "noticed", "other named", "written as it stands"]
    print(f"\n{markdown_table([*header, 'nothing found'], lines)}", flush=True)


def confusable(texts: Sequence[Sequence[str]], limit: int) -> list[tuple[int, int, int, int]]:
    """Choose pairs of texts with three words or more in common, between others that differ, none of them twice.

    Each is a text and its first word after the common ones, and the other's.
    """
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, words in enumerate(texts):
        for at in range(1, len(words) - 3):
            places.setdefault(tuple(words[at : at + 3]), []).append((number, at))
    drawn = [pair for its in places.values() for pair in combinations(its, 2)]
    random.Random(0).shuffle(drawn)
    chosen: list[tuple[int, int, int, int]] = []
    used = set[int]()
    for (one, at), (other, other_at) in drawn:
        words, others = texts[one], texts[other]
        both = zip(words[at:], others[other_at:], strict=False)
        common = sum(1 for _ in takewhile(lambda each: each[0] == each[1], both))
        differ = words[at - 1] != others[other_at - 1]
        ends = at + common == len(words) or other_at + common == len(others)
        if differ and not ends and one != other and not {one, other} & used and len(chosen) < limit:
            used |= {one, other}
            chosen.append((one, at + common, other, other_at + common))
    return chosen


def repeated(bench: Bench) -> None:
    """Print of how many recordings, in which a reciter goes back, all passes are found and no other ayah."""
    recognizer = Recognizer(bench.text, bench.device, alignment_heads(bench.model))
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        clips = [np.array(cache.read(ayah.audio)) for ayah in ayat]
        followed = [
            n
            for n in range(len(ayat) - 2)
            if len({(a.surah, a.number - i) for i, a in enumerate(ayat[n : n + 3])}) == 1
            and max(map(len, clips[n : n + 3])) <= 20 * SAMPLE_RATE
        ]
        chosen = random.Random(0).sample(followed, min(len(followed), bench.args.limit or len(followed)))
        spliced, expected = [], []
        for count, n in enumerate(chosen):
            pause = np.zeros(count % 2 * SAMPLE_RATE // 2, np.int16)
            a, b, c = clips[n : n + 3]
            at = cut_in_two(a)  # a breath
            parts, said = [
                ([a, b], [[n, n + 1]]),
                ([a, a, b], [[n], [n, n + 1]]),
                ([a, a, a], [[n]] * 3),
                ([a, b, a, b, c], [[n, n + 1], [n, n + 1, n + 2]]),
                ([a[:at], a], [[n], [n]] if at else [[n]]),
            ][count // 2 % len(REPEATS)]
            spliced.append(np.concatenate([each for part in parts if len(part) for each in (part, pause)]))
            expected.append([[(ayat[k].surah, ayat[k].number) for k in its] for its in said])
        right = np.zeros((len(REPEATS), 2), dtype=int)
        for count, (heard, its) in enumerate(zip(bench.hear(spliced, recognizer), expected, strict=True)):
            spans = joined(run.span for each in likely(heard) for run in each.runs)
            passes = [bench.text.ayat(span) for span in spans]
            # By their words: the same may stand in several places.
            same = [[bench.texts[key] for key in each] for each in passes] == [[bench.texts[k] for k in e] for e in its]
            right[count // 2 % len(REPEATS)] += [same, 1]
            if not same:
                print(f"{reciter}, {its} is found as {passes}: {heard.text}", flush=True)
        lines.append(
            [reciter, *(f"{found} of {all_}" for found, all_ in [*right.tolist(), right.sum(axis=0).tolist()])]
        )
    print(f"\n{markdown_table(['said again', *REPEATS, 'all'], lines)}", flush=True)


def others(bench: Bench) -> None:
    """Print how much is taken for the Qur'an that is not in the text."""
    recognizer = Recognizer(bench.text, bench.device, alignment_heads(bench.model))
    lines = []
    for reciter in bench.args.reciters:
        ayat, cache = bench.ayat(reciter)
        ayat = [ayah for ayah in ayat if cache.length(ayah.audio) <= 30 * SAMPLE_RATE and len(ayah.text.split()) > 2]
        ayat = ayat[: bench.args.limit]
        clips = [np.array(cache.read(ayah.audio)) for ayah in ayat]
        surahs = {ayah.surah for ayah in ayat}
        rest = {key: words for key, words in bench.texts.items() if key[0] not in surahs}
        if not rest or not ayat:
            print(f"{reciter}: no text is left without the surahs of these ayat: give --surahs A:B", flush=True)
            continue
        without = Recognizer(Quran(rest), bench.device, recognizer.heads)
        near = [without.nearest(ayah.text) for ayah in ayat]
        # Verses that say much of the same elsewhere.
        alike = [bool(n) and n[0].cost < len(letters(ayah.text)) / 2 for n, ayah in zip(near, ayat, strict=True)]
        taken = [len(without.join_words(likely(each)).split()) for each in bench.hear(clips, without)]
        backwards = bench.hear([clip[::-1].copy() for clip in clips], recognizer)
        groups = [
            [count for count, its in zip(taken, alike, strict=True) if not its],
            [count for count, its in zip(taken, alike, strict=True) if its],
            [len(recognizer.join_words(likely(each)).split()) for each in backwards],
        ]
        cells = [f"{sum(n > 2 for n in its)} of {len(its)} ({sum(n > 0 for n in its)})" for its in groups]
        lines.append([reciter, f"{min(surahs)} to {max(surahs)}", *cells])
    header = ["taken for the Qur'an", "text without surahs", "ayat", "with a look-alike", "backwards"]
    print(f"\n{markdown_table(header, lines)}\n\nwith three words and more (at all)", flush=True)


PARTS: dict[str, Callable[[Bench], None]] = {
    "ayat": whole_ayat,
    "cut": cut_ayat,
    "long": long_recordings,
    "follow": followed,
    "words": mistakes,
    "lookalikes": lookalikes,
    "repeats": repeated,
    "others": others,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reciters", nargs="+")
    parser.add_argument("--surahs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, help="ayat of each reciter at most, in each part but long")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    args.reciters = args.reciters or open_corpus(args.data, None, None, None).reciters
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bench = Bench(args, Path(folder))
        Recognizer(bench.text, bench.device)
        print(
            f"{args.model}, {bench.device}: model, text and indexes in {time.perf_counter() - start:.1f} s", flush=True
        )
        for part in args.parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
