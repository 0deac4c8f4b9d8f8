"""Other projects' training beside ours: whole runs on the same real clips, loading and validation included.

  python benchmarks/train.py --peers --data DIR --model base.pt [--clips 64 --valid-clips 16 --epochs 5 --batch-size 16]

- ours, each clip encoded at its own length; and, for comparison, in Whisper's 30 s;
- transformers' ``Seq2SeqTrainer``, or where ``accelerate`` is missing a plain loop over its model;
- finetune-openai-whisper: its dataset, collator and Lightning module;
- a plain loop over openai-whisper.

Everybody trains the same part with AdamW at a rate that falls linearly from 5e-5, without warm-up, weight decay,
clipping or dropout, on the clips of an epoch in the order of ours; so the losses have to agree, to what the audio
readers and the rounding leave. After every epoch everybody measures WER on the same ayat, by decoding greedily as it
does on its own. The peers read the audio files as their documentation does, in as many loader processes as there are
cores (up to 8). Ours reads recordings that were decoded beforehand: how long that took is in the last line. Every row
is a process of its own. The clock starts when the model is on the device, and the first epoch has in it what the first
steps cost.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from isolated import Outcome, Report, run_isolated  # benchmarks/isolated.py
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from train import Clips, Setup, epoch_losses, make_trainer, open_clips, peak_memory  # benchmarks/train.py
from whisper_quran.checkpoints.checkpoint import load_checkpoint
from whisper_quran.convert import convert
from whisper_quran.data import batches as training_batches
from whisper_quran.data.batches import epoch_order
from whisper_quran.data.features import FULL_CONTEXT
from whisper_quran.data.prepare import Example
from whisper_quran.data.text import normalize
from whisper_quran.evaluation.word_errors import ErrorCounts, count_errors
from whisper_quran.runtime.device import Precision, choose_device, choose_precision

LR = 5e-5
EOT = 50257
LIMIT = 7200.0  # seconds a row


@dataclass
class Epoch:
    """Seconds of training, mean loss of its steps; then seconds of validation and its WER."""

    seconds: float
    loss: float
    valid_seconds: float = 0.0
    wer: float = math.nan


@dataclass(frozen=True)
class Job:
    """What everybody does. ``folder`` holds the model as ``model.pt`` and ``hf``; the batch size divides the clips."""

    folder: Path
    clips: Clips
    valid: list[Example]
    device: str
    precision: str
    batch_size: int
    epochs: int
    train_encoder: bool = False

    @property
    def setup(self) -> Setup:
        return Setup(choose_device(self.device)[0], Precision(self.precision, "as asked"))

    @property
    def workers(self) -> int:
        return min(8, os.cpu_count() or 1)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.clips.examples) // self.batch_size

    @property
    def order(self) -> list[Example]:
        """The clips of all epochs, one after another, as our trainer takes them."""
        examples = self.clips.examples
        return [examples[i] for epoch in range(self.epochs) for i in epoch_order(len(examples), 0, epoch)]

    def rate(self, step: int) -> float:
        """The learning rate, as a share of its highest."""
        return 1 - step / (self.epochs * self.steps_per_epoch)

    def wer(self, texts: Sequence[str]) -> float:
        """WER of ``texts``, in the order of ``valid``."""
        errors = ErrorCounts()
        for example, text in zip(self.valid, texts, strict=True):
            errors += count_errors(normalize(example.ayah.text, "diacritics"), normalize(text, "diacritics"))
        return errors.wer


@dataclass
class Clock:
    """Ends an epoch every ``job.steps_per_epoch`` steps: that is when a GPU is waited for."""

    job: Job
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def step(self, loss: Tensor) -> bool:
        """Count a step; return True if it ended an epoch."""
        self.losses.append(loss.detach())
        if len(self.losses) < self.job.steps_per_epoch:
            return False
        mean = torch.stack(self.losses).mean().item()
        self.epochs.append(Epoch(time.perf_counter() - self.start, mean))
        self.losses, self.start = [], time.perf_counter()
        return True

    def validated(self, wer: float) -> None:
        """The time since the last step was validation, which gave ``wer``."""
        self.epochs[-1].valid_seconds, self.epochs[-1].wer = time.perf_counter() - self.start, wer
        self.start = time.perf_counter()


def ours(job: Job, full_context: bool = False) -> list[Epoch]:
    if full_context:
        training_batches.context_of = lambda samples, full=False: FULL_CONTEXT
    setup = job.setup
    model = load_checkpoint(job.folder / "model.pt", setup.device)
    options = {"lr": LR, "weight_decay": 0.0, "clip_grad": 0.0, "warmup_steps": 0, "epochs": job.epochs}
    options |= {"batch_size": job.batch_size, "train_encoder": job.train_encoder, "cache": job.folder}
    trainer = make_trainer(model, job.clips, setup, **options)
    clock = Clock(job)
    for _ in range(job.epochs):
        trainer.objective.train()
        for loss in epoch_losses(trainer):
            clock.step(torch.tensor(loss))
        trainer.objective.eval()
        clock.validated(trainer.measure(job.valid)["wer"])
    return clock.epochs


class Recitations(Dataset):
    """The clips of all epochs, each read, resampled and turned into a log-mel when its turn comes."""

    def __init__(self, order: list[Example], log_mel: Callable[[np.ndarray], Tensor]) -> None:
        self.order, self.log_mel = order, log_mel

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, Example]:
        example = self.order[index]
        return self.log_mel(read_audio(example.ayah.audio)), example


def read_audio(file: Path) -> np.ndarray:
    """soundfile and ``torchaudio.functional.resample``, as most fine-tuning scripts have it."""
    import soundfile
    import torchaudio

    sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torchaudio.functional.resample(torch.from_numpy(sound.mean(axis=1)), rate, 16_000).numpy()


def collate(items: list[tuple[Tensor, Example]]) -> dict[str, Tensor]:
    """Mels, the decoder's input and, at the same positions, what is taught there (-100: nothing)."""
    length = max(len(example.tokens) for _, example in items) - 1
    tokens = torch.full((len(items), length), EOT)
    labels = torch.full_like(tokens, -100)
    for row, (_, example) in enumerate(items):
        said = torch.tensor(example.tokens)
        tokens[row, : len(said) - 1] = said[:-1]
        labels[row, example.first_target - 1 : len(said) - 1] = said[example.first_target :]
    mels = torch.stack([mel for mel, _ in items])
    return {"input_features": mels, "decoder_input_ids": tokens, "labels": labels}


