"""Fine-tuning: from a :class:`.config.TrainingConfig` to checkpoints that ``whisper.load_model`` opens.

``train`` reads from top to bottom as a run goes: find the ayat, decode them once, load the model, say what was decided
and why, then validate, and train and validate epoch by epoch. ``training_step`` is the whole of the arithmetic.
"""

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
from .dataset import Batch, Example, epoch_order, make_batch, prefetch, split
from .device import Precision, choose_device, choose_precision
from .features import log_mel
from .history import History, corpus_rate, results_table, write_results
from .objective import Objective
from .optim import build_optimizer, schedule
from .preparation import Data, make_tokenizer, prepare_data, select_ayat, summary
from .run_folder import State, claim, save_state, write_config, write_skipped
from .validation import validate

Say = Callable[[str], None]


def train(config: TrainingConfig, say: Say = print) -> History:
    """Run the training that ``config`` describes, writing under ``config.out``; return what was measured.

    Raises:
        UserError: something in the data, the model or the options must be changed first.
    """
    device, device_reason = choose_device(config.device)
    selection = select_ayat(config, say)
    state = claim(config)
    model = load_checkpoint(config.model, device)
    tokenizer = make_tokenizer(model, config.language)
    # What auto stood for when the run began is part of it.
    precision = choose_precision(state["precision"] if state else config.precision, device, model)
    data = prepare_data(config, selection, model, tokenizer, say)

    run = Run(config, data, model, tokenizer, precision, device, say)
    if state:
        run.load_state_dict(state)
    else:
        write_config(config, {"device": str(device), "precision": precision.name})
        write_skipped(config.out, data.skipped)
    say(f"device     {device}: {device_reason}")
    describe(run)

    if run.step == 0 and not config.no_vanilla:
        run.validate(epoch=-1)
    while run.epoch < run.epochs:
        run.train_epoch()
        run.validate(run.epoch)
        run.save_checkpoints()
        run.epoch += 1
        save_state(config.out, run.state_dict())
    say("\n" + results_table(run.history))
    return run.history


def training_step(
    objective: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    device: torch.device,
    n_mels: int,
    clip_grad: float,
) -> tuple[float, float]:
    """One optimiser step over the micro-batches ``batches``; return (mean loss in nats, norm of the gradient).

    Each micro-batch's summed loss is divided by the target tokens of the whole step, so that the gradient is that of
    one large batch, however it was cut. A step whose gradient is not finite changes nothing.
    """
    target_tokens = sum(batch.target_tokens for batch in batches)
    loss = torch.zeros((), device=device)
    for batch in batches:
        batch = batch.to(device)
        mel = log_mel(batch.audio, n_mels)
        with precision.autocast(device):
            summed = objective(mel, batch.tokens, batch.positions, batch.targets)
        loss += summed.detach()
        scaler.scale(summed / target_tokens).backward()
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_grad or float("inf")).item()
    if scaler.is_enabled() or norm < float("inf"):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.item() / target_tokens, norm


