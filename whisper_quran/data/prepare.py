"""Prepare selected ayat: decoded recordings, for training and evaluation, and training's examples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from whisper.tokenizer import Tokenizer

from ..config import EvaluationConfig, TrainingConfig
from ..runtime.console import Log, printable
from ..runtime.errors import UserError
from .audio import NO_SPEECH
from .audio_cache import AudioCache, default_cache, prepare_audio
from .corpus import Ayah
from .tables import Skipped, summary
from .text import is_uthmani
from .windows import Example, WindowMaker, build_examples


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

    def digest(self) -> str:
        """Digest what a run's results depend on: the recordings' bytes, their target tokens, and their order."""
        splits = [self.train, *self.valid.values()]
        digests = self.cache.digest
        content = [
            [([digests(ayah.audio) for ayah in e.parts], e.samples + e.cut_samples, e.tokens) for e in examples]
            for examples in splits
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
        by_digest.setdefault(clip.digest, []).append(path)
    groups = [paths for paths in by_digest.values() if len(paths) > 1]
    for group in groups[:10]:
        log(f"warning    the same bytes in {' and '.join(printable(path) for path in group)}: check which ayah it is")
    if len(groups) > 10:
        log(f"warning    and {len(groups) - 10} more recordings that are there more than once")


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
