"""Augmentation: what other voices, rooms, microphones and old cassettes do to a recitation, on the batch's device.

What happens to a clip is drawn from the seed, the epoch and its samples alone, so that a run that is resumed, or cut
into other micro-batches or processes, meets the same. The text stays what it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchaudio.functional import resample
from whisper.audio import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE

from ..data.batches import Sound, generator

_AS_IT_IS = 0.5  # the share of clips to which nothing is done
_SPEEDS = (9, 10, 11)  # tenths: speed and pitch together, as a tape has them
_GAIN = (-18.0, 6.0)  # dB
_SNR = (5.0, 30.0)  # dB
_DECAY = (0.1, 0.8)  # seconds until a room's echo has fallen by 60 dB
_ECHO = (-15.0, -3.0)  # dB, the echo's energy against the direct sound
_CUTOFF = (3500.0, 7000.0)  # Hz
_MASKS, _WIDEST_BAND, _LONGEST_GAP = 2, 20, 30  # SpecAugment: of each kind; mel bins of 80; frames of 10 ms


@dataclass(frozen=True)
class Change:
    """What is done to one clip. None: nothing of that kind."""

    speed: int  # tenths
    gain: float  # factor
    snr: float | None  # dB
    tilt: float  # of the noise's spectrum: 0 white, 1 pink
    decay: float | None  # seconds
    echo: float  # dB
    cutoff: float | None  # Hz
    masks: tuple[tuple[float, ...], ...]  # (band's start, its width, gap's start, its length), as shares
    noise_seed: int


NOTHING = Change(10, 1.0, None, 0.0, None, 0.0, None, (), 0)


class Augmentation:
    """Changes batches of clips: first :meth:`sound`, then :meth:`mask` of their spectrograms."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def changes(self, epoch: int, clips: Sequence[Sound]) -> list[Change]:
        """Draw what is done to ``clips`` in ``epoch``."""
        changes = [self._change(generator(self.seed, epoch, clip.number + 1)) for clip in clips]
        return [
            replace(change, speed=10) if clip.timed or clip.samples * 10 > change.speed * N_SAMPLES else change
            for clip, change in zip(clips, changes, strict=True)
        ]

    def _change(self, draw: torch.Generator) -> Change:
        share = torch.rand(10 + 4 * _MASKS, generator=draw, dtype=torch.float64).tolist()
        if torch.rand((), generator=draw) < _AS_IT_IS:
            return NOTHING
        noisy, echoing, narrow = share[0] < 0.5, share[1] < 0.3, share[2] < 0.3
        ranges = (_SNR, _DECAY, _ECHO, _GAIN, _CUTOFF)
        values = [low + (high - low) * part for (low, high), part in zip(ranges, share[3:8], strict=True)]
        return Change(
            speed=_SPEEDS[int(share[8] * len(_SPEEDS))],
            gain=10 ** (values[3] / 20),
            snr=values[0] if noisy else None,
            tilt=share[9],
            decay=values[1] if echoing else None,
            echo=values[2],
            cutoff=values[4] if narrow else None,
            masks=tuple(tuple(share[at : at + 4]) for at in range(10, len(share), 4)),
            noise_seed=int(torch.randint(2**31, (), generator=draw)),
        )

    def sound(self, audio: Tensor, clips: Sequence[Sound], changes: Sequence[Change]) -> tuple[Tensor, list[int]]:
        """Change int16 audio (batch, n), zeros on the right; return float32 in [-1, 1] (batch, m), m at most 30 s, and
        how many samples each clip has."""
        rows = zip(audio, clips, changes, strict=True)
        changed = [self._sound(row[: clip.samples], change) for row, clip, change in rows]
        return torch.nn.utils.rnn.pad_sequence(changed, batch_first=True), [len(clip) for clip in changed]

    def _sound(self, clip: Tensor, change: Change) -> Tensor:
        x = clip.float() / 32768
        if change.speed != 10:
            x = resample(x, change.speed, 10)
        x = self._filter(x, change)
        if change.snr is not None:
            noise = self._noise(len(x), change)
            x = x + noise * (x.norm() / noise.norm()) * 10 ** (-change.snr / 20)
        return (x * change.gain).clamp(-1, 1)

    def _filter(self, x: Tensor, change: Change) -> Tensor:
        """The room's echo and the band's limit, both products of spectra."""
        if change.decay is None and change.cutoff is None:
            return x
        tail = int((change.decay or 0.0) * SAMPLE_RATE)
        size = len(x) + tail
        spectrum = torch.fft.rfft(x, size)
        if change.decay is not None:
            times = torch.arange(1, tail + 1, device=x.device) / SAMPLE_RATE
            echo = self._random(tail, change.noise_seed + 1) * torch.exp(-6.9 * times / change.decay)
            echo *= 10 ** (change.echo / 20) / echo.square().sum().sqrt()
            response = torch.cat([echo.new_ones(1), echo[:-1]])
            spectrum = spectrum * torch.fft.rfft(response, size)
        if change.cutoff is not None:
            frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=x.device)
            spectrum = spectrum / (1 + (frequencies / change.cutoff) ** 16)  # 48 dB an octave
        return torch.fft.irfft(spectrum, size)[: len(x)]

    def _noise(self, length: int, change: Change) -> Tensor:
        """Noise between white and pink."""
        spectrum = torch.fft.rfft(self._random(length, change.noise_seed))
        shape = torch.arange(len(spectrum), device=spectrum.device).clamp_(min=1) ** (-change.tilt / 2)
        return torch.fft.irfft(spectrum * shape, length)

    def _random(self, length: int, seed: int) -> Tensor:
        """Gaussian noise (length,); drawn where it is used, so that a GPU need not wait for it."""
        source = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(length, generator=source, device=self.device)

    def mask(self, mel: Tensor, changes: Sequence[Change], lengths: Sequence[int]) -> Tensor:
        """Silence bands and gaps of log-mels (batch, n_mels, 3000) in place, as SpecAugment does (Park et al., 2019).

        The gaps fall into each clip's ``lengths``, in samples: after them there is silence already.
        """
        bins = mel.shape[1]
        for clip, change, samples in zip(mel, changes, lengths, strict=True):
            silence, frames = clip.amin(), max(1, samples // HOP_LENGTH)
            for band, width, gap, length in change.masks:
                width, length = int(width * _WIDEST_BAND * bins / 80), int(length * min(_LONGEST_GAP, frames / 5))
                start = int(band * (bins - width))
                clip[start : start + width] = silence
                start = int(gap * (frames - length))
                clip[:, start : start + length] = silence
        return mel
