"""Where in a closed text a recording is: the runs nearest to what was heard, and which of them the model prefers."""

import random

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from whisper.tokenizer import get_tokenizer

from tests.conftest import make_whisper, talkative
from whisper_quran.data.audio import SAMPLE_RATE
from whisper_quran.data.corpus import read_text
from whisper_quran.data.text import normalize, target_tokens
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.closed_text import ClosedText, Run
from whisper_quran.decoding.long_audio import transcribe_clips
from whisper_quran.decoding.nearest import BREAK, LetterIndex, letters
from whisper_quran.decoding.quran import Quran
from whisper_quran.decoding.recognizer import Candidate, Recognizer, joined
from whisper_quran.decoding.word_times import alignment_heads

CPU = torch.device("cpu")
TOKENIZER = get_tokenizer(True, language="ar", task="transcribe")


@pytest.fixture(scope="module")
def text(quran) -> Quran:
    return Quran(read_text(quran / "metadata" / "ayah_text_clear.csv")[0])


@pytest.fixture(scope="module")
def index(text) -> LetterIndex:
    return LetterIndex(text, CPU)


@pytest.mark.parametrize("seed", range(30))
def test_the_nearest_runs_are_those_of_a_slow_search(seed):
    """All runs of small texts, with and without each preface, against what was heard."""
    rng = random.Random(seed)

    def sentence(words: int) -> str:
        return " ".join("".join(rng.choices("ابت", k=rng.randint(1, 4))) for _ in range(words))

    prefaces = [sentence(2) for _ in range(seed % 3)]
    text = ClosedText([sentence(rng.randint(1, 6)) for _ in range(4)], prefaces)
    text.apart = prefaces[:1]
    index, heard, margin = LetterIndex(text, CPU), sentence(rng.randint(1, 5)), rng.randint(0, 9)
    costs = {}
    for passage, words in enumerate(text.passages):
        for first in range(len(words)):
            for last in range(first, len(words)):
                said = "".join(words[first : last + 1])
                distance = min(Levenshtein.distance(letters(p) + said, letters(heard)) for p in ["", *prefaces])
                costs[Run(passage, first, last)] = distance + BREAK * ((first > 0) + (last < len(words) - 1))
    apart = [letters(each) for each in text.apart]
    nothing = min([len(letters(heard)), *(Levenshtein.distance(each, letters(heard)) for each in apart)])
    limit = min(min(costs.values()) + margin, nothing - 1)
    expected = {run: cost for run, cost in costs.items() if cost <= limit}
    assert {each.run: each.cost for each in index.nearest(heard, margin)} == expected


@pytest.mark.parametrize(
    ("heard", "place"),
    [
        ("قل هو الله احد", "112:1:1-112:1:4"),
        ("3. قلهوالله أحد", "112:1:1-112:1:4"),  # digits are nothing that is recited
        ("ومن ما رزقناهم ينفقون والذين يؤمنون بما", "2:3:6-2:4:3"),  # from within an ayah into another
        ("بسم الله الرحمن الرحيم قل أعوذ برب الفلق", "113:1:1-113:1:4"),
        ("أعوذ بالله من الشيطان الرجيم بسم الله الرحمن الرحيم", "1:1:1-1:1:4"),
        ("أعوذ بالله من الشيطان الرجيم بسم الله الرحمن الرحيم الم", "2:1:1-2:1:1"),
        ("أليف لامي ذلك الكتاب لا ريب", "2:1:1-2:2:4"),  # the letters' names
        ("كاف هايا عين صاد", "19:1:1-19:1:1"),
        ("غير المغضوب عليهم ولا الضالين الم", "1:7:5-1:7:9"),  # no run goes on into the next surah
    ],
)
def test_what_was_misheard_is_found(index, text, heard, place):
    assert text.describe(index.nearest(heard)[0].run) == place


@pytest.mark.parametrize(
    "heard",
    [
        *(
            "",
            "...",
            "18",
            "hello world, this is English",
            "أعوذ بالله من الشيط ونرجين",
            "أعوذ بالله من الشيطان الرجيم",
        ),
        *("صدق الله العظيم", "الله اكبر", "سمع الله لمن حمده"),
    ],
)
def test_what_has_no_letters_of_the_text_is_nowhere(index, heard):
    assert index.nearest(heard) == []


def test_words_with_errors_are_found_anywhere_in_the_quran(index, text):
    """Runs of 5 to 20 words of which a fifth of the letters are wrong."""
    rng, right = random.Random(0), 0
    for _ in range(60):
        passage = rng.choices(range(114), weights=[len(words) for words in text.passages])[0]
        length = min(rng.randint(5, 20), len(text.passages[passage]))
        first = rng.randrange(len(text.passages[passage]) - length + 1)
        run = Run(passage, first, first + length - 1)
        said = [rng.choice(["", "ن", c + "ي"]) if rng.random() < 0.2 else c for c in " ".join(text.words(run))]
        nearest = index.nearest("".join(said))
        right += any(each.run.passage == passage and abs(each.run.first - first) <= 1 for each in nearest)
    assert right >= 57


