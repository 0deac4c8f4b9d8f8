"""From recordings to batches."""

import threading
import time

import numpy as np
import pytest
import torch
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.audio_cache import prepare_audio
from whisper_quran.data.batches import epoch_order, make_batch, prefetch, split
from whisper_quran.data.corpus import Ayah, open_corpus
from whisper_quran.data.windows import build_examples
from whisper_quran.runtime.console import no_log

TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
PROMPT = 4


@pytest.fixture(scope="module")
def fatihah(quran, tmp_path_factory):
    """Surah 1 and the longest ayah of a real reciter, and their recordings."""
    corpus = open_corpus(quran)
    ayat, _ = corpus.select(["AbdulWadood_Haneef"])
    ayat = [ayah for ayah in ayat if ayah.surah == 1 or ayah.number == 282]
    sources = {"AbdulWadood_Haneef": [ayah.audio for ayah in ayat]}
    return ayat, prepare_audio(sources, tmp_path_factory.mktemp("cache"), workers=2, log=no_log)


def test_long_ayat_and_long_texts_are_left_out_with_a_reason(fatihah):
    ayat, recordings = fatihah
    examples, skipped = build_examples(ayat, recordings, TOKENIZER, max_duration=30, n_text_ctx=448)
    assert [example.parts[0].number for example in examples] == [1, 2, 3, 4, 5, 6, 7]
    assert [item.reason for item in skipped] == ["longer than 30 s"]
    examples, skipped = build_examples(ayat, recordings, TOKENIZER, max_duration=300, n_text_ctx=16)
    assert {item.reason for item in skipped} == {"longer than 30 s", "text longer than the decoder's 16 tokens"}
    for example in examples:
        assert len(example.tokens) - 1 <= 16


def test_a_batch_teaches_text_and_eot_and_nothing_else(fatihah):
    ayat, recordings = fatihah
    examples, _ = build_examples(ayat, recordings, TOKENIZER, max_duration=30, n_text_ctx=448)
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
        assert given == list(example.tokens[PROMPT - 1 : -1])
    assert batch.target_tokens == sum(len(example.tokens) - PROMPT for example in examples)
    assert batch.audio.dtype == torch.int16


def test_what_could_not_be_decoded_is_not_an_example(fatihah):
    ayat, recordings = fatihah
    stranger = Ayah("R", ayat[0].audio.with_name("gone.mp3"), "text", 1, 1)
    examples, skipped = build_examples([stranger], recordings, TOKENIZER, 30, 448)
    assert not examples and not skipped


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = {(seed, epoch): tuple(epoch_order(100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(set(orders.values())) == 25
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    torch.manual_seed(1234)
    assert tuple(epoch_order(100, 3, 2)) == orders[3, 2]


def test_split_keeps_the_last_short_run():
    assert split([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_prefetch_keeps_order_raises_in_place_and_stops():
    def items():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in prefetch(items()):
            seen.append(item)
    assert seen == [1, 2]

    before = threading.active_count()
    endless = prefetch(iter(int, 1))
    assert next(endless) == 0
    endless.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
