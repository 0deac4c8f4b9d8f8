"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` does the stages of a run in order: find the ayat, load the model, decode the recordings once, log what was
decided and why, and train. The loop and the optimiser step are in :class:`.trainer.Trainer`.
"""

import math
import platform
import shlex
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch
from whisper.model import ModelDimensions, Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import size_name, tokenizer_for
from ..checkpoints.results import best_epoch, corpus_wer, results_table
from ..config import TrainingConfig
from ..data.corpus import select_ayat, summary
from ..data.encoder_cache import EncoderCache, open_encoder_cache
from ..data.prepare import TrainingData, prepare_data
from ..runtime.console import Log, format_duration, format_size, no_log, percent
from ..runtime.device import choose_device, resume_precision
from ..runtime.distributed import World, connect, disconnect, join_world
from ..runtime.errors import UserError
from ..runtime.files import check_folder, lock_folder
from ..runtime.interrupts import Interrupts
from .inputs import saved_options
from .metrics_log import History, require_tensorboard
from .optimizer import suited_lr
from .resume import (
    State,
    check_options,
    check_space,
    enter_folder,
    find_state,
    load_state,
    write_config,
    write_skipped,
)
from .setup import Setup
from .trainer import Trainer

_CHECKPOINTS_KEPT = {"last": 4, "best": 2}  # at most, with the one being written; "all" depends on the epochs


def train(config: TrainingConfig, log: Log = print) -> History:
    """Run the training that ``config`` describes, writing under ``config.out``; return its metrics.

    Raises:
        UserError: something in the data, the model or the options must be changed first.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    started = time.monotonic()
    world = join_world()
    if not world.is_main:
        log = no_log
    device, reason = own_device(config.device, world)
    connected = connect(world, device)
    log(f"device     {device}: {reason}" + (f", {world.size} processes" if world.size > 1 else ""))
    deadline = started + 3600 * config.max_time if config.max_time else math.inf
    try:
        with Interrupts() as interrupts, ExitStack() as lock:
            setup = Setup(device, world=world, interrupts=interrupts, log=log, deadline=deadline)
            trainer = prepare(config, lock, setup)
            finished = trainer.train()
    finally:
        if connected:
            disconnect()
    if finished:
        describe_results(trainer, time.monotonic() - started, log)
    else:
        log(f"time is up at step {trainer.step} of {trainer.total_steps}: continue with --resume")
    return trainer.history


def prepare(config: TrainingConfig, lock: ExitStack, setup: Setup) -> Trainer:
    """Do everything before the first step: data, model, device and precision, and loading a saved state.

    The run's folder stays locked until ``lock`` is closed.
    """
    world, log, device = setup.world, setup.log, setup.device
    if config.tensorboard:
        world.on_all(require_tensorboard)
    train_ayat, valid_ayat, skipped = world.on_main(lambda: select_ayat(config, log))

    def enter() -> bool:
        lock.enter_context(lock_folder(config.out, "training"))
        return enter_folder(config.out, config.resume, world.restarts)

    resuming = world.on_main(enter)
    state_path = world.on_main(lambda: find_state(config.out, log)) if resuming else None
    state = world.on_all(lambda: load_state(state_path)) if state_path else None
    if state:
        world.on_all(lambda: check_options(config, state, world.size))
    model = load_model(config, state, setup)
    tokenizer = world.on_all(lambda: tokenizer_for(model.dims, config.language))
    before = state["precision"] if state else None
    precision = world.on_main(lambda: resume_precision(config.precision, before, device, model))
    if before not in (None, precision.name):
        log(f"warning    the run began in {before}: from here on it is in {precision.name}, and will differ slightly")
    context = model.dims.n_text_ctx
    data = world.on_all(lambda: prepare_data(config, train_ayat, valid_ayat, skipped, tokenizer, context, log))
    trainer = Trainer(config, data, model, replace(setup, precision=precision))
    digest = world.on_main(lambda: trainer.data_digest)
    world.on_all(lambda: check_agreement(trainer.data_digest, digest))
    if state:
        world.on_all(lambda: trainer.load_state_dict(state))
    world.on_all(lambda: open_cache(trainer))

    describe_data(data, config, log)
    describe_run(trainer, log)
    if not state:
        advise(trainer, log)
    needed = world.on_main(lambda: begin_folder(trainer, new=state is None))
    free = shutil.disk_usage(check_folder(config.out)).free
    log(f"disk       at most {format_size(needed)} in {config.out}, where {format_size(free)} are free")
    return trainer


