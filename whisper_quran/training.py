"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` reads from top to bottom as a run goes: find the ayat, load the model, decode the recordings once, say what
was decided and why, then validate, and train and validate epoch by epoch. ``training_step`` is all of the arithmetic.

A run is a function of its options: the clips of a step follow from seed, epoch and step alone, nothing else is drawn at
random, and how many clips share a micro-batch or a process changes nothing but rounding. So a run that was cut off
anywhere goes on from its last saved step to the weights it would have had.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .dataset import Batch, Example, epoch_order, make_batch, prefetch, share, split
from .device import Precision, choose_device, choose_precision
from .distributed import World, connect, disconnect, join_world
from .errors import Interrupted, UserError
from .features import log_mel
from .history import History, corpus_rate, require_tensorboard, results_table, write_results
from .interrupts import Interrupts
from .objective import Objective
from .optim import build_optimizer, schedule
from .preparation import Data, make_tokenizer, prepare_data, select_ayat, summary
from .run_folder import check_space, claim, write_config, write_skipped
from .state import State, StateWriter, find_state, load_state
from .validation import validate

Say = Callable[[str], None]
SAVE_SECONDS = 600.0  # between two saves, unless --save-every says otherwise
MOST_BAD_STEPS = 5  # in a row, before a run is stopped


