"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` does the stages of a run in order: find the ayat, enter the folder, load the model, decode the recordings
once, log what was decided and why, and train. The loop and the optimiser step are in :class:`.trainer.Trainer`.
"""

import math
import platform
import shlex
import time
from contextlib import ExitStack
from dataclasses import fields

import torch
from whisper.model import ModelDimensions, Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import size_name, tokenizer_for
from ..config import EvaluationConfig, TrainingConfig
from ..data.prepare import TrainingData, prepare_data
from ..data.tables import summary
from ..runtime.console import Log, format_duration, no_log, percent
from ..runtime.device import World, choose_device, choose_precision, connect, join_world
from ..runtime.errors import Interrupts, UserError
from . import check_inputs, saved_options
from .metrics_log import History, best_epoch, corpus_wer, require_tensorboard, results_table
from .optimizer import choose_rate, count_steps
from .resume import State, check_space, count_parameters, enter_folder, load_state, write_description
from .trainer import Trainer

_NOT_EVALUATED_WITH = {"out", "batch_size"}  # of the options that evaluate.py has too


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
    try:
        device, reason = choose_device(config.device, world.local_rank)
    except UserError as error:  # reported by the first process of a machine, or the first that has no GPU
        error.already_reported = 0 < world.local_rank != torch.cuda.device_count()
        raise
    connected = connect(world, device)
    log(f"device     {device}: {reason}" + (f", {world.size} processes" if world.size > 1 else ""))
    try:
        with Interrupts() as interrupts, ExitStack() as lock:
            trainer = prepare(config, device, world, lock, interrupts, log)
            if config.max_time is not None:
                trainer.deadline = started + 3600 * config.max_time
            finished = trainer.train()
    except torch.OutOfMemoryError as error:  # outside the steps and validations that can take fewer clips at a time
        raise UserError(f"{device} has too little memory ({error}): choose a smaller --model") from None
    if connected:  # not after an error: gloo may abort if another process has left, see run_command
        torch.distributed.destroy_process_group()
    if finished:
        log_results(trainer, time.monotonic() - started, log)
    else:
        log(f"time is up at step {trainer.step} of {trainer.total_steps}: continue with --resume")
    return trainer.history


def prepare(
    config: TrainingConfig, device: torch.device, world: World, lock: ExitStack, interrupts: Interrupts, log: Log
) -> Trainer:
    """Do everything before the first step; the run's folder stays locked until ``lock`` is closed."""
    if config.tensorboard:
        world.on_all(require_tensorboard)
    ayat, state_path = world.on_main(lambda: (check_inputs(config, log), enter_folder(config, lock, log)))
    state: State | None = None
    if state_path:
        state, config = world.on_all(lambda: load_state(state_path, config, world.size))
    model = load_model(config.model, state, device, world)
    before = state["precision"] if state else None
    precision = world.on_main(lambda: choose_precision(config.precision, device, model, before))

    def make_trainer() -> Trainer:
        tokenizer = tokenizer_for(model.dims, config.language)
        data = prepare_data(config, *ayat, tokenizer, model.dims.n_text_ctx, log)
        log_data(data, config, log)
        _, total_steps = count_steps(config, len(data.train), world.size)
        rated = choose_rate(config, data.hours, total_steps, size_name(model.dims) is not None, log)
        trainer = Trainer(rated, data, model, device, precision, world, interrupts, log)
        if state:
            trainer.load_state_dict(state)
        return trainer

    trainer = world.on_all(make_trainer)
    digest = world.on_main(lambda: trainer.data.digest)
    world.on_all(lambda: check_agreement(trainer.data.digest, digest))
    log_plan(trainer, before, log)
    world.on_main(lambda: begin(trainer, state, log))
    return trainer


def load_model(source: str, state: State | None, device: torch.device, world: World) -> Whisper:
    """Load the model to start from; to resume, only build it with the dimensions in ``state``, which has the weights.

    On each machine one process loads first, since it may have to download the model.
    """
    if state:
        return Whisper(ModelDimensions(**state["dims"])).eval().to(device)
    first = world.on_all(lambda: load_checkpoint(source, device) if world.local_rank == 0 else None)
    return world.on_all(lambda: first or load_checkpoint(source, device))


def check_agreement(digest: str, first: str) -> None:
    """Raise a :class:`UserError` if this process has other ayat than the first: their steps would have other clips."""
    if digest != first:
        raise UserError(
            f"{platform.node()} has other recordings than the first process: "
            "the data must be the same, and as readable, on every machine"
        )