def test_log_probabilities_are_those_of_the_model():
    """Several texts about the clip that was yielded last, as Whisper's own decoder finds them one by one."""
    model = make_whisper(layers=2)
    features = torch.randn(3, 1500, 64)
    texts = ["قل هو الله أحد", "قل", "الله الصمد"]
    decoder = BatchDecoder(model, 2, sample_len=5)
    for index, _ in decoder.decode(features.split(1)):
        for text, said in zip(texts, decoder.log_probabilities(texts), strict=True):
            whole = torch.tensor([target_tokens(TOKENIZER, text)])
            with torch.no_grad():
                logprobs = model.decoder(whole[:, :-1], features[index : index + 1]).log_softmax(dim=-1)
            expected = logprobs[0, 3:].gather(1, whole[0, 4:, None]).sum()
            assert said == pytest.approx(float(expected), abs=1e-3)


def test_a_text_without_an_end_fills_the_context_and_is_recognised(text):
    """As a model that babbles writes it: one token more than can be read again. And one that is longer by far."""
    model = talkative(make_whisper(layers=2), eot_gain=0.0)
    audio = (np.random.default_rng(0).normal(size=SAMPLE_RATE) * 3000).astype(np.int16)
    recognizer = Recognizer(text, CPU, alignment_heads(model))
    (transcript,) = transcribe_clips(model, [audio], batch_size=1, fallback=False, recognizer=recognizer)
    assert len(transcript.heard) == 1
    decoder = BatchDecoder(model, 1)
    for _, result in decoder.decode([torch.randn(1, 1500, 64)]):
        assert len(result.tokens) == 445
        longer, much_longer = decoder.log_probabilities(["الله " * 500, "الله " * 1000])
        assert -float("inf") < longer == much_longer < 0


def candidate(run: Run, weight: float = -10.0) -> Candidate:
    return Candidate(run, "", 0, 0, "", weight, 0.0)


def test_the_same_words_are_told_apart_by_what_comes_before_them(text):
    refrain = text.locate("فبأي آلاء ربكما تكذبان".split())
    (before,) = text.locate("خلق الإنسان من صلصال كالفخار".split())
    assert len(refrain) == 31
    recognizer = Recognizer(text, CPU)
    pieces = [[candidate(run) for run in refrain], [candidate(before)], [], [candidate(run) for run in refrain]]
    first, second, third, fourth = recognizer.choose(pieces)
    assert third is None
    places = [text.describe(run) for run in joined([first.run, second.run, fourth.run])]
    assert places == [
        "55:13:1-55:14:5",
        "55:16:1-55:16:4",
    ]


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        (["وقضي بينهم بالحق وقيل", "الحمد لله رب العالمين"], "39:75:10-39:75:17"),  # and not 1:2
        (["وإلهكم إله واحد لا إله إلا هو", "الرحمن الرحيم", "إن في خلق السماوات والأرض"], "2:163:1-2:164:5"),  # nor 1:3
    ],
)
def test_a_verse_cut_at_a_breath_is_not_taken_for_a_whole_one_elsewhere(text, pieces, place):
    recognizer = Recognizer(text, CPU)
    found = [recognizer.candidates(heard, -5.0, lambda texts: [-5.0 for _ in texts], alone=False) for heard in pieces]
    (run,) = joined(each.run for each in recognizer.choose(found))
    assert text.describe(run) == place


def test_a_piece_that_is_said_again_stays_a_run_of_its_own():
    runs = [Run(0, 0, 3), Run(0, 4, 6), Run(0, 2, 6), Run(1, 0, 1)]
    assert joined(runs) == [Run(0, 0, 6), Run(0, 2, 6), Run(1, 0, 1)]


def test_what_the_model_finds_likelier_is_preferred_to_a_letter_less(text):
    """«الغصراء» has as many letters of «لليسرى» as of «للعسرى»: the model decides, by as much as it is sure."""
    recognizer = Recognizer(text, CPU)
    for surer in ("فسنيسره للعسرى", "فسنيسره لليسرى"):
        score = lambda texts, surer=surer: [-5.0 if each == surer else -40.0 for each in texts]  # noqa: E731
        (best,) = recognizer.choose([recognizer.candidates("فسن يسره للغصراء", -40.0, score)])
        assert " ".join(recognizer.words(best)) == surer
        assert best.log_probability == -5.0
        assert best.free_log_probability == -40.0


def test_every_ayah_is_its_own_nearest(index, text, quran):
    """One in a hundred, their words joined: what is not found is text that stands elsewhere too."""
    ayat = sorted(read_text(quran / "metadata" / "ayah_text_clear.csv")[0].items())[::100]
    for (surah, ayah), written in ayat:
        nearest = index.nearest(written.replace(" ", ""))
        assert nearest[0].cost == 0
        assert normalize(" ".join(text.words(nearest[0].run)), "full") == normalize(written, "full")
        assert len(nearest) > 100 or (surah, ayah) in {place for each in nearest for place in text.ayat(each.run)}
