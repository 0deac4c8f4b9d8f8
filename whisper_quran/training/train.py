"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` reads from top to bottom as a run goes: find the ayat, load the model, decode the recordings once, log what
was decided and why, and train. The loop and the arithmetic of a step are :class:`.trainer.Trainer`.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import tokenizer_for
from ..config import TrainingConfig
from ..data.batches import Example
from ..data.prepare import TrainingData, prepare_data, select_ayat, summary
from ..runtime.console import Log, format_size, no_log
from ..runtime.device import choose_device, resume_precision
from ..runtime.distributed import World, connect, disconnect, join_world
from ..runtime.errors import UserError
from ..runtime.interrupts import Interrupts
from .metrics_log import History, require_tensorboard
from .resume import acquire, check_space, find_state, load_state, write_config, write_skipped
from .setup import Setup
from .trainer import Trainer

_CHECKPOINTS_KEPT = {"last": 4, "best": 2}  # at most, with the one being written; "all" depends on the epochs


def train(config: TrainingConfig, log: Log = print) -> History:
    """Run the training that ``config`` describes, writing under ``config.out``; return what was measured.

    Raises:
        UserError: something in the data, the model or the options must be changed first.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    deadline = time.monotonic() + 3600 * config.max_time if config.max_time else math.inf
    world = join_world()
    log = log if world.is_main else no_log
    device, reason = choose_device(config.device, world.local_rank)
    connect(world, device)
    with Interrupts() as interrupts:
        setup = Setup(device, world=world, interrupts=interrupts, log=log, deadline=deadline)
        try:
            trainer = prepare(config, setup, device_reason=reason)
        except UserError as error:
            error.already_reported = not world.is_main  # up to here all processes make the same mistakes
            raise
        trainer.train()
    disconnect()
    return trainer.history


def prepare(config: TrainingConfig, setup: Setup, device_reason: str) -> Trainer:
    """Do all that comes before the first step: data, model, decisions, and the state to go on from."""
    world, log = setup.world, setup.log
    if config.tensorboard:
        require_tensorboard()
    selection = world.on_main(lambda: select_ayat(config, log))
    resuming = world.on_main(lambda: acquire(config, world))
    state = load_state(world.on_main(lambda: find_state(config.out, log))) if resuming else None
    model = load_model(config.model, setup.device, world)
    tokenizer = tokenizer_for(model.dims, config.language)
    before = state["precision"] if state else None
    precision = world.on_main(lambda: resume_precision(config.precision, before, setup.device, model))
    if before not in (None, precision.name):
        log(f"warning    the run began in {before}: from here on it is in {precision.name}, and will differ slightly")
    data = prepare_data(config, selection, model, tokenizer, log)
    check_agreement(data.digest(), world, setup.device)

    trainer = Trainer(config, data, model, replace(setup, precision=precision))
    if state:
        trainer.load_state_dict(state)
    log(f"device     {setup.device}: {device_reason}" + (f", {world.size} processes" if world.size > 1 else ""))
    log(f"precision  {precision.name}: {precision.reason}")
    describe_model(trainer, log)
    describe_data(data, config.out, log)
    describe_steps(trainer, log)
    needed = world.on_main(lambda: space_needed(trainer))
    log(f"disk       at most {format_size(needed)} in {config.out}")
    if world.is_main and not state:
        trainer.history.clear()  # of a run that ended before it saved anything
        write_config(config, world.size, {"device": str(setup.device), "precision": precision.name})
        write_skipped(config.out, data.skipped)
    return trainer


def load_model(source: str, device: torch.device, world: World) -> Whisper:
    """Load the model to start from; on each machine one process is first, since it may have to download it."""
    model = load_checkpoint(source, device) if world.local_rank == 0 else None
    world.sum([0.0], device)  # the others wait here
    return model or load_checkpoint(source, device)


def check_agreement(digest: str, world: World, device: torch.device) -> None:
    """Raise in every process if they do not all have the same ayat: they would not agree on the clips of a step."""
    differs = digest != world.on_main(lambda: digest)
    (differing,) = world.sum([float(differs)], device)
    if differing:
        raise UserError(
            f"{differing:.0f} of {world.size} processes found other recordings than the first: "
            "the data must be the same, and as readable, on every machine"
        )


def space_needed(trainer: Trainer) -> int:
    """Return the bytes that the run will write at most; raise a :class:`UserError` if there is less room."""
    parameters, trained = count_parameters(trainer.model)
    checkpoints = _CHECKPOINTS_KEPT.get(trainer.config.keep, trainer.epochs + 2)
    # fp32 weights and two averages for each trained one; checkpoints are fp16.
    return check_space(trainer.config.out, 4 * parameters + 8 * trained, 2 * parameters, checkpoints)


def count_parameters(model: Whisper) -> tuple[int, int]:
    """Return how many parameters the model has, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def describe_model(trainer: Trainer, log: Log) -> None:
    """Log the model's size and which part of it is trained."""
    parameters, trained = count_parameters(trainer.model)
    part = "all" if trainer.config.train_encoder else "the decoder; the encoder is frozen"
    sizes = f"{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained"
    log(f"model      {trainer.config.model}: {sizes} ({part})")


def describe_steps(trainer: Trainer, log: Log) -> None:
    """Log how many steps there are, of what, and how many are done."""
    config, world = trainer.config, trainer.world
    factors = [f"{config.batch_size} clips"]
    if config.accumulate > 1:
        factors.append(f"{config.accumulate} micro-batches")
    if world.size > 1:
        factors.append(f"{world.size} processes")
    done = f"; {trainer.step} are done" if trainer.step else ""
    log(f"steps      {trainer.steps_per_epoch} an epoch of {' × '.join(factors)}, {trainer.total_steps} in all{done}")


def describe_data(data: TrainingData, out: Path, log: Log) -> None:
    """Log how many ayat and hours of each reciter there are, and what was left out."""
    train: dict[str, list[Example]] = {}
    for example in data.train:
        train.setdefault(example.reciter, []).append(example)
    for name, reciters in (("train", train), ("valid", data.valid)):
        if len(reciters) > 10:
            everyone = [example for examples in reciters.values() for example in examples]
            reciters = {f"{len(reciters)} reciters": everyone}
        for reciter, examples in reciters.items():
            hours = sum(example.seconds for example in examples) / 3600
            log(f"{name:<10} {reciter}: {len(examples)} ayat, {hours:.2f} h")
    if not data.valid:
        log("valid      no reciter: WER is not measured, and best.pt is the latest epoch")
    if data.cache.damaged:
        log(f"damaged    {len(data.cache.damaged)} files have damaged frames; they are used")
    if data.cache.mended:
        log(f"mended     {len(data.cache.mended)} files: channels that cancelled out, or samples of another scale")
    listed = f" (listed in {out / 'skipped.csv'})" if data.skipped else ""
    log(f"left out   {summary(data.skipped)}{listed}")
