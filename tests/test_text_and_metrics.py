"""What is compared when a word error rate is counted, and how it is counted."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.text import normalize, target_tokens
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors

WORDS = st.lists(st.sampled_from("الله رب الناس قل هو أحد ملك".split()), max_size=8).map(" ".join)


def test_diacritics_turn_the_vocalised_text_into_the_clear_one_but_for_superscript_alef(quran):
    def texts(name: str) -> list[str]:
        with open(quran / "metadata" / name, encoding="utf-8-sig", newline="") as file:
            return [row["text"] for row in csv.DictReader(file)]

    clear, vocalised = texts("ayah_text_clear.csv"), texts("ayah_text_diacritics.csv")
    assert [normalize(text, "diacritics").replace("ٰ", "") for text in vocalised] == clear
    assert [normalize(text, "full") for text in vocalised] == [normalize(text, "full") for text in clear]


def test_full_normalisation_folds_letters_and_drops_marks():
    assert normalize("ٱلرَّحۡمَٰنِ ۖ ٱلصَّلَوٰةَ، هُدًى  إلى آياته ـــ ۞", "full") == "الرحمن الصلوه هدي الي اياته"
    assert normalize(" أ  بَ\n", "none") == "أ بَ"
    assert normalize("أَ، بْ ۖ", "diacritics") == "أ، ب ۖ"


def test_counts_are_jiwers_and_add_up():
    counts = count_errors("a b c d", "a x c d e")
    assert counts == ErrorCounts(4, 3, 1, 0, 1, characters=7, character_errors=3)
    assert counts.wer == 0.5
    total = counts + count_errors("a b", "")
    assert (total.words, total.deletions, total.wer) == (6, 2, 4 / 6)


def test_empty_sides_are_counted_not_raised():
    assert count_errors("a b", "") == ErrorCounts(2, 0, 0, 2, 0, characters=3, character_errors=3)
    assert count_errors("", "x y").insertions == 2
    assert ErrorCounts().wer != ErrorCounts().wer  # NaN


@given(WORDS, WORDS)
def test_hits_substitutions_and_deletions_cover_the_reference(reference, hypothesis):
    counts = count_errors(reference, hypothesis)
    assert counts.hits + counts.substitutions + counts.deletions == counts.words == len(reference.split())
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis.split())


@pytest.mark.parametrize("language", ["ar", "en"])
def test_targets_run_from_sot_to_eot_as_whisper_decodes_them(language):
    tokenizer = get_tokenizer(True, num_languages=99, language=language, task="transcribe")
    tokens = target_tokens(tokenizer, "قل هو الله أحد")
    names = [tokenizer.encoding.decode_single_token_bytes(token).decode() for token in (*tokens[:4], tokens[-1])]
    assert names == ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"]
    assert tokenizer.decode(tokens[4:-1]) == " قل هو الله أحد"
