"""A training run: the loop over steps and epochs, and how far it has come.

A run is a function of its options: the clips of a step follow from seed, epoch and step alone, nothing else is drawn at
random, and how many clips share a micro-batch or a process changes nothing but rounding. So a run that was cut off
anywhere goes on from its last saved step to the weights it would have had.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from signal import SIGTERM

import torch
from tqdm import tqdm
from whisper.model import Whisper

from ..checkpoints.checkpoint import save_checkpoint
from ..config import TrainingConfig
from ..data.batches import Batch, Example, epoch_order, make_batch, prefetch, share, split
from ..data.prepare import Data
from ..runtime.device import Precision
from ..runtime.distributed import World
from ..runtime.errors import Interrupted, UserError
from ..runtime.interrupts import Interrupts
from .loss import Objective
from .metrics_log import History, corpus_rate, results_table, write_results
from .optimizer import build_optimizer, schedule
from .state import State, StateWriter, to_memory
from .step import accumulate, checkpoint_activations, is_finite, update
from .validation import Validation, validate

Say = Callable[[str], None]
SAVE_SECONDS = 600.0  # between two saves, unless --save-every says otherwise
MOST_BAD_STEPS = 5  # in a row, before a run is stopped


class Run:
    """A training run: the model, the optimiser, and how far they have come."""

    def __init__(
        self,
        config: TrainingConfig,
        data: Data,
        model: Whisper,
        precision: Precision,
        device: torch.device,
        world: World,
        interrupts: Interrupts,
        say: Say,
    ):
        self.config, self.data, self.model = config, data, model
        self.precision, self.device, self.world = precision, device, world
        self.interrupts, self.say = interrupts, say
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
        # Smaller once a GPU's memory has run out: clips at a time, in training and in validation.
        self.micro_batch = self.valid_batch = config.batch_size
        self.deadline = math.inf
        self.saved = time.monotonic()

        self.clips_per_step = config.batch_size * config.accumulate * world.size
        self.steps_per_epoch = -(-len(data.train) // self.clips_per_step)
        self.total_steps = min(config.epochs * self.steps_per_epoch, config.max_steps or 10**12)
        self.epochs = -(-self.total_steps // self.steps_per_epoch)

    def train(self) -> None:
        """Go from where the run stands to its end, or to where time is up."""
        try:
            if self.step == 0 and not self.config.no_vanilla:
                self.validate(epoch=-1)
                self.save()
            while self.epoch < self.epochs:
                if not (self.train_epoch() and self.time_for_validation()):
                    self.say(f"time is up at step {self.step} of {self.total_steps}: continue with --resume")
                    return
                self.validate(self.epoch)
                self.save_checkpoints()
                self.epoch += 1
                self.save()
        except Interrupted:
            self.writer.finish()
            self.say(f"\nstopped at step {self.step} of {self.total_steps}: what is saved goes on with --resume")
            raise
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
            batches = [make_batch(part, self.data.recordings, pin) for part in parts]
            yield sum(example.target_tokens for example in examples), batches

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, or of the run where --max-steps ends it; False if time was up before."""
        self.objective.train()
        clips = len(self.data.train)
        done = (self.step - self.epoch * self.steps_per_epoch) * self.clips_per_step
        label = f"epoch {self.epoch}"
        with (
            self.interrupts.deferred(),
            closing(prefetch(self.steps())) as feed,
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
                share_of_loss = self.accumulate(batches, target_tokens)
                loss, norm = update(self.optimizer, self.scaler, share_of_loss, self.config.clip_grad, self.world)
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
                        "skipped": not is_finite(loss, norm),
                        "target_tokens": target_tokens,
                        "clips_per_s": trained / seconds,
                        "data_wait": waited / seconds,
                    }
                )
                bar.update(trained)
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")
                if self.should_stop(seconds):
                    self.save()
                    return False
            self.save()
        return True

    def accumulate(self, batches: list[Batch], target_tokens: int) -> torch.Tensor:
        """:func:`.step.accumulate`, cut finer where a GPU's memory runs out: the same step, smaller micro-batches."""
        while True:
            while any(len(batch) > self.micro_batch for batch in batches):
                batches = [half for b in batches for half in (b.halves() if len(b) > self.micro_batch else (b,))]
            try:
                return accumulate(
                    self.forward,
                    batches,
                    target_tokens,
                    self.scaler,
                    self.precision,
                    self.model.dims.n_mels,
                    self.device,
                )
            except torch.OutOfMemoryError:
                pass  # and on out here, where nothing holds the failed graph any more
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch = self.halved(self.micro_batch)

    def halved(self, clips: int) -> int:
        """Half as many clips at a time, for want of memory."""
        if clips == 1:
            raise UserError(
                f"{self.device} has no memory for a single clip: try --grad-checkpoint, or a smaller --model"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(f"out of memory: {clips // 2} clips at a time from here on, and as many more times")
        return clips // 2

    def count_parameters(self) -> tuple[int, int]:
        """How many the model has, and how many of them are trained."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)

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
        """Save if it is time to; after a signal, save and leave. True where the time limit is near.

        A signal reaches the processes at different moments: they agree on the step to stop at.
        """
        now = time.monotonic()
        signal = self.interrupts.requested or 0
        out_of_time = now + 2 * step_seconds + self.writer.seconds > self.deadline
        signals, late = self.world.sum([float(signal > 0), float(out_of_time)], self.device)
        if signals:
            self.save()
            raise Interrupted(signal or SIGTERM)
        if late:
            return True
        every = self.config.save_every
        if self.step % every == 0 if every else now - self.saved > SAVE_SECONDS:
            self.save()
        return False

    def time_for_validation(self) -> bool:
        """Whether validation fits before the deadline, going by how long it took the last time."""
        took = sum(row["seconds"] for rows in list(self.history.valid().values())[-1:] for row in rows.values())
        left = self.deadline - time.monotonic()
        (late,) = self.world.sum([float(1.2 * took + self.writer.seconds > left)], self.device)
        if late:
            self.say(f"validation took {took / 60:.1f} minutes the last time, and {left / 60:.1f} are left")
        return not late

    def validate(self, epoch: int) -> None:
        """Measure every validation reciter and add a row for each; ``epoch`` -1 is the untouched model."""
        self.objective.eval()
        for reciter, examples in self.data.valid.items():
            if reciter in self.history.valid().get(epoch, {}):
                continue  # of the untouched model, before the run was resumed
            start = time.perf_counter()
            result = self.measure(examples)
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

    def measure(self, examples: list[Example]) -> Validation:
        """:func:`.validation.validate`, with fewer clips at a time where a GPU's memory runs out."""
        while True:
            try:
                return validate(
                    self.objective,
                    examples,
                    self.data.recordings,
                    language=self.config.language,
                    precision=self.precision,
                    device=self.device,
                    batch_size=self.valid_batch,
                    world=self.world,
                )
            except torch.OutOfMemoryError:
                pass
            self.valid_batch = self.halved(self.valid_batch)

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
        if self.world.is_main:
            self.writer.save(self.state_dict())
        self.saved = time.monotonic()

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best_wer": self.best_wer,
            "bad_steps": self.bad_steps,
            "precision": self.precision.name,
            "dims": asdict(self.model.dims),
            "data": self.data.digest(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state`` was saved, with the rows of metrics.jsonl as they were then.

        Raises:
            UserError: the recordings, their texts or the model are not those that the run began with.
        """
        if state["dims"] != asdict(self.model.dims):
            raise UserError(f"{self.config.model} has other dimensions than when the run began: give the one it had")
        if state["data"] != self.data.digest():
            raise UserError(
                f"the recordings or their texts are not those the run in {self.config.out} began with "
                f"(now {len(self.data.train)} ayat to train on; see skipped.csv): restore them, or choose another --out"
            )
        self.step, self.epoch = state["step"], state["epoch"]
        self.best_wer, self.bad_steps = state["best_wer"], state["bad_steps"]
        self.model.load_state_dict(state["model"])
        # A copy: the optimiser would go on working in the mapped file.
        self.optimizer.load_state_dict(to_memory(state["optimizer"]))
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.history.restore(self.step, self.epoch)
