"""Batches of decoded recordings and target tokens for the device.

A clip is copied as int16 samples: the log-mel is computed on the device, for the whole batch (:mod:`.features`). No
audio is decoded here, so one background thread keeps ahead of any GPU: a batch of 16 clips of 10 s is 5 MB to copy.

The order depends on the seed and the epoch alone, and a step's clips are one slice of it. Accumulation only splits the
slice into micro-batches, so that 4 × 4 has exactly the clips of a batch of 16. It is sorted by length: clips that
are next to each other need little padding.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .audio_cache import AudioCache
from .features import collate, context_of
from .prepare import Example

T = TypeVar("T")


class Clip(NamedTuple):
    """The properties of an example's audio."""

    number: int  # CRC-32 of its samples
    samples: int  # without padding


@dataclass(frozen=True)
class Batch:
    """Clips and tokens, as plain tensors.

    The loss covers text and eot: ``positions`` are the indices into the flattened (batch × length) decoder output whose
    next token is a target, and ``targets`` are those tokens. Prompt and padding are in neither, so the output layer, a
    third of the decoder's work, is not computed for them.
    """

    audio: Tensor  # (batch, samples of the longest clip) int16, zero-padded
    tokens: Tensor  # (batch, length) int64, the decoder's input, padded with eot
    positions: Tensor  # (target_tokens,) int64
    targets: Tensor  # (target_tokens,) int64
    clips: Sequence[Clip]

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def target_tokens(self) -> int:
        return len(self.targets)

    @property
    def contexts(self) -> list[int]:
        """The context in which each clip is encoded, in positions of the encoder."""
        return [context_of(clip.samples) for clip in self.clips]

    def to(self, device: torch.device) -> "Batch":
        audio, tokens, positions, targets = (
            tensor.to(device, non_blocking=True) for tensor in (self.audio, self.tokens, self.positions, self.targets)
        )
        return Batch(audio, tokens, positions, targets, self.clips)

    def split_in_half(self) -> tuple["Batch", "Batch"]:
        """Return the same clips as two batches, for a GPU with too little memory for one."""
        half, length = len(self) // 2, self.tokens.shape[1]
        first = self.positions < half * length
        before, after = self.positions[first], self.positions[~first] - half * length
        return (
            Batch(self.audio[:half], self.tokens[:half], before, self.targets[first], self.clips[:half]),
            Batch(self.audio[half:], self.tokens[half:], after, self.targets[~first], self.clips[half:]),
        )


def make_batch(examples: Sequence[Example], cache: AudioCache, pin: bool = False) -> Batch:
    """Collate ``examples``.

    ``pin`` puts the tensors in page-locked memory, from which copies to a GPU are asynchronous.
    """
    length = max(len(example.tokens) for example in examples) - 1
    tokens = torch.full((len(examples), length), examples[0].tokens[-1])
    positions, targets = [], []
    for row, example in enumerate(examples):
        example_targets = example.tokens[example.first_target :]
        tokens[row, : len(example.tokens) - 1] = torch.tensor(example.tokens[:-1])
        positions.append(torch.arange(len(example_targets)) + row * length + example.first_target - 1)
        targets.append(torch.tensor(example_targets))
    audio = [cache.read(example.ayah.audio) for example in examples]
    text = tokens, torch.cat(positions), torch.cat(targets)
    inputs, target_positions, target_ids = (tensor.pin_memory() if pin else tensor for tensor in text)
    clips = [Clip(zlib.crc32(each.tobytes()), len(each)) for each in audio]
    return Batch(collate(audio, pin), inputs, target_positions, target_ids, clips)


def generator(seed: int, epoch: int, index: int = 0) -> torch.Generator:
    """Make a random generator, for the order of an epoch or the augmentation of one of its examples.

    All random numbers depend on these three numbers alone, so that a resumed run repeats them.
    """
    # Neighbouring values of one number must not collide with those of another. torch uses the lower 32 bits of the sum.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch + index * 2_654_435_761) % 2**32)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the shuffled order of ``count`` examples."""
    return torch.randperm(count, generator=generator(seed, epoch)).tolist()


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split ``items`` into chunks of ``size``; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def shard(step: Sequence[T], batch_size: int, rank: int, world_size: int) -> list[Sequence[T]]:
    """Return the micro-batches of one process: its shard of a ``step``'s clips, split into batches.

    The shards of all processes differ by at most one clip; in the last step of an epoch they may be empty.
    """
    return split(step[rank::world_size], batch_size)


def prefetch(items: Iterable[T], depth: int = 3) -> Iterator[T]:
    """Iterate over ``items`` in a background thread that stays up to ``depth`` items ahead.

    An exception raised by ``items`` is raised here, at its place in the order. The thread ends if the consumer
    stops early.
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
