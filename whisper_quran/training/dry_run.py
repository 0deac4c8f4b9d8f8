"""``train.py --dry-run``: estimate how long a run would take, from a few of its steps in memory.

Everything before the first step is the code of a real run (:func:`.train.prepare`). The steps are real too, on the
run's own clips, but the model and the optimiser that they change are discarded.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import named_dims
from ..checkpoints.names import WHISPER_NAMES
from ..data.batches import Batch, Example
from ..data.encoder_cache import FrozenEncoder, Known
from ..data.prepare import evenly
from ..runtime.console import Log, format_duration
from ..runtime.errors import UserError
from .trainer import Trainer

VALIDATED = 8  # clips, on a CPU; a GPU takes them by the batch
LONG = 5.0  # seconds; a longer first call is not repeated, as its one-off costs hardly matter
CACHE_SAMPLE = 64  # clips of each split that are looked up in the encoder cache


@dataclass(frozen=True)
class Seconds:
    """Seconds per clip: to encode it, to train on it and to validate on it, the last two without encoding."""

    encode: float
    train: float
    validate: float


def load_without_download(source: str, log: Log) -> Whisper:
    """Load a model; a Whisper that would have to be downloaded gets random weights.

    Raises:
        UserError: see :func:`..checkpoints.checkpoint.load_checkpoint`.
    """
    if source not in WHISPER_NAMES:
        return load_checkpoint(source)
    file = Path(whisper._MODELS[source]).name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper"
    try:
        return load_checkpoint(cache / file)
    except UserError:
        log(f"download   {source} is not in {cache}: a run would download it; random weights stand for it here")
    size = file.removesuffix(".pt")
    model = Whisper(next(dims for name, dims in named_dims().items() if size in name.split(" or ")))
    torch.nn.init.zeros_(model.decoder.positional_embedding)  # Whisper leaves it uninitialised
    return model.eval()


def estimate(trainer: Trainer) -> None:
    """Log how long an epoch and the rest of the run would take, and what the estimate is based on."""
    log, config = trainer.log, trainer.config
    if trainer.step:
        log(f"resume     after step {trainer.step}, in epoch {trainer.epoch}, with what {config.out} holds")
    elif config.resume:
        log(f"resume     nothing is saved in {config.out}: the run starts")
    epochs = trainer.epochs - trainer.epoch
    steps = trainer.total_steps - trainer.step
    validations = epochs + (trainer.step == 0 and not config.no_vanilla) + (config.average is not None)
    if not epochs:
        log("dry run    all epochs are done; nothing was written")
        return
    train, valid = trainer.data.train, [example for each in trainer.data.valid.values() for example in each]
    clips = steps / trainer.steps_per_epoch * len(train)
    encodings = encodings_to_do(trainer, clips, validations * len(valid))
    seconds = measure(trainer, valid)
    if trainer.encoder:
        trainer.encoder.close()

    encoding, training = encodings * seconds.encode, clips * seconds.train
    validating = len(valid) * seconds.validate
    total = encoding + training + validations * validating
    log(
        f"epoch      about {format_duration(len(train) * seconds.train)} of training and "
        f"{format_duration(validating)} of validation"
        + (f"; in all epochs together {format_duration(encoding)} more, for the frozen encoder" if encoding else "")
    )
    sittings = (
        f", {math.ceil(total / 3600 / config.max_time)} sittings of {config.max_time:g} h" if config.max_time else ""
    )
    log(f"whole run  about {format_duration(total)}: {steps} steps and {validations} validations{sittings}")
    log("estimated  from a few steps and ayat in memory, without saving; other work on the machine slows it down")
    if undecoded := trainer.data.undecoded:
        log(f"           {undecoded} recordings are not decoded: lengths are from headers, and some may be of no use")
    log("dry run    nothing was written")


def encodings_to_do(trainer: Trainer, train_clips: float, valid_clips: float) -> float:
    """Estimate how many clips a frozen encoder would encode; 0 if it is trained.

    ``train_clips`` and ``valid_clips`` count all passes. A clip is encoded once if the cache has room for its outputs.
    The share that the cache has already is estimated from a sample of each split.
    """
    if not trainer.encoder:
        return 0
    valid = [example for each in trainer.data.valid.values() for example in each]
    if trainer.augmentation:
        train_clips = 0  # augmented clips are never cached: a step's time includes encoding them
    cache = trainer.encoder.cache
    if cache is None:
        return train_clips + valid_clips
    once = every_time = 0.0
    for examples, clips in ((trainer.data.train, train_clips), (valid, valid_clips)):
        missing = 1 - share_kept(trainer, examples)
        once += min(missing * len(examples), clips)
        every_time += missing * clips
    room = cache.room * trainer.world.size
    uncached = max(0.0, once - room) / once if once else 0.0
    return once + uncached * (every_time - once)


def share_kept(trainer: Trainer, examples: list[Example]) -> float:
    """Estimate, from a sample, the share of ``examples`` whose encoder outputs are cached."""
    sample, recordings = evenly(examples, CACHE_SAMPLE), trainer.data.cache
    cache = trainer.encoder.cache if trainer.encoder else None
    if not cache or not cache.keys or not sample:
        return 0.0
    decoded = [each for each in sample if all(recordings.is_decoded(ayah.audio) for ayah in each.parts)]
    return sum(cache.holds(example.audio(recordings)) for example in decoded) / len(sample)


def measure(trainer: Trainer, valid: list[Example]) -> Seconds:
    """Validate and train on a few clips; return the seconds per clip, with all processes working."""
    trainer.step = trainer.epoch = 0  # at the start, where there are steps to take: a finished epoch has none
    encoder = trainer.encoder
    if encoder and encoder.cache:
        encoder.cache.room = 0  # read the cache, but write nothing
    step = next(trainer.steps())
    batches = [batch.to(trainer.device) for batch in (*step.batches[:1], *step.batches[1:][-1:])]
    if encoder:
        batches = [replace(batch, known=None) for batch in batches]
    clips = max(1, sum(map(len, batches)))
    encode = (
        seconds_of(lambda: [encode_batch(encoder, batch, trainer) for batch in batches], trainer) if encoder else 0.0
    )
    validate = validation_seconds(trainer, valid, encode / clips)

    trainer.objective.train()
    if encoder and not trainer.augmentation:
        known = [Known((), tuple(range(len(batch))), encode_batch(encoder, batch, trainer)) for batch in batches]
        batches = [replace(batch, known=each) for batch, each in zip(batches, known, strict=True)]
    sample_step = replace(step, batches=batches)
    train = seconds_of(lambda: trainer.step_within_memory(sample_step), trainer)
    processes = trainer.world.size
    return Seconds(encode / clips / processes, train / clips / processes, validate / processes)


def encode_batch(encoder: FrozenEncoder, batch: Batch, trainer: Trainer) -> Tensor:
    return torch.cat([encoder(audio) for audio in batch.audio.split(trainer.micro_batch)])


def validation_seconds(trainer: Trainer, valid: list[Example], encode: float) -> float:
    """Return the seconds per clip of validation on this process, less ``encode`` for each clip the encoder encoded."""
    size = trainer.world.size
    sample = evenly(valid, size * (2 * trainer.valid_batch if trainer.device.type == "cuda" else VALIDATED))
    if not sample:
        return 0.0
    trainer.objective.eval()
    encoder = trainer.encoder
    encodings = 0

    def validate() -> None:
        nonlocal encodings
        before = encoder.encoded if encoder else 0
        trainer.measure(sample)
        encodings = encoder.encoded - before if encoder else 0

    seconds = seconds_of(validate, trainer)
    return max(0.0, seconds - encodings * encode) / math.ceil(len(sample) / size)


def seconds_of(work: Callable[[], object], trainer: Trainer) -> float:
    """Time the second call of ``work``, or only the first if that is long: a first call has one-off costs."""
    seconds = 0.0
    for _ in range(2):
        if seconds > LONG:
            break
        start = time.perf_counter()
        work()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds = time.perf_counter() - start
    return seconds
