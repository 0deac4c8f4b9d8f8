"""The training step, measured: clips a second, model-FLOPs utilisation, waiting for data, memory, and exactness.

  python benchmarks/train.py --data DIR                          a tiny-sized Whisper on this CPU
  python benchmarks/train.py --data DIR --size small --device cuda --batch-size 16 32 64
  python benchmarks/train.py --data DIR --profile                the operators that one step spends its time in
  python benchmarks/train.py --data DIR --peers --model base.pt  other projects on the same clips (benchmarks/peers.py)

The weights are random, since speed does not depend on them; the recordings are real, through the real cache, loader
and loop. Utilisation counts the arithmetic that the model needs (2 operations a multiply-add; a frozen encoder once, a
trained part three times), and not what recomputing or padding adds, against the rate this machine reaches on a large
matrix product in the same dtype, in the same run.
"""

import argparse
import copy
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # after this folder: there is a train.py there, too

import torch
from torch import Tensor
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from whisper_quran.config import TrainingConfig
from whisper_quran.data.audio_cache import AudioCache, prepare_audio
from whisper_quran.data.batches import Batch, make_batch, prefetch, split
from whisper_quran.data.corpus import open_corpus
from whisper_quran.data.prepare import Example, TrainingData, build_examples
from whisper_quran.runtime.device import Precision, choose_device, choose_precision
from whisper_quran.training.trainer import Step, Trainer

SIZES = {
    "nano": (64, 1, 1),  # smaller than any Whisper: to try a script
    "tiny": (384, 6, 4),
    "base": (512, 8, 6),
    "small": (768, 12, 12),
    "medium": (1024, 16, 24),
    "large-v3": (1280, 20, 32),
}
WARM_UP = 3  # steps


class Setup(NamedTuple):
    """Where and in what precision a trainer computes."""

    device: torch.device
    precision: Precision = Precision("fp32", "as asked")


@dataclass(frozen=True)
class Clips:
    """Real ayat of at most 30 s, and where their decoded recordings are."""

    examples: list[Example]
    recordings: AudioCache


@dataclass(frozen=True)
class Throughput:
    """What a few steps took. ``memory`` is the peak in bytes: the GPU's, or without one this process's."""

    clips_per_s: float
    step_ms: float
    utilisation: float
    data_wait: float
    memory: int
    micro_batch: int  # clips at a time in the end: fewer than the batch if the GPU's memory ran out


def make_model(size: str, device: torch.device | str = "cpu", layers: int | None = None) -> Whisper:
    """A Whisper with the dimensions of ``size``, or fewer ``layers``, and random weights, made on ``device``."""
    state, heads, all_layers = SIZES[size]
    layers = layers or all_layers
    n_mels, n_vocab = (128, 51866) if size == "large-v3" else (80, 51865)
    torch.manual_seed(0)
    with torch.device(device):
        model = Whisper(ModelDimensions(n_mels, 1500, state, heads, layers, n_vocab, 448, state, heads, layers))
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=0.02)
    return model


