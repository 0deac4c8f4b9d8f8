"""The parts of benchmarks/gpu.py: each yields its measurements, and its docstring stands over its table.

A measurement reports rows of (values, result), where a result that begins with ``failed`` counts as a failure. What is
compared has its tolerance beside it.
"""

import argparse
import importlib.util
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peers  # benchmarks/peers.py
import torch
import torch._dynamo  # an optimiser imports it, which takes 2 s: not in each process again
from isolated import Report  # benchmarks/isolated.py
from processes import clips_per_s  # benchmarks/processes.py
from whisper.model import Whisper

import evaluate as decoding_speed  # benchmarks/evaluate.py
from train import (
    Clips,
    Setup,  # benchmarks/train.py
    epoch_losses,
    gradient_of_step,
    make_model,
    make_trainer,
    matmul_rate,
    measure,
    open_clips,
    peak_memory,
    relative,
    synchronize,
    whole_step,
)
from whisper_quran.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from whisper_quran.config import EvaluationConfig
from whisper_quran.data import batches as training_batches
from whisper_quran.data.batches import Batch, Clip, make_batch
from whisper_quran.data.features import FULL_CONTEXT, AudioFeatures, FrozenEncoder, collate, context_of
from whisper_quran.decoding.batch_decoder import BatchDecoder
from whisper_quran.evaluation.evaluate import evaluate
from whisper_quran.runtime.device import DTYPES, Precision, choose_device, choose_precision
from whisper_quran.training import loss as training_loss
from whisper_quran.training.trainer import Trainer, is_finite

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 90.0  # seconds a measurement may take
EPOCH, RECITER = 37_000, 6236  # clips of Experiment 2A's training, and ayat of the Qur'an
TOKENS = 34  # an ayah's, on average
# How far a precision may be from fp32 on a CPU: a step's gradient, relative, and the choice of a token, in nats.
# On a GPU the convolutions of fp32 are in TF32.
TOLERANCE = {"fp32": (5e-3, 0.01), "fp16": (1e-2, 0.02), "bf16": (5e-2, 0.1)}
SAME = 1e-3  # of what differs by the order of sums alone
FIXED = {"lr": 1e-12, "warmup_steps": 0, "clip_grad": 0.0}  # steps that leave the weights as they are


@dataclass(frozen=True)
class Unit:
    """A measurement: ``work`` is called in a process of its own, or is the reason why it is left out."""

    name: str
    work: Callable[[Report], None] | str
    limit: float = LIMIT


@dataclass(frozen=True)
class Bench:
    """What the parts have in common. ``folder`` is a temporary one, with the recordings and a model of the ``size``."""

    folder: Path
    args: argparse.Namespace
    device: str
    about: dict[str, Any]  # the machine, for the tables
    clips: Clips
    precisions: list[str]  # that are measured
    precision: str  # what auto stands for
    rates: dict[str, float]  # operations a second of a matrix product
    gpus: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def size(self) -> str:
        """What the parts that have one size are measured at."""
        return "small" if "small" in self.args.sizes else self.args.sizes[0]

    @property
    def batch_sizes(self) -> tuple[int, int]:
        return (16, 64) if self.on_gpu else (2, 4)

    def setup(self, precision: str | None = None) -> Setup:
        return Setup(choose_device(self.device)[0], Precision(precision or self.precision, "as asked"))

    def lacks(self, precision: str) -> str:
        return f"this GPU has no {precision}" if self.on_gpu else "needs a GPU"

    def weights(self, device: torch.device | str) -> Whisper:
        """The model that precisions are compared on: ``--model``, or random weights that listen to the audio."""
        if self.args.model:
            return load_checkpoint(self.args.model, device)
        model = make_model(self.args.sizes[0])
        with torch.no_grad():
            model.decoder.token_embedding.weight *= 5
            for name, weight in model.named_parameters():
                if name.endswith(("query.weight", "key.weight", "value.weight", "conv1.weight", "conv2.weight")):
                    weight *= 3
        return model.eval().to(device)

    def goal(self, text: str, met: bool) -> str:
        """What a row's result says of a goal, which is one for a GPU (an H100)."""
        return f"goal {text}: {'met' if met else 'missed'}" if self.on_gpu else "measured"


def verdict(right: bool) -> str:
    return "pass" if right else "failed"


