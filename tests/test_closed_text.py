"""A closed text, and where in it words stand."""

import random
from collections.abc import Iterator

import pytest

from whisper_quran.data.corpus import read_text
from whisper_quran.decoding.closed_text import ClosedText, Run, read_closed_text
from whisper_quran.decoding.quran import Place, Quran
from whisper_quran.runtime.errors import UserError

SPELLINGS = ("clear", "diacritics")


@pytest.fixture(scope="module")
def texts(quran) -> dict[str, dict[tuple[int, int], str]]:
    return {name: read_text(quran / "metadata" / f"ayah_text_{name}.csv")[0] for name in SPELLINGS}


def random_runs(text: ClosedText, count: int, rng: random.Random) -> Iterator[Run]:
    for _ in range(count):
        passage = rng.choices(range(len(text.passages)), weights=[len(words) for words in text.passages])[0]
        first = rng.randrange(len(text.passages[passage]))
        length = min(rng.randint(1, 12), len(text.passages[passage]) - first)
        yield Run(passage, first, first + length - 1)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_ayah_is_where_it_stands(texts, name):
    text = Quran(texts[name])
    for (surah, ayah), words in [*texts[name].items()][::20]:
        places = [text.place(run) for run in text.locate(words.split())]
        assert Place(surah, ayah, 1, ayah, len(words.split())) in places


def test_every_place_of_a_run_is_found_in_order(texts):
    text = Quran(texts["clear"])
    for run in random_runs(text, 30, random.Random(1)):
        words = text.words(run)
        expected = [
            Run(passage, first, first + len(words) - 1)
            for passage, all_words in enumerate(text.passages)
            for first in range(len(all_words))
            if all_words[first : first + len(words)] == words
        ]
        assert text.locate(words) == expected
        assert run in expected


def test_a_word_after_itself_is_found_at_each_place():
    text = ClosedText(["ا ا ا اا", "ا"])
    assert text.locate(["ا", "ا"]) == [Run(0, 0, 1), Run(0, 1, 2)]
    assert text.locate(["ا"]) == [Run(0, 0, 0), Run(0, 1, 1), Run(0, 2, 2), Run(1, 0, 0)]


def test_a_place_crosses_ayat_but_not_surahs(texts):
    text = Quran(texts["clear"])
    (run,) = text.locate("المستقيم صراط الذين".split())
    assert text.place(run) == Place(1, 6, 3, 7, 2)
    assert text.locate("ولا الضالين الم".split()) == []
    assert text.locate(["المستقي"]) == []
    assert text.locate([]) == []


@pytest.mark.parametrize(
    ("name", "istiadha"),
    [
        ("clear", "أعوذ بالله من الشيطان الرجيم"),
        ("diacritics", "أَعُوذُ بِاللَّهِ مِنَ الشَّيْطَانِ الرَّجِيمِ"),
    ],
)
def test_prefaces_are_spelled_as_the_text_is(texts, name, istiadha):
    basmala = texts[name][1, 1]
    assert Quran(texts[name]).prefaces == [istiadha, basmala, f"{istiadha} {basmala}"]


def test_other_texts_are_a_passage_a_line(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\ufeffإنما الأعمال بالنيات\n\n(وإنما) لكل امرئ ما نوى\r\n", encoding="utf-8")
    text = ClosedText(read_closed_text(file))
    assert text.passages == [["إنما", "الأعمال", "بالنيات"], ["(وإنما)", "لكل", "امرئ", "ما", "نوى"]]
    for content, reason in ((b"\xff\xfe", "UTF-8"), (b"\n \n", "no text")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_closed_text(file)
    with pytest.raises(UserError, match="cannot read"):
        read_closed_text(tmp_path / "none.txt")