def open_clips(data: Path, cache: Path, limit: int | None = None, reciters: Sequence[str] = ()) -> Clips:
    """Decode the ayat under ``data``, of every reciter (or of ``reciters``), and pair them with their tokens; at most
    ``limit`` for each reciter that there is, evenly from all ayat, so that they are as long as all are."""
    corpus = open_corpus(data)
    names = reciters or corpus.reciters
    ayat, _ = corpus.select(names)
    if limit and (count := limit * len(names)) < len(ayat):
        ayat = [ayat[i * len(ayat) // count] for i in range(count)]
    sources: dict[str, list[Path]] = {}
    for ayah in ayat:
        sources.setdefault(ayah.reciter, []).append(ayah.audio)
    recordings = prepare_audio(sources, cache, workers=4)
    tokenizer = get_tokenizer(True, num_languages=99, language="ar", task="transcribe")
    return Clips(build_examples(ayat, recordings, tokenizer, 30, 448)[0], recordings)


def make_trainer(model: Whisper, clips: Clips, setup: Setup, **options: Any) -> Trainer:
    """The trainer of a run on all ``clips``, without validation."""
    config = TrainingConfig(**{"lr": 1e-5, "warmup_steps": 2, **options})
    return Trainer(config, TrainingData(clips.examples, {}, clips.recordings, []), model, *setup)


def step_flops(model: Whisper, batch: Batch, train_encoder: bool) -> float:
    """Floating-point operations that a training step on ``batch`` needs: audio and texts without padding, and
    cross-attention in the cheaper of its two orders (``training/loss.py``). What is executed beyond that is waste."""
    dims = model.dims
    length = batch.target_tokens / len(batch)
    operations = 3 * batch.target_tokens * dims.n_text_state * dims.n_vocab  # the output layer's
    for frames in batch.contexts:
        d = dims.n_audio_state
        conv = 2 * frames * 3 * dims.n_mels * d + frames * 3 * d * d
        encoder = conv + dims.n_audio_layer * (12 * frames * d * d + 2 * frames * frames * d)
        d = dims.n_text_state
        self_attention = 4 * length * d * d + length * length * d
        audio_projected = 2 * frames * d * d + 2 * length * frames * d
        queries_projected = 2 * length * d * d + 2 * dims.n_text_head * length * frames * d
        cross_attention = 2 * length * d * d + min(audio_projected, queries_projected)
        decoder = dims.n_text_layer * (self_attention + cross_attention + 8 * length * d * d)
        operations += encoder * (3 if train_encoder else 1) + 3 * decoder
    return 2 * operations


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: what utilisation is measured against."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on the GPU, or without one that this process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def endless_steps(trainer: Trainer) -> Iterator[Step]:
    """The trainer's own steps, epoch after epoch, and after its last epoch those of the first again."""
    for number in itertools.count():
        trainer.epoch = number % trainer.epochs
        trainer.step = trainer.epoch * trainer.steps_per_epoch
        yield from trainer.steps()


def epoch_losses(trainer: Trainer) -> Iterator[float]:
    """Train the trainer's next epoch, without validation; yield the loss of each step."""
    with closing(prefetch(trainer.steps())) as feed:  # type: ignore[type-var]
        for step in feed:
            loss, _ = trainer.step_within_memory(step)
            trainer.step += 1
            yield loss
    synchronize(trainer.device)
    trainer.epoch += 1


def measure(trainer: Trainer, steps: int, rate: float) -> Throughput:
    """Train ``steps`` steps as the trainer cuts them, after a few to warm up; ``rate`` is :func:`matmul_rate`'s."""
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with closing(prefetch(endless_steps(trainer))) as feed:  # type: ignore[type-var]
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                synchronize(device)
                start, clips, flops, waited = time.perf_counter(), 0, 0.0, 0.0
            asked = time.perf_counter()
            step = next(feed)
            if number >= WARM_UP:
                waited += time.perf_counter() - asked
                clips += step.clips
                flops += sum(step_flops(trainer.model, batch, trainer.config.train_encoder) for batch in step.batches)
            trainer.step_within_memory(step)
    synchronize(device)
    seconds = time.perf_counter() - start
    return Throughput(
        clips_per_s=clips / seconds,
        step_ms=1000 * seconds / steps,
        utilisation=flops / seconds / rate,
        data_wait=waited / seconds,
        memory=peak_memory(device),
        micro_batch=trainer.micro_batch,
    )


def whole_step(batches: list[Batch]) -> Step:
    """The step that ``batches`` are all of."""
    return Step(batches, sum(map(len, batches)), sum(batch.target_tokens for batch in batches))


def gradient_of_step(trainer: Trainer, batches: list[Batch]) -> tuple[float, Tensor]:
    """Take a step; return its loss and its gradient, of all trained parameters, on the CPU.

    fp16's scaler may skip steps, which change nothing, until it has found its scale.
    """
    gradients: list[Tensor] = []

    def keep(*_: Any) -> None:
        trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([parameter.grad.flatten().float().cpu() for parameter in trained]))

    hook = trainer.optimizer.register_step_pre_hook(keep)
    for _ in range(30):
        loss, _ = trainer.step_within_memory(whole_step(batches))
        if gradients:
            hook.remove()
            return loss, gradients[0]
    raise RuntimeError("30 steps in a row were skipped")


def relative(value: Tensor, expected: Tensor) -> float:
    """How far ``value`` is from ``expected``, relative to its norm."""
    return ((value - expected).norm() / expected.norm()).item()


def accumulation_error(clips: Clips) -> tuple[float, float]:
    """How far 4 × 4 accumulated is from a batch of 16, in fp32 on the CPU: gradient and update, relative."""
    original = make_model("tiny")
    gradients, updates = [], []
    for size in (16, 4):
        model = copy.deepcopy(original)
        trainer = make_trainer(model, clips, Setup(torch.device("cpu")), lr=1e-3, warmup_steps=0, clip_grad=0)
        trainer.micro_batch = size  # on a CPU it is less than 16
        batches = [make_batch(part, clips.recordings) for part in split(clips.examples[:16], size)]
        gradients.append(gradient_of_step(trainer, batches)[1])
        moved = zip(model.decoder.parameters(), original.decoder.parameters(), strict=True)
        updates.append(torch.cat([(new - old).detach().flatten() for new, old in moved]))
    return relative(gradients[1], gradients[0]), relative(updates[1], updates[0])


def top_operators(trainer: Trainer, count: int) -> list[tuple[str, float, float]]:
    """Profile one step: the kernels (on a CPU the operators) that take longest, with milliseconds and share of all."""
    step = next(trainer.steps())
    for _ in range(WARM_UP):
        trainer.step_within_memory(step)
    on_gpu = trainer.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        trainer.step_within_memory(step)
        synchronize(trainer.device)
    times: dict[str, float] = {}
    for event in profile.key_averages():
        if not on_gpu:
            times[event.key] = event.self_cpu_time_total
        elif event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            times[event.key] = event.self_device_time_total
    total = sum(times.values())
    longest = sorted(times, key=lambda name: -times[name])[:count]
    return [(name, times[name] / 1000, times[name] / total) for name in longest]


def print_throughput(clips: Clips, setup: Setup, args: argparse.Namespace) -> None:
    """The table: a row for every batch size."""
    rate = matmul_rate(setup.device, setup.precision.dtype)
    print(f"\n{rate / 1e12:.2f} TFLOP/s on a large {setup.precision.name} matrix product; random weights")
    print(f"{len(clips.examples)} real ayat, encoder {'trained' if args.train_encoder else 'frozen'}\n")
    print("| model | precision | batch | clips/s | ms a step | utilisation | waiting for data | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for batch_size in args.batch_size:
        model = make_model(args.size, setup.device)
        options = {"batch_size": batch_size, "train_encoder": args.train_encoder, "compile": args.compile}
        row = measure(make_trainer(model, clips, setup, **options), args.steps, rate)
        cells = [f"{args.size}{' compiled' if args.compile else ''}", setup.precision.name, str(batch_size)]
        cells += [f"{row.clips_per_s:.1f}", f"{row.step_ms:.0f}", f"{100 * row.utilisation:.0f} %"]
        cells += [f"{100 * row.data_wait:.2f} %", f"{row.memory / 2**30:.2f} GiB"]
        print(f"| {' | '.join(cells)} |")


def print_profile(clips: Clips, setup: Setup, args: argparse.Namespace) -> None:
    """The longest kernels or operators of a step of the first batch size."""
    options = {"batch_size": args.batch_size[0], "train_encoder": args.train_encoder}
    trainer = make_trainer(make_model(args.size, setup.device), clips, setup, **options)
    print(f"\none step of {args.size}, batch {args.batch_size[0]}, {setup.precision.name}\n")
    print("| operator | ms | share |\n| --- | ---: | ---: |")
    for name, milliseconds, share in top_operators(trainer, 12):
        print(f"| `{name[:90]}` | {milliseconds:.1f} | {100 * share:.1f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--train-encoder", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print what one step spends its time in")
    parser.add_argument("--peers", action="store_true", help="compare with other projects, from the weights of --model")
    parser.add_argument("--model", type=Path, help="with --peers: a Whisper checkpoint")
    parser.add_argument("--clips", type=int, default=64, help="with --peers: a multiple of the batch size")
    parser.add_argument("--valid-clips", type=int, default=16, help="with --peers")
    parser.add_argument("--epochs", type=int, default=5, help="with --peers")
    args = parser.parse_args()
    if args.peers:
        from peers import compare  # benchmarks/peers.py

        return compare(args)

    device, reason = choose_device(args.device)
    setup = Setup(device, choose_precision(args.precision, device, make_model(args.size)))
    print(f"{device}: {reason}")
    with tempfile.TemporaryDirectory() as cache:
        clips = open_clips(args.data, Path(cache))
        if args.profile:
            return print_profile(clips, setup, args)
        print_throughput(clips, setup, args)
        gradient, step = accumulation_error(clips)
        print("\n4 × 4 accumulated against a batch of 16, fp32, relative:")
        print(f"gradients differ by {gradient:.1e}, AdamW's first updates by {step:.1e}")


if __name__ == "__main__":
    main()
