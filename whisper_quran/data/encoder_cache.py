"""A disk cache of a frozen encoder's outputs: a recording is encoded once for all epochs, runs and evaluations.

An encoder that is not trained computes the same n_audio_ctx × n_audio_state outputs for a recording in every epoch, and
computing them is most of a training step. They are in

    <cache>/encoder-<digest of its weights>-<device>-<precision>/<digest of the samples>

one file a recording: its outputs, then their CRC-32. The name contains everything that they depend on, so a file never
changes, and runs and evaluations share it. A file that is missing, truncated or damaged is written again.
"""

import hashlib
import os
import re
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from whisper.model import AudioEncoder, Whisper

from ..config import EvaluationConfig, TrainingConfig
from ..runtime.console import Log, no_log
from ..runtime.device import Precision
from ..runtime.errors import UserError
from ..runtime.files import check_folder, replacing
from .audio_cache import default_cache
from .features import encode, log_mel

_NAME = re.compile(r"[0-9a-f]{32}")
_THREADS = 4
_WAITING = 64  # recordings that may wait to be written


@dataclass(frozen=True)
class CachedFeatures:
    """The cached outputs of a batch: ``features`` (k, n_audio_ctx, n_audio_state) of the clips ``rows``, ascending.

    ``keys`` are the cache keys of all clips of the batch.
    """

    keys: tuple[str, ...]
    rows: tuple[int, ...]
    features: Tensor

    def to(self, device: torch.device) -> "CachedFeatures":
        return CachedFeatures(self.keys, self.rows, self.features.to(device, non_blocking=True))


