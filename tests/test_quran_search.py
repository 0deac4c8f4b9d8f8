"""Where in the Qur'an a recording is: the spans nearest to what was heard, and which of them the model prefers."""

import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, make_whisper, talkative
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import DecodingResult
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.ayat import read_text
from whisper_quran.data.features import AudioFeatures
from whisper_quran.data.text import letters, target_tokens
from whisper_quran.decoding import batch_decoder
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.letter_costs import AGAIN, LETTER, LetterCosts, find_passes
from whisper_quran.decoding.long_audio import transcribe_clips
from whisper_quran.decoding.quran_search import BREAK, Candidate, Quran, Recognizer, Span, _doubts, joined
from whisper_quran.decoding.word_times import alignment_heads

CPU = torch.device("cpu")
TOKENIZER = get_tokenizer(True, language="ar", task="transcribe")


@pytest.fixture(scope="module")
def texts(quran) -> dict[str, dict[tuple[int, int], str]]:
    names = ("clear", "diacritics")
    return {name: read_text(quran / "metadata" / f"ayah_text_{name}.csv")[0] for name in names}


@pytest.fixture(scope="module")
def text(texts) -> Quran:
    return Quran(texts["clear"])


@pytest.fixture(scope="module")
def recognizer(text) -> Recognizer:
    return Recognizer(text, CPU)


def test_every_place_of_a_span_is_found_in_order(text):
    refrain = [text.describe(span) for span in text.locate("فبأي آلاء ربكما تكذبان".split())]
    assert (len(refrain), refrain[0], refrain[-1]) == (31, "55:13:1-55:13:4", "55:77:1-55:77:4")
    assert Quran({(1, 1): "ا ا ا اا", (2, 1): "ا"}).locate(["ا", "ا"]) == [Span(1, 0, 1), Span(1, 1, 2)]


def test_a_place_crosses_ayat_but_not_surahs(text):
    (span,) = text.locate("المستقيم صراط الذين".split())
    assert text.describe(span) == "1:6:3-1:7:2"
    assert text.ayat(span) == [(1, 6), (1, 7)]
    assert text.locate("ولا الضالين الم".split()) == text.locate(["المستقي"]) == text.locate([]) == []


def test_prefaces_are_spelled_as_the_text_is(texts):
    spellings = {"clear": "أعوذ بالله من الشيطان الرجيم", "diacritics": "أَعُوذُ بِاللَّهِ مِنَ الشَّيْطَانِ الرَّجِيمِ"}
    for name, istiadha in spellings.items():
        basmala = texts[name][1, 1]
        assert Quran(texts[name]).prefaces == [istiadha, basmala, f"{istiadha} {basmala}"]


@cache
def cost_table() -> dict[tuple[str, str], float]:
    """The costs of a letter of the text ("-": of none) for one that is heard, in letters."""
    lines = (ROOT / "whisper_quran/decoding/letter_costs.csv").read_text(encoding="utf-8").splitlines()
    header, *rows = (line.split(",") for line in lines)
    return {(row[0], heard): int(cost) / 4 for row in rows for heard, cost in zip(header[1:], row[1:], strict=True)}


