"""From decoded recordings to batches on their way to the device.

A clip travels as raw int16: 30 s of padding and the log-mel are made on the device, for the whole batch
(:mod:`.features`). Nothing here decodes audio, so one background thread keeps ahead of any GPU: a batch of 16 clips of
10 s is 5 MB to copy.

Shuffling depends on the seed and the epoch alone, and a step's clips are one slice of that order. Accumulation only
cuts the slice into micro-batches, so that 4 × 4 sees exactly the clips that a batch of 16 sees.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from whisper.audio import N_SAMPLES
from whisper.tokenizer import Tokenizer

from .audio import SAMPLE_RATE
from .audio_cache import AudioCache
from .corpus import Ayah, Skipped
from .encoder_cache import FrozenEncoder, Known
from .features import collate
from .passages import Passage
from .text import target_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Example(Passage):
    """A window of training and what the decoder is taught.

    ``tokens`` run from the prompt to eot; those from ``taught_from`` on are targets of the loss, the others are given.
    With timestamps the window may go on after its ayat with the beginning of another, which is ``cut`` at its end.
    """

    tokens: tuple[int, ...]
    taught_from: int
    timed: bool = False  # whether timestamps are taught
    cut: Ayah | None = None

    @property
    def target_tokens(self) -> int:
        return len(self.tokens) - self.taught_from

    def audio(self, cache: AudioCache) -> np.ndarray:
        """Read the samples from ``cache``: int16 (samples,) at 16 kHz."""
        whole = super().audio(cache)
        if self.cut is None:
            return whole
        return np.concatenate([whole, cache.read(self.cut.audio)[: self.samples - len(whole)]])


def build_examples(
    ayat: Iterable[Ayah], cache: AudioCache, tokenizer: Tokenizer, max_duration: float, n_text_ctx: int
) -> tuple[list[Example], list[Skipped]]:
    """Keep the ayat that fit the model: at most ``max_duration`` seconds (and 30), and the decoder's context.

    Ayat that ``cache`` does not hold are left to ``cache.skipped``.
    """
    limit = min(int(max_duration * SAMPLE_RATE), N_SAMPLES)
    prompt = len(tokenizer.sot_sequence_including_notimestamps)
    examples, skipped = [], []
    for ayah in ayat:
        if ayah.audio not in cache:
            continue
        samples = cache.length(ayah.audio)
        tokens = target_tokens(tokenizer, ayah.text)
        if samples > limit:
            reason = f"longer than {limit / SAMPLE_RATE:g} s"
        elif len(tokens) - 1 > n_text_ctx:
            reason = f"text longer than the decoder's {n_text_ctx} tokens"
        else:
            examples.append(Example((ayah,), samples, tuple(tokens), prompt))
            continue
        skipped.append(Skipped(str(ayah.audio), reason))
    return examples, skipped


class Sound(NamedTuple):
    """What augmentation must know of a clip."""

    number: int  # that follows from its samples
    samples: int  # without padding
    timed: bool  # whether timestamps are taught: their audio must not become shorter or longer


@dataclass(frozen=True)
class Batch:
    """Clips with what the decoder is taught, as plain tensors.

    The loss covers text and eot: ``positions`` are where, in the flattened (batch × length) decoder output, the next
    token is taught, and ``targets`` which token it is. Prompt and padding are in neither, so the output layer, a third
    of the decoder's work, is never computed for them.
    """

    audio: Tensor  # (batch, samples of the longest clip) int16, zero-padded
    tokens: Tensor  # (batch, length) int64, the decoder's input, padded with eot
    positions: Tensor  # (target_tokens,) int64
    targets: Tensor  # (target_tokens,) int64
    clips: tuple[Sound, ...] = ()  # if asked for
    known: Known | None = None  # what an encoder cache has of the clips

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def target_tokens(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Batch":
        audio, tokens, positions, targets = (
            tensor.to(device, non_blocking=True) for tensor in (self.audio, self.tokens, self.positions, self.targets)
        )
        return Batch(audio, tokens, positions, targets, self.clips, self.known.to(device) if self.known else None)

    def split_in_half(self) -> tuple["Batch", "Batch"]:
        """Return the same clips as two batches, for a GPU that has no room for one."""
        half, length = len(self) // 2, self.tokens.shape[1]
        first = self.positions < half * length
        known = self.known.split(half) if self.known else (None, None)
        before, after = self.positions[first], self.positions[~first] - half * length
        return (
            Batch(self.audio[:half], self.tokens[:half], before, self.targets[first], self.clips[:half], known[0]),
            Batch(self.audio[half:], self.tokens[half:], after, self.targets[~first], self.clips[half:], known[1]),
        )


def make_batch(
    examples: Sequence[Example],
    cache: AudioCache,
    pin: bool = False,
    encoder: FrozenEncoder | None = None,
    augmented: bool = False,
) -> Batch:
    """Collate ``examples``, with what the cache of a frozen ``encoder`` has of them.

    ``pin`` puts the tensors in page-locked memory, from where the copy to a GPU runs beside its work.
    ``augmented`` gives the batch its ``clips``.
    """
    length = max(len(example.tokens) for example in examples) - 1
    tokens = torch.full((len(examples), length), examples[0].tokens[-1])
    positions, targets = [], []
    for row, example in enumerate(examples):
        taught = example.tokens[example.taught_from :]
        tokens[row, : len(example.tokens) - 1] = torch.tensor(example.tokens[:-1])
        positions.append(torch.arange(len(taught)) + row * length + example.taught_from - 1)
        targets.append(torch.tensor(taught))
    clips = [example.audio(cache) for example in examples]
    known = encoder.find(clips, pin) if encoder else None
    text = tokens, torch.cat(positions), torch.cat(targets)
    given, where, next_tokens = (tensor.pin_memory() if pin else tensor for tensor in text)
    sounds: tuple[Sound, ...] = ()
    if augmented:
        sounds = tuple(
            Sound(zlib.crc32(clip.tobytes()), len(clip), example.timed)
            for clip, example in zip(clips, examples, strict=True)
        )
    return Batch(collate(clips, pin), given, where, next_tokens, sounds, known)


def generator(seed: int, epoch: int, index: int = 0) -> torch.Generator:
    """Make the random generator of one thing: the order of an epoch, or what is done to one of its examples.

    Whatever is random depends on these three numbers alone, so that a resumed run repeats it.
    """
    # Neighbours in one number must not collide with neighbours in another. Of the sum torch takes the lower 32 bits.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch + index * 2_654_435_761) % 2**32)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the shuffled order of ``count`` examples."""
    return torch.randperm(count, generator=generator(seed, epoch)).tolist()


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return ``items`` in runs of ``size``; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def shard(step: Sequence[T], batch_size: int, rank: int, world_size: int) -> list[Sequence[T]]:
    """Return the micro-batches of one process, out of a ``step``'s clips: together the processes' shards are the step.

    Every process gets as many clips as any other, or one fewer; the last step of an epoch may leave it none.
    """
    return split(step[rank::world_size], batch_size)


def prefetch(items: Iterable[T], depth: int = 3) -> Iterator[T]:
    """Iterate over ``items`` in a background thread that stays up to ``depth`` items ahead.

    An exception of ``items`` is raised here, in its place. The thread ends when the consumer stops early.
    """
    iterator, end = iter(items), object()
    thread = ThreadPoolExecutor(1)
    ready: deque[Future] = deque(thread.submit(next, iterator, end) for _ in range(depth))
    try:
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, iterator, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
