"""From decoded ayat to examples, windows and batches of real reciters."""

import csv
import threading
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from whisper.tokenizer import get_tokenizer

from whisper_quran.config import TrainingConfig
from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.batches import epoch_order, generator, make_batch, prefetch
from whisper_quran.data.corpus import Ayah, open_corpus
from whisper_quran.data.prepare import TrainingData, WindowMaker, build_examples, spoken
from whisper_quran.decoding.long_audio import read_segments
from whisper_quran.runtime.console import no_log

TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
RECITER = "Mishary_Rashid_Alafasy"  # surahs 101 to 114


@pytest.fixture(scope="module")
def recited(quran, tmp_path_factory):
    """A reciter's examples, and their recordings."""
    ayat, _ = open_corpus(quran).select([RECITER])
    cache = prepare_audio({RECITER: [ayah.audio for ayah in ayat]}, tmp_path_factory.mktemp("cache"), 2, no_log)
    return build_examples(ayat, cache, TOKENIZER, 30, 448)[0], cache


def windows(recited, n_text_ctx=448, **options):
    examples, cache = recited
    return WindowMaker(TrainingConfig(**options), TOKENIZER, cache, n_text_ctx).windows(examples)


def test_without_options_every_window_is_an_ayah_as_it_was(recited):
    assert windows(recited) == recited[0]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_packed_windows_hold_every_ayah_once_in_the_order_of_the_surah(recited, share):
    made = windows(recited, pack=share)
    ayat = [ayah for window in made for ayah in window.parts]
    assert Counter(ayat) == Counter(example.parts[0] for example in recited[0])
    assert len(made) < len(ayat)
    for window in made:
        assert window.samples <= 30 * 16_000
        assert len(window.audio(recited[1])) == window.samples
        for before, after in pairwise(window.parts):
            assert (after.surah, after.number) == (before.surah, before.number + 1)
    if share == 1:  # and no window could have taken the next ayah, too
        for window, after in pairwise(made):
            last, following = window.parts[-1], after.parts[0]
            if following.surah == last.surah:
                length = next(e.samples for e in recited[0] if e.parts[0] == following)
                assert window.samples + length > 30 * 16_000
    alone = sum(len(window.parts) == 1 for window in made)
    assert alone > 20 if share == 0.3 else alone < 5


def test_the_windows_follow_from_the_seed_alone(recited):
    options = {"pack": 0.5, "timestamps": 0.5}
    assert windows(recited, **options) == windows((recited[0][::-1], recited[1]), **options)
    assert windows(recited, **options) != windows(recited, **options, seed=1)


def test_a_windows_text_is_tokenized_as_a_whole_would_be(quran, recited):
    for window in windows(recited, pack=1.0):
        assert list(window.tokens[window.first_target : -1]) == TOKENIZER.encode(" " + window.text)
    with open(quran / "metadata" / "ayah_text_clear.csv", encoding="utf-8-sig", newline="") as file:
        texts = [row["text"].strip() for row in csv.DictReader(file)]
    for one, other in pairwise(texts):
        assert TOKENIZER.encode(f" {one} {other}") == TOKENIZER.encode(f" {one}") + TOKENIZER.encode(f" {other}")


def test_timestamps_are_whispers_at_the_joints(recited):
    lengths = {example.parts[0]: example.samples for example in recited[0]}
    for window in windows(recited, pack=1.0, timestamps=1.0):
        assert window.tokens[:3] == TOKENIZER.sot_sequence
        assert window.first_target == 3
        written, at = "", 0
        ends = np.cumsum([lengths[ayah] for ayah in window.parts])
        if len(window.parts) == 1 or window.cut:
            continue
        for ayah, end in zip(window.parts, ends, strict=True):
            written += f"<|{round(at / 320) * 0.02:.2f}|> {ayah.text}<|{round(end / 320) * 0.02:.2f}|>"
            at = end
        assert TOKENIZER.decode_with_timestamps(window.tokens[3:-1]) == written
        assert window.tokens[-1] == TOKENIZER.eot


def test_a_window_with_timestamps_goes_on_with_the_ayah_that_does_not_fit(recited):
    """And is taught where that begins, and nothing of its text; without timestamps there is silence."""
    lengths = {example.parts[0]: example.samples for example in recited[0]}
    made = windows(recited, pack=1.0, timestamps=1.0)
    plain = windows(recited, pack=1.0)
    assert [window.parts for window in made] == [window.parts for window in plain]
    assert all(window.cut is None for window in plain)
    for window, without, after in zip(made, plain, [*made[1:], None], strict=True):
        goes_on = after and after.parts[0].surah == window.parts[0].surah
        assert window.cut == (after.parts[0] if goes_on else None)
        if window.cut is None:
            continue
        joint = sum(lengths[ayah] for ayah in window.parts)
        assert window.samples == joint
        assert window.samples + window.cut_samples == 30 * 16_000 < joint + lengths[window.cut]
        heard = window.audio(recited[1])
        assert np.array_equal(heard[:joint], without.audio(recited[1]))
        assert np.array_equal(heard[joint:], recited[1].read(window.cut.audio)[: len(heard) - joint])
        *_, end, start, eot = window.tokens
        assert (start, eot) == (end, TOKENIZER.eot)
        texts = [token for token in window.tokens if token < TOKENIZER.eot]
        assert texts == TOKENIZER.encode(" " + window.text)
        # Whisper takes its audio from there on next.
        segments, reached = read_segments(window.tokens[window.first_target : -1], TOKENIZER, 30.0)
        assert reached == pytest.approx(joint / 16_000, abs=0.011 if len(window.parts) > 1 else 2)
        assert [segment.text for segment in segments] == [ayah.text for ayah in window.parts]
    assert sum(window.cut is not None for window in made) > 5


