"""Whisper's log-mel spectrogram and encoder for batches of clips, each at its own length and independent of the others.

Whisper pads every clip to 30 seconds, and an ayah lasts 7 on average. Here the encoder reads a clip's own *context*
(:func:`context_of`), the first positions of the 1,500. A context of 30 s gives whisper's own features.

``whisper.log_mel_spectrogram`` clamps relative to the maximum of its whole input, so that in a batch a clip's features
depend on the other clips. Here the maximum is taken per clip.
"""

from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.audio import (
    HOP_LENGTH,
    N_FFT,
    N_FRAMES,
    N_SAMPLES,
    N_SAMPLES_PER_TOKEN,
    SAMPLE_RATE,
    TOKENS_PER_SECOND,
    mel_filters,
)
from whisper.model import AudioEncoder, MultiHeadAttention, ResidualAttentionBlock, Whisper

# The constants of whisper.log_mel_spectrogram: the smallest power, and the range below the maximum, both log10.
_MIN_LOG = -10.0
_RANGE = 8.0

FRAME = HOP_LENGTH  # samples (10 ms) per value of frame_energy
FULL_CONTEXT = N_SAMPLES // N_SAMPLES_PER_TOKEN  # positions of the encoder: 20 ms each, 30 s
_SHORTEST_CONTEXT = 8  # seconds: with less, an untouched model repeats some texts without end
_SILENCE = 1.28  # seconds at the end of every context: a text ends where the model hears silence


