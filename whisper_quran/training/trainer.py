"""The training loop: optimiser steps, epochs, validation and saving.

A run is a function of its options: the clips of a step follow from seed, epoch and step alone, nothing else is drawn at
random, and how many clips share a micro-batch or a process changes nothing but rounding. So a run that was cut off
anywhere goes on from its last saved step to the weights it would have had.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from signal import SIGTERM
from statistics import median

import torch
from torch import Tensor, nn
from whisper.model import Whisper

from ..checkpoints.average import average_weights
from ..checkpoints.results import best_epoch, corpus_wer
from ..config import TrainingConfig
from ..data.batches import Batch, Example, epoch_order, make_batch, prefetch, shard, split
from ..data.encoder_cache import FrozenEncoder
from ..data.features import log_mel
from ..data.prepare import TrainingData
from ..runtime.command_line import to_json
from ..runtime.console import format_duration, percent, progress_bar
from ..runtime.distributed import ProcessLost
from ..runtime.errors import Interrupted, UserError
from .adapters import add_adapters, merge_adapters
from .augment import Augmentation
from .epoch_files import EpochFiles
from .loss import Objective
from .metrics_log import History, write_results
from .optimizer import build_optimizer, schedule
from .resume import State, StateWriter, clips_per_step, to_memory
from .setup import Setup
from .validation import Validation, validate

SAVE_SECONDS = 600.0  # between two saves, unless --save-every says otherwise
MOST_BAD_STEPS = 5  # in a row, before a run is stopped
CPU_BATCH = 4  # clips at a time: a CPU gains nothing by more, and with few of one length there is little padding


@dataclass(frozen=True)
class Step:
    """The clips of one optimiser step: this process's micro-batches, and the sums over all processes."""

    batches: list[Batch]
    clips: int
    ayat: int
    audio_seconds: float
    target_tokens: int


