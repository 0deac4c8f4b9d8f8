"""From selected ayat to what a model hears, and its target tokens: recordings, passages, examples and windows.

From single ayat a model learns neither where one ends nor how the next begins: windows join consecutive ayat up to
30 s, and have timestamps. They are drawn once, from the run's seed, and are the same in every epoch; only their order
changes, so that a frozen encoder's outputs can be kept.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
from whisper.audio import N_SAMPLES, N_SAMPLES_PER_TOKEN
from whisper.tokenizer import Tokenizer

from ..config import EvaluationConfig, TrainingConfig
from ..runtime.console import Log, printable
from ..runtime.errors import UserError
from .audio import NO_SPEECH, SAMPLE_RATE
from .audio_cache import AudioCache, default_cache, prepare_audio
from .corpus import Ayah
from .features import FRAME, frame_energy
from .tables import Skipped, summary
from .text import is_uthmani, target_tokens

_QUIET = 1e-4  # relative to the loudest 10 ms (−40 dB): the leading and trailing frames below it are silence


@dataclass(frozen=True)
class Passage:
    """Consecutive ayat (often only one) of a reciter as one recording of ``samples`` samples at 16 kHz."""

    parts: tuple[Ayah, ...]
    samples: int

    @property
    def reciter(self) -> str:
        return self.parts[0].reciter

    @property
    def text(self) -> str:
        return " ".join(ayah.text for ayah in self.parts)

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def audio(self, cache: AudioCache) -> np.ndarray:
        """Read the samples from ``cache``: int16 (samples,) at 16 kHz."""
        clips = [cache.read(ayah.audio) for ayah in self.parts]
        return clips[0] if len(clips) == 1 else np.concatenate(clips)

    def joints(self, cache: AudioCache) -> list[float]:
        """Return the times, in seconds, at which one ayah ends and the next begins: one fewer than there are ayat."""
        return [end / SAMPLE_RATE for end in accumulate(cache.length(ayah.audio) for ayah in self.parts[:-1])]


@dataclass(frozen=True)
class Example(Passage):
    """A passage and its tokens, from sot to eot; those from ``first_target`` on are targets of the loss.

    A window with timestamps may go on with the first ``cut_samples`` of the ayah ``cut``, which is not among its parts.
    """

    tokens: tuple[int, ...]
    first_target: int
    timed: bool = False  # True if timestamps are targets
    cut: Ayah | None = None
    cut_samples: int = 0

    @property
    def target_tokens(self) -> int:
        return len(self.tokens) - self.first_target

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The targets without eot. Those of joined texts are their concatenation: no token spans a space inside."""
        return self.tokens[self.first_target : -1]

    def audio(self, cache: AudioCache) -> np.ndarray:
        """Read the samples from ``cache``: int16 (samples + cut_samples,) at 16 kHz."""
        whole = super().audio(cache)
        return np.concatenate([whole, cache.read(self.cut.audio)[: self.cut_samples]]) if self.cut else whole


def follows(before: Ayah, after: Ayah) -> bool:
    """Return True if ``after`` directly follows ``before``, in a surah or in a reciter's rows of a manifest."""
    return (before.surah, before.number + 1) == (after.surah, after.number)


def join(ayat: Iterable[Ayah], cache: AudioCache, count: int = 1) -> list[Passage]:
    """Make passages of up to ``count`` consecutive ayat of one reciter; every ayah is in one of them."""
    runs: list[list[Ayah]] = []
    for ayah in sorted(ayat, key=_place):
        if runs and len(runs[-1]) < count and follows(runs[-1][-1], ayah):
            runs[-1].append(ayah)
        else:
            runs.append([ayah])
    return [Passage(tuple(run), sum(cache.length(ayah.audio) for ayah in run)) for run in runs]


def build_examples(
    ayat: Iterable[Ayah], cache: AudioCache, tokenizer: Tokenizer, max_duration: float, n_text_ctx: int
) -> tuple[list[Example], list[Skipped]]:
    """Make an example of each ayah that fits the model: at most ``max_duration`` seconds (and 30), and its context.

    Ayat that ``cache`` does not hold are already in ``cache.skipped``.
    """
    limit = min(int(max_duration * SAMPLE_RATE), N_SAMPLES)
    prompt_length = len(tokenizer.sot_sequence_including_notimestamps)
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
            examples.append(Example((ayah,), samples, tuple(tokens), prompt_length))
            continue
        skipped.append(Skipped(str(ayah.audio), reason))
    return examples, skipped


