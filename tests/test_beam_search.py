"""Beams say what ``whisper.decode`` says with beams, of all clips of a batch at once."""

import pytest
import torch
from conftest import make_whisper
from test_decoding import assert_same, talkative, whispers_own
from whisper.model import Whisper

from whisper_quran.decoding.batch_decoder import BatchDecoder, decode_batch

CLIPS = 8


@pytest.fixture(scope="module")
def model() -> Whisper:
    return talkative(make_whisper(seed=1))


@pytest.fixture(scope="module")
def features(model) -> torch.Tensor:
    """Encoded audio that differs from clip to clip: noise, as loud as what the encoder gives."""
    noise = torch.randn(CLIPS, 1500, model.dims.n_audio_state, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.layer_norm(noise.cumsum(dim=1), noise.shape[-1:])


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 5, "sample_len": 60},
        {"beam_size": 1, "sample_len": 30},
        {"beam_size": 3, "sample_len": 40, "length_penalty": 0.6},
        {"beam_size": 2, "sample_len": 40, "length_penalty": 0.0, "patience": 2.0},
        {"beam_size": 4, "sample_len": 40, "patience": 0.5},
    ],
    ids=["5", "1", "length penalty", "sum and patience", "impatient"],
)
def test_beams_say_what_whispers_beams_say(model, features, options):
    expected = whispers_own(model, features, **options)
    assert len({result.text for result in expected}) > CLIPS / 2
    assert_same(decode_batch(model, features, **options), expected)
    for slots, batch, stride in ((3, 1, 8), (4, 2, 1)):
        decoder = BatchDecoder(model, slots, **options)
        decoder.stride = stride
        results = dict(decoder.decode(features.split(batch)))
        assert_same([results[index] for index in range(CLIPS)], expected)