class Trainer:
    """A training run: the model, the optimiser, and how far they have come."""

    def __init__(self, config: TrainingConfig, data: TrainingData, model: Whisper, setup: Setup):
        self.config, self.data, self.model, self.setup = config, data, model, setup
        self.device, self.precision, self.world = setup.device, setup.precision, setup.world
        self.interrupts, self.log = setup.interrupts, setup.log
        self.objective = Objective(model, config.train_encoder, config.grad_checkpoint)
        if config.lora:
            add_adapters(model, config.lora, config.train_encoder, config.seed)
        self.optimizer = build_optimizer(self.objective, config.lr, config.weight_decay, config.adam_eps)
        # Without a scaler fp16's small gradients would vanish; for the other precisions it does nothing.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.name == "fp16")
        self.encoder: FrozenEncoder | None = None  # unless it is trained
        if not config.train_encoder:
            # What it needs on the device is a copy in the run's precision, and not even that once all is in the cache.
            model.encoder.to("cpu")
            self.encoder = FrozenEncoder(model, self.precision.dtype, config.compile)
        self.augmentation = Augmentation(config.seed, self.device) if config.augment else None
        self.forward = torch.compile(self.objective) if config.compile else self.objective
        self.history = History(
            config.out / "metrics.jsonl", self.world.is_main and not config.dry_run, config.tensorboard
        )
        self.writer = StateWriter(config.out)
        self.files = EpochFiles(config, self.history)

        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs trained, validated and saved
        self.best_wer = math.inf
        self.bad_steps = 0  # steps in a row that were skipped because they were not finite
        # Clips at a time, in training and in validation: fewer once a GPU's memory has run out.
        self.micro_batch = self.valid_batch = config.batch_size
        if self.device.type == "cpu":
            self.micro_batch = min(config.batch_size, CPU_BATCH)
        self.last_save = time.monotonic()

        self.clips_per_step = clips_per_step(config, self.world.size)
        self.steps_per_epoch = math.ceil(len(data.train) / self.clips_per_step)
        self.total_steps = min(config.epochs * self.steps_per_epoch, config.max_steps or 10**12)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)

    def train(self) -> bool:
        """Train from the current step to the last one; return False if the time was up before.

        Raises:
            Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after saving.
        """
        try:
            return self.train_epochs()
        except (Interrupted, ProcessLost):
            with self.interrupts.shielded():
                self.writer.finish()
                self.log(f"\nstopped at step {self.step} of {self.total_steps}: what is saved goes on with --resume")
            raise
        finally:
            with self.interrupts.shielded():
                self.writer.finish()
                self.history.close()
                if self.encoder:
                    self.encoder.close()

    def train_epochs(self) -> bool:
        """Train, validate and save, epoch by epoch; return False if the time was up before the end."""
        if self.step == 0 and not self.config.no_vanilla:
            self.validate(epoch=-1)
            self.save()
        while self.epoch < self.epochs and not self.out_of_patience():
            if not (self.train_epoch() and self.time_for_validation()):
                return False
            self.validate(self.epoch)
            if self.encoder:
                self.encoder.release()
            self.save_checkpoints()
            self.epoch += 1
            self.save()
        return self.average_epochs()

    def training_step(self, batches: Sequence[Batch], target_tokens: int) -> tuple[float, float]:
        """Take one optimiser step; return the mean loss in nats and the norm of the gradient, over all processes.

        Each micro-batch's summed loss is divided by ``target_tokens``, those of all processes, so the gradient is that
        of one large batch however the step was cut. A process may have no micro-batch. If the loss or the gradient is
        not finite, neither weights nor optimiser change.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.step, self.config.warmup_steps, self.total_steps)

        loss = torch.zeros((), device=self.device)
        self.scaler.scale(loss)  # a scaler has no scale before its first use, and there may be no micro-batch
        for batch in batches:
            batch = batch.to(self.device)
            audio = self.audio(batch)
            with self.precision.autocast(self.device):
                part = self.forward(audio, batch.tokens, batch.positions, batch.targets) / target_tokens
            self.scaler.scale(part).backward()
            loss += part.detach()

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
            # Gradients may be summed and weights half updated: this process alone must not begin the step again.
            raise UserError(f"{self.device} has no memory for the optimiser: choose a smaller --model") from None
        return mean_loss, norm

    def audio(self, batch: Batch) -> Tensor:
        """Return what the objective takes: encoder outputs if the encoder is frozen, otherwise mel spectrograms."""
        if not self.augmentation:
            return self.encoder(batch.audio, batch.known) if self.encoder else self.log_mel(batch.audio)
        changes = self.augmentation.changes(self.epoch, batch.clips)
        audio, lengths = self.augmentation.sound(batch.audio, batch.clips, changes)
        mel = self.augmentation.mask(self.log_mel(audio), changes, lengths)
        return self.encoder.encode(mel) if self.encoder else mel

    def log_mel(self, audio: Tensor) -> Tensor:
        return log_mel(audio, self.model.dims.n_mels)

    def step_within_memory(self, step: Step) -> tuple[float, float]:
        """Take the step; if a GPU's memory runs out, take it in smaller micro-batches: the same step."""
        batches = step.batches
        while True:
            while any(len(batch) > self.micro_batch for batch in batches):
                batches = [half for b in batches for half in (b.split_in_half() if len(b) > self.micro_batch else [b])]
            try:
                return self.training_step(batches, step.target_tokens)
            except torch.OutOfMemoryError:
                pass  # and on out here, where nothing holds the failed graph any more
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch = self.fewer_clips(self.micro_batch)

    def fewer_clips(self, clips: int) -> int:
        """Return half of ``clips``, after the memory has run out; raise a :class:`UserError` if that is none."""
        if clips == 1:
            raise UserError(
                f"{self.device} has no memory for a single clip: try --grad-checkpoint, or a smaller --model"
            )
        torch.cuda.empty_cache()
        self.log(f"out of memory: {clips // 2} clips at a time from here on, and as many more times")
        return clips // 2

    def steps(self) -> Iterator[Step]:
        """Yield the steps that remain of the epoch, each with texts of one length in a micro-batch."""
        order = epoch_order(len(self.data.train), self.config.seed, self.epoch)
        first = self.epoch * self.steps_per_epoch
        pin = self.device.type == "cuda"
        for clips in split(order, self.clips_per_step)[self.step - first : self.total_steps - first]:
            examples = sorted((self.data.train[i] for i in clips), key=lambda example: len(example.tokens))
            mine = shard(examples, self.micro_batch, self.world.rank, self.world.size)
            augmented = self.augmentation is not None
            encoder = None if augmented else self.encoder
            batches = [make_batch(part, self.data.cache, pin, encoder, augmented) for part in mine]
            yield Step(
                batches,
                clips=len(examples),
                ayat=sum(len(example.parts) for example in examples),
                audio_seconds=sum(example.seconds for example in examples),
                target_tokens=sum(example.target_tokens for example in examples),
            )

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, or of the run if --max-steps ends it; return False if time was up before."""
        self.objective.train()
        done = (self.step - self.epoch * self.steps_per_epoch) * self.clips_per_step
        label = f"epoch {self.epoch + 1}/{self.epochs} (epoch-{self.epoch:03})"
        validations = (self.epochs - self.epoch) * self.validation_seconds()
        unit = "window" if self.config.pack else "clip"
        with (
            self.interrupts.deferred(),
            closing(prefetch(self.steps())) as feed,  # type: ignore[type-var]
            progress_bar(len(self.data.train), unit, label, initial=done, disable=not self.world.is_main) as bar,
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
                        "ayat_per_s": step.ayat / seconds,
                        "times_real_time": step.audio_seconds / seconds,
                        "data_wait": waited / seconds,
                    }
                )
                left = format_duration(self.training_seconds() + validations)
                shown = {"loss": f"{loss:.3f}", "lr": f"{lr:.1e}", "run_ends_in": left}
                if self.config.pack:
                    shown["ayat/s"] = f"{self.recent('ayat_per_s'):.2f}"
                    shown["real time"] = f"{self.recent('times_real_time'):.1f}x"
                bar.set_postfix(shown, refresh=False)
                bar.update(step.clips)
                if self.should_stop(seconds):
                    self.save()
                    return False
            self.save()
        return True

    def check_finite(self, loss: float, norm: float) -> None:
        """Count steps in a row that were skipped; fp16's scaler may need some to find its scale, and they are not."""
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
        """Save if it is time to; after a signal, save and leave. Return True if the time limit is near.

        A signal reaches the processes at different moments: they agree on the step to stop at.
        """
        now = time.monotonic()
        signal = self.interrupts.requested or 0
        out_of_time = now + 2 * step_seconds + self.writer.seconds > self.setup.deadline
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

    def training_seconds(self) -> float:
        """Estimate how long the steps that are left take."""
        return (self.total_steps - self.step) * self.clips_per_step / self.recent("clips_per_s")

    def recent(self, speed: str) -> float:
        """Return the median of a ``speed`` over the last steps."""
        return median(row[speed] for row in self.history.rows[-50:] if row["event"] == "train")

    def validation_seconds(self) -> float:
        """Return how long the last validation took; 0 before the first."""
        rows = list(self.history.valid().values())[-1:]
        return sum(row["seconds"] for reciters in rows for row in reciters.values())

    def time_for_validation(self) -> bool:
        """Return True if validation fits before the deadline, going by how long it took the last time."""
        took = self.validation_seconds()
        left = self.setup.deadline - time.monotonic()
        (late,) = self.world.sum([float(1.2 * took + self.writer.seconds > left)], self.device)
        if late:
            self.log(
                f"validation took {format_duration(took)} the last time, and {format_duration(max(left, 0))} are left"
            )
        return not late

    def out_of_patience(self) -> bool:
        """Return True if --patience epochs have passed since the best one."""
        best = best_epoch(self.history)
        if self.config.patience is None or best is None or self.epoch - 1 - best < self.config.patience:
            return False
        self.log(f"patience   no epoch after epoch {best} had a lower WER: this is the end of the run")
        return True

    def average_epochs(self) -> bool:
        """Average the best epochs' weights, if asked to, and validate them; return False if the time was up before.

        The state on disk stays that of the last epoch.
        """
        epochs = self.files.averaged(self.epoch - 1)
        done = self.history.average().keys() == self.data.valid.keys() and (self.config.out / "average.pt").exists()
        if len(epochs) < 2 or self.world.on_main(lambda: done):
            return True
        if not self.time_for_validation():
            return False
        merge_adapters(self.model)
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.world.on_all(lambda: average_weights(map(self.files.path, epochs), trained))
        self.validate(self.epoch, averaged=epochs)
        if self.world.is_main:
            self.files.save_average(self.epoch - 1, self.model)
        return True

    def validate(self, epoch: int, averaged: Sequence[int] = ()) -> None:
        """Measure every validation reciter and add a row for each.

        ``epoch`` -1 is the untouched model; if the weights are ``averaged``, it is how many epochs there were.
        """
        self.objective.eval()
        done = self.history.average() if averaged else self.history.valid().get(epoch, {})
        for reciter, examples in self.data.valid.items():
            if reciter in done:
                continue  # of the untouched or the averaged model, before the run was resumed
            start = time.perf_counter()
            result = self.measure(examples)
            seconds = time.perf_counter() - start
            errors = result.errors
            self.history.append(
                {
                    "event": "average" if averaged else "valid",
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
                    "der": errors.der,
                    "letters": errors.letters,
                    "diacritic_errors": errors.diacritic_errors,
                    "seconds": seconds,
                    **({"epochs": averaged} if averaged else {}),
                }
            )
            name = "average" if averaged else "vanilla" if epoch < 0 else f"epoch {epoch}"
            rates = f"WER {percent(errors.wer)}, CER {percent(errors.cer)}"
            if errors.letters:
                rates += f", DER {percent(errors.der)}"
            took = f"({len(examples)} ayat in {seconds:.0f} s)"
            self.log(f"{name:<10} {reciter}: loss {result.loss:.4f}, {rates} {took}")
        if self.world.is_main:
            write_results(self.history, self.config.out)

    def measure(self, examples: list[Example]) -> Validation:
        """Validate on ``examples``, with fewer clips at a time after a GPU's memory has run out."""
        encoder = self.encoder or FrozenEncoder(self.model, self.precision.dtype)
        while True:
            options = replace(self.config, batch_size=self.valid_batch)
            try:
                return validate(self.objective, encoder, examples, self.data.cache, self.setup, options)
            except torch.OutOfMemoryError:
                pass
            self.valid_batch = self.fewer_clips(self.valid_batch)

    def save_checkpoints(self) -> None:
        """Save this epoch's Whisper checkpoint, and ``best.pt`` if no epoch had a lower validation WER.

        Without validation the latest epoch is the best that is known.
        """
        rows = self.history.valid().get(self.epoch, {}).values()
        wer = corpus_wer(rows)
        better = math.isnan(wer) or wer < self.best_wer
        if wer < self.best_wer:
            self.best_wer = wer
        if not self.world.is_main:
            return
        self.writer.finish()  # a checkpoint without any state could not be resumed from
        self.files.save(self.epoch, self.model, is_best=better)

    def save(self) -> None:
        """Save the state: one process copies it, and writes the copy while training goes on."""
        if self.world.is_main:
            with self.interrupts.shielded():
                self.writer.save(self.state_dict())
        self.last_save = time.monotonic()

    def state_dict(self) -> State:
        """Return all that :meth:`load_state_dict` needs; the tensors are the run's own, not copies."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best_wer": self.best_wer,
            "bad_steps": self.bad_steps,
            "precision": self.precision.name,
            "config": to_json(self.config),
            "clips_per_step": self.clips_per_step,
            "dims": asdict(self.model.dims),
            "data": self.data_digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state`` was saved, with the rows of metrics.jsonl as they were then.

        Raises:
            UserError: the recordings or their texts are not those that the run began with, or ``state`` was edited.
        """
        if self.data_digest and state["data"] != self.data_digest:
            raise UserError(
                f"the recordings or their texts are not those the run in {self.config.out} began with "
                f"(now {len(self.data.train)} ayat to train on; see skipped.csv): restore them, or choose another --out"
            )
        try:
            self.step, self.epoch = int(state["step"]), int(state["epoch"])
            self.best_wer, self.bad_steps = float(state["best_wer"]), int(state["bad_steps"])
            self.model.load_state_dict(state["model"])
            # A copy: the optimiser would go on working in the mapped file.
            self.optimizer.load_state_dict(to_memory(state["optimizer"]))
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

    @cached_property
    def data_digest(self) -> str:
        """The digest of the recordings and their texts."""
        return self.data.digest()


def is_finite(loss: float, norm: float) -> bool:
    """Return True if a step with this loss and this norm of the gradient was taken."""
    return math.isfinite(loss) and math.isfinite(norm)
