"""What is compared when a word error rate is counted, and how it is counted."""

import csv
import gzip
import random
import re
import tracemalloc
import unicodedata
from collections import Counter

import jiwer
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.ayat import read_text
from whisper_quran.data.text import count_diacritics, normalize, plain, quran_text, recited, target_tokens
from whisper_quran.evaluation.word_errors import ErrorCounts, align, count_diacritic_errors, count_errors


def texts(quran, name: str) -> list[str]:
    with open(quran / "metadata" / name, encoding="utf-8-sig", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def test_the_published_texts_are_recited_as_they_are(quran):
    """Every ayah: what was measured on them before stays measured."""
    for name in ("ayah_text_clear.csv", "ayah_text_diacritics.csv"):
        composed = [unicodedata.normalize("NFC", text) for text in texts(quran, name)]
        assert len(composed) == 6236
        assert [recited(text) for text in composed] == composed
        assert [normalize(text, "none") for text in composed] == composed


def test_diacritics_turn_the_vocalised_text_into_the_clear_one_but_for_superscript_alef(quran):
    clear, vocalised = texts(quran, "ayah_text_clear.csv"), texts(quran, "ayah_text_diacritics.csv")
    assert [normalize(text, "diacritics").replace("ٰ", "") for text in vocalised] == clear
    assert [normalize(text, "full") for text in vocalised] == [normalize(text, "full") for text in clear]


def test_the_package_has_the_published_text_with_its_notice(quran):
    assert quran_text() == read_text(quran / "metadata" / "ayah_text_clear.csv")[0]
    (file,) = (ROOT / "whisper_quran" / "data").glob("*.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        text, _, notice = lines.read().partition("# PLEASE DO NOT REMOVE OR CHANGE THIS COPYRIGHT BLOCK\n")
    assert text.count("\n") == 6236 + 2 and text.startswith("1|1|بسم الله الرحمن الرحيم\n")
    assert "Tanzil Quran Text (Simple Clean, Version 1.1)" in notice and "tanzil.net" in notice


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("۞ رَيْبَ ۛ فِيهِ ۛ هُدًىۖ - ", "رَيْبَ فِيهِ هُدًى"),  # pause marks and signs, between spaces and attached
        ("العالمين۝٢ الرحمن﴿٣﴾ مالك (4) يوم5 الدين ۩", "العالمين الرحمن مالك يوم الدين"),
        ("بِـسْــمِ\u200b \u200fالله\u200e \ufeff", "بِسْمِ الله"),
        ("ﺑﺴﻢ ﷲ ﺍﻟﺮﺣﻤﻦ", "بسم الله الرحمن"),
        ("﷽", "بسم الله الرحمن الرحيم"),
        ("\u0627\u0655ياك \u0627\u0654حد", "إياك أحد"),  # in NFC
        ("قلﱠ ﹷ", "قلَّ"),  # presentation forms of marks are written after a space
        ("کہف سُوۡرَۃٍ مِثۡلِہٖ عَلَی فِی عَلَیۡہِ", "كهف سُوۡرَةٍ مِثۡلِهٖ عَلَى فِي عَلَيۡهِ"),
        ("ٱلۡأَفۡـِٔدَةِ شَیۡـًٔا", "ٱلۡأَفۡئِدَةِ شَيۡئًا"),  # a hamza whose seat is a tatweel
        ("ٱلرَّحۡمَـٰنِ لَهُۥ بِهِۦ أُو۟لَـٰٓئِكَ مِنۢ", "ٱلرَّحۡمَٰنِ لَهُۥ بِهِۦ أُو۟لَٰٓئِكَ مِنۢ"),  # Uthmani spelling stays
        ("عِوَجَاۜ بَلْ ۜ رَانَ وَيَبْصُۜطُ", "عِوَجَا بَلْ رَانَ وَيَبْصُۜطُ"),  # a pause, and a reading of ص
        ("word B2, 12 – x", "word B2, x"),
        ("۞ ١٢ …", ""),
    ],
)
def test_what_is_not_recited_is_left_out_and_forms_are_folded(written, expected):
    assert recited(written) == expected
    assert recited(expected) == expected
    assert all(normalize(word, "full") for word in expected.split())