def own_device(name: str, world: World) -> tuple[torch.device, str]:
    """Choose this process's device; an error that the machine's first process also has is reported only by that one."""
    try:
        return choose_device(name, world.local_rank)
    except UserError as error:
        if world.local_rank > 0:
            error.already_reported = True
            with suppress(UserError):
                choose_device(name, 0)
                error.already_reported = False
        raise


def load_model(config: TrainingConfig, state: State | None, setup: Setup) -> Whisper:
    """Load the model to start from; to resume, only build it with the dimensions in ``state``, which has the weights.

    On each machine one process loads first, since it may have to download the model.
    """
    source, device, world = config.model, setup.device, setup.world
    if state:
        try:
            return Whisper(ModelDimensions(**state["dims"])).eval().to(device)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"the saved state is of no Whisper ({error}): start again with another --out") from error
    first = world.on_all(lambda: load_checkpoint(source, device) if world.local_rank == 0 else None)
    return world.on_all(lambda: first or load_checkpoint(source, device))


def open_cache(trainer: Trainer) -> None:
    """Open the cache of a frozen encoder, unless it is off or of no use."""
    config, encoder = trainer.config, trainer.encoder
    if not encoder or config.augment or (config.encoder_cache == "auto" and trainer.epochs == 1):
        return
    encoder.cache = open_encoder_cache(config, trainer.model, trainer.precision, trainer.device, trainer.log)
    if encoder.cache:
        encoder.cache.space //= trainer.world.size


def check_agreement(digest: str, first: str) -> None:
    """Raise a :class:`UserError` if this process has other ayat than the first: their steps would have other clips."""
    if digest != first:
        raise UserError(
            f"{platform.node()} has other recordings than the first process: "
            "the data must be the same, and as readable, on every machine"
        )


def begin_folder(trainer: Trainer, new: bool) -> int:
    """Write the files that describe the run; return the bytes it needs at most.

    Raises:
        UserError: the disk has too little space, or the folder cannot be written.
    """
    config, out = trainer.config, trainer.config.out
    parameters, trained = count_parameters(trainer.model)
    checkpoints = _CHECKPOINTS_KEPT.get(config.keep, trainer.epochs + 2)
    # fp32 weights and two moments for each trained one; checkpoints are fp16.
    needed = check_space(out, 4 * parameters + 8 * trained, 2 * parameters, checkpoints)
    if new:
        trainer.history.clear()  # rows of a run that ended before it saved a state
        write_skipped(out, trainer.data.skipped)
    if new or not saved_options(out):
        chosen = {"device": str(trainer.device), "precision": trainer.precision.name}
        write_config(config, trainer.world.size, {"chosen": chosen, "data": trainer.data.amounts()})
    return needed


