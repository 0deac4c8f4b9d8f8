"""Audio augmentation on the batch's device: simulates other voices, rooms, microphones and old recordings.

The changes to a clip depend on the seed, the epoch and its samples alone, so a run that is resumed, or split into
other micro-batches or processes, draws the same ones. The text does not change.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE

from ..data.audio import import_torchaudio
from ..data.batches import Batch, Clip, generator
from ..data.features import context_of, log_mel

_UNCHANGED = 0.3  # the share of clips that are not augmented
_SPEEDS = (8, 9, 10, 10, 11, 12)  # tenths; speed and pitch change together, as on a tape
_GAIN = (-18.0, 6.0)  # dB
_SNR = (0.0, 25.0)  # dB
_DECAY = (0.1, 0.8)  # seconds until a room's echo has fallen by 60 dB
_ECHO = (-15.0, -3.0)  # dB, the echo's energy relative to the direct sound
_CUTOFF = (2500.0, 7000.0)  # Hz
_VOICE = (0.85, 1.4)  # factor on all frequencies, without a change of speed: a child's are higher than a man's
_MASKS, _WIDEST_BAND, _LONGEST_GAP = 2, 20, 30  # SpecAugment: masks of each kind; mel bins of 80; frames of 10 ms


@dataclass(frozen=True)
class Change:
    """The augmentation of one clip; None means that the effect is not applied."""

    speed: int  # tenths
    gain: float  # factor
    snr: float | None  # dB
    tilt: float  # of the noise's spectrum: 0 white, 1 pink
    decay: float | None  # seconds
    echo: float  # dB
    cutoff: float | None  # Hz
    voice: float | None  # factor
    masks: tuple[tuple[float, ...], ...]  # (band start, band width, gap start, gap length), as fractions
    noise_seed: int


NOTHING = Change(10, 1.0, None, 0.0, None, 0.0, None, None, (), 0)


class Augmentation:
    """Augments batches of clips: first their audio (:meth:`sound`), then their spectrograms."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def log_mel(self, batch: Batch, epoch: int, n_mels: int) -> tuple[Tensor, list[int]]:
        """Compute the augmented log-mels of a batch's clips: float32 (batch, n_mels, 2 * longest context).

        Return their contexts too: at another speed, a clip has another length.
        """
        changes = self.changes(epoch, batch.clips)
        audio, lengths = self.sound(batch.audio, batch.clips, changes)
        contexts = [context_of(length) for length in lengths]
        mel = log_mel(audio, n_mels, contexts)
        clips = [row[:, : 2 * context] for row, context in zip(mel, contexts, strict=True)]
        for clip, change in zip(clips, changes, strict=True):
            if change.voice:
                clip.copy_(with_other_voice(clip, change.voice))
        self.mask(clips, changes, lengths)
        return mel, contexts

    def changes(self, epoch: int, clips: Sequence[Clip]) -> list[Change]:
        """Draw the changes to ``clips`` in ``epoch``; the speed stays for clips too long for it."""
        changes = [self._change(generator(self.seed, epoch, clip.number + 1)) for clip in clips]
        return [
            replace(change, speed=10) if clip.samples * 10 > change.speed * N_SAMPLES else change
            for clip, change in zip(clips, changes, strict=True)
        ]

    def _change(self, draw: torch.Generator) -> Change:
        uniform = torch.rand(12 + 4 * _MASKS, generator=draw, dtype=torch.float64).tolist()
        if torch.rand((), generator=draw) < _UNCHANGED:
            return NOTHING
        noisy, echoing, narrow, other = uniform[0] < 0.5, uniform[1] < 0.3, uniform[2] < 0.3, uniform[10] < 0.7
        ranges = (_SNR, _DECAY, _ECHO, _GAIN, _CUTOFF)
        values = [low + (high - low) * fraction for (low, high), fraction in zip(ranges, uniform[3:8], strict=True)]
        return Change(
            speed=_SPEEDS[int(uniform[8] * len(_SPEEDS))],
            gain=10 ** (values[3] / 20),
            snr=values[0] if noisy else None,
            tilt=uniform[9],
            decay=values[1] if echoing else None,
            echo=values[2],
            cutoff=values[4] if narrow else None,
            voice=_VOICE[0] * (_VOICE[1] / _VOICE[0]) ** uniform[11] if other else None,
            masks=tuple(tuple(uniform[at : at + 4]) for at in range(12, len(uniform), 4)),
            noise_seed=int(torch.randint(2**31, (), generator=draw)),
        )

    def sound(self, audio: Tensor, clips: Sequence[Clip], changes: Sequence[Change]) -> tuple[Tensor, list[int]]:
        """Augment int16 audio (batch, n), zero-padded on the right.

        Return float32 audio in [-1, 1] (batch, m), m at most 30 s, and the number of samples of each clip.
        """
        rows = zip(audio, clips, changes, strict=True)
        changed = [self._sound(row[: clip.samples], change) for row, clip, change in rows]
        return torch.nn.utils.rnn.pad_sequence(changed, batch_first=True), [len(clip) for clip in changed]

    def _sound(self, clip: Tensor, change: Change) -> Tensor:
        x = clip.float() / 32768
        if change.speed != 10:
            resample = import_torchaudio("--augment changes the speed of recordings").functional.resample

            x = resample(x, change.speed, 10)
        x = self._filter(x, change)
        if change.snr is not None:
            noise = self._noise(len(x), change)
            x = x + noise * (x.norm() / noise.norm()) * 10 ** (-change.snr / 20)
        return (x * change.gain).clamp(-1, 1)

    def _filter(self, x: Tensor, change: Change) -> Tensor:
        """Apply the echo and the low-pass filter of ``change``, both as products of spectra."""
        if change.decay is None and change.cutoff is None:
            return x
        echo_length = int((change.decay or 0.0) * SAMPLE_RATE)
        size = _fast_length(len(x) + echo_length)
        spectrum = torch.fft.rfft(x, size)
        if change.decay is not None:
            times = torch.arange(1, echo_length + 1, device=x.device) / SAMPLE_RATE
            echo = self._random(echo_length, change.noise_seed + 1) * torch.exp(-6.9 * times / change.decay)
            echo *= 10 ** (change.echo / 20) / echo.square().sum().sqrt()
            response = torch.cat([echo.new_ones(1), echo[:-1]])
            spectrum = spectrum * torch.fft.rfft(response, size)
        if change.cutoff is not None:
            frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=x.device)
            spectrum = spectrum / (1 + (frequencies / change.cutoff) ** 16)  # 48 dB an octave
        return torch.fft.irfft(spectrum, size)[: len(x)]

    def _noise(self, length: int, change: Change) -> Tensor:
        """Make noise between white and pink, according to ``change.tilt``."""
        size = _fast_length(length)
        spectrum = torch.fft.rfft(self._random(size, change.noise_seed))
        shape = torch.arange(len(spectrum), device=spectrum.device).clamp_(min=1) ** (-change.tilt / 2)
        return torch.fft.irfft(spectrum * shape, size)[:length]

    def _random(self, length: int, seed: int) -> Tensor:
        """Draw Gaussian noise (length,) on the device, so that a GPU does not wait for a copy."""
        source = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(length, generator=source, device=self.device)

    def mask(self, mels: Iterable[Tensor], changes: Sequence[Change], lengths: Sequence[int]) -> None:
        """Mask bands and gaps of log-mels (n_mels, n) in place with silence: SpecAugment (Park et al., 2019).

        Gaps lie within the ``lengths`` of the clips, in samples: the padding is silent already.
        """
        for clip, change, samples in zip(mels, changes, lengths, strict=True):
            silence, bins, frames = clip.amin(), len(clip), max(1, samples // HOP_LENGTH)
            for band, width, gap, length in change.masks:
                width, length = int(width * _WIDEST_BAND * bins / 80), int(length * min(_LONGEST_GAP, frames / 5))
                start = int(band * (bins - width))
                clip[start : start + width] = silence
                start = int(gap * (frames - length))
                clip[:, start : start + length] = silence


def _fast_length(length: int) -> int:
    """Round up to a length without large prime factors, whose Fourier transform takes a fraction of the time."""
    return -(-length // 4096) * 4096


def with_other_voice(mel: Tensor, factor: float) -> Tensor:
    """Move what is at each frequency of a log-mel (n_mels, n) to ``factor`` times it, as in a throat so much shorter.

    Nothing is left above the highest of a lower voice: silence. Jaitly and Hinton, 2013, "Vocal Tract Length
    Perturbation (VTLP) improves speech recognition".
    """
    count = len(mel)
    spacing = float(_to_mel(torch.tensor(SAMPLE_RATE / 2))) / (count + 1)  # mels from one centre to the next
    centres = _to_hertz(torch.arange(1, count + 1, device=mel.device) * spacing)
    source = _to_mel(centres / factor) / spacing - 1
    below = source.floor().long().clamp(0, count - 1)
    warped = torch.lerp(mel[below], mel[(below + 1).clamp(max=count - 1)], (source - below).clamp(0, 1)[:, None])
    return warped.masked_fill_((source > count - 0.5)[:, None], mel.amin())


def _to_mel(hertz: Tensor) -> Tensor:
    """Convert to the mels of whisper's filters (Slaney's): linear up to 1 kHz, which is 15, and logarithmic beyond."""
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * torch.log(hertz / 1000) / math.log(6.4))


def _to_hertz(mels: Tensor) -> Tensor:
    return torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
