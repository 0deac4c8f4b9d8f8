"""What a run trains and validates on: chosen from the corpus, decoded once, fitted to the model, and accounted for."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from ..config import TrainingConfig
from ..runtime.console import Log
from ..runtime.errors import UserError
from .audio_cache import AudioCache, default_cache, prepare_audio
from .batches import Example, build_examples
from .corpus import EXPERIMENT_2A_TRAIN, EXPERIMENT_2A_VALID, Ayah, Corpus, Skipped, open_corpus


@dataclass(frozen=True)
class Selection:
    """The ayat of both splits before any audio was opened, and what was left out so far."""

    train: list[Ayah]
    valid: list[Ayah]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Data:
    """The examples of both splits (validation by reciter), their recordings, and all that was left out."""

    train: list[Example]
    valid: dict[str, list[Example]]
    recordings: AudioCache
    skipped: list[Skipped]

    def digest(self) -> str:
        """What the numbers of a run depend on: which ayat, how long, with which text, and in which order."""
        examples = [*self.train, *(example for examples in self.valid.values() for example in examples)]
        content = repr([(e.reciter, [a.audio.name for a in e.parts], e.samples, e.tokens) for e in examples])
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def select_ayat(config: TrainingConfig, log: Log) -> Selection:
    """Find the ayat of the training and the validation reciters.

    Raises:
        UserError: the corpus cannot be used, a reciter is not in it, or no ayah has both audio and text.
    """
    corpus = open_corpus(config.data, config.text, config.manifest, config.surahs)
    train_reciters, valid_reciters = _reciters(config, corpus)
    for reciter in sorted(set(train_reciters) & set(valid_reciters)):
        log(f"warning    {reciter} is in both splits: its validation WER says nothing about a new reciter")
    train, skipped = corpus.select(train_reciters)
    valid, valid_skipped = corpus.select(valid_reciters)
    skipped = list(dict.fromkeys([*corpus.skipped, *skipped, *valid_skipped]))
    if not train:
        raise UserError(f"nothing left to train on in {corpus.source}: {summary(skipped)}")
    if valid_reciters and not valid:
        raise UserError(f"nothing left to validate on in {corpus.source}: {summary(skipped)}")
    return Selection(train, valid, skipped)


def _reciters(config: TrainingConfig, corpus: Corpus) -> tuple[Sequence[str], Sequence[str]]:
    """The reciters of each split, where a manifest was given without saying which: all but those that validate."""
    train, valid = config.train_reciters, config.valid_reciters
    if valid is None:
        valid = EXPERIMENT_2A_VALID if config.manifest is None else ()
    if train is None:
        train = EXPERIMENT_2A_TRAIN if config.manifest is None else [r for r in corpus.reciters if r not in valid]
    if not train:
        raise UserError(f"no reciter to train on: name some of {', '.join(corpus.reciters)} with --train-reciters")
    return train, valid


def prepare_data(
    config: TrainingConfig, selection: Selection, model: Whisper, tokenizer: Tokenizer, quiet: bool = False
) -> Data:
    """Decode what is not in the cache yet, and keep the ayat that fit the model.

    Raises:
        UserError: nothing is left of a split, or the cache cannot be written.
    """
    sources: dict[str, list[Path]] = {}
    for ayah in dict.fromkeys([*selection.train, *selection.valid]):
        sources.setdefault(ayah.reciter, []).append(ayah.audio)
    recordings = prepare_audio(sources, config.cache or default_cache(), config.workers, quiet=quiet)
    skipped = [*selection.skipped]
    skipped += [Skipped(str(path), f"cannot be decoded: {reason}") for path, reason in recordings.skipped]

    def fit(ayat: Iterable[Ayah]) -> list[Example]:
        examples, left_out = build_examples(ayat, recordings, tokenizer, config.max_duration, model.dims.n_text_ctx)
        skipped.extend(left_out)
        return examples

    train = fit(selection.train)
    valid: dict[str, list[Example]] = {}
    for example in fit(selection.valid):
        valid.setdefault(example.reciter, []).append(example)
    skipped = list(dict.fromkeys(skipped))
    if not train:
        raise UserError(f"nothing left to train on: {summary(skipped)}")
    if selection.valid and not valid:
        raise UserError(f"nothing left to validate on: {summary(skipped)}")
    valid = {reciter: evenly(examples, config.valid_limit) for reciter, examples in valid.items()}
    return Data(train, valid, recordings, skipped)


def evenly(examples: list[Example], limit: int | None) -> list[Example]:
    """At most ``limit`` of ``examples``, spread evenly: the first ones would all be of the first surahs."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]


def summary(skipped: Iterable[Skipped]) -> str:
    """How many were left out for which reason, the commonest first."""
    reasons = Counter(item.reason.split(":")[0] for item in skipped)
    return " · ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing was left out"