class EncoderCache:
    """The cached outputs of one encoder, in one folder; ``space`` is the number that may still be added.

    A few threads read and write. If the disk cannot be written, caching stops, but nothing else does.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype, log: Log = no_log):
        """Open a cache of outputs of ``shape`` (n_audio_ctx, n_audio_state); its folder is made on the first write."""
        self.folder, self.shape, self.dtype, self.log = folder, shape, dtype, log
        self.space = 0
        self.bytes = shape[0] * shape[1] * dtype.itemsize
        names = os.listdir(folder) if folder.is_dir() else []
        self.keys = {name for name in names if _NAME.fullmatch(name)}
        self._checked: set[str] = set()
        self._threads = ThreadPoolExecutor(_THREADS)
        self._writing: deque[Future[None]] = deque()

    def find(self, clips: Sequence[np.ndarray], pin: bool = False) -> CachedFeatures:
        """Look up int16 clips (each (n,)); ``pin`` puts the features in page-locked memory."""
        keys = tuple(_digest(clip) for clip in clips)
        rows = [row for row, key in enumerate(keys) if key in self.keys]
        features = torch.empty((len(rows), *self.shape), dtype=self.dtype, pin_memory=pin)
        outputs = features.view(torch.uint8).view(len(rows), self.bytes).numpy()
        valid = list(self._threads.map(self._read, [keys[row] for row in rows], outputs))
        if not all(valid):
            features = features[torch.tensor(valid)]
            rows = [row for row, is_valid in zip(rows, valid, strict=True) if is_valid]
        return CachedFeatures(keys, tuple(rows), features)

    def add(self, keys: Sequence[str], features: Tensor) -> None:
        """Write ``features`` (n, n_audio_ctx, n_audio_state) in the background, as far as there is space."""
        new = [row for row, key in enumerate(keys) if key not in self.keys][: max(self.space, 0)]
        if not new:
            return
        self.space -= len(new)
        on_cpu = features.cpu()
        for row in new:
            self._writing.append(self._threads.submit(self._write, keys[row], on_cpu[row]))
        while len(self._writing) > _WAITING:
            self._writing.popleft().result()

    def close(self) -> None:
        """Wait until everything is written."""
        self._threads.shutdown()

    def _read(self, key: str, output: np.ndarray) -> bool:
        """Read an entry into ``output`` (bytes,); if it is not valid, drop its key and return False."""
        try:
            with open(self.folder / key, "rb") as file:
                valid = file.readinto(output.data) == self.bytes
                checksum = file.read(5)
            # Computed once per process: the checksum takes longer than the reading.
            valid = valid and len(checksum) == 4 and (key in self._checked or checksum == _checksum(output))
        except OSError:
            valid = False
        if valid:
            self._checked.add(key)
        else:
            self.keys.discard(key)
            self.space += 1
        return valid

    def _write(self, key: str, features: Tensor) -> None:
        """Write an entry under a temporary name and rename it. No fsync: the checksum detects damage by a power cut."""
        content = features.contiguous().view(torch.uint8).numpy()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / key, "wb") as file:
                file.write(content.data)
                file.write(_checksum(content))
            self.keys.add(key)
        except IsADirectoryError as error:  # this entry cannot be replaced, others can
            self.log(f"warning    {self.folder / key} cannot be written ({error.strerror}): it is encoded every time")
        except OSError as error:
            if self.space > 0:
                self.log(f"warning    {self.folder} takes no more ({error.strerror}): the rest is encoded every time")
            self.space = 0


def _digest(clip: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(clip).data, digest_size=16).hexdigest()


def _checksum(content: np.ndarray) -> bytes:
    return struct.pack("<I", zlib.crc32(content.data))


class FrozenEncoder:
    """The encoder of a model in the precision of a run: its weights are cast once, not at every call.

    It is moved to the device at the first clip that is not in ``cache``; :meth:`free_memory` frees its memory.
    """

    def __init__(self, model: Whisper, dtype: torch.dtype, compile: bool = False) -> None:
        self.model, self.dtype, self.compile = model, dtype, compile
        self.cache: EncoderCache | None = None
        self.encoded = 0  # clips, since free_memory was called
        self._encoder: Any = None

    def find(self, clips: Sequence[np.ndarray], pin: bool = False) -> CachedFeatures | None:
        """Look up int16 clips in the cache; None if there is none."""
        return self.cache.find(clips, pin) if self.cache else None

    @torch.no_grad()
    def __call__(self, audio: Tensor, cached: CachedFeatures | None = None) -> Tensor:
        """Encode int16 audio (batch, n), except the ``cached`` rows, into (batch, n_audio_ctx, n_audio_state)."""
        if not cached:
            return self.encode(log_mel(audio, self.model.dims.n_mels))
        missing = [row for row in range(len(audio)) if row not in cached.rows]
        if not missing:
            return cached.features
        computed = self.encode(log_mel(audio[missing], self.model.dims.n_mels))
        if self.cache:
            self.cache.add([cached.keys[row] for row in missing], computed)
        features = computed.new_empty((len(audio), *computed.shape[1:]))
        features[missing], features[list(cached.rows)] = computed, cached.features
        return features

    def encode(self, mel: Tensor) -> Tensor:
        """Encode log-mel spectrograms (batch, n_mels, 3000)."""
        self.encoded += len(mel)
        return encode(self._on(mel.device), mel, self.dtype)

    def free_memory(self) -> None:
        """Free the encoder's memory if nothing had to be encoded since the last call."""
        if self.encoded == 0:
            self._encoder = None
        self.encoded = 0

    def close(self) -> None:
        """Wait until the cache has written everything."""
        if self.cache:
            self.cache.close()

    def _on(self, device: torch.device) -> AudioEncoder:
        if self._encoder is None:
            encoder = self.model.encoder
            if self.dtype != encoder.conv1.weight.dtype or device != encoder.conv1.weight.device:
                encoder = deepcopy(encoder).to(device)
                for module in encoder.modules():
                    if isinstance(module, (nn.Linear, nn.Conv1d)):  # whisper computes LayerNorm in fp32
                        module.to(self.dtype)
            self._encoder = torch.compile(encoder) if self.compile else encoder
        return self._encoder


def open_encoder_cache(
    config: TrainingConfig | EvaluationConfig,
    model: Whisper,
    precision: Precision,
    device: torch.device,
    log: Log = no_log,
) -> EncoderCache:
    """Open the cache of ``model``'s encoder; it takes at most half of the free disk space for new outputs."""
    name = f"encoder-{encoder_digest(model)}-{device.type}-{precision.name}"
    shape = model.dims.n_audio_ctx, model.dims.n_audio_state
    cache = EncoderCache((config.cache or default_cache()) / name, shape, precision.dtype, log)
    with suppress(UserError):  # it cannot be written, but what is there can be read
        cache.space = shutil.disk_usage(check_folder(cache.folder)).free // 2 // cache.bytes
    return cache


def encoder_digest(model: Whisper) -> str:
    """Digest the weights of an encoder and its number of heads, on which its outputs depend."""
    digest = hashlib.blake2b(repr(model.dims.n_audio_head).encode(), digest_size=8)
    for name, tensor in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()