@dataclass(frozen=True)
class WindowMaker:
    """Makes windows of up to ``n_text_ctx`` tokens; ``config`` has the shares that are packed and timed."""

    config: TrainingConfig
    tokenizer: Tokenizer
    cache: AudioCache
    n_text_ctx: int

    @property
    def max_samples(self) -> int:
        return int(self.config.max_duration * SAMPLE_RATE)

    def windows(self, examples: Iterable[Example]) -> list[Example]:
        """Make windows of one reciter's ``examples`` (of one ayah each); every ayah is in exactly one window."""
        ordered = sorted(examples, key=lambda example: _place(example.parts[0]))
        rng = random.Random(f"windows {self.config.seed} {ordered[0].reciter}" if ordered else 0)
        windows: list[Example] = []
        start = 0
        while start < len(ordered):
            # A third number is drawn, and not used, so that runs begun when there was a third share still resume.
            packed, timed, _ = (rng.random() < share for share in (self.config.pack, self.config.timestamps, 0.0))
            end = start + 1
            while packed and _continues(ordered, end) and self._fit(ordered[start : end + 1], timed):
                end += 1
            window = self._window(ordered[start:end], timed)
            if packed and _continues(ordered, end):
                window = self._cut(window, ordered[end])
            windows.append(window)
            start = end
        return windows

    def _fit(self, parts: Sequence[Example], timed: bool) -> bool:
        samples = sum(part.samples for part in parts)
        return samples <= self.max_samples and self._input_tokens(parts, timed) <= self.n_text_ctx

    def _input_tokens(self, parts: Sequence[Example], timed: bool) -> int:
        """Count the decoder's input tokens for ``parts``: with two timestamps each, if ``timed``, and without eot."""
        return len(self._prompt(timed)) + sum(len(part.text_tokens) + 2 * timed for part in parts)

    def _prompt(self, timed: bool) -> tuple[int, ...]:
        return self.tokenizer.sot_sequence if timed else self.tokenizer.sot_sequence_including_notimestamps

    def _window(self, parts: Sequence[Example], timed: bool) -> Example:
        """Join ``parts`` into a window, without timestamps if they do not fit into the decoder's context."""
        timed = timed and self._input_tokens(parts, True) <= self.n_text_ctx
        targets: list[int] = []
        for part, times in zip(parts, self._times(parts) if timed else [()] * len(parts), strict=True):
            targets += [*times[:1], *part.text_tokens, *times[1:]]
        prompt = self._prompt(timed)
        ayat = tuple(ayah for part in parts for ayah in part.parts)
        tokens = (*prompt, *targets, self.tokenizer.eot)
        return Example(ayat, sum(part.samples for part in parts), tokens, len(prompt), timed)

    def _times(self, parts: Sequence[Example]) -> list[tuple[int, ...]]:
        """Return the timestamps of each part's start and end; for a single ayah, without the silence around it."""
        if len(parts) == 1:
            spans = [spoken(parts[0].audio(self.cache))]
        else:
            ends = list(accumulate(part.samples for part in parts))
            spans = list(zip([0, *ends], ends, strict=False))
        begin = self.tokenizer.timestamp_begin
        return [tuple(begin + round(sample / N_SAMPLES_PER_TOKEN) for sample in span) for span in spans]

    def _cut(self, window: Example, following: Example) -> Example:
        """Fill a window with timestamps up with the beginning of the ayah ``following`` it, which does not fit.

        Its only target is its start timestamp, as in Whisper's own training for a segment that the 30 s cut off. So a
        model predicts where to continue, instead of guessing half a text.
        """
        left = self.max_samples - window.samples
        if not window.timed or following.samples <= left or len(window.tokens) >= self.n_text_ctx:
            return window
        *tokens, end, eot = window.tokens
        return replace(window, tokens=(*tokens, end, end, eot), cut=following.parts[0], cut_samples=left)


def spoken(samples: np.ndarray) -> tuple[int, int]:
    """Return the start and end of the sound in a recording (n,), in samples; all of it if shorter than a frame."""
    energy = frame_energy(samples)
    loud = np.flatnonzero(energy > _QUIET * energy.max(initial=0)).tolist()
    return (loud[0] * FRAME, (loud[-1] + 1) * FRAME) if loud else (0, len(samples))


def _place(ayah: Ayah) -> tuple[int, int]:
    """Return the position of an ayah: its surah and number, or 0 and its row in a manifest."""
    return ayah.surah or 0, ayah.number


def _continues(ordered: Sequence[Example], position: int) -> bool:
    """Return True if there is an example at ``position``, and it continues the one before it."""
    return position < len(ordered) and follows(ordered[position - 1].parts[-1], ordered[position].parts[0])