def test_the_same_marks_and_forms_are_no_errors_but_digits_are():
    assert normalize("۞ قُلۡ ۚ ہو ـ اللَّه – أحد", "diacritics") == "قل هو الله أحد"
    assert normalize("قل 1 هو ١٢ B", "diacritics") == "قل 1 هو ١٢ B"


def test_diacritics_are_compared_letter_by_letter_in_the_words_that_are_right():
    counts = count_diacritic_errors("بِسْمِ اللَّهِ الرَّحْمَٰنِ", "بِسَمِ كلمة الله الرجيم")
    assert (counts.letters, counts.diacritic_errors, counts.words) == (7, 3, 0)  # ْ as َ, and two of none in الله
    assert counts.der == 3 / 7
    assert count_diacritic_errors("بِسْمِ", "").letters == 0
    # Whichever of two marks on a letter was written first.
    assert count_diacritic_errors("رَّ", "رَّ").diacritic_errors == 0
    # Of two ways to align the same letters, the words in their order count.
    assert count_diacritic_errors("مِن مَن", "مَن").letters == 2


def test_every_vocalised_ayah_is_right_against_itself_and_bare_against_the_clear_text(quran):
    for text in texts(quran, "ayah_text_diacritics.csv")[::50]:
        clear = normalize(text, "diacritics").replace("ٰ", "")
        own, bare = count_diacritic_errors(text, text), count_diacritic_errors(text, clear)
        assert (own.letters, own.diacritic_errors) == (len(clear.replace(" ", "")), 0)
        assert bare.letters == own.letters
        marked = re.findall("[^ \u064b-\u0652\u0670](?=[\u064b-\u0652\u0670])", normalize(text, "none"))
        assert bare.diacritic_errors == len(marked)
        assert (count_diacritics(text), count_diacritics(clear)) == (len(text) - len(clear), 0)


def test_full_normalisation_folds_letters_and_drops_marks():
    assert normalize("ٱلرَّحۡمَٰنِ ۖ ٱلصَّلَوٰةَ، هُدًى  إلى آياته ـــ ۞", "full") == "الرحمن الصلوه هدي الي اياته"
    assert normalize(" أ  بَ\n", "none") == "أ بَ"
    assert normalize("أَ، بْ ۖ", "diacritics") == "أ، ب"


def test_counts_are_jiwers_and_add_up():
    counts = count_errors("a b c d", "a x c d e")
    assert counts == ErrorCounts(4, 3, 1, 0, 1, characters=7, character_errors=3)
    assert counts.wer == 0.5
    total = counts + count_errors("a b", "")  # an empty side is counted, not raised
    assert (total.words, total.deletions, total.wer) == (6, 2, 4 / 6)
    assert count_errors("a b", "") == ErrorCounts(2, 0, 0, 2, 0, characters=3, character_errors=3)
    assert count_errors("", "x y").insertions == 2
    assert ErrorCounts().wer != ErrorCounts().wer  # NaN


@pytest.mark.parametrize("language", ["ar", "en"])
def test_targets_run_from_sot_to_eot_as_whisper_decodes_them(language):
    tokenizer = get_tokenizer(True, num_languages=99, language=language, task="transcribe")
    tokens = target_tokens(tokenizer, "قل هو الله أحد")
    names = [tokenizer.encoding.decode_single_token_bytes(token).decode() for token in (*tokens[:4], tokens[-1])]
    assert names == ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"]
    assert tokenizer.decode(tokens[4:-1]) == " قل هو الله أحد"


def pairs_of(reference: str, edits: str) -> list[tuple[str, str]]:
    words, pairs = iter(reference.split()), []
    for edit in edits.split():
        for _ in range(int(edit[1:]) if edit[0] in "=-" else 1):
            read = "" if edit[0] == "+" else next(words)
            pairs.append((read, {"=": read, "-": ""}.get(edit[0], edit[1:])))
    return [*pairs, *((word, word) for word in words)]