def train(config: TrainingConfig, say: Say = print) -> History:
    """Run the training that ``config`` describes, writing under ``config.out``; return what was measured.

    Raises:
        UserError: something in the data, the model or the options must be changed first.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    started = time.monotonic()
    world = join_world()
    if not world.is_main:
        say = _nothing
    device, device_reason = choose_device(config.device, world.local_rank)
    connect(world, device)
    with Interrupts() as interrupts:
        if config.tensorboard:
            world.on_main(require_tensorboard)
        selection = world.on_main(lambda: select_ayat(config, say))
        resuming = world.on_main(lambda: claim(config, world.size))
        state = load_state(world.on_main(lambda: find_state(config.out, say))) if resuming else None
        model = load_checkpoint(config.model, device)
        tokenizer = make_tokenizer(model, config.language)
        # What auto stood for when the run began is part of it.
        precision = choose_precision(state["precision"] if state else config.precision, device, model)
        data = prepare_data(config, selection, model, tokenizer, quiet=not world.is_main)

        run = Run(config, data, model, tokenizer, precision, device, world, interrupts, say)
        run.deadline = started + 3600 * config.max_time if config.max_time else math.inf
        if state:
            run.load_state_dict(state)
        elif world.is_main:
            write_config(config, world.size, {"device": str(device), "precision": precision.name})
            write_skipped(config.out, data.skipped)
        say(f"device     {device}: {device_reason}" + (f", {world.size} processes" if world.size > 1 else ""))
        describe(run)
        run.train()
    disconnect()
    return run.history


def training_step(
    objective: nn.Module,
    batches: Sequence[Batch],
    target_tokens: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    clip_grad: float,
    n_mels: int,
    device: torch.device,
    world: World = World(),  # noqa: B008 (frozen)
) -> tuple[float, float]:
    """One optimiser step; return the mean loss in nats and the norm of the gradient, over all processes.

    Each micro-batch's summed loss is divided by the target tokens of the whole step, so that the gradient is that of
    one large batch, however the step was cut into micro-batches and processes. Where either number returned is not
    finite, nothing was changed.
    """
    loss = torch.zeros((), device=device)
    for batch in batches:
        batch = batch.to(device)
        mel = log_mel(batch.audio, n_mels)
        with precision.autocast(device):
            summed = objective(mel, batch.tokens, batch.positions, batch.targets)
        loss += summed.detach()
        scaler.scale(summed / target_tokens).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    world.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf).item()
    (mean,) = world.sum([loss.item() / target_tokens], device)
    if math.isfinite(norm) and math.isfinite(mean):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return mean, norm


class Run:
    """A training run: the model, the optimiser, and how far they have come."""

    def __init__(
        self,
        config: TrainingConfig,
        data: Data,
        model: Whisper,
        tokenizer: Tokenizer,
        precision: Precision,
        device: torch.device,
        world: World,
        interrupts: Interrupts,
        say: Say,
    ):
        self.config, self.data, self.model = config, data, model
        self.precision, self.device, self.world = precision, device, world
        self.interrupts, self.say = interrupts, say
        self.prompt = len(tokenizer.sot_sequence_including_notimestamps)
        self.objective = Objective(model, config.train_encoder)
        self.optimizer = build_optimizer(self.objective, config.lr, config.weight_decay, config.adam_eps)
        # fp16's small gradients would vanish; for the other precisions the scaler only passes on.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        if config.grad_checkpoint:
            checkpoint_activations(model)
        self.forward = torch.compile(self.objective) if config.compile else self.objective
        self.history = History(config.out / "metrics.jsonl", world.is_main, config.tensorboard)
        self.writer = StateWriter(config.out)

        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs trained, validated and saved
        self.best_wer = math.inf
        self.bad_steps = 0  # steps in a row that were skipped because they were not finite
        self.micro_batch = config.batch_size  # smaller once a GPU's memory has run out
        self.deadline = math.inf
        self.saved = time.monotonic()
        self.save_seconds = 0.0  # what the last save held up training

        self.clips_per_step = config.batch_size * config.accumulate * world.size
        self.steps_per_epoch = -(-len(data.train) // self.clips_per_step)
        self.total_steps = min(config.epochs * self.steps_per_epoch, config.max_steps or 10**12)
        self.epochs = -(-self.total_steps // self.steps_per_epoch)

    def train(self) -> None:
        """Go from where the run stands to its end, or to where time is up."""
        try:
            if self.step == 0 and not self.config.no_vanilla:
                self.validate(epoch=-1)
            while self.epoch < self.epochs:
                if not (self.train_epoch() and self.time_for_validation()):
                    self.say(f"time is up at step {self.step} of {self.total_steps}: continue with --resume")
                    return
                self.validate(self.epoch)
                self.save_checkpoints()
                self.epoch += 1
                self.save()
        finally:
            self.writer.finish()
            self.history.close()
        skipped = sum(row["skipped"] for row in self.history.rows if row["event"] == "train")
        if skipped:
            self.say(f"{skipped} of {self.step} steps were skipped: their loss or gradient was not finite")
        self.say("\n" + results_table(self.history))

    def steps(self) -> Iterator[tuple[int, list[Batch]]]:
        """This process's micro-batches, and the target tokens of all, for each step that remains of the epoch."""
        order = epoch_order(len(self.data.train), self.config.seed, self.epoch)
        first = self.epoch * self.steps_per_epoch
        pin = self.device.type == "cuda"
        for clips in split(order, self.clips_per_step)[self.step - first : self.total_steps - first]:
            examples = [self.data.train[i] for i in clips]
            parts = share(examples, self.config.batch_size, self.world.rank, self.world.size)
            batches = [make_batch(part, self.data.recordings, self.prompt, pin) for part in parts]
            yield sum(len(example.tokens) - self.prompt for example in examples), batches

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, or of the run where --max-steps ends it; False if time was up before."""
        self.objective.train()
        clips = len(self.data.train)
        done = (self.step - self.epoch * self.steps_per_epoch) * self.clips_per_step
        feed = prefetch(self.steps())
        label = f"epoch {self.epoch}"
        with (
            self.interrupts.deferred(),
            tqdm(total=clips, initial=done, unit="clip", desc=label, disable=not self.world.is_main) as bar,
        ):
            while True:
                start = time.perf_counter()
                target_tokens, batches = next(feed, (0, None))
                if batches is None:
                    break
                waited = time.perf_counter() - start
                lr = self.config.lr * schedule(self.step, self.config.warmup_steps, self.total_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                loss, norm = self.fitted_step(batches, target_tokens)
                self.step += 1
                self.check_finite(loss, norm)
                seconds = time.perf_counter() - start
                trained = min(self.clips_per_step, clips - bar.n)
                self.history.append(
                    {
                        "event": "train",
                        "epoch": self.epoch,
                        "step": self.step,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": norm,
                        "skipped": not (math.isfinite(loss) and math.isfinite(norm)),
                        "target_tokens": target_tokens,
                        "clips_per_s": trained / seconds,
                        "data_wait": waited / seconds,
                    }
                )
                bar.update(trained)
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")
                if self.should_stop(seconds):
                    feed.close()
                    self.save()
                    return False
            self.save()
        return True

    def fitted_step(self, batches: list[Batch], target_tokens: int) -> tuple[float, float]:
        """:func:`training_step`, with smaller micro-batches once a GPU's memory runs out: the same step, cut finer."""
        while True:
            while any(len(batch) > self.micro_batch for batch in batches):
                batches = [half for b in batches for half in (b.halves() if len(b) > self.micro_batch else (b,))]
            try:
                return training_step(
                    self.forward, batches, target_tokens, self.optimizer, self.scaler, self.precision,
                    self.config.clip_grad, self.model.dims.n_mels, self.device, self.world,
                )  # fmt: skip
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise UserError(
                        f"{self.device} has no memory for a single clip: try --grad-checkpoint, or a smaller --model"
                    ) from None
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.micro_batch = -(-self.micro_batch // 2)
            self.say(f"out of memory: micro-batches of {self.micro_batch} clips from here on, and as many more of them")

    def check_finite(self, loss: float, norm: float) -> None:
        """Count steps in a row that were skipped; fp16's scaler may need some to find its scale, and they are not."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad_steps = 0
        elif not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self.bad_steps += 1
        if self.bad_steps >= MOST_BAD_STEPS:
            self.save()
            raise UserError(
                f"{self.bad_steps} steps in a row, to step {self.step}, had no finite loss or gradient; they were "
                f"skipped, and the state in {self.config.out} is that before them: try a lower --lr, more "
                "--warmup-steps or --precision fp32, in another --out"
            )

    def should_stop(self, step_seconds: float) -> bool:
        """Save if it is time to; after a signal, save and leave. True where the time limit is near.

        A signal reaches the processes at different moments: they agree on the step to stop at.
        """
        now = time.monotonic()
        signal = self.interrupts.requested or 0
        out_of_time = now + 2 * step_seconds + self.save_seconds > self.deadline
        signals, late = self.world.sum([float(signal > 0), float(out_of_time)], self.device)
        if signals:
            self.save()
            self.writer.finish()
            self.say(f"\nstopped at step {self.step} of {self.total_steps}, and saved: continue with --resume")
            raise Interrupted(signal or 15)
        if late:
            return True
        every = self.config.save_every
        if self.step % every == 0 if every else now - self.saved > SAVE_SECONDS:
            self.save()
        return False

    def time_for_validation(self) -> bool:
        """Whether validation fits before the deadline, going by how long it took the last time."""
        took = sum(row["seconds"] for rows in list(self.history.valid().values())[-1:] for row in rows.values())
        late = time.monotonic() + 1.2 * took + self.save_seconds > self.deadline
        return not self.world.sum([float(late)], self.device)[0]

    def validate(self, epoch: int) -> None:
        """Measure every validation reciter and add a row for each; ``epoch`` -1 is the untouched model."""
        self.objective.eval()
        for reciter, examples in self.data.valid.items():
            start = time.perf_counter()
            result = validate(
                self.objective,
                examples,
                self.data.recordings,
                language=self.config.language,
                prompt=self.prompt,
                precision=self.precision,
                device=self.device,
                batch_size=self.micro_batch,
                world=self.world,
            )
            seconds = time.perf_counter() - start
            errors = result.errors
            self.history.append(
                {
                    "event": "valid",
                    "epoch": epoch,
                    "step": self.step,
                    "reciter": reciter,
                    "loss": result.loss,
                    "wer": errors.wer,
                    "cer": errors.cer,
                    "ayat": len(examples),
                    "words": errors.words,
                    "word_errors": errors.substitutions + errors.deletions + errors.insertions,
                    "characters": errors.characters,
                    "character_errors": errors.character_errors,
                    "seconds": seconds,
                }
            )
            self.say(
                f"{'vanilla' if epoch < 0 else f'epoch {epoch}':<10} {reciter}: loss {result.loss:.4f}, "
                f"WER {100 * errors.wer:.2f} %, CER {100 * errors.cer:.2f} % ({len(examples)} ayat in {seconds:.0f} s)"
            )
        if self.world.is_main:
            write_results(self.history, self.config.out)

    def save_checkpoints(self) -> None:
        """Save this epoch's Whisper checkpoint, and ``best.pt`` where no epoch had a lower validation WER.

        Without validation the latest epoch is the best that is known.
        """
        out, keep = self.config.out, self.config.keep
        rows = self.history.valid().get(self.epoch, {}).values()
        wer = corpus_rate(rows, "word_errors", "words")
        better = not wer >= self.best_wer
        if better and rows:
            self.best_wer = wer
        if not self.world.is_main:
            return
        if keep != "best":
            save_checkpoint(out / f"epoch-{self.epoch:03}.pt", self.model)
        if better:
            save_checkpoint(out / "best.pt", self.model)
        if keep == "last":
            for earlier in range(self.epoch):
                (out / f"epoch-{earlier:03}.pt").unlink(missing_ok=True)

    def save(self) -> None:
        """Save the state: one process copies it, and writes the copy while training goes on."""
        start = time.monotonic()
        if self.world.is_main:
            self.writer.save(self.state_dict())
        self.saved = time.monotonic()
        self.save_seconds = self.saved - start

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best_wer": self.best_wer,
            "bad_steps": self.bad_steps,
            "precision": self.precision.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state`` was saved, with the rows of metrics.jsonl as they were then."""
        self.step, self.epoch = state["step"], state["epoch"]
        self.best_wer, self.bad_steps = state["best_wer"], state["bad_steps"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history.restore(self.step, self.epoch)


def checkpoint_activations(model: Whisper) -> None:
    """Make every block recompute its activations in the backward pass in place of keeping them."""
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _nothing(message: str) -> None:
    """What the processes beside the main one say."""


def describe(run: Run) -> None:
    """Say what was decided, and why, before the first step; refuse to start without room for what will be written."""
    config, say, data = run.config, run.say, run.data
    say(f"precision  {run.precision.name}: {run.precision.reason}")
    every = sum(parameter.numel() for parameter in run.model.parameters())
    trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    part = "all" if config.train_encoder else "the decoder; the encoder is frozen"
    say(f"model      {config.model}: {every / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained ({part})")
    train: dict[str, list[Example]] = {}
    for example in data.train:
        train.setdefault(example.ayah.reciter, []).append(example)
    for name, reciters in (("train", train), ("valid", data.valid)):
        if len(reciters) > 10:
            everyone = [example for examples in reciters.values() for example in examples]
            reciters = {f"{len(reciters)} reciters": everyone}
        for reciter, examples in reciters.items():
            hours = sum(example.seconds for example in examples) / 3600
            say(f"{name:<10} {reciter}: {len(examples)} ayat, {hours:.2f} h")
    if not data.valid:
        say("valid      no reciter: WER is not measured, and best.pt is the latest epoch")
    if data.recordings.damaged:
        say(f"damaged    {len(data.recordings.damaged)} files have damaged frames; they are used")
    say(f"left out   {summary(data.skipped)}" + (f" (listed in {config.out / 'skipped.csv'})" if data.skipped else ""))
    parts = [f"{config.batch_size} clips"]
    parts += [f"{config.accumulate} micro-batches"] if config.accumulate > 1 else []
    parts += [f"{run.world.size} processes"] if run.world.size > 1 else []
    begun = f"; {run.step} are done" if run.step else ""
    say(f"steps      {run.steps_per_epoch} an epoch of {' × '.join(parts)}, {run.total_steps} in all{begun}")
    checkpoints = {"all": run.epochs + 1, "last": 3, "best": 2}[config.keep]
    needed = run.world.on_main(lambda: check_space(config.out, 4 * every + 8 * trained, 2 * every, checkpoints))
    say(f"disk       at most {needed / 1e9:.1f} GB in {config.out}")