@dataclass(frozen=True)
class TrainingData:
    """The examples of both splits (validation by reciter), their recordings, and everything left out."""

    train: list[Example]
    valid: dict[str, list[Example]]
    cache: AudioCache
    skipped: list[Skipped]

    @property
    def hours(self) -> float:
        """The hours of audio to train on; none counts twice."""
        return sum(example.seconds for example in self.train) / 3600

    def amounts(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the number of ayat and windows, and the hours, of each reciter in the splits "train" and "valid"."""
        splits = {"train": _by_reciter(self.train), "valid": self.valid}
        return {
            split: {
                reciter: {
                    "ayat": sum(len(example.parts) for example in examples),
                    "windows": len(examples),
                    "hours": sum(example.seconds for example in examples) / 3600,
                }
                for reciter, examples in reciters.items()
            }
            for split, reciters in splits.items()
        }

    @cached_property
    def digest(self) -> str:
        """Digest what a run's results depend on: the recordings' bytes, their target tokens, and their order."""
        digests = self.cache.digest
        content = [
            [([digests(ayah.audio) for ayah in e.parts], e.samples + e.cut_samples, e.tokens) for e in examples]
            for examples in (self.train, *self.valid.values())
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()


def prepare_data(
    config: TrainingConfig,
    train: Sequence[Ayah],
    valid: Sequence[Ayah],
    skipped: Sequence[Skipped],
    tokenizer: Tokenizer,
    n_text_ctx: int,
    log: Log,
) -> TrainingData:
    """Decode the recordings of :func:`.corpus.select_ayat` that are not in the cache, and make examples of what fits.

    Raises:
        UserError: nothing is left of a split, or the cache cannot be written.
    """
    ayat = list(dict.fromkeys([*train, *valid]))  # a reciter may be in both
    cache, undecoded = decode_ayat(ayat, config, log)
    examples, too_long = build_examples(ayat, cache, tokenizer, config.max_duration, n_text_ctx)
    skipped = [*skipped, *undecoded, *too_long]
    by_ayah = {example.parts[0]: example for example in examples}
    maker = WindowMaker(config, tokenizer, cache, n_text_ctx)
    by_reciter = _by_reciter([by_ayah[ayah] for ayah in train if ayah in by_ayah])
    windows = [window for each in by_reciter.values() for window in maker.windows(each)]
    validation = _by_reciter([by_ayah[ayah] for ayah in valid if ayah in by_ayah])
    for purpose, asked, found in (("train", train, windows), ("validate", valid, validation)):
        if asked and not found:
            raise UserError(f"nothing left to {purpose} on: {summary(skipped)}")
    limited = {reciter: _evenly(each, config.valid_limit) for reciter, each in validation.items()}
    return TrainingData(windows, limited, cache, skipped)


def decode_ayat(
    ayat: Sequence[Ayah], config: TrainingConfig | EvaluationConfig, log: Log
) -> tuple[AudioCache, list[Skipped]]:
    """Decode the recordings of ``ayat`` that are not in the cache yet; see :func:`.audio_cache.prepare_audio`.

    Return the cache, and those that cannot be used. What should be known about the rest is logged.

    Raises:
        UserError: the cache cannot be written.
    """
    sources: dict[str, list] = {}
    for ayah in ayat:
        sources.setdefault(ayah.reciter, []).append(ayah.audio)
    cache = prepare_audio(sources, config.cache or default_cache(), config.workers, log)
    skipped = [
        Skipped(str(path), reason if reason.startswith(NO_SPEECH) else f"cannot be decoded: {reason}")
        for path, reason in cache.skipped
    ]
    _warn_of_identical(cache, log)
    if getattr(config, "normalize", "diacritics") != "full" and any(is_uthmani(ayah.text) for ayah in ayat):
        log("text       it is in Uthmani spelling: evaluate.py --normalize full compares it with plain spelling")
    return cache, skipped


def _warn_of_identical(cache: AudioCache, log: Log) -> None:
    """Warn of recordings that are byte-identical to another: at least one of them is not the ayah of its name."""
    by_digest: dict[str, list[str]] = {}
    for path, clip in cache.clips.items():
        by_digest.setdefault(clip.digest, []).append(printable(path))
    if groups := [paths for paths in by_digest.values() if len(paths) > 1]:
        example = " and ".join(groups[0][:2])
        log(f"warning    {len(groups)} recordings are there more than once, as {example}: check which ayah they are")


def _by_reciter(examples: Sequence[Example]) -> dict[str, list[Example]]:
    reciters: dict[str, list[Example]] = {}
    for example in examples:
        reciters.setdefault(example.reciter, []).append(example)
    return reciters


def _evenly(examples: list[Example], limit: int | None) -> list[Example]:
    """Keep at most ``limit`` of ``examples``, evenly spaced: the first ones would all be of the first surahs."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]
