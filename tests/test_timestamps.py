"""Decoding with timestamps: whisper's tokens, and its segments of long recordings."""

import itertools
import random

import numpy as np
import pytest
import torch
import whisper
from conftest import make_whisper, talkative
from whisper.decoding import DecodingResult
from whisper.tokenizer import get_tokenizer

from whisper_quran.data.features import AudioFeatures
from whisper_quran.decoding import long_audio
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.decoding.long_audio import transcribe_clips

TOKENIZER = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
BEGIN = TOKENIZER.timestamp_begin


def timed(gain: float, seed: int = 0):
    """A random model that says some text between timestamps, and ends."""
    model = talkative(make_whisper(layers=2, seed=seed), eot_gain=3.0)
    with torch.no_grad():
        model.decoder.token_embedding.weight[BEGIN:] *= gain
    return model


@pytest.mark.parametrize(("gain", "latest_start"), [(1.0, 1.0), (2.0, 0.1), (2.0, None)])
def test_tokens_with_timestamps_are_whispers(gain, latest_start):
    model = timed(gain)
    torch.manual_seed(1)
    features = torch.randn(12, 1500, 64) * 3
    decoder = BatchDecoder(model, 4, timestamps=True, sample_len=60, max_initial_timestamp=latest_start)
    results = {
        clip.index: clip.result
        for clip in decoder.decode(AudioFeatures(pair, [1500, 1500]) for pair in features.split(2))
    }
    options = whisper.DecodingOptions(language="ar", fp16=False, sample_len=60, max_initial_timestamp=latest_start)
    expected = whisper.decode(model, features, options)
    lengths = set()
    for index, result in enumerate(expected):
        assert results[index].tokens == result.tokens
        assert results[index].avg_logprob == pytest.approx(result.avg_logprob, abs=1e-3)
        lengths.add(sum(token >= BEGIN for token in result.tokens))
    assert len(lengths) > 1  # there are texts of one timestamp and of many


def said_in(window: int, clip: int) -> list[int]:
    """Some tokens for a clip's window, as the rules allow them: timestamps that rise, texts between them, or not."""
    draw = random.Random(f"{window} {clip}")
    tokens, at = [], draw.randrange(50)
    for _ in range(draw.randrange(4)):
        until = at + draw.randrange(1, 250)
        tokens += [BEGIN + at, *draw.choices(range(300, 3000), k=draw.randrange(1, 9)), BEGIN + until]
        at = until + draw.choice([0, 0, draw.randrange(60)])
    tokens += draw.choice([[], [BEGIN + at], [BEGIN + at, 500]])
    return tokens


def test_windows_and_segments_are_those_of_whispers_transcribe(monkeypatch):
    """The same tokens given to both, window by window, for recordings of 3 s to 5 minutes."""
    model = make_whisper()
    loose = set()  # texts of windows with one segment: whisper takes the window's start for its start
    lengths = [random.Random(n).randrange(3 * 16_000, 300 * 16_000) for n in range(30)]
    clips = [np.random.default_rng(n).integers(-999, 999, length).astype(np.int16) for n, length in enumerate(lengths)]

    def result(window, clip):
        tokens = said_in(window, clip)
        text = TOKENIZER.decode([token for token in tokens if token < TOKENIZER.eot])
        if not any(min(pair) >= BEGIN for pair in itertools.pairwise(tokens)):
            loose.add(text.strip())
        return DecodingResult(None, "ar", tokens=tokens, text=text, avg_logprob=-0.1, no_speech_prob=0.0)

    windows_of = [itertools.count() for _ in clips]
    monkeypatch.setattr(
        long_audio._PieceDecoder,
        "_decode_once",
        lambda self, pieces, *_: [(piece, result(next(windows_of[piece.clip]), piece.clip), []) for piece in pieces],
    )
    ours = {t.clip: t for t in transcribe_clips(model, clips, batch_size=4, timestamps=True)}
    options = {"language": "ar", "fp16": False, "temperature": 0.0, "condition_on_previous_text": False}
    windows = 0
    for index, clip in enumerate(clips):
        numbers = itertools.count()
        model.decode = lambda *_: result(next(numbers), index)  # noqa: B023
        expected = model.transcribe(clip.astype(np.float32) / 32768, **options)["segments"]
        expected = [(s["start"], s["end"], s["text"].strip()) for s in expected if s["text"].strip()]
        found = [(s.start, s.end, s.text) for s in ours[index].segments]
        assert [f[2] for f in found] == [e[2] for e in expected]
        last = lengths[index] / 16_000
        for (start, end, text), (its_start, its_end, _) in zip(found, expected, strict=True):
            if text in loose:
                continue
            assert start == pytest.approx(min(its_start, last), abs=0.011)  # whisper counts in frames
            assert end == pytest.approx(min(its_end, last), abs=0.011)
        windows += next(numbers)
    assert windows > 200