def prepare(args: argparse.Namespace, folder: Path) -> Bench:
    """Choose device and precision, decode the recordings, and save a model for the parts that open one."""
    device, reason = choose_device(args.device)
    args.sizes = args.sizes or (["base", "small", "medium", "large-v3"] if device.type == "cuda" else ["tiny"])
    precisions = ["fp32"]
    if device.type == "cuda":  # a CPU has fp16 too, but takes minutes
        precisions.append("fp16")
    if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.append("bf16")
    precision = choose_precision("auto", device, make_model("nano")).name
    rates = {name: matmul_rate(device, DTYPES[name]) for name in (precisions if device.type == "cuda" else [precision])}
    clips = open_clips(args.data, folder / "cache", args.clips)
    bench = Bench(folder, args, device.type, {}, clips, precisions, precision, rates, torch.cuda.device_count())
    most = bench.batch_sizes[1]
    whole = min(args.clips, len(clips.examples)) // most * most
    if not whole:
        raise SystemExit(f"{args.data} has {len(clips.examples)} ayat of at most 30 s: {most} are needed at least")
    clips.examples[whole:] = []  # batches are full
    (folder / "model").mkdir()
    save_checkpoint(folder / "model" / "model.pt", make_model(bench.size))
    rate = ", ".join(f"{rate / 1e12:.2f} in {name}" for name, rate in rates.items())
    bench.about.update({"device": reason, "torch": torch.__version__, "CUDA": torch.version.cuda})
    bench.about.update({"TFLOP/s of a matrix product": rate, "ayat": whole, "auto": precision})
    return bench


def training(bench: Bench) -> Iterator[Unit]:
    """One step on 16 clips (on a CPU 2): how far loss and gradient are from those of fp32 on the CPU, relative."""

    def compare(precision: str, train_encoder: bool, report: Report) -> None:
        size = bench.batch_sizes[0]
        batches = [make_batch(bench.clips.examples[:size], bench.clips.recordings)]
        results = []
        for setup in (Setup(torch.device("cpu")), bench.setup(precision)):
            options = {**FIXED, "train_encoder": train_encoder, "batch_size": size}
            trainer = make_trainer(bench.weights(setup.device), bench.clips, setup, **options)
            results.append(gradient_of_step(trainer, batches))
        (expected_loss, expected), (found_loss, found) = results
        off, tolerance = relative(found, expected), TOLERANCE[precision][0]
        values = {"loss": abs(found_loss / expected_loss - 1), "gradient": off, "tolerance": tolerance}
        report((values, verdict(off <= tolerance and values["loss"] <= tolerance)))

    for train_encoder in (False, True):
        for precision in TOLERANCE:
            name = f"{precision}, encoder {'trained' if train_encoder else 'frozen'}"
            if precision not in bench.precisions:
                yield Unit(name, bench.lacks(precision))
            elif precision == "fp32" and not bench.on_gpu:
                yield Unit(name, "needs a GPU: on the CPU it is the reference")
            else:
                yield Unit(name, partial(compare, precision, train_encoder))