def slow_cost(text: str, heard: str) -> float:
    """The least cost of differences between the letters of a text and those heard."""
    table = cost_table()

    @cache
    def least(i: int, j: int) -> float:
        options = [0.0] if i == j == 0 else []
        if i and j:
            options.append(least(i - 1, j - 1) + table[text[i - 1], heard[j - 1]])
        if i:
            options.append(least(i - 1, j) + table[text[i - 1], "-"])
        if j:
            options.append(least(i, j - 1) + table["-", heard[j - 1]])
        return min(options)

    return least(len(text), len(heard))


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_spans_are_those_of_a_slow_search_the_nearest_first(seed):
    """All spans of small texts, with and without each preface, against what was heard."""
    rng = random.Random(seed)

    def sentence(words: int) -> str:
        return " ".join("".join(rng.choices("ابت", k=rng.randint(1, 4))) for _ in range(words))

    text = Quran(
        {(surah, ayah): sentence(rng.randint(1, 4)) for surah in range(1, 5) for ayah in (1, 2)[: 1 + seed % 2]}
    )
    text.apart = (sentence(2),)
    recognizer, heard, margin = Recognizer(text, CPU), sentence(rng.randint(1, 5)), rng.randint(0, 9)
    costs = {}
    for surah, words in text.surahs.items():
        starts = [number for number, (_, word) in enumerate(text.places[surah]) if word == 1]
        for first in range(len(words)):
            for last in range(first, len(words)):
                said = "".join(words[first : last + 1])
                distance = min(slow_cost(letters(p) + said, letters(heard)) for p in ["", *text.prefaces])
                whole = (first in starts) + (last + 1 in [*starts, len(words)])
                costs[Span(surah, first, last)] = distance + BREAK * (2 - whole)
    elsewhere = ("", *(letters(p + text.apart[0]) for p in ["", *text.prefaces]))
    limit = min(min(costs.values()) + margin, *(slow_cost(each, letters(heard)) - 1 / 4 for each in elsewhere))
    expected = sorted((cost, span) for span, cost in costs.items() if cost <= limit)
    assert [(each.cost, each.span) for each in recognizer.nearest(heard, margin)] == expected


def test_one_that_is_not_pronounced_as_it_is_written_is_in_its_order_too(recognizer):
    """It is found twice, once with the letters' names."""
    for heard in ("الف لام ميم ذلك الكتاب", "حا ميم تنزيل"):
        found = recognizer.nearest(heard, 12)
        assert [(each.cost, each.span) for each in found] == sorted((each.cost, each.span) for each in found)
        assert len({each.span for each in found}) == len(found) > 1


@pytest.mark.parametrize(
    ("heard", "place"),
    [
        ("3. قلهوالله أحد", "112:1:1-112:1:4"),  # digits are nothing that is recited
        ("ومن ما رزقناهم ينفقون والذين يؤمنون بما", "2:3:6-2:4:3"),  # from within an ayah into another
        ("بسم الله الرحمن الرحيم قل أعوذ برب الفلق", "113:1:1-113:1:4"),
        ("أعوذ بالله من الشيطان الرجيم بسم الله الرحمن الرحيم الم", "2:1:1-2:1:1"),
        ("أليف لامي ذلك الكتاب لا ريب", "2:1:1-2:2:4"),  # the letters' names
        ("كاف هايا عين صاد", "19:1:1-19:1:1"),
        ("غير المغضوب عليهم ولا الضالين الم", "1:7:5-1:7:9"),  # no span goes on into the next surah
        # Heard in noise; by plain edit distance, 26:106, 85:5 and 86:11 are nearer.
        ("إذا كان لهم لهم تسهوك أفضو قالون تملحون سهوك", "2:11:1-2:11:11"),
        ("أسنا إذا سيكون صبق", "51:7:1-51:7:3"),
        ("وسما إذا جيب رجب", "85:1:1-85:1:3"),
    ],
)
def test_what_was_misheard_is_found(recognizer, text, heard, place):
    assert text.describe(recognizer.nearest(heard)[0].span) == place


@pytest.mark.parametrize(
    "heard",
    [
        *("", "... 18", "hello world, this is English", "أعوذ بالله من الشيط ونرجين", "صدق الله العظيم", "الله اكبر"),
    ],
)
def test_what_has_no_letters_of_the_text_is_nowhere(recognizer, heard):
    assert recognizer.nearest(heard) == []


def test_a_long_text_that_is_mostly_made_up_is_nowhere(recognizer):
    """Each of its thousands of nearest spans would be compared, which took minutes."""
    assert recognizer.nearest("الحمد لله رب العالمين " + "the quick brown fox jumps over " * 20) == []


def test_what_was_heard_and_is_not_in_the_text_counts_against_it(recognizer):
    (found, *_) = recognizer.nearest("hello everyone الحمد لله رب العالمين and then we go home")
    assert found.distance == len("helloeveryoneandthenwegohome")
    (found, *_) = recognizer.nearest("قل هو الله أحد چ 1.")
    assert found.distance == 1


