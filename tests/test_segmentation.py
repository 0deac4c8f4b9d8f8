"""Long recitations are cut at pauses, and every sample is in exactly one piece."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_quran.data.audio import decode_file
from whisper_quran.decoding.long_audio import cut_at_pauses, cuts_around_unheard

RATE = 16_000
LONG_AYAT = ["002102", "002255", "002282"]


def assert_whole(spans: list[tuple[int, int]], length: int) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(end - start <= 30 * RATE for start, end in spans)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 200 * RATE),
    loudness=st.lists(st.integers(0, 20_000), min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_is_in_exactly_one_piece_of_at_most_30_seconds(length, loudness, seed):
    """Any length, any course of loudness, stretches of digital silence among them."""
    course = np.repeat(loudness, -(-length // len(loudness)) if length else 0)[:length]
    noise = np.random.default_rng(seed).uniform(-1, 1, length)
    spans = cut_at_pauses((course * noise).astype(np.int16))
    assert_whole(spans, length)
    if length > 30 * RATE:
        assert all(end - start >= 10 * RATE for start, end in spans)
    else:
        assert len(spans) == 1


@given(pause=st.floats(10.2, 25.8))
@settings(max_examples=20, deadline=None)
def test_a_cut_is_in_the_middle_of_the_pause(pause):
    """36 s of noise with one pause of half a second."""
    samples = np.random.default_rng(0).integers(-9000, 9000, 36 * RATE, dtype=np.int16)
    samples[round((pause - 0.25) * RATE) : round((pause + 0.25) * RATE)] //= 100
    ((_, cut), _) = cut_at_pauses(samples)
    assert abs(cut / RATE - pause) <= 0.11


def test_real_long_ayat_are_cut_where_the_reciter_pauses(quran):
    for ayah in LONG_AYAT:
        samples = decode_file(quran / "audio" / "Yasser_Salama_hadr" / f"{ayah}.mp3").samples
        assert len(samples) > 30 * RATE
        spans = cut_at_pauses(samples)
        assert_whole(spans, len(samples))
        frames = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600).astype(float)
        median = np.median(np.square(frames).mean(axis=1))
        for _, cut in spans[:-1]:
            around = samples[cut - 1600 : cut + 1600].astype(float)
            assert np.square(around).mean() < 0.25 * median, (ayah, cut / RATE)


def test_cuts_are_in_the_pauses_around_what_was_not_heard():
    """Three seconds of noise, three times, with pauses of 0.4 s."""
    said = np.random.default_rng(0).integers(-9000, 9000, 3 * RATE, dtype=np.int16)
    pause = np.zeros(4 * RATE // 10, np.int16)
    samples = np.concatenate([said, pause, said, pause, said])

    def letters(count: int, start: float, end: float) -> list[tuple[str, float, float]]:
        edges = np.linspace(start, end, count + 1)
        return [("x", float(a), float(b)) for a, b in pairwise(edges)]

    first, second, third = letters(9, 0, 3), letters(9, 3.4, 6.4), letters(9, 6.8, 9.8)
    near = lambda *seconds: pytest.approx([each * RATE for each in seconds], abs=0.1 * RATE)  # noqa: E731
    assert cuts_around_unheard(samples, [*first, *second, *third]) == []
    assert cuts_around_unheard(samples, first) == near(3.2)  # what follows is heard, and cut again
    assert cuts_around_unheard(samples, [*first, *second]) == near(6.6)
    assert cuts_around_unheard(samples, [*first, *letters(3, 3.4, 6.4), *third]) == near(3.2, 6.6)
    assert cuts_around_unheard(samples, [*first, *letters(5, 3.4, 6.4), *third]) == []
    assert cuts_around_unheard(said, letters(2, 0, 3)) == []
    without_pauses = np.concatenate([said, said // 2, said])
    without_pauses[[3 * RATE, 6 * RATE]] = 0
    assert cuts_around_unheard(without_pauses, first) == pytest.approx([3.3 * RATE], abs=0.35 * RATE)
    around = [*first, *letters(9, 6, 9)]
    assert cuts_around_unheard(without_pauses, around) == pytest.approx([3.3 * RATE, 5.7 * RATE], abs=0.35 * RATE)
    assert cuts_around_unheard(samples[:10], []) == cuts_around_unheard(pause, first) == []
