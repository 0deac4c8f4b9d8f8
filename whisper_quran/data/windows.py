"""Windows of training: consecutive ayat joined up to 30 s, with timestamps, and after what was recited before.

Whisper hears 30 s at a time and an ayah lasts 6 to 10, so that two thirds of what it computes is silence; and of single
ayat it learns neither where one ends nor how the next begins. What becomes of an ayah is drawn from the run's seed,
once: the windows are the same in every epoch, as their order is not, so that a frozen encoder's outputs can be kept.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from whisper.tokenizer import Tokenizer

from ..config import TrainingConfig
from .audio import SAMPLE_RATE
from .audio_cache import AudioCache
from .batches import Example
from .passages import follows

_SECONDS_A_TIMESTAMP = 0.02  # whisper's
_FRAME = SAMPLE_RATE // 100
_QUIET = 1e-4  # of the loudest 10 ms (−40 dB): before the first and after the last louder ones an ayah is not spoken


@dataclass(frozen=True)
class WindowMaker:
    """Makes windows of ``config``'s shares that are packed, timestamped and prompted, for a decoder's context."""

    config: TrainingConfig
    tokenizer: Tokenizer
    cache: AudioCache
    n_text_ctx: int

    def windows(self, examples: Iterable[Example]) -> list[Example]:
        """Make windows of one reciter's ``examples``, each of one ayah: every ayah is in one of them."""
        ordered = sorted(examples, key=lambda example: (example.parts[0].surah or 0, example.parts[0].number or 0))
        draw = random.Random(f"windows {self.config.seed} {ordered[0].reciter}" if ordered else 0)
        windows, position = [], 0
        while position < len(ordered):
            packed, timed, prompted = (
                draw.random() < share for share in (self.config.pack, self.config.timestamps, self.config.prompt)
            )
            count = self._fitting(ordered[position:], timed) if packed else 1
            parts, before = ordered[position : position + count], ordered[:position] if prompted else []
            windows.append(self._window(parts, before, timed))
            position += count
        return windows

    def _fitting(self, examples: Sequence[Example], timed: bool) -> int:
        """Return how many of ``examples``, from the first on, follow one another and fit into one window."""
        samples = int(self.config.max_duration * SAMPLE_RATE)
        tokens = self.n_text_ctx + 1 - len(self._start(timed)) - 1
        count = 0
        for before, example in zip((examples[0], *examples), examples, strict=False):
            samples -= example.samples
            tokens -= len(_text(example)) + 2 * timed
            if count and (not follows(before.parts[-1], example.parts[0]) or samples < 0 or tokens < 0):
                break
            count += 1
        return count

    def _window(self, parts: Sequence[Example], before: Sequence[Example], timed: bool) -> Example:
        """Join ``parts``, of which each follows the last, after the text of those ``before`` that lead up to them."""
        told: list[int] = []
        if timed and sum(len(_text(part)) + 2 for part in parts) + len(self._start(True)) > self.n_text_ctx:
            timed = False  # an ayah whose text leaves no room for them
        for part, (begin, end) in zip(parts, self._spans(parts) if timed else [(0, 0)] * len(parts), strict=True):
            told += [self._timestamp(begin), *_text(part), self._timestamp(end)] if timed else _text(part)
        start = self._start(timed)
        prompt = self._prompt(before, parts[0], self.n_text_ctx - len(start) - len(told))
        return Example(
            tuple(ayah for part in parts for ayah in part.parts),
            sum(part.samples for part in parts),
            (*prompt, *start, *told, self.tokenizer.eot),
            len(prompt) + len(start),
        )

    def _prompt(self, before: Sequence[Example], first: Example, room: int) -> list[int]:
        """Return <|startofprev|> and the end of the text that leads up to ``first``, as ``whisper.decode`` has it."""
        room = min(room - 1, self.n_text_ctx // 2 - 1)
        text: list[int] = []
        for example in reversed(before):
            if not follows(example.parts[-1], first.parts[0]) or len(text) >= room:
                break
            text, first = [*_text(example), *text], example
        return [self.tokenizer.sot_prev, *text[-room:]] if text and room > 0 else []

    def _start(self, timed: bool) -> list[int]:
        tokenizer = self.tokenizer
        return list(tokenizer.sot_sequence if timed else tokenizer.sot_sequence_including_notimestamps)

    def _timestamp(self, sample: int) -> int:
        return self.tokenizer.timestamp_begin + round(sample / SAMPLE_RATE / _SECONDS_A_TIMESTAMP)

    def _spans(self, parts: Sequence[Example]) -> list[tuple[int, int]]:
        """Return where each part begins and ends, in samples: the joints, or of a single ayah where it is spoken."""
        if len(parts) == 1:
            return [spoken(parts[0].audio(self.cache))]
        ends = np.cumsum([part.samples for part in parts]).tolist()
        return list(zip([0, *ends], ends, strict=False))


def spoken(samples: np.ndarray) -> tuple[int, int]:
    """Return from where to where, in samples, a recording (n,) is more than silence; all of it if it is shorter."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape((-1, _FRAME))
    energy = np.square(frames, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(energy > _QUIET * energy.max(initial=0)).tolist()
    return (loud[0] * _FRAME, (loud[-1] + 1) * _FRAME) if loud else (0, len(samples))


def _text(example: Example) -> tuple[int, ...]:
    """The tokens of an ayah's text. Those of joined texts are these, joined: a token never spans a space before it."""
    return example.tokens[example.taught_from : -1]
