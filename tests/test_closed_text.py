"""Decoding restricted to a closed text: what may be said is what stands there, no more and no less."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from whisper.tokenizer import Tokenizer, get_tokenizer

from whisper_quran.data.corpus import read_text
from whisper_quran.data.text import target_tokens
from whisper_quran.decoding.closed_text import ClosedText, ClosedTextConstraint, Run, read_closed_text
from whisper_quran.decoding.quran import Place, Quran
from whisper_quran.decoding.text_index import SEPARATOR, TextIndex
from whisper_quran.runtime.errors import UserError

CPU = torch.device("cpu")
SPELLINGS = ("clear", "diacritics")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return get_tokenizer(True, language="ar", task="transcribe")


@pytest.fixture(scope="module")
def texts(quran) -> dict[str, dict[tuple[int, int], str]]:
    return {name: read_text(quran / "metadata" / f"ayah_text_{name}.csv")[0] for name in SPELLINGS}


@pytest.fixture(scope="module")
def indexed(texts, tokenizer) -> dict[str, Quran]:
    return {name: Quran(texts[name], tokenizer) for name in SPELLINGS}


def encode(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    return tokenizer.encode(" " + " ".join(words)) if words else []


def accepted(text: ClosedText, hypotheses: Sequence[Sequence[int]]) -> list[bool]:
    """Return which hypotheses the constraint lets through from the first token to eot, a few hundred at a time."""
    found = [False] * len(hypotheses)
    order = sorted(range(len(hypotheses)), key=lambda i: len(hypotheses[i]))
    for batch in (order[i : i + 512] for i in range(0, len(order), 512)):
        constraint = ClosedTextConstraint(text, len(batch), CPU)
        rows = torch.arange(len(batch))
        constraint._begin(rows)
        symbols = [[text.symbols.get(token, -1) for token in hypotheses[i]] + [SEPARATOR] for i in batch]
        longest = max(map(len, symbols))
        padded = torch.tensor([row + [-1] * (longest - len(row)) for row in symbols])
        for said in padded.unbind(dim=1):
            said = said[rows]
            passes = constraint._following(rows).gather(1, said.clamp(min=0)[:, None])[:, 0] & (said >= 0)
            for row in rows[passes & (said == SEPARATOR)].tolist():
                found[batch[row]] = True
            rows, said = rows[passes & (said > 0)], said[passes & (said > 0)]
            constraint._extend(rows, said)
    return found


def following(text: ClosedText, prefix: Sequence[int]) -> set[int]:
    """Return the tokens that the constraint leaves after ``prefix``."""
    constraint, row = ClosedTextConstraint(text, 1, CPU), torch.tensor([0])
    for token in (None, *prefix):
        logits = torch.zeros(1, 51865)
        constraint(logits, row, None if token is None else torch.tensor([token]))
    return set((logits[0] == 0).nonzero()[:, 0].tolist())


def random_runs(text: ClosedText, count: int, rng: random.Random) -> Iterator[Run]:
    for _ in range(count):
        passage = rng.choices(range(len(text.passages)), weights=[len(words) for words in text.passages])[0]
        first = rng.randrange(len(text.passages[passage]))
        length = min(rng.randint(1, 12), len(text.passages[passage]) - first)
        yield Run(passage, first, first + length - 1)


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_tokens_of_an_ayah_are_those_of_its_words(texts, indexed, tokenizer, name):
    """What training teaches is what the index holds."""
    text = indexed[name]
    position = 1
    for surah in dict.fromkeys(surah for surah, _ in texts[name]):
        for words in (ayah for (number, _), ayah in texts[name].items() if number == surah):
            expected = target_tokens(tokenizer, words)[4:-1]
            indexed_symbols = text.index.text[position : position + len(expected)]
            assert [text.tokens[symbol] for symbol in indexed_symbols] == expected
            position += len(expected)
        position += 1  # a separator
    assert position == text.index.length
    for token, begins in zip(text.tokens[1:], text.begins.tolist()[1:], strict=True):
        assert begins == (tokenizer.encoding.decode_single_token_bytes(token)[:1] == b" ")


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_ayah_is_accepted_and_located(texts, indexed, tokenizer, name):
    ayat = [(key, encode(tokenizer, ayah.split())) for key, ayah in texts[name].items()]
    if name == "diacritics":
        ayat = ayat[::8]
    assert all(accepted(indexed[name], [tokens for _, tokens in ayat]))
    for (surah, ayah), tokens in ayat[::60]:
        words = len(texts[name][surah, ayah].split())
        places = [indexed[name].place(run) for run in indexed[name].locate(tokens)]
        assert Place(surah, ayah, 1, ayah, words) in places


def test_runs_are_accepted_and_what_differs_by_a_word_is_not_unless_it_stands_there(indexed, tokenizer):
    text, rng = indexed["clear"], random.Random(0)
    vocabulary = sorted({word for words in text.passages for word in words})
    runs = [text.words(run) for run in random_runs(text, 10_000, rng)]
    changed = []
    for words in runs:
        at = rng.randrange(len(words))
        middle = rng.choice([[rng.choice(vocabulary)], [], [words[at], words[at]]])
        changed.append(words[:at] + middle + words[at + 1 :] or ["ليس"])
    everything = "\n".join(f" {' '.join(words)} " for words in text.passages)
    prefaces = [" ".join(tokenizer.decode([text.tokens[s] for s in p]).split()) for p in text.preface_symbols]
    assert all(accepted(text, [encode(tokenizer, words) for words in runs]))
    found = accepted(text, [encode(tokenizer, words) for words in changed])
    expected = []
    for words in changed:
        said = f" {' '.join(words)} "
        rests = [said.removeprefix(f" {preface}") for preface in prefaces if said.startswith(f" {preface} ")]
        expected.append(any(rest in everything for rest in [said, *rests]))
    assert found == expected
    assert 300 < sum(found) < 3000


def test_every_place_of_a_run_is_found_in_order(indexed, tokenizer):
    text, rng = indexed["clear"], random.Random(1)
    joined = [f" {' '.join(words)} " for words in text.passages]
    for run in random_runs(text, 100, rng):
        words = text.words(run)
        said = f" {' '.join(words)} "
        expected = []
        for passage, all_words in enumerate(joined):
            at = all_words.find(said)
            while at >= 0:
                first = all_words[:at].count(" ")
                expected.append(Run(passage, first, first + len(words) - 1))
                at = all_words.find(said, at + 1)
        assert text.locate(encode(tokenizer, words)) == expected
        assert run in expected


def test_a_place_crosses_ayat_but_not_surahs(indexed, tokenizer):
    text = indexed["clear"]
    (run,) = text.locate(encode(tokenizer, "المستقيم صراط الذين".split()))
    assert text.place(run) == Place(1, 6, 3, 7, 2)
    assert text.locate(encode(tokenizer, "ولا الضالين الم".split())) == []
    assert accepted(text, [encode(tokenizer, "ولا الضالين الم".split())]) == [False]
    assert text.locate(encode(tokenizer, ["المستقيم"])[:-1]) == []
    assert text.locate([]) == []


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_preface_may_come_first(texts, indexed, tokenizer, name):
    text = indexed[name]
    refuge, basmala, both = (
        [text.tokens[symbol] for symbol in preface] for preface in sorted(text.preface_symbols, key=len)
    )
    if tokenizer.decode(refuge).split()[0] == texts[name][1, 1].split()[0]:
        refuge, basmala = basmala, refuge
    assert basmala == encode(tokenizer, texts[name][1, 1].split())
    assert both == refuge + basmala
    ayah = encode(tokenizer, texts[name][112, 2].split())
    beginning = encode(tokenizer, texts[name][1, 2].split())
    allowed = [refuge, basmala, both, refuge + ayah, basmala + ayah, both + ayah, refuge + basmala + beginning]
    refused = [basmala + refuge, refuge + refuge, ayah + refuge, refuge[:-1], both + basmala[:3] + ayah]
    assert all(accepted(text, allowed))
    assert not any(accepted(text, refused))
    place = text.place(text.locate(both + ayah)[0])
    assert (place.surah, place.first_ayah) == (112, 2)
    places = [text.place(run) for run in text.locate(basmala + beginning)]
    assert places[0] == Place(1, 1, 1, 2, 4)
    assert Place(1, 2, 1, 2, 4) in places[1:]


WORDS = ["ا", "اا", "اب", "ب", "ابا", "الرحيم", "الرحمن", "ﷺ"]


@pytest.mark.parametrize("seed", range(12))
def test_after_every_prefix_exactly_what_stands_there_may_follow(tokenizer, seed):
    """All hypotheses of small texts, in which one word begins others, passages repeat, and prefaces stand too."""
    rng = random.Random(seed)
    words = rng.sample(WORDS, rng.randint(1, 4))

    def sentence(longest: int) -> list[str]:
        return rng.choices(words, k=rng.randint(1, longest))

    passages = [sentence(7) for _ in range(rng.randint(1, 3))]
    prefaces = [sentence(2) for _ in range(seed % 4)]
    prefaces += [[*prefaces[0], *sentence(2)]] if seed % 4 > 1 else []
    text = ClosedText([" ".join(p) for p in passages], tokenizer, [" ".join(p) for p in prefaces])
    runs = [p[i:j] for p in passages for i in range(len(p)) for j in range(i + 1, len(p) + 1)]
    said = {tuple(encode(tokenizer, [*before, *run])) for before in [[], *prefaces] for run in [*runs, []]} - {()}
    for prefix in {hypothesis[:length] for hypothesis in said for length in range(len(hypothesis) + 1)}:
        expected = {h[len(prefix)] for h in said if len(h) > len(prefix) and h[: len(prefix)] == prefix}
        assert following(text, prefix) == expected | ({tokenizer.eot} if prefix in said else set())


@pytest.mark.parametrize("seed", range(8))
def test_the_index_counts_what_a_search_counts(seed):
    """On texts of few symbols, longer than a block of stored counts."""
    rng = random.Random(seed)
    n_symbols = rng.randint(2, 4)
    passages = [rng.choices(range(1, n_symbols), k=rng.randint(1, 300)) for _ in range(4)]
    index, whole = TextIndex(passages, n_symbols), [symbol for p in passages for symbol in [0, *p]] + [0]
    assert index.text.tolist() == whole
    for _ in range(200):
        length, start = rng.randint(1, 6), rng.randrange(len(whole) - 8)
        said = whole[start : start + length] if rng.random() < 0.7 else rng.choices(range(1, n_symbols), k=length)
        if 0 in said:
            continue
        ends = [end for end in range(length, len(whole)) if whole[end - length : end] == said]
        assert index.find(said).tolist() == [end - 1 for end in ends]
        interval = torch.tensor([0, index.length])
        for symbol in said:
            interval = index.extend(interval, torch.tensor(symbol))
        counts = [sum(whole[end] == symbol for end in ends) for symbol in range(n_symbols)]
        assert index.count_following(interval).tolist() == counts


def test_other_texts_are_a_passage_a_line(tmp_path, tokenizer):
    file = tmp_path / "text.txt"
    file.write_text("\ufeffإنما الأعمال بالنيات\n\n(وإنما) لكل امرئ ما نوى\r\n", encoding="utf-8")
    text = ClosedText(read_closed_text(file), tokenizer)
    assert text.passages == [["إنما", "الأعمال", "بالنيات"], ["(وإنما)", "لكل", "امرئ", "ما", "نوى"]]
    assert accepted(text, [encode(tokenizer, text.passages[1])]) == [True]
    options = text.decoding_options(tokenizer)
    brackets = set(encode(tokenizer, ["(وإنما)"])) & set(tokenizer.non_speech_tokens)
    assert brackets
    assert not brackets & set(options["suppress_tokens"])
    assert options["suppress_tokens"]
    for content, reason in ((b"\xff\xfe", "UTF-8"), (b"\n \n", "no text")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_closed_text(file)
    with pytest.raises(UserError, match="cannot read"):
        read_closed_text(tmp_path / "none.txt")
