"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` reads from top to bottom as a run goes: find the ayat, load the model, decode the recordings once, say what
was decided and why, and train. The loop is :class:`.trainer.Run`, and the arithmetic of a step is :mod:`.step`.
"""

import math
import time
from collections.abc import Callable

import torch
from whisper.model import Whisper

from ..checkpoints.checkpoint import load_checkpoint
from ..checkpoints.dims import tokenizer_for
from ..config import TrainingConfig
from ..data.prepare import describe_data, prepare_data, select_ayat
from ..runtime.device import choose_device, resume_precision
from ..runtime.distributed import World, connect, disconnect, join_world
from ..runtime.errors import UserError
from ..runtime.interrupts import Interrupts
from .metrics_log import History, require_tensorboard
from .run_folder import check_space, claim, write_config, write_skipped
from .state import find_state, load_state
from .trainer import Run

Say = Callable[[str], None]


def train(config: TrainingConfig, say: Say = print) -> History:
    """Run the training that ``config`` describes, writing under ``config.out``; return what was measured.

    Raises:
        UserError: something in the data, the model or the options must be changed first.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    started = time.monotonic()
    world = join_world()
    device, device_reason = choose_device(config.device, world.local_rank)
    connect(world, device)
    with Interrupts() as interrupts:
        try:
            run = prepare_run(config, world, device, device_reason, interrupts, say if world.is_main else _nothing)
        except UserError as error:
            error.told = not world.is_main  # up to here all processes do the same, and make the same mistakes
            raise
        run.deadline = started + 3600 * config.max_time if config.max_time else math.inf
        run.train()
    disconnect()
    return run.history


def prepare_run(
    config: TrainingConfig, world: World, device: torch.device, device_reason: str, interrupts: Interrupts, say: Say
) -> Run:
    """All that comes before the first step: data, model, decisions, and the state to go on from."""
    if config.tensorboard:
        require_tensorboard()
    selection = world.on_main(lambda: select_ayat(config, say))
    resuming = world.on_main(lambda: claim(config, world))
    state = load_state(world.on_main(lambda: find_state(config.out, say))) if resuming else None
    model = load_model(config.model, device, world)
    tokenizer = tokenizer_for(model.dims, config.language)
    before = state["precision"] if state else None
    precision = world.on_main(lambda: resume_precision(config.precision, before, device, model))
    if before not in (None, precision.name):
        say(f"warning    the run began in {before}: from here on it is in {precision.name}, and will differ slightly")
    data = prepare_data(config, selection, model, tokenizer, quiet=not world.is_main)
    check_agreement(data.digest(), world, device)

    run = Run(config, data, model, precision, device, world, interrupts, say)
    if state:
        run.load_state_dict(state)
    say(f"device     {device}: {device_reason}" + (f", {world.size} processes" if world.size > 1 else ""))
    say(f"precision  {precision.name}: {precision.reason}")
    every, trained = run.count_parameters()
    part = "all" if config.train_encoder else "the decoder; the encoder is frozen"
    say(f"model      {config.model}: {every / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained ({part})")
    describe_data(data, config.out, say)
    parts = [f"{config.batch_size} clips"]
    parts += [f"{config.accumulate} micro-batches"] if config.accumulate > 1 else []
    parts += [f"{world.size} processes"] if world.size > 1 else []
    begun = f"; {run.step} are done" if state else ""
    say(f"steps      {run.steps_per_epoch} an epoch of {' × '.join(parts)}, {run.total_steps} in all{begun}")
    # A checkpoint more than stay, since one is written beside those it replaces.
    checkpoints = {"all": run.epochs + 2, "last": 4, "best": 2}[config.keep]
    needed = world.on_main(lambda: check_space(config.out, 4 * every + 8 * trained, 2 * every, checkpoints))
    say(f"disk       at most {needed / 1e9:.1f} GB in {config.out}")
    if world.is_main and not state:
        run.history.clear()  # of a run that ended before it saved anything
        write_config(config, world.size, {"device": str(device), "precision": precision.name})
        write_skipped(config.out, data.skipped)
    return run


def load_model(source: str, device: torch.device, world: World) -> Whisper:
    """The model to start from; on each machine one process is first, since it may have to download it."""
    model = load_checkpoint(source, device) if world.local_rank == 0 else None
    world.sum([0.0], device)  # the others wait here
    return model or load_checkpoint(source, device)


def check_agreement(digest: str, world: World, device: torch.device) -> None:
    """Raise in every process if they do not all have the same ayat: a step's clips would not be what they think."""
    differs = digest != world.on_main(lambda: digest)
    (differing,) = world.sum([float(differs)], device)
    if differing:
        raise UserError(
            f"{differing:.0f} of {world.size} processes found other recordings than the first: "
            "the data must be the same, and as readable, on every machine"
        )


def _nothing(message: str) -> None:
    """What the processes beside the main one say."""
