"""Training windows: consecutive ayat joined up to 30 s, and with timestamps.

Whisper processes 30 s at a time and an ayah lasts 6 to 10, so two thirds of the input is silence; and from single ayat
it learns neither where one ends nor how the next begins. The windows are drawn once, from the run's seed: they are the
same in every epoch (only their order changes), so that a frozen encoder's outputs can be cached.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from whisper.audio import N_SAMPLES_PER_TOKEN
from whisper.tokenizer import Tokenizer

from ..config import TrainingConfig
from .audio import SAMPLE_RATE
from .audio_cache import AudioCache
from .batches import Example
from .features import FRAME, frame_energy
from .passages import follows, place

_QUIET = 1e-4  # relative to the loudest 10 ms (−40 dB): the leading and trailing frames below it are silence


@dataclass(frozen=True)
class WindowMaker:
    """Makes windows of up to ``n_text_ctx`` tokens; ``config`` has the shares that are packed and timed."""

    config: TrainingConfig
    tokenizer: Tokenizer
    cache: AudioCache
    n_text_ctx: int

    def windows(self, examples: Iterable[Example]) -> list[Example]:
        """Make windows of one reciter's ``examples`` (of one ayah each); every ayah is in exactly one window."""
        ordered = sorted(examples, key=lambda example: place(example.parts[0]))
        rng = random.Random(f"windows {self.config.seed} {ordered[0].reciter}" if ordered else 0)
        windows: list[Example] = []
        position = 0
        while position < len(ordered):
            # A third number is drawn, and not used, so that runs begun when there was a third share still resume.
            packed, timed, _ = (rng.random() < share for share in (self.config.pack, self.config.timestamps, 0.0))
            end = self._end(ordered, position, timed) if packed else position + 1
            window = self._window(ordered[position:end], timed)
            if packed and _follows(ordered, end):
                window = self._cut(window, ordered[end])
            windows.append(window)
            position = end
        return windows

    def _end(self, ordered: Sequence[Example], position: int, timed: bool) -> int:
        """Return the end of the run of consecutive examples from ``position`` on that fits into one window."""
        samples = int(self.config.max_duration * SAMPLE_RATE) - ordered[position].samples
        tokens = self.n_text_ctx - len(self._start(timed)) - self._tokens(ordered[position], timed)
        end = position + 1
        while _follows(ordered, end):
            samples -= ordered[end].samples
            tokens -= self._tokens(ordered[end], timed)
            if samples < 0 or tokens < 0:
                break
            end += 1
        return end

    def _window(self, parts: Sequence[Example], timed: bool) -> Example:
        """Join ``parts`` into a window, without timestamps if they do not fit into the decoder's context."""
        timed = timed and len(self._start(True)) + sum(self._tokens(part, True) for part in parts) <= self.n_text_ctx
        targets: list[int] = []
        for part, (begin, end) in zip(parts, self._spans(parts) if timed else [(0, 0)] * len(parts), strict=True):
            targets += [self._timestamp(begin), *_text(part), self._timestamp(end)] if timed else _text(part)
        start = self._start(timed)
        ayat = tuple(ayah for part in parts for ayah in part.parts)
        tokens = (*start, *targets, self.tokenizer.eot)
        return Example(ayat, sum(part.samples for part in parts), tokens, len(start), timed)

    def _cut(self, window: Example, following: Example) -> Example:
        """Fill a window with timestamps up with the beginning of the ayah ``following`` it, which does not fit.

        Its only target is its start timestamp, as in Whisper's own training for a segment that the 30 s cut off. So a
        model predicts where to continue, instead of guessing half a text.
        """
        length = int(self.config.max_duration * SAMPLE_RATE)
        fits = window.samples + following.samples <= length
        if not window.timed or fits or len(window.tokens) >= self.n_text_ctx:
            return window
        *tokens_before, end, eot = window.tokens
        return replace(window, samples=length, tokens=(*tokens_before, end, end, eot), cut=following.parts[0])

    @staticmethod
    def _tokens(example: Example, timed: bool) -> int:
        """Count the tokens of an ayah's text and, if ``timed``, its two timestamps."""
        return len(_text(example)) + 2 * timed

    def _start(self, timed: bool) -> list[int]:
        tokenizer = self.tokenizer
        return list(tokenizer.sot_sequence if timed else tokenizer.sot_sequence_including_notimestamps)

    def _timestamp(self, sample: int) -> int:
        return self.tokenizer.timestamp_begin + round(sample / N_SAMPLES_PER_TOKEN)

    def _spans(self, parts: Sequence[Example]) -> list[tuple[int, int]]:
        """Return the start and end of each part, in samples; of a single ayah without the silence around it."""
        if len(parts) == 1:
            return [spoken(parts[0].audio(self.cache))]
        ends = list(accumulate(part.samples for part in parts))
        return list(zip([0, *ends], ends, strict=False))


def spoken(samples: np.ndarray) -> tuple[int, int]:
    """Return the start and end of the sound in a recording (n,), in samples; all of it if shorter than a frame."""
    energy = frame_energy(samples)
    loud = np.flatnonzero(energy > _QUIET * energy.max(initial=0)).tolist()
    return (loud[0] * FRAME, (loud[-1] + 1) * FRAME) if loud else (0, len(samples))


def _follows(ordered: Sequence[Example], position: int) -> bool:
    """Return whether there is an example at ``position``, and it continues the one before it."""
    return position < len(ordered) and follows(ordered[position - 1].parts[-1], ordered[position].parts[0])


def _text(example: Example) -> tuple[int, ...]:
    """Return an ayah's text tokens. Those of joined texts are their concatenation: no token spans a space inside."""
    return example.tokens[example.taught_from : -1]