def begin(trainer: Trainer, state: State | None, log: Log) -> None:
    """Check the disk space, and write the files that describe a new run, or one that has lost its ``config.json``."""
    config, data = trainer.config, trainer.data
    check_space(config, trainer.model, trainer.epochs, log)
    if state is None:
        trainer.history.clear()  # rows of a run that ended before it saved a state
    if state is None or not saved_options(config.out):
        chosen = {"device": str(trainer.device), "precision": trainer.precision.name}
        found = {"global_batch": trainer.clips_per_step, "chosen": chosen, "data": data.amounts()}
        write_description(config, data.skipped, found)


def log_data(data: TrainingData, config: TrainingConfig, log: Log) -> None:
    """Log the ayat and hours of each reciter, and what was left out."""
    for split, reciters in data.amounts().items():
        if len(reciters) > 10:
            total = {name: sum(amount[name] for amount in reciters.values()) for name in ("ayat", "hours")}
            reciters = {f"{len(reciters)} reciters": total}
        for reciter, amount in reciters.items():
            log(f"{split:<10} {reciter}: {amount['ayat']} ayat, {amount['hours']:.2f} h")
    if not data.valid:
        log("valid      no reciter: WER is not measured, and best.pt is the latest epoch")
    if corrected := {*data.cache.damaged, *data.cache.mended}:
        log(f"corrected  {len(corrected)} files: damaged, or channels that cancelled out; they are used")
    listed = f" (listed in {config.out / 'skipped.csv'})" if data.skipped else ""
    log(f"left out   {summary(data.skipped)}{listed}")


def log_plan(trainer: Trainer, precision_before: str | None, log: Log) -> None:
    """Log the precision, the model and its trained part, and the number and size of steps."""
    config, precision = trainer.config, trainer.precision
    log(f"precision  {precision.name}: {precision.reason}")
    if precision_before not in (None, precision.name):
        log(f"warning    the run began in {precision_before}: from here on it will differ slightly")
    part = "all" if config.train_encoder else "the decoder; the encoder is frozen"
    if config.lora:
        part = f"adapters of rank {config.lora} in {'encoder and decoder' if config.train_encoder else 'the decoder'}"
    parameters, trained = count_parameters(trainer.model)
    log(f"model      {config.model}: {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained ({part})")
    factors = [f"{config.batch_size} clips"]
    if config.accumulate > 1:
        factors.append(f"{config.accumulate} micro-batches")
    if trainer.world.size > 1:
        factors.append(f"{trainer.world.size} processes")
    done = f"; {trainer.step} are done" if trainer.step else ""
    log(f"steps      {trainer.steps_per_epoch} an epoch of {' × '.join(factors)}, {trainer.total_steps} in all{done}")


def log_results(trainer: Trainer, seconds: float, log: Log) -> None:
    """Log the table of results, the duration, the best epoch, and the next command to run."""
    config, out, history = trainer.config, trainer.config.out, trainer.history
    skipped = sum(row["skipped"] for row in history.rows if row["event"] == "train")
    if skipped:
        log(f"{skipped} of {trainer.step} steps were skipped: their loss or gradient was not finite")
    log(f"\n{results_table(history.rows)}")
    log(f"done in    {format_duration(seconds)}; the results are in {out}")
    wer = {epoch: corpus_wer(rows.values()) for epoch, rows in history.valid().items()}
    best = best_epoch(history.rows)
    rate = "the last epoch" if best is None else f"epoch {best}, WER {percent(wer[best])}"
    log(f"best       {out / 'best.pt'} ({rate})")
    if best is not None and wer[best] >= wer.get(-1, math.inf):
        log(
            f"warning    no epoch was better than the untouched model (WER {percent(wer[-1])}): train on more audio or "
            "for more epochs, or try a lower --lr"
        )
    command = ["python", "evaluate.py", str(out / "best.pt")]
    shared = {field.name for field in fields(EvaluationConfig)} - _NOT_EVALUATED_WITH
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in shared and value != field.default:
            command += [f"--{field.name.replace('_', '-')}", str(value)]
    reciters = trainer.data.valid or dict.fromkeys(example.ayah.reciter for example in trainer.data.train)
    log(f"next       {shlex.join([*command, '--reciters', *reciters])}")