def test_log_probabilities_are_those_of_the_model(monkeypatch):
    """Several texts about each clip, as Whisper's own decoder finds them one by one; in slices of few logits."""
    sizes = []
    logits = BatchDecoder._logits
    monkeypatch.setattr(BatchDecoder, "_logits", lambda self, x: sizes.append(len(x)) or logits(self, x))
    monkeypatch.setattr(batch_decoder, "_SCORED_TOKENS", 12)
    model = make_whisper(layers=2)
    features = torch.randn(3, 600, 64)
    texts = ["قل هو الله أحد", "قل", "الله الصمد"]
    decoder = BatchDecoder(model, 2, sample_len=5)
    for clip in decoder.decode(AudioFeatures(each, [600]) for each in features.split(1)):
        sizes.clear()
        for text, said in zip(texts, clip.log_probabilities(texts), strict=True):
            whole = torch.tensor([target_tokens(TOKENIZER, text)])
            with torch.no_grad():
                logprobs = model.decoder(whole[:, :-1], features[clip.index : clip.index + 1]).log_softmax(dim=-1)
            expected = logprobs[0, 3:].gather(1, whole[0, 4:, None]).sum()
            assert said == pytest.approx(float(expected), abs=1e-3)
        assert max(sizes) <= 12 < sum(sizes)


def test_a_text_without_an_end_fills_the_context_and_is_recognised():
    """As a model that babbles writes it: one token more than can be read again. And one that is longer by far."""
    model = talkative(make_whisper(layers=2), eot_gain=0.0)
    audio = (np.random.default_rng(0).normal(size=SAMPLE_RATE) * 3000).astype(np.int16)
    (free,) = transcribe_clips(model, [audio], batch_size=1, fallback=False)
    babbled = Quran({(2, 1): " ".join(free.text.split())})
    timed = Recognizer(babbled, CPU, alignment_heads(model))
    (transcript,) = transcribe_clips(model, [audio], batch_size=1, fallback=False, recognizer=timed)
    assert transcript.found[0].times
    for clip in BatchDecoder(model, 1).decode([AudioFeatures(torch.randn(1, 400, 64), [400])]):
        assert len(clip.result.tokens) == 445
        longer, much_longer = clip.log_probabilities(["الله " * 500, "الله " * 1000])
        assert -float("inf") < longer == much_longer < 0


def test_out_of_memory_while_texts_are_scored_halves_the_batch_and_loses_nothing(recognizer, monkeypatch):
    """The GPU's error for more than one clip at a time."""
    model = talkative(make_whisper(layers=2))
    clips = [(np.random.default_rng(n).normal(size=SAMPLE_RATE) * 3000).astype(np.int16) for n in range(3)]
    candidates = Recognizer.candidates

    def candidates_in_little_memory(self, clip, *args, **options):
        if clip.decoder.slots > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return candidates(self, clip, *args, **options)

    monkeypatch.setattr(Recognizer, "candidates", candidates_in_little_memory)
    logged = []
    options = {"batch_size": 3, "fallback": False, "recognizer": recognizer, "sample_len": 20}
    assert sorted(t.clip for t in transcribe_clips(model, clips, log=logged.append, **options)) == [0, 1, 2]
    assert len(logged) == 1 and "--batch-size 1" in logged[0]


def candidate(span: Span, weight: float = -10.0) -> Candidate:
    return Candidate(span, "", (), 0, 0, "", weight, 0.0)


def decoded(heard: str, log_probability: float, likely: str = "") -> SimpleNamespace:
    """A decoded clip in which the model finds the text ``likely`` as likely as -5 nats, others -40."""
    result = DecodingResult(None, "ar", text=heard, avg_logprob=log_probability)
    score = lambda texts: [-5.0 if each == likely or not likely else -40.0 for each in texts]  # noqa: E731
    return SimpleNamespace(result=result, log_probabilities=score)


