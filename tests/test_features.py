"""Features are whisper's own, whatever the batch."""

import numpy as np
import pytest
import soundfile
import torch
import whisper
from conftest import make_whisper

from whisper_quran.data import features
from whisper_quran.data.features import FrozenEncoder, audio_mask, collate, context_of, encode, log_mel


def whispers_own(clip: np.ndarray, n_mels: int) -> torch.Tensor:
    audio = torch.from_numpy(clip).float() / 32768
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(audio), n_mels)


@pytest.fixture(scope="module")
def clips(quran) -> list[np.ndarray]:
    """Real ayat, one of them whispered, and the lengths at which padding and mirrored edges meet."""
    files = [quran / "audio" / "Yasser_Salama_hadr" / f"{ayah}.mp3" for ayah in ("001001", "002255", "112004")]
    ayat = [soundfile.read(file, dtype="int16", always_2d=True)[0][:, 0] for file in files]
    long = ayat[1]
    whispered = (ayat[2] // 300).astype(np.int16)
    edges = [long[:length] for length in (480_000, 479_999, 479_801, 479_600, 1, 0)]
    return [ayat[0], long[:300_000], whispered, np.zeros(16_000, np.int16), *edges]


def assert_whispers_own(mel: torch.Tensor, clips: list[np.ndarray], n_mels: int) -> None:
    assert mel.shape == (len(clips), n_mels, 3000)
    for clip, own in zip(clips, mel, strict=True):
        assert (own - whispers_own(clip, n_mels)).abs().max() < 1e-4


@pytest.mark.parametrize("n_mels", [80, 128])
def test_each_clip_has_the_features_it_would_have_alone(clips, n_mels):
    assert_whispers_own(log_mel(collate(clips), n_mels), clips, n_mels)
    # What a GPU does: the whole batch at once.
    mel = torch.empty((len(clips), n_mels, 3000))
    features._log_mel(collate(clips), mel)
    assert_whispers_own(mel, clips, n_mels)


@pytest.mark.parametrize("longest", [0, 1, 400, 16_000, 200_001, 479_500, 479_650])
def test_transforms_that_stop_where_the_audio_does_change_nothing(clips, longest):
    short = [clip[:longest] for clip in clips]
    assert_whispers_own(log_mel(collate(short), 80), short, 80)


def test_a_clip_is_read_to_its_end_and_a_little_silence():
    lengths = {0: 8, 1: 8, 107_520: 8, 107_521: 9, 160_000: 12, 459_520: 30, 459_521: 30, 480_000: 30}
    assert {samples: context_of(samples) / 50 for samples in lengths} == lengths


def test_at_natural_length_frames_are_whispers_own_and_what_pads_a_batch_is_zero(clips):
    contexts = [context_of(len(clip)) for clip in clips]
    assert len(set(contexts)) > 2
    mel = log_mel(collate(clips), 80, contexts)
    at_once = torch.zeros_like(mel)  # what a GPU does
    features._log_mel(collate(clips), at_once)
    for clip, context, own, other in zip(clips, contexts, mel, at_once, strict=True):
        expected = whispers_own(clip, 80)[:, : 2 * context]
        assert (own[:, : 2 * context] - expected).abs().max() < 1e-4
        assert (other[:, : 2 * context] - expected).abs().max() < 1e-4
        assert not own[:, 2 * context :].any()


@torch.no_grad()
def test_the_encoder_is_whispers_own_and_padding_changes_nothing(clips):
    model = make_whisper(layers=2)
    mel = log_mel(collate(clips[:3]), 80)
    torch.testing.assert_close(encode(model.encoder, mel), model.encoder(mel))
    contexts = [context_of(len(clip)) for clip in clips[:3]]
    alone = FrozenEncoder(model, torch.float32)(collate(clips[:3]), contexts)
    padded = encode(model.encoder, log_mel(collate(clips[:3]), 80, contexts), audio_mask(contexts, mel.device))
    for context, one, other in zip(contexts, alone.values, padded, strict=True):
        torch.testing.assert_close(one[:context], other[:context], rtol=1e-4, atol=1e-5)


def test_outputs_are_kept_as_far_as_there_is_memory_and_are_those_of_a_clip_alone(clips, monkeypatch):
    """Clips of 8 to 30 s: two fit, and come from memory in whatever batch they are asked for."""
    model, some = make_whisper(), [clips[index] for index in (0, 2, 1, 3)]
    contexts = [context_of(len(clip)) for clip in some]
    alone = FrozenEncoder(model, torch.float32)(collate(some), contexts)
    encoder = FrozenEncoder(model, torch.float32, memory=4 * 64 * (contexts[0] + contexts[1]))
    encoded = []
    encode_mel = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda mel, its: encoded.append(list(its)) or encode_mel(mel, its))
    assert torch.equal(encoder(collate(some), contexts, "abcd").values, alone.values)
    assert torch.equal(encoder(collate(some), contexts, "abcd").values, alone.values)
    assert encoded == [contexts, contexts[2:]]
    backwards = encoder(collate(some[1::-1]), contexts[1::-1], "ba")
    assert len(encoded) == 2
    for index, row in enumerate(backwards.values.flip(0)):
        assert torch.equal(row[: contexts[index]], alone.values[index, : contexts[index]])


def test_float_audio_is_as_good_as_int16(clips):
    audio = collate(clips[:2])
    assert torch.equal(log_mel(audio.float() / 32768, 80), log_mel(audio, 80))


def test_more_than_30_seconds_are_refused():
    with pytest.raises(ValueError, match="480000"):
        log_mel(torch.zeros((1, 480_001), dtype=torch.int16), 80)


def test_collating_pads_with_zeros_on_the_right(clips):
    batch = collate(clips)
    assert batch.dtype == torch.int16
    assert batch.shape == (len(clips), 480_000)
    for clip, row in zip(clips, batch.numpy(), strict=True):
        assert np.array_equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()