NEAR = st.lists(st.sampled_from("قال قالوا قل كان كانوا ك".split()), max_size=5).map(" ".join)


@settings(deadline=None)
@given(NEAR.filter(bool), NEAR)
def test_words_are_paired_in_order_with_jiwers_counts_of_each_kind(reference, hypothesis):
    output, found = jiwer.process_words(reference, hypothesis), align(reference, hypothesis)
    pairs = pairs_of(reference, found.edits)
    assert " ".join(read for read, _ in pairs if read) == reference
    assert " ".join(heard for _, heard in pairs if heard) == hypothesis
    counts = Counter((bool(read), bool(heard), read == heard) for read, heard in pairs)
    kinds = ((True, True, True), (True, True, False), (True, False, False), (False, True, False))
    counted = [counts[kind] for kind in kinds]
    assert counted == [output.hits, output.substitutions, output.deletions, output.insertions]
    errors = found.errors
    assert counted == [errors.hits, errors.substitutions, errors.deletions, errors.insertions]


def test_very_long_texts_are_aligned_in_linear_memory():
    """A surah as one recording, a third of it misheard, left out or put in."""
    draw = random.Random(0)
    reference = [draw.choice(["قال", "قالوا", "قل", "كان"]) + draw.choice("بتثجحخ") for _ in range(6000)]
    heard = [each for word in reference for each in draw.choice([[word]] * 6 + [["نعم"], [], [word, "لا"]])]
    tracemalloc.start()
    found = align(" ".join(reference), " ".join(heard))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200 * 2**20
    pairs = pairs_of(" ".join(reference), found.edits)
    assert [read for read, _ in pairs if read] == reference
    assert [said for _, said in pairs if said] == heard
    counts = found.errors
    assert sum(read != said for read, said in pairs) == counts.substitutions + counts.deletions + counts.insertions


def test_a_word_is_paired_with_the_one_that_was_meant():
    assert align("انعمت عليهم غير", "انعمتا غير").edits == "~انعمتا -1"
    assert align("عليهم انعمت غير", "انعمتا غير").edits == "-1 ~انعمتا"


def test_vocalised_and_uthmani_texts_become_the_plain_text(quran):
    clear, vocalised = (read_text(quran / "metadata" / f"ayah_text_{name}.csv")[0] for name in ("clear", "diacritics"))
    assert {key: plain(text) for key, text in vocalised.items()} == clear == {key: plain(t) for key, t in clear.items()}
    for uthmani, key in {
        "ٱلْحَمْدُ لِلَّهِ رَبِّ ٱلْعَـٰلَمِينَ": (1, 2),
        "إِنَّ فِى خَلْقِ ٱلسَّمَـٰوَٰتِ وَٱلْأَرْضِ وَٱخْتِلَـٰفِ ٱلَّيْلِ وَٱلنَّهَارِ لَـَٔايَـٰتٍۢ لِّأُو۟لِى ٱلْأَلْبَـٰبِ": (3, 190),
        "وَإِذَا ٱلْمَوْءُۥدَةُ سُئِلَتْ": (81, 8),
        "لَا جَرَمَ أَنَّهُمْ فِى ٱلْـَٔاخِرَةِ هُمُ ٱلْخَـٰسِرُونَ": (16, 109),  # 11:22 has الأخسرون
        "يَـٰٓأَيُّهَا ٱلْمُزَّمِّلُ": (73, 1),
    }.items():
        assert plain(recited(uthmani)) == clear[key]
    assert plain(recited("قَالَ ٱلرَّحْمَـٰنُ ٱلرَّحِيمُ")) == "قال الرحمن الرحيم"  # no ayah
    # Words that have no more than the consonants of an ayah.
    assert [plain(word) for word in ("لم", "أَلَمْ", "لِيَوْمِ", "سَوَاءٌ", "الٓمٓ")] == ["لم", "ألم", "ليوم", "سواء", "الم"]
