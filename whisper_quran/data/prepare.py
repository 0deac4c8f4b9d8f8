"""From selected ayat to what a model hears, and its target tokens."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from whisper.audio import N_SAMPLES
from whisper.tokenizer import Tokenizer

from ..config import EvaluationConfig, TrainingConfig
from ..runtime.console import Log, printable
from ..runtime.errors import UserError
from .audio import NO_SPEECH, SAMPLE_RATE
from .audio_cache import AudioCache, default_cache, prepare_audio
from .ayat import Ayah
from .tables import Skipped, summary
from .text import is_uthmani, target_tokens


@dataclass(frozen=True)
class Example:
    """An ayah of ``samples`` samples at 16 kHz, and its tokens, from sot to eot.

    Those from ``first_target`` on are targets of the loss.
    """

    ayah: Ayah
    samples: int
    tokens: tuple[int, ...]
    first_target: int

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def target_tokens(self) -> int:
        return len(self.tokens) - self.first_target


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
            examples.append(Example(ayah, samples, tuple(tokens), prompt_length))
            continue
        skipped.append(Skipped(str(ayah.audio), reason))
    return examples, skipped


@dataclass(frozen=True)
class TrainingData:
    """The examples of both splits (validation by reciter), their recordings, and everything left out."""

    train: list[Example]
    valid: dict[str, list[Example]]
    cache: AudioCache
    skipped: list[Skipped]

    @property
    def hours(self) -> float:
        """The hours of audio to train on."""
        return sum(example.seconds for example in self.train) / 3600

    def amounts(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the number of ayat and the hours of each reciter in the splits "train" and "valid"."""
        splits = {"train": _by_reciter(self.train), "valid": self.valid}
        return {
            split: {
                reciter: {"ayat": len(examples), "hours": sum(example.seconds for example in examples) / 3600}
                for reciter, examples in reciters.items()
            }
            for split, reciters in splits.items()
        }

    @cached_property
    def digest(self) -> str:
        """Digest what a run's results depend on: the recordings' bytes, their target tokens, and their order."""
        digests = self.cache.digest
        content = [
            [([digests(e.ayah.audio)], e.samples, e.tokens) for e in examples]  # a list, as in the runs that are there
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
    by_ayah = {example.ayah: example for example in examples}
    training, validation = (_by_reciter([by_ayah[a] for a in split if a in by_ayah]) for split in (train, valid))
    for purpose, asked, found in (("train", train, training), ("validate", valid, validation)):
        if asked and not found:
            raise UserError(f"nothing left to {purpose} on: {summary(skipped)}")
    limited = {reciter: _evenly(each, config.valid_limit) for reciter, each in validation.items()}
    ordered = [example for each in training.values() for example in sorted(each, key=lambda e: e.ayah.place)]
    return TrainingData(ordered, limited, cache, skipped)


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
        reciters.setdefault(example.ayah.reciter, []).append(example)
    return reciters


def _evenly(examples: list[Example], limit: int | None) -> list[Example]:
    """Keep at most ``limit`` of ``examples``, evenly spaced: the first ones would all be of the first surahs."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]
