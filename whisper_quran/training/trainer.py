"""The training loop: optimiser steps, epochs, validation and saving.

A run is determined by its options: the clips of a step depend only on seed, epoch and step, their augmentation on seed,
epoch and clip, and the split into micro-batches and processes changes only rounding. So an interrupted run resumes from
its last saved step and reaches the same weights.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass
from signal import SIGTERM

import torch
from torch import Tensor, nn
from whisper.model import Whisper

from ..checkpoints.checkpoint import save_checkpoint
from ..config import TrainingConfig
from ..data.batches import Batch, epoch_order, make_batch, prefetch, shard, split
from ..data.features import FrozenEncoder, audio_mask, context_of, log_mel
from ..data.prepare import Example, TrainingData
from ..runtime.command_line import to_json
from ..runtime.console import Log, format_duration, no_log, percent, progress_bar
from ..runtime.device import Precision, ProcessLost, World
from ..runtime.errors import Interrupted, Interrupts, UserError
from .augment import Augmentation
from .loss import Objective, add_adapters
from .metrics_log import History, Row, best_epoch
from .optimizer import build_optimizer, count_steps, schedule
from .resume import State, clips_per_step, save_state
from .validation import validate

SAVE_SECONDS = 600.0  # between two saves, without --save-every
MOST_BAD_STEPS = 5  # in a row, before a run is stopped
ONE_PROCESS = World()
KEPT_BYTES = 2 * 2**30  # of a frozen encoder's outputs, which are the same in every epoch: 0.5 MB an ayah for `base`


@dataclass(frozen=True)
class Step:
    """One optimiser step: this process's micro-batches, and counts over all processes."""

    batches: list[Batch]
    clips: int
    target_tokens: int