def decoding(bench: Bench) -> Iterator[Unit]:
    """Greedy decoding of 16 clips (on a CPU 4), every token looked at by whisper's own decoder in fp32 on the CPU: how
    much likelier its choice would have been, in nats, at worst. Control: fp32's texts with other clips' audio."""

    def compare(precision: str, graphs: bool, report: Report) -> None:
        setup, clips = bench.setup(precision), bench.clips
        examples = clips.examples[: min(16, bench.batch_sizes[1])]
        audio = collate([clips.recordings.read(example.ayah.audio) for example in examples])
        reference, model = bench.weights("cpu"), bench.weights(setup.device)
        contexts = [context_of(example.samples) for example in examples]
        features = FrozenEncoder(reference, torch.float32)(audio, contexts)
        decoder = BatchDecoder(reference, len(audio), sample_len=TOKENS)
        results = {clip.index: clip.result for clip in decoder.decode([features])}
        expected = [results[index].tokens for index in range(len(audio))]
        encoded = FrozenEncoder(model, setup.precision.dtype)(audio.to(setup.device), contexts)
        decoder = BatchDecoder(model, len(audio), dtype=setup.precision.dtype, sample_len=TOKENS)
        if not graphs:
            decoder._run = decoder._step  # type: ignore[method-assign]
        list(decoder.decode([encoded]))
        synchronize(setup.device)
        start, steps = time.perf_counter(), decoder.steps
        results = {clip.index: clip.result for clip in decoder.decode([encoded])}
        step = (time.perf_counter() - start) / (decoder.steps - steps)
        texts = [results[index].tokens for index in range(len(audio))]
        off, tolerance = worst_choice(reference, decoder, features, texts), TOLERANCE[precision][1]
        others = replace(features, values=features.values.roll(1, 0), contexts=[*contexts[-1:], *contexts[:-1]])
        control = worst_choice(reference, decoder, others, expected)
        same = f"{sum(map(list.__eq__, texts, expected))} of {len(texts)}"
        values = {"worst choice, nats": off, "tolerance": tolerance, "control": control, "texts as in fp32": same}
        report((values | {"ms a token": 1000 * step}, verdict(off <= tolerance < control)))

    for precision in TOLERANCE:
        for graphs in (True, False):
            name = f"{precision}, CUDA graphs {'on' if graphs else 'off'}"
            if precision not in bench.precisions:
                yield Unit(name, bench.lacks(precision))
            elif graphs and not bench.on_gpu:
                yield Unit(name, "needs a GPU")
            else:
                yield Unit(name, partial(compare, precision, graphs))


@torch.no_grad()
def worst_choice(model: Whisper, decoder: BatchDecoder, features: AudioFeatures, texts: Sequence[list[int]]) -> float:
    """How many nats the token least likely to ``model``, of those chosen, is below the likeliest in its place."""
    prompt, worst = decoder.prompt.tolist(), 0.0
    for audio, context, tokens in zip(features.values, features.contexts, texts, strict=True):
        logits = model.decoder(torch.tensor([[*prompt, *tokens]]), audio[None, :context])[0, len(prompt) - 1 :]
        logits[0, decoder.suppressed_first.cpu()] = -torch.inf
        logits[1:, decoder.suppressed.cpu()] = -torch.inf
        # Without eot if the limit was reached.
        chosen = torch.tensor([*tokens, decoder.eot][: decoder.last + 2 - decoder.begin])
        logits = logits[: len(chosen)]
        worst = max(worst, (logits.amax(dim=1) - logits.gather(1, chosen[:, None])[:, 0]).max().item())
    return worst


def throughput(bench: Bench) -> Iterator[Unit]:
    """Training as users get it, waiting for data included; random weights."""

    def speed(size: str, precision: str, train_encoder: bool, batch_size: int, report: Report) -> None:
        setup = bench.setup(precision)
        options = {"batch_size": batch_size, "train_encoder": train_encoder}
        trainer = make_trainer(make_model(size, setup.device), bench.clips, setup, **options)
        took = measure(trainer, 10 if bench.on_gpu else 2, bench.rates[precision])
        epoch = EPOCH / took.clips_per_s
        values = {"batch": batch_size, "clips/s": took.clips_per_s, "ms a step": took.step_ms}
        values |= {"utilisation, %": 100 * took.utilisation, "waiting for data, %": 100 * took.data_wait}
        values |= {"GiB": took.memory / 2**30, "clips at a time": took.micro_batch, f"{EPOCH:,} clips, s": epoch}
        result = "measured"
        if size == "small" and not train_encoder:
            result = bench.goal(f"≥ 45 %, {EPOCH:,} clips in ≤ 120 s", took.utilisation >= 0.45 and epoch <= 120)
        report((values, result))

    few, many = bench.batch_sizes
    for size in sorted(bench.args.sizes, key=lambda size: size != bench.size):
        for train_encoder, batch_size in ((False, few), (False, many), (True, few)):
            name = f"{size}, {bench.precision}, encoder {'trained' if train_encoder else 'frozen'}"
            yield Unit(name, partial(speed, size, bench.precision, train_encoder, batch_size))
    if bench.precision != "fp16" and bench.on_gpu:
        yield Unit(f"{bench.size}, fp16, encoder frozen", partial(speed, bench.size, "fp16", False, few))


