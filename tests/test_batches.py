"""From decoded ayat to examples and batches of a real reciter."""

import threading
import time

import numpy as np
import pytest
import torch
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.ayat import Ayah
from whisper_quran.data.batches import epoch_order, generator, make_batch, prefetch
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.prepare import build_examples
from whisper_quran.runtime.console import no_log

TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
RECITER = "Mishary_Rashid_Alafasy"  # surahs 101 to 114


@pytest.fixture(scope="module")
def recited(quran, tmp_path_factory):
    """A reciter's examples, and their recordings."""
    ayat, _ = open_corpus(quran).select([RECITER])
    cache = prepare_audio({RECITER: [ayah.audio for ayah in ayat]}, tmp_path_factory.mktemp("cache"), 2, no_log)
    return build_examples(ayat, cache, TOKENIZER, 30, 448)[0], cache


def test_long_ayat_and_long_texts_are_left_out_with_a_reason(recited):
    """And what could not be decoded, whose reason is known already."""
    examples, recordings = recited
    ayat = [example.ayah for example in examples[:20]]
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
        samples = recordings.read(example.ayah.audio)
        assert np.array_equal(batch.audio[row, : len(samples)].numpy(), samples)
        assert not batch.audio[row, len(samples) :].any()
        here = (batch.positions // length) == row
        taught = batch.targets[here].tolist()
        assert taught[-1] == TOKENIZER.eot
        assert TOKENIZER.decode(taught[:-1]) == " " + example.ayah.text
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