class Trainer:
    """A training run: the model, the optimiser, and the current step and epoch."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        model: Whisper,
        device: torch.device,
        precision: Precision,
        world: World = ONE_PROCESS,
        interrupts: Interrupts | None = None,
        log: Log = no_log,
    ):
        self.config, self.data, self.model = config, data, model
        self.device, self.precision, self.world = device, precision, world
        self.interrupts, self.log = interrupts or Interrupts(), log
        assert config.lr is not None and config.warmup_steps is not None  # see .optimizer.choose_rate
        self.lr, self.warmup_steps = config.lr, config.warmup_steps
        self.objective = Objective(model, config.train_encoder, config.grad_checkpoint)
        if config.lora:
            add_adapters(model, config.lora, config.train_encoder, config.seed)
        self.optimizer = build_optimizer(self.objective, self.lr, config.weight_decay, config.adam_eps)
        # Without a scaler, small fp16 gradients would underflow; it does nothing for the other precisions.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        self.encoder: FrozenEncoder | None = None  # None if the encoder is trained
        if not config.train_encoder:
            model.encoder.to("cpu")  # the device only needs a copy in the run's precision
            # On a GPU encoding is fast, and its rounding depends on the batch: a resumed run would differ.
            memory = KEPT_BYTES // world.size if device.type == "cpu" and config.epochs > 1 else 0
            self.encoder = FrozenEncoder(model, precision.dtype, config.compile, memory)
        self.augmentation = Augmentation(config.seed, device) if config.augment else None
        self.forward = torch.compile(self.objective) if config.compile else self.objective
        self.history = History(config.out / "metrics.jsonl", world.is_main, config.tensorboard)

        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs trained, validated and saved
        self.bad_steps = 0  # steps in a row that were skipped because they were not finite
        # Clips at a time in training and in validation; halved when a GPU runs out of memory.
        self.micro_batch = self.valid_batch = config.batch_size
        if config.train_encoder:  # a quarter of the clips, sorted by length, need little padding
            self.micro_batch = math.ceil(config.batch_size / 4)
        if device.type == "cpu":  # more are no faster
            self.micro_batch = min(self.micro_batch, 4 if config.train_encoder else 16)
        self.last_save, self.save_seconds, self.slowest_step = time.monotonic(), 0.0, 0.0
        self.deadline = math.inf  # of --max-time, by time.monotonic()

        self.clips_per_step = clips_per_step(config, world.size)
        self.steps_per_epoch, self.total_steps = count_steps(config, len(data.train), world.size)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)

    def train(self) -> bool:
        """Train, validate and save, epoch by epoch; return False if --max-time ended the run before its end.

        Raises:
            Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after saving.
        """
        try:
            if self.step == 0 and not self.config.no_vanilla and -1 not in self.history.valid():
                self.validate(epoch=-1)
                self.save()
            while self.epoch < self.epochs:
                if not (self.train_epoch() and self.time_for_validation()):
                    return False
                self.validate(self.epoch)
                self.save_checkpoints()
                self.epoch += 1
                self.save()
            return True
        except (Interrupted, ProcessLost):
            self.log(f"\nstopped at step {self.step} of {self.total_steps}: what is saved goes on with --resume")
            raise
        finally:
            with self.interrupts.shielded():
                self.history.close()

    def training_step(self, batches: Sequence[Batch], target_tokens: int) -> tuple[float, float]:
        """Take one optimiser step; return the mean loss in nats and the norm of the gradient, over all processes.

        Each micro-batch's summed loss is divided by ``target_tokens``, counted over all processes, so the gradient is
        that of one large batch. A process may have no micro-batch. If the loss or the gradient is not finite, neither
        the weights nor the optimiser change.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * schedule(self.step, self.warmup_steps, self.total_steps)

        loss = torch.zeros((), device=self.device)
        self.scaler.scale(loss)  # initialises the scale, even if there is no micro-batch
        for batch in batches:
            batch = batch.to(self.device)
            audio, mask = self.audio(batch)
            with self.precision.autocast(self.device):
                micro_loss = self.forward(audio, batch.tokens, batch.positions, batch.targets, mask) / target_tokens
            self.scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()

        try:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            self.world.sum_gradients(parameters)
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_grad or math.inf).item()
            (mean_loss,) = self.world.sum([loss.item()], self.device)
            if is_finite(mean_loss, norm):
                self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        except torch.OutOfMemoryError:
            # Gradients may be summed and weights partly updated: this process alone cannot repeat the step.
            raise UserError(f"{self.device} has no memory for the optimiser: choose a smaller --model") from None
        return mean_loss, norm

    def audio(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the input of the objective, and its mask: encoder outputs if the encoder is frozen, otherwise mels."""
        n_mels, contexts = self.model.dims.n_mels, batch.contexts
        if self.augmentation:
            mel, contexts = self.augmentation.log_mel(batch, self.epoch, n_mels)
            audio = self.encoder.encode(mel, contexts).values if self.encoder else mel
        elif self.encoder:
            audio = self.encoder(batch.audio, contexts, batch.clips).values
        else:
            audio = log_mel(batch.audio, n_mels, contexts)
        return audio, audio_mask(contexts, self.device)

    def step_within_memory(self, step: Step) -> tuple[float, float]:
        """Take the step; if a GPU runs out of memory, repeat it with smaller micro-batches, with the same result."""
        batches = step.batches
        while True:
            while any(len(batch) > self.micro_batch for batch in batches):
                batches = [half for b in batches for half in (b.split_in_half() if len(b) > self.micro_batch else [b])]
            try:
                return self.training_step(batches, step.target_tokens)
            except torch.OutOfMemoryError:
                pass  # continue outside the handler, where nothing refers to the failed graph any more
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch = self.fewer_clips(self.micro_batch)

    def fewer_clips(self, clips: int) -> int:
        """Return half of ``clips`` after running out of memory; raise a :class:`UserError` if ``clips`` is 1."""
        if clips == 1:
            raise UserError(
                f"{self.device} has no memory for a single clip: try --grad-checkpoint, or a smaller --model"
            )
        torch.cuda.empty_cache()
        self.log(f"out of memory: {clips // 2} clips at a time from here on, and as many more times")
        return clips // 2

    def steps(self) -> Iterator[Step]:
        """Yield the remaining steps of the epoch, with clips of similar length in each micro-batch."""
        order = epoch_order(len(self.data.train), self.config.seed, self.epoch)
        first = self.epoch * self.steps_per_epoch
        pin = self.device.type == "cuda"
        for clips in split(order, self.clips_per_step)[self.step - first : self.total_steps - first]:
            examples = sorted((self.data.train[i] for i in clips), key=_length)
            shards = shard(examples, self.micro_batch, self.world.rank, self.world.size)
            batches = [make_batch(each, self.data.cache, pin) for each in shards]
            yield Step(batches, len(examples), sum(example.target_tokens for example in examples))

    def train_epoch(self) -> bool:
        """Train to the end of the epoch or to --max-steps; return False if --max-time ended the run before."""
        self.objective.train()
        done = (self.step - self.epoch * self.steps_per_epoch) * self.clips_per_step
        label = f"epoch {self.epoch} (last: {self.epochs - 1})"
        with (
            self.interrupts.deferred(),
            closing(prefetch(self.steps())) as feed,  # type: ignore[type-var]
            progress_bar(len(self.data.train), "clip", label, initial=done, disable=not self.world.is_main) as bar,
        ):
            while True:
                start = time.perf_counter()
                step = next(feed, None)
                if step is None:
                    break
                waited = time.perf_counter() - start
                loss, norm = self.step_within_memory(step)
                self.step += 1
                self.check_finite(loss, norm)
                seconds = time.perf_counter() - start
                lr = self.optimizer.param_groups[0]["lr"]
                self.history.append(
                    {
                        "event": "train",
                        "epoch": self.epoch,
                        "step": self.step,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": norm,
                        "skipped": not is_finite(loss, norm),
                        "target_tokens": step.target_tokens,
                        "clips_per_s": step.clips / seconds,
                        "data_wait": waited / seconds,
                    }
                )
                time_left = format_duration(self.seconds_left())
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", run_ends_in=time_left, refresh=False)
                bar.update(step.clips)
                if self.should_stop(seconds):
                    self.save()
                    return False
            self.save()
        return True

    def check_finite(self, loss: float, norm: float) -> None:
        """Count skipped steps in a row, but not those that fp16's scaler needs to lower its scale.

        Raises:
            UserError: there were too many.
        """
        if is_finite(loss, norm):
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
        """Save if a save is due; after a signal, save and raise. Return True if the time limit is near.

        A signal reaches the processes at different times, so they agree on the step to stop at.
        """
        now = time.monotonic()
        signal = self.interrupts.requested or 0
        self.slowest_step = max(step_seconds, 0.9 * self.slowest_step)  # the next may have the longest clips
        out_of_time = now + 2 * self.slowest_step + self.save_seconds > self.deadline
        signals, late = self.world.sum([float(signal > 0), float(out_of_time)], self.device)
        if signals:
            self.save()
            raise Interrupted(signal or SIGTERM)
        if late:
            return True
        if self.config.save_every is None:
            due = now - self.last_save > SAVE_SECONDS
        else:
            due = self.step % self.config.save_every == 0
        if due:
            self.save()
        return False

    def seconds_left(self) -> float:
        """Estimate the seconds that the remaining steps and validations take, by the speed of the last steps."""
        seconds = [1 / row["clips_per_s"] for row in self.history.rows[-50:] if row["event"] == "train"]  # a clip
        training = (self.total_steps - self.step) * self.clips_per_step * sum(seconds) / len(seconds)
        return training + (self.epochs - self.epoch) * self.validation_seconds()

    def validation_seconds(self) -> float:
        """Return the seconds that the last validation took; 0 before the first."""
        rows = list(self.history.valid().values())[-1:]
        return sum(row["seconds"] for reciters in rows for row in reciters.values())

    def time_for_validation(self) -> bool:
        """Return True if validation fits before the deadline, judging by the last one."""
        took = self.validation_seconds()
        left = self.deadline - time.monotonic()
        (late,) = self.world.sum([float(1.2 * took + self.save_seconds > left)], self.device)
        if late:
            self.log(
                f"validation took {format_duration(took)} the last time, and {format_duration(max(left, 0))} are left"
            )
        return not late

    def validate(self, epoch: int) -> None:
        """Validate on every reciter and add a row for each; ``epoch`` is -1 for the untouched model."""
        self.objective.eval()
        for reciter, examples in self.data.valid.items():
            start = time.perf_counter()
            row = {"event": "valid", "epoch": epoch, "step": self.step, "reciter": reciter, **self.measure(examples)}
            row["seconds"] = time.perf_counter() - start
            self.history.append(row)
            name = "vanilla" if epoch < 0 else f"epoch {epoch}"
            rates = f"WER {percent(row['wer'])}, CER {percent(row['cer'])}"
            if row["letters"]:
                rates += f", DER {percent(row['der'])}"
            took = f"({row['ayat']} ayat in {row['seconds']:.0f} s)"
            self.log(f"{name:<10} {reciter}: loss {row['loss']:.4f}, {rates} {took}")
        heard = {example.ayah.reciter for example in self.data.train}
        self.history.write_results(in_training=[reciter for reciter in self.data.valid if reciter in heard])

    def measure(self, examples: list[Example]) -> Row:
        """Call :func:`.validation.validate`, with fewer clips at a time if a GPU runs out of memory."""
        encoder = self.encoder or FrozenEncoder(self.model, self.precision.dtype)
        while True:
            try:
                return validate(
                    self.objective,
                    encoder,
                    examples,
                    self.data.cache,
                    self.config.language,
                    self.valid_batch,
                    self.device,
                    self.precision,
                    self.world,
                )
            except torch.OutOfMemoryError:
                pass
            self.valid_batch = self.fewer_clips(self.valid_batch)

    def save_checkpoints(self) -> None:
        """Save this epoch's Whisper checkpoint, and ``best.pt`` if no epoch before it had as low a validation WER.

        Without validation the latest epoch counts as the best. Remove the checkpoints that --keep does not keep.
        """
        if not self.world.is_main:
            return
        out, keep = self.config.out, self.config.keep
        if keep != "best":
            save_checkpoint(out / f"epoch-{self.epoch:03}.pt", self.model)
        if best_epoch(self.history.rows) in (None, self.epoch):
            save_checkpoint(out / "best.pt", self.model)
        if keep == "last":
            for epoch in range(self.epoch):
                (out / f"epoch-{epoch:03}.pt").unlink(missing_ok=True)

    def save(self) -> None:
        start = time.monotonic()
        if self.world.is_main:
            with self.interrupts.shielded():
                save_state(self.config.out, self.state_dict())
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start

    def state_dict(self) -> State:
        """Return everything that :meth:`load_state_dict` needs; the tensors are not copied."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "bad_steps": self.bad_steps,
            "precision": self.precision.name,
            "config": to_json(self.config),
            "clips_per_step": self.clips_per_step,
            "dims": asdict(self.model.dims),
            "data": self.data.digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore ``state``, and the rows of metrics.jsonl as they were when it was saved.

        Raises:
            UserError: the recordings or their texts have changed since the run began, or ``state`` was edited.
        """
        if state["data"] != self.data.digest:
            raise UserError(
                f"the recordings or their texts are not those the run in {self.config.out} began with "
                f"(now {len(self.data.train)} ayat to train on; see skipped.csv): restore them, or choose another --out"
            )
        try:
            self.step, self.epoch, self.bad_steps = (int(state[name]) for name in ("step", "epoch", "bad_steps"))
            self.model.load_state_dict(state["model"])
            # A copy: otherwise the optimiser would update the memory-mapped file.
            self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the saved state in {self.config.out} does not fit its run ({reason}): start again with another --out"
            ) from error
        lost = self.history.restore(self.step, self.epoch)
        if lost:
            self.log(f"warning    {self.history.path}: {lost} lines cannot be read, and are left out")


def _length(example: Example) -> tuple[int, int]:
    """Return what of an example is padded in a batch: its context, and its tokens."""
    return context_of(example.samples), len(example.tokens)


def is_finite(loss: float, norm: float) -> bool:
    """Return True if the loss and the gradient norm are finite: only then a step is taken."""
    return math.isfinite(loss) and math.isfinite(norm)