def context(bench: Bench) -> Iterator[Unit]:
    """Epochs with a frozen encoder that reads a clip's own length, or 30 s: the first, and the mean of the others."""

    def epochs(batch_size: int, report: Report) -> None:
        setup, clips = bench.setup(), len(bench.clips.examples)
        for length, rule in (("30 s", lambda samples, full=False: FULL_CONTEXT), ("natural", context_of)):
            training_batches.context_of = rule
            options = {"batch_size": batch_size, "epochs": 4 if bench.on_gpu else 2}
            trainer = make_trainer(make_model(bench.size, setup.device), bench.clips, setup, **options)
            seconds, losses = zip(*(train_epoch(trainer) for _ in range(trainer.epochs)), strict=True)
            later = sum(seconds[1:]) / len(seconds[1:])
            values = {"context": length, "first epoch, clips/s": clips / seconds[0], "later, clips/s": clips / later}
            values |= {f"{EPOCH:,} clips, s": EPOCH / clips * later, "last loss": losses[-1]}
            report((values, bench.goal("≤ 45 s", EPOCH / clips * later <= 45) if length == "natural" else "measured"))

    for batch_size in bench.batch_sizes:
        yield Unit(f"{bench.size}, {bench.precision}, batch {batch_size}", partial(epochs, batch_size))


def augmentation(bench: Bench) -> Iterator[Unit]:
    """A training step with --augment beside one without; the encoder is frozen, and at work in both."""

    def cost(report: Report) -> None:
        took = {}
        for augment in (False, True):
            setup, options = bench.setup(), {"batch_size": bench.batch_sizes[0], "augment": augment}
            trainer = make_trainer(make_model(bench.size, setup.device), bench.clips, setup, **options)
            took[augment] = measure(trainer, 20 if bench.on_gpu else 2, bench.rates[bench.precision]).step_ms
        more = took[True] / took[False] - 1
        values = {"ms a step": took[True], "without": took[False], "more, %": 100 * more}
        report((values, bench.goal("≤ 5 %", more <= 0.05)))

    yield Unit(f"{bench.size}, {bench.precision}", cost)


def train_epoch(trainer: Trainer) -> tuple[float, float]:
    """Train the next epoch without validation; return its seconds and its mean loss."""
    start = time.perf_counter()
    losses = list(epoch_losses(trainer))
    return time.perf_counter() - start, sum(losses) / len(losses)


def evaluation(bench: Bench) -> Iterator[Unit]:
    """A reciter's ayat of at most 30 s decoded, 34 tokens each, and from that the time of all 6,236; random weights.
    With --model also its real evaluation: fallback, ayat of any length, the report."""

    def decode(batch_size: int, report: Report) -> None:
        clips = [bench.clips.recordings.clips[str(e.ayah.audio)] for e in bench.clips.examples]
        row = decoding_speed.Row(
            "ours", bench.precision, batch_size, TOKENS, bench.device, bench.folder / "model", clips
        )
        took = decoding_speed.measure(row)
        if bench.on_gpu:  # the ayat there are again and again, for 15 s
            count = min(RECITER, max(len(clips), int(15 * len(clips) / took.seconds)))
            row = replace(row, clips=[clips[i % len(clips)] for i in range(count)])
            took = decoding_speed.measure(row)
        rate = len(row.clips) / took.seconds
        values = {"ayat": len(row.clips), "ayat/s": rate, f"{RECITER:,} ayat, s": RECITER / rate}
        report((values | {"GiB": took.memory / 2**30}, bench.goal("≤ 60 s", RECITER / rate <= 60)))

    def whole(report: Report) -> None:
        reciter = bench.clips.examples[0].ayah.reciter
        options = {"models": (str(bench.args.model),), "data": bench.args.data, "reciters": (reciter,)}
        options |= {"out": bench.folder / "results", "cache": bench.folder / "cache"}
        (row,) = evaluate(EvaluationConfig(**options, device=bench.device, precision=bench.precision))
        values = {"ayat": row["ayat"], "ayat/s": row["ayat"] / row["wall_s"], "WER, %": 100 * row["wer"]}
        report((values | {f"{RECITER:,} ayat, s": RECITER * row["wall_s"] / row["ayat"]}, "measured"))

    for batch_size in (64, 256) if bench.on_gpu else (4,):
        yield Unit(f"{bench.size}, {bench.precision}, batch {batch_size}", partial(decode, batch_size))
    yield Unit("evaluate.py", whole if bench.args.model else "needs --model")


