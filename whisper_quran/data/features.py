"""Whisper's log-mel spectrogram and encoder for batches of clips, each computed independently of the others.

``whisper.log_mel_spectrogram`` clamps relative to the maximum of its whole input, so that in a batch a clip's features
depend on the other clips. Here the maximum is taken per clip, and the result is that of
``whisper.log_mel_spectrogram(whisper.pad_or_trim(clip))``.

Most ayat are far shorter than Whisper's 30 seconds. A frame of padding has a known value (the clamp's floor), so the
Fourier transforms stop where the audio does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, N_SAMPLES, mel_filters
from whisper.model import AudioEncoder

# The constants of whisper.log_mel_spectrogram: the smallest power, and the range below the maximum, both log10.
_MIN_LOG = -10.0
_RANGE = 8.0

FRAME = HOP_LENGTH  # samples (10 ms) per value of frame_energy


def collate(clips: Sequence[np.ndarray], pin: bool = False) -> Tensor:
    """Put int16 clips (each (n,)) into one int16 tensor (batch, longest), zeros on the right.

    ``pin`` uses page-locked memory, from which copies to a GPU are asynchronous.
    """
    longest = max(len(clip) for clip in clips)
    batch = torch.zeros((len(clips), longest), dtype=torch.int16, pin_memory=pin)
    rows = batch.numpy()
    for row, clip in zip(rows, clips, strict=True):
        row[: len(clip)] = clip
    return batch


def frame_energy(samples: np.ndarray) -> np.ndarray:
    """Compute the mean square of each whole :data:`FRAME` of ``samples`` (n,): float64 (n // FRAME,)."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape((-1, FRAME))
    return np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / FRAME  # needs no copy of an hour in float64


def log_mel(audio: Tensor, n_mels: int) -> Tensor:
    """Compute Whisper's features of every clip: float32 (batch, n_mels, 3000), on the device of ``audio``.

    Args:
        audio: (batch, n) 16 kHz samples, int16 or float32 in [-1, 1), zeros on the right; n <= 480,000 (30 s).
        n_mels: 80 or 128, as the model's ``dims.n_mels`` says.
    """
    batch, length = audio.shape
    if length > N_SAMPLES:
        raise ValueError(f"{length} samples are more than the {N_SAMPLES} (30 s) that Whisper takes")
    # After these frames every window, including the mirrored edge of the last one, holds only padding.
    frames = min(N_FRAMES, -(-(length + N_FFT) // HOP_LENGTH))
    mel = torch.empty((batch, n_mels, N_FRAMES), device=audio.device)
    # A CPU is faster clip by clip (intermediate results stay in its cache), a GPU with the whole batch.
    at_once = 1 if audio.device.type == "cpu" else batch
    for clips, out in zip(audio.split(at_once), mel.split(at_once), strict=True):
        _log_mel(clips, frames, out)
    return mel


def _log_mel(audio: Tensor, frames: int, out: Tensor) -> None:
    """Fill ``out`` (batch, n_mels, 3000): ``frames`` frames from the audio, then the floor of each clip."""
    padded = torch.zeros((len(audio), frames * HOP_LENGTH), device=audio.device)
    padded[:, : audio.shape[1]] = audio
    if audio.dtype == torch.int16:
        padded /= 32768
    window = torch.hann_window(N_FFT, device=audio.device)
    spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    log_power = (mel_filters(audio.device, out.shape[1]) @ power).clamp_(min=10**_MIN_LOG).log10_()
    floor = (log_power.amax(dim=(1, 2), keepdim=True) - _RANGE).clamp_(min=_MIN_LOG)
    torch.maximum(log_power, floor, out=out[..., :frames])
    out[..., frames:] = floor
    out.add_(4.0).div_(4.0)


@torch.no_grad()
def encode(encoder: AudioEncoder, mel: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Encode log-mel spectrograms (batch, n_mels, 3000) into audio features (batch, n_audio_ctx, n_audio_state).

    The computation is in ``dtype``, by default that of the weights.
    """
    mel = mel.to(dtype or next(encoder.parameters()).dtype)
    # A CPU is faster clip by clip: intermediate results stay in its cache.
    batches = mel.split(1) if mel.device.type == "cpu" else [mel]
    return torch.cat([encoder(batch) for batch in batches])
