"""Augmentation: what it does to a sound, and that it is the same however a step is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RUN, results_of

from whisper_quran.data.batches import Batch, Clip
from whisper_quran.data.features import context_of, log_mel
from whisper_quran.training.augment import NOTHING, Augmentation, with_other_voice

CPU = torch.device("cpu")


def tone(hertz: float, seconds: float = 2.0) -> torch.Tensor:
    times = torch.arange(int(16_000 * seconds)) / 16_000
    return (8000 * torch.sin(2 * torch.pi * hertz * times)).to(torch.int16)


def changed(clip: torch.Tensor, **change) -> torch.Tensor:
    return Augmentation(0, CPU).sound(clip[None], [Clip(1, len(clip))], [replace(NOTHING, **change)])[0][0]


def level(x: torch.Tensor) -> float:
    """In dB."""
    return 10 * float(x.double().square().mean().log10())


def loudest(x: torch.Tensor) -> float:
    """The loudest frequency, in Hz."""
    return float(torch.fft.rfft(x).abs().argmax()) * 16_000 / len(x)


def test_speed_moves_length_and_pitch_and_nothing_is_nothing():
    clip = tone(440)
    assert torch.equal(changed(clip), clip.float() / 32768)
    assert len(changed(clip, speed=11)) == pytest.approx(32_000 / 1.1, abs=2)
    assert [loudest(changed(clip, speed=speed)) for speed in (11, 9)] == pytest.approx([484, 396], abs=1)


def test_no_clip_becomes_too_long():
    augmentation = Augmentation(0, CPU)
    for samples, speeds in ((24 * 16_000, {8, 9, 10, 11, 12}), (24 * 16_000 + 1, {9, 10, 11, 12})):
        drawn = augmentation.changes(0, [Clip(number, samples) for number in range(200)])
        assert {change.speed for change in drawn} == speeds
        assert sum(change != NOTHING for change in drawn) > 50


def test_noise_has_the_level_asked_for_and_gain_is_gain():
    clip = tone(440)
    for tilt in (0.0, 1.0):
        noise = changed(clip, snr=10.0, tilt=tilt) - clip.float() / 32768
        assert level(clip.float() / 32768) - level(noise) == pytest.approx(10, abs=0.1)
    assert level(changed(clip, gain=0.5)) - level(changed(clip)) == pytest.approx(-6.02, abs=0.1)
    assert changed(clip, gain=100.0).abs().max() == 1


def test_a_narrow_band_has_nothing_above_it():
    assert level(changed(tone(2000), cutoff=4000.0)) == pytest.approx(level(changed(tone(2000))), abs=0.5)
    assert level(changed(tone(6000), cutoff=4000.0)) < level(changed(tone(6000))) - 30


def test_an_echo_lasts_after_the_sound_and_dies_away():
    clip = torch.cat([tone(440, 0.5), torch.zeros(16_000, dtype=torch.int16), torch.ones(1, dtype=torch.int16)])
    heard = changed(clip, decay=0.4, echo=0.0)
    after = [level(heard[8000 + at : 8000 + at + 1600]) for at in (800, 4000, 7200)]
    assert level(changed(clip)[8800:10400]) < -150 < after[0]
    assert after[0] > after[1] + 10 > after[2] + 20


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("hertz, factor", [(400, 1.4), (2000, 1.25), (3000, 0.85), (900, 1.2)])
def test_another_voice_is_the_same_at_other_frequencies(hertz, factor, n_mels):
    """As of a tone at that frequency, and not of one at the old one."""
    mel, expected = (log_mel(tone(each)[None], n_mels)[0, :, 100] for each in (hertz, hertz * factor))
    warped = with_other_voice(mel[:, None], factor)[:, 0]
    assert abs(int(warped.argmax()) - int(expected.argmax())) <= 1
    assert int(mel.argmax()) != int(expected.argmax())
    assert warped.amin() == mel.amin()


def test_the_voice_of_a_batch_is_what_was_drawn(monkeypatch):
    augmentation, clip = Augmentation(0, CPU), Clip(1, 32_000)
    batch = Batch(tone(1000)[None], torch.empty(1, 0), torch.empty(0), torch.empty(0), [clip])
    for factor in (None, 1.3):
        monkeypatch.setattr(augmentation, "_change", lambda draw, factor=factor: replace(NOTHING, voice=factor))
        (mel,), _ = augmentation.log_mel(batch, 0, 80)
        plain = log_mel(batch.audio, 80, [context_of(32_000)])[0]
        assert torch.equal(mel, plain if factor is None else with_other_voice(plain, factor))


def test_a_lower_voice_leaves_silence_above_it():
    mel = torch.linspace(1, 2, 80)[:, None].expand(80, 10)
    lower = with_other_voice(mel, 0.85)
    assert (lower[-1] == mel.amin()).all() and (lower[:70] > 1).all()
    torch.testing.assert_close(with_other_voice(mel, 1.0), mel)


def test_masks_silence_bands_and_gaps_and_nothing_else():
    mel = log_mel(torch.randint(-9000, 9000, (2, 80_000), dtype=torch.int16), 80)
    masks = ((0.5, 1.0, 0.25, 1.0),)
    masked = mel.clone()
    Augmentation(0, CPU).mask(masked, [NOTHING, replace(NOTHING, masks=masks)], [80_000, 80_000])
    assert torch.equal(masked[0], mel[0])
    bands = (masked[1] == mel[1].amin()).all(dim=1).nonzero().flatten().tolist()
    gaps = (masked[1, :, :500] == mel[1].amin()).all(dim=0).nonzero().flatten().tolist()
    assert bands == list(range(30, 50))
    assert gaps == list(range(117, 147))


def test_what_is_done_follows_from_seed_epoch_and_clip_and_not_from_the_batch():
    augmentation = Augmentation(3, CPU)
    clips = torch.randint(-9000, 9000, (6, 40_000), dtype=torch.int16)
    sounds = [Clip(number, 40_000) for number in [7, 8, 9, 10, 11, 2**32 - 1]]
    together, lengths = augmentation.sound(clips, sounds, augmentation.changes(1, sounds))
    assert len(set(lengths)) > 1
    for row, sound in enumerate(sounds):
        (alone,), (length,) = augmentation.sound(clips[row : row + 1], [sound], augmentation.changes(1, [sound]))
        assert length == lengths[row]
        assert torch.equal(together[row, : len(alone)], alone)
        assert not together[row, len(alone) :].any()
    assert augmentation.changes(1, sounds) != augmentation.changes(2, sounds)
    assert augmentation.changes(1, sounds) != Augmentation(4, CPU).changes(1, sounds)
    drawn = Augmentation(0, CPU).changes(0, [Clip(number, 40_000) for number in range(1000)])
    assert {change.speed for change in drawn} == {8, 9, 10, 11, 12}
    counts = {
        0.3: sum(c == NOTHING for c in drawn),
        0.35: sum(c.snr is not None for c in drawn),
        0.21: sum(c.decay is not None for c in drawn),
        0.49: sum(c.voice is not None for c in drawn),
    }
    for share, count in counts.items():
        assert count == pytest.approx(1000 * share, abs=60)


def test_a_run_that_is_resumed_hears_the_same(run, tmp_path):
    options = (*RUN, "--augment")
    assert run("--out", tmp_path / "whole", *options)[0] == 0
    assert run("--out", tmp_path / "cut", *options, "--max-time", 1e-9)[0] == 0
    code, _, err = run("--out", tmp_path / "cut", *options, "--resume", "--batch-size", 1, "--accumulate", 2)
    assert code == 0, err
    whole, cut = (
        [row["loss"] for row in results_of(tmp_path / name)[0] if row["event"] == "train"] for name in ("whole", "cut")
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-4)
    assert run("--out", tmp_path / "plain", *RUN)[0] == 0
    plain = [row["loss"] for row in results_of(tmp_path / "plain")[0] if row["event"] == "train"]
    assert max(abs(np.array(plain) - whole)) > 1e-3