def count_parameters(model: Whisper) -> tuple[int, int]:
    """Return the number of parameters, and of those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def describe_run(trainer: Trainer, log: Log) -> None:
    """Log the precision, the model and its trained part, the encoder cache, and the number and size of steps."""
    config, world, precision = trainer.config, trainer.world, trainer.precision
    parameters, trained = count_parameters(trainer.model)
    part = "all" if config.train_encoder else "the decoder; the encoder is frozen"
    if config.lora:
        part = f"adapters of rank {config.lora} in {'encoder and decoder' if config.train_encoder else 'the decoder'}"
    factors = [f"{config.batch_size} {'windows' if config.pack else 'clips'}"]
    if config.accumulate > 1:
        factors.append(f"{config.accumulate} micro-batches")
    if world.size > 1:
        factors.append(f"{world.size} processes")
    done = f"; {trainer.step} are done" if trainer.step else ""
    log(f"precision  {precision.name}: {precision.reason}")
    log(f"model      {config.model}: {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained ({part})")
    if trainer.encoder and (cache := trainer.encoder.cache):
        clips = len(trainer.data.train) + sum(map(len, trainer.data.valid.values()))
        log(f"encoder    {describe_cache(cache, clips, world.size)}")
    elif trainer.encoder and config.augment:
        log("encoder    runs in every epoch: --augment changes each clip every time")
    log(f"steps      {trainer.steps_per_epoch} an epoch of {' × '.join(factors)}, {trainer.total_steps} in all{done}")


def advise(trainer: Trainer, log: Log) -> None:
    """Warn if the learning rate is far too high for the hours of audio: the model would end worse than it began.

    This does not apply to models of no OpenAI size, which are not pretrained, nor to adapters, which need higher rates.
    """
    config = trainer.config
    hours = trainer.data.hours
    lr = suited_lr(hours)
    if size_name(trainer.model.dims) is None or config.lora or config.lr <= 2 * lr:
        return
    warmup = max(5, trainer.total_steps // 20)
    log(
        f"warning    --lr {config.lr:g} with {config.warmup_steps} steps of warmup suits 100 hours; on {hours:.1f} h "
        f"({trainer.total_steps} steps) it makes a model worse: use --lr {lr:.1g} --warmup-steps {warmup}"
    )


def describe_cache(cache: EncoderCache, clips: int, processes: int) -> str:
    """Return the disk space that the encoder cache takes, and how much of it is filled."""
    size = f"{format_size(cache.bytes)} a clip, {format_size(clips * cache.bytes)} in all, in {cache.folder}"
    cached = f"; {len(cache.keys)} clips are there" if cache.keys else ""
    capacity = len(cache.keys) + cache.space * processes
    limit = "" if capacity >= clips else f"; there is room for {capacity} of {clips} clips (--encoder-cache)"
    return f"each clip is encoded once: {size}{cached}{limit}"


def describe_data(data: TrainingData, config: TrainingConfig, log: Log) -> None:
    """Log the ayat and hours of each reciter, and what was left out."""
    for name, reciters in data.amounts().items():
        if len(reciters) > 10:
            each = reciters.values()
            total = {key: sum(amount[key] for amount in each) for key in ("ayat", "windows", "hours")}
            reciters = {f"{len(reciters)} reciters": total}
        for reciter, amount in reciters.items():
            joined = f" in {amount['windows']} windows" if amount["windows"] < amount["ayat"] else ""
            log(f"{name:<10} {reciter}: {amount['ayat']} ayat{joined}, {amount['hours']:.2f} h")
    if not data.valid:
        log("valid      no reciter: WER is not measured, and best.pt is the latest epoch")
    if data.cache.damaged:
        log(f"damaged    {len(data.cache.damaged)} files have damaged frames; they are used")
    if data.cache.mended:
        log(f"mended     {len(data.cache.mended)} files: channels that cancelled out, or samples of another scale")
    listed = f" (listed in {config.out / 'skipped.csv'})" if data.skipped else ""
    log(f"left out   {summary(data.skipped)}{listed}")


def describe_results(trainer: Trainer, seconds: float, log: Log) -> None:
    """Log the table of results, the duration, the paths of the results, and the next command to run."""
    config, out, history = trainer.config, trainer.config.out, trainer.history
    skipped = sum(row["skipped"] for row in history.rows if row["event"] == "train")
    if skipped:
        log(f"{skipped} of {trainer.step} steps were skipped: their loss or gradient was not finite")
    log(f"\n{results_table(history.rows)}")
    best = best_epoch(history.rows)
    rate = "the last epoch"
    if best is not None:
        wer = corpus_wer(history.valid()[best].values())
        rate = f"epoch {best}, WER {percent(wer)}"
    log(f"done in    {format_duration(seconds)}")
    log(f"table      {out / 'results.md'}")
    if (out / "loss.png").exists():
        log(f"picture    {out / 'loss.png'}")
    log(f"best       {out / 'best.pt'} ({rate})")
    command = ["python", "evaluate.py", str(out / "best.pt")]
    for name in ("data", "text", "manifest") if config.manifest is None else ("manifest",):
        value = getattr(config, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    reciters = trainer.data.valid or dict.fromkeys(example.reciter for example in trainer.data.train)
    log(f"next       {shlex.join([*command, '--reciters', *reciters])}")