def test_the_same_words_are_told_apart_by_what_comes_before_them(text, recognizer):
    refrain = text.locate("فبأي آلاء ربكما تكذبان".split())
    (before,) = text.locate("خلق الإنسان من صلصال كالفخار".split())
    pieces = [[candidate(span) for span in refrain], [candidate(before)], [], [candidate(span) for span in refrain]]
    first, second, third, fourth = recognizer.choose(pieces)
    assert third is None
    places = [text.describe(span) for span in joined([first.span, second.span, fourth.span])]
    assert places == ["55:13:1-55:14:5", "55:16:1-55:16:4"]


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        (["وقضي بينهم بالحق وقيل", "الحمد لله رب العالمين"], "39:75:10-39:75:17"),  # and not 1:2
        (["وإلهكم إله واحد لا إله إلا هو", "الرحمن الرحيم", "إن في خلق السماوات والأرض"], "2:163:1-2:164:5"),  # nor 1:3
    ],
)
def test_an_ayah_cut_at_a_breath_is_not_taken_for_a_whole_one_elsewhere(recognizer, pieces, place):
    found = [recognizer.candidates(decoded(heard, -5.0), 9.0, alone=False) for heard in pieces]
    (span,) = joined(each.span for each in recognizer.choose(found))
    assert recognizer.quran.describe(span) == place


def test_a_piece_that_is_said_again_stays_a_span_of_its_own():
    spans = [Span(1, 0, 3), Span(1, 4, 6), Span(1, 2, 6), Span(2, 0, 1)]
    assert joined(spans) == [Span(1, 0, 6), Span(1, 2, 6), Span(2, 0, 1)]


def test_what_the_model_finds_likelier_is_preferred_to_a_letter_less(recognizer):
    """«الغصراء» has as many letters of «لليسرى» as of «للعسرى»: the model decides, by as much as it is sure."""
    for surer in ("فسنيسره للعسرى", "فسنيسره لليسرى"):
        (best,) = recognizer.choose([recognizer.candidates(decoded("فسن يسره للغصراء", -40.0, surer), 9.0)])
        assert " ".join(recognizer.words(best)) == surer
        assert best.log_probability == -5.0
        assert best.free_log_probability == -40.0


@pytest.mark.parametrize(
    ("heard", "places"),
    [
        ("كل أعوذ برب الناس كل أعوذ برب الناس ولكن الناس", ["114:1:1-114:1:4", "114:1:1-114:2:2"]),
        ("قل أعوذ برب الناس ملك الناس إلى الناس", ["114:1:1-114:3:2"]),
        ("بسم الله الرحمن الرحيم قل هو الله أحد الله الصمد", ["112:1:1-112:2:2"]),
        ("بسم الله الرحمن الرح قل هو الله أحد قله الله أحد", ["112:1:1-112:1:4"] * 2),
        ("يا أيها المدثر يا أيها المدثر يا أيهاالمدثر", ["74:1:1-74:1:3"] * 3),
        ("فإن مع العسر يسرا إن مع العسر يسرا", ["94:5:1-94:6:4"]),  # the text itself says it twice
        (
            "الله لا إله إلا هو الحي القيوم لا تأخذه سنة لا إله إلا هو الحي القيوم لا تأخذه سنة ولا نوم",
            ["2:255:1-2:255:10", "2:255:2-2:255:12"],
        ),
    ],
)
def test_what_is_said_again_is_another_pass_and_nothing_else_is_reported(recognizer, heard, places):
    (best,) = recognizer.choose([recognizer.candidates(decoded(heard, -5.0), 9.0)])
    assert [recognizer.quran.describe(run.span) for run in best.runs] == places
    assert len(best.letters) == len(recognizer.words(best)) == sum(len(run.letters) for run in best.runs)
    assert " ".join(run.heard for run in best.runs) == heard