def scaler(bench: Bench) -> Iterator[Unit]:
    """24 steps in fp16: those that the GradScaler skips because a gradient overflowed must change nothing, and end."""

    def steps(scale: float, report: Report) -> None:
        setup = bench.setup("fp16")
        options = {"lr": 1e-4, "warmup_steps": 0, "epochs": 100, "batch_size": bench.batch_sizes[0]}
        trainer = make_trainer(bench.weights(setup.device), bench.clips, setup, **options)
        trainer.scaler = torch.amp.GradScaler(setup.device.type, init_scale=scale)
        batches = [make_batch(bench.clips.examples[: bench.batch_sizes[0]], bench.clips.recordings)]
        losses, skipped, kept = [], [], True
        for _ in range(24):
            before = trainer.model.decoder.token_embedding.weight.clone()
            loss, norm = trainer.training_step(batches, batches[0].target_tokens)
            losses.append(loss)
            skipped.append(not is_finite(loss, norm))
            kept &= torch.equal(before, trainer.model.decoder.token_embedding.weight) == skipped[-1]
        values = {"steps skipped": sum(skipped), "scale at the end": trainer.scaler.get_scale()}
        values |= {"first loss": losses[0], "last": losses[-1]}
        right = kept and not any(skipped[-4:]) and losses[-1] < losses[0] and (scale < 2**20 or any(skipped))
        report((values, verdict(right)))

    yield Unit("from 2^16, as training has it", partial(steps, 2.0**16) if bench.on_gpu else "needs a GPU")
    yield Unit("from 2^32, too high at first", partial(steps, 2.0**32) if bench.on_gpu else "needs a GPU")


def memory(bench: Bench) -> Iterator[Unit]:
    """A batch that a GPU's memory does not hold: the step is taken in smaller ones, with the same gradient (fp32)."""

    def halve(report: Report) -> None:
        setup = bench.setup("fp32")
        most, device = bench.batch_sizes[1], setup.device
        batches = [make_batch(bench.clips.examples[:most], bench.clips.recordings)]
        options = {**FIXED, "batch_size": most}
        trainer = make_trainer(make_model(bench.size, device), bench.clips, setup, **options)
        gradient_of_step(trainer, batches)  # the optimiser and the encoder take their places
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        resident = torch.cuda.memory_allocated(device)
        expected_loss, expected = gradient_of_step(trainer, batches)
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
        room = resident + 0.7 * (peak - resident)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(room / total, device)
        found_loss, found = gradient_of_step(trainer, batches)
        off = max(relative(found, expected), abs(found_loss / expected_loss - 1))
        values = {"GiB wanted": peak / 2**30, "GiB allowed": room / 2**30, "clips at a time, before": most}
        values |= {"after": trainer.micro_batch, "gradient differs by": off, "tolerance": SAME}
        report((values, verdict(trainer.micro_batch < most and off <= SAME)))

    yield Unit(f"{bench.size}, encoder frozen", halve if bench.on_gpu else "needs a GPU")


def attention(bench: Bench) -> Iterator[Unit]:
    """A step of the decoder alone on texts of one length, with its cross-attention in either order: the queries are
    projected, as the trainer has it up to 64 tokens, or the audio is, as whisper has it."""

    def orders(length: int, report: Report) -> None:
        setup, clips = bench.setup(), bench.batch_sizes[0]
        trainer = make_trainer(make_model(bench.size, setup.device), bench.clips, setup, **FIXED, batch_size=clips)
        dims, gradients = trainer.model.dims, []
        features = torch.randn((clips, dims.n_audio_ctx, dims.n_audio_state), device=setup.device)
        tokens, positions = torch.randint(50257, (clips, length)), torch.arange(clips * length)
        trainer.audio = lambda batch: (features.to(setup.precision.dtype), None)  # type: ignore[method-assign]
        audio, clip = torch.zeros((clips, 1), dtype=torch.int16), Clip(0, 1)
        step = whole_step([Batch(audio, tokens, positions, tokens.flatten(), [clip] * clips).to(setup.device)])
        for name in ("queries", "audio"):
            if name == "audio":
                training_loss.attend_to_audio = lambda attention, x, features, mask: attention(x, features)[0]
            if bench.on_gpu:
                torch.cuda.reset_peak_memory_stats(setup.device)
            gradients.append(gradient_of_step(trainer, step.batches)[1])
            synchronize(setup.device)
            start, count = time.perf_counter(), 10 if bench.on_gpu else 1
            for _ in range(count):
                trainer.step_within_memory(step)
            synchronize(setup.device)
            milliseconds = 1000 * (time.perf_counter() - start) / count
            off, tolerance = relative(gradients[-1], gradients[0]), TOLERANCE[bench.precision][0]
            values = {"projected": name, "ms a step": milliseconds, "GiB": peak_memory(setup.device) / 2**30}
            report((values | {"gradient differs by": off, "tolerance": tolerance}, verdict(off <= tolerance)))

    for length in (16, 32, 64):
        yield Unit(f"{bench.size}, {bench.precision}, {length} tokens", partial(orders, length))


