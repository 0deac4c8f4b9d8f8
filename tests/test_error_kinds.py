"""Kinds of error: what each is, and that every word error has one."""

import random

import pytest

from whisper_quran.evaluation.error_kinds import KINDS, Part, count_kinds, explain, letters_confused
from whisper_quran.evaluation.predictions import Prediction
from whisper_quran.evaluation.word_errors import align


def errors_in(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """The errors as (kind, expected, heard)."""
    parts = explain(reference, align(reference, hypothesis).edits)
    return [(part.kind, " ".join(part.expected), " ".join(part.heard)) for part in parts if part.kind]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("اهدنا الصراط المستقيم", "اهدنا السراط المستقيم", [("letter", "الصراط", "السراط")]),
        ("لا تفعلوا", "لا تفعلو", [("letter", "تفعلوا", "تفعلو")]),
        ("أنعمت عليهم", "انعمط عليهم", [("letter", "أنعمت", "انعمط")]),  # and a hamza
        ("من السماء ماء", "من السما ماء", [("spelling", "السماء", "السما")]),
        ("سأل مؤمن", "سئل مومن", [("spelling", "سأل", "سئل"), ("spelling", "مؤمن", "مومن")]),
        ("رحمة الله", "رحمه الله", [("spelling", "رحمة", "رحمه")]),
        ("على هدى", "علي هدي", [("spelling", "على", "علي"), ("spelling", "هدى", "هدي")]),
        ("قُلْ هو", "قل هو،", [("marks", "قُلْ", "قل"), ("marks", "هو", "هو،")]),
        ("قل يا أيها", "قليا أيها", [("joined", "قل يا", "قليا")]),
        ("ماله وما", "ما له وما", [("joined", "ماله", "ما له")]),
        ("إنه كان توابا", "إنه كانت وابا", [("joined", "كان توابا", "كانت وابا")]),
        ("ولم يكن له كفوا", "ولم يكله كفوا", [("joined", "يكن له", "يكله")]),
        ("ختم الله", "25. ختم الله", [("foreign", "", "25.")]),
        ("الله الصمد", "الله shlah", [("foreign", "الصمد", "shlah")]),
        ("ask not what", "ask knot 2 what", [("letter", "not", "knot"), ("extra", "", "2")]),
        ("لم يلد ولم يولد", "لم يلد", [("end", "ولم يولد", "")]),
        ("لم يلد ولم يولد", "لم ولم يولد", [("missing", "يلد", "")]),
        ("لم يلد", "", [("missing", "لم يلد", "")]),
        ("الناس", "حماس", [("word", "الناس", "حماس")]),
        ("لله رب", "لله يا من رب", [("extra", "", "يا من")]),
        ("قالوا آمنا", "قالوا قالوا آمنا", [("repeat", "", "قالوا")]),
        ("ثم يحييكم ثم إليه", "ثم يحييكم ثم يحييكم ثم إليه", [("repeat", "", "يحييكم ثم")]),
    ],
)  # fmt: skip
def test_each_error_has_the_kind_that_explains_it(reference, hypothesis, errors):
    found = errors_in(reference, hypothesis)
    if errors[0][0] == "repeat" and len(errors[0][2].split()) > 1:  # which of the two is added is as good
        found, errors = ([(kind, a, " ".join(sorted(b.split()))) for kind, a, b in each] for each in (found, errors))
    assert found == errors


def test_a_loop_is_one_error_however_often_it_comes_round():
    reference = "أم لم تنذرهم"
    parts = explain(reference, align(reference, " ".join(["أم"] * 110) + " لم تنذرهم").edits)
    assert [part for part in parts if part.kind] == [Part("repeat", (), ("أم",), 109)]
    parts = explain("قل هو الله", align("قل هو الله", "قل " + "يا رب " * 20).edits)
    assert {part.kind for part in parts} == {"", "repeat"}
    assert ("repeat", ("يا", "رب"), 19) in [(part.kind, part.heard, part.times) for part in parts]
    assert sum(part.errors for part in parts) == 40


def test_the_letters_confused_are_those_beside_hamzas_and_marks():
    for expected, heard, letters in (
        ("الصراط", "السراط", ("ص", "س")),
        ("الطيّبات", "التيبات", ("ط", "ت")),
        ("أصحاب", "اسحاب", ("ص", "س")),
        ("تفعلوا", "تفعلو", ("ا", "")),
        ("غير", "غيري", ("", "ي")),
    ):
        assert letters_confused(Part("letter", (expected,), (heard,))) == letters


def test_every_word_error_has_one_kind_whatever_was_heard():
    chance = random.Random(0)
    words = ["قل", "قال", "قلا", "لا", "ا", "12.", "shl", "إلا", "الا", "رحمة", "رحمه", "،", "يا", "قليا"]
    seen = set()
    for _ in range(3000):
        reference, hypothesis = (" ".join(chance.choices(words, k=chance.randrange(10))) for _ in range(2))
        if chance.random() < 0.2:
            hypothesis += f" {hypothesis}" * chance.randrange(1, 4)
        alignment = align(reference, hypothesis.strip())
        parts = explain(reference, alignment.edits)
        errors = alignment.errors
        assert sum(p.errors for p in parts) == errors.substitutions + errors.deletions + errors.insertions
        assert " ".join(word for part in parts for word in part.expected) == reference
        heard = [word for part in parts for word in (part.heard * part.times if part.kind else part.expected)]
        assert heard == hypothesis.split()
        seen |= {part.kind for part in parts}
    assert seen >= set(KINDS)


def test_counts_of_a_model_add_up_with_examples_and_letters():
    rows = [
        Prediction("tiny", "Husary", "1", "6", 3.0, "اهدنا الصراط المستقيم", "إهدنا السراط المستقيم"),
        Prediction("tiny", "Husary", "1", "7", 9.0, "صراط الذين", "12. سراط الذين"),
        Prediction("base", "Husary", "1", "6", 3.0, "اهدنا الصراط المستقيم", "اهدنا السراط المستقيم"),
    ]
    counted = count_kinds(rows)
    assert {(row["model"], row["kind"]): (row["errors"], row["times"]) for row in counted["kinds"]} == {
        ("base", "letter"): (1, 1),
        ("tiny", "foreign"): (1, 1),
        ("tiny", "spelling"): (1, 1),
        ("tiny", "letter"): (2, 2),
    }
    assert counted["kinds"][0]["examples"] == [{"expected": "الصراط", "heard": "السراط", "repeated": 1, "times": 1}]
    assert counted["letters"][0] == {"model": "tiny", "expected": "ص", "heard": "س", "times": 2}