def context_of(samples: int, full: bool = False) -> int:
    """Return the context, in positions of the encoder (20 ms), for a clip of so many samples: whole seconds.

    ``full`` is whisper's own, 30 s.
    """
    if full:
        return FULL_CONTEXT
    seconds = -(-(samples + int(_SILENCE * SAMPLE_RATE)) // SAMPLE_RATE)
    return min(max(seconds, _SHORTEST_CONTEXT) * TOKENS_PER_SECOND, FULL_CONTEXT)


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


def log_mel(audio: Tensor, n_mels: int, contexts: Sequence[int] | None = None) -> Tensor:
    """Compute Whisper's features of every clip: float32 (batch, n_mels, 2 * longest context), on the device of audio.

    The silence after a clip is that of its own spectrogram, to the end of its context; after that there are zeros.

    Args:
        audio: (batch, n) 16 kHz samples, int16 or float32 in [-1, 1), zeros on the right; n <= 480,000 (30 s).
        n_mels: 80 or 128, as the model's ``dims.n_mels`` says.
        contexts: in positions of the encoder, two frames each, of every clip; 30 s by default, as in whisper.
    """
    batch, length = audio.shape
    if length > N_SAMPLES:
        raise ValueError(f"{length} samples are more than the {N_SAMPLES} (30 s) that Whisper takes")
    frames = [2 * context for context in contexts] if contexts else [N_FRAMES] * batch
    mel = torch.zeros((batch, n_mels, max(frames)), device=audio.device)
    if audio.device.type == "cpu":  # faster clip by clip: intermediate results stay in its cache
        for clip, out, count in zip(audio.split(1), mel.split(1), frames, strict=True):
            _log_mel(clip, out[..., :count])
    else:
        _log_mel(audio, mel)
        for out, count in zip(mel, frames, strict=True):
            out[:, count:] = 0
    return mel


def _log_mel(audio: Tensor, out: Tensor) -> None:
    """Fill ``out`` (batch, n_mels, n): frames from the audio, then the floor of each clip."""
    # After these frames every window, including the mirrored edge of the last one, holds only padding.
    frames = min(out.shape[2], -(-(audio.shape[1] + N_FFT) // HOP_LENGTH))
    padded = torch.zeros((len(audio), frames * HOP_LENGTH), device=audio.device)
    samples = min(audio.shape[1], padded.shape[1])
    padded[:, :samples] = audio[:, :samples]
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


def audio_mask(contexts: Sequence[int], device: torch.device) -> Tensor | None:
    """Return a bool (batch, 1, 1, longest context), False at the padding of shorter contexts; None without padding."""
    longest = max(contexts)
    if min(contexts) == longest:
        return None
    lengths = torch.tensor(contexts, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return (torch.arange(longest, device=device) < lengths[:, None])[:, None, None]


def attend(
    attention: MultiHeadAttention, x: Tensor, source: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Compute whisper's attention of x (batch, length, state) to ``source`` (batch, keys, state), with a mask of keys.

    whisper's own ``forward`` takes any mask for a causal one.
    """
    heads = (attention.n_head, -1)
    query = attention.query(x).unflatten(2, heads).transpose(1, 2)
    key = attention.key(source).unflatten(2, heads).transpose(1, 2)
    value = attention.value(source).unflatten(2, heads).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return attention.out(attended.transpose(1, 2).flatten(2))


def encode_block(block: ResidualAttentionBlock, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a block of the encoder to x (batch, n, n_audio_state)."""
    normed = block.attn_ln(x)
    x = x + attend(block.attn, normed, normed, mask)
    return x + block.mlp(block.mlp_ln(x))


def encode(
    encoder: AudioEncoder, mel: Tensor, mask: Tensor | None = None, run_block: Callable[..., Tensor] = encode_block
) -> Tensor:
    """Encode log-mel spectrograms (batch, n_mels, 2 n) into audio features (batch, n, n_audio_state), n <= 1,500.

    The forward pass of ``whisper.model.AudioEncoder``, which takes 3,000 frames only; ``mask`` as of
    :func:`audio_mask`.
    """
    x = F.gelu(encoder.conv1(mel))
    x = F.gelu(encoder.conv2(x)).permute(0, 2, 1)
    x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
    for block in encoder.blocks:
        x = run_block(block, x, mask)
    return encoder.ln_post(x)


def encode_some_at_once(
    encode: Callable[[Tensor, Tensor | None], Tensor], mel: Tensor, contexts: Sequence[int], at_once: int
) -> Tensor:
    """Encode log-mel spectrograms (batch, n_mels, 2 * longest context), so many together, into audio features (batch,
    longest context, n_audio_state)."""
    rows: list[Tensor] = []
    for first in range(0, len(contexts), at_once):
        some = contexts[first : first + at_once]
        rows += encode(mel[first : first + at_once, :, : 2 * max(some)], audio_mask(some, mel.device))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the matrices of a Whisper, or of a part of it, in place; whisper computes LayerNorm in fp32."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):
            module.to(dtype)
    return model


@dataclass(frozen=True)
class AudioFeatures:
    """Encoded clips.

    Attributes:
        values: (batch, longest context, n_audio_state); what is beyond a clip's context is padding.
        contexts: of each clip, in positions.
        seeds: of each clip, for sampling at a temperature.
    """

    values: Tensor
    contexts: Sequence[int]
    seeds: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.contexts)


class FrozenEncoder:
    """The encoder of a model in the precision of a run: its weights are cast once, not at every call.

    It is moved to the device at the first call. Outputs that will be asked for again are kept, up to ``memory`` bytes.
    """

    def __init__(self, model: Whisper, dtype: torch.dtype, compile: bool = False, memory: int = 0) -> None:
        self.model, self.dtype, self.memory = model, dtype, memory
        self.kept: dict[Hashable, Tensor] = {}  # (context, n_audio_state) each, on the CPU
        self._encode = torch.compile(encode) if compile else encode
        self._encoder: AudioEncoder | None = None

    def __call__(self, audio: Tensor, contexts: Sequence[int], keys: Sequence[Hashable] = ()) -> AudioFeatures:
        """Encode int16 audio (batch, n), each clip in its own of the ``contexts``; with ``keys``, each of them once."""
        if not keys or not (self.memory or self.kept):
            return self.encode(log_mel(audio, self.model.dims.n_mels, contexts), contexts)
        rows = {row: self.kept[key].to(audio.device) for row, key in enumerate(keys) if key in self.kept}
        if missing := [row for row in range(len(keys)) if row not in rows]:
            encoded = self(audio[missing], [contexts[row] for row in missing])
            for row, context, features in zip(missing, encoded.contexts, encoded.values, strict=True):
                rows[row] = features[:context]
                if rows[row].nbytes <= self.memory:
                    self.memory -= rows[row].nbytes
                    self.kept[keys[row]] = rows[row].to("cpu", copy=True)
        values = nn.utils.rnn.pad_sequence([rows[row] for row in range(len(keys))], batch_first=True)
        return AudioFeatures(values, contexts)

    @torch.no_grad()
    def encode(self, mel: Tensor, contexts: Sequence[int]) -> AudioFeatures:
        """Encode log-mel spectrograms (batch, n_mels, 2 * longest context)."""
        encoder, mel = self._on(mel.device), mel.to(self.dtype)
        # A CPU is faster clip by clip. On a GPU a few neighbours, which are of similar length, need little padding.
        at_once = 1 if mel.device.type == "cpu" else 8
        return AudioFeatures(encode_some_at_once(partial(self._encode, encoder), mel, contexts, at_once), contexts)

    def _on(self, device: torch.device) -> AudioEncoder:
        if self._encoder is None:
            encoder = self.model.encoder
            if self.dtype != encoder.conv1.weight.dtype or device != encoder.conv1.weight.device:
                encoder = cast(deepcopy(encoder).to(device), self.dtype)
            self._encoder = encoder
        return self._encoder