class Run:
    """A training run: model, optimiser and how far they have come; :meth:`save` and :meth:`load` keep them."""

    def __init__(
        self,
        config: TrainingConfig,
        data: Data,
        model: Whisper,
        tokenizer: Tokenizer,
        precision: Precision,
        device: torch.device,
        say: Say,
    ):
        self.config, self.data, self.model = config, data, model
        self.precision, self.device, self.say = precision, device, say
        self.prompt = len(tokenizer.sot_sequence_including_notimestamps)
        self.objective = Objective(model, config.train_encoder)
        self.optimizer = build_optimizer(self.objective, config.lr, config.weight_decay, config.adam_eps)
        # fp16's small gradients would vanish; for the other precisions the scaler only passes on.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        if config.grad_checkpoint:
            checkpoint_activations(model)
        self.forward = torch.compile(self.objective) if config.compile else self.objective
        self.history = History(config.out / "metrics.jsonl")
        self.step = 0  # optimiser steps done
        self.epoch = 0  # epochs trained, validated and saved
        self.best_wer = float("inf")

        self.steps_per_epoch = -(-len(data.train) // (config.batch_size * config.accumulate))
        self.total_steps = min(config.epochs * self.steps_per_epoch, config.max_steps or 10**12)
        self.epochs = -(-self.total_steps // self.steps_per_epoch)

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each remaining step of this epoch."""
        examples, size = self.data.train, self.config.batch_size
        order = epoch_order(len(examples), self.config.seed, self.epoch)
        first = self.epoch * self.steps_per_epoch
        for step in split(order, size * self.config.accumulate)[self.step - first : self.total_steps - first]:
            yield [
                make_batch([examples[i] for i in part], self.data.recordings, self.prompt, self.device.type == "cuda")
                for part in split(step, size)
            ]

    def train_epoch(self) -> None:
        """Train to the end of the epoch, or of the run where --max-steps ends it."""
        self.objective.train()
        n_mels = self.model.dims.n_mels
        clips = len(self.data.train)
        done = (self.step - self.epoch * self.steps_per_epoch) * self.config.batch_size * self.config.accumulate
        feed = prefetch(self.batches())
        with tqdm(total=clips, initial=done, unit="clip", desc=f"epoch {self.epoch}") as bar:
            while True:
                start = time.perf_counter()
                batches = next(feed, None)
                if batches is None:
                    break
                fed = time.perf_counter()
                lr = self.config.lr * schedule(self.step, self.config.warmup_steps, self.total_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                loss, norm = training_step(
                    self.forward, batches, self.optimizer, self.scaler, self.precision, self.device, n_mels,
                    self.config.clip_grad,
                )  # fmt: skip
                self.step += 1
                seconds = time.perf_counter() - start
                trained = sum(map(len, batches))
                self.history.append(
                    {
                        "event": "train",
                        "epoch": self.epoch,
                        "step": self.step,
                        "epoch_progress": self.step / self.steps_per_epoch,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": norm,
                        "target_tokens": sum(batch.target_tokens for batch in batches),
                        "clips_per_s": trained / seconds,
                        "data_wait": (fed - start) / seconds,
                    }
                )
                bar.update(trained)
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")

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
                batch_size=self.config.batch_size,
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
                    "ayat": result.ayat,
                    "words": errors.words,
                    "word_errors": errors.substitutions + errors.deletions + errors.insertions,
                    "characters": errors.characters,
                    "character_errors": errors.character_errors,
                    "seconds": seconds,
                }
            )
            label = "vanilla" if epoch < 0 else f"epoch {epoch}"
            self.say(
                f"{label:<10} {reciter}: loss {result.loss:.4f}, WER {100 * errors.wer:.2f} %, "
                f"CER {100 * errors.cer:.2f} % ({result.ayat} ayat in {seconds:.0f} s)"
            )
        write_results(self.history, self.config.out)

    def save_checkpoints(self) -> None:
        """Save this epoch's Whisper checkpoint, and ``best.pt`` where no epoch had a lower validation WER.

        Without validation the latest epoch is the best that is known.
        """
        out = self.config.out
        save_checkpoint(out / f"epoch-{self.epoch:03}.pt", self.model)
        rows = self.history.valid().get(self.epoch, {}).values()
        wer = corpus_rate(rows, "word_errors", "words")
        if not wer >= self.best_wer:
            self.best_wer = wer if rows else self.best_wer
            save_checkpoint(out / "best.pt", self.model)

    def state_dict(self) -> State:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best_wer": self.best_wer,
            "precision": self.precision.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.step, self.epoch, self.best_wer = state["step"], state["epoch"], state["best_wer"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history.restore(self.step, self.epoch)


def checkpoint_activations(model: Whisper) -> None:
    """Make every block recompute its activations in the backward pass in place of keeping them."""
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def describe(run: Run) -> None:
    """Say what was decided, and why, before the first step."""
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
    cut = f"{config.batch_size} clips" + (f" × {config.accumulate}" if config.accumulate > 1 else "")
    begun = f"; {run.step} are done" if run.step else ""
    say(f"steps      {run.steps_per_epoch} an epoch of {cut}, {run.total_steps} in all{begun}")
