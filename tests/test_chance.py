"""Intervals and comparisons of error rates: do they cover what they should, and are they the same every time?"""

import numpy as np
import pytest

from whisper_quran.evaluation.chance import differences, differences_table, overall, plus_minus, rates_of, share
from whisper_quran.evaluation.predictions import Prediction


def recitation(model: str, ayah: int, words: int, wrong: int, reciter: str = "Husary") -> Prediction:
    heard = ["b"] * min(wrong, words) + ["a"] * (words - wrong) + ["c"] * (wrong - words)
    return Prediction(model, reciter, "2", str(ayah), float(words), " ".join("a" * words), " ".join(heard))


def recitations(model: str, rate: float, chance: np.random.Generator, count: int = 60) -> list[Prediction]:
    """Ayat of 3 to 30 words, some much harder than others."""
    rows = []
    for ayah, words in enumerate(chance.integers(3, 30, size=count)):
        rows.append(recitation(model, ayah, int(words), int(chance.binomial(words, rate * chance.uniform(0, 2)))))
    return rows


def test_intervals_hold_the_true_rate_95_times_in_a_hundred():
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        low, high = rates_of(recitations("tiny", 0.3, chance))["wer_interval"]
        held += low <= 0.3 <= high
    assert 88 <= held <= 99


def test_equal_models_are_found_to_differ_by_chance_alone_and_others_are_found():
    chance = np.random.default_rng(2)
    found = dict.fromkeys((0.3, 0.2), 0)
    for rate in found:
        for _ in range(40):
            (difference,) = differences(recitations("a", 0.3, chance) + recitations("b", rate, chance))
            found[rate] += difference["p"] < 0.05
    assert found[0.3] <= 5
    assert found[0.2] >= 22


def test_models_are_compared_on_the_same_draws_so_that_hard_ayat_count_for_neither():
    chance = np.random.default_rng(6)
    a = recitations("a", 0.4, chance)
    # On each ayah with an error it makes one less: far within a's interval, and yet no chance.
    b = [recitation("b", int(r.ayah), e.words, max(0, e.substitutions - 1)) for r in a for e in [r.alignment.errors]]
    rates = {row["model"]: row for row in overall(a + b)}
    low, high = rates["a"]["wer_interval"]
    assert low < rates["b"]["wer"] < high
    (difference,) = differences(a + b)
    assert difference["wer"] == pytest.approx(rates["a"]["wer"] - rates["b"]["wer"])
    assert difference["p"] < 1e-6 and difference["interval"][0] > 0
    (difference,) = differences(a + [recitation("b", int(r.ayah), *counts(r)) for r in reversed(a)])
    assert (difference["wer"], difference["p"]) == (0, 1)


def counts(row: Prediction) -> tuple[int, int]:
    return row.alignment.errors.words, row.alignment.errors.substitutions


def test_without_an_error_there_is_an_upper_bound():
    perfect = [recitation("a", ayah, 10, 0) for ayah in range(60)]
    rates = rates_of(perfect)
    assert (rates["wer"], rates["wer_interval"]) == (0, [0, pytest.approx(3.84 / 600, abs=1e-4)])
    assert plus_minus(rates["wer"], rates["wer_interval"]) == "0.0 % (at most 0.6 %)"
    # One error more moves the bound up, not down.
    assert rates_of([*perfect[1:], recitation("a", 0, 10, 1)])["wer_interval"][1] > rates["wer_interval"][1]
    (same,) = differences([*perfect, *(recitation("b", ayah, 10, 0) for ayah in range(60))])
    assert (same["wer"], same["p"]) == (0, 1) and same["interval"][1] == pytest.approx(3.84 / 600, abs=1e-4)
    assert [share(n, 64) for n in (64, 0, 62)] == [
        "100.0 % (94.3 to 100.0 %)", "0.0 % (0.0 to 5.7 %)", "96.9 % (89.3 to 99.1 %)",
    ]  # fmt: skip


def test_where_nothing_can_be_said_of_chance_nothing_is_said():
    one = rates_of([recitation("tiny", 1, 4, 1)])
    assert (one["wer"], one["wer_interval"], one["cer_interval"]) == (0.25, None, None)
    silent = rates_of([Prediction("tiny", "x", "", "a.wav", 1.0, "", "thank you")] * 2)
    assert (silent["wer"], silent["wer_interval"]) == (None, None)
    assert differences([recitation("a", 1, 4, 1), recitation("b", 1, 4, 2)]) == []


def test_rates_are_written_with_half_the_width_of_their_interval_and_differences_in_points():
    assert plus_minus(0.524, [0.492, 0.554]) == "52.4 ± 3.1 %"
    assert plus_minus(1.5, None) == "150.0 %"
    assert plus_minus(None, None) == "–"
    rows = [recitation(m, a, 10, n + a % 2, r) for m, n in (("a|b", 4), ("c", 2)) for r in ("H", "M") for a in range(3)]
    header, line = differences_table(differences(rows))
    assert header == ["difference in WER", "H", "M", "all reciters"]
    # Three recordings are not enough to exclude chance, however alike they are.
    assert line[:2] == ["a|b − c", "+20.0 ± 0.0 points (p = 0.083)"]