def beside(bench: Bench) -> Iterator[Unit]:
    """Other projects' training on the same clips as ours (benchmarks/peers.py), loading included, encoder frozen."""
    folder = bench.folder / "peers"

    def prepare_job(report: Report) -> None:
        folder.mkdir()
        options = {"model": bench.folder / "model" / "model.pt", "train_encoder": False, "valid_clips": 1, "epochs": 2}
        options |= {"clips": min(256, len(bench.clips.examples)), "batch_size": [bench.batch_sizes[0]]}
        options |= {"data": bench.args.data, "device": bench.device, "precision": bench.precision}
        job, seconds = peers.prepare_job(argparse.Namespace(**options), folder)
        (folder / "job").write_bytes(pickle.dumps(job))
        report(({"first epoch, clips/s": len(job.clips.examples) / seconds}, "measured"))

    def train(way: str, report: Report) -> None:
        job = pickle.loads((folder / "job").read_bytes())
        first, *others = peers.WAYS[way](job)
        clips, last = len(job.clips.examples), others[-1]
        values = {"first epoch, clips/s": clips / first.seconds, "later, clips/s": clips / last.seconds}
        values |= {"GiB": peak_memory(job.setup.device) / 2**30, "first loss": first.loss, "last": last.loss}
        report((values, "measured"))

    yield Unit("decoding the recordings beforehand, for ours", prepare_job)
    for way in ("ours", "ours, 30 s", "transformers", "openai-whisper, plain loop"):
        missing = way == "transformers" and importlib.util.find_spec("transformers") is None
        work = "transformers is not installed" if missing else partial(train, way)
        yield Unit(f"{peers.label(way)}, {bench.size}", work)


def nccl(bench: Bench) -> Iterator[Unit]:
    """train.py on one card, and on two over NCCL with the same clips in the first step and half of them on each."""

    def compare(report: Report) -> None:
        batch_size, rates, firsts = bench.batch_sizes[0], [], []
        for processes in (1, 2):
            out = bench.folder / f"processes-{processes}"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            options = f"--precision {bench.precision} --device {bench.device} --no-vanilla --epochs 1 --max-steps 12"
            options += f" --keep last --batch-size {2 * batch_size // processes} --max-time 0.02"
            command = [*launcher, str(ROOT / "train.py"), "--data", str(bench.args.data), "--out", str(out)]
            command += ["--model", str(bench.folder / "model" / "model.pt"), "--cache", str(bench.folder / "cache")]
            command += ["--train-reciters", bench.clips.examples[0].ayah.reciter, "--valid-reciters", *options.split()]
            rates.append(clips_per_s(out, command, threads=1))
            lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            firsts.append(next(row for row in lines if row["event"] == "train"))
            values = {"clips/s": rates[-1], "times as many": rates[-1] / rates[0]}
            values |= {name: abs(firsts[-1][name] / firsts[0][name] - 1) for name in ("loss", "grad_norm")}
            off = max(values["loss"], values["grad_norm"])
            report((values | {"tolerance": 10 * SAME}, verdict(off <= 10 * SAME)))

    work = compare if bench.gpus > 1 else f"needs two GPUs, here are {bench.gpus}"
    yield Unit(f"{bench.size}, one and two", work, limit=2 * LIMIT)


PARTS: dict[str, Callable[[Bench], Iterator[Unit]]] = {
    "training": training,
    "decoding": decoding,
    "throughput": throughput,
    "context": context,
    "augmentation": augmentation,
    "evaluation": evaluation,
    "scaler": scaler,
    "memory": memory,
    "attention": attention,
    "peers": beside,
    "nccl": nccl,
}
