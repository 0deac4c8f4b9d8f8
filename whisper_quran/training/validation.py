"""Validation: the loss, and WER and CER by autoregressive decoding.

Experiment 2A's training-time WER was teacher-forced (the argmax under the reference's own prefix), which flatters a
model. Here each ayah is decoded from its audio alone; one encoder pass serves both the loss and the decoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple

import torch

from ..data.audio_cache import AudioCache
from ..data.batches import make_batch, prefetch, split
from ..data.features import AudioFeatures, FrozenEncoder, audio_mask
from ..data.prepare import Example
from ..data.text import count_diacritics, normalize
from ..decoding.batch_decoder import BatchDecoder
from ..evaluation.word_errors import ErrorCounts, count_diacritic_errors, count_errors
from ..runtime.console import progress_bar
from ..runtime.device import Precision, World
from .loss import Objective
from .metrics_log import Row


@torch.no_grad()
def validate(
    objective: Objective,
    encoder: FrozenEncoder,
    examples: Sequence[Example],
    cache: AudioCache,
    language: str,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    world: World,
) -> Row:
    """Measure ``objective.whisper`` on the ayat of one reciter; ``encoder`` holds its current encoder.

    Return the loss (the mean over target tokens, in nats), error rates and counts: the columns of metrics.jsonl.

    Each process takes a shard of the ayat, and all processes return the totals. Texts are compared without diacritics,
    as in Experiment 2A; for vocalised texts diacritic errors are counted too. Ayat are sorted by length, so that the
    texts of a batch end at about the same step.
    """
    ordered = sorted(examples, key=lambda example: example.samples)[world.rank :: world.size]
    groups, pin = split(ordered, batch_size), device.type == "cuda"
    batches = prefetch(make_batch(group, cache, pin) for group in groups)
    loss, target_tokens, errors = 0.0, 0.0, ErrorCounts()

    def encoded() -> Iterator[AudioFeatures]:
        nonlocal loss, target_tokens
        for batch in batches:
            batch = batch.to(device)
            features = encoder(batch.audio, batch.contexts, batch.clips)
            mask = audio_mask(batch.contexts, device)
            with precision.autocast(device):
                loss += objective.loss(features.values, batch.tokens, batch.positions, batch.targets, mask).item()
            target_tokens += batch.target_tokens
            yield features

    # Twice the slots of a batch: the next batch is added as soon as half of the clips have ended.
    decoder = BatchDecoder(objective.whisper, 2 * batch_size, language=language, dtype=precision.dtype, stop_loops=True)
    with progress_bar(len(ordered), "ayah", "validating", disable=not world.is_main) as bar:
        for clip in decoder.decode(encoded()):
            reference, text = ordered[clip.index].ayah.text, clip.result.text
            errors += count_errors(normalize(reference, "diacritics"), normalize(text, "diacritics"))
            if count_diacritics(reference):
                errors += count_diacritic_errors(reference, text)
            bar.update()
            bar.set_postfix(wer=f"{100 * errors.wer:.1f}%", refresh=False)
    loss, target_tokens, *counts = world.sum([loss, target_tokens, *astuple(errors)], device)
    errors = ErrorCounts(*map(int, counts))
    return {
        "loss": loss / target_tokens,
        "wer": errors.wer,
        "cer": errors.cer,
        "ayat": len(examples),
        "words": errors.words,
        "word_errors": errors.substitutions + errors.deletions + errors.insertions,
        "characters": errors.characters,
        "character_errors": errors.character_errors,
        "der": errors.der,
        "letters": errors.letters,
        "diacritic_errors": errors.diacritic_errors,
    }