def cost_of(costs: LetterCosts, words: Sequence[str], heard: str) -> float:
    """What it costs that ``heard`` was heard in place of the words, in letters."""
    text, query = costs.encode("".join(words)), costs.encode(heard)
    row = [0, *costs.left_out[text].cumsum(0).tolist()]
    for letter in query:
        before, row = row, [row[0] + costs.added[letter].item()]
        for place, instead in enumerate(costs.changed[letter, text].tolist(), 1):
            left_out = row[-1] + costs.left_out[text[place - 1]].item()
            row.append(min(before[place - 1] + instead, before[place] + costs.added[letter].item(), left_out))
    return row[-1] / LETTER


@given(
    words=st.lists(st.text("ثسك", min_size=1, max_size=4), min_size=1, max_size=8),
    heard=st.text("ثسكx", min_size=1, max_size=30),
    data=st.data(),
)
@settings(deadline=None)
def test_passes_cost_no_more_than_any_single_run(words, heard, data):
    costs = st.lists(st.sampled_from([0, 5]), min_size=len(words), max_size=len(words))
    first_costs, last_costs = data.draw(costs), data.draw(costs)
    letter_costs = LetterCosts("ثسك", CPU)
    passes = find_passes(letter_costs, heard, words, first_costs, last_costs)
    ends = [0, *(after for *_, after in passes)]
    assert [start for _, _, start, _ in passes] == ends[:-1] and ends[-1] == len(heard)
    for (_, last, *_), (first, *_) in pairwise(passes):
        assert first <= last + 1  # back, never on
    cost = AGAIN * (len(passes) - 1) + sum(
        first_costs[first] + last_costs[last] + cost_of(letter_costs, words[first : last + 1], heard[a:b])
        for first, last, a, b in passes
    )
    whole = min(
        first_costs[first] + last_costs[last] + cost_of(letter_costs, words[first : last + 1], heard)
        for first in range(len(words))
        for last in range(first, len(words))
    )
    assert cost <= whole or any(first > last for first, last, *_ in passes)


@pytest.mark.parametrize(
    ("heard", "passes"),
    [
        ("قل هو الله أحد الله الصمد", []),
        # Near to 81:4 to 81:8, which differs in 11 of 72 letters.
        (
            "وإذا البحار سجرت وإذا النفوس زوجت وإذا البحار سجرت وإذا النفوس زوجت وإذا الموءودة سئلت",
            ["81:6:1-81:7:3", "81:6:1-81:8:3"],
        ),
        # The whole is nearest to 23:8.
        (
            "الذين هم عن صلاتهم ساهوهم عن صلاتهم ساهون الذين هم عن صلاتهم ساهون",
            ["107:5:1-107:5:5", "107:5:2-107:5:5", "107:5:1-107:5:5"],
        ),
    ],
)
def test_what_is_said_again_is_found_as_passes(recognizer, text, heard, passes):
    again = recognizer.repeated(heard, recognizer.nearest(heard, 2))
    assert [text.describe(run.span) for run in (again.passes if again else ())] == passes


@pytest.mark.parametrize(
    ("heard", "of_heard", "of_written", "doubts"),
    [
        ("3. قل هو الله أحد", [-1] * 5, [-1] * 5, (0, 0, 0, 0)),
        ("قل هو الله احط", [-1, -1, -1, -2, -1], [-1, -1, -1, -14, -3], (0, 0, 0, 14)),  # and the eot after it
        ("قل هو ربي الله أحد", [-1, -1, -3, -2, -1, -1], [-1, -1, -9, -1, -1], (0, 4, 0, 0)),  # of the word before
        ("قل هو أحد", [-1, -1, -2, -1], [-1, -1, -8, -5, -1], (0, 0, 11, 0)),  # left out, and the next word
        ("قله والله أحد", [-4, -4, -1, -1], [-1, -2, -3, -1, -1], (0, 0, 0, 0)),  # the same letters
    ],
)
def test_a_word_is_doubted_as_the_model_prefers_what_it_heard(heard, of_heard, of_written, doubts):
    words, said = "قل هو الله أحد".split(), [word for word in heard.split() if word.isalpha()]
    assert _doubts(words, list(map(letters, words)), of_written, said, of_heard) == doubts