def loader(job: Job, examples: list[Example], log_mel: Callable[[np.ndarray], Tensor]) -> DataLoader:
    data, pin = Recitations(examples, log_mel), job.device != "cpu"
    return DataLoader(data, job.batch_size, num_workers=job.workers, collate_fn=collate, pin_memory=pin)


def plain_loop(
    job: Job,
    batches: Iterable[dict[str, Tensor]],
    model: torch.nn.Module,
    loss_of: Callable[..., Tensor],
    transcribe: Callable[[], list[str]],
) -> list[Epoch]:
    """The loop that everybody writes first: autocast, backward, AdamW, a schedule, ``transcribe`` every epoch."""
    setup = job.setup
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, job.rate)
    scaler = torch.amp.GradScaler(setup.device.type, enabled=job.precision == "fp16")
    clock = Clock(job)
    for batch in batches:
        inputs = {name: tensor.to(setup.device, non_blocking=True) for name, tensor in batch.items()}
        with setup.precision.autocast(setup.device):
            loss = loss_of(**inputs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        if clock.step(loss):
            model.eval()
            clock.validated(job.wer(transcribe()))
            model.train()
    return clock.epochs


def openai_whisper(job: Job) -> list[Epoch]:
    model = whisper.load_model(str(job.folder / "model.pt"), device=job.setup.device).train()
    model.encoder.requires_grad_(job.train_encoder)
    options = whisper.DecodingOptions(language="ar", without_timestamps=True, fp16=job.precision == "fp16")

    def log_mel(audio: np.ndarray) -> Tensor:
        return whisper.log_mel_spectrogram(whisper.pad_or_trim(audio), model.dims.n_mels)

    def loss_of(input_features: Tensor, decoder_input_ids: Tensor, labels: Tensor) -> Tensor:
        logits = model.decoder(decoder_input_ids, model.encoder(input_features))
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

    def transcribe() -> list[str]:
        mels = (batch["input_features"].to(job.setup.device) for batch in loader(job, job.valid, log_mel))
        return [result.text for mel in mels for result in whisper.decode(model, mel, options)]

    return plain_loop(job, loader(job, job.order, log_mel), model, loss_of, transcribe)


def transformers(job: Job) -> list[Epoch]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = str(job.folder / "hf")
    model = WhisperForConditionalGeneration.from_pretrained(folder).float().to(job.setup.device).train()
    model.generation_config.update(language="ar", task="transcribe")
    if not job.train_encoder:
        model.freeze_encoder()
    processor = WhisperProcessor.from_pretrained(folder)

    def log_mel(audio: np.ndarray) -> Tensor:
        return processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features[0]

    def texts(tokens: Any) -> list[str]:
        return processor.batch_decode(np.where(tokens < 0, EOT, tokens), skip_special_tokens=True)

    def transcribe() -> list[str]:
        mels = (batch["input_features"].to(job.setup.device) for batch in loader(job, job.valid, log_mel))
        with torch.no_grad():
            return [text for mel in mels for text in texts(model.generate(mel).cpu().numpy())]

    batches = loader(job, job.order, log_mel)
    if importlib.util.find_spec("accelerate") is None:
        return plain_loop(job, batches, model, lambda **inputs: model(**inputs).loss, transcribe)
    return seq2seq_trainer(job, batches, loader(job, job.valid, log_mel), model, texts)


def seq2seq_trainer(
    job: Job, batches: DataLoader, valid: DataLoader, model: Any, texts: Callable[[Any], list[str]]
) -> list[Epoch]:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    clock = Clock(job)

    class Timed(Seq2SeqTrainer):
        def get_train_dataloader(self) -> DataLoader:
            return batches

        def get_eval_dataloader(self, *args: Any) -> DataLoader:
            return valid

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.loss = super().compute_loss(*args, **kwargs)
            return self.loss

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step(trainer.loss)

        def on_evaluate(self, *args: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            clock.validated(metrics["eval_wer"])

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(job.folder / "trainer"),
        per_device_train_batch_size=job.batch_size,
        num_train_epochs=1,  # the loader has them all
        learning_rate=LR,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=0.0,
        bf16=job.precision == "bf16",
        fp16=job.precision == "fp16",
        use_cpu=job.device == "cpu",
        eval_strategy="steps",
        eval_steps=job.steps_per_epoch,
        predict_with_generate=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Timed(
        model=model,
        args=arguments,
        train_dataset=batches.dataset,
        eval_dataset=valid.dataset,
        callbacks=[Steps()],
        compute_metrics=lambda result: {"wer": job.wer(texts(result.predictions))},
    )
    trainer.train()
    return clock.epochs


def finetune_openai_whisper(job: Job) -> list[Epoch]:
    """Its own ``prepare_trainer_from_config`` shuffles; here its parts are in our order."""
    import pytorch_lightning as lightning
    from finetune_openai_whisper import Config, WhisperDataCollatorWithPadding, WhisperDataset, WhisperModelModule

    config = Config(lang="ar", freeze_encoder=not job.train_encoder, learning_rate=LR, weight_decay=0.0)
    config.warmup_steps, config.train_batch_size, config.num_train_epochs = 0, job.batch_size, 1
    config.train_dataset_len = len(job.order)
    module = WhisperModelModule(config, str(job.folder / "model.pt"), "ar")
    prompt = WhisperDataCollatorWithPadding(module.tokenizer.sot_sequence_including_notimestamps)

    def batches(examples: list[Example], name: str) -> DataLoader:
        rows = [
            {
                "utt": str(number),
                "audio_filepath": str(example.ayah.audio),
                "text": " " + example.ayah.text,
                "duration": example.seconds,
                "offset": 0.0,
            }
            for number, example in enumerate(examples)
        ]
        listed = job.folder / f"{name}.jsonl"
        listed.write_text("\n".join(json.dumps(row) for row in rows))
        data = WhisperDataset(str(listed), module.tokenizer, module.model.dims.n_mels, min_duration=0.0)
        return DataLoader(data, job.batch_size, num_workers=job.workers, collate_fn=prompt)

    clock, said, decode = Clock(job), [], module.model.decode

    def heard(*args: Any, **kwargs: Any) -> Any:
        results = decode(*args, **kwargs)
        said.extend(result.text for result in results)
        return results

    module.model.decode = heard

    class Steps(lightning.Callback):
        def on_train_start(self, *args: Any) -> None:
            clock.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            clock.step(outputs["loss"])

        def on_validation_end(self, *args: Any) -> None:
            clock.validated(job.wer(said))
            said.clear()

    trainer = lightning.Trainer(
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[job.precision],
        accelerator="cpu" if job.device == "cpu" else "gpu",
        devices=1,
        max_epochs=1,  # the dataset has them all
        val_check_interval=job.steps_per_epoch,
        num_sanity_val_steps=0,
        callbacks=[Steps()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, batches(job.order, "train"), batches(job.valid, "valid"))
    return clock.epochs


WAYS: dict[str, Callable[[Job], list[Epoch]]] = {
    "ours, 30 s": partial(ours, full_context=True),
    "ours": ours,
    "transformers": transformers,
    "finetune-openai-whisper": finetune_openai_whisper,
    "openai-whisper, plain loop": openai_whisper,
}


def run_way(way: str, job: Job, limit: float = LIMIT) -> Outcome:
    """Train ``way`` in a process of its own; its rows are the epochs, then the peak memory in bytes."""

    def work(report: Report) -> None:
        for epoch in WAYS[way](job):
            report(epoch)
        report(peak_memory(torch.device(job.device)))

    return run_isolated(work, limit)


def label(way: str) -> str:
    """The name of a row: with transformers, which of its two ways it was."""
    if way != "transformers":
        return way
    with_accelerate = importlib.util.find_spec("accelerate") is not None
    return "transformers, Seq2SeqTrainer" if with_accelerate else "transformers, plain loop (no accelerate)"


def prepare_job(args: argparse.Namespace, folder: Path) -> tuple[Job, float]:
    """Decode the recordings and write the model in its two forms; return how many seconds the decoding took, too."""
    device, _ = choose_device(args.device)
    model = load_checkpoint(args.model, device)
    precision = choose_precision(args.precision, device, model)
    convert(args.model, folder / "model.pt")
    convert(args.model, folder / "hf", to="hf", dtype="fp32")
    start = time.perf_counter()
    clips = open_clips(args.data, folder / "cache", args.clips)
    seconds = time.perf_counter() - start
    examples = random.Random(0).sample(clips.examples, len(clips.examples))
    valid, examples = examples[: args.valid_clips], examples[args.valid_clips :][: args.clips]
    whole = len(examples) // args.batch_size[0] * args.batch_size[0]
    if not whole or not valid:
        raise SystemExit(f"{args.data} has too few ayat of at most 30 s for a batch of {args.batch_size[0]}")
    clips = replace(clips, examples=examples[:whole])
    options = (device.type, precision.name, args.batch_size[0], args.epochs, args.train_encoder)
    return Job(folder, clips, valid, *options), seconds


def compare(args: argparse.Namespace) -> None:
    """Print the table of ``benchmarks/train.py --peers``."""
    if args.model is None:
        raise SystemExit("--peers needs --model FILE: a Whisper checkpoint")
    with tempfile.TemporaryDirectory() as name:
        prepared = run_isolated(lambda report: report(prepare_job(args, Path(name))), LIMIT)
        if prepared.error:
            raise SystemExit(prepared.error)
        job, seconds = prepared.rows[0]
        part = "everything" if job.train_encoder else "decoder"
        print(f"{len(job.clips.examples)} ayat × {job.epochs} epochs, {len(job.valid)} to validate, ", end="")
        print(f"batch {job.batch_size}, {part} trained, {job.precision}, {job.device}, load {os.getloadavg()[0]:.1f}\n")
        print("| | first epoch, clips/s | later | a validation, s | whole run, s | × | memory | loss | WER |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        longest = math.nan
        for way in reversed(WAYS):
            outcome = run_way(way, job)
            if outcome.error:
                print(f"| {label(way)} | {outcome.error} | | | | | | | |", flush=True)
                continue
            *epochs, memory = outcome.rows
            whole = sum(epoch.seconds + epoch.valid_seconds for epoch in epochs)
            longest = whole if math.isnan(longest) else longest
            print(f"| {label(way)} | {' | '.join(cells(job, epochs, whole))} | {longest / whole:.2f} ", end="")
            print(f"| {memory / 2**30:.2f} GiB | {epochs[0].loss:.4f} → {epochs[-1].loss:.4f} ", end="")
            print(f"| {100 * epochs[-1].wer:.1f} % |", flush=True)
        print(f"\nours decoded the recordings beforehand, once for all runs: {seconds:.1f} s")


def cells(job: Job, epochs: list[Epoch], whole: float) -> list[str]:
    """Clips a second in the first epoch and later, seconds of a validation and of the whole run."""
    clips, later = len(job.clips.examples), epochs[1:] or epochs
    rate = len(later) * clips / sum(epoch.seconds for epoch in later)
    validation = sum(epoch.valid_seconds for epoch in epochs) / len(epochs)
    return [f"{clips / epochs[0].seconds:.2f}", f"{rate:.2f}", f"{validation:.1f}", f"{whole:.0f}"]
