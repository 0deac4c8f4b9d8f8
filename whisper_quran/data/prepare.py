"""Prepare the data of a configuration: decoded ayat, for training and evaluation, and training's examples."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from ..config import EvaluationConfig, TrainingConfig
from ..runtime.console import Log, no_log, printable
from ..runtime.errors import UserError
from .audio import NO_SPEECH
from .audio_cache import AudioCache, default_cache, prepare_audio
from .batches import Example, build_examples
from .corpus import Ayah, Corpus, Skipped, open_corpus, training_reciters
from .text import is_uthmani
from .windows import WindowMaker


@dataclass(frozen=True)
class PreparedAyat:
    """The decoded ayat of each reciter, and the files left out."""

    ayat: dict[str, list[Ayah]]
    cache: AudioCache
    skipped: list[Skipped]


@dataclass(frozen=True)
class Amount:
    """The amount of data of a reciter."""

    ayat: int
    windows: int
    hours: float

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Amount":
        ayat = sum(len(example.parts) for example in examples)
        return cls(ayat, len(examples), sum(example.seconds for example in examples) / 3600)


@dataclass(frozen=True)
class TrainingData:
    """The examples of both splits (validation by reciter), their recordings, and everything left out."""

    train: list[Example]
    valid: dict[str, list[Example]]
    cache: AudioCache
    skipped: list[Skipped]

    def amounts(self) -> dict[str, dict[str, Amount]]:
        """Return the amount of data of each reciter in the splits "train" and "valid"."""
        train: dict[str, list[Example]] = {}
        for example in self.train:
            train.setdefault(example.reciter, []).append(example)
        splits = {"train": train, "valid": self.valid}
        return {split: {name: Amount.of(each) for name, each in found.items()} for split, found in splits.items()}

    def digest(self) -> str:
        """Digest the data that a run depends on: the recordings' bytes, their target tokens, and their order."""
        content = [
            [([self.cache.digest(ayah.audio) for ayah in e.parts], e.samples, e.tokens) for e in examples]
            for examples in (self.train, *self.valid.values())
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()


def open_data(config: TrainingConfig | EvaluationConfig, log: Log = no_log) -> Corpus:
    """Find the reciters and their texts; raises as :func:`.corpus.open_corpus` does."""
    return open_corpus(config.data, config.text, config.manifest, config.surahs, log)


def prepare_ayat(
    corpus: Corpus, reciters: Iterable[str], config: TrainingConfig | EvaluationConfig, log: Log
) -> PreparedAyat:
    """Decode the ayat of ``reciters`` that are not in the cache yet; see :func:`.audio_cache.prepare_audio`.

    Raises:
        UserError: a reciter is not in the corpus, or the cache cannot be written.
    """
    names = list(dict.fromkeys(printable(reciter) for reciter in reciters))
    selected, skipped = corpus.select(names)
    ayat: dict[str, list[Ayah]] = {reciter: [] for reciter in names}
    for ayah in selected:
        ayat[ayah.reciter].append(ayah)
    sources = {reciter: [ayah.audio for ayah in each] for reciter, each in ayat.items()}
    cache = prepare_audio(sources, config.cache or default_cache(), config.workers, log)
    skipped = [*corpus.skipped, *skipped]
    for path, reason in cache.skipped:
        skipped.append(Skipped(str(path), reason if reason.startswith(NO_SPEECH) else f"cannot be decoded: {reason}"))
    _warn_of_identical(cache, log)
    if getattr(config, "normalize", "diacritics") != "full" and any(is_uthmani(ayah.text) for ayah in selected):
        log("text       it is in Uthmani spelling: evaluate.py --normalize full compares it with plain spelling")
    decoded = {reciter: [ayah for ayah in each if ayah.audio in cache] for reciter, each in ayat.items()}
    return PreparedAyat(decoded, cache, skipped)


def _warn_of_identical(cache: AudioCache, log: Log) -> None:
    """Warn of recordings that are byte-identical to another: at least one of them is not the ayah of its name."""
    by_digest: dict[str, list[str]] = {}
    for path, clip in cache.clips.items():
        if clip.digest:
            by_digest.setdefault(clip.digest, []).append(path)
    groups = [paths for paths in by_digest.values() if len(paths) > 1]
    for group in groups[:10]:
        log(f"warning    the same bytes in {' and '.join(printable(path) for path in group)}: check which ayah it is")
    if len(groups) > 10:
        log(f"warning    and {len(groups) - 10} more recordings that are there more than once")


@dataclass(frozen=True)
class Selection:
    """The corpus, and its reciters to train and to validate on."""

    corpus: Corpus
    train: Sequence[str]
    valid: Sequence[str]


def select_ayat(config: TrainingConfig, log: Log) -> Selection:
    """Choose the reciters of both splits, before any audio is opened.

    Raises:
        UserError: the corpus cannot be used, a reciter is not in it, or no ayah of a split has both audio and text.
    """
    corpus = open_data(config, log)
    selection = Selection(corpus, *training_reciters(config, corpus))
    both = sorted({*selection.train} & {*selection.valid})
    for reciter in both:
        log(f"warning    {reciter} is in both splits: its validation WER says nothing about a new reciter")
    for purpose, reciters in (("train", selection.train), ("validate", selection.valid)):
        ayat, skipped = corpus.select(reciters)
        if reciters and not ayat:
            surahs = "; ".join(f"{reciter} has surahs {corpus.surahs_of(reciter)}" for reciter in reciters)
            left_out = summary([*corpus.skipped, *skipped])
            raise UserError(f"nothing left to {purpose} on in {corpus.source} ({surahs}): {left_out}")
    return selection


def prepare_data(
    config: TrainingConfig, selection: Selection, model: Whisper, tokenizer: Tokenizer, log: Log
) -> TrainingData:
    """Decode recordings that are not in the cache, and make examples of the ayat that fit the model.

    Raises:
        UserError: nothing is left of a split, or the cache cannot be written.
    """
    names = dict.fromkeys([*selection.train, *selection.valid])
    prepared = prepare_ayat(selection.corpus, names, config, log)
    skipped = prepared.skipped
    examples: dict[str, list[Example]] = {}
    for reciter, ayat in prepared.ayat.items():
        examples[reciter], left_out = build_examples(
            ayat, prepared.cache, tokenizer, config.max_duration, model.dims.n_text_ctx
        )
        skipped = skipped + left_out
    maker = WindowMaker(config, tokenizer, prepared.cache, model.dims.n_text_ctx)
    train = [window for reciter in dict.fromkeys(selection.train) for window in maker.windows(examples[reciter])]
    valid = {name: evenly(examples[name], config.valid_limit) for name in selection.valid if examples[name]}
    for purpose, reciters, found in (("train", selection.train, train), ("validate", selection.valid, valid)):
        if reciters and not found:
            raise UserError(f"nothing left to {purpose} on: {summary(skipped)}")
    return TrainingData(train, valid, prepared.cache, skipped)


def evenly(examples: list[Example], limit: int | None) -> list[Example]:
    """Keep at most ``limit`` of ``examples``, evenly spaced: the first ones would all be of the first surahs."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]


def summary(skipped: Iterable[Skipped]) -> str:
    """Count the skipped files by reason, the most common first."""
    reasons = Counter(item.reason.split(":")[0] for item in skipped)
    return " · ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing was left out"