def test_hours_count_once_however_ayat_are_packed(recited):
    examples, cache = recited
    made = windows(recited, pack=1.0, timestamps=1.0)
    plain, packed = (TrainingData(each, {}, cache, []) for each in (examples, made))
    assert packed.hours == pytest.approx(plain.hours)
    (amount,) = packed.amounts()["train"].values()
    assert amount == {"ayat": len(examples), "windows": len(made), "hours": pytest.approx(plain.hours)}


def test_a_single_ayahs_timestamps_are_where_it_is_spoken(recited):
    example = recited[0][0]
    (window, *_) = windows(recited, timestamps=1.0)
    samples = example.audio(recited[1])
    start, end = spoken(samples)
    assert 0 <= start < end <= example.samples
    text = f"<|{round(start / 320) * 0.02:.2f}|> {example.text}<|{round(end / 320) * 0.02:.2f}|>"
    assert TOKENIZER.decode_with_timestamps(window.tokens[3:-1]) == text
    silent = np.zeros(16_000, np.int16)
    assert spoken(np.concatenate([silent, samples, silent])) == (start + 16_000, end + 16_000)
    assert spoken(silent) == (0, 16_000) and spoken(silent[:100]) == (0, 100)


def test_an_ayah_that_leaves_no_room_for_timestamps_has_none(recited):
    longest = max(recited[0], key=lambda example: len(example.tokens))
    context = len(longest.tokens) - 1
    made = {window.parts[0]: window for window in windows(recited, context, timestamps=1.0)}
    assert made[longest.parts[0]].tokens == longest.tokens
    assert any(window.first_target == 3 for window in made.values())
    assert all(len(window.tokens) - 1 <= context for window in made.values())


def test_training_on_all_kinds_of_windows(run, tmp_path):
    options = ("--pack", 0.5, "--timestamps", 0.5, "--epochs", 1)
    code, out, err = run("--out", tmp_path / "run", *options)
    assert code == 0, err
    assert " windows, " in out


def test_long_ayat_and_long_texts_are_left_out_with_a_reason(recited):
    """And what could not be decoded, whose reason is known already."""
    examples, recordings = recited
    ayat = [example.parts[0] for example in examples[:20]]
    stranger = Ayah("R", ayat[0].audio.with_name("gone.mp3"), "text", 1, 1)
    kept, skipped = build_examples([*ayat, stranger], recordings, TOKENIZER, 5.0, 10)
    assert {item.reason for item in skipped} == {"longer than 5 s", "text longer than the decoder's 10 tokens"}
    assert len(kept) + len(skipped) == 20
    for example in kept:
        assert len(example.tokens) - 1 <= 10 and example.seconds <= 5


def test_a_batch_teaches_text_and_eot_and_nothing_else(recited):
    examples, recordings = recited[0][:8], recited[1]
    batch = make_batch(examples, recordings)
    length = batch.tokens.shape[1]
    for row, example in enumerate(examples):
        samples = recordings.read(example.parts[0].audio)
        assert np.array_equal(batch.audio[row, : len(samples)].numpy(), samples)
        assert not batch.audio[row, len(samples) :].any()
        here = (batch.positions // length) == row
        taught = batch.targets[here].tolist()
        assert taught[-1] == TOKENIZER.eot
        assert TOKENIZER.decode(taught[:-1]) == " " + example.text
        # Each target is taught where the decoder has just been given the token before it.
        given = batch.tokens.flatten()[batch.positions[here]].tolist()
        assert given == list(example.tokens[4 - 1 : -1])
    assert batch.target_tokens == sum(len(example.tokens) - 4 for example in examples)
    assert batch.audio.dtype == torch.int16


def test_what_is_random_depends_on_seed_epoch_and_index_alone():
    drawn = {
        (seed, epoch, index): tuple(torch.rand(4, generator=generator(seed, epoch, index)).tolist())
        for seed in range(4)
        for epoch in range(4)
        for index in (0, 1, 2, 1000)
    }
    assert len(set(drawn.values())) == len(drawn)
    order = epoch_order(100, 3, 2)
    torch.manual_seed(9)
    assert tuple(torch.rand(4, generator=generator(3, 2, 1000)).tolist()) == drawn[3, 2, 1000]
    assert epoch_order(100, 3, 2) == order != epoch_order(100, 2, 3)
    assert sorted(order) == list(range(100))


def test_prefetch_keeps_order_raises_in_place_and_stops():
    def items():
        yield from (1, 2)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(prefetch(items()))
    assert seen == [1, 2]

    before = threading.active_count()
    endless = prefetch(iter(int, 1))
    assert next(endless) == 0
    endless.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
